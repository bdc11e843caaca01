//! `kubectl leasehold waiters`: who waits for a lock, in their order. Of processes a status tells their number alone; Redis
//! has their names.

use std::cmp::Reverse;

use jiff::Timestamp;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::End;
use super::cluster::Cluster;
use super::output::{Row, age, full_name, or_dash, print_as, table, takes};
use super::which::{Known, ShowArgs, Unread};
use crate::api::condition::{self, reasons, types};
use crate::api::{DistributedLock, LockClaim, LockMode, LockRequest};
use crate::controller::{holder_id, share};
use crate::lease::Mode;
use crate::store::{HoldState, Inspection, Waiter};

/// Why one waits whose turn it is.
const OFFERED: &str = "Offered";

pub(super) async fn run(cluster: &Cluster, args: ShowArgs) -> anyhow::Result<End> {
    let Known { locks, claims, records } = args.read(cluster).await?;
    let ShowArgs { which, output, .. } = args;
    let (now, mut waiting, mut unknown) = (Timestamp::now(), Vec::new(), Vec::new());
    let mut unread = Unread::default();
    for lock in &locks {
        let claims = in_order(lock, &claims);
        match &records {
            None => {
                unknown.extend(Some((lock, direct(lock, &claims))).filter(|(_, count)| *count > 0));
                waiting.extend(claims.into_iter().map(|claim| Waiting::claim(lock, claim)));
            }
            Some(records) => {
                if let Some((record, queue)) = unread.note(&which, records.queue(lock).await)? {
                    waiting.extend(joined(lock, claims, &record, queue));
                }
            }
        }
    }
    let rows = || {
        let row = |one: &Waiting| [which.columns(one.lock), one.columns(now, output.is_wide())].concat();
        table(&waiting.iter().map(row).collect::<Vec<_>>())
    };
    let objects = || Ok(Value::Array(waiting.iter().map(Waiting::object).collect()));
    print_as(output, objects, || waiting.iter().filter_map(Waiting::name).collect(), rows)?;
    for (lock, count) in &unknown {
        eprintln!(
            "and {count} that wait for {} by themselves, without a claim: --from redis shows who",
            lock.name_any()
        );
    }
    if waiting.is_empty() && unknown.is_empty() && output.is_table() {
        eprintln!("nobody waits for {}", which.place(cluster));
    }
    Ok(unread.end())
}

/// One that waits for a lock.
struct Waiting<'a> {
    lock: &'a DistributedLock,
    who: Who<'a>,
    /// It is its turn, and it hasn't heard of that, or not said so.
    offered: bool,
}

enum Who<'a> {
    Claim(&'a LockClaim),
    Process { identity: String, mode: Mode, priority: Option<i32> },
}

impl<'a> Waiting<'a> {
    fn claim(lock: &'a DistributedLock, claim: &'a LockClaim) -> Self {
        Self { lock, who: Who::Claim(claim), offered: false }
    }
}

/// Those to whom a lock is offered, its queue, and behind it the claims that are not in it: they wait for another lock
/// first. A claim that has got it since it was listed waits no more.
fn joined<'a>(
    lock: &'a DistributedLock,
    mut claims: Vec<&'a LockClaim>,
    record: &Inspection,
    queue: Vec<Waiter>,
) -> Vec<Waiting<'a>> {
    let (offers, holds): (Vec<_>, Vec<_>) = record.holds.iter().partition(|hold| hold.state == HoldState::Offer);
    claims.retain(|claim| holds.iter().all(|hold| holder_id(claim).as_ref() != Some(&hold.id)));
    let offers = offers.into_iter().map(|offer| (&offer.id, true, offer.identity.clone(), offer.mode, None));
    let queue = queue.iter().map(|one| (&one.id, false, one.identity.clone(), one.mode, Some(one.priority)));
    let mut waiting = Vec::new();
    for (id, offered, identity, mode, priority) in offers.chain(queue) {
        let claim = claims.iter().position(|claim| holder_id(claim).as_ref() == Some(id));
        let who = match claim {
            Some(index) => Who::Claim(claims.remove(index)),
            None => Who::Process { identity, mode, priority },
        };
        waiting.push(Waiting { lock, who, offered });
    }
    waiting.extend(claims.into_iter().map(|claim| Waiting::claim(lock, claim)));
    waiting
}

