//! The pods that hold: each watched by itself, while somebody follows it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use tokio::task::AbortHandle;

use super::fate::{self, Fate};
use super::{Triggers, watch_backoff};
use crate::api::{DistributedLock, HolderRef, LockClaim};

/// Namespace, name and UID: a pod of the same name with another UID is another pod.
type Key = (String, String, String);

/// What was seen of one pod.
#[derive(Clone, Default)]
struct Sighting {
    /// The list has been read at least once.
    listed: bool,
    /// The pod as it was last seen; kept when it is gone.
    last: Option<Arc<Pod>>,
    /// Since when there is no such pod, on our own clock.
    absent_since: Option<Instant>,
}

/// Who wants to know what becomes of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Follower {
    /// The claim that names it.
    Claim(ObjectRef<LockClaim>),
    /// The lock that has elected it.
    Lock(ObjectRef<DistributedLock>),
}

struct Watched {
    sighting: Sighting,
    followers: Vec<Follower>,
    task: AbortHandle,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The watched pods. A watch ends with its last follower.
#[derive(Clone)]
pub(super) struct Pods {
    client: Client,
    triggers: Triggers,
    watched: Arc<Mutex<HashMap<Key, Watched>>>,
}

impl Pods {
    /// Nothing is watched yet.
    pub(super) fn new(client: Client, triggers: Triggers) -> Self {
        Self { client, triggers, watched: Arc::default() }
    }

    /// What became of a pod; from now on its changes trigger the follower. Absence is believed only from a quorum,
    /// with the UID.
    ///
    /// # Errors
    /// What the API server or the connection says.
    pub(super) async fn fate(&self, namespace: &str, holder: &HolderRef, follower: Follower) -> kube::Result<Fate> {
        let seen = self.sighting(namespace, holder, follower);
        let absent_for = seen.absent_since.map(|since| since.elapsed());
        if seen.listed && absent_for.is_some() {
            let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
            let there = pods.get_opt(&holder.name).await?.filter(|pod| pod.uid().as_ref() == Some(&holder.uid));
            if let Some(pod) = there {
                return Ok(fate::judge(Some(&pod), None));
            }
        }
        Ok(fate::judge(seen.last.as_deref(), absent_for))
    }

    /// Whether a node is there and Ready.
    ///
    /// # Errors
    /// What the API server or the connection says.
    pub(super) async fn node_ready(&self, node: Option<String>) -> kube::Result<bool> {
        let Some(name) = node else { return Ok(false) };
        let nodes: Api<Node> = Api::all(self.client.clone());
        let conditions = nodes.get_opt(&name).await?.and_then(|node| node.status).and_then(|status| status.conditions);
        let ready = |condition: &NodeCondition| condition.type_ == "Ready" && condition.status == "True";
        Ok(conditions.unwrap_or_default().iter().any(ready))
    }

    fn sighting(&self, namespace: &str, holder: &HolderRef, follower: Follower) -> Sighting {
        let key = (namespace.to_owned(), holder.name.clone(), holder.uid.clone());
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = watched.entry(key.clone()).or_insert_with(|| Watched {
            sighting: Sighting::default(),
            followers: Vec::new(),
            task: tokio::spawn(self.clone().watch(key.clone())).abort_handle(),
        });
        // A watch never ends by itself; one that has died is begun again.
        if entry.task.is_finished() {
            entry.task = tokio::spawn(self.clone().watch(key)).abort_handle();
        }
        if !entry.followers.contains(&follower) {
            entry.followers.push(follower);
        }
        entry.sighting.clone()
    }

    /// The follower wants no pod any more.
    pub(super) fn forget(&self, follower: &Follower) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.retain(|_, entry| {
            entry.followers.retain(|other| other != follower);
            !entry.followers.is_empty()
        });
    }

    /// The follower no longer wants this pod.
    pub(super) fn forget_one(&self, namespace: &str, holder: &HolderRef, follower: &Follower) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.retain(|(of, name, uid), entry| {
            if (of.as_str(), name, uid) == (namespace, &holder.name, &holder.uid) {
                entry.followers.retain(|other| other != follower);
            }
            !entry.followers.is_empty()
        });
    }

    /// Follows one name until aborted. The watcher itself lists again and backs off after errors; should it
    /// ever end, it is started again.
    async fn watch(self, key: Key) {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.0);
        let config = watcher::Config::default().fields(&format!("metadata.name={}", key.1));
        loop {
            let mut events = watcher(api.clone(), config.clone()).backoff(watch_backoff()).boxed();
            let mut listed = None;
            while let Some(event) = events.next().await {
                match event {
                    Ok(watcher::Event::Init) => listed = None,
                    Ok(watcher::Event::InitApply(pod)) => listed = Some(pod),
                    Ok(watcher::Event::InitDone) => self.see(&key, listed.take()),
                    Ok(watcher::Event::Apply(pod)) => self.see(&key, Some(pod)),
                    Ok(watcher::Event::Delete(pod)) => {
                        self.see(&key, Some(pod));
                        self.see(&key, None);
                    }
                    Err(error) => {
                        tracing::debug!(%error, pod = key.1, "the watch of a pod was interrupted")
                    }
                }
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    fn see(&self, key: &Key, pod: Option<Pod>) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = watched.get_mut(key) else {
            return;
        };
        entry.sighting.listed = true;
        match pod.filter(|pod| pod.metadata.uid.as_ref() == Some(&key.2)) {
            Some(pod) => {
                entry.sighting.last = Some(Arc::new(pod));
                entry.sighting.absent_since = None;
            }
            None => {
                entry.sighting.absent_since.get_or_insert_with(Instant::now);
            }
        }
        for follower in &entry.followers {
            match follower {
                Follower::Claim(claim) => self.triggers.claim(claim.clone()),
                Follower::Lock(lock) => self.triggers.lock(lock.clone()),
            }
        }
    }
}
