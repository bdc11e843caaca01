//! Several locks, all or nothing.
//!
//! They are taken one after the other in the order of their names, so that no two of these wait for each other. One that
//! is lost while a later one is waited for begins again: nothing is ever believed of less than all.

use std::time::Duration;

use futures::future::{join_all, select_all};
use tokio::time::timeout;

use super::wait::wait_left;
use super::{AcquireError, Hold, Lock, Options, ReleaseError, Standing, Wait};
use crate::clock::boottime;
use crate::lease::Released;

/// How long is waited for the store to take back the others, where one is not had.
const GIVES_BACK: Duration = Duration::from_millis(500);
/// How long their leases are read for, before the first is asked for.
const READS: Duration = Duration::from_millis(500);

/// Locks that are held together. Dropped, all are released.
#[derive(Debug)]
pub struct Holds(Vec<Hold>);

/// Acquires all of them, each as `options` say; the time to wait is that of all together.
///
/// # Errors
/// [`AcquireError`] of the first that is not had; the others are given back.
pub async fn acquire_all(locks: &[Lock], options: &Options) -> Result<Holds, AcquireError> {
    let begun = boottime();
    let mut order: Vec<&Lock> = locks.iter().collect();
    order.sort_by(|a, b| a.key.cmp(&b.key));
    check_leases(&order, options).await?;
    loop {
        let mut holds = Holds(Vec::with_capacity(order.len()));
        let all = holds.acquire(&order, options, begun).await;
        if matches!(all, Ok(true)) && holds.standing() != Standing::Lost {
            return Ok(holds);
        }
        // Before it is told, or begun again. A store that is silent is told later.
        let _ = timeout(GIVES_BACK, holds.release()).await;
        all.map_err(|error| match (error, options.wait) {
            // Of all together.
            (AcquireError::TimedOut(_), Wait::For(limit)) => AcquireError::TimedOut(limit),
            (error, _) => error,
        })?;
    }
}

/// Refuses a lease of any of them that leaves no time to stop, before anyone waits for the first. What can't be read now is
/// read when it is asked for.
async fn check_leases(locks: &[&Lock], options: &Options) -> Result<(), AcquireError> {
    if locks.len() < 2 || options.rules.least_stop.is_zero() {
        return Ok(());
    }
    let records = join_all(locks.iter().map(|lock| lock.store.inspect(&lock.key)));
    let limit = if let Wait::For(limit) = options.wait { limit.min(READS) } else { READS };
    for record in timeout(limit, records).await.unwrap_or_default().into_iter().flatten().flatten() {
        options.rules.check(record.lease_duration())?;
    }
    Ok(())
}

impl Holds {
    /// Adds them one by one. `false`: one of those before was lost meanwhile.
    async fn acquire(&mut self, order: &[&Lock], options: &Options, begun: Duration) -> Result<bool, AcquireError> {
        for lock in order {
            let options = Options { wait: wait_left(options.wait, begun)?, ..options.clone() };
            tokio::select! {
                hold = lock.acquire(options) => self.0.push(hold?),
                () = self.lost() => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Each of them, in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &Hold> {
        self.0.iter()
    }

    /// Until when all of them may be believed, on [`crate::clock::boottime`].
    pub fn deadline(&self) -> Duration {
        self.0.iter().map(Hold::deadline).min().unwrap_or(Duration::MAX)
    }

    /// When to begin to stop, if nothing else is heard, on the same clock.
    pub fn stop_at(&self) -> Duration {
        self.0.iter().map(|hold| hold.tenure().stop_at).min().unwrap_or(Duration::MAX)
    }

    /// The worst of all.
    pub fn standing(&self) -> Standing {
        let standings = self.0.iter().map(Hold::standing);
        standings.max_by_key(|standing| *standing as u8).unwrap_or(Standing::Held)
    }

    /// Resolves when it is time to stop because of any of them. Never, where there is none. Cancel safe.
    pub async fn lost(&self) {
        if self.0.is_empty() {
            return std::future::pending().await;
        }
        select_all(self.0.iter().map(|hold| Box::pin(hold.lost()))).await;
    }

    /// Resolves when anything was heard of one of them; `false` once nothing more will be heard of one. Cancel safe.
    pub async fn changed(&mut self) -> bool {
        if self.0.is_empty() {
            return std::future::pending().await;
        }
        select_all(self.0.iter_mut().map(|hold| Box::pin(hold.changed()))).await.0.is_some()
    }

    /// Gives all of them back; how it went, in the order of their names.
    ///
    /// # Errors
    /// The first [`ReleaseError`]; the others are released all the same.
    pub async fn release(self) -> Result<Vec<Released>, ReleaseError> {
        let released = futures::future::join_all(self.0.into_iter().map(Hold::release)).await;
        released.into_iter().collect()
    }
}