impl Waiting<'_> {
    /// A process has no object.
    fn object_of(&self) -> Option<&LockClaim> {
        match &self.who {
            Who::Claim(claim) => Some(claim),
            Who::Process { .. } => None,
        }
    }

    fn name(&self) -> Option<String> {
        self.object_of().map(full_name)
    }

    /// How much it asks for: permits, or a mode.
    fn share(&self) -> (Option<i32>, Option<LockMode>) {
        match &self.who {
            Who::Claim(claim) => match request(&self.lock.name_any(), claim) {
                Some(asked) if asked.mode.is_some() => (None, asked.mode),
                asked => (asked.and_then(|asked| asked.permits).or(Some(1)), None),
            },
            Who::Process { mode, .. } => share(*mode),
        }
    }

    fn priority(&self) -> Option<i32> {
        match &self.who {
            Who::Claim(claim) => Some(claim.spec.priority),
            Who::Process { priority, .. } => *priority,
        }
    }

    /// Who is to hold, if not the claim itself.
    fn holder(&self) -> Option<String> {
        match &self.who {
            Who::Claim(claim) => claim.spec.holder_ref.as_ref().map(|holder| format!("pod/{}", holder.name)),
            Who::Process { identity, .. } => Some(identity.clone()),
        }
    }

    /// Why it waits, in a word and in a sentence.
    fn why(&self) -> (Option<String>, Option<String>) {
        let Who::Claim(claim) = &self.who else {
            return (Some(if self.offered { OFFERED } else { reasons::WAITING }.to_owned()), None);
        };
        let held = claim.status.as_ref().and_then(|status| condition::get(&status.conditions, types::HELD));
        let reason = match next(claim) {
            _ if self.offered => Some(OFFERED.to_owned()),
            Some(first) if first != self.lock.name_any() => Some(format!("waits for {first} first")),
            _ => held.map(|held| held.reason.clone()),
        };
        (reason, held.map(|held| held.message.clone()))
    }

    fn object(&self) -> Value {
        let ((permits, mode), (reason, _), claim) = (self.share(), self.why(), self.object_of());
        let value = json!({
            "namespace": self.lock.namespace(),
            "lock": self.lock.name_any(),
            "claim": claim.map(ResourceExt::name_any),
            "holder": self.holder(),
            "permits": permits,
            "mode": mode,
            "priority": self.priority(),
            "createTime": claim.and_then(|claim| claim.metadata.creation_timestamp.clone()),
            "reason": reason,
        });
        let Value::Object(fields) = value else { return value };
        Value::Object(fields.into_iter().filter(|(_, value)| !value.is_null()).collect())
    }

    fn columns(&self, now: Timestamp, wide: bool) -> Row {
        let ((permits, mode), claim) = (self.share(), self.object_of());
        let created = claim.and_then(|claim| claim.metadata.creation_timestamp.as_ref()).map(|at| at.0);
        let (reason, message) = self.why();
        let mut row = vec![
            ("CLAIM", or_dash(claim.map(ResourceExt::name_any))),
            ("FOR", or_dash(self.holder())),
            ("PERMITS", takes(permits, mode)),
            ("PRIORITY", or_dash(self.priority())),
            ("WAITS", age(created, now)),
            ("REASON", or_dash(reason)),
        ];
        if wide {
            let limit = claim.and_then(|claim| claim.spec.wait_timeout_seconds).map(|seconds| format!("{seconds}s"));
            row.push(("GIVES UP AFTER", or_dash(limit)));
            row.push(("MESSAGE", or_dash(message)));
        }
        row
    }
}

