//! What only the leading controller calls: each call carries the store's UID and the controller's term, and
//! Redis refuses those of another install and of an older reign.

use std::time::Duration;

use redis::{Cmd, FromRedisValue, Value};

use super::connect::lock_of;
use super::reply::{Reply, unreadable};
use super::workload::{acquired, push_mode, push_request, renewed};
use super::{Store, StoreError, lock_keys, store_key};
use crate::lease::{Acquired, Epoch, FencingToken, HolderId, LockKey, Mode, Renewed, Request};

/// The controller's calls, for one store and one reign.
#[derive(Clone)]
pub struct Control {
    store: Store,
    uid: String,
    term: i64,
}

/// Why Redis would not do it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The prefix belongs to the `LockStore` with this UID.
    #[error("the key prefix is in use by the LockStore with UID {0}")]
    StoreInUse(String),
    /// A controller with this higher term reigns.
    #[error("a controller with the higher term {0} reigns")]
    StaleTerm(i64),
    /// The gate is closed: the server restarted, was promoted, or reloaded its library.
    #[error("the gate is closed")]
    GateClosed,
    /// The gate is open, so nothing may be restored.
    #[error("the gate is open")]
    GateOpen,
    /// Another process, or another incarnation of it, answers.
    #[error("another Redis process answers")]
    OtherProcess,
    /// An epoch as high was used before, for another incarnation.
    #[error("epoch {0} was used before")]
    StaleEpoch(i64),
    /// The record belongs to the lock with this UID.
    #[error("the record belongs to the lock with UID {0}")]
    OtherLock(String),
    /// Somebody holds it still.
    #[error("the lock is held")]
    Held,
    /// There is no record.
    #[error("there is no record")]
    Unprovisioned,
}

/// What a heartbeat tells of the process that answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heartbeat {
    /// The server's clock, in milliseconds since 1970.
    pub now: i64,
    /// Identity of the process.
    pub run_id: String,
    /// Identity of its data set as a master.
    pub replid: String,
    /// `master` or `slave`.
    pub role: String,
    /// The epoch of its gate; `None` while that is closed.
    pub gate: Option<Epoch>,
    /// The highest epoch that the store's own key knows.
    pub epoch: Epoch,
    /// The highest mark that it knew before.
    pub mark: i64,
}

/// The locks whose records have changed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// To be named in the next call, so that a batch whose answer was lost is told again.
    pub batch: i64,
    /// Each once, in no order.
    pub locks: Vec<LockKey>,
}

/// The process and epoch to open a gate for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opening {
    /// Identity of the process.
    pub run_id: String,
    /// Identity of its data set.
    pub replid: String,
    /// Used for this incarnation and no other.
    pub epoch: Epoch,
}

/// A delegated hold as etcd remembers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remembered {
    /// Its id.
    pub id: HolderId,
    /// Its token.
    pub token: FencingToken,
    /// What it takes.
    pub mode: Mode,
    /// Who holds.
    pub identity: String,
    /// The UID of the pod that holds, where there is one.
    pub pod_uid: Option<String>,
}

/// A delegated waiter's place as etcd remembers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// What it asks for.
    pub request: Request,
    /// It must hold other locks first, as for [`Control::reserve`].
    pub reserved: bool,
}

/// What a record is provisioned with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provision {
    /// The UID of the `DistributedLock`.
    pub lock_uid: String,
    /// Its generation: an older one changes nothing.
    pub generation: i64,
    /// How many permits it has.
    pub permits: u32,
    /// The length of a lease.
    pub lease: Duration,
    /// The longest hold; `None`: no bound.
    pub max_hold: Option<Duration>,
    /// Granted by the controller alone, to the pods that it elects.
    pub elected: bool,
    /// New tokens start above it.
    pub token_floor: i64,
    /// Nothing is granted for so long, since a lease of the past may still be believed.
    pub quarantine: Duration,
    /// A record with a token from here on was tampered with; `None`: not checked.
    pub token_ceiling: Option<i64>,
    /// Every delegated hold that etcd remembers.
    pub holds: Vec<Remembered>,
    /// The places of the delegated waiters that etcd remembers, in their order. One that holds already, has ended or can't be
    /// satisfied gets none. That of one in `holds` is where its next attempt stands: see [`Control::free`].
    pub waiters: Vec<Place>,
}

impl Provision {
    /// The first of a lock: a record without a bound, a floor or a quarantine, that nobody holds or waits for.
    pub fn new(lock_uid: impl Into<String>, permits: u32, lease: Duration) -> Self {
        Self {
            lock_uid: lock_uid.into(),
            generation: 1,
            permits,
            lease,
            max_hold: None,
            elected: false,
            token_floor: 0,
            quarantine: Duration::ZERO,
            token_ceiling: None,
            holds: Vec::new(),
            waiters: Vec::new(),
        }
    }
}

