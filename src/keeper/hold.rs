//! One hold and the task that keeps it.

use std::pin::pin;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use super::wait::Contender;
use super::{AcquireError, Lock, Options, Wait};
use crate::clock::{boottime, sleep_until};
use crate::lease::{FencingToken, HolderId, LockKey, Released, Standing, Tenure};
use crate::store::StoreError;

/// Between two tries to release.
const AGAIN: Duration = Duration::from_millis(100);
/// How long an acquire that was given up is cancelled; the server forgets it by itself.
const CANCEL_TRIES: u32 = 20;
/// How long who gave it up waits for that; a store that is silent is told later.
const CANCELS: Duration = Duration::from_millis(500);

/// It could not be heard whether the lock was released. It ends by itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReleaseError {
    /// The store did not answer before the lease was over.
    #[error("the store did not answer; the lease has ended by itself")]
    NoAnswer(#[source] StoreError),
    /// The task that keeps it has died, or the runtime is ending.
    #[error("interrupted; the lease ends by itself")]
    Interrupted,
}

type Release = Result<Released, ReleaseError>;

/// A lock that is held, and renewed until this is dropped or [released](Hold::release).
#[derive(Debug)]
pub struct Hold {
    key: LockKey,
    tenure: watch::Receiver<Tenure>,
    end: Option<oneshot::Sender<oneshot::Sender<Release>>>,
}

impl Hold {
    /// Which lock.
    pub fn key(&self) -> &LockKey {
        &self.key
    }

    /// The fencing token: higher than that of every earlier hold of this lock.
    pub fn token(&self) -> FencingToken {
        self.tenure.borrow().token
    }

    /// Until when it may be believed to be held, on [`crate::clock::boottime`]. Each answered renewal moves it.
    pub fn deadline(&self) -> Duration {
        self.tenure.borrow().deadline
    }

    /// How long it may still be believed: zero once it is lost.
    pub fn remaining(&self) -> Duration {
        if self.standing() == Standing::Lost { Duration::ZERO } else { self.tenure.borrow().remaining(boottime()) }
    }

    /// Whether it is held now. Never `Held` after the deadline, even if this process was stopped meanwhile.
    pub fn standing(&self) -> Standing {
        let kept = self.tenure.has_changed().is_ok();
        if kept { self.tenure.borrow().at(boottime()) } else { Standing::Lost }
    }

    /// The whole of what is known of it now.
    pub fn tenure(&self) -> Tenure {
        *self.tenure.borrow()
    }

    /// Resolves when anything was heard of it: a renewal was answered, failed, or it is lost.
    ///
    /// Cancel safe. `None` once nothing more will be heard.
    pub async fn changed(&mut self) -> Option<Tenure> {
        self.tenure.changed().await.ok()?;
        Some(*self.tenure.borrow_and_update())
    }

    /// Resolves when it is time to stop: the lock is lost, or what is left of the lease is needed to stop
    /// ([`Rules`](super::Rules)). Cancel safe.
    pub async fn lost(&self) {
        let mut heard = self.tenure.clone();
        loop {
            let tenure = *heard.borrow_and_update();
            if tenure.standing == Standing::Lost || tenure.stop_at <= boottime() {
                return;
            }
            tokio::select! {
                changed = heard.changed() => if changed.is_err() { return },
                () = sleep_until(tenure.stop_at) => {}
            }
        }
    }

    /// Gives it back, and promotes who is next. Asks again until the store answers or the lease is over.
    ///
    /// # Errors
    /// [`ReleaseError`]: not known how it went; it is free at the end of its lease.
    pub async fn release(mut self) -> Release {
        let (answer, heard) = oneshot::channel();
        let asked = self.end.take().and_then(|end| end.send(answer).ok());
        match asked {
            Some(()) => heard.await.unwrap_or(Err(ReleaseError::Interrupted)),
            None => Err(ReleaseError::Interrupted),
        }
    }
}

/// Starts the task that asks for the lock, keeps it and gives it back, and waits until it is held.
pub(super) async fn start(lock: Lock, options: Options) -> Result<Hold, AcquireError> {
    let (given, held) = oneshot::channel();
    // Its end is noticed: without it a hold counts as lost.
    tokio::spawn(serve(lock, options, given));
    held.await.unwrap_or(Err(AcquireError::Interrupted))
}

