//! What a workload may call.

use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, Value};

use super::link::{Connected, Link};
use super::reply::{Reply, unreadable};
use super::{Endpoint, Inbox, StoreError, lock_keys};
use crate::failpoint::must_be_named;
use crate::lease::{Acquired, FencingToken, HolderId, LockKey, Mode, Reading, Released, Renewed, Request, Wait};

/// What changes nothing in Redis.
const READS: [&str; 6] = ["EXISTS", "leasehold1_inspect", "leasehold1_version", "INFO", "CONFIG GET", "ACL LIST"];

/// One Redis and one key prefix in it. Cheap to clone; clones share the connection.
#[derive(Clone)]
pub struct Store {
    link: Arc<Link>,
    pub(super) prefix: String,
}

/// How far a hold has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoldState {
    /// Promoted from the queue; its first renewal or pin makes it a hold.
    Offer,
    /// Held until its lease ends.
    Held,
    /// Held until the controller frees it; past its lease it is overdue, not free.
    Pinned,
}

/// One hold as the record has it. Times are the server's, in milliseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// Its id.
    pub id: HolderId,
    /// Its fencing token.
    pub token: FencingToken,
    /// What it takes.
    pub mode: Mode,
    /// Offer, held or pinned.
    pub state: HoldState,
    /// When it was granted.
    pub acquired: i64,
    /// When it was last renewed.
    pub renewed: i64,
    /// When its lease ends.
    pub expires: i64,
    /// Who holds, as people read it.
    pub identity: String,
    /// The UID of the pod that holds, where there is one.
    pub pod_uid: Option<String>,
}

/// A record, read without changing it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// The server's clock at the reading, in milliseconds since 1970.
    pub now: i64,
    /// The UID of the `DistributedLock` it was provisioned for.
    pub lock_uid: String,
    /// The generation it was provisioned with.
    pub generation: i64,
    /// How many permits the lock has.
    pub permits: u32,
    /// The lease in milliseconds.
    pub lease: i64,
    /// The last token that was granted, or the floor of the next.
    pub last: i64,
    /// Grants nothing more.
    pub sealed: bool,
    /// What is left of the quarantine, in milliseconds.
    pub quarantine: i64,
    /// Whether this process's gate is open.
    pub gate_open: bool,
    /// Live and pinned holds and offers, oldest grant first.
    pub holds: Vec<Hold>,
    /// The ids of the waiters in the order in which they are served, with whether the controller waits for them.
    pub waiters: Vec<(HolderId, bool)>,
}

/// How many permits these holds take, but for an exclusive one: all shared ones together take one.
pub fn permits_counted<'a>(holds: impl Iterator<Item = &'a Hold> + Clone) -> u32 {
    let shared = u32::from(holds.clone().any(|hold| hold.mode == Mode::Shared));
    // Records can be forged: a sum may be beyond all bounds.
    holds.fold(shared, |sum, hold| sum.saturating_add(hold.mode.counted()))
}

fn millis(ms: i64) -> Duration {
    Duration::from_millis(ms.max(0).unsigned_abs())
}

impl Inspection {
    /// The lease of its holds.
    pub fn lease_duration(&self) -> Duration {
        millis(self.lease)
    }

    /// The holds without the offers, which may still go to another.
    pub fn held(&self) -> impl Iterator<Item = &Hold> {
        self.holds.iter().filter(|hold| hold.state != HoldState::Offer)
    }
}

/// One that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiter {
    /// Its id, a secret.
    pub id: HolderId,
    /// Whether the controller waits for it.
    pub delegated: bool,
    /// How much it asks for.
    pub mode: Mode,
    /// Higher is served first.
    pub priority: i32,
    /// Who waits, as people read it.
    pub identity: String,
}

impl Store {
    /// Prepares a connection; the first call opens it, and after a failure a later one opens it again. Inside a runtime.
    ///
    /// # Errors
    /// [`StoreError::Settings`] if the endpoint can't be used as given.
    pub fn connect(endpoint: &Endpoint, prefix: &str) -> Result<Self, StoreError> {
        Ok(Self { link: Arc::new(Link::new(endpoint.clone())?), prefix: prefix.to_owned() })
    }

