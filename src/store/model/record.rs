//! The record of one lock, and the rules that depend on nothing else.

use std::time::Duration;

use super::super::{Hold, HoldState, Provision, Remembered};
use super::{Asker, REFRESH_MS, REMEMBER_MS, REMEMBERED, Waiter, ms};
use crate::lease::{Epoch, FencingToken, Grant, HolderId, Mode, Request};

/// What an ended id is remembered for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    Released,
    Expired,
    Cancelled,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Record {
    pub(super) store: String,
    pub(super) lock_uid: String,
    pub(super) generation: i64,
    pub(super) permits: u32,
    pub(super) lease: i64,
    pub(super) max_hold: i64,
    pub(super) elected: bool,
    pub(super) last: i64,
    pub(super) seq: i64,
    pub(super) sealed: bool,
    pub(super) not_before: i64,
    pub(super) holds: Vec<Hold>,
    /// Where those of them stand again that nobody was told of, if they are lost.
    pub(super) places: Vec<Waiter>,
    pub(super) finished: Vec<(HolderId, i64, Ended)>,
}

pub(super) fn duration(ms: i64) -> Duration {
    Duration::from_millis(ms.max(0).unsigned_abs())
}

pub(super) fn grant_of(hold: &Hold, now: i64) -> Grant {
    Grant { token: hold.token, remaining: duration(hold.expires - now) }
}

impl Record {
    pub(super) fn refresh(&self) -> i64 {
        self.lease.min(REFRESH_MS)
    }

    pub(super) fn lease_end(&self, acquired: i64, expires: i64, now: i64) -> i64 {
        let till = now + self.lease;
        let till = if self.max_hold > 0 { till.min(acquired + self.max_hold) } else { till };
        expires.max(till)
    }

    pub(super) fn hold(&mut self, id: &HolderId) -> Option<&mut Hold> {
        self.holds.iter_mut().find(|hold| hold.id == *id)
    }

    /// How an id ended the last time, while that is remembered.
    pub(super) fn ended(&self, id: &HolderId, now: i64) -> Option<Ended> {
        let (till, how) = self.last_end(id)?;
        let is_put_back = self.holds.iter().any(|hold| hold.id == *id);
        (till > now && !is_put_back).then_some(how)
    }

    /// Whether an id waits for nothing: it holds, or has ended.
    pub(super) fn has_been_served(&self, id: &HolderId, now: i64) -> bool {
        self.holds.iter().any(|hold| hold.id == *id) || self.ended(id, now).is_some()
    }

    /// Whether it ended no longer ago than a lease.
    fn has_just_ended(&self, id: &HolderId, now: i64) -> bool {
        self.last_end(id).is_some_and(|(till, _)| now < till - REMEMBER_MS + self.lease.min(REMEMBER_MS))
    }

    /// Until when its last end is remembered, and how it ended.
    fn last_end(&self, id: &HolderId) -> Option<(i64, Ended)> {
        self.finished.iter().rev().find(|(known, ..)| known == id).map(|(_, till, how)| (*till, *how))
    }

    pub(super) fn remember(&mut self, id: HolderId, how: Ended, now: i64) {
        self.finished.push((id, now + REMEMBER_MS, how));
        if self.finished.len() > REMEMBERED {
            self.finished.remove(0);
        }
    }

    fn vacate(&mut self, id: &HolderId) {
        self.holds.retain(|hold| hold.id != *id);
        self.places.retain(|place| place.request.id != *id);
    }

    pub(super) fn end(&mut self, id: &HolderId, how: Ended, now: i64) {
        self.vacate(id);
        self.remember(id.clone(), how, now);
    }

    /// The holds that time has taken.
    pub(super) fn over(&self, now: i64) -> impl Iterator<Item = &Hold> {
        self.holds.iter().filter(move |hold| hold.state != HoldState::Pinned && hold.expires <= now)
    }

    /// Ends what is over and has no place; the real record does so at its first use after that time.
    pub(super) fn sweep(&mut self, now: i64) {
        let mut ended: Vec<Hold> = self.over(now).filter(|hold| !self.keeps_place(hold)).cloned().collect();
        ended.sort_by_key(|hold| hold.token);
        for hold in ended {
            self.end(&hold.id, Ended::Expired, now);
        }
    }

    /// Where a delegated hold stood before it was granted.
    pub(super) fn place_of(&self, id: &HolderId) -> Option<&Waiter> {
        self.places.iter().find(|place| place.request.id == *id)
    }

    /// Those that hold and have not lost their place with it.
    pub(super) fn placed(&self, now: i64) -> impl Iterator<Item = &HolderId> {
        let is_over = move |hold: &Hold| self.over(now).any(|over| over.id == hold.id) && !self.keeps_place(hold);
        let holds = self.holds.iter().filter(move |hold| self.place_of(&hold.id).is_some() && !is_over(hold));
        holds.map(|hold| &hold.id)
    }

    pub(super) fn keeps_place(&self, hold: &Hold) -> bool {
        let had_all = self.max_hold > 0 && hold.expires >= hold.acquired + self.max_hold;
        let in_vain = |place: &Waiter| place.again && hold.renewed == hold.acquired;
        let has_place = self.place_of(&hold.id).is_some_and(|place| !in_vain(place));
        hold.state != HoldState::Pinned && !self.sealed && !self.elected && !had_all && has_place
    }

