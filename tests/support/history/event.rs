//! What happened, as those saw it who took part. One machine, one clock: `CLOCK_BOOTTIME` in microseconds.

use serde::{Deserialize, Serialize};

/// An instant, in microseconds of `CLOCK_BOOTTIME`.
pub(crate) type Micros = i64;

/// A `resourceVersion`: of one etcd, so that those of different kinds can be compared.
pub(crate) type Version = u64;

/// One line of a history. Lines stand in the order in which they were recorded, which for those of one watch is the order
/// in which it told them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// When it happened.
    pub(crate) at: Micros,
    #[serde(flatten)]
    pub(crate) event: Event,
}

/// What a hold takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Share {
    /// So many permits.
    Permits(u32),
    /// One permit for all that share.
    Shared,
    /// Everything.
    Exclusive,
}

/// Who holds or waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// Renews for itself and stops by its own clock.
    Direct,
    /// A claim, for itself or for a pod.
    Delegated,
}

/// Why somebody no longer believes that it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Why {
    /// Its own deadline has passed, or it was told that it lost.
    Lost,
    /// It is about to give back.
    Released,
    /// It has died, and gives nothing back.
    Died,
    /// Its pod is about to be reported as ended.
    PodEnded,
    /// Its pod has stopped, and nobody tells the API server.
    PodVanished,
}

/// How far a claim has come, as its status says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Stage {
    Waiting,
    Granted,
    Told,
    Releasing,
    Finished,
}

/// A hold as a status publishes it, or as the record has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Shown {
    pub(crate) id: String,
    pub(crate) token: i64,
    /// When its lease ends, by this machine's clock.
    pub(crate) expires: Micros,
}

/// A leader as the lock's status remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Remembered {
    pub(crate) id: String,
    pub(crate) pod_uid: String,
    pub(crate) token: i64,
    pub(crate) releasing: bool,
}

/// What can happen. A holder's `id` is the one that a status shows: the hash of its secret one. An acquisition that
/// begins anew has another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub(crate) enum Event {
    /// The lock was declared or changed, by a request between `sent` and now.
    Configured { lock: String, permits: u32, lease: Micros, sent: Micros },
    /// From now on `id` may be granted.
    Asks { lock: String, id: String, kind: Kind, name: String, priority: i32 },
    /// It has its place in the queue, for some time already. Noted whenever it is told so.
    Queued { lock: String, id: String },
    /// It waits no longer, and was not granted as far as it knows.
    GaveUp { lock: String, id: String },
    /// It sends a renewal.
    Renews { lock: String, id: String },
    /// It knows that it holds. A direct holder believes it until `until`, on its own; its lease in Redis ends at
    /// `lease_end` at the latest, unless it renews. The first such entry of an id is its grant, later ones prolong.
    Holds {
        lock: String,
        id: String,
        kind: Kind,
        token: i64,
        share: Share,
        until: Option<Micros>,
        lease_end: Option<Micros>,
    },
    /// It no longer believes so.
    Stopped { lock: String, id: String, why: Why },
    /// One read-modify-write of a counter that is to be written under a lock. In the order of the counter.
    Used { counter: String, fenced: bool, id: String, token: i64, read: u64, wrote: Option<u64> },
    /// A watch began anew: what came between was not seen.
    Listed { kind: String },
    /// A lock's status, as the watch told it.
    Published { lock: String, version: Version, holders: Vec<Shown>, expires: Option<Micros>, leaders: Vec<Remembered> },
    /// A claim's status, as the watch told it.
    Claimed { lock: String, claim: String, version: Version, id: String, stage: Stage, token: Option<i64> },
    /// A pod's role, as the watch told it.
    Marked { lock: String, pod_uid: String, version: Version, leads: bool, token: Option<i64> },
    /// The record in Redis, read by a request between `sent` and now. `open`: its gate was.
    Record { lock: String, sent: Micros, open: bool, holds: Vec<Shown> },
    /// etcd was put back to an older copy: what it had since has never been, and versions begin anew.
    PutBack,
    /// Something is being broken: promptness and order are not judged until it has healed.
    Fault { name: String },
    /// It has healed.
    Healed,
}
