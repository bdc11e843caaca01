//! `DistributedLock`: what can be held.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::condition::{self, types};
use super::{Condition, DEFAULT_STORE, ElectionSpec, ElectionStatus, MAX_PERMITS, MAX_SAFE, MAX_SECONDS, seconds};

/// What a DistributedLock should be. May be left out: a mutex with a lease of 15 seconds.
#[derive(Debug, Clone, PartialEq, Eq, CustomResource, KubeSchema, Serialize, Deserialize)]
#[kube(
    group = "leasehold.dev",
    version = "v1alpha1",
    kind = "DistributedLock",
    namespaced,
    doc = "A lock that pods, Jobs and processes hold through a lease in Redis: a mutex, or with several permits a \
           semaphore. Its status tells who holds it, until when, and with which fencing token.",
    status = "DistributedLockStatus",
    shortname = "dlock",
    category = "leasehold",
    derive = "PartialEq",
    derive = "Default",
    validation = Rule::new("size(self.metadata.name) <= 63").message("a lock's name has at most 63 characters"),
    selectable = ".status.holder",
    selectable = ".spec.storeName",
    printcolumn(name = "Held", type_ = "string", json_path = ".status.conditions[?(@.type==\"Held\")].status",
        description = "Whether somebody holds it"),
    printcolumn(name = "Holder", type_ = "string", json_path = ".status.holder", description = "The first holder"),
    printcolumn(name = "Token", type_ = "integer", json_path = ".status.fencingToken",
        description = "The highest fencing token granted"),
    printcolumn(name = "Expires", type_ = "string", json_path = ".status.expireTime",
        description = "When it is free if its holders stop renewing; moves on while it is held"),
    printcolumn(name = "Waiters", type_ = "integer", json_path = ".status.waiters",
        description = "How many wait for it"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Permits", type_ = "integer", json_path = ".spec.permits", priority = 1,
        description = "How many can hold it at once"),
    printcolumn(name = "Store", type_ = "string", json_path = ".spec.storeName", priority = 1,
        description = "The LockStore that keeps its leases"),
    printcolumn(name = "Transitions", type_ = "integer", json_path = ".status.transitions", priority = 1,
        description = "How often it has been granted"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason",
        priority = 1, description = "Why it is Ready or not")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(
    "has(self.storeName) == has(oldSelf.storeName) && (!has(self.storeName) || self.storeName == oldSelf.storeName)"
).message("storeName is immutable: delete the lock and create it again").field_path(".storeName"))]
#[x_kube(validation = Rule::new("!has(self.election) || self.permits <= 20")
    .message("with an election there are at most 20 permits, one for each leader").field_path(".permits"))]
pub struct DistributedLockSpec {
    /// Seconds after its last renewal until a holder that is gone loses the lock: 1 to 3600. A change takes effect at
    /// each holder's next renewal. Default: 15.
    #[serde(default = "default_lease_seconds")]
    #[schemars(range(min = 1, max = 3600))]
    pub lease_duration_seconds: i32,
    /// How many can hold it at once: 1 is a mutex, more make it a semaphore, up to 10000. When it is lowered, nobody
    /// loses a hold; nothing more is granted until it fits. Default: 1.
    #[serde(default = "default_permits")]
    #[schemars(range(min = 1, max = MAX_PERMITS))]
    pub permits: i32,
    /// The LockStore that keeps its leases. Immutable. Default: default.
    #[serde(default = "default_store")]
    #[schemars(length(min = 1, max = 253))]
    pub store_name: String,
    /// The controller elects among these pods, as many leaders as there are permits, and nobody else can hold the lock.
    /// It sets the label leasehold.dev/role on each of them to leader or standby, so that a Service can select the leader,
    /// and the annotation leasehold.dev/fencing-token on the leader.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub election: Option<ElectionSpec>,
    /// What becomes of a hold of a pod whose node can't be reached, so that nobody knows whether the pod still runs.
    /// Keep: it stays held until the node is back, the pod is known to have ended, or is terminating on a node that is
    /// tainted node.kubernetes.io/out-of-service. Release: it is freed at once, and two may believe to hold it. Default: Keep.
    #[serde(default)]
    pub node_unreachable_policy: NodeUnreachablePolicy,
    /// The longest time in seconds that one hold may last, renewed or not. A claim of several locks holds this one while it
    /// waits for those of later names. Absent: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_SECONDS))]
    pub max_hold_seconds: Option<i32>,
}

