//! Where holders contend: what all of them need.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use kube::Api;
use kube::core::NamespaceResourceScope;
use leasehold::lease::LockKey;
use leasehold::store::{Endpoint, Store};
use tokio::sync::watch;

use super::counter::Counters;
use super::watches::{Seen, Watches};
use crate::support::history::{Event, Micros, Recorder};
use crate::support::{PodActor, TestNamespace};

/// A mutex.
pub(super) const MUTEX: &str = "mutex";
/// A semaphore.
pub(super) const SEMAPHORE: &str = "semaphore";
/// Another mutex, that claims of several locks take first.
pub(super) const ANOTHER: &str = "another";
/// A lock that is elected.
pub(super) const ELECTED: &str = "elected";
/// Those that every run has.
pub(super) const LOCKS: [&str; 4] = [MUTEX, SEMAPHORE, ANOTHER, ELECTED];

/// Shared by all holders of one run.
pub(super) struct Arena {
    pub(super) test: TestNamespace,
    pub(super) recorder: Recorder,
    pub(super) endpoint: Endpoint,
    pub(super) seen: Seen,
    /// All locks of the run.
    pub(super) locks: Vec<&'static str>,
    /// The claims that somebody stands behind, by who that is.
    claims: Mutex<HashMap<String, String>>,
    counters: HashMap<&'static str, Counters>,
    stop: watch::Sender<bool>,
}

impl Arena {
    pub(super) fn new(test: TestNamespace, endpoint: Endpoint, recorder: Recorder, watches: &Watches) -> Self {
        let locks = watches.locks.clone();
        // Tokens order exclusive holds only: a semaphore protects no counter.
        let exclusive = locks.iter().filter(|lock| **lock != SEMAPHORE);
        let counters = exclusive.map(|lock| (*lock, Counters::of(lock, &recorder))).collect();
        let (seen, stop) = (watches.seen(), watch::channel(false).0);
        Self { test, recorder, endpoint, seen, locks, claims: Mutex::default(), counters, stop }
    }

    pub(super) fn key(&self, lock: &str) -> LockKey {
        LockKey::new(self.test.name(), lock).expect("a name")
    }

    /// A connection of one's own.
    pub(super) fn store(&self) -> Store {
        Store::connect(&self.endpoint, self.test.name()).expect("a store")
    }

    pub(super) fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        self.test.api()
    }

    pub(super) fn pods(&self) -> PodActor {
        PodActor::new(self.test.client(), self.test.name())
    }

    pub(super) fn counters(&self, lock: &str) -> Option<&Counters> {
        self.counters.get(lock)
    }

    pub(super) fn note(&self, event: Event) -> Micros {
        self.recorder.note(event)
    }

    /// From now on a claimant stands behind this claim, and no other.
    pub(super) fn stand_behind(&self, claimant: &str, claim: &str) {
        let mut claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        claims.insert(claimant.to_owned(), claim.to_owned());
    }

    /// Whether somebody does.
    pub(super) fn is_wanted(&self, claim: &str) -> bool {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner).values().any(|wanted| wanted == claim)
    }

    /// Asks all holders to end.
    pub(super) fn stop(&self) {
        self.stop.send_replace(true);
    }

    pub(super) fn is_over(&self) -> bool {
        *self.stop.borrow()
    }

    /// Waits until the holders are asked to end.
    pub(super) async fn over(&self) {
        self.stop.subscribe().wait_for(|over| *over).await.ok();
    }
}
