//! Fencing tokens and the epochs they are made of: `token = max(last + 1, epoch · 2^32 + 1)`, below 2^53.

use std::fmt;

/// Tokens of one epoch.
const PER_EPOCH: u64 = 1 << 32;
/// Seconds of one unit of [`Epoch::at_least_since_2026`].
const UNIT_SECONDS: i64 = 600;
/// 2026-01-01T00:00:00Z, in seconds since 1970.
const START_2026: i64 = 1_767_225_600;

/// A number that rises with every grant of a lock name, for ever. A resource that refuses a lower one than
/// the highest it has seen loses no update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FencingToken(u64);

impl FencingToken {
    /// A token read from the wire or from a status; `None` from 2^53 on and below zero.
    pub fn new(value: i64) -> Option<Self> {
        u64::try_from(value).ok().filter(|v| *v < 1 << 53).map(Self)
    }

    /// The number, as status and environment carry it.
    pub fn get(self) -> i64 {
        self.0 as i64
    }

    /// The epoch in its upper bits.
    pub fn epoch(self) -> Epoch {
        Epoch((self.0 / PER_EPOCH) as u32)
    }

    /// Whether more than half of its epoch's tokens are used, so that the next epoch is due.
    pub fn past_half(self) -> bool {
        self.0 % PER_EPOCH >= PER_EPOCH / 2
    }
}

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The upper bits of a token, kept in etcd. An epoch is used for one incarnation of Redis only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Epoch(u32);

impl Epoch {
    /// The highest epoch: tokens stay below 2^53.
    pub const MAX: Epoch = Epoch((1 << 21) - 1);

    /// `None` where tokens would reach 2^53 or the value is negative.
    pub fn new(value: i64) -> Option<Self> {
        u32::try_from(value).ok().map(Self).filter(|e| *e <= Self::MAX)
    }

    /// The number.
    pub fn get(self) -> i64 {
        i64::from(self.0)
    }

    /// The next one, `None` after [`Epoch::MAX`].
    pub fn next(self) -> Option<Self> {
        Self::new(self.get() + 1)
    }

    /// The lowest token above every token of this epoch.
    pub fn ceiling(self) -> i64 {
        (self.get() + 1) << 32
    }

    /// The ten-minute units since 2026 at a wall-clock time: a floor for new epochs, so that an etcd
    /// restored from an old backup beside an empty Redis doesn't repeat one.
    pub fn at_least_since_2026(unix_seconds: i64) -> Self {
        let units = (unix_seconds - START_2026).max(0) / UNIT_SECONDS;
        Self::new(units).unwrap_or(Self::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_stay_below_what_a_double_can_hold() {
        assert_eq!(FencingToken::new((1 << 53) - 1).map(FencingToken::epoch), Some(Epoch::MAX));
        assert_eq!(FencingToken::new(1 << 53), None);
        assert_eq!(FencingToken::new(-1), None);
        assert_eq!(Epoch::MAX.next(), None);
        assert_eq!(Epoch::MAX.ceiling(), 1 << 53);
    }

    #[test]
    fn a_token_tells_its_epoch_and_when_the_next_is_due() {
        let token = FencingToken::new(21_474_836_481).unwrap();
        assert_eq!(token.epoch(), Epoch::new(5).unwrap());
        assert!(!token.past_half());
        assert!(FencingToken::new((5 << 32) + (1 << 31)).unwrap().past_half());
    }

    #[test]
    fn the_epoch_floor_grows_by_one_each_ten_minutes() {
        assert_eq!(Epoch::at_least_since_2026(0), Epoch::default());
        assert_eq!(Epoch::at_least_since_2026(START_2026 + 1_199).get(), 1);
    }
}
