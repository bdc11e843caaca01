//! Holding a lock from this process: waiting for it, renewing it, knowing in time when it is lost.
//!
//! ```no_run
//! use leasehold::keeper::{Options, Wait};
//! use leasehold::lease::LockKey;
//! use leasehold::store::{Endpoint, Store};
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let store = Store::connect(&Endpoint::from_url("redis://redis.leasehold-system:6379")?, "leasehold")?;
//! let lock = store.lock(LockKey::new("shop", "db-migrate")?);
//! let hold = lock.acquire(Options { wait: Wait::Forever, ..Options::named("billing") }).await?;
//! tokio::select! {
//!     // The resource refuses whoever shows a lower token than it has seen.
//!     () = migrate(hold.token()) => println!("done: {:?}", hold.release().await?),
//!     () = hold.lost() => println!("stopped, since the lock is lost"),
//! }
//! # Ok(())
//! # }
//! # async fn migrate(_: leasehold::lease::FencingToken) {}
//! ```
//!
//! # Guarantees
//! * A hold is believed until its [deadline](Hold::deadline), which is this machine's own clock and lies before the end of
//!   the lease at the server: [`crate::lease::deadline()`] has the formula. Nothing but an answered renewal moves it.
//! * [`Hold::lost`] resolves at the latest [`Rules::least_stop`] before it: whoever needs so long to stop has stopped in time,
//!   whatever the network does.
//! * An error is never taken for a loss: until the deadline a hold that can't be renewed is in [`Standing::Jeopardy`].
//! * No process can stop itself while it is itself stopped (SIGSTOP, a suspended machine): only the fencing token, checked
//!   by the resource, protects from what it does when it goes on.
//!
//! # Cancel safety
//! Each future may be dropped. An [`acquire`](Lock::acquire) that is dropped is cancelled at the server by a task that
//! outlives it; a [`Hold`] that is dropped is released in the same way. Where the runtime ends first, the place in the
//! queue is given up by the server after 15 s, a hold at the end of its lease.

mod hold;
mod several;
mod wait;

use std::convert::Infallible;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};

pub use hold::{Hold, ReleaseError};
pub use several::{Holds, acquire_all};

use crate::lease::{LockKey, MAX_IDENTITY_LEN};
pub use crate::lease::{Mode, Rules, Standing, Tenure, TooShort, Wait};
use crate::random::NoRandomness;
use crate::store::{Store, StoreError};

/// How long nothing is said of a store that can't grant.
const QUIET: Duration = Duration::from_secs(6);

/// One lock of a store. Cheap to clone.
#[derive(Clone)]
pub struct Lock {
    pub(crate) store: Store,
    pub(crate) key: LockKey,
}

impl Store {
    /// The lock of that name; nothing is asked yet.
    pub fn lock(&self, key: LockKey) -> Lock {
        Lock { store: self.clone(), key }
    }
}

/// How a lock is asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// How much of it.
    pub mode: Mode,
    /// Higher is served first; equal priorities in order of arrival.
    pub priority: i32,
    /// How long to wait.
    pub wait: Wait,
    /// Who asks, as people read it in the lock's status, such as `pod/report-0`: at most 320 bytes.
    pub identity: String,
    /// The UID of the pod that asks: when it has ended, the controller takes back what it holds.
    pub pod_uid: Option<String>,
    /// What the holder needs of the lease.
    pub rules: Rules,
    /// Told of what is waited for, where somebody wants to know.
    pub progress: Option<watch::Sender<Progress>>,
}

impl Options {
    /// One permit, without waiting, for a holder of that name.
    pub fn named(identity: impl Into<String>) -> Self {
        Self {
            mode: Mode::Counted(1),
            priority: 0,
            wait: Wait::No,
            identity: identity.into(),
            pod_uid: None,
            rules: Rules::default(),
            progress: None,
        }
    }

    fn check(&self) -> Result<(), AcquireError> {
        let allowed = !self.identity.is_empty() && self.identity.len() <= MAX_IDENTITY_LEN;
        if allowed { Ok(()) } else { Err(AcquireError::Identity) }
    }
}

/// What an acquire waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// It asks.
    Asking,
    /// It is in the queue.
    Queued,
    /// Nothing can be granted now, and why; it goes on asking.
    Unavailable(String),
}

/// Resolves once nobody who tells of this progress waits any more: after an acquire was dropped, when the server has been
/// told. Cancel safe.
pub async fn left(mut progress: watch::Receiver<Progress>) {
    while progress.changed().await.is_ok() {}
}