    /// As [`Store::connect`], for credentials that are rotated: where user or password are refused, `source` is asked again,
    /// and what it has then is used from then on.
    ///
    /// # Errors
    /// [`StoreError::Settings`] if the endpoint can't be used as given.
    pub fn connect_by(
        endpoint: &Endpoint,
        prefix: &str,
        source: impl Fn() -> Option<Endpoint> + Send + Sync + 'static,
    ) -> Result<Self, StoreError> {
        Ok(Self { link: Arc::new(Link::new(endpoint.clone())?.with(source)), prefix: prefix.to_owned() })
    }

    /// Where it is now, and as whom it is entered.
    pub fn endpoint(&self) -> Arc<Endpoint> {
        self.link.endpoint()
    }

    /// Connects an inbox for waiters of this store.
    ///
    /// # Errors
    /// [`StoreError`] if the server can't be reached.
    pub async fn inbox(&self) -> Result<Inbox, StoreError> {
        Inbox::connect(&self.endpoint(), &self.prefix).await
    }

    pub(super) async fn call(&self, function: &'static str, cmd: &Cmd) -> Result<Value, StoreError> {
        if !READS.contains(&function) {
            must_be_named(|| function.to_owned());
        }
        let ask = async |by: &mut Connected| {
            let answer = cmd.query_async(&mut by.connection).await;
            answer.map_err(|source| StoreError::Call { function, source })
        };
        let mut by = self.link.now();
        let answer = ask(&mut by).await;
        // What was refused was not executed.
        let refused = answer.as_ref().is_err_and(StoreError::is_refused_credentials);
        match if refused { self.link.instead_of(&by)? } else { None } {
            Some(mut other) => ask(&mut other).await,
            None => answer,
        }
    }

    fn on_lock(&self, function: &'static str, lock: &LockKey) -> Cmd {
        let mut cmd = redis::cmd("FCALL");
        cmd.arg(function).arg(3).arg(&lock_keys(&self.prefix, lock));
        cmd
    }

    async fn reply(&self, function: &'static str, cmd: &Cmd) -> Result<Reply, StoreError> {
        Reply::read(function, self.call(function, cmd).await?)
    }

    /// Takes the lock, a place in its queue, or nothing, as the request's [`Wait`] says. Asking again with the
    /// same request keeps the place, and accepts an offer.
    ///
    /// # Errors
    /// [`StoreError`]: no answer; it may have been granted. Ask again with the same id, or [`Store::cancel`] it.
    pub async fn acquire(&self, lock: &LockKey, request: &Request) -> Result<Acquired, StoreError> {
        const FUNCTION: &str = "leasehold1_acquire";
        let mut cmd = self.on_lock(FUNCTION, lock);
        push_request(&mut cmd, request);
        acquired(self.reply(FUNCTION, &cmd).await?)
    }

    /// Renews holds of any number of locks in one round trip; the answers come in the same order. Of several, one whose
    /// record can't be read is answered [`Renewed::Unprovisioned`] and leaves the others alone.
    ///
    /// # Errors
    /// [`StoreError`]: no answer; the holds go on until the deadlines known before.
    pub async fn renew(&self, holds: &[(LockKey, HolderId)]) -> Result<Vec<Renewed>, StoreError> {
        const FUNCTION: &str = "leasehold1_renew";
        let mut cmd = redis::cmd("FCALL");
        cmd.arg(FUNCTION).arg(holds.len());
        for (lock, _) in holds {
            cmd.arg(&lock_keys(&self.prefix, lock)[0]);
        }
        for (_, id) in holds {
            cmd.arg(id.as_str());
        }
        match self.call(FUNCTION, &cmd).await? {
            Value::Array(answers) => answers.into_iter().map(|a| renewed(Reply::read(FUNCTION, a)?)).collect(),
            other => Err(unreadable(FUNCTION, &other)),
        }
    }

