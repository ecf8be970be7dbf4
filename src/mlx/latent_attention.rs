//! Multi-head latent attention: what comes before and after attention to latents.
//!
//! Owns its projections, in the forms in which files have them, and that all heads attend to the latents themselves:
//! each head's queries are brought into their space, what it attends to out of it, so that one array is kept of which
//! keys and values are views (DeepSeek-V2, arXiv 2405.04434, section 2.1.2). Attention proper is `attention`'s.

use std::rc::Rc;

use mlx_rs::{Array, Dtype};

use super::{
    arrays::concatenated,
    attention::{Attention, KvSight},
    block_pass::BlockPass,
    error::Result,
    linear::Linear,
    loader::Loader,
    low_rank::StoredUpdate,
    matrices::{Matrices, MatrixShape},
    norm::Norm,
    planes::Planes,
    quantized::Quantized,
    self_attention::{Appended, AttentionPlace},
    sys,
};
use crate::models::{LatentNames, LatentSpec};

/// Latent attention of one layer.
#[derive(Debug)]
pub(super) struct LatentAttention {
    spec: LatentSpec,
    place: AttentionPlace,
    query: Query,
    /// Makes latents and what of keys is rotated, one after the other.
    latent: Linear,
    latent_norm: Norm,
    /// From each head's queries to the latents' space, `(H, rank, plain)`.
    embed_query: Matrices,
    /// Out of it to each head's values, `(H, value, rank)`.
    unembed_output: Matrices,
    output: Linear,
}

/// What makes queries.
#[derive(Debug)]
enum Query {
    Direct(Linear),
    LowRank { down: Linear, norm: Norm, up: Linear },
}

impl LatentAttention {
    /// Loads the weights below `block_path`.
    pub(super) fn load(
        loader: &mut Loader<'_>,
        block_path: &str,
        spec: &LatentSpec,
        place: AttentionPlace,
    ) -> Result<Self> {
        let hidden = loader.spec.hidden_size;
        let names = loader.spec.names.block.latent;
        let path = |name: &str| format!("{block_path}.{name}");
        let attention = &spec.attention;
        let query_width = attention.num_heads * (spec.plain_dim + spec.rotated_dim());
        let norm = |loader: &mut Loader<'_>, name: &str, width: usize| -> Result<Norm> {
            Ok(Norm { eps: spec.norm_eps, ..loader.plain_norm(&path(name), width)? })
        };
        let query = match spec.query_rank {
            None => Query::Direct(loader.linear(&path(names.query), query_width, hidden, false)?),
            Some(rank) => Query::LowRank {
                down: loader.linear(&path(names.query_down), rank, hidden, attention.qkv_bias)?,
                norm: norm(loader, names.query_norm, rank)?,
                up: loader.linear(&path(names.query_up), query_width, rank, false)?,
            },
        };
        let (embed_query, unembed_output) = head_matrices(loader, block_path, &names, spec)?;
        let attended_width = attention.num_heads * spec.value_dim;
        Ok(Self {
            query,
            latent: loader.linear(&path(names.latent), attention.head_dim, hidden, attention.qkv_bias)?,
            latent_norm: norm(loader, names.latent_norm, spec.rank())?,
            embed_query,
            unembed_output,
            output: loader.linear(&path(names.output), hidden, attended_width, attention.output_bias)?,
            spec: spec.clone(),
            place,
        })
    }

    /// Appends the latents of all rows of a pass, normed and in its row blocks, `(n, hidden)` each.
    pub(super) fn append(&self, normed: &[Array], pass: &mut BlockPass<'_>) -> Result<Appended> {
        let (rank, width) = (self.spec.rank(), self.spec.attention.head_dim);
        let mut parts = Vec::with_capacity(normed.len());
        for (index, normed) in normed.iter().enumerate() {
            // One head.
            let made = self.latent.forward(normed)?.expand_dims(1)?;
            let latents = self.latent_norm.forward(&sys::slice_axis(&made, 2, 0, rank)?)?;
            let rotated = sys::slice_axis(&made, 2, rank, width)?;
            let rotated = pass.rotate(self.place.rope, index, (&rotated, 1))?;
            let keys = concatenated(vec![latents, rotated], 2)?;
            pass.settle(&[normed, &keys])?;
            parts.push(Planes::within_keys(keys, rank));
        }
        let sight = KvSight::of(&self.spec.attention, false);
        let kv = Rc::new(pass.live.append(self.place.kv_index, sight, &parts, pass.rows)?);
        Ok(Appended { kv, queries: None })
    }

    /// Attends the normed rows of one row block, `(n, hidden)`, to what [`Self::append`] returned.
    pub(super) fn attend(
        &self,
        normed: &Array,
        row_block: usize,
        Appended { kv, .. }: &Appended,
        pass: &BlockPass<'_>,
    ) -> Result<Array> {
        let spec = &self.spec.attention;
        let plain_dim = self.spec.plain_dim;
        let projected = match &self.query {
            Query::Direct(query) => query.forward(normed)?,
            Query::LowRank { down, norm, up } => up.forward(&norm.forward(&down.forward(normed)?)?)?,
        };
        let num_rows = projected.dim(0);
        let both = projected.reshape(&[num_rows, spec.num_heads as i32, -1])?;
        let plain = multiplied_by_head(&sys::slice_axis(&both, 2, 0, plain_dim)?, &self.embed_query)?;
        let rotated = sys::slice_axis(&both, 2, plain_dim, plain_dim + self.spec.rotated_dim())?;
        let rotated = pass.rotate(self.place.rope, row_block, (&rotated, spec.num_heads))?;
        let queries = concatenated(vec![plain, rotated], 2)?;
        let queries = pass.scaled_by_position(spec.position_scale, row_block, queries)?;
        let attention =
            Attention { spec, sinks: None, ops: pass.ops, device: pass.device, masks: &pass.rows.masks };
        let attended = attention.rows(&queries, &pass.row_blocks[row_block], kv)?;
        let attended = attended.reshape(&[num_rows, spec.num_heads as i32, -1])?;
        let values = multiplied_by_head(&attended, &self.unembed_output)?;
        self.output.forward(&values.reshape(&[num_rows, -1])?)
    }
}

