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

use kube::ResourceExt;
use tokio::sync::watch;
use tracing::{info, warn};

use super::super::lock::quarantine;
use super::super::stores::{OpenStore, Seat, StoreState};
use super::super::writes::set_finalizer;
use super::super::{Context, Error};
use super::clock::ServerClock;
use super::doubt::{self, Doubt, MARK_EVERY};
use super::ledger::Ledger;
use super::link::Link;
use super::missing;
use super::opening::{Opened, Opener};
use super::report::{self, News};
use super::trouble::Trouble;
use crate::api::condition::{self, reasons, types};
use crate::api::{ConditionStatus, FINALIZER, LockStore, LockStoreStatus};
use crate::clock::{boottime, since};
use crate::failpoint::{Failpoint, around};
use crate::lease::Epoch;
use crate::store::{Control, DirectUsers, Heartbeat, Refusal};

const HEARTBEAT_EVERY: Duration = Duration::from_secs(1);
/// A call that hangs is given up after so long; the next one connects again.
const STEP_LIMIT: Duration = Duration::from_secs(20);
/// A status that can't be written holds up no heartbeat for longer.
const REPORT_LIMIT: Duration = Duration::from_secs(3);

/// One store's loop.
pub(super) struct Reign {
    ctx: Arc<Context>,
    name: String,
    object: watch::Receiver<Arc<LockStore>>,
    seat: Seat,
    link: Option<Link>,
    ledger: Ledger,
    /// The incarnation that answers, and since when, on our own clock.
    seen: Option<(String, Duration)>,
    /// How long a master that is cut off may go on, by the settings of every server that has answered.
    isolated_for: Duration,
    /// The clock of the process that answers.
    clock: ServerClock,
    /// Why the gate is still to be closed.
    closing: Option<String>,
    /// When that clock was last seen to be set, on our own.
    stepped_at: Option<Duration>,
    /// When an epoch was last taken for missing records.
    outgrown_at: Option<Instant>,
    /// When the mark was last raised.
    marked_at: Option<Instant>,
    listener: Option<tokio::task::JoinHandle<()>>,
}

impl Reign {
    pub(super) fn new(ctx: Arc<Context>, name: &str, object: watch::Receiver<Arc<LockStore>>) -> Self {
        let status = object.borrow().status.clone().unwrap_or_default();
        let seat = ctx.stores.seat(name, status.token_floor.unwrap_or(0));
        let name = name.to_owned();
        let ledger = Ledger::new(ctx.client.clone(), &name);
        Self {
            ctx,
            name,
            object,
            seat,
            link: None,
            ledger,
            seen: None,
            isolated_for: Duration::ZERO,
            clock: ServerClock::default(),
            closing: None,
            stepped_at: None,
            outgrown_at: None,
            marked_at: None,
            listener: None,
        }
    }

    /// Runs until another controller reigns.
    pub(super) async fn run(mut self) -> Result<(), Error> {
        self.go_on_recovering();
        let mut tick = tokio::time::interval(HEARTBEAT_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {}
                changed = self.object.changed() => match changed {
                    Ok(()) => self.object_changed(),
                    Err(_) => {
                        self.ctx.metrics.store_gone(&self.name);
                        return Ok(());
                    }
                },
                _ = self.seat.outgrown.changed() => {}
            }
            let step = tokio::time::timeout(STEP_LIMIT, self.step()).await;
            let step = step.unwrap_or_else(|_| Err(Trouble::new(reasons::UNREACHABLE, "the store does not answer")));
            if let Err(trouble) = &step
                && trouble.superseded
            {
                return Err(self.superseded(trouble));
            }
            self.tell(step).await?;
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
            set_finalizer(Failpoint::StoreFinalizer, &self.ledger.api(), &*object, true).await?;
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
        done.map_err(|trouble| trouble.with_advice(&object.spec))
    }