async fn serve(lock: Lock, options: Options, mut given: oneshot::Sender<Result<Hold, AcquireError>>) {
    let mut contender = match Contender::new(&lock, &options) {
        Ok(contender) => contender,
        Err(error) => return drop(given.send(Err(error.into()))),
    };
    let won = tokio::select! {
        won = contender.win() => Some(won),
        () = given.closed() => None,
        // Whatever call is on its way: a store that is silent makes no wait longer.
        limit = out_of_time(options.wait) => Some(Err(AcquireError::TimedOut(limit))),
    };
    let won = won.map(|won| won.map_err(|error| contender.cause_of(error)));
    let keeper = Keeper { lock: &lock, id: contender.id().clone() };
    let tenure = match won {
        Some(Ok(tenure)) => tenure,
        Some(Err(error)) => {
            // Before it is told: whoever is told has nothing left in the queue, if the store answers.
            let asked = !error.is_before_asking();
            let mut cancelled = pin!(async {
                if asked {
                    keeper.cancel().await
                }
            });
            let in_time = timeout(CANCELS, &mut cancelled).await.is_ok();
            drop(given.send(Err(error)));
            if !in_time {
                cancelled.await;
            }
            return;
        }
        None => return keeper.cancel().await,
    };
    let (known, heard) = watch::channel(tenure);
    let (end, mut ended) = oneshot::channel();
    let hold = Hold { key: lock.key.clone(), tenure: heard, end: Some(end) };
    // Dropped where nobody waits any more, and then released as any other.
    drop(given.send(Ok(hold)));
    let asked = tokio::select! {
        asked = &mut ended => asked.ok(),
        () = keeper.keep(&known) => (&mut ended).await.ok(),
    };
    let deadline = known.borrow().deadline;
    let released = keeper.release(deadline).await;
    drop(known);
    match (asked, released) {
        (Some(answer), released) => drop(answer.send(released)),
        (None, Err(error)) => tracing::debug!(%error, lock = %lock.key, "a dropped hold was not released"),
        (None, Ok(_)) => {}
    }
}

/// Never, where there is no limit.
async fn out_of_time(wait: Wait) -> Duration {
    match wait {
        Wait::For(limit) => {
            sleep_until(boottime().saturating_add(limit)).await;
            limit
        }
        Wait::No | Wait::Forever => std::future::pending().await,
    }
}

struct Keeper<'a> {
    lock: &'a Lock,
    id: HolderId,
}

impl Keeper<'_> {
    /// Renews until it is lost.
    async fn keep(&self, known: &watch::Sender<Tenure>) {
        loop {
            let mut tenure = *known.borrow();
            tokio::select! {
                biased;
                () = sleep_until(tenure.deadline) => tenure.standing = Standing::Lost,
                () = self.renew(&mut tenure) => {}
            }
            known.send_replace(tenure);
            if tenure.standing == Standing::Lost {
                return;
            }
        }
    }

    /// Renews once, when it is due.
    async fn renew(&self, tenure: &mut Tenure) {
        sleep_until(tenure.renew_at).await;
        let sent = boottime();
        let Some(patience) = tenure.patience(sent) else {
            tenure.standing = Standing::Lost;
            return;
        };
        let holds = [(self.lock.key.clone(), self.id.clone())];
        let answer = timeout(patience, self.lock.store.renew(&holds)).await;
        match answer.ok().and_then(Result::ok).and_then(|answers| answers.first().copied()) {
            Some(answer) => tenure.answered(sent, boottime(), answer),
            None => tenure.unanswered(boottime()),
        }
    }

    async fn release(&self, deadline: Duration) -> Release {
        loop {
            match self.lock.store.release(&self.lock.key, &self.id).await {
                Ok(released) => return Ok(released),
                Err(error) if boottime() >= deadline => return Err(ReleaseError::NoAnswer(error)),
                Err(_) => tokio::time::sleep(AGAIN).await,
            }
        }
    }

    /// Ends whatever an acquire that failed may have left.
    async fn cancel(&self) {
        for _ in 0..CANCEL_TRIES {
            match self.lock.store.cancel(&self.lock.key, &self.id).await {
                Ok(_) => return,
                Err(_) => tokio::time::sleep(AGAIN).await,
            }
        }
    }
}
