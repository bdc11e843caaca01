//! The pods of each election, watched by its selector.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::reflector;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tokio::task::AbortHandle;
use tracing::debug;

use super::super::{Triggers, lock_ref, watch_backoff};
use crate::api::LabelSelector;
use crate::lease::LockKey;

struct Watched {
    selector: LabelSelector,
    pods: reflector::Store<Pod>,
    listed: Arc<AtomicBool>,
    task: AbortHandle,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The watches, one for each lock that elects.
pub(in crate::controller) struct Electorates {
    client: Client,
    triggers: Triggers,
    watched: Mutex<HashMap<LockKey, Watched>>,
}

impl Electorates {
    /// Nothing is watched yet.
    pub(in crate::controller) fn new(client: Client, triggers: Triggers) -> Self {
        Self { client, triggers, watched: Mutex::default() }
    }

    /// The pods among which a lock elects; `None` until they are listed. Their changes trigger the lock.
    pub(super) fn of(&self, lock: &LockKey, selector: &LabelSelector) -> Option<Vec<Arc<Pod>>> {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        // A watch never ends by itself; one that has died is begun again.
        watched.retain(|key, entry| key != lock || (entry.selector == *selector && !entry.task.is_finished()));
        let entry = watched.entry(lock.clone()).or_insert_with(|| self.begin(lock, selector));
        entry.listed.load(Ordering::Acquire).then(|| entry.pods.state())
    }

    /// The lock elects no more. Whether it did.
    pub(in crate::controller) fn forget(&self, lock: &LockKey) -> bool {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner).remove(lock).is_some()
    }

    fn begin(&self, lock: &LockKey, selector: &LabelSelector) -> Watched {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), lock.namespace());
        let config = watcher::Config::default().labels_from(&selector.query());
        let (pods, writer) = reflector::store();
        let listed = Arc::new(AtomicBool::new(false));
        let (triggers, seen) = (self.triggers.clone(), listed.clone());
        let me = lock_ref(lock);
        let task = tokio::spawn(async move {
            let events = watcher(api, config).backoff(watch_backoff()).reflect(writer);
            let mut events = std::pin::pin!(events);
            while let Some(event) = events.next().await {
                match event {
                    Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => {}
                    Ok(event) => {
                        if matches!(event, watcher::Event::InitDone) {
                            seen.store(true, Ordering::Release);
                        }
                        triggers.lock(me.clone());
                    }
                    Err(error) => debug!(%error, lock = %me, "the watch of an election was interrupted"),
                }
            }
        });
        Watched { selector: selector.clone(), pods, listed, task: task.abort_handle() }
    }
}
