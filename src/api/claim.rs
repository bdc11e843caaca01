//! `LockClaim`: who asks to hold.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Condition, LockMode, MAX_PERMITS, MAX_SAFE, MAX_SECONDS, seconds};

/// How many locks a claim can name.
pub(super) const MAX_LOCKS: usize = 8;

/// What a LockClaim asks for. Which locks, for whom and with which priority can't be changed: make another claim.
#[derive(Debug, Clone, Default, PartialEq, Eq, CustomResource, KubeSchema, Serialize, Deserialize)]
#[kube(
    group = "leasehold.dev",
    version = "v1alpha1",
    kind = "LockClaim",
    namespaced,
    doc = "A request to hold a lock. It waits its turn, holds, and releases when it is deleted or when the pod that \
           it holds for has ended. kubectl wait --for=condition=Held lclaim/NAME blocks until it is held.",
    status = "LockClaimStatus",
    shortname = "lclaim",
    category = "leasehold",
    derive = "PartialEq",
    derive = "Default",
    selectable = ".spec.holderRef.name",
    selectable = ".spec.holderRef.uid",
    selectable = ".status.lockNames",
    printcolumn(
        name = "Held",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Held\")].status",
        description = "Whether it holds"
    ),
    printcolumn(name = "Locks", type_ = "string", json_path = ".status.lockNames", description = "What it asks for"),
    printcolumn(
        name = "Token",
        type_ = "integer",
        json_path = ".status.fencingToken",
        description = "The fencing token of its hold"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Held\")].reason",
        description = "Why it holds or not"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Pod",
        type_ = "string",
        json_path = ".spec.holderRef.name",
        priority = 1,
        description = "The pod that it holds for"
    ),
    printcolumn(
        name = "Priority",
        type_ = "integer",
        json_path = ".spec.priority",
        priority = 1,
        description = "Higher ones are served first"
    ),
    printcolumn(
        name = "Finished",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Finished\")].status",
        priority = 1,
        description = "Whether it has ended"
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.locks == oldSelf.locks")
        .message("locks is immutable: make another claim").field_path(".locks"),
    validation = Rule::new(
        "has(self.holderRef) == has(oldSelf.holderRef) && (!has(self.holderRef) || self.holderRef == oldSelf.holderRef)"
    ).message("holderRef is immutable: make another claim").field_path(".holderRef"),
    validation = Rule::new("self.priority == oldSelf.priority")
        .message("priority is immutable: make another claim").field_path(".priority"),
)]
pub struct LockClaimSpec {
    /// The locks to hold, one to eight: all of them or none. They are taken one after the other in the order of their
    /// names, so that claims never wait for each other, and are told when all are held. Immutable.
    #[schemars(length(min = 1, max = MAX_LOCKS))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub locks: Vec<LockRequest>,
    /// The pod to hold for: the claim holds until that pod has ended, also if the claim is deleted before. Absent: the
    /// claim itself holds, until it is deleted. Immutable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder_ref: Option<HolderRef>,
    /// How many seconds it waits for its turn before it gives up, counted from status.startTime. 0: fails at once where
    /// the lock is not free. Absent: waits for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = MAX_SECONDS))]
    pub wait_timeout_seconds: Option<i32>,
    /// Waiters with a higher priority are served first, those with the same in order of arrival. Immutable. Default: 0.
    #[serde(default)]
    #[schemars(range(min = -1_000_000_000, max = 1_000_000_000))]
    pub priority: i32,
    /// After how many seconds of holding it is released, or the pod that holds is evicted. Absent: no limit but the
    /// lock's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_SECONDS))]
    pub max_hold_seconds: Option<i32>,
    /// How many seconds after it has finished the claim is deleted. 0: at once. Absent: it is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = MAX_SECONDS))]
    pub ttl_seconds_after_finished: Option<i32>,
}

/// One lock to hold, and how much of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!(has(self.permits) && has(self.mode))")
    .message("set permits or mode, not both: a mode doesn't count permits"))]
pub struct LockRequest {
    /// The name of a DistributedLock in the same namespace. It may be created later.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
    /// How many permits to take, up to 10000. Absent, and without a mode: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_PERMITS))]
    pub permits: Option<i32>,
    /// How to hold it, unless by a number of permits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<LockMode>,
}

/// A pod in the same namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HolderRef {
    /// The API group of the kind. Default: the empty one, of pods.
    #[serde(default)]
    #[schemars(length(max = 253), extend("enum" = [""]))]
    pub api_group: String,
    /// The kind of the holder: Pod.
    pub kind: HolderKind,
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its UID. A new pod of the same name has another one and is another holder.
    #[schemars(length(min = 1, max = 64))]
    pub uid: String,
}

