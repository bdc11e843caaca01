//! The objects of a kind as the watch has told them.

use std::hash::Hash;
use std::ops::Deref;

use kube::runtime::reflector::{Lookup, Store};
use kube::runtime::watcher::Event;
use tokio::sync::watch;

/// A cache, and whether it was ever filled.
#[derive(Clone)]
pub(super) struct Cache<K: Lookup + 'static>
where
    K::DynamicType: Hash + Eq,
{
    objects: Store<K>,
    filled: watch::Receiver<bool>,
}

/// Hears when a cache is filled for the first time, and wakes all that wait for it. `Store::wait_until_ready` (kube 5.0) wakes
/// only who asked last: of those here and the loop that waits before its first look, one.
pub(super) struct Filling(watch::Sender<bool>);

impl Filling {
    /// Heeds what the watch has told, once the cache has it.
    pub(super) fn heed<K>(&self, event: &Event<K>) {
        if matches!(event, Event::InitDone) {
            self.0.send_replace(true);
        }
    }
}

impl<K: Lookup + 'static> Cache<K>
where
    K::DynamicType: Hash + Eq,
{
    pub(super) fn new(objects: Store<K>) -> (Self, Filling) {
        let (filling, filled) = watch::channel(false);
        (Self { objects, filled }, Filling(filling))
    }

    /// Waits for the first list: an object that isn't there before is not one that doesn't exist. `false`: the watch has
    /// ended, and the process does, too.
    pub(super) async fn is_filled(&self) -> bool {
        self.filled.clone().wait_for(|filled| *filled).await.is_ok()
    }
}

impl<K: Lookup + 'static> Deref for Cache<K>
where
    K::DynamicType: Hash + Eq,
{
    type Target = Store<K>;

    fn deref(&self) -> &Store<K> {
        &self.objects
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::future::join_all;
    use k8s_openapi::api::core::v1::Pod;
    use kube::runtime::reflector;

    use super::*;

    #[tokio::test]
    async fn all_that_wait_are_woken() {
        let (objects, mut writer) = reflector::store::<Pod>();
        let (cache, filling) = Cache::new(objects.clone());
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let cache = cache.clone();
                tokio::spawn(async move { cache.is_filled().await })
            })
            .collect();
        tokio::task::yield_now().await;
        // As a loop does before its first look.
        let waits = tokio::spawn(async move { objects.wait_until_ready().await.is_ok() });
        tokio::task::yield_now().await;
        for event in [Event::Init, Event::InitDone] {
            writer.apply_watcher_event(&event);
            filling.heed(&event);
        }
        let woken = tokio::time::timeout(Duration::from_secs(5), join_all(waiting)).await.unwrap();
        assert!(woken.into_iter().all(|filled| filled.unwrap()) && waits.await.unwrap());
    }

    #[tokio::test]
    async fn who_waits_hears_that_the_watch_has_ended() {
        let (objects, _writer) = reflector::store::<Pod>();
        let (cache, filling) = Cache::new(objects);
        drop(filling);
        assert!(!cache.is_filled().await);
    }
}
