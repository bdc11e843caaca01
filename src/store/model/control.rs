//! What only the controller calls.

use std::time::Duration;

use super::record::{Ended, Record, duration, grant_of};
use super::{Asker, Gate, Model, StoreKey, Waiter, ms};
use crate::lease::{Acquired, Epoch, HolderId, Renewed, Request};
use crate::store::{Due, Heartbeat, Hold, HoldState, Opening, Place, Provision, Provisioned, Refusal, Sealed};

/// Who calls: the store's UID and the term of a controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reign {
    /// The UID of the `LockStore`.
    pub uid: String,
    /// The reign's number.
    pub term: i64,
}

impl Model {
    fn refused(&self, reign: &Reign) -> Option<Refusal> {
        if let Some(owner) = self.store.uid.as_ref().filter(|owner| **owner != reign.uid) {
            return Some(Refusal::StoreInUse(owner.clone()));
        }
        let highest = self.store.term.max(self.terms.get(&reign.uid).copied().unwrap_or(0));
        (reign.term < highest).then_some(Refusal::StaleTerm(highest))
    }

    fn admit(&self, reign: &Reign) -> Result<Gate, Refusal> {
        match self.refused(reign) {
            Some(refusal) => Err(refusal),
            None => self.gates.get(&reign.uid).copied().ok_or(Refusal::GateClosed),
        }
    }

    /// As [`crate::store::Control::heartbeat`].
    ///
    /// # Errors
    /// The refusal of another install or of an older term. Those below: of what the real function refuses.
    pub fn heartbeat(&mut self, reign: &Reign, name: &str, mark: i64) -> Result<Heartbeat, Refusal> {
        if let Some(refusal) = self.refused(reign) {
            return Err(refusal);
        }
        let named = self.store.reign.as_deref().filter(|_| self.store.term == reign.term);
        if named.is_some_and(|known| known != name) {
            return Err(Refusal::StaleTerm(reign.term));
        }
        let now = self.now;
        self.store.uid = Some(reign.uid.clone());
        self.store.term = reign.term;
        self.store.reign = Some(name.to_owned());
        self.terms.insert(reign.uid.clone(), reign.term);
        let gate = self.gates.get_mut(&reign.uid).map(|gate| {
            gate.heartbeat = now;
            gate.epoch
        });
        let (run_id, replid) = self.process.clone();
        let epoch = self.store.opened.as_ref().map_or(Epoch::default(), |(epoch, ..)| *epoch);
        let before = self.store.mark;
        self.store.mark = before.max(mark);
        Ok(Heartbeat { now, run_id, replid, role: "master".to_owned(), gate, epoch, mark: before })
    }

    /// As [`crate::store::Control::open`].
    ///
    /// # Errors
    /// See [`Model::heartbeat`].
    pub fn open(&mut self, reign: &Reign, opening: &Opening) -> Result<(), Refusal> {
        if let Some(refusal) = self.refused(reign) {
            return Err(refusal);
        }
        let Opening { run_id, replid, epoch } = opening.clone();
        if self.process != (run_id.clone(), replid.clone()) {
            return Err(Refusal::OtherProcess);
        }
        let opened = self.store.opened.clone();
        let used = opened.as_ref().map_or(Epoch::default(), |(epoch, ..)| *epoch);
        let used = used.max(self.gates.get(&reign.uid).map_or(Epoch::default(), |gate| gate.epoch));
        let other = opened.is_some_and(|(_, r, p)| (r, p) != (run_id.clone(), replid.clone()));
        if epoch < used || epoch == used && other {
            return Err(Refusal::StaleEpoch(used.get()));
        }
        let (uid, term, heartbeat) = (reign.uid.clone(), reign.term, self.now);
        (self.store.uid, self.store.term) = (Some(uid.clone()), term);
        self.store.opened = Some((epoch, run_id, replid));
        self.terms.insert(uid.clone(), term);
        self.gates.insert(uid, Gate { epoch, heartbeat });
        Ok(())
    }

    /// As [`crate::store::Control::close`].
    ///
    /// # Errors
    /// See [`Model::heartbeat`].
    pub fn close(&mut self, reign: &Reign) -> Result<(), Refusal> {
        if let Some(refusal) = self.refused(reign) {
            return Err(refusal);
        }
        self.gates.remove(&reign.uid);
        Ok(())
    }

    /// As [`crate::store::Control::leave`].
    ///
    /// # Errors
    /// See [`Model::heartbeat`].
    pub fn leave_prefix(&mut self, reign: &Reign) -> Result<(), Refusal> {
        if let Some(refusal) = self.refused(reign) {
            return Err(refusal);
        }
        self.store = StoreKey { opened: self.store.opened.take(), ..StoreKey::default() };
        self.gates.remove(&reign.uid);
        self.terms.remove(&reign.uid);
        Ok(())
    }

