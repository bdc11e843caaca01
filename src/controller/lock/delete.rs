//! A lock that is being deleted: sealed, waited for, its last token kept, then forgotten.
//!
//! # Sequence
//! 1. `seal` in Redis: nothing is granted any more, direct holders learn it at their next renewal;
//! 2. wait until direct leases are over and delegated holders have ended;
//! 3. `LockStore.status.tokenFloor` is raised to the last token;
//! 4. our finalizer goes;
//! 5. `purge` in Redis.
//!
//! Each step is decided again from Redis and etcd, so a crash between two of them repeats the first of them. After
//! 3 a lock of the same name starts above every token of this one, whatever becomes of its record. A crash after 4 leaves
//! a sealed record of some hundred bytes, that the next lock of this name takes over. The other way round it would leave a
//! lock without a record, as after a loss: it would be made again, and its longest lease waited for once more.

use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::runtime::controller::Action;
use kube::{Api, ResourceExt};
use tracing::{info, warn};

use super::direct;
use super::force::{self, Heeded};
use super::record::{free_orphans, listed_claims};
use super::status::Readiness;
use super::{Accepted, SLOW_LOOK, SOON, accept, observe, report, settle};
use crate::api::condition::reasons;
use crate::api::{DistributedLock, FINALIZER, LockStore};
use crate::controller::claim::remembered;
use crate::controller::writes::{api_of, is_conflict, is_not_found, replace_status, set_finalizer};
use crate::controller::{Context, Error, OpenStore, election};
use crate::failpoint::{Failpoint, around};
use crate::lease::LockKey;
use crate::store::{Inspection, Refusal, Sealed};

/// How soon a deletion that waits for holders is looked at again.
const PATIENCE: Duration = Duration::from_secs(2);

pub(super) async fn reconcile(
    ctx: &std::sync::Arc<Context>,
    lock: &DistributedLock,
    key: &LockKey,
) -> Result<Action, Error> {
    if !lock.finalizers().iter().any(|finalizer| finalizer == FINALIZER) {
        ctx.forget_lock(key);
        return Ok(Action::await_change());
    }
    if !lock.is_provisioned() {
        return let_go(ctx, lock, key).await;
    }
    match accept(ctx, lock).await? {
        Accepted::Open(open) => seal(ctx, lock, key, &open).await,
        Accepted::NotOurs => Ok(Action::requeue(SLOW_LOOK)),
        Accepted::No(readiness) => without_store(ctx, lock, key, readiness).await,
    }
}

async fn seal(
    ctx: &std::sync::Arc<Context>,
    lock: &DistributedLock,
    key: &LockKey,
    open: &OpenStore,
) -> Result<Action, Error> {
    let uid = lock.uid().unwrap_or_default();
    let sealed = match around(Failpoint::LockSeal, open.control.seal(key, &uid)).await? {
        Ok(sealed) => sealed,
        Err(Refusal::OtherLock(_)) => return let_go(ctx, lock, key).await,
        // Its record was lost: first it is made again, so that its leases are waited for and its tokens kept.
        Err(Refusal::Unprovisioned) => {
            return match observe(ctx, lock, key, open).await? {
                super::Observed::Record(due, record) => settle(ctx, lock, key, open, due, record).await,
                super::Observed::GateClosed => Ok(Action::requeue(SOON)),
            };
        }
        Err(refusal) => {
            info!(%key, %refusal, "not sealed now");
            return Ok(Action::requeue(SOON));
        }
    };
    // Those that wait for it, and hold other locks meanwhile, give them back.
    ctx.triggers.claims_of(ctx, key);
    if lock.force_release().is_some()
        && let Some(record) = open.control.store().inspect(key).await?
        && force::heed(ctx, lock, key, open, &record).await? == Heeded::Written
    {
        return Ok(Action::await_change());
    }
    let Sealed { last, direct: direct_lease, pinned } = sealed;
    if election::concerns(lock) && !lock.leaders().is_empty() {
        let elected = election::elect(ctx, lock, key, open).await?;
        return Ok(Action::requeue(elected.within.unwrap_or(Duration::from_millis(1))));
    }
    if pinned > 0 {
        let record = open.control.store().inspect(key).await?;
        if let Some(record) = &record {
            free_orphans(ctx, lock, key, open, record).await?;
        }
        return wait_for_claims(ctx, lock, record.as_ref(), usize::try_from(pinned).unwrap_or(usize::MAX)).await;
    }
    if direct_lease > Duration::ZERO {
        let message = format!("it is being deleted; its last lease ends within {} s", direct_lease.as_secs() + 1);
        let record = open.control.store().inspect(key).await?;
        report(ctx, lock, record.as_ref(), &Readiness::not(reasons::DELETING, message)).await?;
        let freed = match &record {
            Some(record) => direct::free_ended(ctx, lock, key, open, record).await?,
            None => false,
        };
        return Ok(Action::requeue(if freed { SOON } else { direct_lease.min(PATIENCE) }));
    }
    raise_token_floor(ctx, lock.store_name(), last).await?;
    let gone = let_go(ctx, lock, key).await?;
    match around(Failpoint::LockPurge, open.control.purge(key, &uid)).await {
        // Another lock of this name has it already.
        Ok(Ok(()) | Err(Refusal::OtherLock(_))) => {}
        Ok(Err(refusal)) => info!(%key, %refusal, "its sealed record stays until a lock of this name takes it over"),
        Err(error) => info!(%key, %error, "its sealed record may stay until a lock of this name takes it over"),
    }
    Ok(gone)
}

