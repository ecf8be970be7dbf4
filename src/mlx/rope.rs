//! Rotary positions applied to packed queries and keys.
//!
//! Owns the rotation. The frequencies come from `models::RopeSpec`. On a GPU MLX's fused kernel
//! rotates; on the CPU that kernel computes every sine anew for each layer and for queries and
//! keys apart, so there one table serves the whole forward pass.

use mlx_rs::{Array, ops};

use super::{arrays::concatenated, device::ComputeDevice, error::Result, sys};
use crate::models::RopeSpec;

/// Rotation by one set of frequencies.
#[derive(Debug)]
pub(super) struct Rope {
    spec: RopeSpec,
    device: ComputeDevice,
    frequencies: Array,
    inverse_frequencies: Array,
}

/// What a forward pass needs to rotate its tokens.
#[derive(Debug)]
pub(super) enum RopeTable {
    /// `(T, 1, dims / 2)` each.
    CosSin {
        cos: Array,
        sin: Array,
    },
    Positions(Array),
}

impl Rope {
    pub(super) fn new(spec: &RopeSpec, device: ComputeDevice) -> Self {
        let half = spec.frequencies.len() as i32;
        let inverse: Vec<f32> = spec.frequencies.iter().map(|frequency| 1.0 / frequency).collect();
        Self {
            spec: spec.clone(),
            device,
            frequencies: Array::from_slice(&spec.frequencies, &[half]),
            inverse_frequencies: Array::from_slice(&inverse, &[1, 1, half]),
        }
    }

    /// Prepares the rotation of tokens at the given positions, one per packed row.
    pub(super) fn table(&self, positions: &[i32], dtype: mlx_rs::Dtype) -> Result<RopeTable> {
        let num_tokens = positions.len() as i32;
        if self.device == ComputeDevice::Gpu {
            return Ok(RopeTable::Positions(Array::from_slice(positions, &[num_tokens])));
        }
        let positions: Vec<f32> = positions.iter().map(|&position| position as f32).collect();
        let angles =
            Array::from_slice(&positions, &[num_tokens, 1, 1]).multiply(&self.inverse_frequencies)?;
        let input_scale = Array::from_f32(self.spec.input_scale);
        Ok(RopeTable::CosSin {
            cos: angles.cos()?.multiply(&input_scale)?.as_dtype(dtype)?,
            sin: angles.sin()?.multiply(&input_scale)?.as_dtype(dtype)?,
        })
    }

    /// Rotates packed heads: `(T, H, D)` → `(T, H, D)`.
    pub(super) fn rotate(&self, x: &Array, table: &RopeTable) -> Result<Array> {
        match table {
            RopeTable::Positions(positions) => {
                let rows = self.scale_inputs(x)?.expand_dims(2)?;
                let rotated = mlx_rs::fast::rope_dynamic(
                    &rows,
                    self.spec.dims as i32,
                    self.spec.interleaved,
                    None,
                    1.0,
                    positions,
                    &self.frequencies,
                )?;
                Ok(rotated.squeeze_axes(&[2])?)
            }
            RopeTable::CosSin { cos, sin } => self.rotate_by_table(x, cos, sin),
        }
    }

    /// Multiplies the rotated dimensions by the input scale.
    fn scale_inputs(&self, x: &Array) -> Result<Array> {
        if self.spec.input_scale == 1.0 {
            return Ok(x.clone());
        }
        let head_dim = x.dim(-1) as usize;
        let factors: Vec<f32> =
            (0..head_dim).map(|dim| if dim < self.spec.dims { self.spec.input_scale } else { 1.0 }).collect();
        Ok(x.multiply(Array::from_slice(&factors, &[head_dim as i32]).as_dtype(x.dtype())?)?)
    }

    fn rotate_by_table(&self, x: &Array, cos: &Array, sin: &Array) -> Result<Array> {
        let shape = x.shape();
        let (num_tokens, num_heads, head_dim) = (shape[0], shape[1], shape[2]);
        let half = self.spec.dims / 2;
        // The two members of each pair, `(T, H, dims / 2)`.
        let (first, second) = if self.spec.interleaved {
            let pairs = sys::slice_axis(x, 2, 0, self.spec.dims)?.reshape(&[
                num_tokens,
                num_heads,
                half as i32,
                2,
            ])?;
            (
                sys::slice_axis(&pairs, 3, 0, 1)?.squeeze_axes(&[3])?,
                sys::slice_axis(&pairs, 3, 1, 2)?.squeeze_axes(&[3])?,
            )
        } else {
            (sys::slice_axis(x, 2, 0, half)?, sys::slice_axis(x, 2, half, 2 * half)?)
        };
        let turned_first = first.multiply(cos)?.subtract(second.multiply(sin)?)?;
        let turned_second = first.multiply(sin)?.add(second.multiply(cos)?)?;
        let mut parts = if self.spec.interleaved {
            let pairs = ops::stack(&[turned_first, turned_second], 3)?;
            vec![pairs.reshape(&[num_tokens, num_heads, self.spec.dims as i32])?]
        } else {
            vec![turned_first, turned_second]
        };
        if self.spec.dims < head_dim as usize {
            parts.push(sys::slice_axis(x, 2, self.spec.dims, head_dim as usize)?);
        }
        concatenated(parts, 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table and MLX's own fused kernel rotate alike, for both pairings and partial rotation.
    #[test]
    fn the_table_agrees_with_the_fused_kernel() {
        for (dims, interleaved, input_scale) in
            [(8, false, 1.0), (8, true, 1.0), (4, false, 1.25), (4, true, 1.0)]
        {
            let spec = RopeSpec {
                dims,
                interleaved,
                frequencies: (0..dims / 2).map(|pair| 10f32.powi(pair as i32)).collect(),
                input_scale,
                may_rest: false,
                long: None,
            };
            let values: Vec<f32> = (0..3 * 2 * 8).map(|i| (i as f32 * 0.37).sin()).collect();
            let x = Array::from_slice(&values, &[3, 2, 8]);
            let mut rotated = Vec::new();
            for device in [ComputeDevice::Cpu, ComputeDevice::Gpu] {
                let rope = Rope::new(&spec, device);
                let table = rope.table(&[0, 7, 1000], mlx_rs::Dtype::Float32).unwrap();
                let y = rope.rotate(&x, &table).unwrap().contiguous().unwrap();
                y.eval().unwrap();
                rotated.push(y.to_vec_exact::<f32>().unwrap());
            }
            for (ours, fused) in rotated[0].iter().zip(&rotated[1]) {
                assert!((ours - fused).abs() < 2e-4, "{ours} {fused}");
            }
        }
    }
}
