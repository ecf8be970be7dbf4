//! Rotary positions in a configuration, in all the forms in which they are written.
//!
//! Owns finding them (`rope_theta` and `rope_scaling` beside the other fields, or `rope_parameters`, flat or
//! one object for each type of layer), which of several forms counts, and what their fields mean and
//! default to. The frequencies that follow are `models::rope`'s.

use serde_json::Value;

use super::{fields::Fields, known::ROPE};
use crate::models::rope::{PairFactors, RopeScaling, RopeSpec};

/// The types of layers that may have rotary positions of their own, as `layer_types` names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LayerType {
    Full,
    Sliding,
}

impl LayerType {
    const ALL: [Self; 2] = [Self::Full, Self::Sliding];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Full => "full_attention",
            Self::Sliding => "sliding_attention",
        }
    }
}

/// What a family's rotary positions are where its configuration is silent.
#[derive(Debug, Clone, Copy)]
pub(super) struct RopeDefaults {
    /// The field beside the others that holds the base.
    pub theta_field: &'static str,
    /// `None`: the configuration has to say.
    pub theta: Option<f64>,
    /// Share of each head that is rotated.
    pub rotated: f64,
    /// A field that says how many dimensions are rotated, in place of the share.
    pub rotated_dims_field: Option<&'static str>,
    /// Whether the fields beside the others scale these layers.
    pub is_scaled: bool,
    /// Whether these layers rotate a quarter of the pairs of whole heads where nothing is said.
    pub is_proportional: bool,
    /// Whether what grows queries with their position is this family's business.
    pub scales_queries: bool,
    /// Whether these layers have the same base as the others, and are never scaled, whatever is said of all.
    pub is_plain: bool,
}

impl RopeDefaults {
    /// All of a head, with this base.
    pub(super) const fn new(theta: Option<f64>) -> Self {
        Self {
            theta_field: "rope_theta",
            theta,
            rotated: 1.0,
            rotated_dims_field: None,
            is_scaled: true,
            is_proportional: false,
            scales_queries: false,
            is_plain: false,
        }
    }
}

