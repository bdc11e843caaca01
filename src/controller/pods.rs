//! The pods that hold: each watched by itself, while somebody follows it, with its node while it holds. Those that wait
//! for locks by their label are thousands, and are watched together.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use k8s_openapi::api::core::v1::Pod;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher::Event;
use kube::{Api, Client, ResourceExt};
use tokio::task::AbortHandle;

use super::cache::Cache;
use super::fate::{self, Absence, Fate};
use super::nodes::{Nodes, Reach, WatchedNode};
use super::scope::is_seen_to_go;
use super::watched::{self, Seen};
use super::{Triggers, lock_ref};
use crate::api::{DistributedLock, HolderRef, LockClaim};
use crate::lease::LockKey;

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
    /// It was seen to go, as `last` has it.
    seen_to_go: bool,
}

impl Sighting {
    fn fate(&self, reach: Reach) -> Fate {
        let absence = self.absent_since.map(|since| Absence { lasts: since.elapsed(), was_seen: self.seen_to_go });
        fate::judge(self.last.as_deref(), absence, reach)
    }

    fn is_there(&mut self, pod: Pod) {
        (self.last, self.absent_since, self.seen_to_go) = (Some(Arc::new(pod)), None, false);
    }

    fn has_gone(&mut self, pod: Pod) {
        (self.last, self.seen_to_go) = (Some(Arc::new(pod)), true);
    }

    fn is_absent(&mut self) {
        self.absent_since.get_or_insert_with(Instant::now);
    }
}

/// Who wants to know what becomes of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Follower {
    /// The claim that names it.
    Claim(ObjectRef<LockClaim>),
    /// The lock that has elected it.
    Lock(ObjectRef<DistributedLock>),
}

/// A pod that holds, and where.
struct Holding {
    lock: LockKey,
    /// The name of its node, once it has one.
    node: Option<String>,
    watched: Option<Arc<WatchedNode>>,
    /// Where no node is watched, what that means.
    unwatched: Reach,
}

impl Holding {
    fn reach(&self) -> Reach {
        self.watched.as_ref().map_or(self.unwatched, |node| node.reach())
    }

    fn is_on(&self, node: &str) -> bool {
        self.node.as_deref() == Some(node)
    }
}

struct Watched {
    sighting: Sighting,
    followers: Vec<Follower>,
    /// Its own watch; `None`: the one of all labelled pods tells of it.
    task: Option<AbortHandle>,
    /// What it holds and where, while it does.
    holding: Option<Holding>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// What is known of a pod that holds.
#[derive(Debug, Clone)]
pub(super) struct Holder {
    pub(super) fate: Fate,
    /// Its node, once it has one.
    pub(super) node: Option<String>,
    /// Whether what runs on that can be known.
    pub(super) reach: Reach,
}

/// The watched pods. A watch ends with its last follower.
#[derive(Clone)]
pub(super) struct Pods {
    client: Client,
    triggers: Triggers,
    /// `None`: they may not be read.
    nodes: Option<Arc<Nodes>>,
    /// Those with the label `leasehold.dev/lock`, which are watched together.
    labelled: Cache<Pod>,
    watched: Arc<Mutex<HashMap<Key, Watched>>>,
}

impl Pods {
    /// Nothing is watched yet.
    pub(super) fn new(client: Client, reads_nodes: bool, triggers: Triggers, labelled: Cache<Pod>) -> Self {
        let nodes = reads_nodes.then(|| Arc::new(Nodes::new(client.clone())));
        Self { nodes, client, triggers, labelled, watched: Arc::default() }
    }

    /// What became of a pod; from now on its changes trigger the follower. Absence is believed only from a quorum,
    /// with the UID.
    ///
    /// # Errors
    /// What the API server or the connection says.
    pub(super) async fn fate(&self, namespace: &str, holder: &HolderRef, follower: Follower) -> kube::Result<Fate> {
        let seen = self.look(namespace, holder, follower).await?;
        Ok(seen.fate(Reach::Unknown))
    }

