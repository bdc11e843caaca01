//! A lock's record in Redis: made, changed, made again after a loss, and cleaned of what nobody records.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use kube::api::ListParams;
use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt};
use tracing::{info, warn};

use super::super::claim::{Stage, claim_of_id, ended, places, records, remembered, stage, successor};
use super::super::stores::OpenStore;
use super::super::writes::{api_of, replace_status};
use super::super::{Context, Error, election};
use super::SOON;
use super::plan::{provision, quarantine};
use crate::api::condition::{self, reasons, types};
use crate::api::{DistributedLock, LockClaim};
use crate::clock::boottime;
use crate::failpoint::{Failpoint, around};
use crate::lease::{HolderId, LockKey};
use crate::store::{Hold, HoldState, Inspection, Provision, Remembered};

/// Writes to etcd what must stand there before Redis hears of it.
pub(super) async fn remember(ctx: &Context, lock: &DistributedLock, key: &LockKey, longest: i32) -> Result<(), Error> {
    let mut wanted = lock.clone();
    let generation = lock.metadata.generation;
    let status = wanted.status.get_or_insert_default();
    status.longest_lease_seconds = Some(longest);
    let first = !condition::is_true(&status.conditions, types::PROVISIONED);
    if first {
        let message = "it has a record in Redis: one that is missing was lost";
        let (type_, reason) = (types::PROVISIONED, reasons::PROVISIONED);
        condition::set(&mut status.conditions, type_, true, reason, message, generation, Timestamp::now());
    }
    replace_status(Failpoint::LockProvisioned, &api_of(&ctx.client, lock), &wanted).await?;
    ctx.with_memory(key, |memory| memory.first = first);
    Ok(())
}

/// The longest lease is lowered one old lease after the spec was.
pub(super) async fn lower_longest(ctx: &Context, lock: &DistributedLock, key: &LockKey) -> Result<(), Error> {
    let old = lock.longest_lease();
    if old <= lock.lease_duration() {
        ctx.with_memory(key, |memory| memory.lowered = None);
        return Ok(());
    }
    let since = ctx.with_memory(key, |memory| *memory.lowered.get_or_insert_with(Instant::now));
    if since.elapsed() > quarantine(lock) {
        let mut wanted = lock.clone();
        let lease = i32::try_from(lock.lease_duration().as_secs()).unwrap_or(i32::MAX);
        wanted.status.get_or_insert_default().longest_lease_seconds = Some(lease);
        replace_status(Failpoint::LockLowered, &api_of(&ctx.client, lock), &wanted).await?;
    }
    Ok(())
}

pub(super) async fn apply(
    ctx: &Context,
    lock: &DistributedLock,
    key: &LockKey,
    open: &OpenStore,
    wanted: &Provision,
) -> Result<Action, Error> {
    let first = ctx.with_memory(key, |memory| std::mem::take(&mut memory.first));
    match around(Failpoint::LockProvision, open.control.provision(key, wanted)).await? {
        Ok(done) => {
            if done.tampered {
                let note =
                    "its record had a token that was never granted; the next one comes from a new epoch".to_owned();
                ctx.events.warning(lock, reasons::RECORD_TAMPERED, "Provision", note).await;
            }
            info!(%key, fresh = done.fresh, "provisioned");
            ctx.triggers.claims_of(ctx, key);
            Ok(Action::requeue(Duration::from_millis(1)))
        }
        Err(refusal) => {
            info!(%key, %refusal, "not provisioned now");
            ctx.with_memory(key, |memory| memory.first = first);
            Ok(Action::requeue(SOON))
        }
    }
}

/// Makes a lost record again, in an epoch that it can't have granted in: with every delegated hold that etcd
/// remembers, and without a grant until no direct lease of before can be believed.
pub(super) async fn recover(
    ctx: &Context,
    lock: &DistributedLock,
    key: &LockKey,
    open: &OpenStore,
) -> Result<Action, Error> {
    let claims = listed_claims(ctx, lock).await?;
    let mut wanted = provision(lock, open.epoch, ctx.stores.token_floor(lock.store_name()));
    wanted.quarantine = quarantine(lock);
    wanted.holds = holds_of(as_recorded(ctx, lock).await?.as_ref(), &claims, key);
    wanted.waiters = places(ctx, key, claims.iter());
    let note = format!("its record in Redis was lost; {} delegated holds are put back", wanted.holds.len());
    ctx.stores.quarantine(lock.store_name(), boottime() + wanted.quarantine);
    let action = apply(ctx, lock, key, open, &wanted).await?;
    warn!(%key, holds = wanted.holds.len(), "a lost record was made again");
    ctx.events.warning(lock, reasons::RECORD_LOST, "Provision", note).await;
    Ok(action)
}

/// The delegated holds of a lock that etcd remembers: of claims and of those that it has elected.
pub(in crate::controller) fn holds_of(
    lock: Option<&DistributedLock>,
    claims: &[LockClaim],
    key: &LockKey,
) -> Vec<Remembered> {
    let claimed = claims.iter().filter_map(|claim| remembered(claim, key));
    claimed.chain(lock.into_iter().flat_map(election::remembered)).collect()
}

/// The lock as a quorum of etcd has it.
async fn as_recorded(ctx: &Context, lock: &DistributedLock) -> Result<Option<DistributedLock>, Error> {
    let recorded = api_of(&ctx.client, lock).get_opt(&lock.name_any()).await?;
    Ok(recorded.filter(|recorded: &DistributedLock| recorded.uid() == lock.uid()))
}

