//! What a step is, what it answered, and how often each outcome came.

use std::collections::BTreeMap;
use std::time::Duration;

use leasehold::lease::{Acquired, Epoch, HolderId, Released, Renewed, Request};
use leasehold::store::model::{Model, Reign};
use leasehold::store::{Due, Heartbeat, Opening, Provision, Provisioned, Refusal, Sealed};

/// One step of a sequence. Processes and data sets have names of the model's making, `run-…` and `data-…`.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    Acquire(Request),
    /// All in one call; of more than one, the last is of a lock that isn't declared.
    Renew(Vec<HolderId>),
    Release(HolderId),
    Cancel(HolderId),
    /// So many ids that were never used before.
    CancelMany(Vec<HolderId>),
    Claim(Reign, Request),
    Reserve(Reign, Request),
    Pin(Reign, HolderId, Epoch),
    /// For the next attempt, where there is one.
    Free(Reign, HolderId, Option<HolderId>),
    Expire(Reign),
    /// Of a reign, with its name.
    Heartbeat(Reign, u8),
    Open(Reign, Opening),
    Close(Reign),
    Leave(Reign),
    Provision(Reign, Provision),
    Restore(Reign, Provision, Opening),
    Seal(Reign, String),
    Purge(Reign, String),
    Pass(i64),
    Restart,
    FlushAll,
    LoseRecord,
    ReloadLibrary,
    Promoted,
}

/// The UID of the `LockStore` of every sequence; another install has another.
pub(crate) const STORE: &str = "store";

/// How long a promotion takes: longer than an old look at the replication is believed.
pub(crate) const PROMOTION_MS: i64 = 1000;

type Refusable<T> = Result<T, Refusal>;

/// The answer to a step.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Answer {
    None,
    Acquired(Acquired),
    Renewed(Vec<Renewed>),
    Released(Released),
    Cancelled(Vec<Released>),
    Claimed(Refusable<Acquired>),
    Reserved(Refusable<Acquired>),
    Pinned(Refusable<Renewed>),
    Freed(Refusable<()>),
    Expired(Refusable<Vec<Due>>),
    Heartbeat(Refusable<Heartbeat>),
    Opened(Refusable<()>),
    Closed(Refusable<()>),
    Left(Refusable<()>),
    Provisioned(Refusable<Provisioned>),
    Restored(Refusable<Provisioned>),
    Sealed(Refusable<Sealed>),
    Purged(Refusable<()>),
}

/// Names of the `index`th process and data set, as the model has them.
pub(crate) fn process(index: usize, promotions: usize) -> (String, String) {
    (format!("run-{index}"), format!("data-{index}-{promotions}"))
}

impl Step {
    /// The step on the model.
    pub(crate) fn on(&self, model: &mut Model, restarts: usize, promotions: usize) -> Answer {
        match self {
            Step::Acquire(request) => Answer::Acquired(model.acquire(request)),
            Step::Renew(ids) => {
                let mut renewed: Vec<Renewed> = ids.iter().map(|id| model.renew(id)).collect();
                renewed.extend((ids.len() > 1).then_some(Renewed::Unprovisioned));
                Answer::Renewed(renewed)
            }
            Step::Release(id) => Answer::Released(model.release(id)),
            Step::Cancel(id) => Answer::Cancelled(vec![model.cancel(id)]),
            Step::CancelMany(ids) => Answer::Cancelled(ids.iter().map(|id| model.cancel(id)).collect()),
            Step::Claim(reign, request) => Answer::Claimed(model.claim(reign, request)),
            Step::Reserve(reign, request) => Answer::Reserved(model.reserve(reign, request)),
            Step::Pin(reign, id, epoch) => Answer::Pinned(model.pin(reign, id, *epoch)),
            Step::Free(reign, id, next) => Answer::Freed(model.free(reign, id, next.as_ref())),
            Step::Expire(reign) => Answer::Expired(model.expire(reign).map(|due| vec![due])),
            Step::Heartbeat(reign, name) => Answer::Heartbeat(model.heartbeat(reign, &name.to_string(), reign.term)),
            Step::Open(reign, opening) => Answer::Opened(model.open(reign, opening)),
            Step::Close(reign) => Answer::Closed(model.close(reign)),
            Step::Leave(reign) => Answer::Left(model.leave_prefix(reign)),
            Step::Provision(reign, provision) => Answer::Provisioned(model.provision(reign, provision)),
            Step::Restore(reign, provision, to) => Answer::Restored(model.restore(reign, provision, to)),
            Step::Seal(reign, uid) => Answer::Sealed(model.seal(reign, uid)),
            Step::Purge(reign, uid) => Answer::Purged(model.purge(reign, uid)),
            _ => {
                self.happen(model, restarts, promotions);
                Answer::None
            }
        }
    }

