//! What a lock's record needs next. Pure: values in, a decision out.

use std::time::Duration;

use kube::ResourceExt;

use crate::api::DistributedLock;
use crate::lease::{Epoch, FencingToken};
use crate::store::{Inspection, Provision};

/// The next step for the record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::controller) enum Step {
    /// Write to etcd that there is a record, and the longest lease, before Redis hears of either.
    Remember {
        /// Seconds.
        longest: i32,
    },
    /// Make or change the record.
    Provision,
    /// Make a record that was lost: with the holds of etcd and a quarantine.
    Recover,
    /// The record was lost in this epoch: wait for a higher one.
    Outgrow(Epoch),
    /// It is as it should be.
    Nothing,
}

/// Decides from the lock, its record, the epoch in force, and the epoch in which the record was first missed.
pub(in crate::controller) fn plan(
    lock: &DistributedLock,
    record: Option<&Inspection>,
    epoch: Epoch,
    missed_in: Option<Epoch>,
) -> Step {
    let status = lock.status.as_ref();
    let lease = i32::try_from(lock.lease_duration().as_secs()).unwrap_or(i32::MAX);
    let longest = status.and_then(|status| status.longest_lease_seconds).unwrap_or(0);
    if !lock.is_provisioned() || longest < lease {
        return Step::Remember { longest: longest.max(lease) };
    }
    let ours = |record: &&Inspection| record.lock_uid == lock.uid().unwrap_or_default();
    match (record, missed_in) {
        (Some(record), _) if ours(&record) && record.generation >= lock.metadata.generation.unwrap_or(0) => {
            Step::Nothing
        }
        (Some(_), _) => Step::Provision,
        (None, None) => Step::Provision,
        (None, Some(missed)) if epoch > missed => Step::Recover,
        (None, Some(missed)) => Step::Outgrow(missed),
    }
}

/// Whether the next epoch is due: more than half of the tokens of the one in force are used. A last token of an
/// older epoch says nothing, for the next grant begins in the one in force.
pub(in crate::controller) fn epoch_runs_out(last: i64, epoch: Epoch) -> bool {
    FencingToken::new(last).is_some_and(|token| token.epoch() >= epoch && token.past_half())
}

/// The configuration of a record, without holds, places and quarantine.
pub(in crate::controller) fn provision(lock: &DistributedLock, epoch: Epoch, floor: i64) -> Provision {
    let seen = lock.status.as_ref().and_then(|status| status.fencing_token).unwrap_or(0);
    Provision {
        generation: lock.metadata.generation.unwrap_or(0),
        max_hold: lock.max_hold(),
        elected: lock.spec.election.is_some(),
        token_floor: floor.max(seen),
        token_ceiling: Some(epoch.ceiling()),
        ..Provision::new(lock.uid().unwrap_or_default(), lock.permits(), lock.lease_duration())
    }
}

/// How long a lease of the past may still be believed: the longest one that may have been granted, 2 % for the
/// rates of the two clocks (design: `R · (1 − 2ρ)` with ρ = 1 %), and a margin for a request in flight.
pub(in crate::controller) fn quarantine(lock: &DistributedLock) -> Duration {
    let longest = lock.longest_lease();
    longest + longest / 50 + Duration::from_millis(250)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::condition::{self, types};
    use crate::api::{DistributedLockSpec, DistributedLockStatus};

    fn lock(generation: i64, provisioned: bool) -> DistributedLock {
        let mut lock = DistributedLock::new("a", DistributedLockSpec::default());
        lock.metadata.generation = Some(generation);
        lock.metadata.uid = Some("uid".into());
        let mut status = DistributedLockStatus { longest_lease_seconds: Some(15), ..Default::default() };
        if provisioned {
            condition::set(
                &mut status.conditions,
                types::PROVISIONED,
                true,
                "Provisioned",
                "",
                None,
                jiff::Timestamp::UNIX_EPOCH,
            );
        }
        lock.status = Some(status);
        lock
    }

    fn record(generation: i64, uid: &str) -> Inspection {
        Inspection {
            now: 0,
            lock_uid: uid.into(),
            generation,
            permits: 1,
            lease: 15_000,
            last: 0,
            sealed: false,
            quarantine: 0,
            gate_open: true,
            holds: Vec::new(),
            waiters: Vec::new(),
        }
    }

    fn epoch(number: i64) -> Epoch {
        Epoch::new(number).unwrap()
    }

    #[test]
    fn etcd_remembers_before_redis_hears() {
        assert_eq!(plan(&lock(1, false), None, epoch(5), None), Step::Remember { longest: 15 });
        let mut longer = lock(2, true);
        longer.spec.lease_duration_seconds = 60;
        assert_eq!(plan(&longer, Some(&record(1, "uid")), epoch(5), None), Step::Remember { longest: 60 });
    }

    #[test]
    fn the_next_epoch_is_asked_for_once_at_half_of_the_one_in_force() {
        let half = (5 << 32) + (1 << 31);
        assert!(!epoch_runs_out(half - 1, epoch(5)));
        assert!(epoch_runs_out(half, epoch(5)));
        assert!(!epoch_runs_out(half, epoch(6)), "a new epoch would be burnt until the next grant");
    }

    #[test]
    fn a_lost_record_waits_for_a_higher_epoch() {
        assert_eq!(plan(&lock(1, true), None, epoch(5), Some(epoch(5))), Step::Outgrow(epoch(5)));
        assert_eq!(plan(&lock(1, true), None, epoch(6), Some(epoch(5))), Step::Recover);
    }

    #[test]
    fn a_change_of_the_spec_or_another_uid_changes_the_record() {
        assert_eq!(plan(&lock(2, true), Some(&record(1, "uid")), epoch(5), None), Step::Provision);
        assert_eq!(plan(&lock(2, true), Some(&record(2, "old")), epoch(5), None), Step::Provision);
        assert_eq!(plan(&lock(2, true), Some(&record(2, "uid")), epoch(5), None), Step::Nothing);
    }
}