    /// As [`crate::store::Control::provision`].
    ///
    /// # Errors
    /// See [`Model::heartbeat`].
    pub fn provision(&mut self, reign: &Reign, provision: &Provision) -> Result<Provisioned, Refusal> {
        self.admit(reign)?;
        let provisioned = self.configure(&reign.uid, provision, true);
        self.promote(None);
        Ok(provisioned)
    }

    /// As [`crate::store::Control::restore`].
    ///
    /// # Errors
    /// See [`Model::heartbeat`].
    pub fn restore(&mut self, reign: &Reign, provision: &Provision, to: &Opening) -> Result<Provisioned, Refusal> {
        match self.refused(reign) {
            Some(refusal) => Err(refusal),
            None if self.process != (to.run_id.clone(), to.replid.clone()) => Err(Refusal::OtherProcess),
            None if self.gates.contains_key(&reign.uid) => Err(Refusal::GateOpen),
            None => Ok(self.configure(&reign.uid, provision, false)),
        }
    }

    fn configure(&mut self, store: &str, provision: &Provision, open: bool) -> Provisioned {
        let now = self.now;
        let fresh = self.load().is_none();
        let seq = self.queue.iter().map(|waiter| waiter.seq).max().unwrap_or(0);
        let record = self.record.get_or_insert_with(|| Record { permits: 1, lease: 1, seq, ..Record::default() });
        record.configure(store, provision);
        let ceiling = provision.token_ceiling.filter(|ceiling| record.last >= *ceiling);
        record.last = ceiling.map_or(record.last, |ceiling| ceiling - 1).max(provision.token_floor);
        if provision.quarantine > Duration::ZERO {
            record.not_before = record.not_before.max(now + ms(provision.quarantine));
        }
        let sealed = record.sealed;
        for Place { request, reserved } in provision.waiters.iter().filter(|_| !sealed) {
            self.put_in_line(request, if *reserved { Asker::Reserving } else { Asker::Delegated });
        }
        let is_held = |waiter: &mut Waiter| provision.holds.iter().any(|hold| hold.id == waiter.request.id);
        let stood: Vec<Waiter> = self.queue.extract_if(.., is_held).collect();
        if let Some(record) = &mut self.record {
            record.put_back(provision, stood, now, open);
        }
        Provisioned { fresh, tampered: ceiling.is_some() }
    }

    /// Puts back a place, unless it holds, has ended, or can't be satisfied.
    fn put_in_line(&mut self, request: &Request, asker: Asker) {
        let now = self.now;
        let Some(record) = &mut self.record else { return };
        if !record.has_been_served(&request.id, now) && record.satisfiable(request.mode) {
            self.enqueue(request, asker);
        }
    }

    /// As [`crate::store::Control::claim`].
    ///
    /// # Errors
    /// See [`Model::heartbeat`].
    pub fn claim(&mut self, reign: &Reign, request: &Request) -> Result<Acquired, Refusal> {
        self.admit(reign)?;
        match self.contend(request, Asker::Delegated) {
            Acquired::GateClosed => Err(Refusal::GateClosed),
            acquired => Ok(acquired),
        }
    }

    /// As [`crate::store::Control::reserve`].
    ///
    /// # Errors
    /// See [`Model::heartbeat`].
    pub fn reserve(&mut self, reign: &Reign, request: &Request) -> Result<Acquired, Refusal> {
        let gate = self.admit(reign)?;
        let place = self.load().and_then(|record| record.stand_again(&request.id));
        if let Some(place) = place {
            self.line_up(place);
        }
        if let Some(settled) = self.settled(request, Asker::Reserving) {
            return Ok(settled);
        }
        self.enqueue(request, Asker::Reserving);
        self.promote(None);
        Ok(self.queued(request, gate))
    }

    /// As [`crate::store::Control::pin`].
    ///
    /// # Errors
    /// See [`Model::heartbeat`].
    pub fn pin(&mut self, reign: &Reign, id: &HolderId, epoch: Epoch) -> Result<Renewed, Refusal> {
        if self.admit(reign)?.epoch != epoch {
            return Err(Refusal::GateClosed);
        }
        let now = self.now;
        let Some(record) = self.load() else {
            return Ok(Renewed::Unprovisioned);
        };
        match record.hold(id).map(|hold| (hold.state, grant_of(hold, now))) {
            None => {
                self.promote(None);
                Ok(Renewed::Lost)
            }
            Some((HoldState::Pinned, grant)) => Ok(Renewed::Held(grant)),
            Some(_) => Ok(record.extend(id, HoldState::Pinned, now).map_or(Renewed::Lost, Renewed::Held)),
        }
    }

