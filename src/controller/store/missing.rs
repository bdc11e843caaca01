//! Records that are missing when an epoch is about to be taken because one of them is.
//!
//! A `FLUSHALL` takes them all, and their locks find out one after the other. Who finds out when the fresh epoch is
//! already in force would ask for one more, and wait a minute for it: so all are looked for right before.

use kube::ResourceExt;

use super::super::Context;
use super::super::lock::note_missing;
use super::trouble::Trouble;
use crate::failpoint::{Failpoint, around};
use crate::lease::{Epoch, LockKey};
use crate::store::{Control, Due};

/// Records looked for by one call.
const BATCH: usize = 100;

/// Notes which locks of a store have lost their records in the epoch that is in force.
pub(super) async fn note_all(ctx: &Context, store: &str, control: &Control, epoch: Epoch) -> Result<(), Trouble> {
    let locks = ctx.locks().into_iter().filter(|lock| lock.store_name() == store);
    let named = locks.filter_map(|lock| {
        let key = LockKey::new(&lock.namespace()?, &lock.name_any()).ok()?;
        Some((lock, key))
    });
    let named: Vec<_> = named.collect();
    for batch in named.chunks(BATCH) {
        let keys: Vec<LockKey> = batch.iter().map(|(_, key)| key.clone()).collect();
        let due = around(Failpoint::StoreLookForMissing, control.expire(&keys)).await??;
        for ((lock, key), due) in batch.iter().zip(due) {
            note_missing(ctx, lock, key, due == Due::Unprovisioned, epoch);
        }
    }
    Ok(())
}
