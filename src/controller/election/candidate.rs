//! A pod as an election sees it. Pure.

use std::cmp::Ordering;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::ResourceExt;
use sha2::{Digest, Sha256};

use crate::api::election::{ELECTED_BY, FENCING_TOKEN, LEADER, RELEASED_TOKEN, ROLE_LABEL, STANDBY, TERM};

/// What a pod's label and annotations say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Marks {
    /// The lock that has marked it.
    pub(super) lock: Option<String>,
    /// It carries the leader's label.
    pub(super) leads: bool,
    /// It carries the standby's label.
    pub(super) stands_by: bool,
    /// The reign that has marked it.
    pub(super) term: Option<i64>,
    /// The token it leads with.
    pub(super) token: Option<i64>,
    /// The token it led with last.
    pub(super) released: Option<i64>,
}

/// One pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) created: Option<Timestamp>,
    pub(super) ready: bool,
    /// Being deleted, or over.
    pub(super) leaving: bool,
    /// An app container is seen terminated.
    pub(super) stopped: bool,
    /// Which containers run in it, as a hash.
    pub(super) containers: String,
    pub(super) node: Option<String>,
    /// Its node was asked for, and can't tell whether it runs.
    pub(super) unreachable: bool,
    pub(super) marks: Marks,
}

impl Candidate {
    pub(super) fn of(pod: &Pod) -> Self {
        let status = pod.status.clone().unwrap_or_default();
        let conditions = status.conditions.unwrap_or_default();
        let containers = status.container_statuses.unwrap_or_default();
        let over = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        Self {
            name: pod.name_any(),
            uid: pod.uid().unwrap_or_default(),
            created: pod.creation_timestamp().map(|at| at.0),
            ready: conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True"),
            leaving: over || pod.metadata.deletion_timestamp.is_some(),
            stopped: containers.iter().any(|c| c.state.as_ref().is_some_and(|state| state.terminated.is_some())),
            containers: fingerprint(&containers),
            node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
            unreachable: false,
            marks: marks(pod),
        }
    }

    /// May be chosen.
    pub(super) fn fit(&self) -> bool {
        self.ready && !self.leaving && !self.stopped && !self.unreachable
    }

    /// Whether this reign has marked it as standby, for this lock.
    pub(super) fn stamped(&self, lock: &str, term: i64) -> bool {
        let Marks { lock: by, stands_by, term: of, .. } = &self.marks;
        *stands_by && by.as_deref() == Some(lock) && *of == Some(term)
    }

    /// Who is chosen first: who has led longest ago, then who is older.
    pub(super) fn before(&self, other: &Self) -> Ordering {
        let key = |c: &Self| (c.marks.released, c.created, c.name.clone());
        key(self).cmp(&key(other))
    }
}

fn marks(pod: &Pod) -> Marks {
    let role = pod.labels().get(ROLE_LABEL).map(String::as_str);
    let number = |key: &str| pod.annotations().get(key).and_then(|text| text.parse().ok());
    Marks {
        lock: pod.annotations().get(ELECTED_BY).cloned(),
        leads: role == Some(LEADER),
        stands_by: role == Some(STANDBY),
        term: number(TERM),
        token: number(FENCING_TOKEN),
        released: number(RELEASED_TOKEN),
    }
}

/// The app containers; a native sidecar is an init container and doesn't count.
fn fingerprint(containers: &[ContainerStatus]) -> String {
    let mut ids: Vec<_> = containers.iter().map(|c| (&c.name, c.container_id.as_deref().unwrap_or_default())).collect();
    ids.sort_unstable();
    let mut digest = Sha256::new();
    for (name, id) in ids {
        digest.update(format!("{name}={id}\n"));
    }
    digest.finalize().iter().take(10).map(|byte| format!("{byte:02x}")).collect()
}