    /// Gives the lock back and promotes who is next.
    ///
    /// # Errors
    /// [`StoreError`]: no answer; releasing again with the same id gives the same answer.
    pub async fn release(&self, lock: &LockKey, id: &HolderId) -> Result<Released, StoreError> {
        self.end("leasehold1_release", lock, id).await
    }

    /// Ends whatever became of an acquire: afterwards its id holds nothing, waits for nothing, and a late
    /// duplicate of it grants nothing.
    ///
    /// # Errors
    /// [`StoreError`]: no answer; cancel again.
    pub async fn cancel(&self, lock: &LockKey, id: &HolderId) -> Result<Released, StoreError> {
        self.end("leasehold1_cancel", lock, id).await
    }

    async fn end(&self, function: &'static str, lock: &LockKey, id: &HolderId) -> Result<Released, StoreError> {
        let mut cmd = self.on_lock(function, lock);
        cmd.arg(id.as_str());
        released(self.reply(function, &cmd).await?)
    }

    /// Reads a record; `None` where there is none.
    ///
    /// # Errors
    /// [`StoreError`]: no answer.
    pub async fn inspect(&self, lock: &LockKey) -> Result<Option<Inspection>, StoreError> {
        const FUNCTION: &str = "leasehold1_inspect";
        inspection(self.reply(FUNCTION, &self.on_lock(FUNCTION, lock)).await?)
    }

    /// As [`Store::inspect`], and what those ask for that wait, in the order in which they are served.
    ///
    /// # Errors
    /// [`StoreError`]: no answer, or that of a library of version 1 about somebody who waits.
    pub async fn inspect_in_full(&self, lock: &LockKey) -> Result<Option<(Inspection, Vec<Waiter>)>, StoreError> {
        const FUNCTION: &str = "leasehold1_inspect";
        let mut cmd = self.on_lock(FUNCTION, lock);
        cmd.arg("full");
        let inspected = inspected(self.reply(FUNCTION, &cmd).await?, waiter)?;
        Ok(inspected.map(|(inspection, asked)| {
            let waiters = asked.iter().map(|waiter| (waiter.id.clone(), waiter.delegated)).collect();
            (Inspection { waiters, ..inspection }, asked)
        }))
    }
}

pub(super) fn push_mode(cmd: &mut Cmd, mode: Mode) {
    let letter = match mode {
        Mode::Counted(_) => "c",
        Mode::Shared => "s",
        Mode::Exclusive => "x",
    };
    cmd.arg(letter);
}

pub(super) fn push_request(cmd: &mut Cmd, request: &Request) {
    let Request { id, mode, priority, wait, identity, pod_uid } = request;
    let wait = match wait {
        Wait::No => 0,
        Wait::For(time) => i64::try_from(time.as_millis()).unwrap_or(i64::MAX >> 12).max(1),
        Wait::Forever => -1,
    };
    cmd.arg(id.as_str());
    push_mode(cmd, *mode);
    cmd.arg(mode.counted()).arg(priority).arg(wait).arg(identity).arg(pod_uid.as_deref().unwrap_or(""));
}

pub(super) fn acquired(mut reply: Reply) -> Result<Acquired, StoreError> {
    Ok(match reply.outcome().as_str() {
        "granted" => Acquired::Granted(reply.grant()?),
        "queued" => {
            let retry = reply.millis()?;
            Acquired::Queued { retry, reading: Reading { at: reply.take()?, epoch: reply.epoch()? } }
        }
        "busy" => Acquired::Busy { retry: reply.millis()? },
        "lost" => Acquired::Lost,
        "sealed" => Acquired::Sealed,
        "gate-closed" => Acquired::GateClosed,
        "unprovisioned" => Acquired::Unprovisioned,
        "elected" => Acquired::LockIsElected,
        "unsatisfiable" => Acquired::Unsatisfiable { permits: reply.take()? },
        "epoch-exhausted" => Acquired::EpochExhausted,
        _ => return Err(reply.unknown()),
    })
}

pub(super) fn renewed(mut reply: Reply) -> Result<Renewed, StoreError> {
    Ok(match reply.outcome().as_str() {
        "granted" => Renewed::Held(reply.grant()?),
        "lost" => Renewed::Lost,
        "not-held" => Renewed::NotHeld,
        "unprovisioned" => Renewed::Unprovisioned,
        _ => return Err(reply.unknown()),
    })
}

