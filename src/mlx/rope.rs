//! Rotary positions applied to packed queries and keys.
//!
//! Owns the rotation. The frequencies come from `models::RopeSpec`. On a GPU MLX's fused kernel
//! rotates; on the CPU that kernel computes every sine anew for each layer and for queries and
//! keys apart, so there one table serves the whole forward pass. The loop over it is `row_loops`'s.

use mlx_rs::{Array, ops};

use super::{
    arrays::concatenated,
    device::ComputeDevice,
    error::Result,
    host::{by_head, is_for_host, made_by_host, shape_by_head},
    row_loops::{Rotation, rotate_heads},
    sys,
};
use crate::models::RopeSpec;

/// Rotation by one set of frequencies.
#[derive(Debug)]
pub(super) struct Rope {
    spec: RopeSpec,
    device: ComputeDevice,
    frequencies: Array,
    inverse_frequencies: Vec<f32>,
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

impl RopeTable {
    pub(super) fn arrays(&self) -> impl Iterator<Item = &Array> {
        let (first, second) = match self {
            Self::CosSin { cos, sin } => (cos, Some(sin)),
            Self::Positions(positions) => (positions, None),
        };
        std::iter::once(first).chain(second)
    }
}

impl Rope {
    pub(super) fn new(spec: &RopeSpec, device: ComputeDevice) -> Self {
        let half = spec.frequencies.len() as i32;
        Self {
            spec: spec.clone(),
            device,
            frequencies: Array::from_slice(&spec.frequencies, &[half]),
            inverse_frequencies: spec.frequencies.iter().map(|frequency| 1.0 / frequency).collect(),
        }
    }

    /// Prepares the rotation of tokens at the given positions, one per packed row.
    pub(super) fn table(&self, positions: &[i32], dtype: mlx_rs::Dtype) -> Result<RopeTable> {
        let num_tokens = positions.len() as i32;
        if self.device == ComputeDevice::Gpu {
            return Ok(RopeTable::Positions(Array::from_slice(positions, &[num_tokens])));
        }
        let angles = |turn: fn(f32) -> f32| -> Result<Array> {
            let of_position = |&position: &i32| {
                let angle = move |inverse: &f32| turn(position as f32 * inverse) * self.spec.input_scale;
                self.inverse_frequencies.iter().map(angle)
            };
            let numbers: Vec<f32> = positions.iter().flat_map(of_position).collect();
            let half = self.inverse_frequencies.len() as i32;
            Ok(Array::from_slice(&numbers, &[num_tokens, 1, half]).as_dtype(dtype)?)
        };
        Ok(RopeTable::CosSin { cos: angles(f32::cos)?, sin: angles(f32::sin)? })
    }

    /// Rotates packed heads: `(T, H·D)` or `(T, H, D)` → `(T, H, D)`.
    pub(super) fn rotate(&self, rows: &Array, num_heads: usize, table: &RopeTable) -> Result<Array> {
        match table {
            RopeTable::CosSin { cos, sin }
                if is_for_host(rows, self.device) && is_for_host(cos, self.device) =>
            {
                self.rotate_by_host(rows, num_heads, cos, sin)
            }
            _ => self.rotate_by_operations(&by_head(rows, num_heads, self.device)?, table),
        }
    }

    /// `(T, H, D)` → `(T, H, D)`.
    fn rotate_by_operations(&self, x: &Array, table: &RopeTable) -> Result<Array> {
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

    fn rotate_by_host(&self, rows: &Array, num_heads: usize, cos: &Array, sin: &Array) -> Result<Array> {
        let shape = shape_by_head(rows, num_heads);
        let rotation = Rotation {
            num_heads,
            head_dim: shape[2] as usize,
            dims: self.spec.dims,
            interleaved: self.spec.interleaved,
        };
        made_by_host([rows, cos, sin], &shape, |[heads, cosines, sines], rotated| {
            rotate_heads(heads, rotation, (cosines, sines), rotated);
        })
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

    /// MLX's own fused kernel, the table by operations and the loop over it rotate alike, for both pairings and
    /// partial rotation, whole heads and parts of wider ones.
    #[test]
    fn all_ways_rotate_alike() {
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
            let values: Vec<f32> = (0..3 * 2 * 12).map(|i| (i as f32 * 0.37).sin()).collect();
            let wide = Array::from_slice(&values, &[3, 2, 12]);
            for x in [sys::slice_axis(&wide, 2, 0, 8).unwrap(), wide] {
                let [cpu, gpu] = ComputeDevice::KINDS.map(|device| {
                    let rope = Rope::new(&spec, device);
                    let table = rope.table(&[0, 7, 1000], mlx_rs::Dtype::Float32).unwrap();
                    (rope, table)
                });
                let numbers = |y: Array| y.contiguous().unwrap().to_vec_exact::<f32>().unwrap();
                let by_host = numbers(cpu.0.rotate(&x, 2, &cpu.1).unwrap());
                assert_eq!(by_host, numbers(cpu.0.rotate_by_operations(&x, &cpu.1).unwrap()));
                for (ours, fused) in by_host.iter().zip(numbers(gpu.0.rotate(&x, 2, &gpu.1).unwrap())) {
                    assert!((ours - fused).abs() < 2e-4, "{ours} {fused}");
                }
            }
        }
    }
}
