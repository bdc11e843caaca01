//! Holders that renew for themselves, and stop by their own clock.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use leasehold::lease::{Acquired, Grant, HolderId, LockKey, Mode, Offer, Renewed, Request, Wait};
use leasehold::store::{Inbox, Store};

use super::arena::Arena;
use super::dice::Dice;
use crate::support::history::{Event, Kind, Micros, Share, Why, boottime, public_id};

/// What a holder needs to stop, and how late a timer of the test machine may be.
const STOP: Micros = 50_000;
/// After an answer that nothing can be had now.
const AGAIN: Duration = Duration::from_millis(50);

/// How a holder behaves. Chances are percents.
#[derive(Debug, Clone)]
pub(super) struct Habits {
    /// How long it holds, in milliseconds.
    pub(super) holds: Range<u64>,
    /// How long it rests before it asks again, in milliseconds.
    pub(super) rests: Range<u64>,
    /// It dies while it holds.
    pub(super) dies: u64,
    /// It is stopped in the middle of an update until its lease is over, and then goes on with it.
    pub(super) pauses: u64,
    /// Its acquire arrives once more when it has released.
    pub(super) repeats: u64,
}

impl Default for Habits {
    fn default() -> Self {
        Self { holds: 10..200, rests: 0..20, dies: 4, pauses: 0, repeats: 10 }
    }
}

/// One holder.
pub(super) struct Direct {
    arena: Arc<Arena>,
    lock: &'static str,
    key: LockKey,
    store: Store,
    inbox: Option<Inbox>,
    dice: Dice,
    habits: Habits,
}

/// One acquisition, before it holds.
struct Asking {
    request: Request,
    /// As the status shows it.
    id: String,
}

/// What it holds.
struct Held {
    asking: Asking,
    token: i64,
    until: Micros,
    renewed: Micros,
    lease: Micros,
    /// It was told by its inbox: its first renewal accepts it.
    offered: bool,
}

impl Direct {
    pub(super) fn new(arena: &Arc<Arena>, lock: &'static str, dice: Dice, habits: Habits) -> Self {
        let (key, store) = (arena.key(lock), arena.store());
        Self { arena: arena.clone(), lock, key, store, inbox: None, dice, habits }
    }

    /// Acquires and holds, again and again.
    pub(super) async fn run(mut self) {
        while !self.arena.is_over() {
            let asking = self.begin().await;
            if let Some(mut held) = self.acquire(asking).await {
                self.hold(&mut held).await;
            }
            tokio::time::sleep(self.dice.millis(self.habits.rests.clone())).await;
        }
    }

    async fn begin(&mut self) -> Asking {
        let secret = uuid::Uuid::new_v4().to_string();
        let (id, name) = (public_id(&secret), format!("process/{}", &secret[..8]));
        let request = Request {
            id: HolderId::new(secret).expect("an id"),
            mode: Mode::Counted(1),
            priority: 0,
            wait: Wait::Forever,
            identity: name.clone(),
            pod_uid: None,
        };
        self.listen(&request.id).await;
        let lock = self.lock.to_owned();
        self.arena.note(Event::Asks { lock, id: id.clone(), kind: Kind::Direct, name, priority: 0 });
        Asking { request, id }
    }

    /// Before it queues. Without an inbox it asks in time.
    async fn listen(&mut self, id: &HolderId) {
        if self.inbox.is_none() {
            self.inbox = Inbox::connect(&self.arena.endpoint, self.arena.test.name()).await.ok();
        }
        if let Some(inbox) = &mut self.inbox
            && inbox.subscribe(&self.key, id).await.is_err()
        {
            self.inbox = None;
        }
    }

    async fn acquire(&mut self, asking: Asking) -> Option<Held> {
        let lock = self.lock.to_owned();
        while !self.arena.is_over() {
            if self.inbox.is_none() {
                self.listen(&asking.request.id).await;
            }
            let sent = boottime();
            let answer = self.store.acquire(&self.key, &asking.request).await;
            let answered = boottime();
            match answer {
                Ok(Acquired::Granted(grant)) => return self.believe(asking, grant, sent, answered, false).await,
                Ok(Acquired::Queued { retry, reading }) => {
                    self.arena.note(Event::Queued { lock: lock.clone(), id: asking.id.clone() });
                    let offer = self.hear(&asking.request.id, retry).await;
                    if let Some(grant) = offer.and_then(|offer| offer.granted_since(reading)) {
                        return self.believe(asking, grant, sent, answered, true).await;
                    }
                }
                Ok(Acquired::Lost) => {
                    // Served, but it has missed it.
                    self.arena.note(Event::Stopped { lock, id: asking.id, why: Why::Lost });
                    return None;
                }
                Ok(Acquired::Unsatisfiable { .. } | Acquired::LockIsElected) => break,
                Ok(Acquired::Busy { .. } | Acquired::Sealed | Acquired::GateClosed | Acquired::Unprovisioned)
                | Ok(Acquired::EpochExhausted)
                | Err(_) => tokio::time::sleep(AGAIN).await,
            }
        }
        self.give_up(&asking).await;
        None
    }

    async fn give_up(&self, asking: &Asking) {
        self.arena.note(Event::GaveUp { lock: self.lock.to_owned(), id: asking.id.clone() });
        self.store.cancel(&self.key, &asking.request.id).await.ok();
    }

