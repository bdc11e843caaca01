//! Conditions: the part of a status that people and `kubectl wait` read.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{MAX_SAFE, time};

/// The longest message, in characters.
const MAX_MESSAGE: usize = 1024;

/// The types of conditions.
pub mod types {
    /// Accepted, and what it needs is reachable. Says nothing about being held.
    pub const READY: &str = "Ready";
    /// A lock has a holder; a claim holds its locks.
    pub const HELD: &str = "Held";
    /// The lock has had a record in Redis: a record that is missing now was lost.
    pub const PROVISIONED: &str = "Provisioned";
    /// A pod that holds the lock can't be asked whether it still runs.
    pub const HOLDER_UNREACHABLE: &str = "HolderUnreachable";
    /// The claim has ended and will not hold again.
    pub const FINISHED: &str = "Finished";
    /// Redis lost data or was replaced; grants wait until no lease of before can still be believed.
    pub const RECOVERING: &str = "Recovering";
    /// Redis is set up so that it evicts nothing.
    pub const EVICTION_SAFE: &str = "EvictionSafe";
    /// Redis keeps nothing on disk: each restart is a loss of its data, and locks wait for their leases.
    pub const EPHEMERAL: &str = "Ephemeral";
    /// Redis's clock was set; grants wait until no lease of before can still be believed.
    pub const CLOCK_STEPPED: &str = "ClockStepped";
    /// etcd was put back to an older copy: what Redis holds and no claim records is kept until a person confirms.
    pub const ETCD_RESTORED: &str = "EtcdRestored";
    /// A master that is cut off from its replicas stops to grant by itself.
    pub const ISOLATED_MASTER_BOUNDED: &str = "IsolatedMasterBounded";
    /// A pod that waits for locks holds them. It is written only where there is something to look at.
    pub const LOCK_HELD: &str = "leasehold.dev/LockHeld";
    /// A pod has failed because it did not get its locks in time: for a Job's podFailurePolicy.
    pub const LOCK_NOT_ACQUIRED: &str = "LockNotAcquired";
    /// A pod has failed because it held and did not start in time.
    pub const HOLDER_NOT_STARTED: &str = "HolderNotStarted";
}

