//! The loop of `DistributedLock`: observe, plan, apply, report.

mod delete;
mod direct;
mod force;
mod plan;
mod record;
mod report;
mod status;
mod unreachable;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Namespace;
use kube::runtime::controller::Action;
use kube::{Api, ResourceExt};
use tracing::info;

use super::stores::{OpenStore, StoreState, Whose};
use super::writes::{api_of, set_finalizer};
use super::{Context, Error, SOON, election};
use crate::api::condition::reasons;
use crate::api::{DistributedLock, FINALIZER, HolderRef, LockStore};
use crate::clock::boottime;
use crate::failpoint::{Failpoint, around};
use crate::lease::{Epoch, LockKey};
use crate::store::{Due, Inspection};
use force::Heeded;
use plan::Step;
use record::{apply, free_orphans, lower_longest, put_back_missing, recover, remember, wake_offered};
use report::report;
use status::{Readiness, Write};
pub(crate) use status::{holder, share};

pub(super) use plan::{provision, quarantine};
pub(super) use record::holds_of;

/// A lock is looked at so often even if nothing seems to happen, since a message may be lost.
const SLOW_LOOK: Duration = Duration::from_secs(10);

/// What is kept of a lock between two looks. Losing it costs a write, nothing else.
#[derive(Default)]
pub(super) struct Memory {
    /// When its status was last written, or a write of it was refused.
    written: Option<Instant>,
    /// When a lower lease length was first seen, to lower what etcd remembers one old lease later.
    lowered: Option<Instant>,
    /// Since when leaders are not Ready, by the UIDs of their pods.
    pub(super) not_ready: HashMap<String, Instant>,
    /// The token that a person takes from its holder, and who and why, once that is found to be allowed.
    pub(super) forced: Option<(i64, String)>,
    /// How many pods that hold it can't be asked, as the metric has it.
    pub(super) unreachable: i64,
    /// The pods that direct holders name, whose end is followed.
    direct: Vec<HolderRef>,
    /// The epoch in which the record was first missed.
    missed_in: Option<Epoch>,
    /// This process has just written to etcd that there will be a record, and has not yet asked Redis for it: a
    /// missing record is not a lost one. After a crash it is taken for lost, which costs a wait.
    first: bool,
}

/// One look at a lock.
pub(super) async fn reconcile(lock: Arc<DistributedLock>, ctx: Arc<Context>) -> Result<Action, Error> {
    let _timer = ctx.metrics.reconcile("DistributedLock");
    let namespace = lock.namespace().unwrap_or_default();
    let Ok(key) = LockKey::new(&namespace, &lock.name_any()) else {
        return Ok(Action::await_change());
    };
    if lock.metadata.deletion_timestamp.is_some() {
        return delete::reconcile(&ctx, &lock, &key).await;
    }
    let open = match accept(&ctx, &lock).await? {
        Accepted::Open(open) => open,
        Accepted::NotOurs => return Ok(Action::requeue(Duration::from_secs(300))),
        Accepted::No(readiness) => {
            report(&ctx, &lock, None, &readiness).await?;
            return Ok(Action::requeue(SLOW_LOOK));
        }
    };
    if !lock.finalizers().iter().any(|finalizer| finalizer == FINALIZER) {
        set_finalizer(Failpoint::LockFinalizer, &api_of(&ctx.client, &*lock), &*lock, true).await?;
        return Ok(Action::await_change());
    }
    match observe(&ctx, &lock, &key, &open).await? {
        Observed::GateClosed => Ok(Action::requeue(SOON)),
        Observed::Record(due, record) => settle(&ctx, &lock, &key, &open, due, record).await,
    }
}

enum Accepted {
    Open(OpenStore),
    No(Readiness),
    /// Its store belongs to another controller: no word of ours in its status.
    NotOurs,
}

/// Whether the lock can be looked after now. One that is being deleted need neither be allowed nor understood.
async fn accept(ctx: &Context, lock: &DistributedLock) -> Result<Accepted, Error> {
    let name = lock.store_name();
    let leaving = lock.metadata.deletion_timestamp.is_some();
    let state = match ctx.whose_store(name).await? {
        Whose::Theirs => return Ok(Accepted::NotOurs),
        Whose::Ours(state) => Some(state),
        Whose::Nobodys => None,
    };
    if let Some(field) = lock.unsupported_value().filter(|_| !leaving) {
        let message = format!("{field} has a value that this release doesn't know");
        return Ok(Accepted::No(Readiness::not(reasons::UNSUPPORTED_VALUE, message)));
    }
    let readiness = match state {
        None => {
            let message = format!("there is no LockStore {name}; create it, or name another in storeName");
            Readiness::not(reasons::STORE_NOT_FOUND, message)
        }
        Some(StoreState::NotReady { reason, message }) => {
            let message = format!("the LockStore {name} is not Ready ({reason}): {message}");
            Readiness::not(reasons::STORE_NOT_READY, message)
        }
        Some(StoreState::Ready(open)) if !leaving && !allowed(ctx, lock, &open.object).await? => {
            let message = format!("the LockStore {name} doesn't allow this namespace; see its allowedNamespaces");
            Readiness::not(reasons::NAMESPACE_NOT_ALLOWED, message)
        }
        Some(StoreState::Ready(open)) => return Ok(Accepted::Open(open)),
    };
    Ok(Accepted::No(readiness))
}

