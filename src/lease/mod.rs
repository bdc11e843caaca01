//! The domain: names, holders, tokens and the outcomes of the lease protocol. Pure and synchronous.
//!
//! Outcomes are values: busy, queued or lost is an answer, never an error. What could not be asked at all
//! is an error of [`crate::store`], and says nothing about the lock.

mod deadline;
mod ids;
mod offer;
mod token;

use std::time::Duration;

pub use deadline::{Rules, Standing, Tenure, TooShort, deadline, longest_stop};
pub use ids::{HolderId, InvalidName, LockKey, MAX_ID_LEN, MAX_IDENTITY_LEN, MAX_LOCK_NAME_LEN};
pub use offer::{Offer, Reading};
pub use token::{Epoch, FencingToken};

/// How much of a lock a holder takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mode {
    /// So many permits of the lock's count.
    Counted(u32),
    /// Beside other shared holders without limit; all shared holders together take one permit.
    Shared,
    /// Everything: beside an exclusive holder nobody is granted, whatever the count becomes.
    Exclusive,
}

impl Mode {
    /// The permits counted for a holder in this mode, as status and metrics show them.
    pub fn counted(self) -> u32 {
        match self {
            Mode::Counted(permits) => permits,
            Mode::Shared | Mode::Exclusive => 0,
        }
    }
}

/// How long an acquire waits in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Not at all: the answer is [`Acquired::Granted`] or [`Acquired::Busy`], and no waiter is left behind.
    No,
    /// So long from the server's reading of this request.
    For(Duration),
    /// Until granted or cancelled.
    Forever,
}

/// One acquisition. Repeating it with the same id gives the same answer. A claim's grant of which nobody was told yet may be
/// followed by a newer one, once time has taken it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The id of this acquisition and no other.
    pub id: HolderId,
    /// What it takes.
    pub mode: Mode,
    /// Higher is served first; equal priorities in order of arrival.
    pub priority: i32,
    /// How long it queues.
    pub wait: Wait,
    /// Who asks, as people read it, such as `pod/report-0`.
    pub identity: String,
    /// The UID of the pod that holds, where there is one.
    pub pod_uid: Option<String>,
}

/// A granted lease, as the server computed it in the call that answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// Strictly higher than that of any earlier grant of this lock name.
    pub token: FencingToken,
    /// What is left of the lease at the server's reading; count it from before the request was sent.
    pub remaining: Duration,
}

/// The answer to an acquire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acquired {
    /// Held, now.
    Granted(Grant),
    /// In the queue; ask again after `retry` to keep the place, and once the inbox tells of an [`Offer`].
    Queued {
        /// From where an offer's remaining time is counted.
        reading: Reading,
        /// When asking again may change the answer; later loses the place.
        retry: Duration,
    },
    /// Not free, and the request would not wait.
    Busy {
        /// When asking again may change the answer.
        retry: Duration,
    },
    /// This id has ended before: released, expired or cancelled.
    Lost,
    /// The lock is being deleted and grants nothing more.
    Sealed,
    /// The server has not been opened by the controller since it started.
    GateClosed,
    /// There is no record of this lock: it was not declared, or the server lost its data.
    Unprovisioned,
    /// Asks for more permits than the lock has.
    Unsatisfiable {
        /// How many it has.
        permits: u32,
    },
    /// The controller elects who holds it; nobody else can.
    LockIsElected,
    /// The epoch has no token left; the controller takes the next one.
    EpochExhausted,
}

/// The answer to a renewal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewed {
    /// Still held; an offer is accepted by this.
    Held(Grant),
    /// No longer held.
    Lost,
    /// Never held, or so long ago that it is forgotten.
    NotHeld,
    /// There is no record: unknown whether it is held. It can't be renewed.
    Unprovisioned,
}

/// The answer to a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Released {
    /// Free, by this call or an earlier one.
    Released,
    /// The lease had ended before it was released.
    Lost,
    /// It was cancelled before.
    Cancelled,
    /// Never held, or so long ago that it is forgotten.
    NotHeld,
    /// A delegated hold: only the controller ends it.
    Pinned,
    /// There is no record.
    Unprovisioned,
}
