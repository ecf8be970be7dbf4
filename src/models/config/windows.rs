//! Which layers of a model have a window, by the fields in which families say so.
//!
//! Owns which of several fields counts, and that they do not contradict each other.

use super::{
    family::Sizes,
    fields::{Fields, MAX_LAYERS},
};

/// How a family says which layers have a window. `layer_types` come before all else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Windows {
    /// None has.
    Never,
    /// By `layer_types` alone.
    ByTypes,
    /// All, where there is a `sliding_window`.
    IfStated,
    /// Qwen's: all from `max_window_layers` on, where `use_sliding_window` says so.
    FromLayer,
    /// All but every so many, which the first of these fields says that is there, or the number.
    AllBut { fields: &'static [&'static str], default: u64 },
}

/// Which layers slide by another field than `layer_types`.
struct Other {
    field: &'static str,
    slides: Vec<bool>,
}

impl Windows {
    /// The window of each layer. `layer_types` decide where they are given; what else says so has to agree.
    pub(super) fn read(self, sizes: &Sizes<'_>, num_layers: usize) -> Result<Vec<Option<usize>>, String> {
        if self == Self::Never {
            return Ok(vec![None; num_layers]);
        }
        let fields = sizes.fields;
        let known = [("full_attention", false), ("sliding_attention", true)];
        let stated = fields.layer_types(num_layers, known)?;
        let other = match self {
            Self::Never | Self::ByTypes => None,
            Self::IfStated => fields
                .get("sliding_window")
                .filter(|_| stated.is_none())
                .map(|_| Other { field: "sliding_window", slides: vec![true; num_layers] }),
            Self::FromLayer => Some(Other::from_layer(fields, num_layers)?),
            Self::AllBut { fields: names, default } => {
                Other::by_pattern(fields, (names, default), num_layers, stated.is_none())?
            }
        };
        let slides = match (stated, other) {
            (Some(stated), Some(other)) if stated != other.slides => {
                return Err(format!(
                    "'layer_types' and '{}' contradict each other about which layers have a window; remove the \
                     wrong one",
                    other.field
                ));
            }
            (Some(slides), _) | (None, Some(Other { slides, .. })) => slides,
            (None, None) => vec![false; num_layers],
        };
        if !slides.contains(&true) {
            return Ok(vec![None; num_layers]);
        }
        let window = sizes.dimension("sliding_window")?;
        Ok(slides.into_iter().map(|slides| slides.then_some(window)).collect())
    }
}

impl Other {
    /// Qwen's: all layers from one on, if any.
    fn from_layer(fields: &Fields, num_layers: usize) -> Result<Self, String> {
        if !fields.flag("use_sliding_window", false)? {
            return Ok(Self { field: "use_sliding_window", slides: vec![false; num_layers] });
        }
        let first = fields.integer("max_window_layers", Some(28), 0, MAX_LAYERS)?;
        Ok(Self { field: "max_window_layers", slides: (0..num_layers).map(|index| index >= first).collect() })
    }

    /// All but every so many. The field may have several spellings; the pattern's default counts only
    /// `by_default`.
    fn by_pattern(
        fields: &Fields,
        (spellings, default): (&[&'static str], u64),
        num_layers: usize,
        by_default: bool,
    ) -> Result<Option<Self>, String> {
        let every = |field, number: usize| Self {
            field,
            slides: (1..=num_layers).map(|layer| !layer.is_multiple_of(number)).collect(),
        };
        let mut found: Vec<Self> = Vec::new();
        for &field in spellings.iter().filter(|field| fields.get(field).is_some()) {
            let pattern = match fields.get(field).and_then(|value| value.as_str()) {
                // EXAONE's letters: L for local, G for global, over and over.
                Some(letters) => {
                    let is_local = |letter: char| match letter {
                        'L' => Some(true),
                        'G' => Some(false),
                        _ => None,
                    };
                    let letters = letters.chars().map(is_local).collect::<Option<Vec<bool>>>();
                    let letters = letters
                        .filter(|letters| !letters.is_empty())
                        .ok_or_else(|| format!("'{field}' must be a number, or letters L and G"))?;
                    Self { field, slides: letters.iter().copied().cycle().take(num_layers).collect() }
                }
                None => every(field, fields.integer(field, None, 1, MAX_LAYERS)?),
            };
            found.push(pattern);
        }
        match found.as_slice() {
            [] if !by_default => return Ok(None),
            [] => return Ok(Some(every("sliding_window", default as usize))),
            [one, others @ ..] => {
                if let Some(other) = others.iter().find(|other| other.slides != one.slides) {
                    return Err(format!(
                        "'{}' and '{}' contradict each other; remove the wrong one",
                        one.field, other.field
                    ));
                }
            }
        }
        Ok(found.into_iter().next())
    }
}
