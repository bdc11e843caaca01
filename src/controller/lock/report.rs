//! Writing a lock's status, and its Events.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use kube::ResourceExt;

use super::super::writes::{api_of, replace_status};
use super::super::{Context, Error};
use super::status::{self, Readiness, Write};
use super::unreachable::Reachability;
use super::{SLOW_LOOK, SOON};
use crate::api::condition::{self, reasons, types};
use crate::api::{DistributedLock, DistributedLockStatus};
use crate::failpoint::Failpoint;
use crate::lease::LockKey;
use crate::store::Inspection;

/// Writes the status if it is time, and says when it will be.
pub(super) async fn report(
    ctx: &Context,
    lock: &DistributedLock,
    record: Option<&Inspection>,
    readiness: &Readiness,
) -> Result<Duration, Error> {
    let key = LockKey::new(&lock.namespace().unwrap_or_default(), &lock.name_any())?;
    let published = lock.status.clone().unwrap_or_default();
    let (reachability, now) = (Reachability::of(ctx, &key, record), Timestamp::now());
    let mut truth = status::describe(lock, record, readiness, now);
    reachability.describe(&mut truth.conditions, lock.metadata.generation, now);
    count(ctx, &key, &reachability);
    let since = ctx.with_memory(&key, |memory| memory.written).map(|at| at.elapsed());
    match status::when(&published, &truth, since, lock.lease_duration(), record.map(|record| record.now)) {
        Write::After(wait) => return Ok(wait),
        Write::Never => return Ok(SLOW_LOOK),
        Write::Refresh if !ctx.refreshes.take() => return Ok(SOON),
        Write::Refresh | Write::Transition => {}
    }
    let written = write(ctx, lock, truth.clone()).await;
    ctx.with_memory(&key, |memory| memory.written = Some(Instant::now()));
    written?;
    tell_changes(ctx, lock, &published, &truth).await;
    Ok(lock.lease_duration().min(SLOW_LOOK))
}

fn count(ctx: &Context, key: &LockKey, reachability: &Reachability) {
    let Some(now) = reachability.count() else { return };
    let before = ctx.with_memory(key, |memory| std::mem::replace(&mut memory.unreachable, now));
    ctx.metrics.holders_unreachable.inc_by(now - before);
}

async fn write(ctx: &Context, lock: &DistributedLock, status: DistributedLockStatus) -> Result<(), Error> {
    let mut wanted = lock.clone();
    wanted.status = Some(status);
    replace_status(Failpoint::LockStatus, &api_of(&ctx.client, lock), &wanted).await?;
    ctx.metrics.status_writes.inc();
    Ok(())
}

/// Who holds that did not before: some of a semaphore's at once are one Event.
fn acquired(before: &DistributedLockStatus, after: &DistributedLockStatus) -> Option<String> {
    let known = |id: &str| before.holders.iter().any(|holder| holder.id == id);
    let mut new = after.holders.iter().filter(|holder| !known(&holder.id));
    let first = new.next()?;
    let others = match new.count() {
        0 => String::new(),
        others => format!(", and {others} more"),
    };
    Some(format!("{} holds it with token {}{others}", first.identity, first.fencing_token))
}

/// One Event a change: who has it now, or why it is not usable.
async fn tell_changes(
    ctx: &Context,
    lock: &DistributedLock,
    before: &DistributedLockStatus,
    after: &DistributedLockStatus,
) {
    if let Some(note) = acquired(before, after) {
        ctx.events.normal(lock, reasons::ACQUIRED, "Grant", note).await;
    }
    if !before.holders.is_empty() && after.holders.is_empty() {
        ctx.events.normal(lock, reasons::RELEASED, "Release", "nobody holds it".into()).await;
    }
    let stranded = |status: &DistributedLockStatus| {
        let unreachable = condition::get(&status.conditions, types::HOLDER_UNREACHABLE);
        unreachable.filter(|condition| condition.status == true.into()).cloned()
    };
    if let (None, Some(now)) = (stranded(before), stranded(after)) {
        ctx.events.warning(lock, &now.reason, "Keep", now.message).await;
    }
    let ready = |status: &DistributedLockStatus| condition::get(&status.conditions, types::READY).cloned();
    if let Some(now) = ready(after).filter(|now| now.status != true.into())
        && ready(before).is_none_or(|then| then.reason != now.reason)
    {
        ctx.events.warning(lock, &now.reason, "Reconcile", now.message).await;
    }
}
