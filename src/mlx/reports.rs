//! How probable tokens are: log-softmax of raw logits, ranks, the most probable tokens.
//!
//! Owns computing that for many rows. On the CPU, whose memory is the host's, it is one pass over each row's
//! logits; elsewhere a few operations for all rows, read when the pass is collected.

use mlx_rs::{Array, Dtype, ops, ops::indexing};

use super::{
    device::ComputeDevice,
    error::{MlxError, Result},
    logit_rows, sys,
};
use crate::engine::{TokenId, TokenReport};

/// A report on one token of each of R rows; there is none where the logits are no numbers.
#[derive(Debug)]
pub(super) enum Reports {
    Computed(Vec<Option<TokenReport>>),
    OnDevice(DeviceReports),
}

/// What is read of them later.
#[derive(Debug)]
pub(super) struct DeviceReports {
    /// `(R,)`, uint32.
    tokens: Array,
    /// `(R,)`, float32.
    log_probabilities: Array,
    /// `(R,)`, int32.
    ranks: Array,
    /// The most probable tokens, `(R, k)`, in no order: uint32, and their log-probabilities.
    top: Option<(Array, Array)>,
}

impl Reports {
    /// Reports on a token of each row of `(R, vocabulary)` logits, float32.
    ///
    /// `tokens` is `(R,)`, uint32.
    pub(super) fn new(device: ComputeDevice, logits: &Array, tokens: &Array, num_top: usize) -> Result<Self> {
        if device == ComputeDevice::Cpu {
            return Ok(Self::Computed(on_host(logits, tokens, num_top)?));
        }
        Ok(Self::OnDevice(DeviceReports::new(logits, tokens, num_top)?))
    }

    /// What has to be computed.
    pub(super) fn arrays(&self) -> Vec<&Array> {
        match self {
            Self::Computed(_) => Vec::new(),
            Self::OnDevice(reports) => reports.arrays(),
        }
    }

    pub(super) fn read(self) -> Result<Vec<Option<TokenReport>>> {
        match self {
            Self::Computed(reports) => Ok(reports),
            Self::OnDevice(reports) => reports.read(),
        }
    }
}

fn on_host(logits: &Array, tokens: &Array, num_top: usize) -> Result<Vec<Option<TokenReport>>> {
    let tokens = numbers::<u32>(tokens)?;
    logit_rows::of_each(logits, |row, logits| logit_rows::report(logits, *tokens.get(row)?, num_top))
}

impl DeviceReports {
    fn new(logits: &Array, tokens: &Array, num_top: usize) -> Result<Self> {
        let num_columns = logits.dim(-1) as usize;
        let log_sum = logits.logsumexp_axis(-1, true)?;
        let chosen = indexing::take_along_axis(logits, tokens.expand_dims(1)?, -1)?;
        let num_above = logits.gt(&chosen)?.as_dtype(Dtype::Int32)?.sum_axis(-1, false)?;
        let num_top = num_top.min(num_columns);
        let top = if num_top == 0 {
            None
        } else {
            let first = num_columns - num_top;
            let order = if num_top == 1 {
                indexing::argmax_axis(logits, -1, true)?
            } else {
                let order = ops::argpartition_axis(logits, first as i32, -1)?;
                sys::slice_axis(&order, 1, first, num_columns)?
            };
            let values = indexing::take_along_axis(logits, &order, -1)?.subtract(&log_sum)?;
            Some((order, values))
        };
        Ok(Self {
            tokens: tokens.clone(),
            log_probabilities: chosen.subtract(&log_sum)?.squeeze_axes(&[1])?,
            ranks: num_above.add(Array::from_int(1))?,
            top,
        })
    }

    fn arrays(&self) -> Vec<&Array> {
        let top = self.top.iter().flat_map(|(tokens, values)| [tokens, values]);
        [&self.tokens, &self.log_probabilities, &self.ranks].into_iter().chain(top).collect()
    }

    fn read(self) -> Result<Vec<Option<TokenReport>>> {
        mlx_rs::transforms::eval(self.arrays())?;
        let log_probabilities = numbers::<f32>(&self.log_probabilities)?;
        let ranks = numbers::<i32>(&self.ranks)?;
        let num_top = self.top.as_ref().map_or(0, |(tokens, _)| tokens.dim(-1) as usize);
        let (top_tokens, top_values) = match &self.top {
            Some((tokens, values)) => (numbers::<u32>(tokens)?, numbers::<f32>(values)?),
            None => (Vec::new(), Vec::new()),
        };
        let tokens = numbers::<u32>(&self.tokens)?;
        let of_row = |(row, token): (usize, TokenId)| {
            let log_probability = log_probabilities[row];
            let places = row * num_top..(row + 1) * num_top;
            let mut top: Vec<(TokenId, f32)> =
                places.map(|place| (top_tokens[place], top_values[place])).collect();
            top.sort_by(|(token, value), (other, other_value)| {
                other_value.total_cmp(value).then(token.cmp(other))
            });
            let report = TokenReport { token, log_probability, rank: ranks[row] as u32, top };
            log_probability.is_finite().then_some(report)
        };
        Ok(tokens.into_iter().enumerate().map(of_row).collect())
    }
}

fn numbers<T: mlx_rs::ArrayElement + Clone>(array: &Array) -> Result<Vec<T>> {
    let array = array.contiguous()?;
    array.eval()?;
    array
        .to_vec_exact::<T>()
        .map_err(|error| MlxError::Unsupported(format!("reports cannot be read: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_device_report_the_same() {
        let (num_rows, num_columns) = (7, 700);
        let logits: Vec<f32> =
            (0..num_rows * num_columns).map(|index| (index as f32 * 1.7).sin() * 6.0).collect();
        let logits = Array::from_slice(&logits, &[num_rows, num_columns]);
        let tokens: Vec<u32> = (0..num_rows as u32).map(|row| row * 99).collect();
        let tokens = Array::from_slice(&tokens, &[num_rows]);
        for num_top in [0, 1, 2, 20] {
            let [on_cpu, on_gpu] = ComputeDevice::KINDS
                .map(|device| Reports::new(device, &logits, &tokens, num_top).unwrap().read().unwrap());
            for (left, right) in on_cpu.iter().zip(&on_gpu) {
                let (left, right) = (left.as_ref().unwrap(), right.as_ref().unwrap());
                assert_eq!((left.token, left.rank, left.top.len()), (right.token, right.rank, num_top));
                assert!((left.log_probability - right.log_probability).abs() < 1e-5);
                for ((token, value), (other, other_value)) in left.top.iter().zip(&right.top) {
                    assert_eq!(token, other);
                    assert!((value - other_value).abs() < 1e-5);
                }
            }
        }
    }

    #[test]
    fn rows_of_no_numbers_have_no_report_and_the_others_do() {
        let rows = [[1.0, 2.0, 0.5], [f32::NAN; 3], [3.0, f32::INFINITY, 0.0]];
        let logits = Array::from_slice(rows.as_flattened(), &[3, 3]);
        let tokens = Array::from_slice(&[0u32, 1, 2], &[3]);
        for device in ComputeDevice::KINDS {
            let reports = Reports::new(device, &logits, &tokens, 2).unwrap().read().unwrap();
            let are_there: Vec<bool> = reports.iter().map(Option::is_some).collect();
            assert_eq!(are_there, [true, false, false], "{device:?}");
        }
    }
}
