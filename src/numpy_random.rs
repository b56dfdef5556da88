//! The random numbers of `numpy.random.default_rng(seed).random(shape)`, bit for bit.
//!
//! A gradient check that was written in Python can so be repeated on the very same numbers. Two
//! things make them: a hash that spreads the seed over 256 bits (`SeedSequence`, after M. E. O'Neill,
//! "Developing a `seed_seq` alternative", 2015), and the generator PCG64 (XSL-RR 128/64, after
//! M. E. O'Neill, "PCG: a family of simple fast space-efficient statistically good algorithms for random
//! number generation", 2014), which is [`rand_pcg::Pcg64`]. Only the seeding is written here.

use ndarray::{ArrayD, IxDyn};
use rand::Rng;
use rand_pcg::Pcg64;

/// `numpy.random.default_rng(seed)`, for any seed that fits in 64 bits.
///
/// ```
/// // numpy.random.default_rng(1000).random(2)
/// let mut rng = llm_operator::numpy_random::default_rng(1000);
/// assert_eq!(rng.random(&[2]).as_slice(), Some(&[0.5213857379750627, 0.6038418470063296][..]));
/// ```
pub fn default_rng(seed: u64) -> Generator {
    let [state_high, state_low, stream_high, stream_low] = seed_sequence(seed);
    let wide = |high: u64, low: u64| u128::from(high) << 64 | u128::from(low);
    Generator { pcg: Pcg64::new(wide(state_high, state_low), wide(stream_high, stream_low)) }
}

/// A stream of random numbers, as NumPy's `Generator` on `PCG64`.
#[derive(Debug, Clone)]
pub struct Generator {
    pcg: Pcg64,
}

impl Generator {
    /// The next uniform number in `[0, 1)`: the high 53 bits of the next 64, times 2^-53.
    pub fn next_uniform(&mut self) -> f64 {
        /// 2^-53.
        const UNIT: f64 = f64::EPSILON / 2.0;
        (self.pcg.next_u64() >> 11) as f64 * UNIT
    }

    /// The next 64 random bits.
    pub fn next_bits(&mut self) -> u64 {
        self.pcg.next_u64()
    }

    /// `rng.random(shape)`: uniform numbers in `[0, 1)`, filled in C order.
    pub fn random(&mut self, shape: &[usize]) -> ArrayD<f64> {
        ArrayD::from_shape_simple_fn(IxDyn(shape), || self.next_uniform())
    }

    /// Numbers of the normal distribution with mean 0 and deviation 1, filled in C order.
    ///
    /// **Not** the stream of NumPy's `standard_normal`, which uses the ziggurat method: this is one
    /// number for each two uniform ones, by G. E. P. Box and M. E. Muller, "A note on the generation of random normal
    /// deviates", 1958.
    pub fn standard_normal(&mut self, shape: &[usize]) -> ArrayD<f64> {
        ArrayD::from_shape_simple_fn(IxDyn(shape), || {
            // `1 - u` lies in (0, 1], so that its logarithm is finite.
            let radius = (-2.0 * (1.0 - self.next_uniform()).ln()).sqrt();
            let angle = std::f64::consts::TAU * self.next_uniform();
            radius * angle.cos()
        })
    }
}

/// Words in the pool of a seed sequence.
const POOL: usize = 4;

/// `numpy.random.SeedSequence(seed).generate_state(4, numpy.uint64)`.
fn seed_sequence(seed: u64) -> [u64; 4] {
    // NumPy splits an integer seed into 32-bit words, the lowest first; missing words count as zero.
    let entropy = [seed as u32, (seed >> 32) as u32, 0, 0];
    let mut hash = Hash { constant: 0x43b0_d7e5, multiplier: 0x931e_8875 };
    let mut pool = entropy.map(|word| hash.next(word));
    for source in 0..POOL {
        for target in 0..POOL {
            if source != target {
                pool[target] = mix(pool[target], hash.next(pool[source]));
            }
        }
    }
    let mut hash = Hash { constant: 0x8b51_f9dd, multiplier: 0x58f3_8ded };
    let mut words = pool.iter().cycle().map(|&word| u64::from(hash.next(word)));
    std::array::from_fn(|_| {
        let low = words.next().unwrap_or_default();
        low | words.next().unwrap_or_default() << 32
    })
}