    async fn reign(&mut self, object: &LockStore) -> Result<OpenStore, Trouble> {
        let Some(link) = &mut self.link else {
            return Err(Trouble::new(reasons::UNREACHABLE, "not connected"));
        };
        let facts = link.facts().await?;
        self.isolated_for = self.isolated_for.max(facts.isolation.unwrap_or_default().goes_on_for());
        let store = link.store.clone();
        let uid = object.uid().unwrap_or_default();
        let term = self.ledger.reign().await?;
        self.raise_mark().await?;
        let control = Control::new(store, uid, term);
        let (reign, mark) = (self.ledger.name_of_reign(), self.ledger.known().mark.unwrap_or(0));
        let sent = boottime();
        let heartbeat = match around(Failpoint::StoreHeartbeat, control.heartbeat(reign, mark)).await {
            Ok(Ok(heartbeat)) => heartbeat,
            Ok(Err(Refusal::StaleTerm(highest))) => {
                self.ledger.raise_term(highest).await?;
                self.doubt_begins().await;
                return Err(Trouble::new(reasons::OPENING, "a new term was taken"));
            }
            Ok(Err(refusal)) => return Err(refusal.into()),
            Err(error) if error.is_missing_library() => return Err(self.load_library().await?),
            Err(error) => return Err(error.into()),
        };
        let answered = boottime();
        if heartbeat.role != "master" {
            let message = format!("the server is a {}; the address must be the master's", heartbeat.role);
            return Err(Trouble::new(reasons::NOT_MASTER, message));
        }
        self.look_whether_etcd_went_back(object, &heartbeat).await?;
        let new = self.look_who_answers(&heartbeat).await?;
        let heartbeat = self.close_if_forsaken(&control, heartbeat).await?;
        if let Some(step) = self.clock.read(sent, answered, heartbeat.now) {
            let direction = if step > 0 { "forward" } else { "back" };
            self.closing = Some(format!("Redis's clock was set {direction} by {:.1} s", step.abs() as f64 / 1000.0));
        } else if new && heartbeat.gate.is_some() && owes_closing(object) {
            self.closing = Some("Redis's clock was set".into());
        }
        match self.closing.clone() {
            Some(why) => Err(self.clock_stepped(&control, why).await?),
            None => self.ensure_open(control, heartbeat).await,
        }
    }

