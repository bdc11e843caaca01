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
//! Of several locks each is asked for when those before it, in the order of their names, are granted: whoever waits for one
//! holds only locks of lower names, so that claims never wait for each other in a circle, whatever order they write.
//! Meanwhile those that are granted are renewed, and unpinned: time may take them. 2 records all, 3 pins each.
//!
//! # Places
//! Time takes what nobody was told of, never its place: the record puts the id back where it stood. Before 2 the attempt goes
//! on as one that waits. From 2 to 4 etcd has a token that may be another's by now, and what reads it late would put that
//! hold back: no attempt waits again after 2, it ends. Its holds are freed after etcd has the next one, and the same call has
//! the next one's id stand where they stood. A place is given up only by who has had a lock for its `maxHoldSeconds` untold,
//! was granted it twice in a row without a renewal, or waits for what no turn brings.
//! Where Redis has lost what was held before 2, it is waited for again, before those that came later. Between 2 and 4 etcd has
//! a token, and a controller that is late may still write 4: the hold is put back, with its place. But time may have taken it
//! before the loss, and another been told of a higher token and given it back: the attempt ends, by a write with which 4
//! conflicts, and the next one stands there. So it does wherever a new epoch began, and `pin` says in which it was decided.
//! Whose time to wait is over by then has no place.
//! `reached` in etcd, written with the words for people, says up to which lock the attempt has come. The places at
//! the next ones are put back *reserved*: nothing is granted there before it has those before them again and claims, so that
//! still whoever waits for one holds none of a higher name.
//!
//! # Crashes
//! After 1: the lease runs out, and the place is kept, or the same id finds its own grant. After 2 or 3: the next look goes on
//! with `pin`, which is idempotent. After 5: nobody is told any more, `free` is idempotent. Between the next attempt in etcd
//! and the calls that hand its places on: the next look at the lock makes them. At any point Redis may lose everything:
//! what etcd has as granted or told is put back with its token before anything is granted.
//!
//! The claim of a gated pod that has ended takes a shorter way than 5 to 7: it is deleted, our finalizer goes, by which etcd
//! lets it go, and only then `free` in Redis. A crash after the first: it is let go as others are. After the second: the next
//! look at the lock frees what no claim records.

mod arrivals;
mod departures;
mod latest;
mod plan;
#[cfg(test)]
mod several;
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
use super::{Context, Error, SOON};
use crate::api::condition::reasons;
use crate::api::{DistributedLock, FINALIZER, LockClaim, LockRequest, NodeUnreachablePolicy};
use crate::lease::{HolderId, LockKey, Request, Wait};
use crate::store::{Place, Remembered};
pub(super) use arrivals::{Arrivals, Standing};
pub(super) use departures::Departures;
pub(super) use latest::Latest;
pub(crate) use plan::holder_id;
use plan::{Facts, Step, Store};
pub(super) use plan::{Stage, is_of_gated_pod, name_for_pod, stage};
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
    let request = claim.asked(lock.name())?;
    let same_namespace = claim.namespace().as_deref() == Some(lock.namespace());
    same_namespace.then_some(Remembered {
        id: plan::holder_id(claim)?,
        token: plan::recorded_token(claim, lock.name())?,
        mode: plan::mode(request),
        identity: plan::identity(claim),
        pod_uid: claim.spec.holder_ref.as_ref().map(|holder| holder.uid.clone()),
    })
}

/// The places of the claims that wait for a lock, for a record that may lack them: first those that had held it untold, each
/// in the order of [`Arrivals`]. That of one which etcd has as granted is where its next attempt stands.
pub(super) fn places<'a>(ctx: &Context, lock: &LockKey, claims: impl Iterator<Item = &'a LockClaim>) -> Vec<Place> {
    let now = Timestamp::now();
    if ctx.lock(lock).is_some_and(|lock| lock.spec.election.is_some()) {
        return Vec::new();
    }
    let here = |claim: &&LockClaim| {
        claim.metadata.namespace.as_deref() == Some(lock.namespace()) && claim.asked(lock.name()).is_some()
    };
    let asks_here = |claim| plan::holder_id(claim).is_some_and(|id| ctx.renewals.keeps(&id, lock));
    let waiting = claims.filter(here).filter(|claim| has_place(claim, lock, asks_here(claim), now));
    in_line(lock, now, waiting.map(|claim| (claim, ctx.arrivals.place(claim))))
}

