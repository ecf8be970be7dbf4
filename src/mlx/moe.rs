//! Mixtures of experts: which experts a row goes through, and the sum of what comes of it.
//!
//! Owns the router and the shared expert. How rows come to experts is `experts`' business.

use mlx_rs::{Array, Dtype, ops, ops::indexing};

use super::{
    error::{MlxError, Result},
    experts::Experts,
    linear::Linear,
    loader::Loader,
    mlp::Mlp,
    norm::{Norm, normed_by},
    ops::Ops,
    sys,
};
use crate::models::{ExpertGroups, GroupScore, MoeNames, MoeSpec, RouterScore};

/// A mixture of experts.
#[derive(Debug)]
pub(super) struct Moe {
    spec: MoeSpec,
    /// What the router sees is normed by it.
    router_norm: Option<Norm>,
    router: Linear,
    /// `(E,)`, float32, added to the scores for the choice alone.
    selection_bias: Option<Array>,
    /// `(E,)`, float32, on the weights of the chosen.
    per_expert_scale: Option<Array>,
    /// To the width of what experts see, and back.
    latent: Option<(Linear, Linear)>,
    experts: Experts,
    shared: Option<Mlp>,
    shared_gate: Option<Linear>,
}

impl Moe {
    /// Loads the weights below `block_path`.
    pub(super) fn load(
        loader: &mut Loader<'_>,
        block_path: &str,
        names: &MoeNames,
        spec: &MoeSpec,
    ) -> Result<Self> {
        let hidden = loader.spec.hidden_size;
        let path = |name: &str| format!("{block_path}.{name}");
        let vector = |loader: &mut Loader<'_>, name: &str| -> Result<Array> {
            // Some files have it as a matrix of one row.
            let stored = loader.weights.take_any_shape(&path(name))?;
            if stored.size() != spec.num_experts {
                return Err(MlxError::Weights(format!(
                    "'{}' has shape {:?}, expected [{}]",
                    path(name),
                    stored.shape(),
                    spec.num_experts
                )));
            }
            let vector = stored.flatten(None, None)?.as_dtype(Dtype::Float32)?;
            vector.eval()?;
            Ok(vector)
        };
        let routing = &spec.routing;
        let selection_bias =
            routing.selection_bias.then(|| vector(loader, names.selection_bias)).transpose()?;
        let per_expert_scale =
            routing.per_expert_scale.then(|| vector(loader, names.per_expert_scale)).transpose()?;
        let router_norm = match routing.own_norm {
            true => {
                let scale = (hidden as f32).sqrt().recip();
                let factors =
                    loader.vector(&path(names.router_norm), hidden)?.multiply(Array::from_f32(scale))?;
                let factors = factors.as_dtype(loader.precision.dtype.mlx())?;
                factors.eval()?;
                let plain = Norm::weightless(loader.spec.norm.eps, loader.precision.device);
                Some(Norm { weight: Some(factors), ..plain })
            }
            false => None,
        };
        let (shared, shared_gate) = match &spec.shared {
            None => (None, None),
            Some(shared) => {
                let mlp = Mlp::load(loader, block_path, names.shared, shared.mlp)?;
                let gate = shared.gated.then(|| loader.linear(&path(names.shared_gate), 1, hidden, false));
                (Some(mlp), gate.transpose()?)
            }
        };
        let latent = match spec.latent_size {
            None => None,
            Some(width) => {
                let [down, up] = names.latent.map(path);
                let bias = spec.expert.bias;
                Some((loader.linear(&down, width, hidden, bias)?, loader.linear(&up, hidden, width, bias)?))
            }
        };
        let expert_width = spec.latent_size.unwrap_or(hidden);
        Ok(Self {
            router_norm,
            latent,
            router: loader.linear(&path(names.router), spec.num_experts, hidden, routing.router_bias)?,
            selection_bias,
            per_expert_scale,
            experts: Experts::load(
                loader,
                block_path,
                &names.experts,
                (spec.num_experts, spec.expert),
                expert_width,
            )?,
            shared,
            shared_gate,
            spec: *spec,
        })
    }

    /// `(T, hidden)` → `(T, hidden)`.
    pub(super) fn forward(&self, rows: &Array, ops: &Ops) -> Result<Array> {
        self.forward_routed(rows, rows, ops)
    }

    /// The same where the router sees other rows than the experts, `(T, hidden)` each.
    pub(super) fn forward_routed(&self, rows: &Array, router_rows: &Array, ops: &Ops) -> Result<Array> {
        let (chosen, weights) = self.route(router_rows)?;
        let seen = match &self.latent {
            Some((down, _)) => down.forward(rows)?,
            None => rows.clone(),
        };
        let results = self.experts.forward(&seen, &chosen, ops)?;
        let mixed = results.multiply(weights.expand_dims(-1)?)?.sum_axis(1, false)?.as_dtype(rows.dtype())?;
        let mixed = match &self.latent {
            Some((_, up)) => up.forward(&mixed)?,
            None => mixed,
        };
        let Some(shared) = &self.shared else { return Ok(mixed) };
        let mut beside = shared.forward(rows, ops)?;
        if let Some(gate) = &self.shared_gate {
            beside = beside.multiply(ops.sigmoid(&gate.forward(rows)?)?)?;
        }
        Ok(mixed.add(beside)?)
    }

    /// The experts of each row and the weight with which each counts, `(T, k)` each, uint32 and float32.
    fn route(&self, rows: &Array) -> Result<(Array, Array)> {
        let routing = &self.spec.routing;
        let rows = normed_by(self.router_norm.as_ref(), rows.clone())?;
        let logits = self.router.forward(&rows)?.as_dtype(Dtype::Float32)?;
        let scores = match routing.score {
            RouterScore::Softmax => ops::softmax_axis(&logits, -1, true)?,
            RouterScore::Sigmoid => ops::sigmoid(&logits)?,
        };
        let mut ranks = match &self.selection_bias {
            Some(bias) => scores.add(bias)?,
            None => scores.clone(),
        };
        if let Some(groups) = routing.groups {
            ranks = self.in_best_groups(&ranks, groups)?;
        }
        let num_chosen = self.spec.num_per_token as i32;
        let order = ops::argpartition_axis(ranks.negative()?, num_chosen - 1, -1)?;
        let chosen = sys::slice_axis(&order, 1, 0, self.spec.num_per_token)?;
        let mut weights = indexing::take_along_axis(&scores, &chosen, -1)?;
        if let Some(eps) = routing.normalised {
            weights = weights.divide(weights.sum_axis(-1, true)?.add(Array::from_f32(eps))?)?;
        }
        if routing.scale != 1.0 {
            weights = weights.multiply(Array::from_f32(routing.scale))?;
        }
        if let Some(scale) = &self.per_expert_scale {
            weights = weights.multiply(scale.take_axis(&chosen, 0)?)?;
        }
        Ok((chosen, weights))
    }

    /// `(T, E)` with minus infinity for the experts of all but the best groups.
    fn in_best_groups(&self, ranks: &Array, groups: ExpertGroups) -> Result<Array> {
        let ExpertGroups { num_groups, num_kept, score } = groups;
        let (num_rows, num_experts) = (ranks.dim(0), ranks.dim(1));
        let by_group = ranks.reshape(&[num_rows, num_groups as i32, -1])?;
        let of_groups = match score {
            GroupScore::Best => by_group.max_axis(-1, false)?,
            GroupScore::TwoBest => ops::indexing::topk_axis(&by_group, 2, -1)?.sum_axis(-1, false)?,
        };
        let order = ops::argsort_axis(&of_groups, -1)?;
        let dropped = sys::slice_axis(&order, 1, 0, num_groups - num_kept)?;
        let nothing = Array::from_f32(f32::NEG_INFINITY);
        let dropped = dropped.expand_dims(-1)?;
        let dropped = ops::broadcast_to(&dropped, &[num_rows, dropped.dim(1), by_group.dim(2)])?;
        Ok(by_group.put_along_axis(&dropped, &nothing, 1)?.reshape(&[num_rows, num_experts])?)
    }
}
