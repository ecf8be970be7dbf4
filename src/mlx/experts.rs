//! The experts of one layer: MLPs of the same shape, of which each row goes through some.
//!
//! Owns how they are stored in files, whose forms become one, and how the rows of a pass are brought to them. Which
//! experts a row goes through, and with which weight each counts, is `moe`'s.

use mlx_rs::{Array, Dtype, ops};

use super::{
    arrays::concatenated,
    device::ComputeDevice,
    error::{MlxError, Result},
    host_matrices::HostMatrices,
    loader::Loader,
    low_rank::LowRank,
    matrices::{Matrices, MatrixShape, Precision},
    mlp::halves,
    ops::Ops,
    packed_products::MIN_BLAS_ROWS,
    sys,
};
use crate::models::{Activation, DenseSpec, ExpertNames, ExpertRows};

/// Pairs of a row and an expert from which on a GPU is given them sorted by expert: fewer are not worth the
/// sorting (mlx-lm's threshold).
const MIN_SORTED_PAIRS: usize = 64;

/// The experts of one layer.
#[derive(Debug)]
pub(super) struct Experts {
    device: ComputeDevice,
    num_experts: usize,
    activation: Activation,
    /// `None` where the activation has none.
    gate: Option<Projections>,
    up: Projections,
    down: Projections,
}

/// The same projection of all experts.
#[derive(Debug)]
struct Projections {
    matrices: Matrices,
    /// What an adapter adds to them.
    update: Option<LowRank>,
    /// `(E, outputs)`.
    biases: Option<Array>,
}

impl Experts {
    /// Loads the experts below `block_path`, in whichever of the family's forms they are stored; they see and make
    /// rows of this width.
    pub(super) fn load(
        loader: &mut Loader<'_>,
        block_path: &str,
        names: &ExpertNames,
        (num_experts, spec): (usize, DenseSpec),
        hidden: usize,
    ) -> Result<Self> {
        let DenseSpec { intermediate_size, activation, bias } = spec;
        let path = |name: &str| format!("{block_path}.{name}");
        let stacked = names.stacked.map(path);
        if let Some(fused) = names.fused {
            let [gate_up, down] = [fused.gate_up, fused.down].map(path);
            // Quantised ones never are transposed.
            let is_fused = loader.weights.has_matrix(&gate_up);
            if is_fused && fused.is_transposed && !loader.weights.contains(&format!("{gate_up}.scales")) {
                loader.weights.transpose(&gate_up)?;
                loader.weights.transpose(&down)?;
            }
            // An adapter may update these where the file has others.
            let [gate, up] = [0, 1].map(|index| stacked[index].clone());
            let parts = match fused.rows {
                ExpertRows::Halves => halves(gate, up, intermediate_size),
                ExpertRows::EveryOther => {
                    let every_other = |first: i32| (first..2 * intermediate_size as i32).step_by(2).collect();
                    [(gate, every_other(0)), (up, every_other(1))]
                }
            };
            loader.weights.cut(&gate_up, 1, &parts)?;
            loader.weights.rename(&down, &stacked[2]);
        }
        if let Some(single) = names.single {
            let are_there = stacked.iter().zip(single.names).skip(usize::from(!activation.has_gate()));
            for (stacked, name) in are_there {
                let one = |index: usize| format!("{block_path}.{}.{index}.{name}", single.list);
                loader.weights.stack(stacked, num_experts, one)?;
            }
        }
        let device = loader.precision.device;
        let mut projections = |index: usize, outputs: usize, inputs: usize| {
            Projections::load(loader, &stacked[index], (num_experts, MatrixShape { outputs, inputs }), bias)
        };
        Ok(Self {
            device,
            num_experts,
            activation,
            gate: if activation.has_gate() { Some(projections(0, intermediate_size, hidden)?) } else { None },
            up: projections(1, intermediate_size, hidden)?,
            down: projections(2, hidden, intermediate_size)?,
        })
    }

    /// What each of k experts makes of each row: `(T, hidden)` and `(T, k)` → `(T, k, hidden)`.
    pub(super) fn forward(&self, rows: &Array, chosen: &Array, ops: &Ops) -> Result<Array> {
        let (num_rows, num_chosen) = (chosen.dim(0), chosen.dim(1));
        let results = match self.device {
            ComputeDevice::Cpu => self.one_after_the_other(rows, chosen, ops)?,
            ComputeDevice::Gpu => self.gathered(rows, chosen, ops)?,
        };
        Ok(results.reshape(&[num_rows, num_chosen, -1])?)
    }

