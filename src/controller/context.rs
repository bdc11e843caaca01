//! What the loops share: clients, caches and memory, and how one loop makes another look.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher::Event;
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedSender;

use super::Settings;
use super::budget::Budget;
use super::cache::Cache;
use super::claim::{Arrivals, Latest, Standing};
use super::election::Electorates;
use super::events::Events;
use super::gated::{self, Gated};
use super::lock::Memory;
use super::pods::{Follower, Pods};
use super::renewals::Renewals;
use super::stores::{SharedStores, Whose};
use crate::api::{DistributedLock, LockClaim};
use crate::lease::LockKey;
use crate::metrics::Metrics;

/// The `DistributedLock` of a key.
pub(super) fn lock_ref(key: &LockKey) -> ObjectRef<DistributedLock> {
    ObjectRef::new(key.name()).within(key.namespace())
}

/// What a loop may touch.
pub(super) struct Context {
    pub(super) client: Client,
    pub(super) settings: Settings,
    pub(super) stores: SharedStores,
    pub(super) locks: Cache<DistributedLock>,
    pub(super) claims: Cache<LockClaim>,
    pub(super) pods: Pods,
    pub(super) gated: Arc<Gated>,
    pub(super) electorates: Electorates,
    pub(super) renewals: Arc<Renewals>,
    pub(super) refreshes: Budget,
    pub(super) events: Events,
    pub(super) metrics: Arc<Metrics>,
    pub(super) triggers: Triggers,
    pub(super) memories: Mutex<HashMap<LockKey, Memory>>,
    pub(super) arrivals: Arc<Arrivals>,
    pub(super) latest: Arc<Latest>,
}

impl Context {
    pub(super) fn locks(&self) -> Vec<Arc<DistributedLock>> {
        self.locks.state()
    }

    /// The locks that use a store.
    pub(super) fn locks_of(&self, store: &str) -> impl Iterator<Item = Arc<DistributedLock>> {
        self.locks().into_iter().filter(move |lock| lock.store_name() == store)
    }

    pub(super) fn lock(&self, key: &LockKey) -> Option<Arc<DistributedLock>> {
        self.locks.get(&lock_ref(key))
    }

    pub(super) async fn whose_store(&self, name: &str) -> kube::Result<Whose> {
        self.stores.whose(&self.client, &self.settings.controller_name, name).await
    }

    pub(super) fn with_memory<T>(&self, key: &LockKey, see: impl FnOnce(&mut Memory) -> T) -> T {
        let mut memories = self.memories.lock().unwrap_or_else(PoisonError::into_inner);
        see(memories.entry(key.clone()).or_default())
    }

    pub(super) fn forget_lock(&self, key: &LockKey) {
        let memory = self.memories.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
        self.metrics.holders_unreachable.dec_by(memory.map_or(0, |memory| memory.unreachable));
        self.pods.forget(&Follower::Lock(lock_ref(key)));
        self.forget_election(key);
    }

    /// A lock has elected nobody, or is gone.
    pub(super) fn forget_election(&self, key: &LockKey) {
        if self.electorates.forget(key) {
            self.renewals.forget_elected(key);
            self.pods.forget(&Follower::Lock(lock_ref(key)));
        }
    }

    /// What a look at a claim means for its place in the line of those that have not entered a queue.
    pub(super) fn heed_place(&self, claim: &LockClaim, standing: Standing) {
        if let Some(next) = self.arrivals.heed(claim, standing) {
            self.triggers.claim(next);
        }
    }

    pub(super) fn forget_claim(&self, claim: &ObjectRef<LockClaim>) {
        self.renewals.forget_claim(claim);
        self.pods.forget(&Follower::Claim(claim.clone()));
    }
}

/// Makes a loop look at an object now.
#[derive(Clone)]
pub(super) struct Triggers {
    pub(super) locks: UnboundedSender<ObjectRef<DistributedLock>>,
    pub(super) claims: UnboundedSender<ObjectRef<LockClaim>>,
    pub(super) pods: UnboundedSender<ObjectRef<Pod>>,
    /// Makes the loop of credentials look at all namespaces.
    pub(super) credentials: Arc<Notify>,
}

impl Triggers {
    /// A closed channel means that the controller ends.
    pub(super) fn lock(&self, lock: ObjectRef<DistributedLock>) {
        let _ = self.locks.send(lock);
    }

    pub(super) fn claim(&self, claim: ObjectRef<LockClaim>) {
        let _ = self.claims.send(claim);
    }

    /// What a gated pod waits for or holds has changed.
    pub(super) fn claim_changed(&self, event: &Event<LockClaim>) {
        if let Event::Apply(claim) | Event::InitApply(claim) | Event::Delete(claim) = event
            && let Some(pod) = gated::pod_of(claim)
        {
            let _ = self.pods.send(pod);
        }
    }

    /// Every claim on a lock, since whether it can be asked for has changed.
    pub(super) fn claims_of(&self, ctx: &Context, lock: &LockKey) {
        for claim in ctx.claims.state() {
            let here = claim.metadata.namespace.as_deref() == Some(lock.namespace());
            if here && claim.spec.locks.iter().any(|asked| asked.name == lock.name()) {
                self.claim(ObjectRef::from_obj(&*claim));
            }
        }
    }

    /// The state of a store has changed: all its locks, every claim and all credentials are looked at.
    pub(super) fn all_of_store(&self, ctx: &Context, store: &str) {
        self.credentials.notify_one();
        for lock in ctx.locks_of(store) {
            self.lock(ObjectRef::from_obj(&*lock));
        }
        for claim in ctx.claims.state() {
            self.claim(ObjectRef::from_obj(&*claim));
        }
    }
}
