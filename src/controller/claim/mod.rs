//! The loop of `LockClaim`.
//!
//! # The walk
//! Grant: Redis → etcd → the claim is told. Release: the claim is un-told → etcd → Redis.
//!
//! 1. `claim` in Redis: an offer or a hold, that time may take;
//! 2. `Granted(id)` with its token in etcd;
//! 3. `pin` in Redis: time no longer takes it. It fails if the offer was lost: a new attempt begins;
//! 4. `Held=True` in etcd: told.
//! 5. `Releasing(id)` in etcd, `Held=False` in the same write;
//! 6. `free` in Redis;
//! 7. `Finished=True` in etcd, or our finalizer goes.
//!
//! A crash after 1: the lease runs out, or the same id finds its own grant. After 2 or 3: the next look goes on with
//! `pin`, which is idempotent. After 5: nobody is told any more, `free` is idempotent. Between, Redis may lose
//! everything: what etcd has as granted or told is put back with its token before anything is granted.

mod arrivals;
mod latest;
mod plan;
mod walk;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt};
use tracing::debug;

use super::fate::Fate;
use super::nodes::Reach;
use super::pods::{Follower, Holder};
use super::stores::{OpenStore, StoreState, Whose};
use super::writes::{is_conflict, is_not_found};
use super::{Context, Error};
use crate::api::condition::reasons;
use crate::api::{DistributedLock, FINALIZER, LockClaim, NodeUnreachablePolicy};
use crate::failpoint::{Failpoint, around};
use crate::lease::{HolderId, LockKey, Request, Wait};
use crate::store::{Control, Remembered, StoreError};
pub(super) use arrivals::{Arrivals, Standing};
pub(super) use latest::Latest;
use plan::{Facts, SOON, Step, Store};
pub(super) use plan::{Stage, holder_id, is_of_gated_pod, name_for_pod, stage};
use walk::Next;

/// A claim is looked at so often even if nothing seems to happen.
const SLOW_LOOK: Duration = Duration::from_secs(30);
/// Steps taken in one look, each on the object that the one before has written.
const STEPS: usize = 8;

/// The delegated hold on this lock that etcd remembers, if the claim has one that it isn't releasing.
pub(super) fn remembered(claim: &LockClaim, lock: &LockKey) -> Option<Remembered> {
    if !matches!(plan::stage(claim), Stage::Granted | Stage::Told) {
        return None;
    }
    let request = claim.spec.locks.iter().find(|request| request.name == lock.name())?;
    let same_namespace = claim.namespace().as_deref() == Some(lock.namespace());
    same_namespace.then_some(Remembered {
        id: plan::holder_id(claim)?,
        token: plan::recorded_token(claim)?,
        mode: plan::mode(request),
        identity: plan::identity(claim),
        pod_uid: claim.spec.holder_ref.as_ref().map(|holder| holder.uid.clone()),
    })
}

/// Puts the claims that wait for a lock into the queue of its new record, in the order of [`Arrivals`].
pub(super) async fn rejoin(
    ctx: &Context,
    control: &Control,
    lock: &LockKey,
    claims: impl Iterator<Item = &LockClaim>,
) -> Result<(), StoreError> {
    let now = Timestamp::now();
    let mut waiting: Vec<&LockClaim> = claims.filter(|claim| waits_for(claim, lock, now)).collect();
    waiting.sort_by_key(|claim| ctx.arrivals.place(claim));
    for claim in waiting {
        if let Some(request) = request(claim, now) {
            // Whatever the answer, the claim's own loop asks again and heeds it.
            let _ = around(Failpoint::LockRejoin, control.claim(lock, &request)).await?;
        }
    }
    Ok(())
}