    /// All pairs of a row and an expert in one operation for each projection: `(T·k, hidden)`.
    fn gathered(&self, rows: &Array, chosen: &Array, ops: &Ops) -> Result<Array> {
        let num_chosen = Array::from_slice(&[chosen.dim(1) as u32], &[1]);
        let experts = chosen.reshape(&[-1])?;
        if experts.size() < MIN_SORTED_PAIRS {
            let pairs = ops::arange::<u32, u32>(None, experts.size() as u32, None)?;
            let rows = rows.take_axis(pairs.floor_divide(&num_chosen)?, 0)?;
            return self.pairs(&rows, &experts, false, ops);
        }
        let order = ops::argsort_axis(&experts, 0)?;
        let rows = rows.take_axis(order.floor_divide(&num_chosen)?, 0)?;
        let results = self.pairs(&rows, &experts.take_axis(&order, 0)?, true, ops)?;
        Ok(results.take_axis(ops::argsort_axis(&order, 0)?, 0)?)
    }

    /// `(n, hidden)` → `(n, hidden)`, each row by the expert that is named for it.
    fn pairs(&self, rows: &Array, experts: &Array, is_sorted: bool, ops: &Ops) -> Result<Array> {
        let rows = rows.expand_dims(1)?;
        let project =
            |projections: &Projections, rows: &Array| projections.gathered(rows, experts, is_sorted);
        let gate = self.gate.as_ref().map(|gate| project(gate, &rows)).transpose()?;
        let gated = ops.activated(self.activation, gate, project(&self.up, &rows)?)?;
        Ok(project(&self.down, &gated)?.squeeze_axes(&[1])?)
    }

    /// Expert by expert, each with all of its rows: `(T·k, hidden)`. On the CPU a matrix product of many rows is
    /// far faster than as many of one, and there is no latency that reading the choice could cost.
    fn one_after_the_other(&self, rows: &Array, chosen: &Array, ops: &Ops) -> Result<Array> {
        let num_chosen = chosen.dim(1) as usize;
        let chosen = chosen.contiguous()?;
        mlx_rs::transforms::eval([&chosen, rows])?;
        let chosen = chosen
            .to_vec_exact::<u32>()
            .map_err(|error| MlxError::Unsupported(format!("the chosen experts cannot be read: {error}")))?;
        let mut pairs_of = vec![Vec::new(); self.num_experts];
        for (pair, &expert) in chosen.iter().enumerate() {
            pairs_of[expert as usize].push(pair);
        }
        // The pairs by expert: the row of each, and where it is among them.
        let mut row_of = Vec::with_capacity(chosen.len());
        let mut place_of_pair = vec![0_u32; chosen.len()];
        let mut groups = Vec::new();
        for (expert, pairs) in pairs_of.iter().enumerate().filter(|(_, pairs)| !pairs.is_empty()) {
            for &pair in pairs {
                place_of_pair[pair] = row_of.len() as u32;
                row_of.push((pair / num_chosen) as u32);
            }
            groups.push((expert, pairs.len()));
        }
        let gathered = rows.take_axis(Array::from_slice(&row_of, &[row_of.len() as i32]), 0)?;
        let is_few = row_of.len() < MIN_BLAS_ROWS * groups.len();
        let on_host = if is_few { self.on_host(&gathered, &groups, ops)? } else { None };
        let results = match on_host {
            Some(results) => results,
            None => self.by_expert(&gathered, &groups, ops)?,
        };
        let places = Array::from_slice(&place_of_pair, &[place_of_pair.len() as i32]);
        Ok(results.take_axis(places, 0)?)
    }

    /// Rows of several experts, one after the other, each expert's matrices made numbers for it.
    fn by_expert(&self, rows: &Array, groups: &[(usize, usize)], ops: &Ops) -> Result<Array> {
        let mut results = Vec::with_capacity(groups.len());
        let mut first = 0;
        for &(expert, num_rows) in groups {
            let rows = sys::slice_axis(rows, 0, first, first + num_rows)?;
            first += num_rows;
            let gate = self.gate.as_ref().map(|gate| gate.of(expert, &rows)).transpose()?;
            let gated = ops.activated(self.activation, gate, self.up.of(expert, &rows)?)?;
            let result = self.down.of(expert, &gated)?;
            // Before the next expert's numbers are made.
            result.eval()?;
            results.push(result);
        }
        concatenated(results, 0)
    }

