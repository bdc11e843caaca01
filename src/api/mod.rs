//! The three kinds as users write and read them: where ([`LockStore`]), what ([`DistributedLock`]) and who
//! ([`LockClaim`]).
//!
//! Doc comments of fields are what `kubectl explain` shows. An enum's `Unknown` stands for a value of a newer
//! release: it is read, never offered by the CRD, and answered with `UnsupportedValue`.

#![allow(unreachable_pub, reason = "KubeSchema repeats each struct inside a function")]
#![allow(clippy::duplicated_attributes, reason = "each printer column of a kind has a type and a path")]

mod claim;
pub mod condition;
pub mod direct;
pub mod election;
pub mod force_release;
pub mod gated;
mod lock;
mod schema;
mod selector;
mod store;
pub mod time;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

pub use claim::{ClaimedLock, HolderKind, HolderRef, LockClaim, LockClaimSpec, LockClaimStatus, LockRequest};
pub use condition::{Condition, ConditionStatus};
pub use election::{ElectedLeader, ElectionSpec, ElectionStatus};
pub use lock::{
    DistributedLock, DistributedLockSpec, DistributedLockStatus, LockHolder, LockMode, NodeUnreachablePolicy,
};
pub use selector::{LabelSelector, LabelSelectorOperator, LabelSelectorRequirement};
pub use store::{
    AllowedNamespaces, AuthSpec, LockStore, LockStoreSpec, LockStoreStatus, NamespacesFrom, SecretRef, Standalone,
    TlsSpec,
};

use condition::types;
use schema::Shape;

/// The API group of all kinds.
pub const GROUP: &str = "leasehold.dev";
/// The version of all kinds.
pub const VERSION: &str = "v1alpha1";
/// Held by what must be cleaned up in Redis before it may go.
pub const FINALIZER: &str = "leasehold.dev/finalizer";
/// A label of each claim is this followed by the name of its lock, so that the claims of a lock can be listed.
pub const LOCK_LABEL: &str = "lock.leasehold.dev/";
/// An annotation on a `LockStore` with the transition time of its condition `EtcdRestored`: nothing runs any more that
/// was granted a lock since the copy of etcd that was put back.
pub const CONFIRM_ETCD_RESTORE: &str = "leasehold.dev/confirm-etcd-restore";
/// The store of a lock that names none.
pub const DEFAULT_STORE: &str = "default";
/// The controller of a store that names none.
pub const CONTROLLER_NAME: &str = "leasehold.dev/controller";

/// Integers of the API stay exact in every client, also where numbers are doubles: at most 2^53 - 1.
const MAX_SAFE: i64 = (1 << 53) - 1;
/// The longest time that can be asked for: 365 days.
pub(crate) const MAX_SECONDS: i32 = 31_536_000;

/// The most permits of one lock.
const MAX_PERMITS: i32 = 10_000;

/// The definitions of all kinds, as they are installed: without `nullable`, with every condition `Unknown` until
/// a controller has looked.
pub fn crds() -> Vec<CustomResourceDefinition> {
    let store = Shape { optional_spec: false, conditions: &[types::READY, types::RECOVERING] };
    let lock = Shape {
        optional_spec: true,
        conditions: &[types::READY, types::HELD, types::PROVISIONED, types::HOLDER_UNREACHABLE],
    };
    let claim = Shape { optional_spec: false, conditions: &[types::HELD, types::FINISHED] };
    vec![store.finish(LockStore::crd()), lock.finish(DistributedLock::crd()), claim.finish(LockClaim::crd())]
}

/// The `Lease` by which the replicas of a controller of this name elect the one that works, in their own namespace.
pub fn lease_name(controller_name: &str) -> String {
    controller_name.replace('/', "-")
}

/// Whole seconds of a field that its schema keeps at zero or more.
fn seconds(value: i32) -> std::time::Duration {
    std::time::Duration::from_secs(u64::from(value.max(0).unsigned_abs()))
}