/// What becomes of a pod's hold when its node can't be reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum NodeUnreachablePolicy {
    /// It stays held.
    #[default]
    Keep,
    /// It is freed.
    Release,
    /// A value of a newer release. Acted on as [`NodeUnreachablePolicy::Keep`].
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// Shared: beside any number of other shared holders, which together take one permit. Exclusive: beside nobody,
/// whatever the number of permits. Absent: by a number of permits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LockMode {
    /// Beside any number of other shared holders.
    Shared,
    /// Beside nobody.
    Exclusive,
    /// A value of a newer release.
    #[serde(other)]
    #[schemars(skip)]
    Unknown,
}

/// What the controller knows of a DistributedLock. Written by the controller alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DistributedLockStatus {
    /// The metadata.generation that the controller has acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = MAX_SAFE))]
    pub observed_generation: Option<i64>,
    /// Who holds it, such as pod/report-7c9d-x2k8z. With several holders, the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 320))]
    pub holder: Option<String>,
    /// Who holds it; of many, the first 20.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["id".into()]))]
    pub holders: Vec<LockHolder>,
    /// How many hold it.
    #[serde(default)]
    #[schemars(range(min = 0, max = i32::MAX))]
    pub holder_count: i32,
    /// How many permits they hold together.
    #[serde(default)]
    #[schemars(range(min = 0, max = i32::MAX))]
    pub permits_held: i32,
    /// The highest fencing token granted. It rises with every grant and never falls: a resource that refuses lower
    /// ones than the highest it has seen is safe from a holder that has lost the lock and doesn't know it yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = MAX_SAFE))]
    pub fencing_token: Option<i64>,
    /// When the lock is free if its holders stop renewing. Moves on while it is held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expire_time: Option<Time>,
    /// How many wait for it.
    #[serde(default)]
    #[schemars(range(min = 0, max = i32::MAX))]
    pub waiters: i32,
    /// How often it has been granted.
    #[serde(default)]
    #[schemars(range(min = 0, max = MAX_SAFE))]
    pub transitions: i64,
    /// The longest lease in seconds that a holder may still believe in. After Redis has lost its data nothing is
    /// granted for so long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3600))]
    pub longest_lease_seconds: Option<i32>,
    /// What the controller remembers of the election, if the lock has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub election: Option<ElectionStatus>,
    /// Ready: accepted, and its store is reachable; a free lock is Ready. Held: somebody holds it. Provisioned: it has
    /// a record in Redis. HolderUnreachable: a pod that holds it is on a node that can't be asked whether it still runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// One hold of a lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LockHolder {
    /// Tells this hold from all others. Not the secret with which it is renewed.
    #[schemars(length(min = 1, max = 128))]
    pub id: String,
    /// Who holds, such as pod/report-7c9d-x2k8z.
    #[schemars(length(max = 320))]
    pub identity: String,
    /// The UID of the pod that holds, if a pod does.
    #[serde(rename = "podUID", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub pod_uid: Option<String>,
    /// How many permits it takes. Absent where a mode says it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = MAX_PERMITS))]
    pub permits: Option<i32>,
    /// How it is held, unless by a number of permits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<LockMode>,
    /// The fencing token of this hold.
    #[schemars(range(min = 0, max = MAX_SAFE))]
    pub fencing_token: i64,
    /// When it was granted.
    pub acquire_time: MicroTime,
    /// When it was last renewed, as far as the controller knows.
    pub renew_time: MicroTime,
    /// When it ends unless it is renewed.
    pub expire_time: MicroTime,
}