/// What brings queries to latents and latents to values: as MLX conversions have them, apart, or as publishers have
/// them, rows of one matrix `(H · (plain + value), rank)`.
fn head_matrices(
    loader: &mut Loader<'_>,
    block_path: &str,
    names: &LatentNames,
    spec: &LatentSpec,
) -> Result<(Matrices, Matrices)> {
    let path = |name: &str| format!("{block_path}.{name}");
    let (num_heads, rank) = (spec.attention.num_heads, spec.rank());
    let precision = loader.precision;
    let settings = (loader.spec.quantization.as_ref(), precision);
    let both = path(names.both);
    if !loader.weights.has_matrix(&both) {
        let embed_query = MatrixShape { outputs: rank, inputs: spec.plain_dim };
        let unembed_output = MatrixShape { outputs: spec.value_dim, inputs: rank };
        let mut load = |name: &str, shape: MatrixShape| {
            Matrices::load(loader.weights, &path(name), (Some(num_heads), shape), settings)
        };
        return Ok((load(names.embed_query, embed_query)?, load(names.unembed_output, unembed_output)?));
    }
    let of_head = spec.plain_dim + spec.value_dim;
    let shape = MatrixShape { outputs: num_heads * of_head, inputs: rank };
    let numbers = match Quantized::take(loader.weights, &both, (None, shape), settings)? {
        // Its groups go along the latents, those of queries' matrices would go across.
        Some(matrix) => matrix.numbers(Dtype::Float32)?,
        None => loader.weights.take(&format!("{both}.weight"), &[shape.outputs, shape.inputs])?,
    };
    // Its matrices of heads are numbers, whatever it was.
    let numbers = match StoredUpdate::take(loader.weights, &both, (None, shape))? {
        Some(update) => update.fused_into(numbers)?,
        None => numbers,
    };
    let by_head = numbers.reshape(&[num_heads as i32, of_head as i32, rank as i32])?;
    let embed_query = sys::slice_axis(&by_head, 1, 0, spec.plain_dim)?.swap_axes(1, 2)?.contiguous()?;
    let unembed_output = sys::slice_axis(&by_head, 1, spec.plain_dim, of_head)?.contiguous()?;
    Ok((Matrices::dense(embed_query, precision)?, Matrices::dense(unembed_output, precision)?))
}

/// `(n, H, inputs)` → `(n, H, outputs)`, each head by its own matrix.
fn multiplied_by_head(rows: &Array, matrices: &Matrices) -> Result<Array> {
    Ok(matrices.multiply_each(&rows.swap_axes(0, 1)?)?.swap_axes(0, 1)?)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::mlx::{
        device::{ComputeDevice, ComputeDtype},
        matrices::Precision,
        weights::Weights,
    };

    /// Matrices of both kinds of device, numbers and quantised, few rows and many.
    #[test]
    fn quantised_matrices_of_heads_multiply_alike_on_all_ways() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tiny-glm4_moe_lite-4bit");
        let name = "model.layers.0.self_attn.embed_q";
        let shape = MatrixShape { outputs: 32, inputs: 32 };
        for num_rows in [1, 3, 100] {
            let count = num_rows * 2 * shape.inputs;
            let rows: Vec<f32> = (0..count).map(|at| ((at as f32 + 0.3) * 0.917).sin()).collect();
            let rows = Array::from_slice(&rows, &[num_rows as i32, 2, shape.inputs as i32]);
            let mut results = Vec::new();
            for (device, are_numbers) in [
                (ComputeDevice::Cpu, true),
                (ComputeDevice::Cpu, false),
                (ComputeDevice::Gpu, true),
                (ComputeDevice::Gpu, false),
            ] {
                let arrays = Array::load_safetensors(path.join("model.safetensors")).unwrap();
                let mut weights = Weights::from_arrays(arrays.into_iter().collect::<HashMap<_, _>>());
                let dtype = ComputeDtype::Float32;
                let precision = Precision { dtype, device, widen_quantized: false, fuse_updates: false };
                let sizes = (Some(2), shape);
                let matrices = if are_numbers {
                    let stored = Quantized::take(&mut weights, name, sizes, (None, precision)).unwrap();
                    Matrices::dense(stored.unwrap().numbers(Dtype::Float32).unwrap(), precision).unwrap()
                } else {
                    Matrices::load(&mut weights, name, sizes, (None, precision)).unwrap()
                };
                let products = multiplied_by_head(&rows, &matrices).unwrap().contiguous().unwrap();
                products.eval().unwrap();
                assert_eq!(products.shape(), [num_rows as i32, 2, shape.outputs as i32]);
                assert_eq!(products.dtype(), Dtype::Float32);
                results.push(products.to_vec_exact::<f32>().unwrap());
            }
            for other in &results[1..] {
                for (found, expected) in other.iter().zip(&results[0]) {
                    assert!((found - expected).abs() < 1e-4, "{num_rows}: {found} {expected}");
                }
            }
        }
    }
}
