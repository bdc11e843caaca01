//! `leasehold release-finalizers`: what an uninstall runs first.
//!
//! # Sequence
//! 1. the controller's Deployment is scaled to nothing, and its pods are waited for: nobody adds a finalizer any more;
//! 2. our finalizer goes from the claims, then from the locks, then from the stores of this controller.
//!
//! Everything else stays: the objects, what their statuses say, and Redis. A controller that is installed again goes on
//! from there. Each step may be repeated; one that was killed half-way leaves fewer finalizers.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, bail};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::Instant;

use super::connect::{ConnectArgs, InstallArgs, block_on};
use crate::api::gated::{LOCK, is_gated};
use crate::api::{DistributedLock, FINALIZER, LockClaim, LockStore};
use crate::controller::Scope;

/// How often is looked, and tried.
const EVERY: Duration = Duration::from_millis(500);
/// How often an object that somebody else writes is tried.
const TRIES: u32 = 10;

/// Takes our finalizers off, so that everything can be deleted without a controller.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct ReleaseFinalizersArgs {
    #[command(flatten)]
    connect: ConnectArgs,
    #[command(flatten)]
    install: InstallArgs,
    /// The controller's Deployment: it is scaled to nothing first. Absent: no controller may run.
    #[arg(long, value_name = "NAME")]
    controller_deployment: Option<String>,
    /// Seconds to wait for the controller's pods to end.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u16,
}

/// Runs it.
///
/// # Errors
/// What the API server refused, or a controller that doesn't end.
pub(super) fn run(args: ReleaseFinalizersArgs) -> anyhow::Result<()> {
    block_on(release(args))
}

async fn release(args: ReleaseFinalizersArgs) -> anyhow::Result<()> {
    let scope = args.install.scope();
    let InstallArgs { controller_name, namespace, .. } = args.install;
    let client = args.connect.client().await?;
    if let Some(name) = &args.controller_deployment {
        let limit = Duration::from_secs(args.timeout.into());
        end_controller(&client, &namespace, name, limit).await?;
    }
    let all = ListParams::default();
    let mut stores = Api::<LockStore>::all(client.clone()).list(&all).await.context("LockStores")?.items;
    stores.retain(|store| store.spec.controller_name == controller_name);
    let ours: BTreeSet<String> = stores.iter().map(ResourceExt::name_any).collect();
    let locks = scope.list::<DistributedLock>(&client, &all).await.context("DistributedLocks")?;
    let (locks, theirs): (Vec<_>, Vec<_>) = locks.into_iter().partition(|lock| ours.contains(lock.store_name()));
    let theirs: BTreeSet<_> = theirs.iter().map(|lock| (lock.namespace(), lock.name_any())).collect();
    let mut claims = scope.list::<LockClaim>(&client, &all).await.context("LockClaims")?;
    claims.retain(|claim| {
        let of_others = |name: &str| theirs.contains(&(claim.namespace(), name.to_owned()));
        !claim.spec.locks.iter().any(|asked| of_others(&asked.name))
    });
    let released = [
        ("claims", strip(&client, claims, namespaced::<LockClaim>).await?),
        ("locks", strip(&client, locks, namespaced::<DistributedLock>).await?),
        ("stores", strip(&client, stores, |client, _| Api::all(client)).await?),
    ];
    for (what, count) in released {
        println!("{count} {what} can be deleted without a controller");
    }
    println!("They and what is in Redis stay: a controller that is installed again goes on from there.");
    name_gated(&scope, &client).await
}

/// Nobody lets them go any more.
async fn name_gated(scope: &Scope, client: &Client) -> anyhow::Result<()> {
    let mut pods = scope.list::<Pod>(client, &ListParams::default().labels(LOCK)).await.context("Pods")?;
    pods.retain(is_gated);
    for pod in &pods {
        println!("{}/{} still waits for a lock", pod.namespace().unwrap_or_default(), pod.name_any());
    }
    if !pods.is_empty() {
        println!(
            "Nobody lets these {} pods go until a controller is installed again: delete them otherwise.",
            pods.len()
        );
    }
    Ok(())
}

/// Nobody may add finalizers while they are taken off.
async fn end_controller(client: &Client, namespace: &str, name: &str, limit: Duration) -> anyhow::Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let Some(deployment) = deployments.get_opt(name).await.context("the controller's Deployment")? else {
        return Ok(());
    };
    let none = Patch::Merge(json!({ "spec": { "replicas": 0 } }));
    deployments.patch_scale(name, &PatchParams::default(), &none).await.context("the controller can't be ended")?;
    let labels = deployment.spec.selector.match_labels.unwrap_or_default();
    let selector: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let (of_it, until) = (ListParams::default().labels(&selector.join(",")), Instant::now() + limit);
    loop {
        let left = pods.list(&of_it).await.context("the controller's pods")?.items.len();
        if left == 0 {
            println!("the controller has ended");
            return Ok(());
        }
        if Instant::now() > until {
            bail!("{left} pods of the controller still run after {} s", limit.as_secs());
        }
        tokio::time::sleep(EVERY).await;
    }
}

fn namespaced<K>(client: Client, object: &K) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
{
    Api::namespaced(client, &object.namespace().unwrap_or_default())
}

/// Takes our finalizer off, and says from how many.
async fn strip<K>(client: &Client, objects: Vec<K>, api: impl Fn(Client, &K) -> Api<K>) -> anyhow::Result<usize>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let mut count = 0;
    for object in objects.into_iter().filter(|object| object.finalizers().iter().any(|f| f == FINALIZER)) {
        strip_one(&api(client.clone(), &object), object).await?;
        count += 1;
    }
    Ok(count)
}

async fn strip_one<K>(api: &Api<K>, mut object: K) -> anyhow::Result<()>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
{
    let name = object.name_any();
    for _ in 0..TRIES {
        let finalizers: Vec<_> = object.finalizers().iter().filter(|f| *f != FINALIZER).cloned().collect();
        let metadata = json!({ "finalizers": finalizers, "resourceVersion": object.resource_version() });
        let patch = Patch::Merge(json!({ "metadata": metadata }));
        match api.patch(&name, &PatchParams::default(), &patch).await {
            Ok(_) => return Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(error).with_context(|| format!("the finalizer of {name}")),
        }
        match api.get_opt(&name).await.with_context(|| name.clone())? {
            Some(found) => object = found,
            None => return Ok(()),
        }
    }
    bail!("{name} is being written by somebody else")
}
