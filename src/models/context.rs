//! Which contexts a model serves, where there is a choice.
//!
//! Owns LongRoPE's, and what a description is after it. Reading the factors is `config`'s.

use super::spec::{MixerSpec, ModelSpec};

/// LongRoPE has two sets of factors, each of which gives other keys to the same tokens (arXiv 2402.13753). Which are
/// taken is chosen once for a run, so that what is kept of one request serves all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContextChoice {
    /// There is none.
    One,
    /// Contexts are as long as the model was first made for; the other factors are for up to so many positions.
    Short { max_long_context: usize },
    /// The other factors are taken, whatever the length.
    Long,
}

impl ContextChoice {
    /// The longest context of the other choice.
    pub fn max_long_context(self) -> Option<usize> {
        match self {
            Self::Short { max_long_context } => Some(max_long_context),
            Self::One | Self::Long => None,
        }
    }
}

impl ModelSpec {
    /// The same with the factors for long contexts; `None` where there are none.
    pub fn for_long_contexts(mut self) -> Option<Self> {
        let ContextChoice::Short { max_long_context } = self.context else { return None };
        (self.max_context, self.context) = (max_long_context, ContextChoice::Long);
        for layer in &mut self.layers {
            let attention = match &mut layer.mixer {
                Some(MixerSpec::Attention(attention) | MixerSpec::SideBySide(attention, _)) => attention,
                Some(MixerSpec::Latent(latent)) => &mut latent.attention,
                Some(MixerSpec::Recurrent(_)) | None => continue,
            };
            if let Some(rope) = &mut attention.rope
                && let Some(long) = rope.long.take()
            {
                *rope = *long;
            }
        }
        Some(self)
    }
}
