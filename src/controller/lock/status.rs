//! What a lock's status says, and when it is written. Pure.
//!
//! Written on transitions, at most once a second; the expiry is refreshed when 90 % of what was published has
//! passed, so that it is in the future while the lock is held, at 15 s less than 300 writes an hour.

use std::time::Duration;

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::super::election;
use crate::api::condition::{self, reasons, types};
use crate::api::{DistributedLock, DistributedLockStatus, LockHolder, LockMode, time};
use crate::lease::{HolderId, Mode};
use crate::store::{Hold, Inspection, permits_counted};

/// The holders that a status lists.
const LISTED: usize = 20;
/// Transitions are written at most so often.
pub(super) const MIN_INTERVAL: Duration = Duration::from_secs(1);

/// Whether the lock is usable, and why not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Readiness {
    pub(super) ready: bool,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl Readiness {
    pub(super) fn ready() -> Self {
        Self { ready: true, reason: reasons::READY, message: "accepted, and its store is reachable".into() }
    }

    pub(super) fn not(reason: &'static str, message: impl Into<String>) -> Self {
        Self { ready: false, reason, message: message.into() }
    }
}

/// A hash of a holder id: the id itself is a secret.
pub(in crate::controller) fn public_id(id: &HolderId) -> String {
    let digest = Sha256::digest(id.as_str().as_bytes());
    digest.iter().take(10).map(|byte| format!("{byte:02x}")).collect()
}

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(millis).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// How much of a lock, as statuses say it: permits, or a mode.
pub(crate) fn share(mode: Mode) -> (Option<i32>, Option<LockMode>) {
    match mode {
        Mode::Counted(permits) => (Some(i32::try_from(permits).unwrap_or(i32::MAX)), None),
        Mode::Shared => (None, Some(LockMode::Shared)),
        Mode::Exclusive => (None, Some(LockMode::Exclusive)),
    }
}

/// A hold, as a status lists it.
pub(crate) fn holder(hold: &Hold) -> LockHolder {
    let (permits, mode) = share(hold.mode);
    LockHolder {
        id: public_id(&hold.id),
        identity: hold.identity.clone(),
        pod_uid: hold.pod_uid.clone(),
        permits,
        mode,
        fencing_token: hold.token.get(),
        acquire_time: time::micros(at(hold.acquired)),
        renew_time: time::micros(at(hold.renewed)),
        expire_time: time::micros(at(hold.expires)),
    }
}

/// How many permits are taken: all of them by an exclusive holder, one by all shared ones together.
fn permits_held(holds: &[&Hold], permits: u32) -> u32 {
    if holds.iter().any(|hold| hold.mode == Mode::Exclusive) {
        return permits;
    }
    permits_counted(holds.iter().copied())
}

/// The status that says what the record says, but for a choice that etcd doesn't remember: that is nobody's hold. Without
/// a record the holders of before are kept: unknown is not free.
pub(super) fn describe(
    lock: &DistributedLock,
    record: Option<&Inspection>,
    readiness: &Readiness,
    now: Timestamp,
) -> DistributedLockStatus {
    let mut status = lock.status.clone().unwrap_or_default();
    let generation = lock.metadata.generation;
    status.observed_generation = generation;
    if let Some(record) = record {
        let holds: Vec<&Hold> = record.held().filter(|hold| !election::is_stray(lock, &hold.id)).collect();
        let holders: Vec<LockHolder> = holds.iter().take(LISTED).map(|hold| holder(hold)).collect();
        let before = status.fencing_token.unwrap_or(0);
        let new = holds.iter().filter(|hold| hold.token.get() > before).count();
        status.transitions += i64::try_from(new).unwrap_or(0);
        let number = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
        status.holder_count = number(holds.len());
        status.permits_held = i32::try_from(permits_held(&holds, record.permits)).unwrap_or(i32::MAX);
        status.holder = holders.first().map(|holder| holder.identity.clone());
        let highest = holds.iter().map(|hold| hold.token.get()).max();
        status.fencing_token = status.fencing_token.max(highest);
        status.expire_time = holds.iter().map(|hold| hold.expires).min().map(|ms| time::seconds(at(ms)));
        status.waiters = number(record.waiters.len());
        status.holders = holders;
        let (held, reason) = if holds.is_empty() { (false, reasons::FREE) } else { (true, reasons::HELD) };
        let message = match (&status.holder, holds.len()) {
            (None, _) => "nobody holds it".to_owned(),
            (Some(holder), 1) => format!("held by {holder}"),
            (Some(holder), count) => format!("held by {holder} and {} more", count - 1),
        };
        condition::set(&mut status.conditions, types::HELD, held, reason, &message, generation, now);
    } else if let Some(held) = condition::get(&status.conditions, types::HELD).cloned() {
        let message = &held.message;
        condition::set(&mut status.conditions, types::HELD, held.status, &held.reason, message, generation, now);
    }
    let Readiness { ready, reason, message } = readiness;
    condition::set(&mut status.conditions, types::READY, *ready, reason, message, generation, now);
    if let Some(known) = condition::get(&status.conditions, types::PROVISIONED).cloned() {
        let (is, why) = (known.status, &known.message);
        condition::set(&mut status.conditions, types::PROVISIONED, is, &known.reason, why, generation, now);
    }
    status
}

