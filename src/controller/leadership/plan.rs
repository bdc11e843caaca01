//! Whose turn it is to lead, judged by what was seen on our own clock alone. Pure.
//!
//! The semantics of client-go's `leaderelection`: a Lease is over when it has not *changed* for its duration, counted
//! from when we saw it change. Times that another replica has written are compared with nothing, only for equality.

use std::time::Duration;

use jiff::Timestamp;

/// A Lease, as far as it decides.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Record {
    /// Who leads; empty after a release.
    pub(super) holder: String,
    /// How long after its last change it is over.
    pub(super) lease: Duration,
    /// When its holder has renewed it, by the holder's clock.
    pub(super) renewed: Option<Timestamp>,
    /// How often it has changed hands.
    pub(super) transitions: i32,
}

/// What to do with the Lease now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Turn {
    /// It is ours: renew it.
    Renew,
    /// It is free or over: take it, with this number of transitions.
    Take(i32),
    /// Another one leads, for so long at least.
    Wait(Duration),
}

/// Decides. `unchanged_for` is how long ago, on our own clock, it was seen to change.
pub(super) fn turn(me: &str, record: &Record, unchanged_for: Duration) -> Turn {
    if record.holder == me {
        return Turn::Renew;
    }
    let left = record.lease.saturating_sub(unchanged_for);
    if record.holder.is_empty() || left.is_zero() {
        return Turn::Take(record.transitions.saturating_add(1));
    }
    Turn::Wait(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(15);

    fn held_by(holder: &str) -> Record {
        Record { holder: holder.into(), lease: LEASE, renewed: None, transitions: 3 }
    }

    #[test]
    fn a_lease_that_has_not_changed_for_its_duration_is_taken() {
        assert_eq!(turn("me", &held_by("you"), Duration::from_secs(14)), Turn::Wait(Duration::from_secs(1)));
        assert_eq!(turn("me", &held_by("you"), LEASE), Turn::Take(4));
    }

    #[test]
    fn a_released_lease_is_taken_at_once_and_our_own_is_renewed() {
        assert_eq!(turn("me", &held_by(""), Duration::ZERO), Turn::Take(4));
        assert_eq!(turn("me", &held_by("me"), LEASE * 2), Turn::Renew);
    }

    #[test]
    fn the_clock_of_another_replica_decides_nothing() {
        for year in [1970, 2026, 9000] {
            let renewed = format!("{year}-06-01T00:00:00Z").parse().ok();
            let record = Record { renewed, ..held_by("you") };
            assert_eq!(turn("me", &record, Duration::ZERO), Turn::Wait(LEASE));
            assert_eq!(turn("me", &record, LEASE), Turn::Take(4));
        }
    }
}