impl Fields<'_> {
    /// Rotary positions of layers of one type with heads of `head_dim` dimensions.
    pub(super) fn rope(
        &self,
        layer_type: LayerType,
        head_dim: usize,
        max_context: usize,
        interleaved: bool,
        defaults: RopeDefaults,
    ) -> Result<RopeSpec, String> {
        let beside = self.nested("rope_scaling")?.filter(|_| defaults.is_scaled);
        let parameters = self.rope_parameters(layer_type, defaults.is_scaled)?;
        // transformers took the old object for the whole of the new one, base and all.
        let whole = parameters.as_ref().or(beside.as_ref());
        let theta = self.in_one_of(whole, defaults.theta_field, "rope_theta")?.or(defaults.theta);
        let theta = theta.ok_or_else(|| format!("'{}' is missing", defaults.theta_field))?;
        let stated_share = self.in_one_of(whole, "partial_rotary_factor", "partial_rotary_factor")?;
        let rotated = stated_share.unwrap_or(defaults.rotated);
        let read = |object: &Fields<'_>| scaling(object, max_context, head_dim);
        let scaling = match (&beside, &parameters) {
            (Some(old), Some(new)) => {
                let (old_scaling, new_scaling) = (read(old)?, read(new)?);
                if old_scaling != new_scaling {
                    return Err(format!(
                        "'rope_scaling' and '{}' contradict each other: {} and {}; remove the wrong one",
                        new.place(),
                        Value::Object(old.map().clone()),
                        Value::Object(new.map().clone()),
                    ));
                }
                new_scaling
            }
            (Some(one), None) | (None, Some(one)) => read(one)?,
            (None, None) if defaults.is_proportional => {
                RopeScaling::Proportional { rotated_dims: head_dim / 4 }
            }
            (None, None) => RopeScaling::None,
        };
        for object in [&beside, &parameters].into_iter().flatten() {
            if defaults.scales_queries {
                object.optional_number("llama_4_scaling_beta")?;
            }
            object.account(&[ROPE])?;
        }
        if !(theta > 1.0 && theta.is_finite()) {
            return Err(format!("'{}' must be greater than 1, got {theta}", defaults.theta_field));
        }
        let scaling = if defaults.is_plain { RopeScaling::None } else { scaling };
        let dims = match defaults.rotated_dims_field.filter(|name| self.get(name).is_some()) {
            Some(name) => match self.dimension(name, None)? {
                dims if dims.is_multiple_of(2) && dims <= head_dim => {
                    let says_otherwise = |share| rotated_dims(head_dim, share) != Ok(dims);
                    if let Some(share) = stated_share.filter(|&share| says_otherwise(share)) {
                        return Err(format!(
                            "'{name}' and 'partial_rotary_factor' contradict each other: {dims} and {share} of \
                             {head_dim} dimensions; remove the wrong one"
                        ));
                    }
                    dims
                }
                dims => return Err(format!("'{name}' must be even and at most {head_dim}, got {dims}")),
            },
            // All pairs of a head, most of which rest.
            None if matches!(scaling, RopeScaling::Proportional { .. }) => head_dim,
            None => rotated_dims(head_dim, rotated)?,
        };
        if let RopeScaling::PerPair { short, long } = &scaling {
            for PairFactors { factors, .. } in [short, long] {
                if factors.len() != dims / 2 {
                    return Err(format!(
                        "'rope_scaling' has factors for {} pairs of dimensions, and {} are rotated",
                        factors.len(),
                        dims / 2
                    ));
                }
            }
        }
        let rope = RopeSpec::new(dims, theta, interleaved, &scaling);
        if !rope.is_usable() {
            return Err(format!(
                "'{}' and the settings of 'rope_scaling' give no finite frequencies",
                defaults.theta_field
            ));
        }
        Ok(rope)
    }

    /// `rope_parameters`, or the one of its objects that is for this type of layer. One for all types says
    /// nothing where the types differ (`is_scaled` is false for one of them).
    fn rope_parameters(&self, layer_type: LayerType, is_scaled: bool) -> Result<Option<Fields<'_>>, String> {
        let Some(parameters) = self.nested("rope_parameters")? else { return Ok(None) };
        if parameters.map().is_empty() {
            return Ok(None);
        }
        let name = layer_type.name();
        if !parameters.map().values().any(Value::is_object) {
            return match is_scaled {
                true => Ok(Some(parameters)),
                false => Err(format!(
                    "'rope_parameters' must have an object for each type of layer, full_attention and {name}"
                )),
            };
        }
        let own = parameters.get(name).and_then(Value::as_object);
        let own = own.ok_or_else(|| format!("'rope_parameters' has no object for {name} layers"))?;
        // An object for layers that this model has none of changes nothing.
        for other in LayerType::ALL {
            parameters.get(other.name());
        }
        parameters.account(&[])?;
        Ok(Some(self.inside(&format!("rope_parameters.{name}"), own)))
    }

    /// A number that stands beside the other fields as `outer`, or in `parameters` as `inner`.
    fn in_one_of(
        &self,
        parameters: Option<&Fields<'_>>,
        outer: &str,
        inner: &str,
    ) -> Result<Option<f64>, String> {
        let beside = self.optional_number(outer)?;
        let Some(parameters) = parameters else { return Ok(beside) };
        let nested = parameters.optional_number(inner)?;
        if let (Some(beside), Some(nested)) = (beside, nested)
            && beside != nested
        {
            return Err(format!(
                "'{outer}' and '{}.{inner}' contradict each other: {beside} and {nested}; remove the wrong one",
                parameters.place()
            ));
        }
        Ok(nested.or(beside))
    }
}

/// How many of `head_dim` dimensions are rotated.
fn rotated_dims(head_dim: usize, rotated: f64) -> Result<usize, String> {
    if !(rotated > 0.0 && rotated <= 1.0) {
        return Err(format!("'partial_rotary_factor' must lie between 0 and 1, got {rotated}"));
    }
    let dims = (head_dim as f64 * rotated) as usize;
    if dims == 0 || !dims.is_multiple_of(2) {
        return Err(format!(
            "'partial_rotary_factor' of {rotated} rotates {dims} of {head_dim} dimensions; they must be even in number"
        ));
    }
    Ok(dims)
}

