//! The random numbers of sampling: a pure function of seed, request and position.
//!
//! Owns the counter-based generator. No state is carried from token to token, so a seeded answer
//! depends neither on what else is in the batch nor on the order in which rows are computed. How a
//! number picks a token is the sampler's business.
//!
//! The generator is SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
//! generators", OOPSLA 2014): its n-th output is a fixed mixing function of key + n · gamma, so it
//! can be entered at any counter.

/// The odd integer nearest to 2^64 divided by the golden ratio.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// Output number `counter` of SplitMix64 started at `key`.
fn split_mix(key: u64, counter: u64) -> u64 {
    let mut z = key.wrapping_add(GAMMA.wrapping_mul(counter.wrapping_add(1)));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Derives the key of one request's random numbers from the run's seed.
///
/// `request_key` tells the request from others by what it is (its number or a digest of its id),
/// not by when it runs. The key is mixed once more, so that the keys of neighbouring requests do
/// not enter one and the same sequence a step apart.
pub fn sampling_key(seed: u64, request_key: u64) -> u64 {
    split_mix(split_mix(split_mix(seed, 0), request_key), 0)
}

/// Returns the random number in [0, 1) of the token at `position`.
pub fn uniform(key: u64, position: u64) -> f32 {
    // The upper 24 bits are as many as f32 holds exactly; rounding up to 1 cannot happen.
    const SCALE: f32 = 1.0 / (1 << 24) as f32;
    (split_mix(key, position) >> 40) as f32 * SCALE
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn agrees_with_published_outputs_of_split_mix() {
        let outputs: Vec<u64> = (0..5).map(|counter| split_mix(1_234_567, counter)).collect();
        assert_eq!(
            outputs,
            [
                6_457_827_717_110_365_317,
                3_203_168_211_198_807_973,
                9_817_491_932_198_370_423,
                4_593_380_528_125_082_431,
                16_408_922_859_458_223_821
            ]
        );
    }

    /// Mean, variance and chi-squared over 64 buckets of 65,536 numbers, five standard deviations wide.
    fn assert_uniform(numbers: impl Iterator<Item = f32>) {
        let numbers: Vec<f64> = numbers.map(f64::from).collect();
        let count = numbers.len() as f64;
        let mut buckets = [0f64; 64];
        for &number in &numbers {
            assert!((0.0..1.0).contains(&number), "{number}");
            buckets[(number * 64.0) as usize] += 1.0;
        }
        let mean = numbers.iter().sum::<f64>() / count;
        assert!((mean - 0.5).abs() < 5.0 * (1.0 / (12.0 * count)).sqrt(), "mean {mean}");
        let expected = count / 64.0;
        let chi_squared: f64 = buckets.iter().map(|n| (n - expected).powi(2) / expected).sum();
        assert!((chi_squared - 63.0).abs() < 5.0 * (2.0f64 * 63.0).sqrt(), "chi squared {chi_squared}");
        // Neighbours are not correlated.
        let products = numbers.windows(2).map(|pair| (pair[0] - 0.5) * (pair[1] - 0.5));
        let correlation = 12.0 * products.sum::<f64>() / count;
        assert!(correlation.abs() < 5.0 / count.sqrt(), "correlation {correlation}");
    }

    #[test]
    fn numbers_are_uniform_along_positions_requests_and_seeds() {
        assert_uniform((0..65_536).map(|position| uniform(sampling_key(0, 0), position)));
        assert_uniform((0..65_536).map(|request| uniform(sampling_key(0, request), 17)));
        assert_uniform((0..65_536).map(|seed| uniform(sampling_key(seed, 3), 17)));
    }

    #[test]
    fn seeds_requests_and_positions_do_not_share_numbers() {
        let mut keys = HashSet::new();
        let mut numbers = HashSet::new();
        for seed in 0..32 {
            for request in 0..32 {
                let key = sampling_key(seed, request);
                assert!(keys.insert(key));
                // Whole outputs, not f32: two of a million 24-bit numbers are bound to be equal.
                for position in 0..64 {
                    assert!(numbers.insert(split_mix(key, position)));
                }
            }
        }
    }

    #[test]
    fn the_order_of_asking_does_not_matter() {
        let key = sampling_key(42, 7);
        let forward: Vec<f32> = (0..100).map(|position| uniform(key, position)).collect();
        let mut backward: Vec<f32> = (0..100).rev().map(|position| uniform(key, position)).collect();
        backward.reverse();
        assert_eq!(forward, backward);
    }
}