/// What became of a provision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Provisioned {
    /// There was no record before.
    pub fresh: bool,
    /// The record had a token that was never granted. It is capped right below the ceiling: tokens that were granted
    /// below it are unknown, so this epoch has none left for the lock, and the next one is due.
    pub tampered: bool,
}

/// What is left of a sealed lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sealed {
    /// The last token granted.
    pub last: i64,
    /// Until the last direct lease ends.
    pub direct: Duration,
    /// Delegated holds.
    pub pinned: u32,
}

/// When a lock wants the next `expire`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// At the end of a lease, of the quarantine or of a waiter's patience, or earlier: at one that was put off.
    In(Duration),
    /// Nothing is due.
    Nothing,
    /// There is no record.
    Unprovisioned,
}

type Answer<T> = Result<Result<T, Refusal>, StoreError>;

impl Control {
    /// For the store whose `LockStore` has `uid`, in the reign `term`.
    pub fn new(store: Store, uid: impl Into<String>, term: i64) -> Self {
        Self { store, uid: uid.into(), term }
    }

    /// The calls of a workload, on the same connection.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The term that every call carries.
    pub fn term(&self) -> i64 {
        self.term
    }

    fn command(&self, function: &'static str, locks: &[LockKey]) -> Cmd {
        let mut cmd = redis::cmd("FCALL");
        cmd.arg(function).arg(1 + 3 * locks.len()).arg(store_key(&self.store.prefix));
        for lock in locks {
            cmd.arg(&lock_keys(&self.store.prefix, lock));
        }
        cmd.arg(&self.uid).arg(self.term);
        cmd
    }

    async fn ask(&self, function: &'static str, cmd: &Cmd) -> Answer<Reply> {
        let mut reply = Reply::read(function, self.store.call(function, cmd).await?)?;
        Ok(match refusal(&mut reply)? {
            Some(refusal) => Err(refusal),
            None => Ok(reply),
        })
    }

