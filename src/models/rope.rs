//! Rotary position embedding: how a configuration turns into per-pair frequencies.
//!
//! Owns the scaling rules (linear, llama3, yarn) as the reference implementation mlx-lm 0.32
//! (`rope_utils.py`) computes them. Applying them to tensors is `mlx/`'s business.

use std::f64::consts::PI;

/// Rotary positions of one layer.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeSpec {
    /// Dimensions rotated, at the front of each head.
    pub dims: usize,
    /// Whether neighbouring dimensions form pairs, rather than the two halves.
    pub interleaved: bool,
    /// Wavelength over 2π of each pair, `dims / 2` of them: the angle is `position / frequency`.
    pub frequencies: Vec<f32>,
    /// Factor on queries and keys before rotation (yarn's mscale).
    pub input_scale: f32,
    /// Whether pairs may have an infinite wavelength, and are not rotated.
    pub may_rest: bool,
    /// What takes its place where all contexts may be longer than the model was first made for, if that is another.
    pub long: Option<Box<RopeSpec>>,
}

/// A `rope_scaling` entry.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    None,
    Linear {
        factor: f64,
    },
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_context: f64,
    },
    /// Of the pairs of a whole head only the first are rotated (Gemma 4).
    Proportional {
        /// Dimensions that are.
        rotated_dims: usize,
    },
    /// A factor of its own for each pair (LongRoPE, arXiv 2402.13753).
    PerPair {
        short: PairFactors,
        /// For contexts longer than the model was first made for.
        long: PairFactors,
    },
    Yarn {
        factor: f64,
        original_context: f64,
        beta_fast: f64,
        beta_slow: f64,
        /// Whether the bounds between kept and stretched pairs are whole numbers.
        truncates: bool,
        /// Factor on queries and keys.
        attention_factor: f64,
    },
}

/// Factors of rotated pairs.
#[derive(Debug, Clone, PartialEq)]
pub struct PairFactors {
    /// On the wave of each.
    pub factors: Vec<f64>,
    /// On queries and keys.
    pub attention_factor: f64,
}

impl RopeScaling {
    /// Yarn's factor for contexts stretched by `factor`, its logarithm weighed by `mscale`.
    pub fn yarn_mscale(factor: f64, mscale: f64) -> f64 {
        if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
    }

    /// Yarn's factor on queries and keys where a configuration does not state it; `mscale` counts only
    /// beside an `mscale_all_dim`, as in transformers.
    pub fn yarn_attention_factor(factor: f64, mscale: Option<f64>, mscale_all_dim: Option<f64>) -> f64 {
        let of = |mscale: f64| Self::yarn_mscale(factor, mscale);
        match (mscale.filter(|mscale| *mscale != 0.0), mscale_all_dim.filter(|mscale| *mscale != 0.0)) {
            (Some(mscale), Some(all_dim)) => of(mscale) / of(all_dim),
            _ => of(1.0),
        }
    }
}

