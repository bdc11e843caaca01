//! Named places before and after each external write of the controller, where a test stops or kills the process.
//!
//! Only builds with debug assertions have them: in a release build [`around`] *is* the write, and no name is left in
//! the binary. There, `LEASEHOLD_FAILPOINT="kill before claim.pin"` strikes the first time that the place is reached;
//! `stop` in the place of `kill`, `after` in the place of `before`; a number at the end: that time and not the first; a
//! comma between several. `leasehold failpoints` lists the names.
//!
//! Once [`arm`]ed, a process that writes without a name ends itself: a write that was forgotten here fails every test
//! that gets there.

/// Names each write once, and says what it is.
macro_rules! failpoints {
    ($($(#[doc = $what:literal])+ $variant:ident = $name:literal,)+) => {
        /// One external write of the controller.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Failpoint {
            $($(#[doc = $what])+ $variant,)+
        }

        impl Failpoint {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// As it is typed.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// What is written there.
            pub fn what(self) -> &'static str {
                match self {
                    $(Self::$variant => concat!($($what),+).trim_ascii(),)+
                }
            }
        }
    };
}

failpoints! {
    /// The Lease of the leading replica is taken or renewed.
    ReplicaLease = "replica.lease",
    /// The Lease is given back at the end.
    ReplicaRelease = "replica.release",

    /// The password of the Redis of that store is made.
    StorePassword = "store.password",
    /// The configured LockStore is created.
    StoreCreate = "store.create",
    /// Our finalizer comes to a LockStore.
    StoreFinalizer = "store.finalizer",
    /// Our finalizer goes from a LockStore.
    StoreLetGo = "store.let-go",
    /// A reign begins: its term, in etcd.
    StoreTerm = "store.term",
    /// The function library is loaded.
    StoreLibrary = "store.library",
    /// The term, in Redis; delegated waiters hear that a controller lives.
    StoreHeartbeat = "store.heartbeat",
    /// A fresh epoch, in etcd.
    StoreEpoch = "store.epoch",
    /// The epoch once more, in the ConfigMap that uninstalling keeps.
    StoreMirror = "store.mirror",
    /// A record is made again before the gate is opened.
    StoreRestore = "store.restore",
    /// The gate is opened.
    StoreOpen = "store.open",
    /// The incarnation that was opened, in etcd.
    StoreIncarnation = "store.incarnation",
    /// Records that are missing are looked for before an epoch is taken for one.
    StoreLookForMissing = "store.look-for-missing",
    /// The server's clock was set: the incarnation goes from etcd.
    StoreClockStepped = "store.clock-stepped",
    /// The gate is closed.
    StoreClose = "store.close",
    /// The conditions of a LockStore.
    StoreStatus = "store.status",
    /// An Event about a LockStore.
    StoreEvent = "store.event",
    /// Redis tells which locks have changed, and forgets those that it has told before.
    StoreChanges = "store.changes",
    /// The key prefix is left to others.
    StoreLeave = "store.leave",
    /// The mark, in etcd, after claims were told of grants.
    StoreMark = "store.mark",
    /// etcd was put back to an older copy: that this is so, how far it is healed, and that a person has confirmed.
    StoreDoubt = "store.doubt",
    /// The last token of a lock that goes, in the LockStore's status.
    StoreTokenFloor = "store.token-floor",

    /// Our finalizer comes to a lock.
    LockFinalizer = "lock.finalizer",
    /// Our finalizer goes from a lock.
    LockLetGo = "lock.let-go",
    /// etcd learns that there will be a record, and of a longer lease.
    LockProvisioned = "lock.provisioned",
    /// etcd forgets a longer lease of before.
    LockLowered = "lock.lowered",
    /// A record is made or changed.
    LockProvision = "lock.provision",
    /// What is over ends, and who is next is promoted.
    LockExpire = "lock.expire",
    /// Delegated holds are renewed before their expiry is published.
    LockRenew = "lock.renew",
    /// A hold that etcd has and Redis doesn't is put back.
    LockPutBack = "lock.put-back",
    /// A hold or place that nobody records is freed.
    LockFreeOrphan = "lock.free-orphan",
    /// A direct hold whose pod has ended is freed.
    LockFreeEnded = "lock.free-ended",
    /// The status of a lock.
    LockStatus = "lock.status",
    /// An Event about a lock.
    LockEvent = "lock.event",
    /// The record of a lock that goes is sealed.
    LockSeal = "lock.seal",
    /// The record of a lock that goes is forgotten.
    LockPurge = "lock.purge",

    /// A claim of several locks asks for the next one.
    SeveralAsk = "several.ask",
    /// Its places at the next ones are kept while it waits for one before them again.
    SeveralReserve = "several.reserve",
    /// The grant of the next one is pinned.
    SeveralPin = "several.pin",
    /// The next one is freed.
    SeveralFree = "several.free",
    /// A claim that waits or gives up leaves what it has of the next one.
    SeveralWithdraw = "several.withdraw",

    /// A claim is made for a gated pod.
    GatedClaim = "gated.claim",
    /// A claim of a gated pod that asks for something else by now, or has ended, is deleted.
    GatedDrop = "gated.drop",
    /// A gated pod gets its tokens and is let go.
    GatedLetGo = "gated.let-go",
    /// A gated pod whose hold is taken back is written, so that no older write lets it go.
    GatedWithdraw = "gated.withdraw",
    /// A gated pod that waited for too long fails.
    GatedFail = "gated.fail",
    /// A condition of a pod says what it waits for, or that it blocks others.
    GatedCondition = "gated.condition",
    /// A pod that holds and doesn't start is deleted.
    GatedDelete = "gated.delete",
    /// An Event about a pod.
    GatedEvent = "gated.event",

    /// Our finalizer and the lock's label come to a claim.
    ClaimFinalizer = "claim.finalizer",
    /// Our finalizer goes from a claim.
    ClaimLetGo = "claim.let-go",
    /// A claim asks in Redis.
    ClaimAsk = "claim.ask",
    /// A claim is told why it waits.
    ClaimWait = "claim.wait",
    /// etcd learns of a grant.
    ClaimGranted = "claim.granted",
    /// A grant is pinned.
    ClaimPin = "claim.pin",
    /// A claim is told that it holds.
    ClaimTold = "claim.told",
    /// A claim that holds is told something else about it.
    ClaimKeep = "claim.keep",
    /// A grant was lost before it was told: the next attempt.
    ClaimRetry = "claim.retry",
    /// A claim is told that it holds no more.
    ClaimReleasing = "claim.releasing",
    /// A hold that was un-told is freed in Redis.
    ClaimFree = "claim.free",
    /// A claim leaves its queue.
    ClaimWithdraw = "claim.withdraw",
    /// A claim is told that it is over.
    ClaimFinished = "claim.finished",
    /// A claim that is over is deleted.
    ClaimDelete = "claim.delete",
    /// The pod of a hold that is too long is evicted.
    ClaimEvict = "claim.evict",
    /// An Event about a claim.
    ClaimEvent = "claim.event",

    /// A candidate is marked as standby.
    ElectionStamp = "election.stamp",
    /// The controller asks in Redis for a pod that it chose.
    ElectionAsk = "election.ask",
    /// etcd learns of a choice.
    ElectionChosen = "election.chosen",
    /// A choice is pinned.
    ElectionPin = "election.pin",
    /// A pod is marked as leader.
    ElectionTell = "election.tell",
    /// A pod is marked as leader no more.
    ElectionUntell = "election.untell",
    /// etcd learns that a lead is taken back.
    ElectionReleasing = "election.releasing",
    /// A lead that was taken back is freed in Redis.
    ElectionFree = "election.free",
    /// etcd forgets a choice.
    ElectionForget = "election.forget",
    /// A choice that etcd never heard of is freed.
    ElectionFreeStray = "election.free-stray",

    /// A direct hold is taken by force.
    ForceFree = "force.free",
    /// The annotations of a force-release that is over, or refused, go.
    ForceForget = "force.forget",

    /// Delegated holds are renewed.
    HoldsRenew = "holds.renew",

    /// The connection Secret of a namespace is made.
    CredentialsMake = "credentials.make",
    /// What a connection Secret says is changed: a new password, an old one that is over, another address.
    CredentialsChange = "credentials.change",
    /// The Redis user of a namespace is made or changed.
    CredentialsGrant = "credentials.grant",
    /// The Redis user of a namespace is deleted.
    CredentialsRevoke = "credentials.revoke",
    /// The connection Secret of a namespace is deleted.
    CredentialsRemove = "credentials.remove",
    /// An Event about a namespace.
    CredentialsEvent = "credentials.event",
}

#[cfg(debug_assertions)]
mod armed {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use rustix::process::{Signal, getpid, kill_process};

    use super::Failpoint;

    /// What is done, where, and at which time.
    #[derive(Debug)]
    pub(super) struct Plan {
        signal: Signal,
        before: bool,
        point: Failpoint,
        nth: u32,
        reached: AtomicU32,
    }

    /// Set while failpoints are armed.
    static ARMED: OnceLock<Vec<Plan>> = OnceLock::new();

    tokio::task_local! {
        /// The write that is being made.
        static NAMED: Failpoint;
    }

    impl std::str::FromStr for Plan {
        type Err = String;

        fn from_str(text: &str) -> Result<Self, String> {
            let mut words = text.split_whitespace();
            let (action, side, name) = (words.next(), words.next(), words.next());
            let signal = match action {
                Some("kill") => Signal::KILL,
                Some("stop") => Signal::STOP,
                _ => return Err(format!("{text:?} must begin with kill or stop")),
            };
            let before = match side {
                Some("before") => true,
                Some("after") => false,
                _ => return Err(format!("{text:?} must say before or after")),
            };
            let point = Failpoint::ALL.iter().copied().find(|point| Some(point.name()) == name);
            let point = point.ok_or_else(|| format!("{text:?} names no failpoint; see leasehold failpoints"))?;
            let nth = words.next().map_or(Ok(1), str::parse).map_err(|_| format!("{text:?} must end with a number"))?;
            Ok(Self { signal, before, point, nth, reached: AtomicU32::new(0) })
        }
    }

    /// Arms the process as [`super::ENV`] says.
    pub(super) fn arm() -> Result<(), String> {
        let text = std::env::var(super::ENV).unwrap_or_default();
        let plans = text.split(',').filter(|plan| !plan.trim().is_empty()).map(str::parse).collect::<Result<_, _>>();
        let plans = plans.map_err(|why: String| format!("{}: {why}", super::ENV))?;
        ARMED.set(plans).map_err(|_| "armed already".to_owned())
    }

    pub(super) async fn around<T>(point: Failpoint, write: impl Future<Output = T>) -> T {
        strike(point, true);
        let done = NAMED.scope(point, write).await;
        strike(point, false);
        done
    }

    fn strike(point: Failpoint, before: bool) {
        let plans = ARMED.get().map(Vec::as_slice).unwrap_or_default();
        for plan in plans.iter().filter(|plan| plan.point == point && plan.before == before) {
            if plan.reached.fetch_add(1, Ordering::SeqCst) + 1 == plan.nth {
                eprintln!("struck: {plan:?}");
                kill_process(getpid(), plan.signal).ok();
                // Any thread may take the signal; this one goes nowhere until one has.
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    }

    pub(super) fn must_be_named(what: impl FnOnce() -> String) {
        if ARMED.get().is_some() && NAMED.try_with(|_| ()).is_err() {
            eprintln!("a write without a failpoint: {}", what());
            std::process::abort();
        }
    }
}

/// Makes a write, between its two failpoints.
#[cfg(debug_assertions)]
pub async fn around<T>(point: Failpoint, write: impl Future<Output = T>) -> T {
    armed::around(point, write).await
}

/// Makes a write.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn around<F: Future>(_: Failpoint, write: F) -> F {
    write
}

/// The variable that says where to strike.
#[cfg(debug_assertions)]
pub const ENV: &str = "LEASEHOLD_FAILPOINT";

/// Heeds [`ENV`] from now on, and lets no write pass that isn't made by [`around`].
///
/// # Errors
/// What is wrong with the variable.
#[cfg(debug_assertions)]
pub fn arm() -> Result<(), String> {
    armed::arm()
}

/// Called where writes leave the process: ends one that makes a write outside of [`around`].
#[inline(always)]
pub(crate) fn must_be_named(what: impl FnOnce() -> String) {
    #[cfg(debug_assertions)]
    armed::must_be_named(what);
    #[cfg(not(debug_assertions))]
    let _ = what;
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_two_writes_have_one_name() {
        let names: HashSet<&str> = Failpoint::ALL.iter().map(|point| point.name()).collect();
        assert_eq!(names.len(), Failpoint::ALL.len());
        assert_eq!(Failpoint::ClaimPin.what(), "A grant is pinned.");
    }

    #[cfg(debug_assertions)]
    #[test]
    fn what_is_wrong_with_a_plan_is_said() {
        let why = |text: &str| text.parse::<armed::Plan>().map(drop).unwrap_err();
        assert!("kill after claim.pin 2".parse::<armed::Plan>().is_ok());
        assert!(why("burn before claim.pin").contains("kill or stop"));
        assert!(why("stop claim.pin").contains("before or after"));
        assert!(why("stop before claim.pinn").contains("leasehold failpoints"));
        assert!(why("stop before claim.pin often").contains("number"));
    }
}
