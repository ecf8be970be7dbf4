//! Where the decoder's weights are among a file's names.
//!
//! Owns what names begin with and which are of no use; those of a block's parts are `block_names`'. That all
//! of them are used and none is missing is checked where they are loaded, in `mlx/`.

use std::ops::Range;

use super::block_names::BlockNames;

/// Where the decoder's weights are among a file's names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightNames {
    pub block: BlockNames,
    /// The norm before the head.
    pub final_norm: &'static str,
    /// Blocks after those that are run, which guess several tokens at once, and are not.
    pub extra_layers: Range<usize>,
    /// Names with these in them belong to what is not run.
    pub ignored_parts: &'static [&'static str],
    /// Parts of names that are spelt otherwise in some files of the family, as (found, meant).
    pub renamed_parts: &'static [(&'static str, &'static str)],
}

/// Beginnings that are spelt otherwise in some files, as (found, meant): MLX conversions of models with more
/// around the language model say `language_model.model.…`, their publishers `model.language_model.…`.
const RENAMED_PREFIXES: [(&str, &str); 2] = [("language_model.", ""), ("model.language_model.", "model.")];

/// Names that begin so belong to parts which are not run: what sees and hears, and what guesses several tokens
/// at once.
const IGNORED_PREFIXES: [&str; 12] = [
    "vision_tower.",
    "visual.",
    "vision_model.",
    "audio_tower.",
    "multi_modal_projector.",
    "embed_vision.",
    "embed_audio.",
    "patch_merger.",
    "mm_",
    "mtp.",
    "mtp_",
    "nextn.",
];

impl WeightNames {
    /// The names of a family with these blocks.
    pub fn new(block: BlockNames) -> Self {
        Self { block, final_norm: "model.norm", extra_layers: 0..0, ignored_parts: &[], renamed_parts: &[] }
    }

    /// Whether a name that the decoder did not ask for is known to be of no use.
    pub fn is_ignored(&self, name: &str) -> bool {
        let inner = name.strip_prefix("model.").unwrap_or(name);
        let layer = inner.strip_prefix("layers.").and_then(|rest| rest.split('.').next()?.parse().ok());
        let is_range = [".input_max", ".input_min", ".output_max", ".output_min"].iter();
        name.ends_with("rotary_emb.inv_freq")
            || is_range.clone().any(|range| name.ends_with(range))
            || self.ignored_parts.iter().any(|part| name.contains(part))
            || IGNORED_PREFIXES.iter().any(|prefix| inner.starts_with(prefix))
            || layer.is_some_and(|layer: usize| self.extra_layers.contains(&layer))
    }

    /// The name as the decoder's family spells it.
    pub fn canonical(&self, name: &str) -> String {
        let name = RENAMED_PREFIXES
            .iter()
            .find_map(|(found, meant)| name.strip_prefix(found).map(|rest| format!("{meant}{rest}")))
            .unwrap_or_else(|| name.to_owned());
        self.renamed_parts.iter().fold(name, |name, (found, meant)| name.replace(found, meant))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_replaced_once_and_what_is_not_run_is_left_out() {
        let ignored_parts = &[".self_attn.indexer."];
        let names = WeightNames { extra_layers: 2..3, ignored_parts, ..WeightNames::new(BlockNames::PLAIN) };
        assert_eq!(names.canonical("language_model.model.norm.weight"), "model.norm.weight");
        assert_eq!(names.canonical("model.language_model.norm.weight"), "model.norm.weight");
        assert_eq!(names.canonical("language_model.lm_head.weight"), "lm_head.weight");
        assert_eq!(names.canonical("model.norm.weight"), "model.norm.weight");
        for unused in [
            "vision_tower.x",
            "model.visual.patch.weight",
            "mtp.fc.weight",
            "model.layers.2.x",
            "model.layers.0.self_attn.indexer.wk.weight",
        ] {
            assert!(names.is_ignored(unused), "{unused}");
        }
        for used in [
            "model.layers.1.x",
            "model.layers.3.x",
            "model.norm.weight",
            "lm_head.weight",
            "model.layers.x.y",
        ] {
            assert!(!names.is_ignored(used), "{used}");
        }
    }
}
