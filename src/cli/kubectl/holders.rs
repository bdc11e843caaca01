//! `kubectl leasehold holders`: every hold of a lock, with its token and its claim.

use jiff::Timestamp;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::End;
use super::cluster::Cluster;
use super::output::{Row, age, or_dash, print_as, table, takes};
use super::status::{holders, unlisted};
use super::which::{Known, ShowArgs, Unread};
use crate::api::{DistributedLock, LockClaim, LockHolder};
use crate::controller::holder;

pub(super) async fn run(cluster: &Cluster, args: ShowArgs) -> anyhow::Result<End> {
    let Known { locks, claims, records } = args.read(cluster).await?;
    let ShowArgs { which, output, .. } = args;
    let now = Timestamp::now();
    let (mut holds, mut unread) = (Vec::<(&DistributedLock, LockHolder)>::new(), Unread::default());
    for lock in &locks {
        let of_lock = match &records {
            None => holders(lock).to_vec(),
            Some(records) => match unread.note(&which, records.record(lock).await)? {
                Some(record) => record.held().map(holder).collect(),
                None => continue,
            },
        };
        holds.extend(of_lock.into_iter().map(|holder| (lock, holder)));
    }
    let rows = || {
        let row = |(lock, holder): &(&DistributedLock, LockHolder)| {
            let mut row = which.columns(lock);
            row.extend(columns(holder, claim_of(lock, holder, &claims), now, output.is_wide()));
            row
        };
        table(&holds.iter().map(row).collect::<Vec<_>>())
    };
    let names = || holds.iter().map(|(_, holder)| holder.identity.clone()).collect();
    print_as(output, || holds.iter().map(|(lock, holder)| object(lock, holder)).collect(), names, rows)?;
    let unlisted = locks.iter().map(|lock| (lock, unlisted(lock))).filter(|(_, count)| *count > 0 && records.is_none());
    for (lock, count) in unlisted {
        eprintln!("and {count} more of {}, which the status doesn't list", lock.name_any());
    }
    if holds.is_empty() && output.is_table() {
        eprintln!("nobody holds {}", which.place(cluster));
    }
    Ok(unread.end())
}

/// A hold, and of what.
fn object(lock: &DistributedLock, holder: &LockHolder) -> anyhow::Result<Value> {
    let mut object = json!({ "namespace": lock.namespace(), "lock": lock.name_any() });
    if let (Value::Object(of), Value::Object(holder)) = (&mut object, serde_json::to_value(holder)?) {
        of.extend(holder);
    }
    Ok(object)
}

/// The claim by which somebody holds.
fn claim_of<'a>(lock: &DistributedLock, holder: &LockHolder, claims: &'a [LockClaim]) -> Option<&'a LockClaim> {
    let mut near = claims.iter().filter(|claim| claim.namespace() == lock.namespace());
    let token = |claim: &LockClaim| claim.claimed(&lock.name_any()).map(|held| held.fencing_token);
    near.find(|claim| token(claim) == Some(holder.fencing_token))
}

fn columns(holder: &LockHolder, claim: Option<&LockClaim>, now: Timestamp, wide: bool) -> Row {
    let mut row = vec![
        ("HOLDER", holder.identity.clone()),
        ("TOKEN", holder.fencing_token.to_string()),
        ("PERMITS", takes(holder.permits, holder.mode)),
        ("CLAIM", or_dash(claim.map(ResourceExt::name_any))),
        ("HELD FOR", age(Some(holder.acquire_time.0), now)),
        ("EXPIRES", holder.expire_time.0.to_string()),
    ];
    if wide {
        row.extend([
            ("RENEWED", age(Some(holder.renew_time.0), now)),
            ("POD UID", or_dash(holder.pod_uid.as_ref())),
            ("ID", holder.id.clone()),
        ]);
    }
    row
}

#[cfg(test)]
mod tests {
    use super::super::status::tests::held;
    use super::super::waiters::tests::claim;
    use super::*;

    #[test]
    fn a_hold_has_its_token_and_its_claim() {
        let lock = held(&[("pod/p", 7), ("process/q", 8)]);
        let claims = [
            claim("waits", json!({})),
            claim(
                "c",
                json!({"locks": [{"name": "a", "fencingToken": 7,
            "acquireTime": "2026-11-24T12:00:00.000000Z"}]}),
            ),
        ];
        let now = "2026-11-24T12:00:05Z".parse().unwrap();
        let holders = holders(&lock);
        let cells = |holder: &LockHolder| {
            let row = columns(holder, claim_of(&lock, holder, &claims), now, true);
            row.into_iter().map(|(_, cell)| cell).collect::<Vec<_>>().join("|")
        };
        assert_eq!(cells(&holders[0]), "pod/p|7|1|c|5s|2026-11-24T12:00:00Z|5s|-|7");
        assert_eq!(cells(&holders[1]), "process/q|8|1|-|5s|2026-11-24T12:00:00Z|5s|-|8");
        let mut elsewhere = lock.clone();
        elsewhere.metadata.namespace = Some("another".into());
        assert!(claim_of(&elsewhere, &holders[0], &claims).is_none());
        let object = object(&lock, &holders[1]).unwrap();
        assert_eq!(object["namespace"], "shop");
        assert_eq!((&object["lock"], &object["fencingToken"]), (&json!("a"), &json!(8)));
    }
}
