//! Updates of experts that are one parameter, as peft has them (`target_parameters`).
//!
//! Owns telling them by their names and shapes. Their layout is undone in `mlx/`.

use super::{CONFIG_FILE, LowRankUpdate, Parts, Settings, UpdateShape, in_layer, tensors::Tensors};
use crate::models::spec::ModelSpec;

/// The update of all experts of a layer that are one parameter of a module, as peft has it: the parts of all side by
/// side, `(rank · E, inputs)` and `(outputs, rank · E)`, the rank's first there and the experts' last. A module with two
/// such is wrapped twice; which is which shapes tell.
pub(super) fn update(
    path: &str,
    parts: &Parts,
    tensors: &Tensors,
    (settings, spec): (&dyn Settings, &ModelSpec),
) -> Result<Option<LowRankUpdate>, String> {
    let mut module = path;
    while let Some(inner) = module.strip_suffix(".base_layer") {
        module = inner;
    }
    let fused = spec.names.block.moe.experts.fused;
    let (Some(fused), Some((layer, inner))) = (fused, in_layer(module)) else { return Ok(None) };
    let moe = spec.layers.get(layer).and_then(|layer| layer.mlp.as_ref()?.moe());
    let holds = |parameter: &str| parameter.rsplit_once('.').is_some_and(|(module, _)| module == inner);
    let (Some(moe), true, None) = (moe, holds(fused.gate_up), &parts.magnitude) else { return Ok(None) };
    let (Some(down), Some(up)) = (&parts.down, &parts.up) else { return Ok(None) };
    let (&[down_rows, inputs], &[outputs, up_columns]) = (tensors[down].as_slice(), tensors[up].as_slice())
    else {
        return Ok(None);
    };
    let (hidden, intermediate) = (moe.latent_size.unwrap_or(spec.hidden_size), moe.expert.intermediate_size);
    let parameters = [(fused.gate_up, hidden, 2 * intermediate), (fused.down, intermediate, hidden)];
    let fits =
        |(_, of_inputs, of_outputs): &(&str, usize, usize)| (*of_inputs, *of_outputs) == (inputs, outputs);
    let (parameter, ..) = parameters.into_iter().find(fits).ok_or_else(|| {
        format!("'{down}' and '{up}' fit neither '{}' nor '{}' of layer {layer}", fused.gate_up, fused.down)
    })?;
    let path = format!("{}{parameter}", module.strip_suffix(inner).unwrap_or_default());
    let Some(update) = settings.update_of_parameter(&path) else { return Ok(None) };
    let (rank, scale) = update?;
    let of_all = rank.saturating_mul(moe.num_experts);
    if (down_rows, up_columns) != (of_all, of_all) {
        return Err(format!(
            "'{down}' and '{up}' have ranks {down_rows} and {up_columns} of {} experts together, and {CONFIG_FILE} says \
             {rank} each",
            moe.num_experts
        ));
    }
    let shape = UpdateShape { num_matrices: Some(moe.num_experts), rank, inputs, outputs };
    Ok(Some(LowRankUpdate { path, down: down.clone(), up: up.clone(), magnitude: None, shape, scale }))
}
