//! What a workload may call.

use std::time::Duration;

use super::record::{Ended, duration, grant_of};
use super::{Asker, Gate, HEARTBEAT_STALE_MS, Model, Waiter, ms};
use crate::lease::{Acquired, Grant, HolderId, Reading, Released, Renewed, Request, Wait};
use crate::store::HoldState;

impl Model {
    /// As [`crate::store::Store::acquire`].
    pub fn acquire(&mut self, request: &Request) -> Acquired {
        self.contend(request, Asker::Direct)
    }

    pub(super) fn contend(&mut self, request: &Request, asker: Asker) -> Acquired {
        if let Some(settled) = self.settled(request, asker) {
            return settled;
        }
        let Some(gate) = self.gate_of_record() else {
            self.keep_place(request, asker);
            return Acquired::GateClosed;
        };
        self.contend_open(request, asker, gate)
    }

    /// The answer where nobody's turn matters.
    pub(super) fn settled(&mut self, request: &Request, asker: Asker) -> Option<Acquired> {
        let now = self.now;
        let Some(record) = self.load() else {
            return Some(Acquired::Unprovisioned);
        };
        let ended = record.ended(&request.id, now);
        if let Some(hold) = record.hold(&request.id) {
            if hold.state == HoldState::Offer && asker == Asker::Direct {
                return Some(
                    record.extend(&request.id, HoldState::Held, now).map_or(Acquired::Lost, Acquired::Granted),
                );
            }
            return Some(Acquired::Granted(grant_of(hold, now)));
        }
        if ended.is_some() {
            return Some(Acquired::Lost);
        }
        if record.sealed {
            return Some(Acquired::Sealed);
        }
        if record.elected && asker == Asker::Direct {
            self.leave(&request.id);
            return Some(Acquired::LockIsElected);
        }
        let permits = record.permits;
        if !record.satisfiable(request.mode) {
            self.leave(&request.id);
            return Some(Acquired::Unsatisfiable { permits });
        }
        None
    }

    fn contend_open(&mut self, request: &Request, asker: Asker, gate: Gate) -> Acquired {
        let now = self.now;
        let Some(record) = &mut self.record else {
            return Acquired::Unprovisioned;
        };
        let Some(token) = record.next_token(gate.epoch) else {
            self.keep_place(request, asker);
            return Acquired::EpochExhausted;
        };
        let can = record.open_for_grants(gate.epoch, now) && record.fits(request.mode);
        if self.queue.is_empty() && can {
            let expires = record.lease_end(now, now, now);
            let seq = if asker == Asker::Direct { 0 } else { record.next_seq(now) };
            let waiter = Waiter::new(request.clone(), seq, asker);
            return Acquired::Granted(record.add(&waiter, token, HoldState::Held, expires, now));
        }
        if request.wait == Wait::No && !can {
            self.leave(&request.id);
            self.promote(None);
            return Acquired::Busy { retry: self.retry(None) };
        }
        self.enqueue(request, asker);
        if let Some(grant) = self.promote(Some(&request.id)) {
            return Acquired::Granted(grant);
        }
        if request.wait == Wait::No {
            self.leave(&request.id);
            return Acquired::Busy { retry: self.retry(None) };
        }
        self.queued(request, gate)
    }

    /// The answer to one that waits.
    pub(super) fn queued(&self, request: &Request, gate: Gate) -> Acquired {
        let wait = match request.wait {
            Wait::For(time) => Some(ms(time)),
            Wait::Forever | Wait::No => None,
        };
        Acquired::Queued { retry: self.retry(wait), reading: Reading { at: self.now, epoch: gate.epoch } }
    }

    /// An upper bound: the real record may ask to come earlier, at an end that is already past.
    fn retry(&self, wait: Option<i64>) -> Duration {
        let Some(record) = &self.record else {
            return Duration::ZERO;
        };
        let at = self.now + record.refresh() / 3;
        let quarantine = Some(record.not_before).filter(|t| *t > self.now);
        let at = [quarantine, wait.map(|wait| self.now + wait)].into_iter().flatten().fold(at, i64::min);
        duration((at - self.now).max(1))
    }

    fn place(&self, id: &HolderId) -> Option<usize> {
        self.queue.iter().position(|waiter| waiter.request.id == *id)
    }

    pub(super) fn leave(&mut self, id: &HolderId) {
        self.queue.retain(|waiter| waiter.request.id != *id);
    }

    /// Where nothing can be granted to anyone, one that waits keeps its place by asking.
    fn keep_place(&mut self, request: &Request, asker: Asker) {
        if self.place(&request.id).is_some() {
            self.enqueue(request, asker);
        }
    }