    fn happen(&self, model: &mut Model, restarts: usize, promotions: usize) {
        match self {
            Step::Pass(ms) => model.now += ms,
            Step::Restart => model.restart(process(restarts, promotions)),
            Step::FlushAll => model.flush_all(),
            Step::LoseRecord => model.lose_record(),
            Step::ReloadLibrary => model.reload_library(),
            Step::Promoted => {
                model.now += PROMOTION_MS;
                model.promoted(process(restarts, promotions).1);
            }
            other => unreachable!("{other:?} is a call"),
        }
    }
}

fn retry_within(real: Duration, bound: Duration) -> bool {
    Duration::from_millis(1) <= real && real <= bound
}

fn same_acquired(model: Acquired, real: Acquired) -> bool {
    match (model, real) {
        (Acquired::Queued { retry: bound, reading: expected }, Acquired::Queued { retry, reading }) => {
            retry_within(retry, bound) && reading == expected
        }
        (Acquired::Busy { retry: bound }, Acquired::Busy { retry }) => retry_within(retry, bound),
        (model, real) => model == real,
    }
}

/// The real record may know of an end that has been put off since; it never comes too late.
fn same_due(model: &[Due], real: &[Due]) -> bool {
    match (model, real) {
        ([Due::In(exact)], [Due::In(real)]) => retry_within(*real, *exact),
        ([Due::Nothing], [Due::In(real)]) => !real.is_zero(),
        (model, real) => model == real,
    }
}

/// Whether the real answer is what the model allows.
pub(crate) fn same(model: &Answer, real: &Answer) -> bool {
    match (model, real) {
        (Answer::Acquired(model), Answer::Acquired(real)) => same_acquired(*model, *real),
        (Answer::Claimed(Ok(model)), Answer::Claimed(Ok(real)))
        | (Answer::Reserved(Ok(model)), Answer::Reserved(Ok(real))) => same_acquired(*model, *real),
        (Answer::Expired(Ok(model)), Answer::Expired(Ok(real))) => same_due(model, real),
        (model, real) => model == real,
    }
}

fn of_acquired(acquired: &Acquired) -> &'static str {
    match acquired {
        Acquired::Granted(_) => "Granted",
        Acquired::Queued { .. } => "Queued",
        Acquired::Busy { .. } => "Busy",
        Acquired::Lost => "Lost",
        Acquired::Sealed => "Sealed",
        Acquired::GateClosed => "GateClosed",
        Acquired::Unprovisioned => "Unprovisioned",
        Acquired::LockIsElected => "LockIsElected",
        Acquired::Unsatisfiable { .. } => "Unsatisfiable",
        Acquired::EpochExhausted => "EpochExhausted",
    }
}

fn of_renewed(renewed: &Renewed) -> &'static str {
    match renewed {
        Renewed::Held(_) => "Held",
        Renewed::Lost => "Lost",
        Renewed::NotHeld => "NotHeld",
        Renewed::Unprovisioned => "Unprovisioned",
    }
}

fn of_released(released: &Released) -> &'static str {
    match released {
        Released::Released => "Released",
        Released::Lost => "Lost",
        Released::Cancelled => "Cancelled",
        Released::NotHeld => "NotHeld",
        Released::Pinned => "Pinned",
        Released::Unprovisioned => "Unprovisioned",
    }
}

fn of_due(due: &Due) -> &'static str {
    match due {
        Due::In(_) => "In",
        Due::Nothing => "Nothing",
        Due::Unprovisioned => "Unprovisioned",
    }
}

fn of_provisioned(provisioned: &Provisioned) -> &'static str {
    match provisioned {
        Provisioned { tampered: true, .. } => "Tampered",
        Provisioned { fresh: true, .. } => "Fresh",
        Provisioned { .. } => "Changed",
    }
}

fn of_refusal(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::StoreInUse(_) => "StoreInUse",
        Refusal::StaleTerm(_) => "StaleTerm",
        Refusal::GateClosed => "GateClosed",
        Refusal::GateOpen => "GateOpen",
        Refusal::OtherProcess => "OtherProcess",
        Refusal::StaleEpoch(_) => "StaleEpoch",
        Refusal::OtherLock(_) => "OtherLock",
        Refusal::Held => "Held",
        Refusal::Unprovisioned => "Unprovisioned",
    }
}

