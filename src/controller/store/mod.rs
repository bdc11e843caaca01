//! The loop of `LockStore`: one task a store, that connects, reigns, opens the gate and tells the others.

mod clock;
mod doubt;
mod ledger;
mod link;
mod mirror;
mod missing;
mod opening;
mod reign;
mod report;
mod trouble;

use std::collections::HashMap;
use std::sync::Arc;

use futures::TryStreamExt;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tracing::info;

use super::{Context, Error, watch_backoff};
use crate::api::LockStore;
use reign::Reign;

struct Running {
    uid: Option<String>,
    /// `None`: the store is gone, and its loop ends after the step that it is in.
    object: Option<watch::Sender<Arc<LockStore>>>,
    task: AbortHandle,
}

/// Follows the stores of this controller until the watch or a store's loop fails.
pub(super) async fn run(ctx: Arc<Context>) -> Result<(), Error> {
    // Nothing is decided about a store before its locks and claims are known.
    if !(ctx.locks.is_filled().await && ctx.claims.is_filled().await) {
        return Err(Error::WatchEnded("DistributedLock"));
    }
    let api: Api<LockStore> = Api::all(ctx.client.clone());
    let mut objects = std::pin::pin!(watcher(api, watcher::Config::default()).backoff(watch_backoff()));
    let mut running: HashMap<String, Running> = HashMap::new();
    let mut loops: JoinSet<Result<(), Error>> = JoinSet::new();
    loop {
        tokio::select! {
            event = objects.try_next() => match event {
                Ok(Some(event)) => heed(&ctx, event, &mut running, &mut loops),
                Ok(None) => return Err(Error::WatchEnded("LockStore")),
                Err(error) => info!(%error, "the watch of LockStores was interrupted"),
            },
            Some(ended) = loops.join_next() => match ended {
                Ok(result) => result?,
                Err(end) if end.is_cancelled() => {}
                Err(panic) => return Err(Error::TaskDied(panic.to_string())),
            },
        }
    }
}

fn heed(
    ctx: &Arc<Context>,
    event: watcher::Event<LockStore>,
    running: &mut HashMap<String, Running>,
    loops: &mut JoinSet<Result<(), Error>>,
) {
    match event {
        watcher::Event::Apply(store) | watcher::Event::InitApply(store) => {
            if store.spec.controller_name != ctx.settings.controller_name {
                return;
            }
            let (name, uid) = (store.name_any(), store.uid());
            let store = Arc::new(store);
            match running.get(&name) {
                Some(Running { uid: known, object: Some(object), .. }) if *known == uid => {
                    object.send_replace(store);
                }
                _ => {
                    if let Some(other) = running.remove(&name) {
                        other.task.abort();
                    }
                    ctx.stores.leave(&name);
                    let (object, seen) = watch::channel(store);
                    let task = loops.spawn(Reign::new(ctx.clone(), &name, seen).run());
                    running.insert(name, Running { uid, object: Some(object), task });
                }
            }
        }
        watcher::Event::Delete(store) => {
            let name = store.name_any();
            if let Some(known) = running.get_mut(&name) {
                known.object = None;
                ctx.stores.leave(&name);
            }
        }
        watcher::Event::Init | watcher::Event::InitDone => {}
    }
}