    /// What became of a pod that holds this lock, and of its node; from now on the changes of either trigger the follower,
    /// and those of the node the lock, too. A pod that is gone was on `node`, if nothing else is known.
    ///
    /// # Errors
    /// What the API server or the connection says.
    pub(super) async fn holder(
        &self,
        lock: &LockKey,
        holder: &HolderRef,
        node: Option<&str>,
        follower: Follower,
    ) -> kube::Result<Holder> {
        let seen = self.look(lock.namespace(), holder, follower).await?;
        let bound = seen.last.as_ref().map(|pod| pod.spec.as_ref().and_then(|spec| spec.node_name.clone()));
        let node = bound.flatten().or_else(|| node.map(str::to_owned));
        let unwatched = match (&seen.last, seen.absent_since, &node) {
            (_, Some(_), Some(_)) => Reach::Unreachable("may not be read by this controller"),
            (_, Some(_), None) => Reach::Unreachable("is not known"),
            (Some(_), None, Some(_)) => Reach::Unread,
            (Some(_), None, None) => Reach::Unbound,
            (None, None, _) => Reach::Unknown,
        };
        let reach = self.hold_on(lock, holder, node.as_deref(), unwatched);
        Ok(Holder { fate: seen.fate(reach), node, reach })
    }

    /// Where a pod that holds runs, and whether what runs there can be known; `None`: nobody has looked yet.
    pub(super) fn reach(&self, namespace: &str, name: &str, uid: &str) -> Option<(Option<String>, Reach)> {
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = watched.get(&(namespace.to_owned(), name.to_owned(), uid.to_owned()))?;
        let holding = entry.holding.as_ref()?;
        Some((holding.node.clone(), holding.reach()))
    }

    /// Asks a quorum about a node that no holder is on.
    ///
    /// # Errors
    /// What the API server or the connection says.
    pub(super) async fn ask_node(&self, name: &str) -> kube::Result<Reach> {
        match &self.nodes {
            Some(nodes) => nodes.ask(name).await,
            None => Ok(Reach::Unread),
        }
    }

    /// The pod as it is now. One that seems to be gone is asked for.
    async fn look(&self, namespace: &str, holder: &HolderRef, follower: Follower) -> kube::Result<Sighting> {
        // Before that each would get a watch of its own. An error: the process ends.
        let _ = self.labelled.is_filled().await;
        let mut seen = self.sighting(namespace, holder, follower);
        if seen.listed && seen.absent_since.is_some() {
            let pods: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
            let there = pods.get_opt(&holder.name).await?.filter(|pod| pod.uid().as_ref() == Some(&holder.uid));
            if let Some(pod) = there {
                seen.is_there(pod);
            }
        }
        Ok(seen)
    }

    /// From now on the node of a pod that holds is followed, if it has one.
    fn hold_on(&self, lock: &LockKey, holder: &HolderRef, node: Option<&str>, unwatched: Reach) -> Reach {
        let watched_node = node.zip(self.nodes.as_ref()).map(|(node, nodes)| {
            let (pods, name) = (self.clone(), node.to_owned());
            nodes.follow(node, move || pods.node_changed(&name))
        });
        let holding = Holding { lock: lock.clone(), node: node.map(str::to_owned), watched: watched_node, unwatched };
        let key = (lock.namespace().to_owned(), holder.name.clone(), holder.uid.clone());
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody follows it any more.
        let Some(entry) = watched.get_mut(&key) else { return holding.reach() };
        // Read under the lock: a change from here on finds the holder, and triggers.
        let reach = holding.reach();
        let before = entry.holding.replace(holding).map(|holding| holding.reach());
        if before != Some(reach) {
            self.triggers.lock(lock_ref(lock));
        }
        reach
    }

    fn node_changed(&self, node: &str) {
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        for entry in watched.values() {
            let Some(holding) = entry.holding.as_ref().filter(|holding| holding.is_on(node)) else { continue };
            self.triggers.lock(lock_ref(&holding.lock));
            self.tell(&entry.followers);
        }
    }