fn either<T>(answer: &Refusable<T>, of: impl Fn(&T) -> &'static str) -> Vec<&'static str> {
    vec![answer.as_ref().map_or_else(of_refusal, of)]
}

/// The function and its outcomes; nothing for what isn't a call.
fn outcomes(answer: &Answer) -> (&'static str, Vec<&'static str>) {
    match answer {
        Answer::None => ("", Vec::new()),
        Answer::Acquired(acquired) => ("acquire", vec![of_acquired(acquired)]),
        Answer::Renewed(renewed) => ("renew", renewed.iter().map(of_renewed).collect()),
        Answer::Released(released) => ("release", vec![of_released(released)]),
        Answer::Cancelled(cancelled) => ("cancel", cancelled.iter().map(of_released).collect()),
        Answer::Claimed(claimed) => ("claim", either(claimed, of_acquired)),
        Answer::Reserved(reserved) => ("reserve", either(reserved, of_acquired)),
        Answer::Pinned(pinned) => ("pin", either(pinned, of_renewed)),
        Answer::Freed(freed) => ("free", either(freed, |()| "Done")),
        Answer::Expired(Ok(due)) => ("expire", due.iter().map(of_due).collect()),
        Answer::Expired(Err(refusal)) => ("expire", vec![of_refusal(refusal)]),
        Answer::Heartbeat(beat) => ("heartbeat", either(beat, |b| if b.gate.is_some() { "Open" } else { "Closed" })),
        Answer::Opened(opened) => ("open", either(opened, |()| "Done")),
        Answer::Closed(closed) => ("close", either(closed, |()| "Done")),
        Answer::Left(left) => ("leave", either(left, |()| "Done")),
        Answer::Provisioned(provisioned) => ("provision", either(provisioned, of_provisioned)),
        Answer::Restored(restored) => ("restore", either(restored, of_provisioned)),
        Answer::Sealed(sealed) => ("seal", either(sealed, |_| "Done")),
        Answer::Purged(purged) => ("purge", either(purged, |()| "Done")),
    }
}

/// Every outcome that a function can have.
const POSSIBLE: [(&str, &str); 18] = [
    ("acquire", "Granted Queued Busy Lost Sealed GateClosed Unprovisioned Unsatisfiable LockIsElected EpochExhausted"),
    ("renew", "Held Lost NotHeld Unprovisioned"),
    ("release", "Released Lost Cancelled NotHeld Pinned Unprovisioned"),
    ("cancel", "Cancelled Pinned Unprovisioned"),
    (
        "claim",
        "Granted Queued Busy Lost Sealed Unprovisioned Unsatisfiable EpochExhausted StoreInUse StaleTerm GateClosed",
    ),
    ("reserve", "Granted Queued Lost Sealed Unprovisioned Unsatisfiable StoreInUse StaleTerm GateClosed"),
    ("pin", "Held Lost Unprovisioned StoreInUse StaleTerm GateClosed"),
    ("free", "Done Unprovisioned StoreInUse StaleTerm GateClosed"),
    ("expire", "In Nothing Unprovisioned StoreInUse StaleTerm GateClosed"),
    ("heartbeat", "Open Closed StoreInUse StaleTerm"),
    ("open", "Done StoreInUse StaleTerm OtherProcess StaleEpoch"),
    ("close", "Done StoreInUse StaleTerm"),
    ("leave", "Done StoreInUse StaleTerm"),
    ("provision", "Fresh Changed Tampered StoreInUse StaleTerm GateClosed"),
    ("restore", "Fresh Changed Tampered StoreInUse StaleTerm OtherProcess GateOpen"),
    ("seal", "Done OtherLock Unprovisioned StoreInUse StaleTerm GateClosed"),
    ("purge", "Done OtherLock Held StoreInUse StaleTerm GateClosed"),
    ("steps", "Pass Restart FlushAll LoseRecord ReloadLibrary Promoted"),
];

/// How often each outcome of each function came.
#[derive(Default)]
pub(crate) struct Tally(BTreeMap<(&'static str, &'static str), u64>);

impl Tally {
    pub(crate) fn count(&mut self, step: &Step, answer: &Answer) {
        let (function, outcomes) = outcomes(answer);
        for outcome in outcomes {
            *self.0.entry((function, outcome)).or_default() += 1;
        }
        let event = match step {
            Step::Pass(_) => "Pass",
            Step::Restart => "Restart",
            Step::FlushAll => "FlushAll",
            Step::LoseRecord => "LoseRecord",
            Step::ReloadLibrary => "ReloadLibrary",
            Step::Promoted => "Promoted",
            _ => return,
        };
        *self.0.entry(("steps", event)).or_default() += 1;
    }

    fn of(&self, function: &str, outcome: &str) -> u64 {
        let found = self.0.iter().find(|((f, o), _)| *f == function && *o == outcome);
        found.map_or(0, |(_, count)| *count)
    }

    /// One line for each function.
    pub(crate) fn table(&self) -> String {
        let line = |(function, outcomes): &(&str, &str)| {
            let counts = outcomes.split(' ').map(|outcome| format!("{outcome} {}", self.of(function, outcome)));
            format!("{function:>10}: {}\n", counts.collect::<Vec<_>>().join(", "))
        };
        POSSIBLE.iter().map(line).collect()
    }

    /// The outcomes that never came, and those that can't come but did.
    pub(crate) fn surprises(&self) -> Vec<String> {
        let possible = || POSSIBLE.iter().flat_map(|(f, outcomes)| outcomes.split(' ').map(move |o| (*f, o)));
        let missing = possible().filter(|(f, o)| self.of(f, o) == 0).map(|(f, o)| format!("{f} never answered {o}"));
        let known = |key: &&(&str, &str)| possible().any(|possible| possible == **key);
        let unknown = self.0.keys().filter(|key| !known(key)).map(|(f, o)| format!("{f} can't answer {o}, but did"));
        missing.chain(unknown).collect()
    }
}
