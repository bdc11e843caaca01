//! The reference model: the protocol of `leasehold.lua` again, in memory, for one lock of one store.
//!
//! It exists to be compared with the real thing by random sequences, so it is written for reading, not for
//! speed, and takes `now` (the server's clock, in milliseconds) from whoever drives it.

mod control;
mod record;
mod workload;

use std::collections::BTreeMap;
use std::time::Duration;

pub use control::Reign;
use record::Record;

use super::{Hold, HoldState, Inspection};
use crate::lease::{Epoch, HolderId, Request};

const REMEMBERED: usize = 128;
const REMEMBER_MS: i64 = 60_000;
const REFRESH_MS: i64 = 15_000;
const HEARTBEAT_STALE_MS: i64 = 10_000;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asker {
    /// A process by itself.
    Direct,
    /// The controller for somebody.
    Delegated,
    /// The controller for somebody whose turn may not come yet.
    Reserving,
}

#[derive(Debug, Clone)]
struct Waiter {
    request: Request,
    seq: i64,
    deadline: Option<i64>,
    refresh: Option<i64>,
    asker: Asker,
    /// Of a reserved place whose turn has come: until when it is kept.
    turn_ends: Option<i64>,
    /// Time has taken a hold of this id that was never renewed.
    again: bool,
}

impl Waiter {
    fn new(request: Request, seq: i64, asker: Asker) -> Self {
        Self { request, seq, deadline: None, refresh: None, asker, turn_ends: None, again: false }
    }

    /// Its place, where it stands again when what it was granted is lost untold.
    fn reserved(&self) -> Self {
        let place = Self::new(self.request.clone(), self.seq, Asker::Reserving);
        Self { again: self.again, ..place }
    }

    fn gone(&self, now: i64) -> bool {
        self.refresh.is_some_and(|at| at <= now) || self.deadline.is_some_and(|at| at <= now)
    }
}

#[derive(Debug, Clone, Copy)]
struct Gate {
    epoch: Epoch,
    heartbeat: i64,
}

#[derive(Debug, Clone, Default)]
struct StoreKey {
    uid: Option<String>,
    term: i64,
    reign: Option<String>,
    mark: i64,
    opened: Option<(Epoch, String, String)>,
}

/// One lock under one prefix in one Redis process.
#[derive(Debug, Clone)]
pub struct Model {
    /// The server's clock.
    pub now: i64,
    /// Identity of the process and of its data set.
    pub process: (String, String),
    gates: BTreeMap<String, Gate>,
    terms: BTreeMap<String, i64>,
    store: StoreKey,
    record: Option<Record>,
    queue: Vec<Waiter>,
}

fn ms(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

impl Model {
    /// A process that has just started, without data.
    pub fn new(now: i64, process: (String, String)) -> Self {
        let (gates, terms, store) = (BTreeMap::new(), BTreeMap::new(), StoreKey::default());
        Self { now, process, gates, terms, store, record: None, queue: Vec::new() }
    }

    /// The process ends and another starts, without data.
    pub fn restart(&mut self, process: (String, String)) {
        *self = Self::new(self.now, process);
    }

    /// All keys are gone; the process and its memory stay.
    pub fn flush_all(&mut self) {
        (self.store, self.record) = (StoreKey::default(), None);
        self.queue.clear();
    }

    /// The record is gone, evicted; its queue is another key.
    pub fn lose_record(&mut self) {
        self.record = None;
    }

    /// The library is loaded again: its memory is gone.
    pub fn reload_library(&mut self) {
        self.gates.clear();
        self.terms.clear();
    }

    /// The process was demoted and promoted again: it has its data and its memory, but its data set has another
    /// name, which closes its gates at the next look.
    pub fn promoted(&mut self, replid: String) {
        self.process.1 = replid;
        self.gates.clear();
    }

    /// The record, swept, if there is one; an untold hold that is over stands where it stood.
    fn load(&mut self) -> Option<&mut Record> {
        let now = self.now;
        let record = self.record.as_mut()?;
        record.sweep(now);
        let over: Vec<Hold> = record.over(now).cloned().collect();
        let again = |hold: &Hold| hold.renewed == hold.acquired;
        let stand = over.iter().filter_map(|hold| Some(Waiter { again: again(hold), ..record.stand_again(&hold.id)? }));
        let stand: Vec<Waiter> = stand.collect();
        stand.into_iter().for_each(|waiter| self.line_up(waiter));
        self.record.as_mut()
    }

    fn line_up(&mut self, waiter: Waiter) {
        self.queue.push(waiter);
        self.queue.sort_by_key(|w| (std::cmp::Reverse(w.request.priority), w.seq));
    }

    fn gate_of_record(&self) -> Option<Gate> {
        self.record.as_ref().and_then(|record| self.gates.get(&record.store)).copied()
    }

    /// Whether this process's gate of a store is open.
    pub fn is_open(&self, uid: &str) -> bool {
        self.gates.contains_key(uid)
    }

    /// As [`super::Store::inspect`].
    pub fn inspect(&self) -> Option<Inspection> {
        let record = self.record.as_ref()?;
        let live = |hold: &&Hold| hold.state == HoldState::Pinned || hold.expires > self.now;
        let mut holds: Vec<Hold> = record.holds.iter().filter(live).cloned().collect();
        holds.sort_by_key(|hold| hold.token);
        Some(Inspection {
            now: self.now,
            lock_uid: record.lock_uid.clone(),
            generation: record.generation,
            permits: record.permits,
            lease: record.lease,
            last: record.last,
            sealed: record.sealed,
            quarantine: (record.not_before - self.now).max(0),
            gate_open: self.gate_of_record().is_some(),
            holds,
            waiters: self.waiters().map(|waiter| (waiter.request.id.clone(), waiter.asker != Asker::Direct)).collect(),
        })
    }

    fn waiters(&self) -> impl Iterator<Item = &Waiter> {
        self.queue.iter().filter(|waiter| !waiter.gone(self.now))
    }

    /// Whether one waits whose place is reserved.
    pub fn is_reserved(&self, id: &HolderId) -> bool {
        self.waiters().any(|waiter| waiter.request.id == *id && waiter.asker == Asker::Reserving)
    }

    /// Those that wait, and those that hold and would stand again where they did.
    pub fn placed(&self) -> impl Iterator<Item = &HolderId> {
        let held = self.record.iter().flat_map(|record| record.placed(self.now));
        held.chain(self.waiters().map(|waiter| &waiter.request.id))
    }

    /// What those who wait have asked for, in the order in which they are served.
    pub fn waiting(&self) -> Vec<Request> {
        self.waiters().map(|waiter| waiter.request.clone()).collect()
    }

    /// The ids that ended last, at most so many, the last one first.
    pub fn finished(&self, limit: usize) -> Vec<HolderId> {
        let finished = self.record.iter().flat_map(|record| record.finished.iter().rev());
        finished.take(limit).map(|(id, ..)| id.clone()).collect()
    }

    /// Every time at which an answer may change, in no order.
    pub fn deadlines(&self) -> Vec<i64> {
        let waiters = self.queue.iter().flat_map(|w| [w.refresh, w.deadline, w.turn_ends]).flatten();
        let heartbeats = self.gates.values().map(|gate| gate.heartbeat + HEARTBEAT_STALE_MS);
        let record = self.record.iter().flat_map(|record| {
            let holds = record.holds.iter().map(|hold| hold.expires);
            holds.chain(record.finished.iter().map(|(_, till, _)| *till)).chain([record.not_before])
        });
        waiters.chain(heartbeats).chain(record).filter(|at| *at > self.now).collect()
    }
}