/// The places of claims that wait for a lock, which came in this order.
fn in_line<'a, Came: Ord>(
    lock: &LockKey,
    now: Timestamp,
    waiting: impl Iterator<Item = (&'a LockClaim, Came)>,
) -> Vec<Place> {
    let mut waiting: Vec<_> = waiting.collect();
    let is_granted = |claim: &LockClaim| plan::stage(claim) == Stage::Granted;
    waiting.sort_by(|(one, came), (other, later)| {
        let waits_here = |claim: &LockClaim| !is_granted(claim) && !plan::has_passed(claim, lock.name());
        (waits_here(one), came).cmp(&(waits_here(other), later))
    });
    let place = |claim: &LockClaim| {
        let request = request(claim, claim.asked(lock.name())?, now)?;
        Some(Place { request, reserved: is_granted(claim) || !plan::is_first(claim, lock.name()) })
    };
    waiting.into_iter().filter_map(|(claim, _)| place(claim)).collect()
}

/// Of several locks a claim has places, or holds that nobody was told of, up to where it has come: as etcd knows, or as
/// this process has asked.
fn has_place(claim: &LockClaim, lock: &LockKey, asks_here: bool, now: Timestamp) -> bool {
    let asks = !plan::can_have_no_turn(claim) && (asks_here || plan::has_reached(claim, lock.name()));
    let ours = claim.finalizers().iter().any(|finalizer| finalizer == FINALIZER);
    let started = claim.status.as_ref().is_some_and(|status| status.start_time.is_some());
    let in_time = plan::wait_left(claim, now) != Some(Duration::ZERO);
    match plan::stage(claim) {
        Stage::Waiting => asks && ours && started && in_time,
        stage => ours && in_time && stage == Stage::Granted,
    }
}

