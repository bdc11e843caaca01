//! What must hold whatever the model says: I1, I2 and I6 of the design, from answers and inspections alone.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use leasehold::lease::{Acquired, Epoch, FencingToken, Grant, HolderId, Mode, Released, Renewed, Request};
use leasehold::store::{Hold, HoldState, Inspection, Provision, Provisioned, Remembered};

use super::answers::{Answer, STORE, Step};

/// A hold that somebody believes in.
#[derive(Debug, Clone)]
struct Belief {
    mode: Mode,
    /// Until when; `None`: until the controller lets it go.
    until: Option<i64>,
}

/// What was promised so far in a sequence.
#[derive(Debug, Clone, Default)]
pub(crate) struct Checker {
    believed: BTreeMap<HolderId, Belief>,
    highest: i64,
    /// The record was made anew below tokens already granted: without a higher epoch, whoever drives the store
    /// has broken its rules, and tokens repeat.
    unfounded: bool,
    opened: Epoch,
    arrivals: BTreeMap<HolderId, (Reverse<i32>, u64)>,
    arrived: u64,
    /// Losses of the record that were made good by the rules, so that beliefs went on.
    pub(crate) recoveries: u64,
    /// What was broken, in words.
    pub(crate) violations: Vec<String>,
}

fn total<'a>(modes: impl Iterator<Item = &'a Mode> + Clone) -> u32 {
    let counted: u32 = modes.clone().map(|mode| mode.counted()).sum();
    counted + u32::from(modes.clone().any(|mode| *mode == Mode::Shared))
}

fn crowded<'a>(modes: impl Iterator<Item = &'a Mode> + Clone, permits: u32) -> bool {
    let exclusive = modes.clone().any(|mode| *mode == Mode::Exclusive);
    if exclusive { modes.count() > 1 } else { total(modes) > permits }
}

/// One step as it was seen: what was asked and answered, and the record before and after.
pub(crate) struct Seen<'a> {
    pub(crate) step: &'a Step,
    pub(crate) answer: &'a Answer,
    pub(crate) before: Option<&'a Inspection>,
    pub(crate) after: Option<&'a Inspection>,
    pub(crate) now: i64,
}

impl Checker {
    pub(crate) fn highest(&self) -> i64 {
        self.highest
    }

    /// How long the longest lease of a direct holder may still be believed.
    pub(crate) fn longest_belief(&self, now: i64) -> Duration {
        let ends = self.believed.values().filter_map(|belief| belief.until);
        Duration::from_millis(ends.map(|end| end - now).max().unwrap_or(0).max(0).unsigned_abs())
    }

    pub(crate) fn observe(&mut self, seen: &Seen<'_>) {
        self.believed.retain(|_, belief| belief.until.is_none_or(|until| until > seen.now));
        self.disbelieve(seen);
        self.recover(seen);
        self.check_grants(seen);
        self.believe(seen);
        self.check_order(seen);
    }

    /// Ends beliefs before grants are judged: who gives back or is told stops before another is granted.
    fn disbelieve(&mut self, Seen { step, answer, .. }: &Seen<'_>) {
        match (step, answer) {
            (Step::Release(id), Answer::Released(Released::Released | Released::Lost | Released::Cancelled))
            | (Step::Free(_, id, _), Answer::Freed(Ok(()))) => {
                self.believed.remove(id);
            }
            (Step::Cancel(id), Answer::Cancelled(cancelled)) if cancelled[0] == Released::Cancelled => {
                self.believed.remove(id);
            }
            // The controller gives up what it holds, and has told nobody.
            (Step::Reserve(_, request), Answer::Reserved(Ok(Acquired::Queued { .. }))) => {
                self.believed.remove(&request.id);
            }
            (Step::Renew(ids), Answer::Renewed(renewed)) => {
                for (id, _) in ids.iter().zip(renewed).filter(|(_, r)| matches!(r, Renewed::Lost | Renewed::NotHeld)) {
                    self.believed.remove(id);
                }
            }
            _ => {}
        }
    }

