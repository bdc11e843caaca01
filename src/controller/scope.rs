//! Which namespaces a controller serves: all, or those that are listed, where a Role in each is enough.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::core::NamespaceResourceScope;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tracing::warn;

use super::{Error, watch_backoff};
use crate::api::{DistributedLock, LockClaim};

/// The namespaces that are served. Objects elsewhere are neither read nor written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Scope {
    /// All of them, by a ClusterRole.
    #[default]
    All,
    /// These, by a Role in each.
    Namespaces(BTreeSet<String>),
}

impl Scope {
    /// These namespaces; none named: all.
    pub fn of(namespaces: impl IntoIterator<Item = String>) -> Self {
        let namespaces: BTreeSet<_> = namespaces.into_iter().collect();
        if namespaces.is_empty() { Self::All } else { Self::Namespaces(namespaces) }
    }

    fn apis<K>(&self, client: &Client) -> Vec<(String, Api<K>)>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        match self {
            Self::All => vec![(String::new(), Api::all(client.clone()))],
            Self::Namespaces(names) => {
                names.iter().map(|name| (name.clone(), Api::namespaced(client.clone(), name))).collect()
            }
        }
    }

    /// Whether everything that is served may be read.
    ///
    /// # Errors
    /// [`Error::Unreadable`] for a namespace that is forbidden. A server that can't be asked is no error here.
    pub(super) async fn check(&self, client: &Client) -> Result<(), Error> {
        check_kind(self.apis::<DistributedLock>(client)).await?;
        check_kind(self.apis::<LockClaim>(client)).await?;
        check_kind(self.apis::<Pod>(client)).await
    }

    /// All objects of a kind that are selected, from a quorum of etcd: no `resourceVersion` is asked for.
    ///
    /// # Errors
    /// What the API server or the connection says. One namespace that can't be read fails the whole list, for what is
    /// held there would be taken for free.
    pub async fn list<K>(&self, client: &Client, selected: &ListParams) -> kube::Result<Vec<K>>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
    {
        let mut objects = Vec::new();
        for (_, api) in self.apis::<K>(client) {
            objects.extend(api.list(selected).await?.items);
        }
        Ok(objects)
    }

    /// Follows all objects of a kind that `config` selects, as one stream that lists and then tells changes.
    pub(super) fn watch<K>(
        &self,
        client: &Client,
        config: &watcher::Config,
    ) -> BoxStream<'static, watcher::Result<Event<K>>>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + Debug
            + Send
            + 'static,
    {
        let mut apis = self.apis::<K>(client);
        if *self == Self::All
            && let Some((_, api)) = apis.pop()
        {
            return watcher(api, config.clone()).boxed();
        }
        let mut merged = Merged::new(apis.iter().map(|(name, _)| name.clone()));
        let parts = apis.into_iter().map(|(name, api)| {
            let events = watcher(api, config.clone()).backoff(watch_backoff());
            events.map(move |event| (name.clone(), event)).boxed()
        });
        let events = stream::select_all(parts).flat_map(move |(namespace, event)| {
            let told = event.map(|event| merged.heed(&namespace, event)).unwrap_or_else(|error| {
                // Told here, since an error in the stream would hold up the other namespaces, too.
                warn!(%error, namespace, kind = %K::kind(&()), "a watch was interrupted");
                Vec::new()
            });
            stream::iter(told)
        });
        events.map(Ok).boxed()
    }
}

async fn check_kind<K>(apis: Vec<(String, Api<K>)>) -> Result<(), Error>
where
    K: Clone + DeserializeOwned + Debug,
{
    for (namespace, api) in apis {
        match api.list_metadata(&ListParams::default().limit(1)).await {
            Err(kube::Error::Api(status)) if status.code == 403 => {
                return Err(Error::Unreadable { namespace, why: status.message });
            }
            _ => {}
        }
    }
    Ok(())
}

/// An object that was missing when it was listed again, as a deletion tells it: without `resourceVersion`.
fn unseen<K: Resource>(mut object: K) -> K {
    object.meta_mut().resource_version = None;
    object
}

/// Whether an object of a deletion was seen to go: it is as it was at its end, and not as it was some time before.
pub(super) fn is_seen_to_go<K: Resource>(deleted: &K) -> bool {
    deleted.meta().resource_version.is_some()
}

/// What was told of one namespace.
struct Part<K> {
    /// The objects, by name; `None` before the first list is complete.
    known: Option<BTreeMap<String, K>>,
    listing: BTreeMap<String, K>,
}

/// Makes one stream of events out of those of several namespaces: one list, when each has been listed, and changes alone
/// from then on. A cache that is fed by it is complete from its `InitDone` on, and loses nothing when one is listed again.
struct Merged<K> {
    parts: BTreeMap<String, Part<K>>,
    complete: bool,
}

impl<K: ResourceExt + Clone> Merged<K> {
    fn new(namespaces: impl IntoIterator<Item = String>) -> Self {
        let part = || Part { known: None, listing: BTreeMap::new() };
        Self { parts: namespaces.into_iter().map(|name| (name, part())).collect(), complete: false }
    }