/// When a status is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Write {
    /// Something has changed.
    Transition,
    /// The published expiry runs out; these share a budget.
    Refresh,
    /// Not before so long has passed.
    After(Duration),
    /// Nothing is to be said.
    Never,
}

/// Decides from what is published and what is true, the age of the last write, and the server's clock.
pub(super) fn when(
    published: &DistributedLockStatus,
    truth: &DistributedLockStatus,
    since_write: Option<Duration>,
    lease: Duration,
    server_now: Option<i64>,
) -> Write {
    if without_times(published) != without_times(truth) {
        return match since_write.and_then(|since| MIN_INTERVAL.checked_sub(since)) {
            Some(wait) if wait > Duration::ZERO => Write::After(wait),
            _ => Write::Transition,
        };
    }
    let (Some(expire), Some(now)) = (&published.expire_time, server_now) else {
        return Write::Never;
    };
    let left = u64::try_from(expire.0.as_millisecond() - now).unwrap_or(0);
    let left = Duration::from_millis(left);
    match left.checked_sub(lease / 10) {
        Some(wait) if wait > Duration::ZERO => Write::After(wait),
        _ if truth.expire_time.as_ref().map(|t| t.0) > Some(expire.0) => Write::Refresh,
        _ => Write::After(MIN_INTERVAL),
    }
}

