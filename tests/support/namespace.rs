//! A namespace of one's own on a control plane that all tests of a binary share.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::api::{DeleteParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::OnceCell;

use super::{ControlPlane, LIMIT, wait_for};

/// The plane that all tests share. It ends with the process.
async fn shared() -> &'static ControlPlane {
    static SHARED: OnceCell<ControlPlane> = OnceCell::const_new();
    SHARED
        .get_or_init(|| async {
            let plane = ControlPlane::start().await;
            plane.install_crds();
            plane
        })
        .await
}

/// One test's namespace.
#[derive(Clone)]
pub(crate) struct TestNamespace {
    plane: &'static ControlPlane,
    client: Client,
    name: String,
}

impl TestNamespace {
    pub(crate) async fn new() -> Self {
        Self::on(shared().await).await
    }

    /// On a control plane that no other test uses, so that it may be stopped. It ends with the process.
    pub(crate) async fn alone() -> Self {
        Self::alone_on(ControlPlane::start().await).await
    }

    /// As [`TestNamespace::alone`], where a feature of Kubernetes is off.
    pub(crate) async fn without(feature: &str) -> Self {
        Self::alone_on(ControlPlane::start_without(Some(feature)).await).await
    }

    async fn alone_on(plane: ControlPlane) -> Self {
        plane.install_crds();
        Self::on(Box::leak(Box::new(plane))).await
    }

    async fn on(plane: &'static ControlPlane) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("test-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let client = plane.client().await;
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let mut namespace = Namespace::default();
        namespace.metadata.name = Some(name.clone());
        namespaces.create(&PostParams::default(), &namespace).await.expect("a namespace");
        // Without its service account no pod is accepted.
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), &name);
        wait_for("the default service account", LIMIT, async || accounts.get_opt("default").await.ok()?).await;
        Self { plane, client, name }
    }

    pub(crate) fn plane(&self) -> &'static ControlPlane {
        self.plane
    }

    pub(crate) fn client(&self) -> Client {
        self.client.clone()
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The API of a kind in this namespace.
    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client(), &self.name)
    }

    /// Runs kubectl in this namespace, words separated by spaces; its output, or its error.
    pub(crate) async fn kubectl(&self, words: &str) -> Result<String, String> {
        let (plane, name, words) = (self.plane, self.name.clone(), words.to_owned());
        let run = move || {
            let mut args = vec!["--namespace", &name];
            args.extend(words.split_whitespace());
            plane.kubectl(&args)
        };
        tokio::task::spawn_blocking(run).await.expect("kubectl")
    }

    /// Applies a manifest with kubectl in this namespace; its output, or its error.
    pub(crate) async fn kubectl_apply(&self, manifest: &str) -> Result<String, String> {
        let (plane, name, manifest) = (self.plane, self.name.clone(), manifest.to_owned());
        tokio::task::spawn_blocking(move || plane.apply(&name, &manifest)).await.expect("kubectl")
    }

    /// Waits until an object is as it should be, and returns it.
    pub(crate) async fn until<K>(&self, name: &str, what: &str, limit: Duration, is: impl Fn(&K) -> bool) -> K
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
    {
        let api = self.api::<K>();
        let last = std::sync::Mutex::new(None);
        let found = super::eventually(limit, async || {
            let object = api.get_opt(name).await.ok().flatten()?;
            let matches = is(&object);
            *last.lock().expect("not poisoned") = Some(object.clone());
            matches.then_some(object)
        });
        match found.await {
            Some(object) => object,
            None => panic!("waited {limit:?} in vain: {name} {what}; it is {:#?}", last.into_inner()),
        }
    }

    /// Waits until there is no such object.
    pub(crate) async fn gone<K>(&self, name: &str, limit: Duration)
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
    {
        let api = self.api::<K>();
        let gone = async || api.get_opt(name).await.is_ok_and(|object| object.is_none()).then_some(());
        wait_for(&format!("{name} is gone"), limit, gone).await;
    }

    /// Deletes the namespace and doesn't wait.
    pub(crate) async fn delete(&self) {
        let namespaces: Api<Namespace> = Api::all(self.client());
        namespaces.delete(&self.name, &DeleteParams::default()).await.expect("deleted");
    }
}
