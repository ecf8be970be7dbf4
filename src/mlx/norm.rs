//! Norms over the last axis.
//!
//! Owns which way one is computed. How a stored weight is to be read is `loader`'s, the loops of the CPU's own way are
//! `row_loops`'s.

use mlx_rs::{Array, fast};

use super::{
    device::ComputeDevice,
    error::Result,
    host::{by_head, is_for_host, made_by_host, shape_by_head},
    row_loops::{Spread, norm_rows},
};
use crate::models::NormKind;

/// A norm over the last axis.
#[derive(Debug)]
pub(super) struct Norm {
    pub kind: NormKind,
    /// The factors themselves, however they are stored; `None`: there are none.
    pub weight: Option<Array>,
    pub eps: f32,
    pub device: ComputeDevice,
}

impl Norm {
    /// The norm without factors.
    pub(super) fn weightless(eps: f32, device: ComputeDevice) -> Self {
        Self { kind: NormKind::RootMeanSquare, weight: None, eps, device }
    }

    pub(super) fn forward(&self, x: &Array) -> Result<Array> {
        if self.is_for_host(x) {
            return self.by_host(x, x.shape());
        }
        Ok(match self.kind {
            NormKind::RootMeanSquare => fast::rms_norm(x, self.weight.as_ref(), self.eps)?,
            NormKind::Layer => fast::layer_norm(x, self.weight.as_ref(), None, self.eps)?,
        })
    }

    /// The heads of rows, `(n, H·D)` or `(n, H, D)`, each by itself: `(n, H, D)`.
    pub(super) fn by_head(&self, rows: &Array, num_heads: usize) -> Result<Array> {
        if self.is_for_host(rows) {
            return self.by_host(rows, &shape_by_head(rows, num_heads));
        }
        self.forward(&by_head(rows, num_heads, self.device)?)
    }

    /// Rows may be float32 where the factors are of 16 bits.
    fn is_for_host(&self, rows: &Array) -> bool {
        is_for_host(rows, self.device) && self.weight.iter().all(|factors| is_for_host(factors, self.device))
    }

    /// `x` in another shape, of whose last axis each row is normed by itself.
    fn by_host(&self, x: &Array, shape: &[i32]) -> Result<Array> {
        let spread = match self.kind {
            NormKind::RootMeanSquare => Spread::RootMeanSquare,
            NormKind::Layer => Spread::Deviation,
        };
        let (width, spread) = (shape.last().map_or(1, |&width| width as usize), (spread, self.eps));
        match &self.weight {
            Some(weight) => made_by_host([x, weight], shape, |[rows, factors], normed| {
                norm_rows(rows, width, spread, Some(factors), normed);
            }),
            None => made_by_host([x], shape, |[rows], normed| norm_rows(rows, width, spread, None, normed)),
        }
    }
}

/// Rows normed where there is a norm for them.
pub(super) fn normed_by(norm: Option<&Norm>, rows: Array) -> Result<Array> {
    match norm {
        Some(norm) => norm.forward(&rows),
        None => Ok(rows),
    }
}

#[cfg(test)]
mod tests {
    use mlx_rs::Dtype;

    use super::*;

    /// Recurrent layers have float32 rows in models of 16 bits, too; on the CPU the factors were not read then.
    #[test]
    fn factors_of_16_bits_norm_rows_of_float32() {
        let rows = Array::from_slice(&[1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0], &[2, 3]);
        for kind in [NormKind::RootMeanSquare, NormKind::Layer] {
            let of = |dtype: Dtype| {
                let weight = Array::from_slice(&[0.5_f32, 1.5, 2.0], &[3]).as_dtype(dtype).unwrap();
                let norm = Norm { kind, weight: Some(weight), eps: 1e-5, device: ComputeDevice::Cpu };
                let normed = [norm.forward(&rows).unwrap(), norm.by_head(&rows, 1).unwrap()];
                normed.map(|rows| rows.as_dtype(Dtype::Float32).unwrap().to_vec_exact::<f32>().unwrap())
            };
            for (narrow, wide) in of(Dtype::Bfloat16).iter().zip(&of(Dtype::Float32)) {
                assert!(narrow.iter().zip(wide).all(|(left, right)| (left - right).abs() < 1e-5));
            }
        }
    }

    #[test]
    fn norms_are_as_in_double_precision_on_both_kinds_of_device() {
        for (num_rows, width) in [(40, 8), (3, 200), (2, 1000), (9, 33)] {
            // Far from zero, where what is taken off is large beside what is left.
            let number = |index: usize| (index as f32 * 0.713).sin() * 3.0 + 5.0;
            let numbers: Vec<f32> = (0..num_rows * width).map(number).collect();
            let factors: Vec<f32> = (0..width).map(|index| 1.0 + index as f32 / width as f32).collect();
            let whole = Array::from_slice(&numbers, &[num_rows as i32, width as i32]);
            // Rows that do not lie one behind the other.
            let apart = mlx_rs::ops::concatenate(&[&whole, &whole], 1).unwrap();
            let apart = crate::mlx::sys::slice_axis(&apart, 1, width, 2 * width).unwrap();
            for (kind, device) in [NormKind::RootMeanSquare, NormKind::Layer]
                .into_iter()
                .flat_map(|kind| ComputeDevice::KINDS.map(|device| (kind, device)))
            {
                for (rows, factors) in [(&whole, Some(&factors)), (&apart, Some(&factors)), (&whole, None)] {
                    let weight = factors.map(|factors| Array::from_slice(factors, &[width as i32]));
                    let norm = Norm { kind, weight, eps: 1e-3, device };
                    let by_head = norm.by_head(rows, 1).unwrap();
                    assert_eq!(by_head.shape(), [num_rows as i32, 1, width as i32]);
                    let found = norm.forward(rows).unwrap().contiguous().unwrap();
                    let found = found.to_vec_exact::<f32>().unwrap();
                    for (row, found) in numbers.chunks(width).zip(found.chunks(width)) {
                        let row: Vec<f64> = row.iter().map(|x| f64::from(*x)).collect();
                        let mean = match kind {
                            NormKind::RootMeanSquare => 0.0,
                            NormKind::Layer => row.iter().sum::<f64>() / width as f64,
                        };
                        let square = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / width as f64;
                        for (index, (x, found)) in row.iter().zip(found).enumerate() {
                            let factor = factors.map_or(1.0, |factors| f64::from(factors[index]));
                            let expected = (x - mean) / (square + 1e-3).sqrt() * factor;
                            assert!(
                                (f64::from(*found) - expected).abs() < 4e-6,
                                "{kind:?} {device:?} {width}: {found} {expected}"
                            );
                        }
                    }
                }
            }
        }
    }
}