/// Who can hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum HolderKind {
    /// A pod.
    #[default]
    Pod,
    /// A value of a newer release.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// What the controller knows of a LockClaim. Written by the controller alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct LockClaimStatus {
    /// The metadata.generation that the controller has acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = MAX_SAFE))]
    pub observed_generation: Option<i64>,
    /// The names of its locks, with commas between them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub lock_names: Option<String>,
    /// The id under which this attempt holds or waits.
    #[serde(rename = "holderID", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub holder_id: Option<String>,
    /// Which attempt to hold this is. One that is lost is followed by the next, which stands where that one stood.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = i32::MAX))]
    pub attempt: Option<i32>,
    /// Of several locks, which are taken in the order of their names: the last one in whose queue the claim has come to
    /// stand. Its places up to there are put back when Redis has lost them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub reached: Option<String>,
    /// The locks that it holds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = MAX_LOCKS))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub locks: Vec<ClaimedLock>,
    /// The fencing token of its hold of the first lock of spec.locks. A resource that refuses lower ones than the highest
    /// it has seen is safe from holders of before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = MAX_SAFE))]
    pub fencing_token: Option<i64>,
    /// When the controller first saw it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<Time>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish_time: Option<Time>,
    /// The node of the pod that it holds for, once that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub node_name: Option<String>,
    /// Held: it holds all its locks. Finished: it has ended and will not hold again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// A lock that a claim holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClaimedLock {
    /// The lock's name.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// The fencing token of this hold.
    #[schemars(range(min = 0, max = MAX_SAFE))]
    pub fencing_token: i64,
    /// When it was granted.
    pub acquire_time: MicroTime,
    /// When its lease ends unless the controller renews it. A pod keeps its hold beyond that until it has ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expire_time: Option<MicroTime>,
}

impl LockRequest {
    /// A request for one permit.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), permits: None, mode: None }
    }
}

impl LockClaimSpec {
    /// A claim for one permit of a lock, that waits for ever.
    pub fn for_lock(name: impl Into<String>) -> Self {
        Self { locks: vec![LockRequest::new(name)], ..Self::default() }
    }
}

impl LockClaim {
    /// How long it waits for its turn; `None` is for ever.
    pub fn wait_timeout(&self) -> Option<Duration> {
        self.spec.wait_timeout_seconds.map(seconds)
    }

    /// How long it may hold, if the claim limits that.
    pub fn max_hold(&self) -> Option<Duration> {
        self.spec.max_hold_seconds.map(seconds)
    }

    /// How long it is kept once finished; `None` is for ever.
    pub fn ttl_after_finished(&self) -> Option<Duration> {
        self.spec.ttl_seconds_after_finished.map(seconds)
    }

    /// What it asks for of a lock.
    pub fn asked(&self, lock: &str) -> Option<&LockRequest> {
        self.spec.locks.iter().find(|asked| asked.name == lock)
    }

    /// What it has been granted of a lock.
    pub fn claimed(&self, lock: &str) -> Option<&ClaimedLock> {
        self.status.as_ref()?.locks.iter().find(|claimed| claimed.name == lock)
    }

    /// The names of its locks as the status shows them.
    pub fn lock_names(&self) -> String {
        let names: Vec<&str> = self.spec.locks.iter().map(|lock| lock.name.as_str()).collect();
        names.join(",")
    }

    /// The field whose value this release doesn't know, if there is one.
    pub fn unsupported_value(&self) -> Option<&'static str> {
        let holder = self.spec.holder_ref.as_ref();
        if self.spec.locks.len() > MAX_LOCKS {
            Some("spec.locks")
        } else if self.spec.locks.iter().any(|lock| lock.mode == Some(LockMode::Unknown)) {
            Some("spec.locks.mode")
        } else if holder.is_some_and(|h| h.kind == HolderKind::Unknown || !h.api_group.is_empty()) {
            Some("spec.holderRef.kind")
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn claim(spec: serde_json::Value) -> LockClaim {
        LockClaim::new("c", serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn a_claim_for_a_lock_waits_for_ever_and_takes_one_permit() {
        let claim = claim(json!({"locks": [{"name": "db-migrate"}]}));
        assert_eq!(claim.spec, LockClaimSpec::for_lock("db-migrate"));
        assert_eq!((claim.wait_timeout(), claim.max_hold(), claim.ttl_after_finished()), (None, None, None));
        assert_eq!(claim.lock_names(), "db-migrate");
    }

    #[test]
    fn no_waiting_is_not_waiting_for_ever() {
        let claim = claim(json!({"locks": [{"name": "a"}], "waitTimeoutSeconds": 0}));
        assert_eq!(claim.wait_timeout(), Some(Duration::ZERO));
    }

    #[test]
    fn values_of_a_newer_release_are_read_and_reported() {
        let nine = ["a", "b", "c", "d", "e", "f", "g", "h", "i"].map(LockRequest::new);
        for (spec, field) in [
            (json!({"locks": [{"name": "a", "mode": "Upgradable"}]}), "spec.locks.mode"),
            (json!({ "locks": nine }), "spec.locks"),
            (
                json!({"locks": [{"name": "a"}], "holderRef": {"kind": "Job", "name": "j", "uid": "u", "apiGroup": "batch"}}),
                "spec.holderRef.kind",
            ),
        ] {
            assert_eq!(claim(spec).unsupported_value(), Some(field));
        }
        assert_eq!(claim(json!({"locks": [{"name": "a", "mode": "Shared"}]})).unsupported_value(), None);
    }
}
