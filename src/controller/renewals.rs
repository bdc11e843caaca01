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

/// What is kept under one id: one entry a lock.
type Entries = HashMap<HolderId, Vec<Entry>>;

/// Everything that is kept, by holder id.
#[derive(Default)]
pub(super) struct Renewals(Mutex<Entries>);

impl Renewals {
    fn entries(&self) -> std::sync::MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a hold or a place; again with another lease changes it.
    pub(super) fn keep(&self, id: HolderId, kept: Kept) {
        let (mut entries, due) = (self.entries(), Instant::now() + kept.lease.unwrap_or_default() / 3);
        let of_id = entries.entry(id).or_default();
        match of_id.iter_mut().find(|entry| entry.kept.lock == kept.lock) {
            Some(entry) if entry.kept.lease == kept.lease => entry.kept = kept,
            Some(entry) => *entry = Entry { kept, due, missing: false },
            None => of_id.push(Entry { kept, due, missing: false }),
        }
    }

    /// Keeps nothing for this id any more.
    pub(super) fn forget(&self, id: &HolderId) {
        self.entries().remove(id);
    }

    /// Keeps nothing for this id and this lock any more.
    pub(super) fn forget_one(&self, id: &HolderId, lock: &LockKey) {
        let mut entries = self.entries();
        if let Some(of_id) = entries.get_mut(id) {
            of_id.retain(|entry| entry.kept.lock != *lock);
            if of_id.is_empty() {
                entries.remove(id);
            }
        }
    }

    /// Forgets whatever a claim that is gone has had.
    pub(super) fn forget_claim(&self, claim: &ObjectRef<LockClaim>) {
        self.retain(|kept| kept.claim.as_ref() != Some(claim));
    }

    /// Forgets whatever others than these claims have had.
    pub(super) fn retain_claims(&self, is_there: impl Fn(&ObjectRef<LockClaim>) -> bool) {
        self.retain(|kept| kept.claim.as_ref().is_none_or(&is_there));
    }

    fn retain(&self, keep: impl Fn(&Kept) -> bool) {
        self.entries().retain(|_, of_id| {
            of_id.retain(|entry| keep(&entry.kept));
            !of_id.is_empty()
        });
    }

    /// Forgets the pods that a lock had elected.
    pub(super) fn forget_elected(&self, lock: &LockKey) {
        self.retain(|kept| kept.claim.is_some() || kept.lock != *lock);
    }

    /// Whose this id is.
    pub(super) fn claim_of(&self, id: &HolderId) -> Option<ObjectRef<LockClaim>> {
        self.kept_for(id).flatten()
    }

    /// For whom a hold or a place is kept under this id; within, `None` is a pod that was elected.
    pub(super) fn kept_for(&self, id: &HolderId) -> Option<Option<ObjectRef<LockClaim>>> {
        self.entries().get(id)?.first().map(|entry| entry.kept.claim.clone())
    }

    /// Whether a hold or a place is kept under this id for a lock.
    pub(super) fn keeps(&self, id: &HolderId, lock: &LockKey) -> bool {
        self.entries().get(id).is_some_and(|of_id| of_id.iter().any(|entry| entry.kept.lock == *lock))
    }

    /// The holds of one lock, for a renewal right before its expiry is published.
    pub(super) fn holds_of(&self, lock: &LockKey) -> Vec<(LockKey, HolderId)> {
        let entries = self.entries();
        let held = each(&entries).filter(|(_, e)| e.kept.lock == *lock && e.kept.lease.is_some());
        held.map(|(id, e)| (e.kept.lock.clone(), id.clone())).collect()
    }

    /// The holds of one lock that Redis doesn't have.
    pub(super) fn missing_of(&self, lock: &LockKey) -> Vec<HolderId> {
        let entries = self.entries();
        let missing = each(&entries).filter(|(_, entry)| entry.missing && entry.kept.lock == *lock);
        missing.map(|(id, _)| id.clone()).collect()
    }

    fn set_missing(&self, id: &HolderId, lock: &LockKey, missing: bool) {
        let mut entries = self.entries();
        if let Some(entry) = entries.get_mut(id).and_then(|of_id| of_id.iter_mut().find(|e| e.kept.lock == *lock)) {
            entry.missing = missing;
        }
    }

    /// What is due now, by store; the next turn of each is set.
    fn take_due(&self, now: Instant) -> HashMap<String, Vec<(LockKey, HolderId)>> {
        let mut due: HashMap<String, Vec<_>> = HashMap::new();
        let mut entries = self.entries();
        let all = entries.iter_mut().flat_map(|(id, of_id)| of_id.iter_mut().map(move |entry| (id, entry)));
        for (id, entry) in all {
            if let Some(lease) = entry.kept.lease.filter(|_| entry.due <= now) {
                entry.due = now + lease / 3;
                due.entry(entry.kept.store.clone()).or_default().push((entry.kept.lock.clone(), id.clone()));
            }
        }
        due
    }
}

fn each(entries: &Entries) -> impl Iterator<Item = (&HolderId, &Entry)> {
    entries.iter().flat_map(|(id, of_id)| of_id.iter().map(move |entry| (id, entry)))
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

/// A hold that the record lacks is a matter for the lock's loop, that puts it back, and for its claim's: where nobody was
/// told of it yet, that asks again.
fn heed(
    renewals: &Renewals,
    batch: &[(LockKey, HolderId)],
    answers: &[Renewed],
    triggers: &Triggers,
    metrics: &Metrics,
) {
    for ((lock, id), answer) in batch.iter().zip(answers) {
        renewals.set_missing(id, lock, matches!(answer, Renewed::Lost | Renewed::NotHeld));
        match answer {
            Renewed::Held(_) => {
                metrics.renewals.renewed.inc();
            }
            Renewed::Lost | Renewed::NotHeld | Renewed::Unprovisioned => {
                metrics.renewals.missing.inc();
                warn!(%lock, ?id, ?answer, "a delegated hold is missing in Redis; it will be put back");
                triggers.lock(lock_ref(lock));
                if let Some(claim) = renewals.claim_of(id) {
                    triggers.claim(claim);
                }
            }
        }
    }
}
