//! The reign over one store.
//!
//! # Order
//! 1. `LockStore.status.term` is raised in etcd, above etcd's and Redis's;
//! 2. the heartbeat makes the term known in Redis, which refuses older ones from then on;
//! 3. on an incarnation that status doesn't know, [`super::opening`] restores and opens;
//! 4. `status.incarnation` is written.
//!
//! A crash after 1 leaves a term that nobody uses; after 2 the same; within 3 the gate closed, or open with every
//! quarantine already in the records; before 4 the next reign finds the gate open with the epoch of etcd and
//! only writes what is missing. A term is never used twice, since a reign begins with 1.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt};
use tokio::sync::watch;
use tracing::{info, warn};

use super::super::stores::{OpenStore, Seat, StoreState};
use super::super::writes::{is_conflict, replace_status, set_finalizer};
use super::super::{Context, Error};
use super::link::Link;
use super::opening;
use crate::api::condition::{self, reasons, types};
use crate::api::{ConditionStatus, DistributedLock, FINALIZER, LockStore, LockStoreStatus};
use crate::lease::Epoch;
use crate::store::{Control, Heartbeat, Refusal, StoreError};

const HEARTBEAT_EVERY: Duration = Duration::from_secs(1);
/// A call that hangs is given up after so long; the next one connects again.
const STEP_LIMIT: Duration = Duration::from_secs(20);
/// A status that can't be written holds up no heartbeat for longer.
const REPORT_LIMIT: Duration = Duration::from_secs(3);
/// How often a conflicting status write is decided again.
const TRIES: u32 = 5;

/// Why a store can't be used now: reason and message of its `Ready` condition.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) reason: &'static str,
    pub(super) message: String,
    credentials: bool,
    superseded: bool,
}

impl Trouble {
    pub(super) fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), credentials: false, superseded: false }
    }

    fn superseded(term: i64) -> Self {
        let message = format!("a controller with the higher term {term} reigns");
        Self { superseded: true, ..Self::new(reasons::SUPERSEDED, message) }
    }
}

impl From<StoreError> for Trouble {
    fn from(error: StoreError) -> Self {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        let credentials = error.is_refused_credentials();
        Self { credentials, ..Self::new(error.label(), format!("{error}{cause}")) }
    }
}

impl From<Refusal> for Trouble {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::StoreInUse(uid) => Self::new(
                reasons::STORE_IN_USE,
                format!(
                    "another LockStore (UID {uid}) uses this Redis and keyPrefix; choose another keyPrefix, or, if that store is gone for good, \
                     delete the field uid of the hash KEYPREFIX:store in Redis"
                ),
            ),
            Refusal::StaleTerm(term) => Self::superseded(term),
            other => Self::new(reasons::OPENING, other.to_string()),
        }
    }
}

impl From<kube::Error> for Trouble {
    fn from(error: kube::Error) -> Self {
        Self::new(reasons::API_SERVER_UNREACHABLE, error.to_string())
    }
}

/// One store's loop.
pub(super) struct Reign {
    pub(super) ctx: Arc<Context>,
    pub(super) name: String,
    object: watch::Receiver<Arc<LockStore>>,
    seat: Seat,
    link: Option<Link>,
    term: Option<i64>,
    /// The incarnation that answers, and since when, on our own clock.
    pub(super) seen: Option<(String, Instant)>,
    /// When an epoch was last taken for missing records.
    outgrown_at: Option<Instant>,
    listener: Option<tokio::task::JoinHandle<()>>,
}

impl Reign {
    pub(super) fn new(ctx: Arc<Context>, name: &str, object: watch::Receiver<Arc<LockStore>>) -> Self {
        let floor = object.borrow().status.as_ref().and_then(|status| status.token_floor).unwrap_or(0);
        let seat = ctx.stores.seat(name, floor);
        let name = name.to_owned();
        Self { ctx, name, object, seat, link: None, term: None, seen: None, outgrown_at: None, listener: None }
    }