    /// Beliefs outlive a lost record only where the new one was made by the rules: quarantine for direct holds,
    /// pinned ones put back.
    fn recover(&mut self, Seen { step, answer, before, after, now }: &Seen<'_>) {
        match (step, answer) {
            (Step::Provision(_, provision), Answer::Provisioned(Ok(done)))
            | (Step::Restore(_, provision, _), Answer::Restored(Ok(done))) => {
                self.remade(provision, done, *now);
                // Beside an open gate one that has just ended stays so.
                let stays = matches!(step, Step::Provision(..)) && !done.fresh;
                let may_lack = |id: &HolderId| stays && before.is_some_and(|b| b.holds.iter().all(|h| h.id != *id));
                self.put_back(provision, *after, may_lack);
            }
            (Step::Open(reign, opening), Answer::Opened(Ok(()))) => {
                self.opened = if reign.uid == STORE { opening.epoch } else { Epoch::default() };
            }
            (Step::Purge(..), Answer::Purged(Ok(()))) if before.is_some() && !self.believed.is_empty() => {
                self.violations.push(format!("purged while {:?} are believed", self.believed));
            }
            _ => {}
        }
    }

    fn remade(&mut self, provision: &Provision, done: &Provisioned, now: i64) {
        let put_back = |id: &HolderId| provision.holds.iter().any(|hold| hold.id == *id);
        let pinned_are_back =
            self.believed.iter().filter(|(_, belief)| belief.until.is_none()).all(|(id, _)| put_back(id));
        if !done.fresh {
            return;
        }
        self.unfounded = provision.token_floor < self.highest;
        if !pinned_are_back || provision.quarantine < self.longest_belief(now) {
            self.believed.clear();
        } else if !self.believed.is_empty() {
            self.recoveries += 1;
        }
    }

    fn put_back(&mut self, provision: &Provision, after: Option<&Inspection>, may_lack: impl Fn(&HolderId) -> bool) {
        for Remembered { id, .. } in &provision.holds {
            let hold = after.and_then(|record| record.holds.iter().find(|hold| hold.id == *id));
            match hold.filter(|hold| hold.state == HoldState::Pinned) {
                Some(hold) => {
                    self.believed.insert(id.clone(), Belief { mode: hold.mode, until: None });
                }
                None if may_lack(id) => {}
                None => self.violations.push(format!("{id:?} was not put back")),
            }
        }
    }

    /// Only calls grant: a clock that steps back can bring a hold to light again that nobody has swept.
    fn check_grants(&mut self, Seen { step, answer, before, after, .. }: &Seen<'_>) {
        let Some(after) = after.filter(|_| **answer != Answer::None) else { return };
        let known = |hold: &Hold| {
            before.is_some_and(|b| b.holds.iter().any(|old| old.id == hold.id && old.token == hold.token))
        };
        let put_back = |hold: &Hold| match step {
            Step::Provision(_, p) | Step::Restore(_, p, _) => p.holds.iter().any(|h| h.id == hold.id),
            _ => false,
        };
        for (at, hold) in after.holds.iter().enumerate().filter(|(_, hold)| !known(hold) && !put_back(hold)) {
            self.check_token(hold.token.get());
            self.check_room(hold, &after.holds[..at], after.permits);
        }
    }

    fn check_token(&mut self, token: i64) {
        let epoch = FencingToken::new(self.highest).map_or(Epoch::MAX, FencingToken::epoch);
        if token <= self.highest && (!self.unfounded || self.opened > epoch) {
            self.violations.push(format!("I2: token {token} after {}", self.highest));
        }
        (self.highest, self.unfounded) = (token, false);
    }

