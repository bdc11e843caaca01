//! Waiting for a condition, with a limit.

use std::time::Duration;

/// What nothing in a test should take longer than.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(30);

/// Asks until there is an answer; `None` when the limit has passed, also in the middle of a question.
pub(crate) async fn eventually<T>(limit: Duration, mut ask: impl AsyncFnMut() -> Option<T>) -> Option<T> {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(limit, asking).await.ok()
}

/// What a panic, such as one of [`wait_for`], says.
pub(crate) fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_else(|| "a panic".into())
}

/// As [`eventually`]; a test that waits in vain fails and says for what.
pub(crate) async fn wait_for<T>(what: &str, limit: Duration, ask: impl AsyncFnMut() -> Option<T>) -> T {
    eventually(limit, ask).await.unwrap_or_else(|| panic!("waited {limit:?} in vain: {what}"))
}
