//! MLPs, gated or not.
//!
//! Owns the projections around the activation, which is `ops`'.

use mlx_rs::Array;

use super::{error::Result, linear::Linear, loader::Loader, ops::Ops};
use crate::models::{Activation, DenseSpec, MlpNames};

/// `down(activation(gate(x)) · up(x))`.
#[derive(Debug)]
pub(super) struct Mlp {
    activation: Activation,
    /// `None` where the activation has none.
    gate: Option<Linear>,
    up: Linear,
    down: Linear,
}

impl Mlp {
    /// Loads the matrices below `block_path`.
    pub(super) fn load(
        loader: &mut Loader<'_>,
        block_path: &str,
        names: MlpNames,
        spec: DenseSpec,
    ) -> Result<Self> {
        let hidden = loader.spec.hidden_size;
        let path = |name: &str| format!("{block_path}.{name}");
        let DenseSpec { intermediate_size, activation, bias } = spec;
        if let Some(fused) = names.gate_up {
            let [gate, up] = [names.gate, names.up].map(path);
            loader.weights.cut(&path(fused), 0, &halves(gate, up, intermediate_size))?;
        }
        Ok(Self {
            activation,
            gate: match activation.has_gate() {
                true => Some(loader.linear(&path(names.gate), intermediate_size, hidden, bias)?),
                false => None,
            },
            up: loader.linear(&path(names.up), intermediate_size, hidden, bias)?,
            down: loader.linear(&path(names.down), hidden, intermediate_size, bias)?,
        })
    }

    /// `(T, hidden)` → `(T, hidden)`.
    pub(super) fn forward(&self, rows: &Array, ops: &Ops) -> Result<Array> {
        let projections: Vec<&Linear> = self.gate.iter().chain([&self.up]).collect();
        let mut projected = Linear::forward_each(&projections, rows)?;
        let up = projected.pop().expect("one for each projection");
        let gate = projected.pop();
        self.down.forward(&ops.activated(self.activation, gate, up)?)
    }
}

/// The rows of two matrices in one that holds the first's, then the second's.
pub(super) fn halves(gate: String, up: String, num_rows: usize) -> [(String, Vec<i32>); 2] {
    let num_rows = num_rows as i32;
    [(gate, (0..num_rows).collect()), (up, (num_rows..2 * num_rows).collect())]
}