fn released(reply: Reply) -> Result<Released, StoreError> {
    Ok(match reply.outcome().as_str() {
        "released" => Released::Released,
        "lost" => Released::Lost,
        "cancelled" => Released::Cancelled,
        "not-held" => Released::NotHeld,
        "pinned" => Released::Pinned,
        "unprovisioned" => Released::Unprovisioned,
        _ => return Err(reply.unknown()),
    })
}

fn inspection(reply: Reply) -> Result<Option<Inspection>, StoreError> {
    let inspected = inspected(reply, place)?;
    Ok(inspected.map(|(inspection, waiters)| Inspection { waiters, ..inspection }))
}

/// The reading without its waiters, and those as they are read.
fn inspected<W>(
    mut reply: Reply,
    waiter: impl Fn(Reply) -> Result<W, StoreError>,
) -> Result<Option<(Inspection, Vec<W>)>, StoreError> {
    match reply.outcome().as_str() {
        "unprovisioned" => return Ok(None),
        "ok" => {}
        _ => return Err(reply.unknown()),
    }
    let mut inspection = Inspection {
        now: reply.take()?,
        lock_uid: reply.take()?,
        generation: reply.take()?,
        permits: reply.take()?,
        lease: reply.take()?,
        last: reply.take()?,
        sealed: reply.take::<i64>()? == 1,
        quarantine: reply.take()?,
        gate_open: reply.take::<i64>()? == 1,
        holds: reply.list()?.into_iter().map(hold).collect::<Result<_, _>>()?,
        waiters: Vec::new(),
    };
    inspection.holds.sort_by_key(|hold| hold.token);
    let waiters = reply.list()?.into_iter().map(waiter).collect::<Result<_, _>>()?;
    Ok(Some((inspection, waiters)))
}

fn hold(mut reply: Reply) -> Result<Hold, StoreError> {
    let id = holder_id(&mut reply)?;
    let token = reply.token()?;
    let mode = mode(&mut reply)?;
    let state = match reply.take::<String>()?.as_str() {
        "offer" => HoldState::Offer,
        "held" => HoldState::Held,
        "pinned" => HoldState::Pinned,
        _ => return Err(reply.unknown()),
    };
    let (acquired, renewed, expires) = (reply.take()?, reply.take()?, reply.take()?);
    let (identity, pod) = (reply.take()?, reply.take::<String>()?);
    let pod_uid = Some(pod).filter(|uid| !uid.is_empty());
    Ok(Hold { id, token, mode, state, acquired, renewed, expires, identity, pod_uid })
}

fn place(mut reply: Reply) -> Result<(HolderId, bool), StoreError> {
    Ok((holder_id(&mut reply)?, reply.take::<i64>()? == 1))
}

fn waiter(mut reply: Reply) -> Result<Waiter, StoreError> {
    let (id, delegated) = (holder_id(&mut reply)?, reply.take::<i64>()? == 1);
    if reply.is_over() {
        let answer = "waiters as a library of version 1 has them".to_owned();
        return Err(StoreError::Reply { function: "leasehold1_inspect", answer });
    }
    let mode = mode(&mut reply)?;
    Ok(Waiter { id, delegated, mode, priority: reply.take()?, identity: reply.take()? })
}

/// How much, as [`push_mode`] sends it.
fn mode(reply: &mut Reply) -> Result<Mode, StoreError> {
    let permits = reply.take()?;
    match reply.take::<String>()?.as_str() {
        "c" => Ok(Mode::Counted(permits)),
        "s" => Ok(Mode::Shared),
        "x" => Ok(Mode::Exclusive),
        _ => Err(reply.unknown()),
    }
}

fn holder_id(reply: &mut Reply) -> Result<HolderId, StoreError> {
    let id: String = reply.take()?;
    HolderId::new(id).map_err(|error| StoreError::Reply { function: "leasehold1_inspect", answer: error.to_string() })
}