    /// The same by products with the matrices in the form that they are stored in; `None` where that cannot be.
    fn on_host(&self, rows: &Array, groups: &[(usize, usize)], ops: &Ops) -> Result<Option<Array>> {
        // What rows go through first: gates, where there are any, and what they gate.
        let inner: Vec<&Projections> = self.gate.iter().chain([&self.up]).collect();
        let stacks =
            inner.iter().map(|stack| stack.matrices.on_host()).collect::<Result<Option<Vec<_>>>>()?;
        let (Some(stacks), Some(down)) = (stacks, self.down.matrices.on_host()?) else { return Ok(None) };
        if rows.dtype() != Dtype::Float32 {
            return Ok(None);
        }
        let results = HostMatrices::multiply_groups(&stacks, rows, groups)?;
        let mut results = results.into_iter().zip(inner).map(|(y, from)| from.completed(rows, y, groups));
        let mut next = || results.next().transpose();
        let gate = if self.gate.is_some() { next()? } else { None };
        let up = next()?.expect("one for each stack");
        let gated = ops.activated(self.activation, gate, up)?;
        let results = HostMatrices::multiply_groups(&[down], &gated, groups)?;
        results.into_iter().next().map(|y| self.down.completed(&gated, y, groups)).transpose()
    }
}

impl Projections {
    fn load(
        loader: &mut Loader<'_>,
        path: &str,
        (num_experts, shape): (usize, MatrixShape),
        has_biases: bool,
    ) -> Result<Self> {
        let sizes = (Some(num_experts), shape);
        // There are too many of them to be widened.
        let precision = Precision { widen_quantized: false, ..loader.precision };
        let settings = (loader.spec.quantization.as_ref(), precision);
        let matrices = Matrices::load(loader.weights, path, sizes, settings)?;
        let (matrices, update) = matrices.updated(loader.weights, path, sizes)?;
        let biases = if has_biases {
            let biases = loader.weights.take(&format!("{path}.bias"), &[num_experts, shape.outputs])?;
            let biases = biases.as_dtype(precision.dtype.mlx())?;
            biases.eval()?;
            Some(biases)
        } else {
            None
        };
        Ok(Self { matrices, update, biases })
    }

    /// `(n, 1, inputs)` → `(n, 1, outputs)`, each by the expert that is named for it.
    fn gathered(&self, rows: &Array, experts: &Array, is_sorted: bool) -> Result<Array> {
        let y = self.matrices.multiply_gathered(rows, experts, is_sorted)?;
        let y = match &self.update {
            Some(update) => update.added_gathered(rows, y, experts, is_sorted)?,
            None => y,
        };
        Ok(match &self.biases {
            Some(biases) => y.add(biases.take_axis(experts, 0)?.expand_dims(1)?)?,
            None => y,
        })
    }

    /// What matrices made of rows `x` of several experts, one after the other, with the update and the biases of each.
    fn completed(&self, x: &Array, mut y: Array, groups: &[(usize, usize)]) -> Result<Array> {
        if let Some(update) = &self.update {
            let mut first = 0;
            let of_group = |&(expert, num_rows): &(usize, usize)| {
                let rows = first..first + num_rows;
                first += num_rows;
                let [x, y] = [x, &y].map(|array| sys::slice_axis(array, 0, rows.start, rows.end));
                update.of_matrix(expert)?.added(&x?, y?)
            };
            y = concatenated(groups.iter().map(of_group).collect::<Result<_>>()?, 0)?;
        }
        let Some(biases) = &self.biases else { return Ok(y) };
        let experts =
            groups.iter().flat_map(|&(expert, num_rows)| std::iter::repeat_n(expert as u32, num_rows));
        let experts: Vec<u32> = experts.collect();
        Ok(y.add(biases.take_axis(Array::from_slice(&experts, &[experts.len() as i32]), 0)?)?)
    }

    /// `(n, inputs)` → `(n, outputs)` by one expert, on the CPU.
    fn of(&self, expert: usize, rows: &Array) -> Result<Array> {
        let y = self.matrices.multiply_by(expert, rows)?;
        let y = match &self.update {
            Some(update) => update.of_matrix(expert)?.added(rows, y)?,
            None => y,
        };
        Ok(match &self.biases {
            Some(biases) => y.add(sys::slice_axis(biases, 0, expert, expert + 1)?.squeeze_axes(&[0])?)?,
            None => y,
        })
    }
}