    /// Gives up a hold that nobody was told of for its place.
    pub(super) fn stand_again(&mut self, id: &HolderId) -> Option<Waiter> {
        let hold = self.holds.iter().find(|hold| hold.id == *id)?;
        let place = self.place_of(id).filter(|_| self.keeps_place(hold))?.clone();
        self.vacate(id);
        Some(place)
    }

    pub(super) fn next_seq(&mut self, now: i64) -> i64 {
        self.seq = (self.seq + 1).max(now * 1000);
        self.seq
    }

    fn used(&self) -> u32 {
        self.holds.iter().map(|hold| hold.mode.counted()).sum()
    }

    fn has(&self, mode: Mode) -> bool {
        self.holds.iter().any(|hold| hold.mode == mode)
    }

    /// Whether one in this mode may be granted beside those that hold. All shared holders together count as one,
    /// and where the permits are already exceeded they don't get more.
    pub(super) fn fits(&self, mode: Mode) -> bool {
        let readers = u32::from(self.has(Mode::Shared));
        match mode {
            _ if self.has(Mode::Exclusive) => false,
            Mode::Exclusive => self.holds.is_empty(),
            Mode::Shared => self.used() < self.permits,
            Mode::Counted(permits) => self.used() + readers + permits <= self.permits,
        }
    }

    pub(super) fn satisfiable(&self, mode: Mode) -> bool {
        mode.counted() <= self.permits
    }

    pub(super) fn next_token(&self, epoch: Epoch) -> Option<FencingToken> {
        let token = (self.last + 1).max((epoch.get() << 32) + 1);
        if token < epoch.ceiling() { FencingToken::new(token) } else { None }
    }

    pub(super) fn open_for_grants(&self, epoch: Epoch, now: i64) -> bool {
        !self.sealed && self.not_before <= now && self.next_token(epoch).is_some() && !self.has(Mode::Exclusive)
    }

    /// Grants to one that has stood there; of a delegated one the place is kept.
    pub(super) fn add(
        &mut self,
        waiter: &Waiter,
        token: FencingToken,
        state: HoldState,
        expires: i64,
        now: i64,
    ) -> Grant {
        if waiter.asker != Asker::Direct {
            self.places.push(waiter.reserved());
        }
        let Request { id, mode, identity, pod_uid, .. } = waiter.request.clone();
        let hold = Hold { id, token, mode, state, acquired: now, renewed: now, expires, identity, pod_uid };
        let grant = grant_of(&hold, now);
        self.last = token.get();
        self.holds.push(hold);
        grant
    }

    /// Renews a hold, never to an earlier end.
    pub(super) fn extend(&mut self, id: &HolderId, state: HoldState, now: i64) -> Option<Grant> {
        let (acquired, expires) = self.hold(id).map(|hold| (hold.acquired, hold.expires))?;
        let till = self.lease_end(acquired, expires, now);
        let hold = self.hold(id)?;
        (hold.state, hold.renewed, hold.expires) = (state, now, till);
        Some(grant_of(hold, now))
    }

    /// Takes over what is provisioned, unless it is an older generation of the same lock.
    pub(super) fn configure(&mut self, store: &str, provision: &Provision) {
        let same = self.lock_uid == provision.lock_uid;
        if same && provision.generation < self.generation {
            return;
        }
        self.sealed &= same;
        (self.store, self.lock_uid) = (store.to_owned(), provision.lock_uid.clone());
        (self.generation, self.permits) = (provision.generation, provision.permits);
        (self.lease, self.max_hold) = (ms(provision.lease), provision.max_hold.map_or(0, ms));
        self.elected = provision.elected;
    }

    /// Puts back the holds that etcd remembers and the record lacks, each with the place where it stood; all of them pinned.
    pub(super) fn put_back(&mut self, provision: &Provision, stood: Vec<Waiter>, now: i64, open: bool) {
        for remembered in provision.holds.clone() {
            if let Some(hold) = self.hold(&remembered.id) {
                // An older copy may have what it was granted before.
                let token = hold.token.max(remembered.token);
                (hold.state, hold.token) = (HoldState::Pinned, token);
                self.last = self.last.max(token.get());
                continue;
            }
            if open && self.has_just_ended(&remembered.id, now) {
                continue;
            }
            self.last = self.last.max(remembered.token.get());
            let Remembered { id, token, mode, identity, pod_uid } = remembered;
            if let Some(stood) = stood.iter().find(|waiter| waiter.request.id == id && !waiter.gone(now)) {
                let (id, identity, pod_uid) = (id.clone(), identity.clone(), pod_uid.clone());
                let request = Request { id, mode, identity, pod_uid, ..stood.request.clone() };
                self.places.push(Waiter { request, ..stood.reserved() });
            }
            let (state, expires) = (HoldState::Pinned, now + self.lease);
            self.holds.push(Hold { id, token, mode, state, acquired: now, renewed: now, expires, identity, pod_uid });
        }
    }
}