    pub(super) fn enqueue(&mut self, request: &Request, asker: Asker) {
        let now = self.now;
        let Some(record) = &mut self.record else {
            return;
        };
        let refresh = record.refresh();
        self.queue.retain(|waiter| waiter.request.id != request.id || !waiter.gone(now));
        if !self.queue.iter().any(|waiter| waiter.request.id == request.id) {
            let waiter = Waiter::new(request.clone(), record.next_seq(now), asker);
            self.line_up(waiter);
        }
        if let Some(at) = self.place(&request.id) {
            self.queue[at].deadline = match request.wait {
                Wait::Forever => None,
                Wait::No => Some(now + 1),
                Wait::For(time) => Some(now + ms(time).max(1)),
            };
            if asker != Asker::Direct && asker != self.queue[at].asker {
                (self.queue[at].asker, self.queue[at].turn_ends) = (asker, None);
            }
            self.queue[at].refresh = (self.queue[at].asker == Asker::Direct).then_some(now + refresh);
        }
    }

    /// Serves the queue from its head until one doesn't fit. `own` is granted, others get an offer.
    pub(super) fn promote(&mut self, own: Option<&HolderId>) -> Option<Grant> {
        let (now, gate) = (self.now, self.gate_of_record()?);
        let record = self.record.as_mut()?;
        let (mut at, mut granted) = (0, None);
        while at < self.queue.len() && record.open_for_grants(gate.epoch, now) {
            let waiter = &self.queue[at];
            let mine = own == Some(&waiter.request.id);
            let may_not = match waiter.asker {
                Asker::Direct => false,
                Asker::Delegated => now > gate.heartbeat + HEARTBEAT_STALE_MS,
                Asker::Reserving => {
                    now > gate.heartbeat + HEARTBEAT_STALE_MS || waiter.turn_ends.is_some_and(|end| end <= now)
                }
            };
            let only_elected = record.elected && waiter.asker == Asker::Direct;
            if waiter.gone(now) || !record.satisfiable(waiter.request.mode) || only_elected {
                self.queue.remove(at);
            } else if may_not && !mine {
                at += 1;
            } else if !record.fits(waiter.request.mode) {
                break;
            } else if waiter.asker == Asker::Reserving && !mine {
                let refresh = record.refresh();
                self.queue[at].turn_ends.get_or_insert(now + refresh);
                break;
            } else {
                let waiter = self.queue.remove(at);
                let token = record.next_token(gate.epoch)?;
                let (state, expires) = match (mine, waiter.deadline) {
                    (true, _) => (HoldState::Held, record.lease_end(now, now, now)),
                    (false, Some(deadline)) => (HoldState::Offer, deadline.min(now + record.refresh())),
                    (false, None) => (HoldState::Offer, now + record.refresh()),
                };
                let grant = record.add(&waiter, token, state, expires, now);
                granted = granted.or(mine.then_some(grant));
            }
        }
        granted
    }

    /// As [`crate::store::Store::renew`], of one hold.
    pub fn renew(&mut self, id: &HolderId) -> Renewed {
        let now = self.now;
        // What is over stays as it is: this grants nothing.
        let Some(record) = &mut self.record else {
            return Renewed::Unprovisioned;
        };
        if let Some(over) = record.over(now).find(|hold| hold.id == *id) {
            return if record.keeps_place(over) { Renewed::NotHeld } else { Renewed::Lost };
        }
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

    pub(super) fn finish(&mut self, id: &HolderId, how: Ended) {
        let now = self.now;
        if let Some(record) = &mut self.record {
            record.end(id, how, now);
        }
        self.promote(None);
    }

    /// As [`crate::store::Store::release`].
    pub fn release(&mut self, id: &HolderId) -> Released {
        let now = self.now;
        let Some(record) = self.load() else {
            return Released::Unprovisioned;
        };
        let ended = record.ended(id, now);
        match record.hold(id).map(|hold| hold.state) {
            Some(HoldState::Pinned) => return Released::Pinned,
            Some(_) => {
                self.finish(id, Ended::Released);
                return Released::Released;
            }
            None => self.promote(None),
        };
        match ended {
            Some(Ended::Released) => Released::Released,
            Some(Ended::Expired) => Released::Lost,
            Some(Ended::Cancelled) => Released::Cancelled,
            None => Released::NotHeld,
        }
    }

    /// As [`crate::store::Store::cancel`].
    pub fn cancel(&mut self, id: &HolderId) -> Released {
        let now = self.now;
        let Some(record) = self.load() else {
            return Released::Unprovisioned;
        };
        match record.hold(id).map(|hold| hold.state) {
            Some(HoldState::Pinned) => return Released::Pinned,
            Some(_) => self.finish(id, Ended::Cancelled),
            None => self.leave_for_good(id, Ended::Cancelled, now),
        }
        Released::Cancelled
    }

    pub(super) fn leave_for_good(&mut self, id: &HolderId, how: Ended, now: i64) {
        self.leave(id);
        if let Some(record) = self.record.as_mut().filter(|record| record.ended(id, now).is_none()) {
            record.remember(id.clone(), how, now);
        }
        self.promote(None);
    }
}
