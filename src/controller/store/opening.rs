//! Opening a gate.
//!
//! # Sequence, on an incarnation that etcd doesn't know
//! 1. a fresh epoch in etcd (compare-and-swap), above every epoch known anywhere;
//! 2. a quorum list of locks and claims;
//! 3. `restore` of each lock that was ever provisioned: its delegated holds with their tokens, its queue, and how long
//!    it grants nothing, since a lease that was lost may still be believed;
//! 4. `open` of exactly the process that was restored.
//!
//! Whoever may write a namespace's keys can make a record that nobody can read. Its lock grants nothing until those keys
//! are gone and it is made again as one that was lost; the others don't wait for that.
//!
//! A crash after 1 wastes an epoch; within 3 leaves some records restored and the gate closed: the next try does
//! all of it again, on the same or another process, and neither restored holds nor not-before times shrink; after
//! 4 everything that keeps us safe is in Redis. `status.incarnation` is written by the caller, after 4.
//!
//! A gate that closed on a known incarnation is a library reload: nothing can be lost, the same epoch is opened.
//! An open gate is opened again, with a fresh epoch, where records are missing.

use std::time::Duration;

use kube::ResourceExt;
use kube::api::ListParams;
use tracing::{info, warn};

use super::super::Context;
use super::super::claim::places;
use super::super::lock::{holds_of, provision, quarantine};
use super::ledger::Ledger;
use super::mirror;
use super::report::RECOVERING;
use super::trouble::Trouble;
use crate::api::condition::{self, reasons, types};
use crate::api::{ConditionStatus, DistributedLock, LockClaim, LockStoreStatus};
use crate::clock::{boottime, since};
use crate::failpoint::{Failpoint, around};
use crate::lease::{Epoch, FencingToken, LockKey};
use crate::store::{Control, Heartbeat, Opening};

/// A gate that was opened.
pub(super) struct Opened {
    pub(super) epoch: Epoch,
    /// What was lost, or may have been, in words for people; `None`: nothing.
    pub(super) lost: Option<String>,
}

/// Who opens.
pub(super) struct Opener<'a> {
    pub(super) ctx: &'a Context,
    pub(super) name: &'a str,
    pub(super) ledger: &'a mut Ledger,
    /// When this incarnation was first seen, on our own clock.
    pub(super) since: Duration,
    /// How long a master that was replaced may have gone on granting after that.
    pub(super) isolated_for: Duration,
    pub(super) control: &'a Control,
}

impl Opener<'_> {
    /// Opens, and says with which epoch.
    pub(super) async fn open(&mut self, heartbeat: &Heartbeat, incarnation: &str) -> Result<Opened, Trouble> {
        let status = self.ledger.api().get_status(self.name).await?.status.unwrap_or_default();
        let known = status.incarnation.as_deref() == Some(incarnation);
        let reload = known && heartbeat.gate.is_none();
        let epoch = match status.epoch.and_then(Epoch::new).filter(|_| reload) {
            Some(epoch) => epoch.max(heartbeat.epoch),
            None => self.take_epoch(heartbeat).await?,
        };
        let Heartbeat { run_id, replid, .. } = heartbeat.clone();
        let opening = Opening { run_id, replid, epoch };
        let restored = match heartbeat.gate {
            None if !known => self.restore(&opening).await?,
            _ => 0,
        };
        around(Failpoint::StoreOpen, self.control.open(&opening)).await??;
        info!(store = self.name, epoch = epoch.get(), incarnation, "the gate is open");
        let again = status.epoch.is_some() && !reload;
        let lost = again.then(|| match heartbeat.gate {
            Some(_) => format!("records are missing in Redis; they are made again in epoch {}", epoch.get()),
            None => format!(
                "Redis started again, was replaced or has set its clock: {} locks were put back, in epoch {}; each grants \
                 nothing until no lease of before can be believed",
                restored,
                epoch.get()
            ),
        });
        Ok(Opened { epoch, lost })
    }

    /// A fresh epoch, in etcd before anything uses it: above every one that etcd's statuses, the mirror, Redis's own key
    /// or an open gate know.
    async fn take_epoch(&mut self, heartbeat: &Heartbeat) -> Result<Epoch, Trouble> {
        let minimum = self.ledger.api().get(self.name).await?.spec.minimum_epoch.unwrap_or(0);
        let now = jiff::Timestamp::now();
        let since_2026 = Epoch::at_least_since_2026(now.as_second());
        let elsewhere = self.told().max(mirror::read(self.ctx, self.name).await?);
        self.ledger
            .update(Failpoint::StoreEpoch, |status: &mut LockStoreStatus| {
                let reason = status.epoch.map_or(reasons::OPENING, |_| reasons::RECOVERING);
                let used = status.epoch.unwrap_or(0).max(heartbeat.epoch.get());
                let used = used.max(heartbeat.gate.map_or(0, Epoch::get)).max(elsewhere);
                status.epoch = Some((used + 1).max(minimum).max(since_2026.get()));
                let (type_, is, why) = (types::RECOVERING, ConditionStatus::True, RECOVERING);
                condition::set(&mut status.conditions, type_, is, reason, why, None, now);
            })
            .await?;
        let epoch = self.ledger.known().epoch.and_then(Epoch::new);
        let epoch = epoch.ok_or_else(|| Trouble::new(reasons::EPOCH_EXHAUSTED, "there is no epoch left below 2^21"))?;
        if let Err(error) = mirror::write(self.ctx, self.name, epoch).await {
            let namespace = &self.ctx.settings.namespace;
            let message = format!("the epoch can't be noted in the controller's namespace {namespace}: {error}");
            return Err(Trouble::new(reasons::EPOCH_NOT_NOTED, message));
        }
        Ok(epoch)
    }

    /// The highest epoch of a token in the status of a lock of this store.
    fn told(&self) -> i64 {
        let locks = self.ctx.locks_of(self.name);
        let tokens = locks.filter_map(|lock| lock.status.as_ref()?.fencing_token).filter_map(FencingToken::new);
        tokens.map(|token| token.epoch().get()).max().unwrap_or(0)
    }

    /// Puts back every lock of this store that was ever provisioned; how many that are.
    async fn restore(&self, opening: &Opening) -> Result<usize, Trouble> {
        let (scope, client) = (&self.ctx.settings.scope, &self.ctx.client);
        let locks = scope.list::<DistributedLock>(client, &ListParams::default()).await?;
        let claims = scope.list::<LockClaim>(client, &ListParams::default()).await?;
        let mut restored = 0;
        for lock in &locks {
            if lock.store_name() != self.name || !lock.is_provisioned() {
                continue;
            }
            let namespace = lock.namespace().unwrap_or_default();
            let Ok(key) = LockKey::new(&namespace, &lock.name_any()) else {
                continue;
            };
            let mut wanted = provision(lock, opening.epoch, self.ctx.stores.token_floor(self.name));
            wanted.quarantine = (quarantine(lock) + self.isolated_for).saturating_sub(since(self.since));
            wanted.holds = holds_of(Some(lock), &claims, &key);
            wanted.waiters = places(self.ctx, &key, claims.iter());
            self.ctx.stores.quarantine(self.name, boottime() + wanted.quarantine);
            match around(Failpoint::StoreRestore, self.control.restore(&key, &wanted, opening)).await {
                Err(error) if error.is_unreadable_record() => {
                    warn!(%key, %error, "not restored: its keys are no record")
                }
                answer => {
                    answer??;
                    restored += 1;
                }
            }
        }
        Ok(restored)
    }
}
