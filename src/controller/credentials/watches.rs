//! What is known of namespaces, their Secrets and the stores.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, SelectAll};
use futures::{FutureExt, Stream, StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::runtime::reflector::{self, reflector};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource, ResourceExt};
use tracing::warn;

use super::super::cache::Cache;
use super::super::scope::Scope;
use super::super::{Context, Error, watch_backoff};
use crate::api::LockStore;
use crate::api::direct::{CONNECTION, DIRECT, ENABLED};

/// Follows all of them.
pub(super) struct Watches {
    events: SelectAll<BoxStream<'static, ()>>,
    /// Resolves once everything was listed.
    listing: Option<BoxFuture<'static, bool>>,
    /// `None`: only some are served, which may not be watched; they are asked for.
    namespaces: Option<Cache<Namespace>>,
    secrets: Cache<Secret>,
    stores: Cache<LockStore>,
}

impl Watches {
    pub(super) fn new(ctx: &Context) -> Self {
        let (client, scope) = (&ctx.client, &ctx.settings.scope);
        let ours = watcher::Config::default().fields(&format!("metadata.name={CONNECTION}"));
        let (secrets, told_secrets) = followed(scope.watch::<Secret>(client, &ours));
        let (stores, told_stores) = followed(watcher(Api::all(client.clone()), watcher::Config::default()));
        let labelled = watcher::Config::default().labels(&format!("{DIRECT}={ENABLED}"));
        let all = (*scope == Scope::All).then(|| followed(watcher(Api::all(client.clone()), labelled)));
        let (namespaces, told_namespaces) = all.unzip();
        let events = stream::select_all([told_secrets, told_stores].into_iter().chain(told_namespaces));
        let (of_secrets, of_stores, of_namespaces) = (secrets.clone(), stores.clone(), namespaces.clone());
        let listing = async move {
            let namespaces = async {
                match &of_namespaces {
                    Some(namespaces) => namespaces.is_filled().await,
                    None => true,
                }
            };
            matches!(futures::join!(of_secrets.is_filled(), of_stores.is_filled(), namespaces), (true, true, true))
        };
        Self { events, listing: Some(listing.boxed()), namespaces, secrets, stores }
    }

    /// Waits until something has changed, or everything is known.
    pub(super) async fn changed(&mut self) -> Result<(), Error> {
        const ENDED: Error = Error::WatchEnded("Secret");
        let listing = async {
            match &mut self.listing {
                Some(listing) => listing.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            event = self.events.next() => event.ok_or(ENDED),
            complete = listing => {
                self.listing = None;
                complete.then_some(()).ok_or(ENDED)
            }
        }
    }

    /// Whether everything was listed: what isn't there then is absent.
    pub(super) fn are_complete(&self) -> bool {
        self.listing.is_none()
    }

    /// The namespaces that are to have credentials.
    ///
    /// # Errors
    /// What the API server or the connection says: one that can't be asked is not one without the label.
    pub(super) async fn namespaces(&self, ctx: &Context) -> kube::Result<Vec<Arc<Namespace>>> {
        if let Some(namespaces) = &self.namespaces {
            return Ok(namespaces.state());
        }
        let Scope::Namespaces(names) = &ctx.settings.scope else { return Ok(Vec::new()) };
        let api: Api<Namespace> = Api::all(ctx.client.clone());
        let mut labelled = Vec::new();
        for name in names {
            let namespace = api.get_opt(name).await?;
            labelled.extend(namespace.filter(|found| found.labels().get(DIRECT).is_some_and(|is| is == ENABLED)));
        }
        Ok(labelled.into_iter().map(Arc::new).collect())
    }

    /// The Secrets of our name, whosever they are, by namespace.
    pub(super) fn secrets(&self) -> BTreeMap<String, Arc<Secret>> {
        let secrets = self.secrets.state().into_iter();
        secrets.map(|secret| (secret.namespace().unwrap_or_default(), secret)).collect()
    }

    /// The stores of all controllers.
    pub(super) fn stores(&self) -> Vec<Arc<LockStore>> {
        self.stores.state()
    }
}

/// A cache, and a word at each change of it.
fn followed<K>(
    told: impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send + 'static,
) -> (Cache<K>, BoxStream<'static, ()>)
where
    K: Resource<DynamicType = ()> + Clone + Debug + Send + Sync + 'static,
{
    let (objects, writer) = reflector::store();
    let (cache, filling) = Cache::new(objects);
    let events = reflector(writer, told).backoff(watch_backoff()).inspect_ok(move |event| filling.heed(event));
    let heard = events.filter_map(|event| async move {
        let heard = event.inspect_err(|error| warn!(%error, "a watch for credentials was interrupted"));
        heard.ok().map(drop)
    });
    (cache, heard.boxed())
}
