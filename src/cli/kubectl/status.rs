//! `kubectl leasehold status`: locks, as `kubectl get dlock` shows them, and why one can't be used.

use anyhow::anyhow;
use jiff::Timestamp;
use kube::ResourceExt;

use super::End;
use super::cluster::Cluster;
use super::output::{OutputArgs, Row, age, or_dash, print_list, print_one, table};
use super::which::WhichArgs;
use crate::api::condition::{self, types};
use crate::api::{Condition, DistributedLock, LockHolder};

/// Shows locks.
#[derive(Debug, clap::Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    which: WhichArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) async fn run(cluster: &Cluster, args: StatusArgs) -> anyhow::Result<End> {
    let StatusArgs { which, output } = args;
    let (now, wide, namespace) = (Timestamp::now(), output.is_wide(), which.all_namespaces);
    let locks = which.locks(cluster).await?;
    let rows = || table(&locks.iter().map(|lock| row(lock, now, namespace, wide)).collect::<Vec<_>>());
    match (&which.lock, locks.as_slice()) {
        (Some(_), [lock]) => print_one(output, lock, rows)?,
        _ => print_list(output, &locks, rows)?,
    }
    if locks.is_empty() && output.is_table() {
        let place = if namespace { "any namespace".to_owned() } else { format!("the namespace {}", cluster.namespace) };
        eprintln!("no locks in {place}");
    }
    locks.iter().filter_map(trouble).for_each(|line| eprintln!("{line}"));
    Ok(End::Done)
}

/// The conditions of a lock.
pub(super) fn conditions(lock: &DistributedLock) -> &[Condition] {
    lock.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default()
}

fn row(lock: &DistributedLock, now: Timestamp, namespace: bool, wide: bool) -> Row {
    let status = lock.status.clone().unwrap_or_default();
    let of = |type_| condition::get(&status.conditions, type_);
    let ready = of(types::READY).map(|ready| match ready.status == true.into() {
        true => "True".to_owned(),
        false => ready.reason.clone(),
    });
    let others = status.holder_count - 1;
    let holder = status.holder.as_ref().map(|holder| match others {
        ..=0 => holder.clone(),
        _ => format!("{holder} and {others} more"),
    });
    let mut row = Vec::new();
    if namespace {
        row.push(("NAMESPACE", lock.namespace().unwrap_or_default()));
    }
    row.extend([
        ("NAME", lock.name_any()),
        ("HELD", or_dash(of(types::HELD).map(|held| format!("{:?}", held.status)))),
        ("HOLDER", or_dash(holder)),
        ("TOKEN", or_dash(status.fencing_token)),
        ("EXPIRES", or_dash(status.expire_time.as_ref().map(|at| at.0))),
        ("WAITERS", status.waiters.to_string()),
        ("READY", or_dash(ready)),
        ("AGE", age(lock.metadata.creation_timestamp.as_ref().map(|at| at.0), now)),
    ]);
    if wide {
        row.extend([
            ("PERMITS", format!("{}/{}", status.permits_held, lock.spec.permits)),
            ("LEASE", format!("{}s", lock.spec.lease_duration_seconds)),
            ("STORE", lock.store_name().to_owned()),
            ("ELECTION", lock.spec.election.is_some().to_string()),
            ("TRANSITIONS", status.transitions.to_string()),
        ]);
    }
    row
}

/// What is to be said of a lock beside its row.
fn trouble(lock: &DistributedLock) -> Option<String> {
    let ready = condition::get(conditions(lock), types::READY)?;
    let is = ready.status == true.into();
    (!is).then(|| format!("{} is not Ready ({}): {}", lock.name_any(), ready.reason, ready.message))
}

/// Who holds it, as far as its status lists them.
pub(super) fn holders(lock: &DistributedLock) -> &[LockHolder] {
    lock.status.as_ref().map(|status| status.holders.as_slice()).unwrap_or_default()
}

/// How many more hold it than its status lists.
pub(super) fn unlisted(lock: &DistributedLock) -> usize {
    let count = lock.status.as_ref().map_or(0, |status| status.holder_count);
    usize::try_from(count).unwrap_or_default().saturating_sub(holders(lock).len())
}

/// Whether its status has a holder.
pub(super) fn is_held(lock: &DistributedLock) -> bool {
    !holders(lock).is_empty()
}

/// Who holds it, in words.
pub(super) fn held_by(lock: &DistributedLock) -> String {
    let one = |holder: &LockHolder| format!("{} (token {})", holder.identity, holder.fencing_token);
    match is_held(lock) {
        false => "nobody holds it".to_owned(),
        true => format!("held by {}", holders(lock).iter().map(one).collect::<Vec<_>>().join(", ")),
    }
}