impl Default for DistributedLockSpec {
    fn default() -> Self {
        Self {
            lease_duration_seconds: default_lease_seconds(),
            permits: default_permits(),
            store_name: default_store(),
            election: None,
            node_unreachable_policy: NodeUnreachablePolicy::Keep,
            max_hold_seconds: None,
        }
    }
}

fn default_lease_seconds() -> i32 {
    15
}

fn default_permits() -> i32 {
    1
}

fn default_store() -> String {
    DEFAULT_STORE.to_owned()
}

impl DistributedLock {
    /// How long a lease lasts from its last renewal.
    pub fn lease_duration(&self) -> Duration {
        seconds(self.spec.lease_duration_seconds)
    }

    /// How many permits there are.
    pub fn permits(&self) -> u32 {
        self.spec.permits.max(0).unsigned_abs()
    }

    /// The leaders that etcd remembers, those included whose lead is being taken back.
    pub fn leaders(&self) -> &[super::ElectedLeader] {
        self.status.as_ref().and_then(|status| status.election.as_ref()).map_or(&[], |election| &election.leaders)
    }

    /// The name of its `LockStore`.
    pub fn store_name(&self) -> &str {
        &self.spec.store_name
    }

    /// Whether it has ever had a record in Redis, as etcd remembers it.
    pub fn is_provisioned(&self) -> bool {
        self.status.as_ref().is_some_and(|status| condition::is_true(&status.conditions, types::PROVISIONED))
    }

    /// How long one hold may last, if that is limited.
    pub fn max_hold(&self) -> Option<Duration> {
        self.spec.max_hold_seconds.map(seconds)
    }

    /// The longest lease that may still be believed anywhere: as etcd remembers it, and at least the present one.
    pub fn longest_lease(&self) -> Duration {
        let remembered = self.status.as_ref().and_then(|status| status.longest_lease_seconds);
        self.lease_duration().max(remembered.map_or(Duration::ZERO, seconds))
    }

    /// The field whose value this release doesn't know, if there is one.
    pub fn unsupported_value(&self) -> Option<&'static str> {
        let policy = self.spec.node_unreachable_policy == NodeUnreachablePolicy::Unknown;
        let selector = self.spec.election.as_ref().is_some_and(|election| election.selector.has_unknown());
        let selector = selector.then_some("spec.election.selector");
        policy.then_some("spec.nodeUnreachablePolicy").or(selector)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_empty_spec_is_a_mutex_of_fifteen_seconds() {
        let lock = DistributedLock::new("a", serde_json::from_value(json!({})).unwrap());
        assert_eq!(lock.spec, DistributedLockSpec::default());
        assert_eq!((lock.permits(), lock.lease_duration()), (1, Duration::from_secs(15)));
        assert_eq!((lock.store_name(), lock.max_hold()), ("default", None));
        assert_eq!(lock.unsupported_value(), None);
    }

    #[test]
    fn a_longer_lease_of_the_past_is_remembered() {
        let mut lock = DistributedLock::default();
        assert_eq!(lock.longest_lease(), Duration::from_secs(15));
        lock.status = Some(DistributedLockStatus { longest_lease_seconds: Some(60), ..Default::default() });
        assert_eq!(lock.longest_lease(), Duration::from_secs(60));
        lock.spec.lease_duration_seconds = 90;
        assert_eq!(lock.longest_lease(), Duration::from_secs(90));
    }

    #[test]
    fn values_of_a_newer_release_are_read_and_reported() {
        let spec = serde_json::from_value(json!({"nodeUnreachablePolicy": "AskSomebody", "quorum": {}})).unwrap();
        let lock = DistributedLock::new("a", spec);
        assert_eq!(lock.unsupported_value(), Some("spec.nodeUnreachablePolicy"));
    }

    #[test]
    fn a_status_with_conditions_alone_is_read() {
        let status: DistributedLockStatus = serde_json::from_value(json!({"conditions": []})).unwrap();
        assert_eq!(status, DistributedLockStatus::default());
    }
}
