//! Renewing delegated holds: batched, one call for many, without a write to the API server.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use kube::runtime::reflector::ObjectRef;
use tracing::{debug, warn};

use super::stores::{SharedStores, StoreState};
use super::{Metrics, Triggers, lock_ref};
use crate::api::LockClaim;
use crate::failpoint::{Failpoint, around};
use crate::lease::{HolderId, LockKey, Renewed};

/// Holds renewed by one call.
const BATCH: usize = 100;
/// How often what is due is looked for.
const TICK: Duration = Duration::from_millis(100);

/// A hold or a place in a queue that the controller keeps for a claim or for a pod that it has elected.
#[derive(Clone)]
pub(super) struct Kept {
    /// The claim; `None`: a pod that the lock has elected.
    pub(super) claim: Option<ObjectRef<LockClaim>>,
    /// Its lock.
    pub(super) lock: LockKey,
    /// The store of the lock.
    pub(super) store: String,
    /// The lease; renewed every third of it. `None`: it waits, nothing is renewed.
    pub(super) lease: Option<Duration>,
}

struct Entry {
    kept: Kept,
    due: Instant,
    /// Redis had no such hold when it was last renewed.
    missing: bool,
}

/// Everything that is kept, by holder id.
#[derive(Default)]
pub(super) struct Renewals(Mutex<HashMap<HolderId, Entry>>);

impl Renewals {
    fn entries(&self) -> std::sync::MutexGuard<'_, HashMap<HolderId, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a hold or a place; again with another lease changes it.
    pub(super) fn keep(&self, id: HolderId, kept: Kept) {
        let mut entries = self.entries();
        match entries.get_mut(&id) {
            Some(entry) if entry.kept.lease == kept.lease => entry.kept = kept,
            _ => {
                let due = Instant::now() + kept.lease.unwrap_or_default() / 3;
                entries.insert(id, Entry { kept, due, missing: false });
            }
        }
    }

    /// Keeps nothing for this id any more.
    pub(super) fn forget(&self, id: &HolderId) {
        self.entries().remove(id);
    }

    /// Forgets whatever a claim that is gone has had.
    pub(super) fn forget_claim(&self, claim: &ObjectRef<LockClaim>) {
        self.entries().retain(|_, entry| entry.kept.claim.as_ref() != Some(claim));
    }

    /// Forgets the pods that a lock had elected.
    pub(super) fn forget_elected(&self, lock: &LockKey) {
        self.entries().retain(|_, entry| entry.kept.claim.is_some() || entry.kept.lock != *lock);
    }

    /// Whose this id is.
    pub(super) fn claim_of(&self, id: &HolderId) -> Option<ObjectRef<LockClaim>> {
        self.kept_for(id).flatten()
    }

    /// For whom a hold or a place is kept under this id; within, `None` is a pod that was elected.
    pub(super) fn kept_for(&self, id: &HolderId) -> Option<Option<ObjectRef<LockClaim>>> {
        self.entries().get(id).map(|entry| entry.kept.claim.clone())
    }

    /// The holds of one lock, for a renewal right before its expiry is published.
    pub(super) fn holds_of(&self, lock: &LockKey) -> Vec<(LockKey, HolderId)> {
        let entries = self.entries();
        let held = entries.iter().filter(|(_, e)| e.kept.lock == *lock && e.kept.lease.is_some());
        held.map(|(id, e)| (e.kept.lock.clone(), id.clone())).collect()
    }

    /// The holds of one lock that Redis doesn't have.
    pub(super) fn missing_of(&self, lock: &LockKey) -> Vec<HolderId> {
        let entries = self.entries();
        let missing = entries.iter().filter(|(_, entry)| entry.missing && entry.kept.lock == *lock);
        missing.map(|(id, _)| id.clone()).collect()
    }

    fn set_missing(&self, id: &HolderId, missing: bool) {
        if let Some(entry) = self.entries().get_mut(id) {
            entry.missing = missing;
        }
    }

    /// What is due now, by store; the next turn of each is set.
    fn take_due(&self, now: Instant) -> HashMap<String, Vec<(LockKey, HolderId)>> {
        let mut due: HashMap<String, Vec<_>> = HashMap::new();
        for (id, entry) in self.entries().iter_mut() {
            if let Some(lease) = entry.kept.lease.filter(|_| entry.due <= now) {
                entry.due = now + lease / 3;
                due.entry(entry.kept.store.clone()).or_default().push((entry.kept.lock.clone(), id.clone()));
            }
        }
        due
    }
}

/// Renews until the process ends.
pub(super) async fn run(renewals: &Renewals, stores: &SharedStores, triggers: &Triggers, metrics: &Metrics) {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        for (store, holds) in renewals.take_due(Instant::now()) {
            let Some(StoreState::Ready(open)) = stores.state(&store) else {
                continue;
            };
            for batch in holds.chunks(BATCH) {
                match around(Failpoint::HoldsRenew, open.control.store().renew(batch)).await {
                    Ok(answers) => heed(renewals, batch, &answers, triggers, metrics),
                    Err(error) => {
                        metrics.renewals.failed.inc_by(batch.len() as u64);
                        debug!(store, %error, "delegated holds were not renewed; they stay held");
                    }
                }
            }
        }
    }
}

/// A hold that the record lacks is a matter for the lock's loop: it puts it back.
fn heed(
    renewals: &Renewals,
    batch: &[(LockKey, HolderId)],
    answers: &[Renewed],
    triggers: &Triggers,
    metrics: &Metrics,
) {
    for ((lock, id), answer) in batch.iter().zip(answers) {
        renewals.set_missing(id, matches!(answer, Renewed::Lost | Renewed::NotHeld));
        match answer {
            Renewed::Held(_) => {
                metrics.renewals.renewed.inc();
            }
            Renewed::Lost | Renewed::NotHeld | Renewed::Unprovisioned => {
                metrics.renewals.missing.inc();
                warn!(%lock, ?id, ?answer, "a delegated hold is missing in Redis; it will be put back");
                triggers.lock(lock_ref(lock));
            }
        }
    }
}