/// The holder with this token, or the only one where none is named.
///
/// # Errors
/// There is none, or there are several to choose from.
pub(super) fn holder_token(lock: &DistributedLock, token: Option<i64>) -> anyhow::Result<i64> {
    let (name, held_by, holders) = (lock.name_any(), held_by(lock), holders(lock));
    let unlisted = unlisted(lock) > 0;
    match (token, holders) {
        (Some(token), holders) if unlisted || holders.iter().any(|holder| holder.fencing_token == token) => Ok(token),
        (Some(token), _) => Err(anyhow!("{name} is not held with the token {token}: {held_by}")),
        (None, []) => Err(anyhow!("{name}: {held_by}")),
        (None, [holder]) if !unlisted => Ok(holder.fencing_token),
        (None, _) => Err(anyhow!("{name} has several holders, say which with --token: {held_by}")),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::DistributedLockStatus;

    /// A lock that these hold: identity and token.
    pub(in super::super) fn held(holders: &[(&str, i64)]) -> DistributedLock {
        let at = "2026-11-24T12:00:00.000000Z";
        let holders: Vec<_> = holders
            .iter()
            .map(|(identity, token)| {
                json!({"id": token.to_string(), "identity": identity, "fencingToken": token, "permits": 1,
                    "acquireTime": at, "renewTime": at, "expireTime": at})
            })
            .collect();
        let holder = holders.first().map(|holder| holder["identity"].clone());
        let is_held = if holders.is_empty() { "False" } else { "True" };
        let condition = |type_: &str, status: &str, reason: &str| json!({"type": type_, "status": status, "reason": reason, "message": "", "lastTransitionTime": at});
        let status = json!({"holder": holder, "holders": holders, "holderCount": holders.len(), "waiters": 3,
            "conditions": [condition("Ready", "True", "Ready"), condition("Held", is_held, "Held")]});
        let status: DistributedLockStatus = serde_json::from_value(status).unwrap();
        let mut lock = DistributedLock { status: Some(status), ..DistributedLock::default() };
        lock.metadata.name = Some("a".into());
        lock.metadata.namespace = Some("shop".into());
        lock
    }

    fn cells(lock: &DistributedLock, namespace: bool, wide: bool) -> String {
        let row = row(lock, Timestamp::UNIX_EPOCH, namespace, wide);
        row.into_iter().map(|(_, cell)| cell).collect::<Vec<_>>().join("|")
    }

    #[test]
    fn a_row_says_who_holds() {
        assert_eq!(cells(&held(&[]), false, false), "a|False|-|-|-|3|True|-");
        assert_eq!(cells(&held(&[("pod/p", 7)]), true, false), "shop|a|True|pod/p|-|-|3|True|-");
        let two = held(&[("pod/p", 7), ("pod/q", 8)]);
        assert_eq!(cells(&two, false, true), "a|True|pod/p and 1 more|-|-|3|True|-|0/1|15s|default|false|0");
        assert_eq!(cells(&DistributedLock::default(), false, false), "|-|-|-|-|0|-|-");
    }

    #[test]
    fn a_lock_that_cant_be_used_says_why() {
        let mut lock = held(&[]);
        assert_eq!(trouble(&lock), None);
        let ready = &mut lock.status.as_mut().unwrap().conditions[0];
        (ready.status, ready.reason, ready.message) = (false.into(), "StoreNotFound".into(), "no store".into());
        assert_eq!(trouble(&lock).unwrap(), "a is not Ready (StoreNotFound): no store");
        assert!(cells(&lock, false, false).contains("|StoreNotFound|"));
    }

    #[test]
    fn a_token_is_compared_and_chosen_only_where_there_is_one() {
        let (free, one, two) = (held(&[]), held(&[("pod/p", 7)]), held(&[("pod/p", 7), ("claim/q", 8)]));
        let refusal = |lock, token| holder_token(lock, token).unwrap_err().to_string();
        assert_eq!((holder_token(&one, None).unwrap(), holder_token(&two, Some(8)).unwrap()), (7, 8));
        assert_eq!(refusal(&free, None), "a: nobody holds it");
        assert_eq!(refusal(&one, Some(6)), "a is not held with the token 6: held by pod/p (token 7)");
        assert!(refusal(&two, None).contains("say which with --token: held by pod/p (token 7), claim/q (token 8)"));
    }

    #[test]
    fn a_token_beyond_the_listed_holders_is_left_to_the_controller() {
        let mut many = held(&[("pod/p", 7)]);
        many.status.as_mut().unwrap().holder_count = 21;
        assert_eq!(holder_token(&many, Some(9)).unwrap(), 9);
        assert!(holder_token(&many, None).is_err());
    }
}
