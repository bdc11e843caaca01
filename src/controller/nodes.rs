//! The nodes of pods that hold: whether what runs on them can be known. Each is watched by itself, while a pod on it
//! holds; when nobody holds, nothing is watched.
//!
//! Needs the verbs `get`, `list` and `watch` on nodes. Where the controller doesn't have them, no node is watched.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use k8s_openapi::api::core::v1::{Node, NodeCondition};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::watched::{self, Seen};

/// The taint by which people declare that a node is off.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";

/// Whether what runs on a node can be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Reach {
    /// Not looked at yet.
    #[default]
    Unknown,
    /// The pod has no node yet: nothing of it runs.
    Unbound,
    /// This controller may not read nodes; the pod is there, and what the API server says of it is all that is known.
    Unread,
    /// Ready: its kubelet tells what runs.
    Ready,
    /// Nobody can tell what runs; the text says why.
    Unreachable(&'static str),
    /// Not Ready, and somebody has declared by the taint `node.kubernetes.io/out-of-service` that it is off.
    ///
    /// Kubernetes asks for that taint only from who has made sure that the node is shut down, and acts on it under the
    /// same two conditions: its pod garbage collector then deletes the *terminating* pods of the node by force, and their
    /// volumes are attached elsewhere. So it is evidence that those have ended, and that those which are gone have. A pod
    /// that tolerates the taint isn't terminating, and Kubernetes lets it be; so do we.
    OutOfService,
}

impl Reach {
    /// Judges a node as it was last seen; `None`: there is none of this name.
    pub(super) fn of(node: Option<&Node>) -> Self {
        let Some(node) = node else { return Reach::Unreachable("is gone") };
        let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let is_ready = |condition: &&NodeCondition| condition.type_ == "Ready";
        let why = match conditions.iter().find(is_ready).map(|condition| condition.status.as_str()) {
            Some("True") => return Reach::Ready,
            Some("False") => "is not Ready",
            Some(_) => "does not report",
            None => "has never reported",
        };
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
        match taints.iter().any(|taint| taint.key == OUT_OF_SERVICE) {
            true => Reach::OutOfService,
            false => Reach::Unreachable(why),
        }
    }

    /// Why nobody can tell what runs there, if that is so.
    pub(super) fn unreachable(self) -> Option<&'static str> {
        match self {
            Reach::Unknown | Reach::Unbound | Reach::Unread | Reach::Ready => None,
            Reach::Unreachable(why) => Some(why),
            Reach::OutOfService => Some("is out of service"),
        }
    }
}

/// A node that is watched until the last owner drops it.
pub(super) struct WatchedNode {
    reach: watch::Receiver<Reach>,
    task: AbortHandle,
}

impl WatchedNode {
    pub(super) fn reach(&self) -> Reach {
        *self.reach.borrow()
    }
}

impl Drop for WatchedNode {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The nodes that somebody follows.
pub(super) struct Nodes {
    client: Client,
    watched: Mutex<HashMap<String, Weak<WatchedNode>>>,
}

impl Nodes {
    /// Nothing is watched yet.
    pub(super) fn new(client: Client) -> Self {
        Self { client, watched: Mutex::default() }
    }

    /// Follows a node, together with all who do. `changed` is called whenever its reach has changed, for all of them.
    pub(super) fn follow(&self, name: &str, changed: impl Fn() + Send + Sync + 'static) -> Arc<WatchedNode> {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        // A watch never ends by itself; one that has died is begun again.
        let alive = watched.get(name).and_then(Weak::upgrade).filter(|node| !node.task.is_finished());
        alive.unwrap_or_else(|| {
            watched.retain(|_, node| node.strong_count() > 0);
            let node = Arc::new(self.begin(name, changed));
            watched.insert(name.to_owned(), Arc::downgrade(&node));
            node
        })
    }

    fn begin(&self, name: &str, changed: impl Fn() + Send + Sync + 'static) -> WatchedNode {
        let (seen, reach) = watch::channel(Reach::default());
        let (api, name) = (Api::<Node>::all(self.client.clone()), name.to_owned());
        let task = tokio::spawn(async move {
            let see = |node: Seen<Node>| {
                let now = match node {
                    Seen::There(node) => Reach::of(Some(&node)),
                    Seen::Deleted(_) | Seen::Absent => Reach::of(None),
                };
                if seen.send_if_modified(|reach| std::mem::replace(reach, now) != now) {
                    changed();
                }
            };
            watched::follow(api, &name, see).await;
        });
        WatchedNode { reach, task: task.abort_handle() }
    }

    /// Asks a quorum about a node that nobody follows.
    ///
    /// # Errors
    /// What the API server or the connection says.
    pub(super) async fn ask(&self, name: &str) -> kube::Result<Reach> {
        Ok(Reach::of(Api::<Node>::all(self.client.clone()).get_opt(name).await?.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(ready: Option<&str>, taint: Option<&str>) -> Node {
        let conditions: Vec<_> = ready.iter().map(|status| json!({"type": "Ready", "status": status})).collect();
        let taints: Vec<_> = taint.iter().map(|key| json!({"key": key, "effect": "NoExecute"})).collect();
        serde_json::from_value(json!({"spec": {"taints": taints}, "status": {"conditions": conditions}})).unwrap()
    }

    #[test]
    fn a_node_that_is_not_ready_or_not_there_is_unreachable() {
        assert_eq!(Reach::of(Some(&node(Some("True"), None))), Reach::Ready);
        for unreachable in
            [Some(node(Some("False"), None)), Some(node(Some("Unknown"), None)), Some(node(None, None)), None]
        {
            assert!(matches!(Reach::of(unreachable.as_ref()), Reach::Unreachable(_)), "{unreachable:?}");
        }
    }

    #[test]
    fn the_taint_counts_only_on_a_node_that_is_not_ready() {
        assert_eq!(Reach::of(Some(&node(Some("Unknown"), Some(OUT_OF_SERVICE)))), Reach::OutOfService);
        assert_eq!(Reach::of(Some(&node(Some("True"), Some(OUT_OF_SERVICE)))), Reach::Ready);
        let other = node(Some("Unknown"), Some("node.kubernetes.io/unreachable"));
        assert!(matches!(Reach::of(Some(&other)), Reach::Unreachable(_)));
    }
}
