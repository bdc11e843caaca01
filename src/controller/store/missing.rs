//! Records that are missing in Redis: evicted, deleted or flushed.
//!
//! A lock that nobody asks for tells nothing by itself, so that its record is looked for. And a `FLUSHALL` takes them all,
//! and their locks find out one after the other. Who finds out when the fresh epoch is already in force would ask for one
//! more, and wait a minute for it: so all are looked for right before one is taken.

use std::sync::Arc;

use kube::ResourceExt;

use super::super::lock::note_missing;
use super::super::stores::StoreState;
use super::super::{Context, lock_ref};
use super::trouble::Trouble;
use crate::api::DistributedLock;
use crate::failpoint::{Failpoint, around};
use crate::lease::{Epoch, LockKey};
use crate::store::{Control, Due};

/// Records looked for by one call.
const BATCH: usize = 100;

fn keyed(ctx: &Context, store: &str) -> impl Iterator<Item = (Arc<DistributedLock>, LockKey)> {
    ctx.locks_of(store).filter_map(|lock| {
        let key = LockKey::new(&lock.namespace()?, &lock.name_any()).ok()?;
        Some((lock, key))
    })
}

/// Makes every lock whose record has gone look.
pub(super) async fn look(ctx: &Context, store: &str) {
    let Some(StoreState::Ready(open)) = ctx.stores.state(store) else { return };
    let expected: Vec<LockKey> =
        keyed(ctx, store).filter(|(lock, _)| lock.is_provisioned()).map(|(_, key)| key).collect();
    for batch in expected.chunks(BATCH) {
        if !matches!(open.control.have_records(batch).await, Ok(false)) {
            continue;
        }
        for key in batch {
            if let Ok(false) = open.control.have_records(std::slice::from_ref(key)).await {
                ctx.triggers.lock(lock_ref(key));
            }
        }
    }
}

/// Notes which locks of a store have lost their records in the epoch that is in force.
pub(super) async fn note_all(ctx: &Context, store: &str, control: &Control, epoch: Epoch) -> Result<(), Trouble> {
    let locks: Vec<_> = keyed(ctx, store).collect();
    for batch in locks.chunks(BATCH) {
        let keys: Vec<LockKey> = batch.iter().map(|(_, key)| key.clone()).collect();
        let due = around(Failpoint::StoreLookForMissing, control.expire(&keys)).await??;
        for ((lock, key), due) in batch.iter().zip(due) {
            note_missing(ctx, lock, key, due == Due::Unprovisioned, epoch);
        }
    }
    Ok(())
}
