//! The reference model: the protocol of `leasehold.lua` again, in memory, for one lock of one store.
//!
//! It exists to be compared with the real thing by random sequences, so it is written for reading, not for
//! speed, and takes `now` (the server's clock, in milliseconds) from whoever drives it.

use std::time::Duration;

use super::{Due, Hold, HoldState, Opening, Provision, Provisioned, Refusal, Sealed};
use crate::lease::{Acquired, Epoch, FencingToken, Grant, HolderId, Mode, Released, Renewed, Request, Wait};

const REMEMBERED: usize = 128;
const REMEMBER_MS: i64 = 60_000;
const REFRESH_MS: i64 = 15_000;
const HEARTBEAT_STALE_MS: i64 = 10_000;

/// What an ended id is remembered for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Released,
    Expired,
    Cancelled,
}

#[derive(Debug, Clone)]
struct Waiter {
    request: Request,
    seq: i64,
    deadline: Option<i64>,
    refresh: Option<i64>,
    delegated: bool,
}

impl Waiter {
    fn gone(&self, now: i64) -> bool {
        self.refresh.is_some_and(|at| at <= now) || self.deadline.is_some_and(|at| at <= now)
    }
}

#[derive(Debug, Clone)]
struct Record {
    lock_uid: String,
    generation: i64,
    permits: u32,
    lease: i64,
    max_hold: i64,
    last: i64,
    seq: i64,
    sealed: bool,
    not_before: i64,
    holds: Vec<Hold>,
    finished: Vec<(HolderId, i64, Ended)>,
}

#[derive(Debug, Clone, Copy)]
struct Gate {
    epoch: Epoch,
    term: i64,
    heartbeat: i64,
}

#[derive(Debug, Clone, Default)]
struct StoreKey {
    term: i64,
    opened: Option<(Epoch, String, String)>,
}

/// One lock in one store in one Redis process.
#[derive(Debug, Clone)]
pub struct Model {
    /// The server's clock.
    pub now: i64,
    /// Identity of the process and of its data set.
    pub process: (String, String),
    gate: Option<Gate>,
    store: StoreKey,
    record: Option<Record>,
    queue: Vec<Waiter>,
}

