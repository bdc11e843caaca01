//! One object, followed by its name.

use std::fmt::Debug;
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tracing::debug;

use super::watch_backoff;

/// What is seen of an object.
pub(super) enum Seen<K> {
    /// As it is.
    There(K),
    /// As it was when it was deleted.
    Deleted(K),
    /// There is none, and nobody saw it go.
    Absent,
}

/// Tells `see` what becomes of the object of this name, until aborted. The watcher itself lists again and backs off after
/// errors; should it ever end, it is started again.
pub(super) async fn follow<K>(api: Api<K>, name: &str, see: impl Fn(Seen<K>))
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    loop {
        let mut events = watcher(api.clone(), config.clone()).backoff(watch_backoff()).boxed();
        let mut listed = None;
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Init) => listed = None,
                Ok(watcher::Event::InitApply(object)) => listed = Some(object),
                Ok(watcher::Event::InitDone) => see(listed.take().map_or(Seen::Absent, Seen::There)),
                Ok(watcher::Event::Apply(object)) => see(Seen::There(object)),
                Ok(watcher::Event::Delete(object)) => see(Seen::Deleted(object)),
                Err(error) => debug!(%error, name, "a watch was interrupted"),
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