    fn tell(&self, followers: &[Follower]) {
        for follower in followers {
            match follower {
                Follower::Claim(claim) => self.triggers.claim(claim.clone()),
                Follower::Lock(lock) => self.triggers.lock(lock.clone()),
            }
        }
    }

    fn sighting(&self, namespace: &str, holder: &HolderRef, follower: Follower) -> Sighting {
        let key = (namespace.to_owned(), holder.name.clone(), holder.uid.clone());
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = watched.entry(key.clone()).or_insert_with(|| self.begin(&key));
        // A watch never ends by itself; one that has died is begun again.
        if entry.task.as_ref().is_some_and(AbortHandle::is_finished) {
            entry.task = Some(self.watch_alone(&key));
        }
        if !entry.followers.contains(&follower) {
            entry.followers.push(follower);
        }
        entry.sighting.clone()
    }

    fn begin(&self, key: &Key) -> Watched {
        let last = self.labelled_pod(key);
        let task = last.is_none().then(|| self.watch_alone(key));
        let sighting = Sighting { listed: last.is_some(), last, ..Sighting::default() };
        Watched { sighting, followers: Vec::new(), task, holding: None }
    }

    /// The pod, if it is among those that are watched together.
    fn labelled_pod(&self, key: &Key) -> Option<Arc<Pod>> {
        let pod = self.labelled.get(&ObjectRef::new(&key.1).within(&key.0));
        pod.filter(|pod| pod.metadata.uid.as_ref() == Some(&key.2))
    }

    fn watch_alone(&self, key: &Key) -> AbortHandle {
        tokio::spawn(self.clone().watch(key.clone())).abort_handle()
    }

    /// What the watch of all labelled pods tells. One that goes from it is gone, or has lost its label: it is watched
    /// alone from then on, which shows which of the two.
    pub(super) fn labelled_changed(&self, event: &Event<Pod>) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Apply(pod) | Event::InitApply(pod) | Event::Delete(pod) => {
                let key = (pod.namespace().unwrap_or_default(), pod.name_any(), pod.uid().unwrap_or_default());
                let Some(entry) = watched.get_mut(&key).filter(|entry| entry.task.is_none()) else { return };
                match event {
                    Event::Delete(_) => {
                        if is_seen_to_go(pod) {
                            entry.sighting.has_gone(pod.clone());
                        }
                        entry.task = Some(self.watch_alone(&key));
                    }
                    _ => entry.sighting.is_there(pod.clone()),
                }
                self.tell(&entry.followers);
            }
            Event::InitDone => {
                for (key, entry) in watched.iter_mut().filter(|(_, entry)| entry.task.is_none()) {
                    if self.labelled_pod(key).is_none() {
                        entry.task = Some(self.watch_alone(key));
                    }
                }
            }
            Event::Init => {}
        }
    }

    /// The follower wants no pod any more.
    pub(super) fn forget(&self, follower: &Follower) {
        self.retain(|other| other != follower);
    }

    /// Only these follow pods any more.
    pub(super) fn retain(&self, keep: impl Fn(&Follower) -> bool) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.retain(|_, entry| {
            entry.followers.retain(&keep);
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

    async fn watch(self, key: Key) {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.0);
        watched::follow(api, &key.1, |pod| self.see(&key, pod)).await;
    }

    fn see(&self, key: &Key, seen: Seen<Pod>) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Watched { sighting, followers, .. }) = watched.get_mut(key) else {
            return;
        };
        sighting.listed = true;
        let is_it = |pod: &Pod| pod.metadata.uid.as_ref() == Some(&key.2);
        match seen {
            Seen::There(pod) if is_it(&pod) => sighting.is_there(pod),
            Seen::Deleted(pod) if is_it(&pod) => {
                sighting.has_gone(pod);
                sighting.is_absent();
            }
            _ => sighting.is_absent(),
        }
        self.tell(followers);
    }
}