    /// The mark rises in etcd, after claims were told of grants, and then in Redis. An API server that is away stops no
    /// heartbeat: it is tried again.
    async fn raise_mark(&mut self) -> Result<(), Trouble> {
        let is_early = self.marked_at.is_some_and(|at| at.elapsed() < MARK_EVERY);
        if is_early || !self.ctx.stores.take_told(&self.name) {
            return Ok(());
        }
        self.marked_at = Some(Instant::now());
        let raise = |status: &mut LockStoreStatus| status.mark = Some(status.mark.unwrap_or(0) + 1);
        match tokio::time::timeout(REPORT_LIMIT, self.ledger.update(Failpoint::StoreMark, raise)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(trouble)) if trouble.superseded => return Err(trouble),
            Ok(Err(trouble)) => warn!(store = self.name, message = trouble.message, "the mark was not raised"),
            Err(_) => warn!(store = self.name, "the mark was not raised: the API server doesn't answer"),
        }
        self.ctx.stores.note_told(&self.name);
        Ok(())
    }

    /// See [`doubt`].
    async fn look_whether_etcd_went_back(&mut self, object: &LockStore, heartbeat: &Heartbeat) -> Result<(), Trouble> {
        let now = jiff::Timestamp::now();
        self.ctx.stores.set_in_doubt(&self.name, self.doubt().is_some());
        if let Some(why) = doubt::evidence(self.ledger.known(), heartbeat) {
            let note = |status: &mut LockStoreStatus| doubt::note(&self.name, status, &why, heartbeat.mark, now);
            self.ledger.update(Failpoint::StoreDoubt, note).await?;
            self.doubt_begins().await;
        }
        if self.doubt() == Some(Doubt::AwaitsConfirmation) && doubt::is_confirmed(object) {
            self.ledger.update(Failpoint::StoreDoubt, |status| doubt::confirm(status, now)).await?;
            self.ctx.stores.set_in_doubt(&self.name, false);
            let note = "nothing runs that etcd has forgotten: what no claim records is freed".to_owned();
            self.ctx.events.normal(object, reasons::CONFIRMED, "FreeForgotten", note).await;
            self.ctx.triggers.all_of_store(&self.ctx, &self.name);
        }
        Ok(())
    }

    fn doubt(&self) -> Option<Doubt> {
        Doubt::of(self.ledger.known())
    }

    async fn doubt_begins(&self) {
        self.ctx.stores.set_in_doubt(&self.name, true);
        let object = self.object.borrow().clone();
        let note = "etcd was put back to an older copy: see the condition EtcdRestored of this LockStore".to_owned();
        warn!(store = self.name, note);
        self.ctx.events.warning(&*object, reasons::ETCD_WENT_BACK, "KeepForgotten", note).await;
    }

    /// Another process, or another data set, is looked at afresh: its quarantine begins now. Whether it is one.
    async fn look_who_answers(&mut self, heartbeat: &Heartbeat) -> Result<bool, Trouble> {
        let incarnation = incarnation(heartbeat);
        if self.seen.as_ref().is_some_and(|(known, _)| *known == incarnation) {
            return Ok(false);
        }
        self.seen = Some((incarnation, boottime()));
        self.clock = ServerClock::default();
        if let Some(link) = &mut self.link {
            link.forget_facts();
            link.ensure_library().await?;
        }
        Ok(true)
    }

    /// A gate that another incarnation was opened after, in a higher epoch: a master that was replaced, that nobody
    /// demoted, answers again. What the other has granted, it doesn't know: it is closed, and opened as a new one is.
    async fn close_if_forsaken(&self, control: &Control, heartbeat: Heartbeat) -> Result<Heartbeat, Trouble> {
        let status = self.object.borrow().status.clone().unwrap_or_default();
        let other = status.incarnation.is_some_and(|known| known != incarnation(&heartbeat));
        let outdated = heartbeat.gate.is_some_and(|gate| Some(gate.get()) < status.epoch);
        if !other || !outdated {
            return Ok(heartbeat);
        }
        around(Failpoint::StoreClose, control.close()).await??;
        warn!(store = self.name, epoch = status.epoch, "the gate of a master that was replaced is closed");
        Ok(Heartbeat { gate: None, ..heartbeat })
    }

    /// The reign before this one has opened the gate, and may have gone before what it had to wait for was over.
    fn go_on_recovering(&self) {
        let object = self.object.borrow().clone();
        let conditions = object.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        if condition::is_true(conditions, types::RECOVERING) {
            let longest = self.ctx.locks_of(&self.name).map(|lock| quarantine(&lock)).max();
            self.ctx.stores.quarantine(&self.name, boottime() + longest.unwrap_or_default());
        }
    }

    /// Leases were measured by a clock that was set: some have ended early, some last too long. The incarnation goes
    /// from etcd, so that closing and quarantine are owed even if this process dies; then the gate closes. What was
    /// granted before is waited out, and the gate is opened with a new epoch. Tried again until both are done.
    async fn clock_stepped(&mut self, control: &Control, message: String) -> Result<Trouble, Trouble> {
        let now = jiff::Timestamp::now();
        self.ledger
            .update(Failpoint::StoreClockStepped, |status| {
                status.incarnation = None;
                let (type_, is, reason) = (types::CLOCK_STEPPED, ConditionStatus::True, reasons::CLOCK_STEPPED);
                condition::set(&mut status.conditions, type_, is, reason, &message, None, now);
            })
            .await?;
        around(Failpoint::StoreClose, control.close()).await??;
        self.closing = None;
        warn!(store = self.name, message, "the gate is closed");
        let now = boottime();
        self.stepped_at = Some(now);
        self.seen = self.seen.take().map(|(known, _)| (known, now));
        let object = self.object.borrow().clone();
        self.ctx.events.warning(&*object, reasons::CLOCK_STEPPED, "CloseGate", message.clone()).await;
        Ok(Trouble::new(reasons::CLOCK_STEPPED, message))
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
        let incarnation = incarnation(&heartbeat);
        let outgrown = *self.seat.outgrown.borrow_and_update();
        let owes_epoch = self.doubt() == Some(Doubt::OwesEpoch);
        if let Some(epoch) = heartbeat.gate.filter(|epoch| !owes_epoch && (*epoch > outgrown || !self.may_outgrow())) {
            self.note_open(&incarnation, epoch).await?;
            return Ok(self.open_store(control, epoch));
        }
        if let Some(epoch) = heartbeat.gate {
            missing::note_all(&self.ctx, &self.name, &control, epoch).await?;
            self.outgrown_at = Some(Instant::now());
        }
        let since = self.seen.as_ref().map_or_else(boottime, |(_, since)| *since);
        let (ctx, name, ledger, control_of) = (&self.ctx, &self.name, &mut self.ledger, &control);
        let mut opening = Opener { ctx, name, ledger, since, isolated_for: self.isolated_for, control: control_of };
        let Opened { epoch, lost } = opening.open(&heartbeat, &incarnation).await?;
        self.note_open(&incarnation, epoch).await?;
        if owes_epoch && heartbeat.gate.is_some() {
            let now = jiff::Timestamp::now();
            self.ledger.update(Failpoint::StoreDoubt, |status| doubt::await_confirmation(status, now)).await?;
        }
        if let Some(lost) = lost {
            let object = self.object.borrow().clone();
            self.ctx.events.warning(&*object, reasons::RECOVERING, "OpenGate", lost).await;
        }
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
            self.ledger
                .update(Failpoint::StoreIncarnation, |status| {
                    status.incarnation = Some(incarnation.to_owned());
                    status.epoch = status.epoch.max(Some(epoch.get()));
                })
                .await?;
        }
        Ok(())
    }

    /// Tells the loops, and the users by conditions and an Event.
    async fn tell(&mut self, step: Result<OpenStore, Trouble>) -> Result<(), Error> {
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
            self.listener = self.link.as_ref().map(|link| tokio::spawn(link.listen(self.ctx.clone(), &self.name)));
        }
        let facts = self.link.as_ref().and_then(Link::known_facts);
        let clock_stepped = self.stepped_at.is_some_and(|at| since(at) < self.longest_lease());
        let recovering = boottime() < self.ctx.stores.quarantined_until(&self.name);
        let news = News { facts, clock_stepped, recovering, ready: ready && !leaving, reason, message: &message };
        let report = report::report(&self.ctx.events, &mut self.ledger, &object, &news);
        match tokio::time::timeout(REPORT_LIMIT, report).await {
            Ok(Ok(())) => {}
            Ok(Err(trouble)) if trouble.superseded => return Err(self.superseded(&trouble)),
            Ok(Err(trouble)) => warn!(store = self.name, message = trouble.message, "the status was not written"),
            Err(_) => warn!(store = self.name, "the status was not written: the API server doesn't answer"),
        }
        Ok(())
    }

    fn superseded(&self, trouble: &Trouble) -> Error {
        Error::Superseded { store: self.name.clone(), why: trouble.message.clone() }
    }

    /// The longest lease that a lock of this store may have granted.
    fn longest_lease(&self) -> Duration {
        self.ctx.locks_of(&self.name).map(|lock| lock.longest_lease()).max().unwrap_or_default()
    }

    /// How many locks use this store.
    fn users(&self) -> usize {
        self.ctx.locks_of(&self.name).count()
    }

    /// A store that no lock uses goes.
    async fn delete(&mut self, object: &LockStore) -> Result<Trouble, Trouble> {
        let term = self.ledger.reign().await?;
        if self.link.is_none() {
            self.link = Link::new(&self.ctx, object).await.ok();
        }
        if let Some(Refusal::StaleTerm(highest)) = self.leave(object, term).await {
            self.ledger.raise_term(highest).await?;
            return Err(Trouble::new(reasons::DELETING, "a new term was taken"));
        }
        if object.finalizers().iter().any(|f| f == FINALIZER) {
            set_finalizer(Failpoint::StoreLetGo, &self.ledger.api(), object, false).await?;
        }
        Ok(Trouble::new(reasons::DELETING, "the store is being deleted"))
    }

    /// The prefix becomes free for another LockStore. A Redis that is gone is not waited for. Why it wasn't done.
    async fn leave(&mut self, object: &LockStore, term: i64) -> Option<Refusal> {
        let link = self.link.as_ref()?;
        let control = Control::new(link.store.clone(), object.uid().unwrap_or_default(), term);
        match around(Failpoint::StoreLeave, control.leave()).await {
            Ok(Ok(())) => {
                info!(store = self.name, "left the key prefix");
                delete_users(&DirectUsers::new(&link.store)).await;
            }
            Ok(Err(refusal)) => {
                warn!(store = self.name, %refusal, "the key prefix stays taken");
                return Some(refusal);
            }
            Err(error) => warn!(store = self.name, %error, "the key prefix stays taken"),
        }
        None
    }
}

impl Drop for Reign {
    fn drop(&mut self) {
        self.disconnect();
    }
}

/// What is left of namespaces that had credentials; where that is refused, there is nothing.
async fn delete_users(users: &DirectUsers) {
    for namespace in users.list().await.unwrap_or_default().into_keys() {
        if let Err(error) = around(Failpoint::CredentialsRevoke, users.delete(&namespace)).await {
            warn!(namespace, %error, "a Redis user was not deleted");
        }
    }
}

fn incarnation(heartbeat: &Heartbeat) -> String {
    format!("{}/{}", heartbeat.run_id, heartbeat.replid)
}

/// Whether a controller before this one has seen that the clock was set, and died before it had opened the gate anew.
fn owes_closing(object: &LockStore) -> bool {
    let status = object.status.as_ref().filter(|status| status.incarnation.is_none());
    status.is_some_and(|status| condition::is_true(&status.conditions, types::CLOCK_STEPPED))
}

fn readiness(state: &StoreState) -> (bool, Option<Epoch>) {
    match state {
        StoreState::Ready(open) => (true, Some(open.epoch)),
        StoreState::NotReady { .. } => (false, None),
    }
}