/// The store can't be asked. Where the namespace goes, or the store itself, Redis is not waited for: the record stays in
/// it, if it still exists, and the next lock of this name goes on above its last token. Who runs is waited for, as etcd
/// has them.
async fn without_store(
    ctx: &Context,
    lock: &DistributedLock,
    key: &LockKey,
    readiness: Readiness,
) -> Result<Action, Error> {
    if goes_all_together(ctx, lock).await? {
        let claims = listed_claims(ctx, lock).await?;
        let holding = claims.iter().filter(|claim| remembered(claim, key).is_some()).count();
        if holding > 0 {
            return wait_for_claims(ctx, lock, None, holding).await;
        }
        warn!(%key, reason = readiness.reason, "deleted without its store");
        let known = lock.status.as_ref().and_then(|status| status.fencing_token).unwrap_or(0);
        raise_token_floor(ctx, lock.store_name(), known).await?;
        return let_go(ctx, lock, key).await;
    }
    let message = format!("it is being deleted, but {}", readiness.message);
    report(ctx, lock, None, &Readiness::not(readiness.reason, message)).await?;
    Ok(Action::requeue(PATIENCE))
}

/// Whether the namespace of a lock is being deleted, or its store is, or is gone.
async fn goes_all_together(ctx: &Context, lock: &DistributedLock) -> Result<bool, Error> {
    let namespaces: Api<Namespace> = Api::all(ctx.client.clone());
    let namespace = namespaces.get_opt(&lock.namespace().unwrap_or_default()).await?;
    if namespace.is_none_or(|namespace| namespace.metadata.deletion_timestamp.is_some()) {
        return Ok(true);
    }
    let stores: Api<LockStore> = Api::all(ctx.client.clone());
    let store = stores.get_opt(lock.store_name()).await?;
    Ok(store.is_none_or(|store| store.metadata.deletion_timestamp.is_some()))
}

async fn wait_for_claims(
    ctx: &Context,
    lock: &DistributedLock,
    record: Option<&Inspection>,
    holding: usize,
) -> Result<Action, Error> {
    let message = format!("it is being deleted and waits for {holding} claims that hold it");
    report(ctx, lock, record, &Readiness::not(reasons::DELETING, message)).await?;
    Ok(Action::requeue(PATIENCE))
}

/// Keeps the last token of a lock that goes, in etcd and in this process.
async fn raise_token_floor(ctx: &Context, name: &str, last: i64) -> Result<(), Error> {
    let api: Api<LockStore> = Api::all(ctx.client.clone());
    loop {
        let Some(mut store) = api.get_opt(name).await? else {
            return Ok(());
        };
        let status = store.status.get_or_insert_default();
        if status.token_floor >= Some(last) || last == 0 {
            break;
        }
        status.token_floor = Some(last);
        match replace_status(Failpoint::StoreTokenFloor, &api, &store).await {
            Ok(_) => break,
            Err(error) if is_conflict(&error) => {}
            Err(error) => return Err(error.into()),
        }
    }
    ctx.stores.raise_token_floor(name, last);
    Ok(())
}

async fn let_go(ctx: &Context, lock: &DistributedLock, key: &LockKey) -> Result<Action, Error> {
    match set_finalizer(Failpoint::LockLetGo, &api_of(&ctx.client, lock), lock, false).await {
        Ok(_) => {}
        Err(error) if is_not_found(&error) => {}
        Err(error) => return Err(error.into()),
    }
    ctx.forget_lock(key);
    ctx.triggers.claims_of(ctx, key);
    Ok(Action::await_change())
}
