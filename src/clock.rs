//! Our own clock, for everything that decides: nobody sets it, and it goes on while the machine sleeps.
//!
//! Its readings are compared with each other only, on this machine. `/proc/uptime` shows the same clock.

use std::io;
use std::time::Duration;

use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime, timerfd_create,
    timerfd_settime,
};
use tokio::io::unix::AsyncFd;

/// `CLOCK_BOOTTIME`.
pub fn boottime() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    let (seconds, nanos) = (u64::try_from(now.tv_sec), u32::try_from(now.tv_nsec));
    Duration::new(seconds.unwrap_or_default(), nanos.unwrap_or_default())
}

/// How long ago that was.
pub fn since(then: Duration) -> Duration {
    boottime().saturating_sub(then)
}

/// Resolves once [`boottime`] has reached `when`, also where the machine slept meanwhile (tokio's own timers don't).
///
/// Where the kernel has no such timer left, tokio's is used and the clock read again every 100 ms.
pub async fn sleep_until(when: Duration) {
    if boottime() < when && timer(when).await.is_err() {
        while let Some(left) = when.checked_sub(boottime()).filter(|left| !left.is_zero()) {
            tokio::time::sleep(left.min(Duration::from_millis(100))).await;
        }
    }
}

async fn timer(when: Duration) -> io::Result<()> {
    let timer = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
    let it_value =
        Timespec { tv_sec: i64::try_from(when.as_secs()).unwrap_or(i64::MAX), tv_nsec: i64::from(when.subsec_nanos()) };
    let setting = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
    timerfd_settime(&timer, TimerfdTimerFlags::ABSTIME, &setting)?;
    // Deprecated for types whose descriptor may change while it is registered; an `OwnedFd` keeps its own.
    #[expect(deprecated)]
    let timer = AsyncFd::new(timer)?;
    timer.readable().await?.retain_ready();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_sleep_ends_on_time_and_one_that_is_over_at_once() {
        let begin = boottime();
        sleep_until(begin + Duration::from_millis(30)).await;
        let slept = since(begin);
        assert!(slept >= Duration::from_millis(30) && slept < Duration::from_secs(5), "{slept:?}");
        sleep_until(begin).await;
    }
}
