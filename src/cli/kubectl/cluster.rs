//! What the commands ask the API server.

use std::fmt::Debug;
use std::time::Duration;

use anyhow::anyhow;
use futures::{Stream, StreamExt};
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use kube::api::{DeleteParams, ListParams, PostParams, Preconditions};
use kube::core::NamespaceResourceScope;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::super::connect::ConnectArgs;
use super::error::{explain, is_forbidden, missing};
use crate::api::DistributedLock;

/// What to do where there is no API server to ask.
const CONFIGURE: &str = "look at --kubeconfig, KUBECONFIG and --context";
/// An answer that takes longer is not waited for.
const ANSWER: Duration = Duration::from_secs(30);

/// How far the status of a lock may be behind its holds.
const LAG: Duration = Duration::from_secs(3);
/// How often it is looked meanwhile.
const EVERY: Duration = Duration::from_millis(300);

/// An API server, and the namespace that is meant there.
pub(super) struct Cluster {
    pub(super) client: Client,
    pub(super) namespace: String,
}

impl Cluster {
    pub(super) async fn connect(args: ConnectArgs, namespace: Option<String>) -> anyhow::Result<Self> {
        let config = args.config().await.map_err(|error| anyhow!("{error:#}: {CONFIGURE}"))?;
        let namespace = namespace.unwrap_or_else(|| config.default_namespace.clone());
        let client =
            Client::try_from(config).map_err(|error| anyhow!("the kubeconfig can't be used: {error}: {CONFIGURE}"))?;
        Ok(Self { client, namespace })
    }

    pub(super) fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Who we are to the API server; `None`: it doesn't say.
    pub(super) async fn user(&self) -> Option<String> {
        let reviews: Api<SelfSubjectReview> = Api::all(self.client.clone());
        let (params, asked) = (PostParams::default(), SelfSubjectReview::default());
        let review = in_time(reviews.create(&params, &asked)).await.ok()?;
        review.status?.user_info?.username
    }

    /// All of a kind, here or in all namespaces.
    pub(super) async fn list<K>(&self, everywhere: bool, selected: &ListParams) -> kube::Result<Vec<K>>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
    {
        let api = if everywhere { Api::all(self.client.clone()) } else { self.api::<K>() };
        Ok(in_time(api.list(selected)).await?.items)
    }

    /// An object of this name, or an error that says which one may be meant.
    pub(super) async fn named<K>(&self, name: &str) -> anyhow::Result<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
    {
        if let Some(object) = in_time(self.api::<K>().get_opt(name)).await.map_err(explain)? {
            return Ok(object);
        }
        let names = match self.list::<K>(false, &ListParams::default()).await {
            Ok(objects) => objects.iter().map(ResourceExt::name_any).collect(),
            Err(error) if is_forbidden(&error) => Vec::new(),
            Err(error) => return Err(explain(error)),
        };
        Err(missing(&K::kind(&()), name, &self.namespace, &names))
    }

    /// Deletes this object, and none that was made under its name since. One that is gone is as good.
    pub(super) async fn delete<K>(&self, object: &K) -> kube::Result<()>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
    {
        let this = Preconditions { uid: object.uid(), resource_version: None };
        let exactly = DeleteParams::default().preconditions(this);
        match in_time(self.api::<K>().delete(&object.name_any(), &exactly)).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if [404, 409].contains(&status.code) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// A lock as soon as it is like this, or as it is after a moment: a status may lag a little behind a hold.
    pub(super) async fn lock_once(
        &self,
        name: &str,
        is: impl Fn(&DistributedLock) -> bool,
    ) -> anyhow::Result<DistributedLock> {
        let until = Instant::now() + LAG;
        loop {
            let lock = self.named::<DistributedLock>(name).await?;
            if is(&lock) || Instant::now() > until {
                return Ok(lock);
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    /// An object of this name whenever it changes, `None` where it is gone. Ends with an error that will not pass.
    pub(super) fn follow<K>(&self, name: &str) -> impl Stream<Item = anyhow::Result<Option<K>>> + use<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + Debug
            + Send
            + 'static,
    {
        let changes = watcher::watch_object(self.api::<K>(), name).default_backoff();
        changes.filter_map(async |change| match change {
            Ok(object) => Some(Ok(object)),
            Err(watcher::Error::InitialListFailed(error) | watcher::Error::WatchStartFailed(error))
                if will_stay(&error) =>
            {
                Some(Err(explain(error)))
            }
            // The connection was cut, or the API server is busy: it is tried again.
            Err(_) => None,
        })
    }
}

/// Whether the API server would say the same again: credentials, rights or the kind are missing.
fn will_stay(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if [401, 403, 404].contains(&status.code))
}

/// An answer, or an error that says that there is none.
pub(super) async fn in_time<T>(answer: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
    let late = || kube::Error::Service(format!("no answer within {} s", ANSWER.as_secs()).into());
    tokio::time::timeout(ANSWER, answer).await.unwrap_or_else(|_| Err(late()))
}