/// A multiplicative hash of 32-bit words whose constant changes with every word.
struct Hash {
    constant: u32,
    multiplier: u32,
}

impl Hash {
    fn next(&mut self, word: u32) -> u32 {
        let word = word ^ self.constant;
        self.constant = self.constant.wrapping_mul(self.multiplier);
        let word = word.wrapping_mul(self.constant);
        word ^ word >> 16
    }
}

/// Folds one word of the pool into another.
fn mix(target: u32, source: u32) -> u32 {
    let mixed = target.wrapping_mul(0xca01_f9dd).wrapping_sub(source.wrapping_mul(0x4973_f715));
    mixed ^ mixed >> 16
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `numpy.random.default_rng(seed).random((2, 4)).ravel()`, printed by NumPy 2.4.6.
    const PRINTED_BY_NUMPY: [(u64, [f64; 8]); 3] = [
        (
            0,
            [
                0.6369616873214543,
                0.2697867137638703,
                0.04097352393619469,
                0.016527635528529094,
                0.8132702392002724,
                0.9127555772777217,
                0.6066357757671799,
                0.7294965609839984,
            ],
        ),
        (
            1000,
            [
                0.5213857379750627,
                0.6038418470063296,
                0.47094179732225394,
                0.20324794254467882,
                0.5287590256200526,
                0.19103628008078877,
                0.2815455986418517,
                0.753681552191594,
            ],
        ),
        (
            (1 << 40) + 5,
            [
                0.004739459374490829,
                0.3725845824112115,
                0.5872294266977701,
                0.15139964872492384,
                0.4199600159213578,
                0.9859162233511684,
                0.36119499827535184,
                0.05021781454428709,
            ],
        ),
    ];

    #[test]
    fn uniform_numbers_are_numpys_bit_for_bit() {
        for (seed, expected) in PRINTED_BY_NUMPY {
            let found = default_rng(seed).random(&[2, 4]);
            assert_eq!(found.shape(), [2, 4]);
            assert_eq!(found.as_slice(), Some(&expected[..]), "seed {seed}");
        }
    }

    /// `numpy.random.default_rng(seed).random(100000)[-1]`, printed by NumPy 2.4.6.
    #[test]
    fn the_stream_stays_with_numpy_for_a_hundred_thousand_numbers() {
        for (seed, last) in [(0, 0.5062626145025364), (1000, 0.2978445624085643), ((1 << 40) + 5, 0.38479902089136664)]
        {
            assert_eq!(default_rng(seed).random(&[100_000])[[99_999]], last, "seed {seed}");
        }
    }

    /// `numpy.random.SeedSequence(1000).generate_state(4, numpy.uint64)`, printed by NumPy 2.4.6.
    #[test]
    fn seeds_are_spread_as_numpy_spreads_them() {
        let expected = [18002537191484623697, 15546459829274269927, 12450661028046704788, 1070589057473088904];
        assert_eq!(seed_sequence(1000), expected);
    }

    #[test]
    fn normal_numbers_have_the_moments_of_the_normal_distribution() {
        let count = 200_000;
        let numbers = default_rng(7).standard_normal(&[count]);
        let moment = |power: i32| numbers.iter().map(|value| value.powi(power)).sum::<f64>() / count as f64;
        // Four standard errors of each sample moment: sqrt(1, 2, 15, 96 / count).
        for (power, expected, variance) in [(1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)] {
            let error = (moment(power) - expected).abs();
            assert!(error < 4.0 * f64::sqrt(variance / count as f64), "moment {power} is off by {error}");
        }
        assert!(numbers.iter().all(|value| value.is_finite()));
    }
}