/// The reasons of conditions and Events. They are API: one CamelCase word each, kept once published.
///
/// `docs/troubleshooting.md` has an entry for each, which a test sees to; those of a Redis that gave no answer are in
/// `store::StoreError`.
pub mod reasons {
    /// No controller has looked yet.
    pub const PENDING: &str = "Pending";
    /// All is well.
    pub const READY: &str = "Ready";
    /// A field has a value that this release doesn't know.
    pub const UNSUPPORTED_VALUE: &str = "UnsupportedValue";
    /// There is no such `LockStore`.
    pub const STORE_NOT_FOUND: &str = "StoreNotFound";
    /// The `LockStore` is not Ready.
    pub const STORE_NOT_READY: &str = "StoreNotReady";
    /// The `LockStore` doesn't serve this namespace.
    pub const NAMESPACE_NOT_ALLOWED: &str = "NamespaceNotAllowed";
    /// Another `LockStore` or install uses the same Redis and key prefix.
    pub const STORE_IN_USE: &str = "StoreInUse";
    /// All tokens of an epoch are used; the next is being taken.
    pub const EPOCH_EXHAUSTED: &str = "EpochExhausted";
    /// There is no such `DistributedLock`.
    pub const LOCK_NOT_FOUND: &str = "LockNotFound";
    /// One of the locks is of a store that another controller serves.
    pub const OTHER_CONTROLLER: &str = "OtherController";
    /// Held.
    pub const HELD: &str = "Held";
    /// Nobody holds it.
    pub const FREE: &str = "Free";
    /// In the queue.
    pub const WAITING: &str = "Waiting";
    /// The controller elects who holds the lock; claims can't.
    pub const LOCK_IS_ELECTED: &str = "LockIsElected";
    /// Asks for more permits than the lock has.
    pub const UNSATISFIABLE: &str = "Unsatisfiable";
    /// The gate is open: locks of this store can be granted.
    pub const GATE_OPEN: &str = "GateOpen";
    /// The controller has just begun with the store.
    pub const STARTING: &str = "Starting";
    /// The store is being opened.
    pub const OPENING: &str = "Opening";
    /// The ConfigMap that mirrors the epochs can't be written; the controller's namespace must exist.
    pub const EPOCH_NOT_NOTED: &str = "EpochNotNoted";
    /// Redis started again, was replaced, or lost data: what was lost is put back.
    pub const RECOVERING: &str = "Recovering";
    /// Nothing is left to be recovered.
    pub const RECOVERED: &str = "Recovered";
    /// The store doesn't answer in time.
    pub const UNREACHABLE: &str = "Unreachable";
    /// The server's version is too old.
    pub const UNSUPPORTED_SERVER: &str = "UnsupportedServer";
    /// The server is not a master.
    pub const NOT_MASTER: &str = "NotMaster";
    /// Redis may evict locks when its memory is full.
    pub const EVICTING_MEMORY_POLICY: &str = "EvictingMemoryPolicy";
    /// Redis evicts keys with a TTL only; locks have none.
    pub const EVICTS_VOLATILE_KEYS: &str = "EvictsVolatileKeys";
    /// Redis evicts nothing.
    pub const NO_EVICTION: &str = "NoEviction";
    /// Redis writes neither snapshots nor a log.
    pub const NOTHING_ON_DISK: &str = "NothingOnDisk";
    /// Redis writes snapshots or a log.
    pub const PERSISTED: &str = "Persisted";
    /// Redis's clock was set.
    pub const CLOCK_STEPPED: &str = "ClockStepped";
    /// Redis's clock goes on.
    pub const CLOCK_STEADY: &str = "ClockSteady";
    /// Redis knows what etcd has forgotten; a fresh epoch is being taken.
    pub const ETCD_WENT_BACK: &str = "EtcdWentBack";
    /// A person is to confirm that nothing runs that etcd has forgotten.
    pub const AWAITING_CONFIRMATION: &str = "AwaitingConfirmation";
    /// A person has.
    pub const CONFIRMED: &str = "Confirmed";
    /// There is no replica that could become a second master.
    pub const NO_REPLICAS: &str = "NoReplicas";
    /// A master without enough replicas takes no writes.
    pub const MIN_REPLICAS_TO_WRITE: &str = "MinReplicasToWrite";
    /// A master goes on without its replicas, and one of them may be promoted beside it.
    pub const TOO_FEW_REQUIRED: &str = "TooFewRequired";
    /// The Redis user may not read it.
    pub const NOT_ALLOWED_TO_READ: &str = "NotAllowedToRead";
    /// The function library could not be loaded.
    pub const LIBRARY_NOT_LOADED: &str = "LibraryNotLoaded";
    /// The address is not host and port.
    pub const INVALID_ADDRESS: &str = "InvalidAddress";
    /// There is no such Secret in the controller's namespace.
    pub const SECRET_NOT_FOUND: &str = "SecretNotFound";
    /// The Secret lacks a key.
    pub const SECRET_INCOMPLETE: &str = "SecretIncomplete";
    /// The Secret can't be read.
    pub const SECRET_UNREADABLE: &str = "SecretUnreadable";
    /// The API server can't be asked.
    pub const API_SERVER_UNREACHABLE: &str = "APIServerUnreachable";
    /// Being deleted; waits for what the message names.
    pub const DELETING: &str = "Deleting";
    /// Used by locks that are still there.
    pub const IN_USE: &str = "InUse";
    /// Its record in Redis was made.
    pub const PROVISIONED: &str = "Provisioned";
    /// Its record in Redis was lost; it is made again when no lease of before can be believed.
    pub const RECORD_LOST: &str = "RecordLost";
    /// Granted, not yet told: the claim is being recorded.
    pub const GRANTED: &str = "Granted";
    /// Being given back.
    pub const RELEASING: &str = "Releasing";
    /// Given back.
    pub const RELEASED: &str = "Released";
    /// The pod that it holds for has ended.
    pub const HOLDER_ENDED: &str = "HolderEnded";
    /// The node of the pod that holds can't be asked whether that still runs.
    pub const HOLDER_UNREACHABLE: &str = "HolderUnreachable";
    /// The nodes of all pods that hold can be asked.
    pub const HOLDERS_REACHABLE: &str = "HoldersReachable";
    /// A person has taken the hold.
    pub const FORCE_RELEASED: &str = "ForceReleased";
    /// A force-release names a fencing token that holds nothing.
    pub const NOTHING_TO_RELEASE: &str = "NothingToRelease";
    /// A policy that has to stand before a force-release is heeded isn't in force.
    pub const POLICY_MISSING: &str = "PolicyMissing";
    /// A container of the leader has ended: whoever leads now is another.
    pub const HOLDER_RESTARTED: &str = "HolderRestarted";
    /// The leader has not been Ready for failoverAfterSeconds.
    pub const HOLDER_NOT_READY: &str = "HolderNotReady";
    /// Another lock elects among the same pods.
    pub const ROLE_LABEL_CONFLICT: &str = "RoleLabelConflict";
    /// The claim's waitTimeoutSeconds have passed.
    pub const WAIT_TIMEOUT: &str = "WaitTimeout";
    /// The lock is held, and the claim doesn't wait.
    pub const BUSY: &str = "Busy";
    /// It has held for maxHoldSeconds.
    pub const MAX_HOLD_EXCEEDED: &str = "MaxHoldExceeded";
    /// Not finished: it waits or holds.
    pub const ACTIVE: &str = "Active";
    /// What a pod waits for can't be read.
    pub const INVALID_LOCKS: &str = "InvalidLocks";
    /// The name of a pod's claim is taken by one for somebody else.
    pub const CLAIM_NAME_TAKEN: &str = "ClaimNameTaken";
    /// A pod holds and doesn't start, while others may wait.
    pub const HOLDER_NOT_STARTED: &str = "HolderNotStarted";
    /// A pod has failed because it did not get its locks in time.
    pub const LOCK_NOT_ACQUIRED: &str = "LockNotAcquired";
    /// A pod took longer to start than it may.
    pub const START_TIMEOUT: &str = "StartTimeout";
    /// A pod with the label runs without its lock.
    pub const UNGATED: &str = "Ungated";
    /// A hold has begun.
    pub const ACQUIRED: &str = "Acquired";
    /// A gated pod holds its locks and was let go.
    pub const LOCK_ACQUIRED: &str = "LockAcquired";
    /// A pod leads.
    pub const ELECTED: &str = "Elected";
    /// A namespace got a Redis user and the Secret with which its processes log in.
    pub const CREDENTIALS_MADE: &str = "CredentialsMade";
    /// A namespace got a new password.
    pub const CREDENTIALS_ROTATED: &str = "CredentialsRotated";
    /// A namespace has a Secret of our name that somebody else has made.
    pub const SECRET_NOT_OURS: &str = "SecretNotOurs";
    /// Several `LockStore`s allow the namespace, and nothing says which is meant.
    pub const STORE_AMBIGUOUS: &str = "StoreAmbiguous";
    /// The record in Redis had a token that was never granted.
    pub const RECORD_TAMPERED: &str = "RecordTampered";
}