/// The claims of a lock's namespace, from a quorum of etcd.
pub(super) async fn listed_claims(ctx: &Context, lock: &DistributedLock) -> Result<Vec<LockClaim>, Error> {
    let namespace = lock.namespace().unwrap_or_default();
    let api: Api<LockClaim> = Api::namespaced(ctx.client.clone(), &namespace);
    Ok(api.list(&ListParams::default()).await?.items)
}

/// A message about an offer may have been lost: whoever has one looks again.
pub(super) fn wake_offered(ctx: &Context, record: &Inspection) {
    for hold in record.holds.iter().filter(|hold| hold.state == HoldState::Offer) {
        if let Some(claim) = ctx.renewals.claim_of(&hold.id) {
            ctx.triggers.claim(claim);
        }
    }
}

/// Whether this process keeps it for somebody who is still there.
fn is_known(ctx: &Context, id: &HolderId) -> bool {
    ctx.renewals.kept_for(id).is_some_and(|kept| match kept {
        Some(claim) => ctx.claims.get(&claim).is_some_and(|claim| claim.uid().as_deref() == claim_of_id(id)),
        None => true,
    })
}

/// A delegated hold or waiter that neither a claim nor the election records comes from an old copy of Redis, from a
/// controller that ended before it freed it, or from a claim whose finalizer somebody has taken off. It is freed, but only
/// after a list from a quorum has shown that nobody records it. Where etcd has gone back, a claim may have been told of it:
/// it is kept until a person confirms, or takes just that one by force. An elected pod knows it by its label, which has gone
/// back with the rest.
pub(super) async fn free_orphans(
    ctx: &Context,
    lock: &DistributedLock,
    key: &LockKey,
    open: &OpenStore,
    record: &Inspection,
) -> Result<(), Error> {
    let in_doubt = ctx.stores.in_doubt(lock.store_name());
    let forced = ctx.with_memory(key, |memory| memory.forced.as_ref().map(|(token, _)| *token));
    let may_go = |hold: &Hold| !in_doubt || election::is_choice(lock, &hold.id) || forced == Some(hold.token.get());
    let held = record.holds.iter().filter(|hold| !is_known(ctx, &hold.id));
    let (pinned, others): (Vec<&Hold>, Vec<&Hold>) = held.partition(|hold| hold.state == HoldState::Pinned);
    let pinned = pinned.into_iter().filter(|hold| may_go(hold)).map(|hold| &hold.id);
    // Time takes those, too, but hands on no place.
    let left = ended(ctx, others.into_iter().map(|hold| &hold.id));
    let waiting = record.waiters.iter().filter(|(id, delegated)| *delegated && !is_known(ctx, id)).map(|(id, _)| id);
    let unknown: Vec<&HolderId> = pinned.chain(left).chain(waiting).collect();
    if unknown.is_empty() {
        return Ok(());
    }
    let claims = listed_claims(ctx, lock).await?;
    let recorded = as_recorded(ctx, lock).await?;
    for id in unknown {
        if recorded.as_ref().is_some_and(|recorded| election::records(recorded, id)) {
            continue;
        }
        let claim = claims.iter().find(|claim| claim.uid().as_deref() == claim_of_id(id));
        match claim {
            Some(claim) if records(claim, id) => ctx.triggers.claim(ObjectRef::from_obj(claim)),
            claim => {
                warn!(%key, ?id, "freeing what no claim records");
                ctx.renewals.forget(id);
                let successor = claim.and_then(|claim| successor(claim, id));
                let freed = open.control.free(key, id, successor.as_ref());
                if let Err(refusal) = around(Failpoint::LockFreeOrphan, freed).await? {
                    info!(%key, %refusal, "not freed now");
                }
            }
        }
    }
    Ok(())
}

/// Holds that this process keeps and the record lacks, though it was never lost: etcd has gone back, to when they were
/// held. etcd is the memory: they are put back with their tokens, also where permits are then exceeded. Only what a list
/// from a quorum records, made after the record was read: what is being given back goes from etcd first.
pub(super) async fn put_back_missing(
    ctx: &Context,
    lock: &DistributedLock,
    key: &LockKey,
    open: &OpenStore,
    record: &Inspection,
) -> Result<(), Error> {
    let mut missing = ctx.renewals.missing_of(key);
    missing.retain(|id| record.holds.iter().all(|hold| hold.id != *id));
    if missing.is_empty() {
        return Ok(());
    }
    let mut claims = listed_claims(ctx, lock).await?;
    // A grant that nobody was told of time may have taken and given to another: its claim asks again.
    claims.retain(|claim| stage(claim) == Stage::Told);
    let mut wanted = provision(lock, open.epoch, ctx.stores.token_floor(lock.store_name()));
    wanted.holds = holds_of(as_recorded(ctx, lock).await?.as_ref(), &claims, key);
    wanted.holds.retain(|hold| missing.contains(&hold.id));
    if wanted.holds.is_empty() {
        return Ok(());
    }
    warn!(%key, holds = wanted.holds.len(), "holds that etcd records and Redis lacks are put back");
    if let Err(refusal) = around(Failpoint::LockPutBack, open.control.provision(key, &wanted)).await? {
        info!(%key, %refusal, "not put back now");
    }
    Ok(())
}
