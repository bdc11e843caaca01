//! Our own clock, for everything that decides: nobody sets it, and it goes on while the machine sleeps.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// `CLOCK_BOOTTIME`.
pub(super) fn boottime() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    let (seconds, nanos) = (u64::try_from(now.tv_sec), u32::try_from(now.tv_nsec));
    Duration::new(seconds.unwrap_or_default(), nanos.unwrap_or_default())
}

/// How long ago that was.
pub(super) fn since(then: Duration) -> Duration {
    boottime().saturating_sub(then)
}
