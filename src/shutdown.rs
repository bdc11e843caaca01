//! The end of the process, and the signals that ask for it.

use std::collections::BTreeSet;

use futures::future::select_all;
use tokio::signal::unix::{SignalKind, signal};

/// Resolves at the first SIGTERM, SIGINT or SIGHUP. One that was ignored when the process began, as `nohup` does, stays so.
///
/// # Errors
/// If the handlers can't be installed.
pub fn asked() -> std::io::Result<impl Future<Output = ()> + Send> {
    let ignored = ignored();
    let all = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()];
    let heeded = all.into_iter().filter(|kind| !ignored.contains(&kind.as_raw_value()));
    let signals = heeded.map(signal).collect::<std::io::Result<Vec<_>>>()?;
    Ok(async move {
        let each = signals.into_iter().map(|mut signal| Box::pin(async move { signal.recv().await }));
        select_all(each).await;
        tracing::info!("asked to end");
    })
}

/// The signals that this process ignores, by number.
pub(crate) fn ignored() -> BTreeSet<i32> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    (1..=64).filter(|signal| mask >> (signal - 1) & 1 == 1).collect()
}