    /// As [`crate::store::Control::free`].
    ///
    /// # Errors
    /// See [`Model::heartbeat`].
    pub fn free(&mut self, reign: &Reign, id: &HolderId, next: Option<&HolderId>) -> Result<(), Refusal> {
        self.admit(reign)?;
        let now = self.now;
        if self.load().is_none() {
            return Err(Refusal::Unprovisioned);
        }
        if let Some(next) = next {
            self.hand_on(id, next);
        }
        if self.record.as_mut().is_some_and(|record| record.hold(id).is_some()) {
            self.finish(id, Ended::Released);
        } else {
            self.leave_for_good(id, Ended::Released, now);
        }
        Ok(())
    }

    /// The next attempt stands where this one does, or did before it was granted; one that has been granted since would stand
    /// there again.
    fn hand_on(&mut self, id: &HolderId, next: &HolderId) {
        let now = self.now;
        let Some(record) = self.record.as_mut().filter(|record| !record.sealed) else { return };
        let waits = self.queue.iter().find(|waiter| waiter.request.id == *id && !waiter.gone(now));
        let stood = if record.hold(id).is_some() { record.place_of(id) } else { waits };
        let Some(stood) = stood.cloned() else { return };
        if let Some(place) = record.places.iter_mut().find(|place| place.request.id == *next && stood.seq < place.seq) {
            (place.seq, place.request.priority) = (stood.seq, stood.request.priority);
        }
        if record.has_been_served(next, now) {
            return;
        }
        let own = self.queue.iter().position(|waiter| waiter.request.id == *next);
        let mut waiter = match own {
            Some(at) if self.queue[at].seq < stood.seq => return,
            Some(at) => self.queue.remove(at),
            None => {
                let request = Request { id: next.clone(), ..stood.request.clone() };
                Waiter { deadline: stood.deadline, ..Waiter::new(request, stood.seq, Asker::Reserving) }
            }
        };
        (waiter.seq, waiter.request.priority) = (stood.seq, stood.request.priority);
        self.line_up(waiter);
    }

    /// As [`crate::store::Control::expire`], of this one lock. The real answer may be earlier: at an end that has
    /// been put off since.
    ///
    /// # Errors
    /// See [`Model::heartbeat`].
    pub fn expire(&mut self, reign: &Reign) -> Result<Due, Refusal> {
        self.admit(reign)?;
        let now = self.now;
        if self.load().is_none() {
            return Ok(Due::Unprovisioned);
        }
        self.queue.retain(|waiter| !waiter.gone(now));
        self.promote(None);
        let Some(record) = &self.record else {
            return Ok(Due::Unprovisioned);
        };
        let unpinned = record.holds.iter().filter(|hold| hold.state != HoldState::Pinned).map(|hold| hold.expires);
        let waiting = self.queue.iter().flat_map(|w| [w.refresh, w.deadline, w.turn_ends]).flatten();
        let waiting = waiting.filter(|at| *at > now);
        let quarantine = Some(record.not_before).filter(|at| *at > now);
        let due = unpinned.chain(waiting).chain(quarantine).min();
        Ok(due.map_or(Due::Nothing, |at| Due::In(duration(at - now))))
    }

    /// As [`crate::store::Control::seal`].
    ///
    /// # Errors
    /// See [`Model::heartbeat`].
    pub fn seal(&mut self, reign: &Reign, lock_uid: &str) -> Result<Sealed, Refusal> {
        self.admit(reign)?;
        let now = self.now;
        let Some(record) = self.load() else {
            return Err(Refusal::Unprovisioned);
        };
        if record.lock_uid != lock_uid {
            return Err(Refusal::OtherLock(record.lock_uid.clone()));
        }
        record.sealed = true;
        let (pinned, direct): (Vec<&Hold>, Vec<&Hold>) =
            record.holds.iter().partition(|hold| hold.state == HoldState::Pinned);
        let direct = direct.iter().map(|hold| hold.expires - now).chain([record.not_before - now]).max().unwrap_or(0);
        let sealed = Sealed { last: record.last, direct: duration(direct), pinned: pinned.len() as u32 };
        self.queue.clear();
        Ok(sealed)
    }

    /// As [`crate::store::Control::purge`].
    ///
    /// # Errors
    /// See [`Model::heartbeat`].
    pub fn purge(&mut self, reign: &Reign, lock_uid: &str) -> Result<(), Refusal> {
        self.admit(reign)?;
        let now = self.now;
        match self.load() {
            None => Ok(()),
            Some(record) if record.lock_uid != lock_uid => Err(Refusal::OtherLock(record.lock_uid.clone())),
            Some(record) if !record.sealed || record.not_before > now || !record.holds.is_empty() => Err(Refusal::Held),
            Some(_) => {
                self.record = None;
                Ok(())
            }
        }
    }
}