    /// `older`: the holds in the record with lower tokens, those granted in the same step among them.
    fn check_room(&mut self, hold: &Hold, older: &[Hold], permits: u32) {
        let recorded = older.iter().chain([hold]).map(|hold| &hold.mode);
        if crowded(recorded, permits) {
            self.violations.push(format!("I1: {hold:?} beside {older:?} of {permits} permits"));
        }
        let others = self.believed.iter().filter(|(id, _)| **id != hold.id).map(|(_, belief)| &belief.mode);
        let fresh = older.iter().filter(|old| !self.believed.contains_key(&old.id)).map(|hold| &hold.mode);
        if crowded(others.chain(fresh).chain([&hold.mode]), permits) {
            self.violations.push(format!("I1: {hold:?} while {:?} are believed, {permits} permits", self.believed));
        }
    }

    fn believe(&mut self, Seen { step, answer, after, now, .. }: &Seen<'_>) {
        let mut held = Vec::new();
        match (step, answer) {
            (Step::Acquire(request), Answer::Acquired(Acquired::Granted(grant))) => held.push((&request.id, *grant)),
            (Step::Renew(ids), Answer::Renewed(renewed)) => {
                held.extend(ids.iter().zip(renewed).filter_map(|(id, renewed)| match renewed {
                    Renewed::Held(grant) => Some((id, *grant)),
                    _ => None,
                }));
            }
            (Step::Pin(_, id, _), Answer::Pinned(Ok(Renewed::Held(grant)))) => held.push((id, *grant)),
            _ => {}
        }
        for (id, grant) in held {
            match after.and_then(|record| record.holds.iter().find(|hold| hold.id == *id)) {
                Some(hold) => self.promise(hold, grant, *now),
                None => self.violations.push(format!("{id:?} was told that it holds, and is not in the record")),
            }
        }
    }

    fn promise(&mut self, hold: &Hold, grant: Grant, now: i64) {
        if hold.token != grant.token {
            self.violations.push(format!("{hold:?} was told the token {}", grant.token));
        }
        let pinned = hold.state == HoldState::Pinned;
        let until = now + i64::try_from(grant.remaining.as_millis()).expect("a lease in milliseconds");
        if !pinned && until > hold.expires {
            self.violations.push(format!("{hold:?} was told that it holds until {until}"));
        }
        let belief = Belief { mode: hold.mode, until: (!pinned).then_some(until) };
        self.believed.insert(hold.id.clone(), belief);
    }

    /// I6: those that wait stand in the order of their priorities and, within one, of their arrival.
    fn check_order(&mut self, Seen { step, before, after, .. }: &Seen<'_>) {
        let Some(after) = after else {
            self.arrivals.clear();
            return;
        };
        let waits = |record: &Inspection, id: &HolderId| record.waiters.iter().any(|(waiting, _)| waiting == id);
        let is_there =
            |record: &Inspection, id: &HolderId| waits(record, id) || record.holds.iter().any(|hold| hold.id == *id);
        for Request { id, priority, .. } in asked(step) {
            if is_there(after, id) && !before.is_some_and(|before| is_there(before, id)) {
                self.arrived += 1;
                self.arrivals.insert(id.clone(), (Reverse(*priority), self.arrived));
            }
        }
        // Who gives up a hold by `reserve`, or begins anew, stands where it stood; what time takes the model says.
        if let Step::Free(_, id, Some(next)) = step {
            let comes = !before.is_some_and(|before| is_there(before, next));
            if let Some(arrival) = self.arrivals.get(id).copied().filter(|_| comes) {
                self.arrivals.insert(next.clone(), arrival);
            } else {
                self.arrivals.remove(next);
            }
        }
        self.arrivals.retain(|id, _| is_there(after, id));
        let order: Vec<_> = after.waiters.iter().filter_map(|(id, _)| self.arrivals.get(id)).collect();
        if !order.is_sorted() {
            self.violations.push(format!("I6: {:?} wait in the order {order:?}", after.waiters));
        }
    }
}

/// Who asks, or is put back, in their order.
fn asked(step: &Step) -> Vec<&Request> {
    match step {
        Step::Acquire(request) | Step::Claim(_, request) | Step::Reserve(_, request) => vec![request],
        Step::Provision(_, provision) | Step::Restore(_, provision, _) => {
            provision.waiters.iter().map(|place| &place.request).collect()
        }
        _ => Vec::new(),
    }
}