fn waits_for(claim: &LockClaim, lock: &LockKey, now: Timestamp) -> bool {
    let here = claim.namespace().as_deref() == Some(lock.namespace());
    let asks = claim.spec.locks.first().is_some_and(|asked| asked.name == lock.name());
    let ours = claim.finalizers().iter().any(|finalizer| finalizer == FINALIZER);
    let started = claim.status.as_ref().is_some_and(|status| status.start_time.is_some());
    let in_time = plan::wait_left(claim, now) != Some(Duration::ZERO);
    here && asks && ours && started && in_time && plan::stage(claim) == Stage::Waiting
}

/// What a claim asks for in Redis.
fn request(claim: &LockClaim, now: Timestamp) -> Option<Request> {
    Some(Request {
        id: plan::holder_id(claim)?,
        mode: plan::mode(claim.spec.locks.first()?),
        priority: claim.spec.priority,
        wait: match plan::wait_left(claim, now) {
            None => Wait::Forever,
            Some(Duration::ZERO) => Wait::No,
            Some(left) => Wait::For(left),
        },
        identity: plan::identity(claim),
        pod_uid: claim.spec.holder_ref.as_ref().map(|holder| holder.uid.clone()),
    })
}

/// Whether the claim holds this lock with this token, as etcd has it, or is giving it back.
pub(super) fn holds_with(claim: &LockClaim, lock: &LockKey, token: i64) -> bool {
    let here = claim.namespace().as_deref() == Some(lock.namespace());
    let asks = claim.spec.locks.iter().any(|asked| asked.name == lock.name());
    let holds = matches!(plan::stage(claim), Stage::Granted | Stage::Told | Stage::Releasing);
    here && asks && holds && plan::recorded_token(claim).is_some_and(|recorded| recorded.get() == token)
}

/// The UID of the claim that made this id.
pub(super) fn claim_of_id(id: &HolderId) -> Option<&str> {
    id.as_str().rsplit_once('.').map(|(uid, _)| uid)
}

/// Whether the claim waits or holds under this id.
pub(super) fn records(claim: &LockClaim, id: &HolderId) -> bool {
    plan::stage(claim) != Stage::Finished && plan::holder_id(claim).as_ref() == Some(id)
}

/// One look at a claim.
pub(super) async fn reconcile(claim: Arc<LockClaim>, ctx: Arc<Context>) -> Result<Action, Error> {
    let _timer = ctx.metrics.reconcile("LockClaim");
    // A look at a claim as it was before our last write would end in a conflict.
    let Some(mut claim) = ctx.latest.of(claim) else {
        return Ok(Action::await_change());
    };
    for _ in 0..STEPS {
        let look = Look::new(&ctx, claim.clone()).await?;
        let Some(look) = look else {
            ctx.heed_place(&claim, Standing::Leaves);
            return Ok(Action::await_change());
        };
        let step = plan::plan(&claim, &look.facts);
        debug!(claim = %look.me, ?step, "decided");
        ctx.heed_place(&claim, standing(&step, &look.facts));
        match look.apply(step).await {
            Ok(Next::Again(written)) => {
                claim = Arc::new(*written);
                ctx.latest.written(&claim);
            }
            Ok(Next::Rest(wait)) => {
                return Ok(Action::requeue(wait.unwrap_or(SLOW_LOOK).min(SLOW_LOOK)));
            }
            // Somebody has written it since, so that it is seen again at once; the requeue is a net.
            Err(Error::Kube(error)) if is_conflict(&error) => return Ok(Action::requeue(SOON)),
            Err(Error::Kube(error)) if is_not_found(&error) => return Ok(Action::await_change()),
            Err(error) => return Err(error),
        }
    }
    Ok(Action::requeue(SOON))
}

/// Who takes the hold of this claim by force, and why.
fn forced(ctx: &Context, claim: &LockClaim, lock: Option<&DistributedLock>, key: &LockKey) -> Option<String> {
    lock.and_then(DistributedLock::force_release)?;
    let (token, message) = ctx.with_memory(key, |memory| memory.forced.clone())?;
    holds_with(claim, key, token).then_some(message)
}