/// Logs what is waited for; what passes soon is not worth a word. Cancel safe.
pub async fn narrate(mut progress: watch::Receiver<Progress>) -> Infallible {
    while progress.changed().await.is_ok() {
        let now = progress.borrow_and_update().clone();
        match now {
            Progress::Asking => {}
            Progress::Queued => info!("waiting in the queue"),
            Progress::Unavailable(why) => {
                sleep(QUIET).await;
                if matches!(*progress.borrow(), Progress::Unavailable(_)) {
                    warn!("waiting: {why}");
                }
            }
        }
    }
    std::future::pending().await
}

/// Why a lock was not acquired. Nothing is held, and nobody waits any more; where the store is silent, as soon as it can be
/// told, or the lease ends.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AcquireError {
    /// Somebody else holds it, and [`Wait::No`] was asked for.
    #[error("the lock is held by another")]
    Busy,
    /// It was not granted in time, as others hold it. Where something else kept it from being granted, that is the error.
    #[error("not granted within {0:?}")]
    TimedOut(Duration),
    /// The lease leaves no time to stop.
    #[error("{0}: lengthen the lock's spec.leaseDurationSeconds or stop faster")]
    TooShort(TooShort),
    /// The server has no record of it.
    #[error("the store knows no such lock: is a DistributedLock of this name declared, and Ready? (kubectl get dlock)")]
    NoSuchLock,
    /// The server waits to be opened.
    #[error("the store grants nothing yet: its controller has not opened it since it started (kubectl get lockstores)")]
    GateClosed,
    /// It is being deleted.
    #[error("the lock is being deleted")]
    Deleted,
    /// More was asked for than there is.
    #[error("the lock has {permits} permits, fewer than were asked for")]
    Unsatisfiable {
        /// How many it has.
        permits: u32,
    },
    /// The controller elects who holds it.
    #[error("the lock has an election: its controller alone chooses who holds it")]
    LockIsElected,
    /// The name of the holder is empty or too long.
    #[error("the identity must have 1 to {MAX_IDENTITY_LEN} bytes")]
    Identity,
    /// The server refused to answer; it would again.
    #[error("the store refuses ({}): {}", .0.label(), advice(.0))]
    Refused(#[source] StoreError),
    /// The server could not be asked.
    #[error("the store can't be reached ({}): {}", .0.label(), advice(.0))]
    Unreachable(#[source] StoreError),
    /// No holder id can be made.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    /// The task that waits has died, or the runtime is ending.
    #[error("interrupted")]
    Interrupted,
}

impl AcquireError {
    /// Nothing was asked of the server that it could still do.
    fn is_before_asking(&self) -> bool {
        matches!(self, Self::Busy | Self::TooShort(_) | Self::Refused(_) | Self::Identity | Self::NoRandomness(_))
    }
}

/// What to do about a store that gives no answer.
pub(crate) fn advice(error: &StoreError) -> &'static str {
    match error.label() {
        "AuthenticationFailed" => "check the user name and the password",
        "PermissionDenied" => "this user may not use locks of this namespace",
        "InvalidSettings" => "check the URL and the TLS files",
        "Unreachable" => "check the URL and the network, and that both sides use TLS or neither does",
        "NotMaster" | "Loading" | "OutOfMemory" | "NotEnoughReplicas" | "PersistenceFailed" => {
            "it answers and can't write; the condition Ready of its LockStore says more"
        }
        _ if error.is_missing_library() => {
            "its function library is not loaded; does the URL name a store that a controller serves?"
        }
        _ => "is it of another release?",
    }
}

impl From<TooShort> for AcquireError {
    fn from(error: TooShort) -> Self {
        Self::TooShort(error)
    }
}

impl Lock {
    /// Which lock.
    pub fn key(&self) -> &LockKey {
        &self.key
    }

    /// Who holds it now, as people read it, the oldest first; nobody, where there is no record.
    ///
    /// # Errors
    /// [`StoreError`]: no answer.
    pub async fn holders(&self) -> Result<Vec<String>, StoreError> {
        let record = self.store.inspect(&self.key).await?;
        Ok(record.into_iter().flat_map(|record| record.holds).map(|hold| hold.identity).collect())
    }

    /// Acquires it, in the order of the queue. A store that goes away meanwhile is waited for; one that was never
    /// there is given up after 5 s.
    ///
    /// # Errors
    /// [`AcquireError`]: why it is not held.
    pub async fn acquire(&self, options: Options) -> Result<Hold, AcquireError> {
        options.check()?;
        hold::start(self.clone(), options).await
    }
}