    /// Runs until another controller reigns.
    pub(super) async fn run(mut self) -> Result<(), Error> {
        let mut tick = tokio::time::interval(HEARTBEAT_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                changed = self.object.changed() => match changed {
                    Ok(()) => self.object_changed(),
                    Err(_) => return Ok(()),
                },
                _ = self.seat.outgrown.changed() => {}
            }
            let step = tokio::time::timeout(STEP_LIMIT, self.step()).await;
            let step = step.unwrap_or_else(|_| Err(Trouble::new(reasons::UNREACHABLE, "the store does not answer")));
            if let Err(trouble) = &step
                && trouble.superseded
            {
                return Err(Error::Superseded { store: self.name.clone(), why: trouble.message.clone() });
            }
            self.tell(step).await;
        }
    }

    fn object_changed(&mut self) {
        let object = self.object.borrow_and_update().clone();
        let known = self.link.as_ref().map(|link| link.prefix.as_str());
        if known.is_some_and(|prefix| prefix != object.spec.key_prefix.as_str()) || self.spec_changed(&object) {
            self.disconnect();
        }
    }

    fn spec_changed(&self, object: &LockStore) -> bool {
        let observed = object.status.as_ref().and_then(|status| status.observed_generation);
        self.link.is_some() && observed != object.metadata.generation
    }

    fn disconnect(&mut self) {
        self.link = None;
        if let Some(listener) = self.listener.take() {
            listener.abort();
        }
    }

    /// Observe, and do what is next, until the gate is open for this reign.
    async fn step(&mut self) -> Result<OpenStore, Trouble> {
        let object = self.object.borrow().clone();
        let leaving = object.metadata.deletion_timestamp.is_some();
        if leaving && self.users() == 0 {
            return Err(self.delete(&object).await?);
        }
        if !leaving && !object.finalizers().iter().any(|f| f == FINALIZER) {
            set_finalizer(&self.api(), &*object, true).await?;
        }
        if self.link.is_none() {
            self.link = Some(Link::new(&self.ctx, &object).await?);
        }
        let done = self.reign(&object).await;
        if let Err(trouble) = &done
            && trouble.credentials
        {
            self.disconnect();
        }
        done
    }

    async fn reign(&mut self, object: &LockStore) -> Result<OpenStore, Trouble> {
        let Some(link) = &mut self.link else {
            return Err(Trouble::new(reasons::UNREACHABLE, "not connected"));
        };
        link.facts().await?;
        let store = link.store.clone();
        let uid = object.uid().unwrap_or_default();
        let term = match self.term {
            Some(term) => term,
            None => self.raise_term(0).await?,
        };
        let control = Control::new(store, uid, term);
        let heartbeat = match control.heartbeat().await {
            Ok(Ok(heartbeat)) => heartbeat,
            Ok(Err(Refusal::StaleTerm(highest))) => {
                self.raise_term(highest).await?;
                return Err(Trouble::new(reasons::OPENING, "a new term was taken"));
            }
            Ok(Err(refusal)) => return Err(refusal.into()),
            Err(error) if error.is_missing_library() => return Err(self.load_library().await?),
            Err(error) => return Err(error.into()),
        };
        self.ensure_open(control, heartbeat).await
    }

    async fn load_library(&mut self) -> Result<Trouble, Trouble> {
        if let Some(link) = &mut self.link {
            link.forget_facts();
            link.facts().await?;
            link.ensure_library().await?;
        }
        Ok(Trouble::new(reasons::OPENING, "the function library was loaded"))
    }

    async fn ensure_open(&mut self, control: Control, heartbeat: Heartbeat) -> Result<OpenStore, Trouble> {
        if heartbeat.role != "master" {
            let message = format!("the server is a {}; the address must be the master's", heartbeat.role);
            return Err(Trouble::new(reasons::NOT_MASTER, message));
        }
        let incarnation = format!("{}/{}", heartbeat.run_id, heartbeat.replid);
        if self.seen.as_ref().is_none_or(|(known, _)| *known != incarnation) {
            self.seen = Some((incarnation.clone(), Instant::now()));
            if let Some(link) = &mut self.link {
                link.forget_facts();
                link.ensure_library().await?;
            }
        }
        let outgrown = *self.seat.outgrown.borrow_and_update();
        if let Some(epoch) = heartbeat.gate.filter(|epoch| *epoch > outgrown || !self.may_outgrow()) {
            self.note_open(&incarnation, epoch).await?;
            return Ok(self.open_store(control, epoch));
        }
        if heartbeat.gate.is_some() {
            self.outgrown_at = Some(Instant::now());
        }
        let epoch = opening::open(self, &control, &heartbeat, &incarnation).await?;
        self.note_open(&incarnation, epoch).await?;
        Ok(self.open_store(control, epoch))
    }

    fn open_store(&self, control: Control, epoch: Epoch) -> OpenStore {
        OpenStore { control, epoch, object: self.object.borrow().clone() }
    }

    /// At most one epoch a minute is taken for missing records.
    fn may_outgrow(&self) -> bool {
        self.outgrown_at.is_none_or(|at| at.elapsed() >= Duration::from_secs(60))
    }

    /// The gate is open: etcd learns for which incarnation, last of all.
    async fn note_open(&mut self, incarnation: &str, epoch: Epoch) -> Result<(), Trouble> {
        let status = self.object.borrow().status.clone().unwrap_or_default();
        let known = status.incarnation.as_deref() == Some(incarnation) && status.epoch >= Some(epoch.get());
        if !known {
            self.update(|status| {
                status.incarnation = Some(incarnation.to_owned());
                status.epoch = status.epoch.max(Some(epoch.get()));
            })
            .await?;
        }
        Ok(())
    }

    pub(super) fn api(&self) -> Api<LockStore> {
        Api::all(self.ctx.client.clone())
    }

    /// Begins a reign: a term above etcd's and Redis's.
    async fn raise_term(&mut self, highest: i64) -> Result<i64, Trouble> {
        let own = self.term.take();
        let api = self.api();
        for _ in 0..TRIES {
            let mut object = api.get(&self.name).await?;
            let status = object.status.get_or_insert_default();
            let stands = status.term.unwrap_or(0);
            if own.is_some_and(|own| own != stands) {
                return Err(Trouble::superseded(stands));
            }
            let term = stands.max(highest) + 1;
            status.term = Some(term);
            match replace_status(&api, &object).await {
                Ok(_) => {
                    info!(store = self.name, term, "reigns");
                    self.term = Some(term);
                    return Ok(term);
                }
                Err(error) if is_conflict(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Trouble::new(reasons::OPENING, "the status is being written by somebody else"))
    }

    /// Changes the status by compare-and-swap, while the term is still ours. Returns what stands.
    pub(super) async fn update(&self, change: impl Fn(&mut LockStoreStatus)) -> Result<LockStoreStatus, Trouble> {
        let api = self.api();
        for _ in 0..TRIES {
            let mut object = api.get(&self.name).await?;
            let before = object.status.clone();
            let status = object.status.get_or_insert_default();
            if let (Some(own), Some(stands)) = (self.term, status.term)
                && stands != own
            {
                return Err(Trouble::superseded(stands));
            }
            change(status);
            if object.status == before {
                return Ok(object.status.unwrap_or_default());
            }
            match replace_status(&api, &object).await {
                Ok(written) => return Ok(written.status.unwrap_or_default()),
                Err(error) if is_conflict(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Trouble::new(reasons::OPENING, "the status is being written by somebody else"))
    }

    /// Tells the loops, and the users by conditions and an Event.
    async fn tell(&mut self, step: Result<OpenStore, Trouble>) {
        let object = self.object.borrow().clone();
        let ready = step.is_ok();
        let leaving = object.metadata.deletion_timestamp.is_some();
        let (reason, message) = match &step {
            Ok(_) if leaving => {
                let message = "the store is being deleted; it serves the locks that use it until they are deleted";
                (reasons::IN_USE, message.to_owned())
            }
            Ok(open) => (reasons::GATE_OPEN, format!("the gate is open with epoch {}", open.epoch.get())),
            Err(trouble) => (trouble.reason, trouble.message.clone()),
        };
        let news = match step {
            Ok(open) => StoreState::Ready(open),
            Err(_) => StoreState::NotReady { reason, message: message.clone() },
        };
        let (was_ready, was_epoch) = readiness(&self.seat.state.borrow());
        let epoch = readiness(&news).1;
        self.seat.state.send_replace(news);
        self.ctx.metrics.store_ready(&self.name, ready);
        if (was_ready, was_epoch) != (ready, epoch) {
            self.ctx.triggers.all_of_store(&self.ctx, &self.name);
        }
        if ready && self.listener.as_ref().is_none_or(tokio::task::JoinHandle::is_finished) {
            self.listen();
        }
        match tokio::time::timeout(REPORT_LIMIT, self.report(&object, ready && !leaving, reason, &message)).await {
            Ok(Ok(())) => {}
            Ok(Err(trouble)) => warn!(store = self.name, message = trouble.message, "the status was not written"),
            Err(_) => warn!(store = self.name, "the status was not written: the API server doesn't answer"),
        }
    }

    async fn report(&self, object: &LockStore, ready: bool, reason: &str, message: &str) -> Result<(), Trouble> {
        let generation = object.metadata.generation;
        let eviction = self.link.as_ref().and_then(Link::known_facts);
        let now = jiff::Timestamp::now();
        let change = |status: &mut LockStoreStatus| {
            status.observed_generation = generation;
            if let Some(facts) = &eviction {
                status.server_version = Some(facts.version.clone());
                let (ok, reason, message) = eviction_condition(facts.eviction.as_deref());
                condition::set(&mut status.conditions, types::EVICTION_SAFE, ok, reason, message, generation, now);
            }
            let is = |yes: bool| {
                if yes { ConditionStatus::True } else { ConditionStatus::False }
            };
            condition::set(&mut status.conditions, types::READY, is(ready), reason, message, generation, now);
            if ready {
                let why = "nothing is to be recovered";
                let (status_, reason) = (ConditionStatus::False, reasons::RECOVERED);
                condition::set(&mut status.conditions, types::RECOVERING, status_, reason, why, generation, now);
            }
        };
        let mut wanted = object.status.clone().unwrap_or_default();
        change(&mut wanted);
        if Some(&wanted) == object.status.as_ref() {
            return Ok(());
        }
        let was = object.status.as_ref().and_then(|status| condition::get(&status.conditions, types::READY));
        let was = was.map(|condition| (condition.status, condition.reason.clone()));
        self.update(change).await?;
        let changed = was.is_none_or(|(status, old)| (status == ConditionStatus::True) != ready || old != reason);
        if changed && ready {
            self.ctx.events.normal(object, reason, "OpenGate", message.to_owned()).await;
        } else if changed && reason != reasons::OPENING {
            self.ctx.events.warning(object, reason, "UseStore", message.to_owned()).await;
        }
        Ok(())
    }

    /// How many locks use this store.
    fn users(&self) -> usize {
        self.ctx.locks().iter().filter(|lock| lock.store_name() == self.name).count()
    }

    /// A store that no lock uses goes.
    async fn delete(&mut self, object: &LockStore) -> Result<Trouble, Trouble> {
        self.leave(object).await;
        if object.finalizers().iter().any(|f| f == FINALIZER) {
            set_finalizer(&self.api(), object, false).await?;
        }
        Ok(Trouble::new(reasons::DELETING, "the store is being deleted"))
    }

    /// The prefix becomes free for another LockStore. A Redis that is gone is not waited for.
    async fn leave(&mut self, object: &LockStore) {
        let (Some(link), Some(term)) = (&self.link, self.term) else { return };
        let control = Control::new(link.store.clone(), object.uid().unwrap_or_default(), term);
        match control.leave().await {
            Ok(Ok(())) => info!(store = self.name, "left the key prefix"),
            Ok(Err(refusal)) => warn!(store = self.name, %refusal, "the key prefix stays taken"),
            Err(error) => warn!(store = self.name, %error, "the key prefix stays taken"),
        }
    }

    /// Listens to changes, and turns them into triggers, until the connection ends.
    fn listen(&mut self) {
        let Some(link) = &self.link else { return };
        let (endpoint, prefix, ctx) = (link.endpoint.clone(), link.prefix.clone(), self.ctx.clone());
        let name = self.name.clone();
        self.listener = Some(tokio::spawn(async move {
            match endpoint.changes(&prefix).await {
                Ok(changes) => {
                    ctx.triggers.all_of_store(&ctx, &name);
                    let mut changes = std::pin::pin!(changes);
                    while let Some(change) = changes.next().await {
                        let lock = ObjectRef::<DistributedLock>::new(change.lock.name());
                        ctx.triggers.lock(lock.within(change.lock.namespace()));
                        if let Some(claim) = change.offered.and_then(|id| ctx.renewals.claim_of(&id)) {
                            ctx.triggers.claim(claim);
                        }
                    }
                }
                Err(error) => {
                    warn!(store = name, %error, "can't listen to changes; the slow look goes on")
                }
            }
        }));
    }
}

impl Drop for Reign {
    fn drop(&mut self) {
        self.disconnect();
    }
}

fn readiness(state: &StoreState) -> (bool, Option<Epoch>) {
    match state {
        StoreState::Ready(open) => (true, Some(open.epoch)),
        StoreState::NotReady { .. } => (false, None),
    }
}

fn eviction_condition(policy: Option<&str>) -> (ConditionStatus, &'static str, &'static str) {
    match policy {
        None => (ConditionStatus::Unknown, reasons::NOT_ALLOWED_TO_READ, "CONFIG GET maxmemory-policy is refused"),
        Some("noeviction") => (ConditionStatus::True, reasons::NO_EVICTION, "nothing is evicted"),
        Some(policy) if policy.starts_with("volatile-") => (
            ConditionStatus::False,
            reasons::EVICTS_VOLATILE_KEYS,
            "locks have no TTL and are not evicted, but noeviction says it for sure",
        ),
        Some(_) => (ConditionStatus::False, reasons::EVICTING_MEMORY_POLICY, "Redis may evict locks"),
    }
}