/// What an object of scaling says; defaults are transformers', which are mlx-lm's where that has any.
fn scaling(object: &Fields<'_>, max_context: usize, head_dim: usize) -> Result<RopeScaling, String> {
    let name = object.place();
    let kinds = ["rope_type", "type"].map(|field| object.get(field));
    if let [Some(new), Some(old)] = kinds
        && new != old
    {
        return Err(format!(
            "'{name}.rope_type' and '{name}.type' contradict each other: {new} and {old}; remove the wrong one"
        ));
    }
    let kind = kinds.into_iter().flatten().next().map_or(Ok("default"), |kind| {
        kind.as_str().ok_or_else(|| format!("'{name}' has a type that is not a string"))
    })?;
    let in_scaling = |reason: String| format!("in '{name}': {reason}");
    let positive = |field: &str, default: Option<f64>| {
        let number = object.number(field, default).map_err(in_scaling)?;
        if number > 0.0 && number.is_finite() {
            Ok(number)
        } else {
            Err(in_scaling(format!("'{field}' must be positive, got {number}")))
        }
    };
    let original_context = || positive("original_max_position_embeddings", Some(max_context as f64));
    Ok(match kind {
        "default" | "mrope" => RopeScaling::None,
        "proportional" => {
            let rotated = object.number("partial_rotary_factor", Some(1.0)).map_err(in_scaling)?;
            RopeScaling::Proportional { rotated_dims: rotated_dims(head_dim, rotated).map_err(in_scaling)? }
        }
        "longrope" | "su" => long_rope(object, max_context).map_err(in_scaling)?,
        "linear" => RopeScaling::Linear { factor: positive("factor", None)? },
        "llama3" => RopeScaling::Llama3 {
            factor: positive("factor", None)?,
            low_freq_factor: positive("low_freq_factor", Some(1.0))?,
            high_freq_factor: positive("high_freq_factor", Some(4.0))?,
            original_context: original_context()?,
        },
        "yarn" => {
            let factor = positive("factor", None)?;
            let [mscale, mscale_all_dim] =
                ["mscale", "mscale_all_dim"].map(|field| object.optional_number(field).map_err(in_scaling));
            let attention_factor = RopeScaling::yarn_attention_factor(factor, mscale?, mscale_all_dim?);
            RopeScaling::Yarn {
                factor,
                original_context: original_context()?,
                beta_fast: positive("beta_fast", Some(32.0))?,
                beta_slow: positive("beta_slow", Some(1.0))?,
                truncates: object.own_flag("truncate").map_err(in_scaling)?.unwrap_or(true),
                attention_factor: positive("attention_factor", Some(attention_factor))?,
            }
        }
        other => {
            return Err(format!(
                "'{name}' of type '{other}' is not supported (default, linear, llama3, longrope, proportional and yarn are)"
            ));
        }
    })
}

/// LongRoPE's factors, those for contexts as long as the model was first made for and those for longer ones. They give
/// other keys to the same tokens, so that a run has the ones or the others (`ModelSpec::for_long_contexts`).
fn long_rope(object: &Fields<'_>, max_context: usize) -> Result<RopeScaling, String> {
    let factors = |name: &str| -> Result<Vec<f64>, String> {
        let list = object
            .get(name)
            .and_then(Value::as_array)
            .ok_or_else(|| format!("'{name}' of longrope must be a list"))?;
        let factors = list.iter().map(|factor| factor.as_f64().filter(|factor| *factor > 0.0)).collect();
        Option::ok_or(factors, format!("'{name}' of longrope must be a list of positive numbers"))
    };
    // Read to be known; see `Fields::long_rope_context`.
    object.get("original_max_position_embeddings");
    let original = object.long_rope_context(max_context)?;
    let stretch = object.number("factor", Some(max_context as f64 / original as f64))?;
    let usual = if stretch <= 1.0 { 1.0 } else { (1.0 + stretch.ln() / (original as f64).ln()).sqrt() };
    let [stated, short, long] =
        ["attention_factor", "short_mscale", "long_mscale"].map(|name| object.optional_number(name));
    let (stated, short, long) = (stated?, short?, long?);
    let of = |name: &str, own: Option<f64>| -> Result<PairFactors, String> {
        Ok(PairFactors { factors: factors(name)?, attention_factor: stated.or(own).unwrap_or(usual) })
    };
    Ok(RopeScaling::PerPair { short: of("short_factor", short)?, long: of("long_factor", long)? })
}

impl Fields<'_> {
    /// The longest context that rotary positions are served for: with LongRoPE that which the model was first made for.
    pub(super) fn context_of_rope(&self, max_context: usize) -> Result<usize, String> {
        for name in ["rope_scaling", "rope_parameters"] {
            let Some(object) = self.nested(name)? else { continue };
            let kind = ["rope_type", "type"].into_iter().find_map(|kind| object.get(kind)?.as_str());
            if matches!(kind, Some("longrope" | "su")) {
                return Ok(object.long_rope_context(max_context)?.min(max_context));
            }
        }
        Ok(max_context)
    }

    /// The context that a model with LongRoPE was first made for: in the object of its settings, or beside it.
    pub(super) fn long_rope_context(&self, max_context: usize) -> Result<usize, String> {
        const NAME: &str = "original_max_position_embeddings";
        let around = self.outer().filter(|outer| outer.get(NAME).is_some());
        match (self.get(NAME), around) {
            (None, Some(around)) => around.dimension(NAME, None),
            _ => self.dimension(NAME, Some(max_context as u64)),
        }
    }
}