impl RopeSpec {
    /// Computes the frequencies of `dims` rotated dimensions with base `theta`.
    pub fn new(dims: usize, theta: f64, interleaved: bool, scaling: &RopeScaling) -> Self {
        let plain = (0..dims / 2).map(|pair| theta.powf(2.0 * pair as f64 / dims as f64));
        let mut input_scale = 1.0;
        let frequencies: Vec<f64> = match scaling {
            RopeScaling::None => plain.collect(),
            RopeScaling::Proportional { rotated_dims } => plain
                .enumerate()
                .map(|(pair, frequency)| if 2 * pair < *rotated_dims { frequency } else { f64::INFINITY })
                .collect(),
            RopeScaling::PerPair { short, .. } => {
                input_scale = short.attention_factor;
                plain.zip(&short.factors).map(|(frequency, factor)| frequency * factor).collect()
            }
            &RopeScaling::Linear { factor } => plain.map(|frequency| frequency * factor).collect(),
            &RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => plain
                .map(|frequency| {
                    let wavelength = 2.0 * PI * frequency;
                    if wavelength > original_context / low_freq_factor {
                        frequency * factor
                    } else if wavelength > original_context / high_freq_factor {
                        let smooth = (original_context / wavelength - low_freq_factor)
                            / (high_freq_factor - low_freq_factor);
                        frequency / ((1.0 - smooth) / factor + smooth)
                    } else {
                        frequency
                    }
                })
                .collect(),
            &RopeScaling::Yarn {
                factor,
                original_context,
                beta_fast,
                beta_slow,
                truncates,
                attention_factor,
            } => {
                input_scale = attention_factor;
                // The pair index at which a wave makes this many turns over the original context.
                let correction = |turns: f64| {
                    dims as f64 * (original_context / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln())
                };
                let (mut low, mut high) = (correction(beta_fast), correction(beta_slow));
                if truncates {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(dims as f64 - 1.0));
                if low == high {
                    high += 0.001;
                }
                plain
                    .enumerate()
                    .map(|(pair, extrapolated)| {
                        let interpolated = factor * extrapolated;
                        let keep = 1.0 - ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
                        interpolated * extrapolated / (interpolated * keep + extrapolated * (1.0 - keep))
                    })
                    .collect()
            }
        };
        let long = match scaling {
            RopeScaling::PerPair { short, long } if short != long => {
                let scaling = RopeScaling::PerPair { short: long.clone(), long: long.clone() };
                Some(Box::new(Self::new(dims, theta, interleaved, &scaling)))
            }
            _ => None,
        };
        Self {
            long,
            dims,
            interleaved,
            frequencies: frequencies.into_iter().map(|frequency| frequency as f32).collect(),
            input_scale: input_scale as f32,
            may_rest: matches!(scaling, RopeScaling::Proportional { .. }),
        }
    }

    /// Whether all numbers are such that an angle can be computed with them.
    pub(super) fn is_usable(&self) -> bool {
        let is_positive = |number: f32| number > 0.0 && number.is_finite();
        // A pair that is not rotated has an infinite one.
        let is_usable = |&number: &f32| is_positive(number) || (self.may_rest && number == f32::INFINITY);
        is_positive(self.input_scale)
            && self.frequencies.iter().all(is_usable)
            && self.long.as_ref().is_none_or(|long| long.is_usable())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_frequencies_are_powers_of_theta() {
        let rope = RopeSpec::new(8, 10_000.0, false, &RopeScaling::None);
        assert_eq!(rope.frequencies, [1.0, 10.0, 100.0, 1000.0]);
        assert_eq!(rope.input_scale, 1.0);
    }

    #[test]
    fn llama3_keeps_short_waves_and_stretches_long_ones() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 256.0,
        };
        let rope = RopeSpec::new(8, 10_000.0, false, &scaling);
        assert_eq!(rope.frequencies[0], 1.0);
        assert_eq!(rope.frequencies[3], 8000.0);
    }

    #[test]
    fn yarns_factor_on_queries_needs_both_settings() {
        let default = 0.1 * 4.0f64.ln() + 1.0;
        assert_eq!(RopeScaling::yarn_attention_factor(4.0, None, None), default);
        assert_eq!(RopeScaling::yarn_attention_factor(4.0, Some(0.5), None), default);
        assert_eq!(RopeScaling::yarn_attention_factor(4.0, Some(1.0), Some(1.0)), 1.0);
    }

    #[test]
    fn yarn_with_factor_one_changes_nothing() {
        let scaling = RopeScaling::Yarn {
            factor: 1.0,
            original_context: 4096.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncates: true,
            attention_factor: RopeScaling::yarn_attention_factor(1.0, None, None),
        };
        let plain = RopeSpec::new(16, 10_000.0, false, &RopeScaling::None);
        let yarn = RopeSpec::new(16, 10_000.0, false, &scaling);
        for (a, b) in plain.frequencies.iter().zip(&yarn.frequencies) {
            assert!((a - b).abs() <= a * 1e-6, "{a} {b}");
        }
    }
}