/// What a step means for a place in the line; asking in Redis decides it by the answer.
fn standing(step: &Step, facts: &Facts) -> Standing {
    match step {
        Step::AddFinalizer | Step::Contend => Standing::Comes,
        Step::Rest(None) if facts.pod == Some(Fate::Unknown) => Standing::Comes,
        Step::Wait(reason, _) if [reasons::LOCK_NOT_FOUND, reasons::STORE_NOT_READY].contains(reason) => {
            Standing::WaitsWithAll
        }
        _ => Standing::Leaves,
    }
}

/// Everything about one claim at one moment.
struct Look {
    ctx: Arc<Context>,
    claim: Arc<LockClaim>,
    me: ObjectRef<LockClaim>,
    key: LockKey,
    id: HolderId,
    lock: Option<Arc<DistributedLock>>,
    open: Option<OpenStore>,
    facts: Facts,
}

impl Look {
    async fn new(ctx: &Arc<Context>, claim: Arc<LockClaim>) -> Result<Option<Self>, Error> {
        let namespace = claim.namespace().unwrap_or_default();
        let Some(request) = claim.spec.locks.first() else {
            return Ok(None);
        };
        let (Ok(key), Some(id)) = (LockKey::new(&namespace, &request.name), plan::holder_id(&claim)) else {
            return Ok(None);
        };
        let me = ObjectRef::from_obj(&*claim);
        let lock = match ctx.lock(&key) {
            Some(lock) => Some(lock),
            // The claim may have been seen before its lock: ask who knows.
            None => {
                let locks: Api<DistributedLock> = Api::namespaced(ctx.client.clone(), &namespace);
                locks.get_opt(key.name()).await?.map(Arc::new)
            }
        };
        let (store, open) = match &lock {
            None => (Store::NoLock, None),
            Some(lock) => match ctx.whose_store(lock.store_name()).await? {
                // Another controller's, at whatever stage: not a word of ours.
                Whose::Theirs => return Ok(None),
                Whose::Ours(StoreState::Ready(open)) if lock.spec.election.is_some() => (Store::Elected, Some(open)),
                Whose::Ours(StoreState::Ready(open)) => (Store::Open, Some(open)),
                Whose::Ours(state) if state.is_starting() => (Store::Starting, None),
                Whose::Ours(StoreState::NotReady { .. }) | Whose::Nobodys => (Store::Closed, None),
            },
        };
        let lock_leaves = lock.as_ref().is_some_and(|lock| lock.metadata.deletion_timestamp.is_some());
        let bounds = [claim.max_hold(), lock.as_ref().and_then(|lock| lock.max_hold())];
        let mut facts = Facts {
            store: if lock_leaves { Store::NoLock } else { store },
            pod: None,
            reach: Reach::Unknown,
            forced: None,
            policy: lock.as_ref().map_or(NodeUnreachablePolicy::Keep, |lock| lock.spec.node_unreachable_policy),
            max_hold: bounds.into_iter().flatten().min(),
            now: Timestamp::now(),
        };
        facts.forced = forced(ctx, &claim, lock.as_deref(), &key);
        let (stage, follower) = (plan::stage(&claim), Follower::Claim(me.clone()));
        match &claim.spec.holder_ref {
            None => {}
            Some(_) if stage == Stage::Finished => {}
            Some(holder) if matches!(stage, Stage::Granted | Stage::Told) => {
                let known = claim.status.as_ref().and_then(|status| status.node_name.as_deref());
                let Holder { fate, reach, .. } = ctx.pods.holder(&key, holder, known, follower).await?;
                (facts.pod, facts.reach) = (Some(fate), reach);
            }
            Some(holder) => facts.pod = Some(ctx.pods.fate(&namespace, holder, follower).await?),
        }
        Ok(Some(Self { ctx: ctx.clone(), claim, me, key, id, lock, open, facts }))
    }
}
