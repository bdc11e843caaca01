//! What Redis has of a lock, where that is asked for: it isn't a moment behind, as a status may be, and it knows those that
//! wait without a claim.

use anyhow::bail;
use kube::ResourceExt;

use super::super::endpoint::RedisArgs;
use crate::api::DistributedLock;
use crate::keeper::advice;
use crate::lease::LockKey;
use crate::store::{Inspection, Store, StoreError, Waiter};

/// The records of a Redis.
pub(super) struct Records(Store);

impl Records {
    pub(super) fn of(redis: RedisArgs) -> anyhow::Result<Self> {
        Ok(Self(redis.store()?))
    }

    /// The record of this lock.
    pub(super) async fn record(&self, lock: &DistributedLock) -> anyhow::Result<Inspection> {
        let record = self.0.inspect(&key(lock)?).await;
        its_own(lock, record, |record| record)
    }

    /// The record of this lock, and what those ask for that wait.
    pub(super) async fn queue(&self, lock: &DistributedLock) -> anyhow::Result<(Inspection, Vec<Waiter>)> {
        let read = self.0.inspect_in_full(&key(lock)?).await;
        its_own(lock, read, |(record, _)| record)
    }
}

fn key(lock: &DistributedLock) -> anyhow::Result<LockKey> {
    Ok(LockKey::new(&lock.namespace().unwrap_or_default(), &lock.name_any())?)
}

/// What was read, if it is of this lock.
fn its_own<T>(
    lock: &DistributedLock,
    read: Result<Option<T>, StoreError>,
    record: impl Fn(&T) -> &Inspection,
) -> anyhow::Result<T> {
    let (name, store) = (lock.name_any(), lock.store_name());
    let read = read.map_err(|error| {
        let why = format!("{name} can't be read from Redis ({}): {}", error.label(), advice(&error));
        anyhow::Error::new(error).context(why)
    });
    match read? {
        Some(read) if Some(&record(&read).lock_uid) == lock.uid().as_ref() => Ok(read),
        Some(_) => bail!("this Redis has a record of another lock {name}: that of this one is in the store {store}"),
        None => bail!(
            "this Redis has no record of {name} yet, or is another than that of the store {store}: look at --key-prefix \
             and at kubectl get dlock {name}"
        ),
    }
}