/// What a claim asks for in Redis, of one of its locks.
fn request(claim: &LockClaim, asked: &LockRequest, now: Timestamp) -> Option<Request> {
    Some(Request {
        id: plan::holder_id(claim)?,
        mode: plan::mode(asked),
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
    let holds = matches!(plan::stage(claim), Stage::Granted | Stage::Told | Stage::Releasing);
    here && holds && plan::recorded_token(claim, lock.name()).is_some_and(|recorded| recorded.get() == token)
}

/// The UID of the claim that made this id.
pub(super) fn claim_of_id(id: &HolderId) -> Option<&str> {
    id.as_str().rsplit_once('.').map(|(uid, _)| uid)
}

/// Whether the claim waits or holds under this id.
pub(super) fn records(claim: &LockClaim, id: &HolderId) -> bool {
    plan::stage(claim) != Stage::Finished && plan::holder_id(claim).as_ref() == Some(id)
}

/// Under which id the claim has its place now, if this is that of an attempt before.
pub(super) fn successor(claim: &LockClaim, id: &HolderId) -> Option<HolderId> {
    let waits = matches!(plan::stage(claim), Stage::Waiting | Stage::Granted) && !plan::can_have_no_turn(claim);
    plan::holder_id(claim).filter(|current| waits && current != id)
}

/// Whether this is the id of an attempt of the claim that is over: it has ended, or begun a later one.
fn has_ended(claim: &LockClaim, id: &HolderId) -> bool {
    let attempt = id.as_str().rsplit_once('.').filter(|(uid, _)| claim.uid().as_deref() == Some(uid));
    let is_before = |attempt: i32| attempt < plan::attempt(claim) || plan::stage(claim) == Stage::Finished;
    attempt.and_then(|(_, attempt)| attempt.parse().ok()).is_some_and(is_before)
}

/// Those of the ids whose attempts are over, as this process has seen or written.
pub(super) fn ended<'a>(ctx: &Context, ids: impl Iterator<Item = &'a HolderId>) -> Vec<&'a HolderId> {
    let mut ids: Vec<_> = ids.filter(|id| claim_of_id(id).is_some()).collect();
    if !ids.is_empty() {
        let cached = ctx.claims.state().into_iter();
        let claims: Vec<_> = cached.filter_map(|claim| ctx.latest.of(claim)).collect();
        ids.retain(|id| claims.iter().any(|claim| has_ended(claim, id)));
    }
    ids
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
            Ok(Next::Again(written)) => claim = written,
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

/// One of the locks of a claim.
struct Asked {
    key: LockKey,
    request: LockRequest,
    /// `None`: there is none, or it is another controller's.
    lock: Option<Arc<DistributedLock>>,
    open: Option<OpenStore>,
    store: Store,
}

impl Asked {
    async fn new(ctx: &Context, key: LockKey, request: &LockRequest) -> Result<Self, Error> {
        let mut lock = match ctx.lock(&key) {
            Some(lock) => Some(lock),
            // The claim may have been seen before its lock: ask who knows.
            None => {
                let locks: Api<DistributedLock> = Api::namespaced(ctx.client.clone(), key.namespace());
                locks.get_opt(key.name()).await?.map(Arc::new)
            }
        };
        let (mut store, open) = match &lock {
            None => (Store::NoLock, None),
            Some(lock) => match ctx.whose_store(lock.store_name()).await? {
                Whose::Theirs => (Store::Theirs, None),
                Whose::Ours(StoreState::Ready(open)) if lock.spec.election.is_some() => (Store::Elected, Some(open)),
                Whose::Ours(StoreState::Ready(open)) => (Store::Open, Some(open)),
                Whose::Ours(state) if state.is_starting() => (Store::Starting, None),
                Whose::Ours(StoreState::NotReady { .. }) | Whose::Nobodys => (Store::Closed, None),
            },
        };
        if store == Store::Theirs {
            lock = None;
        }
        if lock.as_ref().is_some_and(|lock| lock.metadata.deletion_timestamp.is_some()) {
            store = Store::NoLock;
        }
        Ok(Self { key, request: request.clone(), lock, open, store })
    }

    /// Whether its store has taken a new epoch since it was granted.
    fn is_of_past_epoch(&self, claim: &LockClaim) -> bool {
        let granted = plan::recorded_token(claim, self.key.name());
        self.open.as_ref().zip(granted).is_some_and(|(open, token)| token.epoch() < open.epoch)
    }

    fn policy(&self) -> NodeUnreachablePolicy {
        self.lock.as_ref().map_or(NodeUnreachablePolicy::Keep, |lock| lock.spec.node_unreachable_policy)
    }
}

/// Everything about one claim at one moment.
struct Look {
    ctx: Arc<Context>,
    claim: Arc<LockClaim>,
    me: ObjectRef<LockClaim>,
    id: HolderId,
    /// In the order of their names; at least one.
    asked: Vec<Asked>,
    facts: Facts,
}

impl Look {
    /// `None`: another controller's, or nobody's.
    async fn new(ctx: &Arc<Context>, claim: Arc<LockClaim>) -> Result<Option<Self>, Error> {
        let namespace = claim.namespace().unwrap_or_default();
        let Some(id) = plan::holder_id(&claim) else { return Ok(None) };
        let mut asked = Vec::new();
        for request in plan::in_order(&claim) {
            let Ok(key) = LockKey::new(&namespace, &request.name) else { return Ok(None) };
            asked.push(Asked::new(ctx, key, request).await?);
            // The controller of the first one has the say, at whatever stage. Not a word of ours.
            if asked[0].store == Store::Theirs {
                return Ok(None);
            }
        }
        let Some(worst) = asked.iter().rev().max_by_key(|one| one.store) else { return Ok(None) };
        let first = &asked[0].key;
        let me = ObjectRef::from_obj(&*claim);
        let all_release = asked.iter().all(|one| one.policy() == NodeUnreachablePolicy::Release);
        let bounds = asked.iter().filter_map(|one| one.lock.as_ref()?.max_hold());
        let mut facts = Facts {
            store: worst.store,
            about: worst.key.name().to_owned(),
            pod: None,
            reach: Reach::Unknown,
            forced: asked.iter().find_map(|one| forced(ctx, &claim, one.lock.as_deref(), &one.key)),
            policy: if all_release { NodeUnreachablePolicy::Release } else { NodeUnreachablePolicy::Keep },
            max_hold: bounds.chain(claim.max_hold()).min(),
            in_doubt: asked
                .iter()
                .filter_map(|one| one.lock.as_ref())
                .any(|lock| ctx.stores.in_doubt(lock.store_name())),
            in_past_epoch: asked.iter().any(|one| one.is_of_past_epoch(&claim)),
            now: Timestamp::now(),
        };
        let (stage, follower) = (plan::stage(&claim), Follower::Claim(me.clone()));
        match &claim.spec.holder_ref {
            None => {}
            Some(_) if stage == Stage::Finished => {}
            Some(holder) if matches!(stage, Stage::Granted | Stage::Told) => {
                let known = claim.status.as_ref().and_then(|status| status.node_name.as_deref());
                let Holder { fate, reach, .. } = ctx.pods.holder(first, holder, known, follower).await?;
                (facts.pod, facts.reach) = (Some(fate), reach);
            }
            Some(holder) => facts.pod = Some(ctx.pods.fate(&namespace, holder, follower).await?),
        }
        Ok(Some(Self { ctx: ctx.clone(), claim, me, id, asked, facts }))
    }
}