    /// Makes the term known, tells delegated waiters that a controller lives, and says who answers. Redis keeps the
    /// highest mark that it is told; etcd raises it first. A term that another reign has used is refused as stale.
    ///
    /// # Errors
    /// [`StoreError`]: no answer. The same for all calls below.
    pub async fn heartbeat(&self, reign: &str, mark: i64) -> Answer<Heartbeat> {
        const FUNCTION: &str = "leasehold1_heartbeat";
        let mut cmd = self.command(FUNCTION, &[]);
        cmd.arg(reign).arg(mark);
        let mut reply = match self.ask(FUNCTION, &cmd).await? {
            Ok(reply) => reply,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let (now, run_id, replid, role) = (reply.take()?, reply.take()?, reply.take()?, reply.take()?);
        let gate = Epoch::new(reply.take()?).filter(|epoch| *epoch != Epoch::default());
        let epoch = Epoch::new(reply.take()?).unwrap_or(Epoch::MAX);
        let mark = reply.take()?;
        Ok(Ok(Heartbeat { now, run_id, replid, role, gate, epoch, mark }))
    }

    /// Opens the gate of exactly the process it names. Safe to repeat.
    pub async fn open(&self, opening: &Opening) -> Answer<()> {
        const FUNCTION: &str = "leasehold1_open";
        let mut cmd = self.command(FUNCTION, &[]);
        cmd.arg(opening.epoch.get()).arg(&opening.run_id).arg(&opening.replid);
        Ok(self.ask(FUNCTION, &cmd).await?.map(drop))
    }

    /// Closes the gate: nothing more is granted until it is opened again.
    pub async fn close(&self) -> Answer<()> {
        const FUNCTION: &str = "leasehold1_close";
        Ok(self.ask(FUNCTION, &self.command(FUNCTION, &[])).await?.map(drop))
    }

    /// The locks whose records have changed since the batch that was told last. A renewal changes none.
    pub async fn changes(&self, told: i64) -> Answer<Changes> {
        const FUNCTION: &str = "leasehold1_changes";
        let mut cmd = self.command(FUNCTION, &[]);
        cmd.arg(told);
        let mut reply = match self.ask(FUNCTION, &cmd).await? {
            Ok(reply) => reply,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let batch = reply.take()?;
        let start = self.store.prefix.len() + 2;
        let keys = reply.rest().map(String::from_redis_value).filter_map(Result::ok);
        let locks = keys.filter_map(|key| lock_of(key.get(start..)?.strip_suffix("}:lock")?)).collect();
        Ok(Ok(Changes { batch, locks }))
    }

    /// Whether each of these locks has a record. Changes nothing, and asks about no term.
    pub async fn have_records(&self, locks: &[LockKey]) -> Result<bool, StoreError> {
        const COMMAND: &str = "EXISTS";
        let mut cmd = redis::cmd(COMMAND);
        for lock in locks {
            let [record, _, _] = lock_keys(&self.store.prefix, lock);
            cmd.arg(record);
        }
        match self.store.call(COMMAND, &cmd).await? {
            Value::Int(found) => Ok(usize::try_from(found) == Ok(locks.len())),
            other => Err(unreadable(COMMAND, &other)),
        }
    }

    /// Leaves the prefix to another `LockStore`. Its epochs stay used.
    pub async fn leave(&self) -> Answer<()> {
        const FUNCTION: &str = "leasehold1_leave";
        Ok(self.ask(FUNCTION, &self.command(FUNCTION, &[])).await?.map(drop))
    }

    /// Creates or changes a record, and puts back the delegated holds and places it lacks.
    pub async fn provision(&self, lock: &LockKey, provision: &Provision) -> Answer<Provisioned> {
        const FUNCTION: &str = "leasehold1_provision";
        let mut cmd = self.command(FUNCTION, std::slice::from_ref(lock));
        push_provision(&mut cmd, provision);
        provisioned(self.ask(FUNCTION, &cmd).await?)
    }

    /// As [`Control::provision`], before the gate of the named process is opened and only then.
    pub async fn restore(&self, lock: &LockKey, provision: &Provision, opening: &Opening) -> Answer<Provisioned> {
        const FUNCTION: &str = "leasehold1_restore";
        let mut cmd = self.command(FUNCTION, std::slice::from_ref(lock));
        push_provision(&mut cmd, provision);
        cmd.arg(&opening.run_id).arg(&opening.replid);
        provisioned(self.ask(FUNCTION, &cmd).await?)
    }

    /// A delegated holder's acquire.
    pub async fn claim(&self, lock: &LockKey, request: &Request) -> Answer<Acquired> {
        const FUNCTION: &str = "leasehold1_claim";
        let mut cmd = self.command(FUNCTION, std::slice::from_ref(lock));
        push_request(&mut cmd, request);
        self.ask_workload(FUNCTION, &cmd, acquired).await
    }

    /// A place in the queue for one that must hold other locks first. When its turn comes it is kept for as long as an offer
    /// would be, once; then it keeps its place, and is passed over until it claims. A hold that nobody was told of becomes
    /// such a place, if it has one; else the answer is [`Acquired::Granted`].
    pub async fn reserve(&self, lock: &LockKey, request: &Request) -> Answer<Acquired> {
        const FUNCTION: &str = "leasehold1_reserve";
        let mut cmd = self.command(FUNCTION, std::slice::from_ref(lock));
        push_request(&mut cmd, request);
        self.ask_workload(FUNCTION, &cmd, acquired).await
    }

    /// Makes an offer or a hold one that time alone doesn't take; [`Renewed::Lost`] if it has ended. In another epoch than this,
    /// by which the caller has decided it, it is refused as [`Refusal::GateClosed`].
    pub async fn pin(&self, lock: &LockKey, id: &HolderId, epoch: Epoch) -> Answer<Renewed> {
        const FUNCTION: &str = "leasehold1_pin";
        let mut cmd = self.command(FUNCTION, std::slice::from_ref(lock));
        cmd.arg(id.as_str()).arg(epoch.get());
        self.ask_workload(FUNCTION, &cmd, renewed).await
    }

    /// Outcomes that a workload's function may have too are read by `read`; refusals come first, but for a
    /// closed gate and a missing record, which are outcomes of both.
    async fn ask_workload<T>(
        &self,
        function: &'static str,
        cmd: &Cmd,
        read: fn(Reply) -> Result<T, StoreError>,
    ) -> Answer<T> {
        let mut reply = Reply::read(function, self.store.call(function, cmd).await?)?;
        match reply.outcome().as_str() {
            "store-in-use" | "stale-term" | "gate-closed" => {
                let refusal = refusal(&mut reply)?;
                refusal.map_or_else(|| Err(reply.unknown()), |refusal| Ok(Err(refusal)))
            }
            _ => read(reply).map(Ok),
        }
    }

    /// Ends a hold, pinned or not, or leaves the queue; only after etcd has let it go. `successor`: the id under which its
    /// claim begins anew; it stands where this one stood, reserved until it claims.
    pub async fn free(&self, lock: &LockKey, id: &HolderId, successor: Option<&HolderId>) -> Answer<()> {
        const FUNCTION: &str = "leasehold1_free";
        let mut cmd = self.command(FUNCTION, std::slice::from_ref(lock));
        cmd.arg(id.as_str()).arg(successor.map(HolderId::as_str));
        Ok(self.ask(FUNCTION, &cmd).await?.map(drop))
    }

    /// Ends what is over in these locks, promotes who is next, and says when each is due again, in order.
    pub async fn expire(&self, locks: &[LockKey]) -> Answer<Vec<Due>> {
        const FUNCTION: &str = "leasehold1_expire";
        let reply = match self.ask(FUNCTION, &self.command(FUNCTION, locks)).await? {
            Ok(reply) => reply,
            Err(refusal) => return Ok(Err(refusal)),
        };
        reply.rest().map(due).collect::<Result<_, _>>().map(Ok)
    }

    /// Seals the record of a lock that is being deleted: it grants nothing more.
    pub async fn seal(&self, lock: &LockKey, lock_uid: &str) -> Answer<Sealed> {
        const FUNCTION: &str = "leasehold1_seal";
        let mut cmd = self.command(FUNCTION, std::slice::from_ref(lock));
        cmd.arg(lock_uid);
        let mut reply = match self.ask(FUNCTION, &cmd).await? {
            Ok(reply) => reply,
            Err(refusal) => return Ok(Err(refusal)),
        };
        Ok(Ok(Sealed { last: reply.take()?, direct: reply.millis()?, pinned: reply.take()? }))
    }

    /// Forgets a sealed lock that nobody holds. Its last token must stand in etcd before.
    pub async fn purge(&self, lock: &LockKey, lock_uid: &str) -> Answer<()> {
        const FUNCTION: &str = "leasehold1_purge";
        let mut cmd = self.command(FUNCTION, std::slice::from_ref(lock));
        cmd.arg(lock_uid);
        Ok(self.ask(FUNCTION, &cmd).await?.map(drop))
    }
}

fn refusal(reply: &mut Reply) -> Result<Option<Refusal>, StoreError> {
    Ok(Some(match reply.outcome().as_str() {
        "store-in-use" => Refusal::StoreInUse(reply.take()?),
        "stale-term" => Refusal::StaleTerm(reply.take()?),
        "gate-closed" => Refusal::GateClosed,
        "gate-open" => Refusal::GateOpen,
        "other-process" => Refusal::OtherProcess,
        "stale-epoch" => Refusal::StaleEpoch(reply.take()?),
        "other-lock" => Refusal::OtherLock(reply.take()?),
        "held" => Refusal::Held,
        "unprovisioned" => Refusal::Unprovisioned,
        "ok" | "sealed" | "released" => return Ok(None),
        _ => {
            return Err(StoreError::Reply { function: "FCALL", answer: reply.outcome() });
        }
    }))
}

fn push_provision(cmd: &mut Cmd, provision: &Provision) {
    let Provision { lock_uid, generation, permits, lease, max_hold, elected, .. } = provision;
    let Provision { token_floor, quarantine, token_ceiling, holds, waiters, .. } = provision;
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX >> 12);
    cmd.arg(lock_uid).arg(generation).arg(permits).arg(millis(*lease)).arg(max_hold.map_or(0, millis));
    cmd.arg(token_floor).arg(millis(*quarantine)).arg(token_ceiling.unwrap_or(0)).arg(u8::from(*elected));
    for Remembered { id, token, mode, identity, pod_uid } in holds {
        cmd.arg(id.as_str()).arg(token.get()).arg(mode.counted());
        push_mode(cmd, *mode);
        cmd.arg(identity).arg(pod_uid.as_deref().unwrap_or(""));
    }
    if !waiters.is_empty() {
        cmd.arg("");
    }
    for Place { request, reserved } in waiters {
        push_request(cmd, request);
        cmd.arg(u8::from(*reserved));
    }
}

fn provisioned(answer: Result<Reply, Refusal>) -> Answer<Provisioned> {
    let mut reply = match answer {
        Ok(reply) => reply,
        Err(refusal) => return Ok(Err(refusal)),
    };
    Ok(Ok(Provisioned { fresh: reply.take::<i64>()? == 1, tampered: reply.take::<i64>()? == 1 }))
}

fn due(value: Value) -> Result<Due, StoreError> {
    match value {
        Value::Int(..0) => Ok(Due::Nothing),
        Value::Int(ms) => Ok(Due::In(Duration::from_millis(ms.unsigned_abs()))),
        Value::BulkString(word) if word == b"unprovisioned" => Ok(Due::Unprovisioned),
        other => Err(unreadable("leasehold1_expire", &other)),
    }
}