/// What a claim asks of a lock that it waits for.
fn request<'a>(lock: &str, claim: &'a LockClaim) -> Option<&'a LockRequest> {
    let conditions = claim.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let over = condition::is_true(conditions, types::FINISHED) || claim.claimed(lock).is_some();
    claim.asked(lock).filter(|_| !over)
}

/// The lock that a claim waits for first: it takes its locks in the order of their names.
fn next(claim: &LockClaim) -> Option<&str> {
    let missing = claim.spec.locks.iter().filter(|asked| claim.claimed(&asked.name).is_none());
    missing.map(|asked| asked.name.as_str()).min()
}

/// The claims that wait for a lock, as its queue has them.
fn in_order<'a>(lock: &DistributedLock, claims: &'a [LockClaim]) -> Vec<&'a LockClaim> {
    let near = claims.iter().filter(|claim| claim.namespace() == lock.namespace());
    let mut waiting: Vec<_> = near.filter(|claim| request(&lock.name_any(), claim).is_some()).collect();
    let place = |claim: &&LockClaim| {
        let created = claim.metadata.creation_timestamp.as_ref().map(|at| at.0);
        (Reverse(claim.spec.priority), created, claim.uid())
    };
    waiting.sort_by_cached_key(place);
    waiting
}

/// How many of those in the queue have no claim.
fn direct(lock: &DistributedLock, waiting: &[&LockClaim]) -> usize {
    let all = lock.status.as_ref().map_or(0, |status| status.waiters);
    let queued = waiting.iter().filter(|claim| next(claim) == Some(lock.name_any().as_str())).count();
    usize::try_from(all).unwrap_or_default().saturating_sub(queued)
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::{Value, json};

    use super::super::status::tests::held;
    use super::*;
    use crate::api::LockClaimSpec;
    use crate::lease::{FencingToken, HolderId};
    use crate::store::Hold;

    /// A claim for the lock `a` with this status.
    pub(in super::super) fn claim(name: &str, status: Value) -> LockClaim {
        let mut claim = LockClaim::new(name, LockClaimSpec::for_lock("a"));
        claim.metadata.namespace = Some("shop".into());
        claim.metadata.uid = Some(format!("uid-{name}"));
        claim.status = Some(serde_json::from_value(status).unwrap());
        claim
    }

    /// The status of a claim with a condition.
    pub(in super::super) fn says(type_: &str, status: &str, reason: &str) -> Value {
        json!({"conditions": [{"type": type_, "status": status, "reason": reason, "message": "why",
            "lastTransitionTime": "2026-11-24T12:00:00Z"}]})
    }

    fn created(mut claim: LockClaim, at: &str, priority: i32) -> LockClaim {
        claim.metadata.creation_timestamp = serde_json::from_value(json!(at)).unwrap();
        claim.spec.priority = priority;
        claim
    }

    fn names(claims: &[&LockClaim]) -> Vec<String> {
        claims.iter().map(|claim| claim.name_any()).collect()
    }

    #[test]
    fn the_order_is_that_of_the_queue_and_who_holds_or_has_ended_is_left_out() {
        let holds = json!({"locks": [{"name": "a", "fencingToken": 7, "acquireTime": "2026-11-24T12:00:00.000000Z"}]});
        let (early, late) = ("2026-11-24T12:00:00Z", "2026-11-24T12:00:01Z");
        let claims = vec![
            created(claim("late", json!({})), late, 0),
            created(claim("same-2", json!({})), early, 0),
            created(claim("same-1", json!({})), early, 0),
            created(claim("urgent", json!({})), late, 5),
            created(claim("holds", holds), early, 9),
            created(claim("over", says("Finished", "True", "Busy")), early, 9),
        ];
        let mut lock = held(&[]);
        assert_eq!(names(&in_order(&lock, &claims)), ["urgent", "same-1", "same-2", "late"]);
        lock.metadata.namespace = Some("another".into());
        assert!(in_order(&lock, &claims).is_empty());
        lock = held(&[]);
        lock.metadata.name = Some("b".into());
        assert!(in_order(&lock, &claims).is_empty());
    }

    #[test]
    fn those_without_a_claim_are_counted() {
        let lock = held(&[("pod/p", 7)]);
        let mut two = claim("two", json!({}));
        two.spec.locks.push(LockRequest::new("Z"));
        assert_eq!(direct(&lock, &[]), 3);
        assert_eq!(direct(&lock, &[&claim("c", json!({}))]), 2);
        assert_eq!(direct(&lock, &[&two]), 3, "it isn't in this queue yet: Z comes before a");
        let four = ["c", "d", "e", "f"].map(|name| claim(name, json!({})));
        assert_eq!(direct(&lock, &four.each_ref()), 0);
    }

    #[test]
    fn a_row_says_what_it_asks_and_why_it_waits() {
        let mut lock = held(&[]);
        lock.metadata.name = Some("b".into());
        let cells = |claim: &LockClaim| {
            let row = Waiting::claim(&lock, claim).columns(Timestamp::UNIX_EPOCH, true);
            row.into_iter().map(|(_, cell)| cell).collect::<Vec<_>>().join("|")
        };
        let mut waits = claim("c", says("Held", "False", "Waiting"));
        waits.spec.locks = vec![LockRequest { permits: Some(2), ..LockRequest::new("b") }];
        assert_eq!(cells(&waits), "c|-|2|0|-|Waiting|-|why");
        waits.spec.locks.push(LockRequest::new("a"));
        waits.spec.wait_timeout_seconds = Some(5);
        assert_eq!(cells(&waits), "c|-|2|0|-|waits for a first|5s|why");
    }

    #[test]
    fn processes_stand_among_the_claims_as_the_queue_has_them() {
        let waiter = |id: &str, identity: &str| Waiter {
            id: HolderId::new(id).unwrap(),
            delegated: false,
            mode: Mode::Shared,
            priority: 3,
            identity: identity.into(),
        };
        let hold = |id: &str, state| Hold {
            id: HolderId::new(id).unwrap(),
            token: FencingToken::new(7).unwrap(),
            mode: Mode::Counted(1),
            state,
            acquired: 0,
            renewed: 0,
            expires: 0,
            identity: "process/next".into(),
            pod_uid: None,
        };
        let (lock, names) = (held(&[]), ["elsewhere", "c", "offered", "granted"]);
        let claims = names.map(|name| claim(name, json!({})));
        let record = Inspection {
            now: 0,
            lock_uid: String::new(),
            generation: 1,
            permits: 1,
            lease: 1,
            last: 7,
            sealed: false,
            quarantine: 0,
            gate_open: true,
            holds: vec![
                hold("uid-granted.1", HoldState::Pinned),
                hold("uid-offered.1", HoldState::Offer),
                hold("y", HoldState::Offer),
            ],
            waiters: Vec::new(),
        };
        let queue = vec![waiter("x", "process/p"), waiter("uid-c.1", "claim/c")];
        let waiting = joined(&lock, claims.iter().collect(), &record, queue);
        let named = |one: &Waiting| one.name().or(one.holder());
        let shown: Vec<_> = waiting.iter().filter_map(|one| Some((named(one)?, one.why().0))).collect();
        let expected = [
            ("lockclaim.leasehold.dev/offered", Some("Offered")),
            ("process/next", Some("Offered")),
            ("process/p", Some("Waiting")),
            ("lockclaim.leasehold.dev/c", None),
            ("lockclaim.leasehold.dev/elsewhere", None),
        ];
        assert_eq!(shown, expected.map(|(name, why)| (name.to_owned(), why.map(ToOwned::to_owned))));
        let cells: Vec<_> =
            waiting[2].columns(Timestamp::UNIX_EPOCH, false).into_iter().map(|(_, cell)| cell).collect();
        assert_eq!(cells, ["-", "process/p", "Shared", "3", "-", "Waiting"]);
        let expected = json!({"namespace": "shop", "lock": "a", "holder": "process/p", "mode": "Shared", "priority": 3,
            "reason": "Waiting"});
        assert_eq!(waiting[2].object(), expected);
    }
}