    /// Waits until it is told of an offer, or has to ask.
    async fn hear(&mut self, id: &HolderId, retry: Duration) -> Option<Offer> {
        let arena = self.arena.clone();
        let inbox = &mut self.inbox;
        let told = async {
            while let Some(open) = inbox {
                match open.next().await {
                    Some((whose, offer)) if whose == *id => return offer,
                    Some(_) => {}
                    None => *inbox = None,
                }
            }
            std::future::pending().await
        };
        tokio::select! {
            offer = told => Some(offer),
            () = tokio::time::sleep(retry) => None,
            () = arena.over() => None,
        }
    }

    /// Believes an answer for as long as the design allows: `sent + R · (1 − 2ρ) − K − ε`.
    async fn believe(
        &mut self,
        asking: Asking,
        grant: Grant,
        sent: Micros,
        answered: Micros,
        offered: bool,
    ) -> Option<Held> {
        let (until, lease_end, remaining) = deadlines(grant, sent, answered);
        let token = grant.token.get();
        if until <= boottime() {
            self.give_up(&asking).await;
            return None;
        }
        let held = Held { asking, token, until, renewed: sent, lease: remaining, offered };
        self.note_hold(&held, lease_end);
        Some(held)
    }

    fn note_hold(&self, held: &Held, lease_end: Micros) {
        self.arena.note(Event::Holds {
            lock: self.lock.to_owned(),
            id: held.asking.id.clone(),
            kind: Kind::Direct,
            token: held.token,
            share: Share::Permits(1),
            until: Some(held.until),
            lease_end: Some(lease_end),
        });
    }

    fn note_stop(&self, held: &Held, why: Why) {
        self.arena.note(Event::Stopped { lock: self.lock.to_owned(), id: held.asking.id.clone(), why });
    }

    async fn hold(&mut self, held: &mut Held) {
        let end = boottime() + i64::try_from(self.dice.millis(self.habits.holds.clone()).as_micros()).expect("short");
        while boottime() < end.min(held.until) {
            if held.offered || boottime() >= held.renewed + held.lease / 3 {
                if !self.renew(held).await {
                    return self.note_stop(held, Why::Lost);
                }
            } else {
                self.work(held).await;
            }
        }
        match () {
            () if boottime() >= held.until => self.note_stop(held, Why::Lost),
            () if self.dice.percent(self.habits.dies) => self.note_stop(held, Why::Died),
            () => self.release(held).await,
        }
    }

    /// One update. Paused in the middle of it, it can't know that its time is over.
    async fn work(&mut self, held: &Held) {
        let mut busy = self.dice.millis(1..5);
        if self.dice.percent(self.habits.pauses) {
            let left = u64::try_from(held.until - boottime()).unwrap_or_default();
            busy = Duration::from_micros(left) + Duration::from_millis(600);
        }
        match self.arena.counters(self.lock) {
            Some(counters) => counters.update(&held.asking.id, held.token, busy).await,
            None => tokio::time::sleep(busy).await,
        }
        tokio::time::sleep(self.dice.millis(1..10)).await;
    }

    /// Whether it still holds, as far as it knows. Without an answer it holds until its deadline.
    async fn renew(&mut self, held: &mut Held) -> bool {
        let (lock, id) = (self.lock.to_owned(), held.asking.id.clone());
        let sent = self.arena.note(Event::Renews { lock, id });
        held.renewed = sent;
        let left = Duration::from_micros(u64::try_from(held.until - sent).unwrap_or_default());
        let holds = [(self.key.clone(), held.asking.request.id.clone())];
        let answer = tokio::time::timeout(left, self.store.renew(&holds)).await;
        match answer.map(|answer| answer.map(|answers| answers[0])) {
            Ok(Ok(Renewed::Held(grant))) if boottime() < held.until => {
                let (until, lease_end, remaining) = deadlines(grant, sent, boottime());
                (held.until, held.offered, held.lease) = (held.until.max(until), false, remaining);
                self.note_hold(held, lease_end);
                true
            }
            Ok(Ok(Renewed::Lost | Renewed::NotHeld)) => false,
            Ok(Ok(Renewed::Held(_) | Renewed::Unprovisioned) | Err(_)) | Err(_) => {
                tokio::time::sleep(AGAIN.min(left)).await;
                true
            }
        }
    }

    async fn release(&mut self, held: &Held) {
        self.note_stop(held, Why::Released);
        for _ in 0..3 {
            if self.store.release(&self.key, &held.asking.request.id).await.is_ok() {
                break;
            }
            tokio::time::sleep(AGAIN).await;
        }
        if self.dice.percent(self.habits.repeats) {
            self.repeat(held).await;
        }
        if let Some(inbox) = &mut self.inbox
            && inbox.unsubscribe(&self.key, &held.asking.request.id).await.is_err()
        {
            self.inbox = None;
        }
    }

    /// Its acquire is late: nobody waits for the answer, and a grant would be a hold of nobody.
    async fn repeat(&self, held: &Held) {
        let again = Request { wait: Wait::No, ..held.asking.request.clone() };
        if let Ok(Acquired::Granted(grant)) = self.store.acquire(&self.key, &again).await {
            let repeated = Asking { request: again, id: held.asking.id.clone() };
            let (token, now) = (grant.token.get(), boottime());
            let (renewed, lease) = (now, 0);
            let nobodys = Held { asking: repeated, token, until: now, renewed, lease, offered: false };
            self.note_hold(&nobodys, now);
        }
    }
}

/// Until when its holder believes a grant, when the lease ends at the latest, and what remains of it.
fn deadlines(grant: Grant, sent: Micros, answered: Micros) -> (Micros, Micros, Micros) {
    let remaining = i64::try_from(grant.remaining.as_micros()).expect("a lease");
    (sent + remaining / 100 * 98 - STOP, answered + remaining, remaining)
}
