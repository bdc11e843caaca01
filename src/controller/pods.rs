//! The pods that claims name: each watched by itself, while a claim needs it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tokio::task::AbortHandle;

use super::{Triggers, watch_backoff};
use crate::api::{HolderRef, LockClaim};

/// Namespace, name and UID: a pod of the same name with another UID is another pod.
type Key = (String, String, String);

/// What was seen of one pod.
#[derive(Clone, Default)]
pub(super) struct Sighting {
    /// The list has been read at least once.
    pub(super) listed: bool,
    /// The pod as it was last seen; kept when it is gone.
    pub(super) last: Option<Arc<Pod>>,
    /// Since when there is no such pod, on our own clock.
    pub(super) absent_since: Option<Instant>,
}

struct Watched {
    sighting: Sighting,
    claims: Vec<ObjectRef<LockClaim>>,
    task: AbortHandle,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The watched pods. A watch ends with the last claim that wants it.
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

    /// What is known of a pod, for this claim; from now on its changes trigger the claim.
    pub(super) fn sighting(&self, namespace: &str, holder: &HolderRef, claim: ObjectRef<LockClaim>) -> Sighting {
        let key = (namespace.to_owned(), holder.name.clone(), holder.uid.clone());
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = watched.entry(key.clone()).or_insert_with(|| Watched {
            sighting: Sighting::default(),
            claims: Vec::new(),
            task: tokio::spawn(self.clone().watch(key.clone())).abort_handle(),
        });
        // A watch never ends by itself; one that has died is begun again.
        if entry.task.is_finished() {
            entry.task = tokio::spawn(self.clone().watch(key)).abort_handle();
        }
        if !entry.claims.contains(&claim) {
            entry.claims.push(claim);
        }
        entry.sighting.clone()
    }

    /// The claim has ended and wants no pod any more.
    pub(super) fn forget(&self, claim: &ObjectRef<LockClaim>) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.retain(|_, entry| {
            entry.claims.retain(|other| other != claim);
            !entry.claims.is_empty()
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
        for claim in &entry.claims {
            self.triggers.claim(claim.clone());
        }
    }
}