fn without_times(status: &DistributedLockStatus) -> DistributedLockStatus {
    let mut status = status.clone();
    status.expire_time = None;
    for holder in &mut status.holders {
        let fixed = time::micros(Timestamp::UNIX_EPOCH);
        (holder.renew_time, holder.expire_time) = (fixed.clone(), fixed);
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{ElectedLeader, ElectionStatus};
    use crate::lease::FencingToken;
    use crate::store::HoldState;

    fn hold(id: &str, token: i64, mode: Mode, expires: i64) -> Hold {
        Hold {
            id: HolderId::new(id).unwrap(),
            token: FencingToken::new(token).unwrap(),
            mode,
            state: HoldState::Held,
            acquired: 1000,
            renewed: 1000,
            expires,
            identity: format!("pod/{id}"),
            pod_uid: None,
        }
    }

    fn record(holds: Vec<Hold>) -> Inspection {
        Inspection {
            now: 1000,
            lock_uid: "uid".into(),
            generation: 1,
            permits: 3,
            lease: 15_000,
            last: 9,
            sealed: false,
            quarantine: 0,
            gate_open: true,
            holds,
            waiters: Vec::new(),
        }
    }

    fn described(lock: &DistributedLock, holds: Vec<Hold>) -> DistributedLockStatus {
        describe(lock, Some(&record(holds)), &Readiness::ready(), Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn the_first_holder_the_highest_token_and_the_earliest_expiry_are_shown() {
        let lock = DistributedLock::default();
        let status = described(&lock, vec![hold("a", 7, Mode::Counted(1), 9000), hold("b", 8, Mode::Counted(2), 5000)]);
        assert_eq!(status.holder.as_deref(), Some("pod/a"));
        assert_eq!((status.fencing_token, status.permits_held, status.holder_count), (Some(8), 3, 2));
        assert_eq!(status.expire_time.unwrap().0, at(5000));
        assert_eq!(status.transitions, 2);
        assert!(condition::is_true(&status.conditions, types::HELD));
        assert!(!status.holders[0].id.contains('a') || status.holders[0].id.len() == 20);
    }

    #[test]
    fn offers_are_nobodys_hold() {
        let mut offer = hold("a", 7, Mode::Counted(1), 9000);
        offer.state = HoldState::Offer;
        let status = described(&DistributedLock::default(), vec![offer]);
        assert_eq!((status.holder, status.fencing_token, status.holder_count), (None, None, 0));
    }

    #[test]
    fn a_choice_is_a_hold_once_etcd_remembers_it() {
        let mut lock = DistributedLock::default();
        lock.metadata.uid = Some("lock".into());
        let chosen = vec![hold("lock.pod.1", 7, Mode::Counted(1), 9000)];
        let status = described(&lock, chosen.clone());
        assert_eq!((status.holder, status.fencing_token, status.holder_count), (None, None, 0));
        let leader = ElectedLeader {
            pod_name: "pod".into(),
            pod_uid: "pod".into(),
            attempt: 1,
            fencing_token: 7,
            node_name: None,
            containers: String::new(),
            releasing: false,
        };
        let election = Some(ElectionStatus { leaders: vec![leader], ..ElectionStatus::default() });
        lock.status = Some(DistributedLockStatus { election, ..DistributedLockStatus::default() });
        let status = described(&lock, chosen);
        assert_eq!((status.fencing_token, status.holder_count, status.transitions), (Some(7), 1, 1));
    }

    #[test]
    fn shared_holders_together_take_one_permit_and_an_exclusive_one_all() {
        let lock = DistributedLock::default();
        let readers = described(&lock, vec![hold("a", 7, Mode::Shared, 9000), hold("b", 8, Mode::Shared, 9000)]);
        assert_eq!((readers.permits_held, readers.holder_count), (1, 2));
        assert_eq!(described(&lock, vec![hold("a", 7, Mode::Exclusive, 9000)]).permits_held, 3);
    }

    #[test]
    fn without_a_record_the_holders_of_before_stay() {
        let mut lock = DistributedLock::default();
        lock.status = Some(described(&lock, vec![hold("a", 7, Mode::Counted(1), 9000)]));
        let status = describe(&lock, None, &Readiness::not(reasons::STORE_NOT_READY, "away"), Timestamp::UNIX_EPOCH);
        assert_eq!(status.holder.as_deref(), Some("pod/a"));
        assert!(!condition::is_true(&status.conditions, types::READY));
    }

    #[test]
    fn a_change_is_written_at_most_once_a_second() {
        let lock = DistributedLock::default();
        let (free, held) = (described(&lock, vec![]), described(&lock, vec![hold("a", 7, Mode::Counted(1), 16_000)]));
        let lease = Duration::from_secs(15);
        assert_eq!(when(&free, &held, None, lease, Some(1000)), Write::Transition);
        let early = Some(Duration::from_millis(300));
        assert_eq!(when(&free, &held, early, lease, Some(1000)), Write::After(Duration::from_millis(700)));
    }

    #[test]
    fn the_expiry_is_refreshed_before_it_is_past_and_not_sooner() {
        let lock = DistributedLock::default();
        let published = described(&lock, vec![hold("a", 7, Mode::Counted(1), 16_000)]);
        let renewed = described(
            &DistributedLock { status: Some(published.clone()), ..lock },
            vec![hold("a", 7, Mode::Counted(1), 28_000)],
        );
        let lease = Duration::from_secs(15);
        let since = Some(Duration::from_secs(5));
        assert_eq!(when(&published, &renewed, since, lease, Some(6_000)), Write::After(Duration::from_millis(8_500)));
        assert_eq!(when(&published, &renewed, since, lease, Some(14_500)), Write::Refresh);
    }
}
