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

mod plan;
mod pod;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, EvictParams, Preconditions};
use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt};
use serde_json::json;
use tracing::{debug, info};

use super::renewals::Kept;
use super::stores::{OpenStore, StoreState};
use super::writes::{api_of, is_conflict, is_not_found, patch_metadata, replace_status, set_finalizer};
use super::{Context, Error};
use crate::api::condition::{self, reasons, types};
use crate::api::{
    ClaimedLock, DistributedLock, FINALIZER, HolderRef, LOCK_LABEL, LockClaim, LockClaimStatus, NodeUnreachablePolicy,
    time,
};
use crate::lease::{Acquired, Grant, HolderId, LockKey, Renewed, Request, Wait};
use crate::store::{Control, Refusal, Remembered, StoreError};
use plan::{Facts, Stage, Step, Store};
use pod::Fate;

/// A claim is looked at so often even if nothing seems to happen.
const SLOW_LOOK: Duration = Duration::from_secs(30);
const SOON: Duration = Duration::from_millis(250);
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

/// Puts the claims that wait for a lock into the queue of its new record: by creation time, and within a second of it
/// in the order in which this process has seen them.
pub(super) async fn rejoin(
    ctx: &Context,
    control: &Control,
    lock: &LockKey,
    claims: impl Iterator<Item = &LockClaim>,
) -> Result<(), StoreError> {
    let now = Timestamp::now();
    let mut waiting: Vec<&LockClaim> = claims.filter(|claim| waits_for(claim, lock, now)).collect();
    waiting.sort_by_key(|claim| (claim.creation_timestamp().map(|at| at.0), ctx.arrival(claim), claim.uid()));
    for claim in waiting {
        if let Some(request) = request(claim, now) {
            // Whatever the answer, the claim's own loop asks again and heeds it.
            let _ = control.claim(lock, &request).await?;
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

/// The UID of the claim that made this id.
pub(super) fn claim_of_id(id: &HolderId) -> Option<&str> {
    id.as_str().rsplit_once('.').map(|(uid, _)| uid)
}

/// Whether the claim waits or holds under this id.
pub(super) fn records(claim: &LockClaim, id: &HolderId) -> bool {
    plan::stage(claim) != Stage::Finished && plan::holder_id(claim).as_ref() == Some(id)
}

/// What one step leaves to do.
enum Next {
    /// Decide again, from what was written.
    Again(Box<LockClaim>),
    /// Look again after so long, or when something changes.
    Rest(Option<Duration>),
}

/// One look at a claim.
pub(super) async fn reconcile(claim: Arc<LockClaim>, ctx: Arc<Context>) -> Result<Action, Error> {
    let _timer = ctx.metrics.reconcile("LockClaim");
    let mut claim = claim;
    for _ in 0..STEPS {
        let look = Look::new(&ctx, claim.clone()).await?;
        let Some(look) = look else {
            return Ok(Action::await_change());
        };
        let step = plan::plan(&claim, &look.facts);
        debug!(claim = %look.me, ?step, "decided");
        match look.apply(step).await {
            Ok(Next::Again(written)) => claim = Arc::new(*written),
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
        ctx.arrival(&claim);
        let lock = match ctx.lock(&key) {
            Some(lock) => Some(lock),
            // The claim may have been seen before its lock: ask who knows.
            None => {
                let locks: Api<DistributedLock> = Api::namespaced(ctx.client.clone(), &namespace);
                locks.get_opt(key.name()).await?.map(Arc::new)
            }
        };
        let state = lock.as_ref().and_then(|lock| ctx.stores.state(lock.store_name()));
        let (store, open) = match (&lock, state) {
            (None, _) => (Store::NoLock, None),
            (Some(_), None) => (Store::Foreign, None),
            (Some(_), Some(StoreState::Ready(open))) => (Store::Open, Some(open)),
            (Some(_), _) => (Store::Closed, None),
        };
        let lock_leaves = lock.as_ref().is_some_and(|lock| lock.metadata.deletion_timestamp.is_some());
        let bounds = [claim.max_hold(), lock.as_ref().and_then(|lock| lock.max_hold())];
        let mut facts = Facts {
            store: if lock_leaves { Store::NoLock } else { store },
            pod: None,
            node_ready: false,
            policy: lock.as_ref().map_or(NodeUnreachablePolicy::Keep, |lock| lock.spec.node_unreachable_policy),
            max_hold: bounds.into_iter().flatten().min(),
            now: Timestamp::now(),
        };
        if let Some(holder) = claim.spec.holder_ref.as_ref().filter(|_| plan::stage(&claim) != Stage::Finished) {
            let fate = fate(ctx, &namespace, holder, &me).await?;
            if let Fate::Vanished { settled_in: Duration::ZERO, node } = &fate {
                let known = claim.status.as_ref().and_then(|status| status.node_name.clone());
                facts.node_ready = node_ready(ctx, node.clone().or(known)).await?;
            }
            facts.pod = Some(fate);
        }
        Ok(Some(Self { ctx: ctx.clone(), claim, me, key, id, lock, open, facts }))
    }

    async fn apply(&self, step: Step) -> Result<Next, Error> {
        match step {
            Step::AddFinalizer => {
                let mut finalizers = self.claim.finalizers().to_vec();
                finalizers.push(FINALIZER.to_owned());
                let labels = json!({ (format!("{LOCK_LABEL}{}", self.key.name())): "" });
                let metadata = json!({ "finalizers": finalizers, "labels": labels });
                Ok(Next::Again(Box::new(patch_metadata(&self.api(), &*self.claim, metadata).await?)))
            }
            Step::Contend => self.contend().await,
            Step::Pin => self.pin().await,
            Step::Release(reason, message) => self.release(reason, &message).await,
            Step::Free => self.free().await,
            Step::Finish(reason, message) => {
                self.withdraw().await?;
                self.finish(reason, &message).await
            }
            Step::Withdraw => {
                self.withdraw().await?;
                self.let_go().await
            }
            Step::RemoveFinalizer => self.let_go().await,
            Step::Delete => self.delete().await,
            Step::EvictPod => self.evict().await,
            Step::Keep(within, note) => self.keep(within, note).await,
            Step::Wait(reason, message) => self.wait(reason, &message, None).await,
            Step::Rest(wait) => Ok(Next::Rest(wait)),
        }
    }

    fn api(&self) -> Api<LockClaim> {
        api_of(&self.ctx.client, &*self.claim)
    }

    /// Changes the status, with the generation in every condition.
    async fn write(&self, change: impl FnOnce(&mut LockClaimStatus)) -> Result<Next, Error> {
        let mut wanted = (*self.claim).clone();
        let generation = self.claim.metadata.generation;
        let status = wanted.status.get_or_insert_default();
        status.observed_generation = generation;
        status.lock_names = Some(self.claim.lock_names());
        status.attempt.get_or_insert(1);
        status.start_time.get_or_insert_with(|| time::seconds(self.facts.now));
        let active = "it waits or holds";
        condition::set(
            &mut status.conditions,
            types::FINISHED,
            false,
            reasons::ACTIVE,
            active,
            generation,
            self.facts.now,
        );
        change(status);
        if wanted.status == self.claim.status {
            return Ok(Next::Rest(None));
        }
        let written = replace_status(&self.api(), &wanted).await?;
        self.ctx.metrics.status_writes.inc();
        Ok(Next::Again(Box::new(written)))
    }

    fn held(&self, status: &mut LockClaimStatus, held: bool, reason: &str, message: &str) {
        let (generation, now) = (self.claim.metadata.generation, self.facts.now);
        condition::set(&mut status.conditions, types::HELD, held, reason, message, generation, now);
    }

    fn keep_in_mind(&self, held: bool) {
        let Some(lock) = &self.lock else { return };
        let kept = Kept {
            claim: self.me.clone(),
            lock: self.key.clone(),
            store: lock.store_name().to_owned(),
            lease: held.then(|| lock.lease_duration()),
        };
        self.ctx.renewals.keep(self.id.clone(), kept);
    }

    async fn contend(&self) -> Result<Next, Error> {
        let Some(open) = &self.open else {
            return Ok(Next::Rest(Some(SOON)));
        };
        let Some(request) = request(&self.claim, self.facts.now) else {
            return Ok(Next::Rest(None));
        };
        self.keep_in_mind(false);
        let answer = match open.control.claim(&self.key, &request).await? {
            Ok(answer) => answer,
            Err(refusal) => return self.refused(&refusal),
        };
        match answer {
            Acquired::Granted(grant) => self.granted(grant).await,
            Acquired::Queued { .. } => {
                let left = plan::wait_left(&self.claim, self.facts.now);
                self.wait(reasons::WAITING, "it waits for its turn", left).await
            }
            Acquired::Busy { .. } => {
                let at_once = self.claim.wait_timeout() == Some(Duration::ZERO);
                let (reason, message) = if at_once {
                    (reasons::BUSY, "the lock is held, and the claim doesn't wait")
                } else {
                    (reasons::WAIT_TIMEOUT, "it was not granted within waitTimeoutSeconds")
                };
                self.finish(reason, message).await
            }
            Acquired::Lost => self.next_attempt().await,
            Acquired::Unsatisfiable { permits } => {
                let message = format!("it asks for more than the {permits} permits that the lock has");
                self.finish(reasons::UNSATISFIABLE, &message).await
            }
            Acquired::Sealed => self.wait(reasons::LOCK_NOT_FOUND, "the lock is being deleted", Some(SOON)).await,
            Acquired::GateClosed | Acquired::Unprovisioned | Acquired::EpochExhausted => {
                self.ctx.triggers.lock(ObjectRef::new(self.key.name()).within(self.key.namespace()));
                let message = "the lock's record in Redis is being made";
                self.wait(reasons::STORE_NOT_READY, message, Some(SOON)).await
            }
        }
    }

    fn refused(&self, refusal: &Refusal) -> Result<Next, Error> {
        info!(claim = %self.me, %refusal, "not asked now");
        Ok(Next::Rest(Some(SOON)))
    }

    async fn granted(&self, grant: Grant) -> Result<Next, Error> {
        let name = self.key.name().to_owned();
        self.write(|status| {
            status.holder_id = Some(self.id.as_str().to_owned());
            status.fencing_token = Some(grant.token.get());
            let acquire_time = time::micros(self.facts.now);
            status.locks =
                vec![ClaimedLock { name, fencing_token: grant.token.get(), acquire_time, expire_time: None }];
            self.held(status, false, reasons::GRANTED, "it was granted and is being recorded");
        })
        .await
    }

    /// The attempt has ended before it was told: the next one begins at the end of the queue.
    async fn next_attempt(&self) -> Result<Next, Error> {
        self.ctx.renewals.forget(&self.id);
        self.write(|status| {
            status.attempt = Some(plan::attempt(&self.claim).saturating_add(1));
            status.holder_id = None;
            status.fencing_token = None;
            status.locks.clear();
            self.held(status, false, reasons::WAITING, "it waits for its turn");
        })
        .await
    }

    async fn pin(&self) -> Result<Next, Error> {
        let Some(open) = &self.open else {
            return Ok(Next::Rest(Some(SOON)));
        };
        match open.control.pin(&self.key, &self.id).await? {
            Err(refusal) => self.refused(&refusal),
            // The record was lost: its recovery puts this hold back, since etcd has it.
            Ok(Renewed::Unprovisioned) => {
                self.ctx.triggers.lock(ObjectRef::new(self.key.name()).within(self.key.namespace()));
                Ok(Next::Rest(Some(SOON)))
            }
            Ok(Renewed::Lost | Renewed::NotHeld) => self.next_attempt().await,
            Ok(Renewed::Held(grant)) => self.tell(grant).await,
        }
    }

    async fn tell(&self, grant: Grant) -> Result<Next, Error> {
        self.keep_in_mind(true);
        let next = self
            .write(|status| {
                status.node_name = self.node().or(status.node_name.take());
                self.held(status, true, reasons::HELD, &format!("it holds with token {}", grant.token));
            })
            .await?;
        let note = format!("holds {} with token {}", self.key.name(), grant.token);
        self.ctx.events.normal(&*self.claim, "Acquired", "Grant", note).await;
        Ok(next)
    }

    fn node(&self) -> Option<String> {
        match &self.facts.pod {
            Some(Fate::Alive { node }) => node.clone(),
            _ => None,
        }
    }

    async fn keep(&self, within: Option<Duration>, note: Option<(&'static str, String)>) -> Result<Next, Error> {
        self.keep_in_mind(true);
        let token = plan::recorded_token(&self.claim).map(|token| token.to_string()).unwrap_or_default();
        let (reason, message) = note.unwrap_or((reasons::HELD, format!("it holds with token {token}")));
        let next = self
            .write(|status| {
                status.node_name = self.node().or(status.node_name.take());
                self.held(status, true, reason, &message);
            })
            .await?;
        if matches!(next, Next::Again(_)) && reason == reasons::HOLDER_UNREACHABLE {
            self.ctx.events.warning(&*self.claim, reason, "Keep", message).await;
        }
        Ok(Next::Rest(within))
    }

    async fn release(&self, reason: &'static str, message: &str) -> Result<Next, Error> {
        let next = self.write(|status| self.held(status, false, reasons::RELEASING, message)).await?;
        self.ctx.events.normal(&*self.claim, reason, "Release", message.to_owned()).await;
        Ok(next)
    }

    /// Without the store the claim need not wait: etcd has let it go, and a pinned hold that etcd doesn't have is
    /// freed when the store is back.
    async fn free(&self) -> Result<Next, Error> {
        if let Some(open) = &self.open {
            match open.control.free(&self.key, &self.id).await? {
                Ok(()) | Err(Refusal::Unprovisioned) => {}
                Err(refusal) => return self.refused(&refusal),
            }
        } else if self.lock.is_some() && self.claim.metadata.deletion_timestamp.is_none() {
            return Ok(Next::Rest(Some(SOON)));
        }
        self.ctx.renewals.forget(&self.id);
        if self.claim.metadata.deletion_timestamp.is_some() {
            return self.let_go().await;
        }
        let held = self.claim.status.as_ref().and_then(|s| condition::get(&s.conditions, types::HELD)).cloned();
        self.finish(reasons::RELEASED, &held.map(|held| held.message).unwrap_or_default()).await
    }

    /// Leaves the queue.
    async fn withdraw(&self) -> Result<(), Error> {
        if let Some(open) = &self.open
            && let Err(refusal) = open.control.free(&self.key, &self.id).await?
            && refusal != Refusal::Unprovisioned
        {
            info!(claim = %self.me, %refusal, "left in the queue; it is freed when the store is open");
        }
        self.ctx.renewals.forget(&self.id);
        Ok(())
    }

    async fn finish(&self, reason: &'static str, message: &str) -> Result<Next, Error> {
        self.ctx.renewals.forget(&self.id);
        let next = self
            .write(|status| {
                let (generation, now) = (self.claim.metadata.generation, self.facts.now);
                self.held(status, false, reason, message);
                condition::set(&mut status.conditions, types::FINISHED, true, reason, message, generation, now);
                status.finish_time = Some(time::seconds(now));
            })
            .await?;
        if reason != reasons::RELEASED {
            self.ctx.events.warning(&*self.claim, reason, "Finish", message.to_owned()).await;
        }
        Ok(next)
    }

    async fn wait(&self, reason: &'static str, message: &str, within: Option<Duration>) -> Result<Next, Error> {
        self.write(|status| self.held(status, false, reason, message)).await?;
        Ok(Next::Rest(within))
    }

    async fn let_go(&self) -> Result<Next, Error> {
        self.ctx.forget_claim(&self.me);
        set_finalizer(&self.api(), &*self.claim, false).await?;
        Ok(Next::Rest(None))
    }

    async fn delete(&self) -> Result<Next, Error> {
        let (uid, resource_version) = (self.claim.uid(), self.claim.resource_version());
        let preconditions = Some(Preconditions { uid, resource_version });
        let params = DeleteParams { preconditions, ..DeleteParams::default() };
        self.api().delete(&self.claim.name_any(), &params).await?;
        Ok(Next::Rest(None))
    }

    /// The hold goes when the pod has ended. A budget that forbids the eviction is said, and asked again.
    async fn evict(&self) -> Result<Next, Error> {
        let Some(holder) = &self.claim.spec.holder_ref else {
            return Ok(Next::Rest(None));
        };
        self.keep_in_mind(true);
        let pods: Api<Pod> = Api::namespaced(self.ctx.client.clone(), self.key.namespace());
        let preconditions = Some(Preconditions { uid: Some(holder.uid.clone()), resource_version: None });
        let delete_options = Some(DeleteParams { preconditions, ..DeleteParams::default() });
        let params = EvictParams { delete_options, ..EvictParams::default() };
        let message = match pods.evict(&holder.name, &params).await {
            Ok(_) => "it has held for maxHoldSeconds: its pod is being evicted".to_owned(),
            Err(error) => {
                format!("it has held for maxHoldSeconds, but its pod can't be evicted: {error}")
            }
        };
        self.write(|status| self.held(status, true, reasons::MAX_HOLD_EXCEEDED, &message)).await?;
        Ok(Next::Rest(Some(Duration::from_secs(10))))
    }
}

/// What became of the pod. Absence is believed only from a quorum, with the UID.
async fn fate(ctx: &Context, namespace: &str, holder: &HolderRef, claim: &ObjectRef<LockClaim>) -> Result<Fate, Error> {
    let seen = ctx.pods.sighting(namespace, holder, claim.clone());
    let absent_for = seen.absent_since.map(|since| since.elapsed());
    if seen.listed && absent_for.is_some() {
        let pods: Api<Pod> = Api::namespaced(ctx.client.clone(), namespace);
        let there = pods.get_opt(&holder.name).await?.filter(|pod| pod.uid().as_ref() == Some(&holder.uid));
        if let Some(pod) = there {
            return Ok(pod::judge(Some(&pod), None));
        }
    }
    Ok(pod::judge(seen.last.as_deref(), absent_for))
}

async fn node_ready(ctx: &Context, node: Option<String>) -> Result<bool, Error> {
    let Some(name) = node else { return Ok(false) };
    let nodes: Api<Node> = Api::all(ctx.client.clone());
    let conditions = nodes.get_opt(&name).await?.and_then(|node| node.status).and_then(|status| status.conditions);
    Ok(conditions.unwrap_or_default().iter().any(|condition| condition.type_ == "Ready" && condition.status == "True"))
}
