//! Whether the app is well, as it says itself.

use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::sleep;

use super::ask::Asker;
use super::{Health, HealthSource};

/// Between two questions.
const EVERY: Duration = Duration::from_secs(1);

/// Whether the app has been unwell for too long. Dropped, nobody asks any more.
pub(super) struct Well(Option<watch::Receiver<bool>>);

impl Well {
    /// Resolves when it is so. An app that nobody asks is always well.
    pub(super) async fn becomes(&mut self, well: bool) {
        match &mut self.0 {
            Some(known) => {
                // Nobody asks any more: it may be unwell.
                if known.wait_for(|now| *now == well).await.is_err() && well {
                    std::future::pending().await
                }
            }
            None if well => {}
            None => std::future::pending().await,
        }
    }
}

/// Asks for ever, at most each second.
pub(super) fn watch(health: Option<Health>) -> Well {
    let Some(Health { source, limit }) = health else { return Well(None) };
    let (tell, known) = watch::channel(true);
    // It ends with its last listener.
    tokio::spawn(async move {
        let asker = Asker::new();
        let mut unwell_since: Option<Instant> = None;
        while !tell.is_closed() {
            let well = match &source {
                HealthSource::File(path) => path.exists(),
                HealthSource::Url(uri) => asker.says_yes(uri.clone()).await,
            };
            unwell_since = if well { None } else { unwell_since.or_else(|| Some(Instant::now())) };
            let well = unwell_since.is_none_or(|since| since.elapsed() < limit);
            tell.send_if_modified(|now| std::mem::replace(now, well) != well);
            sleep(EVERY).await;
        }
    });
    Well(Some(known))
}
