//! What is left to chance, from a seed: SplitMix64.

use std::ops::Range;

/// Rolls the same for the same seed.
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Other dice, that roll something else.
    pub(super) fn split(&mut self) -> Self {
        Self(self.roll())
    }

    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One of the range.
    pub(super) fn among(&mut self, range: Range<u64>) -> u64 {
        range.start + self.roll() % (range.end - range.start)
    }

    /// Whether something happens that happens so often.
    pub(super) fn percent(&mut self, chance: u64) -> bool {
        self.among(0..100) < chance
    }

    /// A time, in milliseconds.
    pub(super) fn millis(&mut self, range: Range<u64>) -> std::time::Duration {
        std::time::Duration::from_millis(self.among(range))
    }
}