/// Whether a condition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum ConditionStatus {
    /// It does.
    True,
    /// It doesn't.
    False,
    /// Nobody can tell.
    #[default]
    #[serde(other)]
    Unknown,
}

impl From<bool> for ConditionStatus {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

/// One aspect of the state, as the controller last saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What the condition is about, such as Ready or Held.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 316), regex(pattern = r"^[A-Za-z][A-Za-z0-9./-]*$"))]
    pub type_: String,
    /// True, False or Unknown.
    pub status: ConditionStatus,
    /// The metadata.generation that the condition speaks of. Lower than the object's: not up to date.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = MAX_SAFE))]
    pub observed_generation: Option<i64>,
    /// When the status last changed.
    pub last_transition_time: Time,
    /// Why, in one CamelCase word, for programs.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"))]
    pub reason: String,
    /// Why, in a sentence, for people.
    #[schemars(length(max = MAX_MESSAGE))]
    pub message: String,
}

/// The condition of a type.
pub fn get<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == type_)
}

/// Whether there is a condition of that type and it is `True`.
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    get(conditions, type_).is_some_and(|condition| condition.status == ConditionStatus::True)
}

/// Sets a condition, adding it if it is not there, and tells whether anything changed.
///
/// `lastTransitionTime` becomes `now` only where the status differs from before. A message longer than the
/// schema allows is cut, so that a long error never makes the status unwritable.
pub fn set(
    conditions: &mut Vec<Condition>,
    type_: &str,
    status: impl Into<ConditionStatus>,
    reason: &str,
    message: &str,
    generation: Option<i64>,
    now: Timestamp,
) -> bool {
    let mut new = Condition {
        type_: type_.to_owned(),
        status: status.into(),
        observed_generation: generation,
        last_transition_time: time::seconds(now),
        reason: reason.to_owned(),
        message: message.chars().take(MAX_MESSAGE).collect(),
    };
    let Some(old) = conditions.iter_mut().find(|condition| condition.type_ == type_) else {
        conditions.push(new);
        return true;
    };
    if old.status == new.status {
        new.last_transition_time = old.last_transition_time.clone();
    }
    let changed = *old != new;
    *old = new;
    changed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_transition_time_moves_only_when_the_status_does() {
        let mut conditions = Vec::new();
        assert!(set(&mut conditions, types::READY, false, "StoreNotFound", "no store", Some(1), at(10)));
        assert!(set(&mut conditions, types::READY, false, "StoreNotReady", "not yet", Some(2), at(20)));
        assert_eq!(conditions[0].last_transition_time, Time(at(10)));
        assert!(set(&mut conditions, types::READY, true, "Ready", "", Some(2), at(30)));
        assert_eq!(conditions[0].last_transition_time, Time(at(30)));
        assert_eq!(conditions.len(), 1);
    }

    #[test]
    fn setting_the_same_again_changes_nothing() {
        let mut conditions = Vec::new();
        set(&mut conditions, types::HELD, true, "Held", "by a pod", Some(1), at(10));
        let before = conditions.clone();
        assert!(!set(&mut conditions, types::HELD, true, "Held", "by a pod", Some(1), at(99)));
        assert_eq!(conditions, before);
        assert!(set(&mut conditions, types::HELD, true, "Held", "by a pod", Some(2), at(99)));
    }

    #[test]
    fn a_message_is_cut_to_what_the_schema_allows() {
        let mut conditions = Vec::new();
        set(&mut conditions, types::READY, false, "Unreachable", &"ü".repeat(5000), None, at(1));
        assert_eq!(conditions[0].message.chars().count(), MAX_MESSAGE);
    }

    #[test]
    fn an_absent_or_unknown_condition_is_not_true() {
        let mut conditions = Vec::new();
        assert!(!is_true(&conditions, types::HELD));
        set(&mut conditions, types::HELD, ConditionStatus::Unknown, "Pending", "", None, at(1));
        assert!(!is_true(&conditions, types::HELD));
        set(&mut conditions, types::HELD, true, "Held", "", None, at(2));
        assert!(is_true(&conditions, types::HELD));
        assert!(get(&conditions, types::READY).is_none());
    }
}
