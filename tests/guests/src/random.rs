//! Numbers that look random and repeat: xorshift64* (Vigna 2016).

/// A generator; the same seed gives the same numbers.
pub struct Random(u64);

impl Random {
    /// Starts from `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next 64 bits.
    pub const fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`, which is not 0.
    pub const fn below(&mut self, bound: u64) -> u64 {
        (self.next() >> 11) % bound
    }

    /// A value as attackers choose them: borders as often as noise.
    pub const fn value(&mut self) -> u64 {
        let noise = self.next();
        match self.below(8) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << (noise & 63),
            3 => u64::MAX >> (noise & 63),
            4 => noise & 0xff,
            5 => noise & 0xffff_ffff,
            _ => noise,
        }
    }
}