fn ms(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

fn duration(ms: i64) -> Duration {
    Duration::from_millis(ms.max(0).unsigned_abs())
}

fn grant_of(hold: &Hold, now: i64) -> Grant {
    Grant { token: hold.token, remaining: duration(hold.expires - now) }
}

impl Record {
    fn refresh(&self) -> i64 {
        self.lease.min(REFRESH_MS)
    }

    fn lease_end(&self, acquired: i64, expires: i64, now: i64) -> i64 {
        let till = now + self.lease;
        let till = if self.max_hold > 0 { till.min(acquired + self.max_hold) } else { till };
        expires.max(till)
    }

    fn hold(&mut self, id: &HolderId) -> Option<&mut Hold> {
        self.holds.iter_mut().find(|hold| hold.id == *id)
    }

    fn ended(&self, id: &HolderId, now: i64) -> Option<Ended> {
        self.finished.iter().rev().find(|(known, till, _)| known == id && *till > now).map(|(_, _, how)| *how)
    }

    fn remember(&mut self, id: HolderId, how: Ended, now: i64) {
        self.finished.push((id, now + self.lease.min(REMEMBER_MS), how));
        if self.finished.len() > REMEMBERED {
            self.finished.remove(0);
        }
    }

    fn end(&mut self, id: &HolderId, how: Ended, now: i64) {
        self.holds.retain(|hold| hold.id != *id);
        self.remember(id.clone(), how, now);
    }

    /// Ends what is over; the real record does so at its first use after that time.
    fn sweep(&mut self, now: i64) {
        let over = |hold: &&Hold| hold.state != HoldState::Pinned && hold.expires <= now;
        let ids: Vec<HolderId> = self.holds.iter().filter(over).map(|hold| hold.id.clone()).collect();
        for id in ids {
            self.end(&id, Ended::Expired, now);
        }
    }

    fn used(&self) -> u32 {
        self.holds.iter().map(|hold| hold.mode.counted()).sum()
    }

    fn has(&self, mode: Mode) -> bool {
        self.holds.iter().any(|hold| hold.mode == mode)
    }

    fn fits(&self, mode: Mode) -> bool {
        let readers = u32::from(self.has(Mode::Shared));
        match mode {
            _ if self.has(Mode::Exclusive) => false,
            Mode::Exclusive => self.holds.is_empty(),
            Mode::Shared => readers > 0 || self.used() < self.permits,
            Mode::Counted(permits) => self.used() + readers + permits <= self.permits,
        }
    }

    fn satisfiable(&self, mode: Mode) -> bool {
        mode.counted() <= self.permits
    }

    fn next_token(&self, epoch: Epoch) -> Option<FencingToken> {
        let token = (self.last + 1).max((epoch.get() << 32) + 1);
        if token < epoch.ceiling() { FencingToken::new(token) } else { None }
    }

    fn open_for_grants(&self, epoch: Epoch, now: i64) -> bool {
        !self.sealed && self.not_before <= now && self.next_token(epoch).is_some()
    }

    fn add(&mut self, request: &Request, token: FencingToken, state: HoldState, expires: i64, now: i64) -> Grant {
        let Request { id, mode, identity, pod_uid, .. } = request.clone();
        let hold = Hold { id, token, mode, state, acquired: now, renewed: now, expires, identity, pod_uid };
        let grant = grant_of(&hold, now);
        self.last = token.get();
        self.holds.push(hold);
        grant
    }

    fn extend(&mut self, id: &HolderId, state: HoldState, now: i64) -> Option<Grant> {
        let (lease, max_hold) = (self.lease, self.max_hold);
        let hold = self.hold(id)?;
        let till = now + lease;
        let till = if max_hold > 0 { till.min(hold.acquired + max_hold) } else { till };
        (hold.state, hold.renewed, hold.expires) = (state, now, hold.expires.max(till));
        Some(grant_of(hold, now))
    }
}

impl Model {
    /// A process that has just started, without data.
    pub fn new(now: i64, process: (String, String)) -> Self {
        Self { now, process, gate: None, store: StoreKey::default(), record: None, queue: Vec::new() }
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

    /// The library is loaded again: its memory is gone.
    pub fn reload_library(&mut self) {
        self.gate = None;
    }

    /// The record, swept, if there is one.
    fn load(&mut self) -> Option<&mut Record> {
        let now = self.now;
        let record = self.record.as_mut()?;
        record.sweep(now);
        Some(record)
    }

    /// As [`super::Store::acquire`].
    pub fn acquire(&mut self, request: &Request) -> Acquired {
        self.contend(request, false)
    }

    fn contend(&mut self, request: &Request, delegated: bool) -> Acquired {
        let now = self.now;
        let Some(record) = self.load() else { return Acquired::Unprovisioned };
        let ended = record.ended(&request.id, now);
        if let Some(hold) = record.hold(&request.id) {
            if hold.state == HoldState::Offer && !delegated {
                return record.extend(&request.id, HoldState::Held, now).map_or(Acquired::Lost, Acquired::Granted);
            }
            return Acquired::Granted(grant_of(hold, now));
        }
        if ended.is_some() {
            return Acquired::Lost;
        }
        if record.sealed {
            return Acquired::Sealed;
        }
        let permits = record.permits;
        if !record.satisfiable(request.mode) {
            self.leave(&request.id);
            return Acquired::Unsatisfiable { permits };
        }
        let Some(gate) = self.gate else {
            if self.place(&request.id).is_some() {
                self.enqueue(request, delegated);
            }
            return Acquired::GateClosed;
        };
        self.contend_open(request, delegated, gate)
    }

    fn contend_open(&mut self, request: &Request, delegated: bool, gate: Gate) -> Acquired {
        let now = self.now;
        let Some(record) = &mut self.record else { return Acquired::Unprovisioned };
        let Some(token) = record.next_token(gate.epoch) else { return Acquired::EpochExhausted };
        let can = record.open_for_grants(gate.epoch, now) && record.fits(request.mode);
        if self.queue.is_empty() && can {
            let expires = record.lease_end(now, now, now);
            return Acquired::Granted(record.add(request, token, HoldState::Held, expires, now));
        }
        if request.wait == Wait::No && !can {
            self.leave(&request.id);
            self.promote(None);
            return Acquired::Busy { retry: self.retry(None) };
        }
        self.enqueue(request, delegated);
        if let Some(grant) = self.promote(Some(&request.id)) {
            return Acquired::Granted(grant);
        }
        match request.wait {
            Wait::No => {
                self.leave(&request.id);
                Acquired::Busy { retry: self.retry(None) }
            }
            Wait::For(time) => Acquired::Queued { retry: self.retry(Some(ms(time))) },
            Wait::Forever => Acquired::Queued { retry: self.retry(None) },
        }
    }

    /// An upper bound: the real record may ask to come earlier, at an end that is already past.
    fn retry(&self, wait: Option<i64>) -> Duration {
        let Some(record) = &self.record else { return Duration::ZERO };
        let at = self.now + record.refresh() / 3;
        let quarantine = Some(record.not_before).filter(|t| *t > self.now);
        let at = [quarantine, wait.map(|wait| self.now + wait)].into_iter().flatten().fold(at, i64::min);
        duration((at - self.now).max(1))
    }

    fn place(&self, id: &HolderId) -> Option<usize> {
        self.queue.iter().position(|waiter| waiter.request.id == *id)
    }

    fn leave(&mut self, id: &HolderId) {
        self.queue.retain(|waiter| waiter.request.id != *id);
    }

    fn enqueue(&mut self, request: &Request, delegated: bool) {
        let now = self.now;
        let Some(record) = &mut self.record else { return };
        let refresh = record.refresh();
        if self.place(&request.id).is_some_and(|at| self.queue[at].gone(now)) {
            self.leave(&request.id);
        }
        if self.place(&request.id).is_none() {
            let Some(record) = &mut self.record else { return };
            record.seq = (record.seq + 1).max(now * 1000);
            let (request, seq) = (request.clone(), record.seq);
            self.queue.push(Waiter { request, seq, deadline: None, refresh: None, delegated });
            self.queue.sort_by_key(|w| (std::cmp::Reverse(w.request.priority), w.seq));
        }
        if let Some(at) = self.place(&request.id) {
            self.queue[at].deadline = match request.wait {
                Wait::Forever => None,
                Wait::No => Some(now + 1),
                Wait::For(time) => Some(now + ms(time).max(1)),
            };
            self.queue[at].refresh = (!self.queue[at].delegated && !delegated).then_some(now + refresh);
        }
    }

    fn promote(&mut self, own: Option<&HolderId>) -> Option<Grant> {
        let (now, gate) = (self.now, self.gate?);
        let record = self.record.as_mut()?;
        let (mut at, mut granted) = (0, None);
        while at < self.queue.len() && record.open_for_grants(gate.epoch, now) && !record.has(Mode::Exclusive) {
            let waiter = &self.queue[at];
            let mine = own == Some(&waiter.request.id);
            let away = waiter.delegated && now > gate.heartbeat + HEARTBEAT_STALE_MS && !mine;
            if waiter.gone(now) || !record.satisfiable(waiter.request.mode) {
                self.queue.remove(at);
            } else if away {
                at += 1;
            } else if !record.fits(waiter.request.mode) {
                break;
            } else {
                let waiter = self.queue.remove(at);
                let token = record.next_token(gate.epoch)?;
                let (state, expires) = match (mine, waiter.deadline) {
                    (true, _) => (HoldState::Held, record.lease_end(now, now, now)),
                    (false, Some(deadline)) => (HoldState::Offer, deadline.min(now + record.refresh())),
                    (false, None) => (HoldState::Offer, now + record.refresh()),
                };
                let grant = record.add(&waiter.request, token, state, expires, now);
                granted = granted.or(mine.then_some(grant));
            }
        }
        granted
    }

    /// As [`super::Store::renew`], of one hold.
    pub fn renew(&mut self, id: &HolderId) -> Renewed {
        let now = self.now;
        let Some(record) = self.load() else { return Renewed::Unprovisioned };
        let ended = record.ended(id, now);
        let sealed = record.sealed;
        match record.hold(id).map(|hold| hold.state) {
            None if ended.is_some() => Renewed::Lost,
            None => Renewed::NotHeld,
            Some(HoldState::Pinned) => record.extend(id, HoldState::Pinned, now).map_or(Renewed::Lost, Renewed::Held),
            Some(_) if sealed => Renewed::Lost,
            Some(_) => record.extend(id, HoldState::Held, now).map_or(Renewed::Lost, Renewed::Held),
        }
    }

    fn finish(&mut self, id: &HolderId, how: Ended) {
        let now = self.now;
        if let Some(record) = &mut self.record {
            record.end(id, how, now);
        }
        self.promote(None);
    }

    /// As [`super::Store::release`].
    pub fn release(&mut self, id: &HolderId) -> Released {
        let now = self.now;
        let before = self.record.as_ref().map_or(0, |record| record.holds.len());
        let Some(record) = self.load() else { return Released::Unprovisioned };
        let swept = record.holds.len() != before;
        let ended = record.ended(id, now);
        match record.hold(id).map(|hold| hold.state) {
            Some(HoldState::Pinned) => return Released::Pinned,
            Some(_) => {
                self.finish(id, Ended::Released);
                return Released::Released;
            }
            None if swept => {
                self.promote(None);
            }
            None => {}
        }
        match ended {
            Some(Ended::Released) => Released::Released,
            Some(Ended::Expired) => Released::Lost,
            Some(Ended::Cancelled) => Released::Cancelled,
            None => Released::NotHeld,
        }
    }

    /// As [`super::Store::cancel`].
    pub fn cancel(&mut self, id: &HolderId) -> Released {
        let now = self.now;
        let Some(record) = self.load() else { return Released::Unprovisioned };
        match record.hold(id).map(|hold| hold.state) {
            Some(HoldState::Pinned) => return Released::Pinned,
            Some(_) => self.finish(id, Ended::Cancelled),
            None => self.leave_for_good(id, Ended::Cancelled, now),
        }
        Released::Cancelled
    }

    fn leave_for_good(&mut self, id: &HolderId, how: Ended, now: i64) {
        self.leave(id);
        if let Some(record) = self.record.as_mut().filter(|record| record.ended(id, now).is_none()) {
            record.remember(id.clone(), how, now);
        }
        self.promote(None);
    }

    /// The holds that count at this time, oldest grant first; `None` without a record.
    pub fn holds(&self) -> Option<Vec<Hold>> {
        let record = self.record.as_ref()?;
        let live = |hold: &&Hold| hold.state == HoldState::Pinned || hold.expires > self.now;
        let mut holds: Vec<Hold> = record.holds.iter().filter(live).cloned().collect();
        holds.sort_by_key(|hold| hold.token);
        Some(holds)
    }

    /// The ids of the waiters that have not been given up, in the order in which they are served.
    pub fn waiters(&self) -> Vec<HolderId> {
        self.queue.iter().filter(|w| !w.gone(self.now)).map(|w| w.request.id.clone()).collect()
    }

    /// The last token granted, or the floor of the next.
    pub fn last(&self) -> Option<i64> {
        self.record.as_ref().map(|record| record.last)
    }

    fn refused(&self, term: i64) -> Option<Refusal> {
        let highest = self.store.term.max(self.gate.map_or(0, |gate| gate.term));
        (term < highest).then_some(Refusal::StaleTerm(highest))
    }

    fn admit(&self, term: i64) -> Result<Gate, Refusal> {
        match self.refused(term) {
            Some(refusal) => Err(refusal),
            None => self.gate.ok_or(Refusal::GateClosed),
        }
    }

    /// As [`super::Control::heartbeat`]; answers the epoch of the gate.
    ///
    /// # Errors
    /// The refusal of an older term. Those below: of what the real function refuses.
    pub fn heartbeat(&mut self, term: i64) -> Result<Option<Epoch>, Refusal> {
        if let Some(refusal) = self.refused(term) {
            return Err(refusal);
        }
        self.store.term = term;
        if let Some(gate) = &mut self.gate {
            (gate.heartbeat, gate.term) = (self.now, term);
        }
        Ok(self.gate.map(|gate| gate.epoch))
    }

    /// As [`super::Control::open`].
    ///
    /// # Errors
    /// See [`Model::heartbeat`].
    pub fn open(&mut self, term: i64, opening: &Opening) -> Result<(), Refusal> {
        if let Some(refusal) = self.refused(term) {
            return Err(refusal);
        }
        let Opening { run_id, replid, epoch } = opening.clone();
        if self.process != (run_id.clone(), replid.clone()) {
            return Err(Refusal::OtherProcess);
        }
        let opened = self.store.opened.clone();
        let used = opened.as_ref().map_or(Epoch::default(), |(epoch, ..)| *epoch);
        let used = used.max(self.gate.map_or(Epoch::default(), |gate| gate.epoch));
        let other = opened.is_some_and(|(_, r, p)| (r, p) != (run_id.clone(), replid.clone()));
        if epoch < used || epoch == used && other {
            return Err(Refusal::StaleEpoch(used.get()));
        }
        self.store = StoreKey { term, opened: Some((epoch, run_id, replid)) };
        self.gate = Some(Gate { epoch, term, heartbeat: self.now });
        Ok(())
    }

    /// As [`super::Control::provision`].
    ///
    /// # Errors
    /// See [`Model::heartbeat`].
    pub fn provision(&mut self, term: i64, provision: &Provision) -> Result<Provisioned, Refusal> {
        self.admit(term)?;
        let provisioned = self.configure(provision);
        self.promote(None);
        Ok(provisioned)
    }

    /// As [`super::Control::restore`].
    ///
    /// # Errors
    /// See [`Model::heartbeat`].
    pub fn restore(&mut self, term: i64, provision: &Provision, opening: &Opening) -> Result<Provisioned, Refusal> {
        match self.refused(term) {
            Some(refusal) => Err(refusal),
            None if self.process != (opening.run_id.clone(), opening.replid.clone()) => Err(Refusal::OtherProcess),
            None if self.gate.is_some() => Err(Refusal::GateOpen),
            None => Ok(self.configure(provision)),
        }
    }

    fn configure(&mut self, provision: &Provision) -> Provisioned {
        let now = self.now;
        let fresh = self.load().is_none();
        let record = self.record.get_or_insert_with(|| Record {
            lock_uid: String::new(),
            generation: 0,
            permits: 1,
            lease: 1,
            max_hold: 0,
            last: 0,
            seq: 0,
            sealed: false,
            not_before: 0,
            holds: Vec::new(),
            finished: Vec::new(),
        });
        let same = record.lock_uid == provision.lock_uid;
        if !same || provision.generation >= record.generation {
            record.sealed &= same;
            record.lock_uid.clone_from(&provision.lock_uid);
            (record.generation, record.permits) = (provision.generation, provision.permits);
            (record.lease, record.max_hold) = (ms(provision.lease), provision.max_hold.map_or(0, ms));
        }
        let tampered = provision.token_ceiling.is_some_and(|ceiling| record.last >= ceiling);
        record.last = if tampered { 0 } else { record.last }.max(provision.token_floor);
        if provision.quarantine > Duration::ZERO {
            record.not_before = record.not_before.max(now + ms(provision.quarantine));
        }
        for remembered in provision.holds.clone() {
            match record.hold(&remembered.id) {
                Some(hold) => hold.state = HoldState::Pinned,
                None => {
                    record.last = record.last.max(remembered.token.get());
                    record.holds.push(Hold {
                        id: remembered.id,
                        token: remembered.token,
                        mode: remembered.mode,
                        state: HoldState::Pinned,
                        acquired: now,
                        renewed: now,
                        expires: now + record.lease,
                        identity: remembered.identity,
                        pod_uid: remembered.pod_uid,
                    });
                }
            }
        }
        Provisioned { fresh, tampered }
    }

    /// As [`super::Control::claim`].
    ///
    /// # Errors
    /// See [`Model::heartbeat`].
    pub fn claim(&mut self, term: i64, request: &Request) -> Result<Acquired, Refusal> {
        self.admit(term)?;
        Ok(self.contend(request, true))
    }

    /// As [`super::Control::pin`].
    ///
    /// # Errors
    /// See [`Model::heartbeat`].
    pub fn pin(&mut self, term: i64, id: &HolderId) -> Result<Renewed, Refusal> {
        self.admit(term)?;
        let now = self.now;
        let before = self.record.as_ref().map_or(0, |record| record.holds.len());
        let Some(record) = self.load() else { return Ok(Renewed::Unprovisioned) };
        let swept = record.holds.len() != before;
        match record.hold(id).map(|hold| (hold.state, grant_of(hold, now))) {
            None => {
                if swept {
                    self.promote(None);
                }
                Ok(Renewed::Lost)
            }
            Some((HoldState::Pinned, grant)) => Ok(Renewed::Held(grant)),
            Some(_) => Ok(record.extend(id, HoldState::Pinned, now).map_or(Renewed::Lost, Renewed::Held)),
        }
    }

    /// As [`super::Control::free`].
    ///
    /// # Errors
    /// See [`Model::heartbeat`].
    pub fn free(&mut self, term: i64, id: &HolderId) -> Result<(), Refusal> {
        self.admit(term)?;
        let now = self.now;
        let Some(record) = self.load() else { return Err(Refusal::Unprovisioned) };
        if record.hold(id).is_some() {
            self.finish(id, Ended::Released);
        } else {
            self.leave_for_good(id, Ended::Released, now);
        }
        Ok(())
    }

    /// As [`super::Control::expire`], of this one lock.
    ///
    /// # Errors
    /// See [`Model::heartbeat`].
    pub fn expire(&mut self, term: i64) -> Result<Due, Refusal> {
        self.admit(term)?;
        let now = self.now;
        if self.load().is_none() {
            return Ok(Due::Unprovisioned);
        }
        self.queue.retain(|waiter| !waiter.gone(now));
        self.promote(None);
        let Some(record) = &self.record else { return Ok(Due::Unprovisioned) };
        let unpinned = record.holds.iter().filter(|hold| hold.state != HoldState::Pinned).map(|hold| hold.expires);
        let quarantine = Some(record.not_before).filter(|at| *at > now);
        Ok(unpinned.chain(quarantine).min().map_or(Due::Nothing, |at| Due::In(duration(at - now))))
    }

    /// As [`super::Control::seal`].
    ///
    /// # Errors
    /// See [`Model::heartbeat`].
    pub fn seal(&mut self, term: i64, lock_uid: &str) -> Result<Sealed, Refusal> {
        self.admit(term)?;
        let now = self.now;
        let Some(record) = self.load() else { return Err(Refusal::Unprovisioned) };
        if record.lock_uid != lock_uid {
            return Err(Refusal::OtherLock(record.lock_uid.clone()));
        }
        record.sealed = true;
        let (pinned, direct): (Vec<&Hold>, Vec<&Hold>) =
            record.holds.iter().partition(|hold| hold.state == HoldState::Pinned);
        let direct = direct.iter().map(|hold| hold.expires - now).max().unwrap_or(0);
        let sealed = Sealed { last: record.last, direct: duration(direct), pinned: pinned.len() as u32 };
        self.queue.clear();
        Ok(sealed)
    }

    /// As [`super::Control::purge`].
    ///
    /// # Errors
    /// See [`Model::heartbeat`].
    pub fn purge(&mut self, term: i64, lock_uid: &str) -> Result<(), Refusal> {
        self.admit(term)?;
        match self.load() {
            None => Ok(()),
            Some(record) if record.lock_uid != lock_uid => Err(Refusal::OtherLock(record.lock_uid.clone())),
            Some(record) if !record.sealed || !record.holds.is_empty() => Err(Refusal::Held),
            Some(_) => {
                self.record = None;
                Ok(())
            }
        }
    }
}
