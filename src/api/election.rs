//! Election: the controller chooses who of the pods holds a lock, and marks them for Services and for themselves.

use std::time::Duration;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{LabelSelector, MAX_SAFE, MAX_SECONDS, seconds};

/// The label of elected pods: [`LEADER`] or [`STANDBY`], so that a Service can select the leader.
pub const ROLE_LABEL: &str = "leasehold.dev/role";
/// The role of a pod that holds the lock.
pub const LEADER: &str = "leader";
/// The role of a pod that would.
pub const STANDBY: &str = "standby";
/// The lock that has marked the pod.
pub const ELECTED_BY: &str = "leasehold.dev/elected-by";
/// The reign of the controller that has marked a standby.
pub const TERM: &str = "leasehold.dev/term";
/// The fencing token of a leader, written in the same patch as its role.
pub const FENCING_TOKEN: &str = "leasehold.dev/fencing-token";
/// The fencing token of the leadership that the pod had last.
pub const RELEASED_TOKEN: &str = "leasehold.dev/released-token";

/// Which pods are elected, and when another one is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ElectionSpec {
    /// The pods of the lock's namespace among which is elected. Must not be empty.
    pub selector: LabelSelector,
    /// Seconds after which a leader that is not Ready hands over, if another pod is Ready. Default: 30.
    #[serde(default = "default_failover")]
    #[schemars(range(min = 0, max = MAX_SECONDS))]
    pub failover_after_seconds: i32,
}

fn default_failover() -> i32 {
    30
}

impl ElectionSpec {
    /// How long a leader may be not Ready.
    pub fn failover_after(&self) -> Duration {
        seconds(self.failover_after_seconds)
    }
}

/// What the controller remembers of an election. A leader stands here before its pod is marked, and until after it is
/// unmarked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct ElectionStatus {
    /// How often a leader has been chosen.
    #[serde(default)]
    #[schemars(range(min = 0, max = MAX_SAFE))]
    pub attempts: i64,
    /// The leaders, and those whose lead is being taken back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["podUID".into()]))]
    pub leaders: Vec<ElectedLeader>,
}

/// A pod that leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ElectedLeader {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub pod_name: String,
    /// Its UID.
    #[serde(rename = "podUID")]
    #[schemars(length(min = 1, max = 64))]
    pub pod_uid: String,
    /// Its node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub node_name: Option<String>,
    /// The number of the choice.
    #[schemars(range(min = 0, max = MAX_SAFE))]
    pub attempt: i64,
    /// Its fencing token.
    #[schemars(range(min = 0, max = MAX_SAFE))]
    pub fencing_token: i64,
    /// Which containers it had when it was chosen, as a hash: with others it is another leader.
    #[schemars(length(max = 64))]
    pub containers: String,
    /// Its pod is unmarked; Redis may still hold for it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub releasing: bool,
}
