//! Whether etcd has gone back: it was put back to an older copy, and Redis went on.
//!
//! What Redis holds and no claim records can then be a hold that somebody was told of since that copy. Its absence from
//! etcd is no evidence that it has ended, so that nobody frees it, until a person says that nothing runs any more that
//! was granted since (an annotation on the `LockStore`).
//!
//! # How it is seen
//! etcd always hears first of what Redis hears: the term of a reign, an epoch, and the *mark*, which rises while claims
//! are told of grants, at most each [`MARK_EVERY`]. So one of them that is higher in Redis than in etcd is proof. None is,
//! if no reign began, no epoch was taken and the mark did not rise after the copy was made: a copy that is younger than
//! [`MARK_EVERY`].
//!
//! # Sequence
//! 1. `EtcdRestored=True` in etcd, in the write that raises what was lower there: a crash before it leaves the proof;
//! 2. a fresh epoch, since etcd has forgotten last tokens of locks that were deleted: then the condition's reason is
//!    `AwaitingConfirmation`. A crash before: one more epoch;
//! 3. nothing is freed for its absence, in this reign and the next ones;
//! 4. the annotation names the condition's transition time: `EtcdRestored=False`.

use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt;

use crate::api::condition::{self, reasons, types};
use crate::api::{CONFIRM_ETCD_RESTORE, Condition, ConditionStatus, LockStore, LockStoreStatus};
use crate::store::Heartbeat;

/// The mark rises at most so often.
pub(super) const MARK_EVERY: Duration = Duration::from_secs(30);

/// How far the healing has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doubt {
    /// An epoch above all that were used is still to be taken.
    OwesEpoch,
    /// A person is to confirm.
    AwaitsConfirmation,
}

fn restored(status: &LockStoreStatus) -> Option<&Condition> {
    condition::get(&status.conditions, types::ETCD_RESTORED).filter(|c| c.status == ConditionStatus::True)
}

impl Doubt {
    /// As etcd has it.
    pub(super) fn of(status: &LockStoreStatus) -> Option<Self> {
        let condition = restored(status)?;
        let awaits = condition.reason == reasons::AWAITING_CONFIRMATION;
        Some(if awaits { Self::AwaitsConfirmation } else { Self::OwesEpoch })
    }
}

/// What in Redis is newer than etcd, in words for people.
pub(super) fn evidence(status: &LockStoreStatus, heartbeat: &Heartbeat) -> Option<String> {
    let (epoch, mark) = (status.epoch.unwrap_or(0), status.mark.unwrap_or(0));
    let known = heartbeat.gate.map_or(0, |gate| gate.get()).max(heartbeat.epoch.get());
    // A store that is new finds the epochs of the one before it.
    if status.epoch.is_some() && known > epoch {
        Some(format!("Redis knows the epoch {known}, etcd {epoch}"))
    } else if heartbeat.mark > mark {
        Some(format!("Redis knows the mark {}, etcd {mark}", heartbeat.mark))
    } else {
        None
    }
}

/// Step 1. The mark rises above what Redis knows.
pub(super) fn note(store: &str, status: &mut LockStoreStatus, why: &str, mark: i64, now: Timestamp) {
    status.mark = Some(status.mark.unwrap_or(0).max(mark) + 1);
    let since = restored(status).map_or(now, |condition| condition.last_transition_time.0);
    let message = message(store, why, since);
    condition::set(&mut status.conditions, types::ETCD_RESTORED, true, reasons::ETCD_WENT_BACK, &message, None, now);
}

/// Step 2, after the gate is open with the fresh epoch.
pub(super) fn await_confirmation(status: &mut LockStoreStatus, now: Timestamp) {
    let Some(message) = restored(status).map(|condition| condition.message.clone()) else { return };
    let (type_, reason) = (types::ETCD_RESTORED, reasons::AWAITING_CONFIRMATION);
    condition::set(&mut status.conditions, type_, true, reason, &message, None, now);
}

/// Step 4.
pub(super) fn confirm(status: &mut LockStoreStatus, now: Timestamp) {
    let (type_, reason) = (types::ETCD_RESTORED, reasons::CONFIRMED);
    let message = "a person has confirmed that nothing runs that etcd has forgotten";
    condition::set(&mut status.conditions, type_, false, reason, message, None, now);
}

/// Whether the annotation of a person speaks of what is in doubt now.
pub(super) fn is_confirmed(store: &LockStore) -> bool {
    let status = store.status.clone().unwrap_or_default();
    let since = restored(&status).map(|condition| name_of(condition.last_transition_time.0));
    since.is_some() && store.annotations().get(CONFIRM_ETCD_RESTORE) == since.as_ref()
}

/// As Kubernetes writes the time of a condition.
fn name_of(since: Timestamp) -> String {
    since.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn message(store: &str, why: &str, since: Timestamp) -> String {
    format!(
        "etcd was put back to an older copy: {why}. What Redis holds and no claim records is kept. When nothing runs any more \
         that was granted a lock since that copy: kubectl annotate lockstore {store} --overwrite {CONFIRM_ETCD_RESTORE}={}",
        name_of(since)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::Epoch;

    fn heartbeat(gate: Option<i64>, epoch: i64, mark: i64) -> Heartbeat {
        let (run_id, replid, role) = ("run".into(), "data".into(), "master".into());
        let gate = gate.and_then(Epoch::new);
        Heartbeat { now: 0, run_id, replid, role, gate, epoch: Epoch::new(epoch).unwrap(), mark }
    }

    fn status(epoch: Option<i64>, mark: Option<i64>) -> LockStoreStatus {
        LockStoreStatus { epoch, mark, ..LockStoreStatus::default() }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn what_redis_alone_knows_is_evidence() {
        let known = status(Some(5), Some(3));
        assert_eq!(evidence(&known, &heartbeat(Some(5), 5, 3)), None);
        assert_eq!(evidence(&known, &heartbeat(None, 0, 0)), None, "an empty Redis knows less");
        for newer in [heartbeat(Some(6), 5, 3), heartbeat(None, 6, 3), heartbeat(Some(5), 5, 4)] {
            assert!(evidence(&known, &newer).is_some(), "{newer:?}");
        }
    }

    #[test]
    fn the_epochs_of_a_store_of_before_are_no_evidence() {
        assert_eq!(evidence(&status(None, None), &heartbeat(None, 6, 0)), None);
    }

    #[test]
    fn evidence_is_noted_once_and_confirmed_by_its_time_alone() {
        let mut store = LockStore::new("default", Default::default());
        let mut status = status(Some(5), Some(3));
        note("default", &mut status, "why", 7, at(1_000));
        assert_eq!(evidence(&status, &heartbeat(Some(5), 5, 7)), None);
        assert_eq!(Doubt::of(&status), Some(Doubt::OwesEpoch));
        await_confirmation(&mut status, at(2_000));
        assert_eq!(Doubt::of(&status), Some(Doubt::AwaitsConfirmation));
        store.status = Some(status.clone());
        for (text, is) in [("yes", false), ("1970-01-01T00:33:20Z", false), ("1970-01-01T00:16:40Z", true)] {
            store.metadata.annotations = Some([(CONFIRM_ETCD_RESTORE.to_owned(), text.to_owned())].into());
            assert_eq!(is_confirmed(&store), is, "{text}");
        }
        confirm(&mut status, at(3_000));
        assert_eq!(Doubt::of(&status), None);
        store.status = Some(status);
        assert!(!is_confirmed(&store), "it confirms nothing that comes later");
    }
}