    fn heed(&mut self, namespace: &str, event: Event<K>) -> Vec<Event<K>> {
        let Some(part) = self.parts.get_mut(namespace) else { return Vec::new() };
        let change = match event {
            Event::Init => {
                part.listing.clear();
                return Vec::new();
            }
            Event::InitApply(object) => {
                part.listing.insert(object.name_any(), object);
                return Vec::new();
            }
            Event::InitDone => return self.listed(namespace),
            Event::Apply(object) => {
                part.known.as_mut().map(|known| known.insert(object.name_any(), object.clone()));
                Event::Apply(object)
            }
            Event::Delete(object) => {
                part.known.as_mut().map(|known| known.remove(&object.name_any()));
                Event::Delete(object)
            }
        };
        if self.complete { vec![change] } else { Vec::new() }
    }

    fn listed(&mut self, namespace: &str) -> Vec<Event<K>> {
        let Some(part) = self.parts.get_mut(namespace) else { return Vec::new() };
        let now = std::mem::take(&mut part.listing);
        let before = part.known.replace(now.clone()).unwrap_or_default();
        if self.complete {
            // One of the same name with another UID is another object.
            let gone = before.into_iter().filter(|(name, old)| now.get(name).is_none_or(|new| new.uid() != old.uid()));
            let gone: Vec<_> = gone.map(|(_, object)| Event::Delete(unseen(object))).collect();
            return gone.into_iter().chain(now.into_values().map(Event::Apply)).collect();
        }
        self.complete = self.parts.values().all(|part| part.known.is_some());
        if !self.complete {
            return Vec::new();
        }
        let all = self.parts.values().flat_map(|part| part.known.iter().flat_map(|known| known.values().cloned()));
        let all = all.map(Event::InitApply);
        std::iter::once(Event::Init).chain(all).chain([Event::InitDone]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::LockClaimSpec;

    fn claim(namespace: &str, name: &str, uid: &str) -> LockClaim {
        let mut claim = LockClaim::new(name, LockClaimSpec::for_lock("a"));
        claim.metadata.namespace = Some(namespace.into());
        claim.metadata.uid = Some(uid.into());
        claim
    }

    fn told(events: Vec<Event<LockClaim>>) -> Vec<String> {
        let name = |claim: &LockClaim| format!("{}/{}", claim.namespace().unwrap(), claim.uid().unwrap());
        let text = |event: &Event<LockClaim>| match event {
            Event::Init => "init".to_owned(),
            Event::InitApply(claim) => format!("has {}", name(claim)),
            Event::InitDone => "done".to_owned(),
            Event::Apply(claim) => format!("+{}", name(claim)),
            Event::Delete(claim) => format!("-{}", name(claim)),
        };
        events.iter().map(text).collect()
    }

    fn list(merged: &mut Merged<LockClaim>, namespace: &str, claims: &[(&str, &str)]) -> Vec<String> {
        let mut events = merged.heed(namespace, Event::Init);
        for (name, uid) in claims {
            events.extend(merged.heed(namespace, Event::InitApply(claim(namespace, name, uid))));
        }
        events.extend(merged.heed(namespace, Event::InitDone));
        told(events)
    }

    #[test]
    fn the_list_is_complete_when_each_namespace_has_been_listed() {
        let mut merged = Merged::new(["a".to_owned(), "b".to_owned()]);
        assert!(list(&mut merged, "a", &[("p", "1")]).is_empty());
        assert!(merged.heed("a", Event::Apply(claim("a", "q", "2"))).is_empty());
        assert!(merged.heed("a", Event::Delete(claim("a", "p", "1"))).is_empty());
        assert_eq!(list(&mut merged, "b", &[("p", "3")]), ["init", "has a/2", "has b/3", "done"]);
        assert_eq!(told(merged.heed("a", Event::Apply(claim("a", "r", "4")))), ["+a/4"]);
    }

    #[test]
    fn one_that_is_listed_again_says_what_has_changed_and_touches_no_other() {
        let mut merged = Merged::new(["a".to_owned(), "b".to_owned()]);
        list(&mut merged, "a", &[("p", "1"), ("q", "2"), ("r", "3")]);
        list(&mut merged, "b", &[("p", "4")]);
        assert_eq!(list(&mut merged, "a", &[("q", "2"), ("r", "5")]), ["-a/1", "-a/3", "+a/2", "+a/5"]);
        assert!(list(&mut merged, "b", &[]) == ["-b/4"]);
    }

    #[test]
    fn one_that_is_missing_in_a_list_was_not_seen_to_go() {
        let numbered = |name: &str| {
            let mut claim = claim("a", name, name);
            claim.metadata.resource_version = Some("7".into());
            claim
        };
        let mut merged = Merged::new(["a".to_owned()]);
        for event in [Event::Init, Event::InitApply(numbered("p")), Event::InitApply(numbered("q")), Event::InitDone] {
            merged.heed("a", event);
        }
        let seen = |events: Vec<Event<LockClaim>>| match events.as_slice() {
            [Event::Delete(claim)] => is_seen_to_go(claim),
            other => panic!("{other:?}"),
        };
        assert!(seen(merged.heed("a", Event::Delete(numbered("p")))));
        merged.heed("a", Event::Init);
        assert!(!seen(merged.heed("a", Event::InitDone)));
    }
}