async fn allowed(ctx: &Context, lock: &DistributedLock, store: &LockStore) -> Result<bool, Error> {
    if store.spec.allowed_namespaces == crate::api::AllowedNamespaces::default() {
        return Ok(true);
    }
    let namespaces: Api<Namespace> = Api::all(ctx.client.clone());
    let namespace = namespaces.get(&lock.namespace().unwrap_or_default()).await?;
    Ok(store.allows_namespace(namespace.labels()))
}

enum Observed {
    GateClosed,
    Record(Due, Option<Inspection>),
}

/// Ends what is over, then reads. Holds kept here are renewed right before their expiry is published.
async fn observe(ctx: &Context, lock: &DistributedLock, key: &LockKey, open: &OpenStore) -> Result<Observed, Error> {
    let due = match around(Failpoint::LockExpire, open.control.expire(std::slice::from_ref(key))).await? {
        Ok(mut dues) => dues.pop().unwrap_or(Due::Nothing),
        Err(refusal) => {
            info!(%key, %refusal, "the store is not open for this lock now");
            return Ok(Observed::GateClosed);
        }
    };
    let Some(record) = open.control.store().inspect(key).await? else {
        return Ok(Observed::Record(Due::Unprovisioned, None));
    };
    let kept = ctx.renewals.holds_of(key);
    let published = lock.status.clone().unwrap_or_default();
    let stands = status::when(&published, &published, None, lock.lease_duration(), Some(record.now));
    if kept.is_empty() || !matches!(stands, Write::After(wait) if wait <= status::MIN_INTERVAL) {
        return Ok(Observed::Record(due, Some(record)));
    }
    around(Failpoint::LockRenew, open.control.store().renew(&kept)).await?;
    Ok(Observed::Record(due, open.control.store().inspect(key).await?))
}

async fn settle(
    ctx: &Arc<Context>,
    lock: &DistributedLock,
    key: &LockKey,
    open: &OpenStore,
    due: Due,
    record: Option<Inspection>,
) -> Result<Action, Error> {
    let missed_in = note_missing(ctx, lock, key, record.is_none(), open.epoch);
    let step = plan::plan(lock, record.as_ref(), open.epoch, missed_in);
    match step {
        Step::Remember { longest } => {
            remember(ctx, lock, key, longest).await?;
            return Ok(Action::await_change());
        }
        Step::Provision => {
            let mut wanted = provision(lock, open.epoch, ctx.stores.token_floor(lock.store_name()));
            if record.is_none() {
                wanted.waiters = super::claim::places(ctx, key, ctx.claims.state().iter().map(AsRef::as_ref));
            }
            return apply(ctx, lock, key, open, &wanted).await;
        }
        Step::Recover => return recover(ctx, lock, key, open).await,
        Step::Outgrow(epoch) => {
            ctx.stores.quarantine(lock.store_name(), boottime() + quarantine(lock));
            ctx.stores.outgrow(lock.store_name(), epoch);
            let why = "its record in Redis was lost; it is made again with a new epoch";
            report(ctx, lock, None, &Readiness::not(reasons::RECORD_LOST, why)).await?;
            return Ok(Action::requeue(SOON));
        }
        Step::Nothing => {}
    }
    let Some(mut record) = record else {
        return Ok(Action::requeue(SOON));
    };
    if plan::epoch_runs_out(record.last, open.epoch) {
        ctx.stores.outgrow(lock.store_name(), open.epoch);
    }
    let mut within = match force::heed(ctx, lock, key, open, &record).await? {
        Heeded::Written => return Ok(Action::await_change()),
        Heeded::Taking => SOON,
        Heeded::Nothing => SLOW_LOOK,
    };
    wake_offered(ctx, &record);
    if direct::free_ended(ctx, lock, key, open, &record).await? {
        record = open.control.store().inspect(key).await?.unwrap_or(record);
    }
    free_orphans(ctx, lock, key, open, &record).await?;
    put_back_missing(ctx, lock, key, open, &record).await?;
    let (mut lock, mut readiness) = (lock.clone(), readiness(&record));
    if election::concerns(&lock) {
        let elected = election::elect(ctx, &lock, key, open).await?;
        if elected.lock.resource_version() != lock.resource_version() {
            record = open.control.store().inspect(key).await?.unwrap_or(record);
        }
        if let Some((pod, other)) = elected.conflict {
            let message = format!("the pod {pod} is elected by the lock {other}: let their selectors differ");
            readiness = Readiness::not(reasons::ROLE_LABEL_CONFLICT, message);
        }
        (lock, within) = (elected.lock, elected.within.unwrap_or(SLOW_LOOK).min(within));
    } else {
        ctx.forget_election(key);
    }
    let report = report(ctx, &lock, Some(&record), &readiness).await?;
    lower_longest(ctx, &lock, key).await?;
    let next = match due {
        Due::In(time) => time.max(Duration::from_millis(1)),
        Due::Nothing | Due::Unprovisioned => SLOW_LOOK,
    };
    Ok(Action::requeue(next.min(report).min(within)))
}

fn readiness(record: &Inspection) -> Readiness {
    let mut readiness = Readiness::ready();
    if record.quarantine > 0 {
        readiness.message = "grants nothing until no lease of before the loss can be believed".into();
    }
    readiness
}

/// A missing record was lost in the epoch in force when it was first missed, unless it is yet to be made.
pub(super) fn note_missing(
    ctx: &Context,
    lock: &DistributedLock,
    key: &LockKey,
    missing: bool,
    epoch: Epoch,
) -> Option<Epoch> {
    ctx.with_memory(key, |memory| {
        if !missing {
            (memory.missed_in, memory.first) = (None, false);
        } else if lock.is_provisioned() && !memory.first {
            memory.missed_in.get_or_insert(epoch);
        }
        memory.missed_in
    })
}
