//! A small seeded generator: the same seed gives the same script on every machine and with every toolchain.
//!
//! Owns nothing but the sequence (`SplitMix64`, Steele, Lea and Flood 2014). It is not for keys.

/// A deterministic sequence of numbers.
#[derive(Debug, Clone)]
pub(crate) struct Seed(u64);

impl Seed {
    /// Starts the sequence of `seed`.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number of the sequence.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 when `bound` is 0. The modulo bias is irrelevant at these bounds.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.next() % bound).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::Seed;

    #[test]
    fn the_sequence_is_the_published_one() {
        let mut seed = Seed::new(1_234_567);
        assert_eq!(seed.next(), 6_457_827_717_110_365_317);
        assert_eq!(seed.next(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn numbers_stay_below_their_bound() {
        let mut seed = Seed::new(7);
        assert!((0..1000).all(|_| seed.below(5) < 5));
        assert_eq!(seed.below(0), 0);
    }
}
