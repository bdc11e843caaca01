//! The controller: one loop a kind, around one context.
//!
//! Every loop is level-triggered: observe, decide by a pure `plan`, apply, report. Every decision can be made again
//! from Kubernetes and Redis alone; what is kept in memory only saves work.

mod bootstrap;
mod budget;
mod cache;
mod claim;
mod client;
mod context;
mod credentials;
mod election;
mod events;
mod fate;
mod gated;
mod leadership;
mod lock;
mod nodes;
mod pods;
mod renewals;
mod scope;
mod store;
mod stores;
mod watched;
mod writes;

use std::fmt::Debug;
use std::ops::Deref;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use backon::ExponentialBuilder;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::controller::Action;
use kube::runtime::reflector::{self, reflector};
use kube::runtime::utils::{Backoff, ResetTimerBackoff};
use kube::runtime::watcher::{self, ExponentialBackoff};
use kube::runtime::{Controller, WatchStreamExt};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tracing::warn;

use crate::api::gated::LOCK;
use crate::api::{CONTROLLER_NAME, DistributedLock, LockClaim};
use crate::lease::InvalidName;
use crate::metrics::Metrics;
use crate::store::StoreError;
pub use bootstrap::Bootstrap;
use budget::Budget;
use cache::{Cache, Filling};
pub(crate) use claim::holder_id;
use claim::{Arrivals, Departures, Latest};
pub use client::client;
use context::{Context, Triggers, lock_ref};
use election::Electorates;
use events::Events;
use gated::Gated;
pub use leadership::Election;
use leadership::Leadership;
pub(crate) use leadership::random;
pub(crate) use lock::{holder, share};
use pods::Pods;
pub use scope::Scope;
use stores::{OpenStore, Stores};

/// Objects of one kind looked at at the same time.
const CONCURRENCY: u16 = 16;
/// How long one look at an object may take.
const LOOK_LIMIT: Duration = Duration::from_secs(30);
/// When something that will be over in a moment is looked at again.
const SOON: Duration = Duration::from_millis(250);
/// Refreshes of published expiries, a second, of the whole controller.
const REFRESHES_PER_SECOND: f64 = 20.0;

/// How long an old password of a namespace works, unless told otherwise.
pub const PASSWORD_OVERLAP: Duration = Duration::from_secs(3600);

/// What the controller is started with.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Only stores with this `spec.controllerName` are touched.
    pub controller_name: String,
    /// Where Secrets are read, and where the Lease of the leading replica is.
    pub namespace: String,
    /// Where locks and claims are served.
    pub scope: Scope,
    /// Whether nodes may be read. If not, a pod that is gone without evidence that it has ended is one that can't be
    /// asked, and a leader that isn't Ready leads on.
    pub reads_nodes: bool,
    /// Who reports Events.
    pub instance: String,
    /// How replicas elect the one that works; `None`: this is the only one.
    pub election: Option<Election>,
    /// How long an old password of a namespace works after another was made; `None`: namespaces get no credentials.
    pub direct: Option<Duration>,
    /// What to create at the start if it isn't there.
    pub bootstrap: Option<Bootstrap>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            controller_name: CONTROLLER_NAME.into(),
            namespace: "leasehold-system".into(),
            scope: Scope::All,
            reads_nodes: true,
            instance: "leasehold".into(),
            election: Some(Election::default()),
            direct: Some(PASSWORD_OVERLAP),
            bootstrap: None,
        }
    }
}

/// Why a loop failed, or had to end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The API server refused, or couldn't be asked.
    #[error("the API server")]
    Kube(#[from] kube::Error),
    /// Redis gave no answer.
    #[error("the store")]
    Store(#[from] StoreError),
    /// A name that can't be a lock's.
    #[error("the name of a lock")]
    Name(#[from] InvalidName),
    /// Another controller reigns over a store: this one has nothing to say any more.
    #[error("superseded on the LockStore {store}: {why}")]
    Superseded {
        /// Its name.
        store: String,
        /// What was found.
        why: String,
    },
    /// Another replica leads, or may lead.
    #[error("this replica leads no more: {0}")]
    LeadershipLost(&'static str),
    /// The API server or the store didn't answer.
    #[error("a look took longer than {0:?}")]
    Slow(Duration),
    /// A watch ended for good.
    #[error("the watch of {0} has ended")]
    WatchEnded(&'static str),
    /// A task panicked.
    #[error("a task has died: {0}")]
    TaskDied(String),
    /// A namespace that is to be served is not this controller's to read: its holds would be taken for none.
    #[error("the namespace {namespace:?} can't be served: {why}; give the Role there, or take it out of --namespaces")]
    Unreadable {
        /// Which; empty: all of them.
        namespace: String,
        /// What the API server says.
        why: String,
    },
    /// No password can be made.
    #[error(transparent)]
    NoRandomness(#[from] crate::random::NoRandomness),
}

impl Error {
    fn label(&self) -> &'static str {
        match self {
            Error::Kube(error) if writes::is_conflict(error) => "conflict",
            Error::Kube(_) => "kube",
            Error::Store(error) => error.label(),
            Error::Name(_) => "name",
            Error::Superseded { .. } => "superseded",
            Error::LeadershipLost(_) => "leadership",
            Error::Slow(_) => "slow",
            Error::WatchEnded(_) => "watch",
            Error::TaskDied(_) => "task",
            Error::Unreadable { .. } => "forbidden",
            Error::NoRandomness(_) => "randomness",
        }
    }
}

/// How a watch that was interrupted is taken up again: sooner than client-go's 30 s, for somebody may wait for a lock.
fn watch_backoff() -> impl Backoff {
    let (first, longest) = (Duration::from_millis(200), Duration::from_secs(4));
    let pauses = ExponentialBuilder::new().with_min_delay(first).with_max_delay(longest).with_jitter();
    ResetTimerBackoff::new(ExponentialBackoff::from(pauses.without_max_times()), Duration::from_secs(60))
}

fn received<T: Send + 'static>(receiver: UnboundedReceiver<T>) -> impl Stream<Item = T> + Send + 'static {
    stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) })
}

/// Stands by until this replica leads, then works until `shutdown` resolves, a loop fails or another replica leads.
///
/// # Errors
/// [`Error`] of the loop that failed; the process should end, and its successor begins a new reign.
pub async fn run(
    client: Client,
    settings: Settings,
    metrics: Arc<Metrics>,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), Error> {
    let mut shutdown = std::pin::pin!(shutdown);
    let Some(election) = settings.election else {
        return tokio::select! {
            result = reign(client, settings, metrics) => result,
            () = shutdown => Ok(()),
        };
    };
    let mut leadership = Leadership::new(client.clone(), &settings, election);
    tokio::select! {
        () = leadership.acquire() => metrics.leads(true),
        () = &mut shutdown => return Ok(()),
    }
    let result = tokio::select! {
        result = reign(client, settings, metrics.clone()) => result,
        error = leadership.keep() => Err(error),
        () = shutdown => Ok(()),
    };
    metrics.leads(false);
    // Everything that this replica did has ended here.
    leadership.release().await;
    result
}

/// Works until a loop fails.
async fn reign(client: Client, settings: Settings, metrics: Arc<Metrics>) -> Result<(), Error> {
    settings.scope.check(&client).await?;
    bootstrap::create(&client, &settings).await?;
    let (lock_triggers, triggered_locks) = mpsc::unbounded_channel();
    let (claim_triggers, triggered_claims) = mpsc::unbounded_channel();
    let (pod_triggers, triggered_pods) = mpsc::unbounded_channel();
    let credentials = Arc::default();
    let triggers = Triggers { locks: lock_triggers, claims: claim_triggers, pods: pod_triggers, credentials };
    let (scope, all) = (&settings.scope, watcher::Config::default());
    let (locks, known_locks) = objects(scope.watch::<DistributedLock>(&client, &all), |_, _| {});
    let (labelled, pods_writer) = reflector::store();
    let (labelled, pods_filling) = Cache::new(labelled);
    let pods = Pods::new(client.clone(), settings.reads_nodes, triggers.clone(), labelled.clone());
    let (arrivals, latest, renewals) = (Arc::new(Arrivals::default()), Arc::new(Latest::default()), Arc::default());
    let departures = Departures { latest: latest.clone(), pods: pods.clone(), renewals: Arc::clone(&renewals) };
    let (noted, to_pods) = (arrivals.clone(), triggers.clone());
    let (claims, known_claims) = objects(scope.watch::<LockClaim>(&client, &all), move |event, claims| {
        noted.note(event);
        departures.note(event, claims);
        to_pods.claim_changed(event);
    });
    let gated = Arc::new(Gated::default());
    let (followed, remembered) = (pods.clone(), gated.clone());
    let told = scope.watch::<Pod>(&client, &all.labels(LOCK)).map_ok(|event| event.modify(gated::slim));
    let in_line = arrivals.clone();
    let waiting = reflected(pods_writer, (labelled, pods_filling), told, move |event, labelled| {
        in_line.note_pod(event, gated::stands_at);
        followed.labelled_changed(event);
        remembered.note(event, labelled);
    });
    let ctx = Arc::new(Context {
        stores: Arc::new(Stores::default()),
        locks: known_locks,
        claims: known_claims,
        pods,
        gated,
        electorates: Electorates::new(client.clone(), triggers.clone()),
        renewals,
        refreshes: Budget::new(REFRESHES_PER_SECOND),
        events: Events::new(client.clone(), &settings.controller_name, &settings.instance),
        metrics,
        triggers,
        memories: Mutex::default(),
        arrivals,
        latest,
        client,
        settings,
    });
    let locks = locks.reconcile_on(received(triggered_locks)).run(lock_look, on_error, ctx.clone());
    let claims = claims.reconcile_on(received(triggered_claims)).run(claim_look, on_error, ctx.clone());
    let waiting = waiting.reconcile_on(received(triggered_pods)).run(pod_look, on_error, ctx.clone());
    tokio::select! {
        result = store::run(ctx.clone()) => result,
        result = credentials::run(ctx.clone()) => result,
        () = renewals::run(&ctx.renewals, &ctx.stores, &ctx.triggers, &ctx.metrics) => Ok(()),
        () = locks.for_each(|_| async {}) => Err(Error::WatchEnded("DistributedLock")),
        () = claims.for_each(|_| async {}) => Err(Error::WatchEnded("LockClaim")),
        () = waiting.for_each(|_| async {}) => Err(Error::WatchEnded("Pod")),
    }
}

/// The loop of a kind, over what the watch tells. `note` hears all of it, in its order, once the cache has it.
fn objects<K>(
    told: impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send + 'static,
    note: impl FnMut(&watcher::Event<K>, &reflector::Store<K>) + Send + 'static,
) -> (Controller<K>, Cache<K>)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync,
{
    let (objects, writer) = reflector::store();
    let (cache, filling) = Cache::new(objects);
    (reflected(writer, (cache.clone(), filling), told, note), cache)
}

fn reflected<K>(
    writer: reflector::store::Writer<K>,
    (cache, filling): (Cache<K>, Filling),
    told: impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send + 'static,
    mut note: impl FnMut(&watcher::Event<K>, &reflector::Store<K>) + Send + 'static,
) -> Controller<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync,
{
    let config = kube::runtime::controller::Config::default().concurrency(CONCURRENCY);
    let objects = cache.deref().clone();
    let told = reflector(writer, told).inspect_ok(move |event| {
        note(event, &cache);
        filling.heed(event);
    });
    let controller = Controller::for_stream(told.applied_objects(), objects);
    controller.with_config(config).trigger_backoff(watch_backoff())
}

async fn pod_look(pod: Arc<Pod>, ctx: Arc<Context>) -> Result<Action, Error> {
    in_time(gated::reconcile(pod, ctx)).await
}

async fn lock_look(lock: Arc<DistributedLock>, ctx: Arc<Context>) -> Result<Action, Error> {
    in_time(lock::reconcile(lock, ctx)).await
}

async fn claim_look(claim: Arc<LockClaim>, ctx: Arc<Context>) -> Result<Action, Error> {
    in_time(claim::reconcile(claim, ctx)).await
}

/// A look that hangs gives its place to others; whatever it has done, the next one goes on from there.
async fn in_time(look: impl Future<Output = Result<Action, Error>>) -> Result<Action, Error> {
    tokio::time::timeout(LOOK_LIMIT, look).await.unwrap_or(Err(Error::Slow(LOOK_LIMIT)))
}

fn on_error<K>(_: Arc<K>, error: &Error, ctx: Arc<Context>) -> Action {
    ctx.metrics.reconcile_failed(error.label());
    let cause = std::error::Error::source(error).map(ToString::to_string).unwrap_or_default();
    match error {
        Error::Kube(error) if writes::is_conflict(error) => {}
        _ => warn!(%error, cause, "a look failed; it is tried again"),
    }
    Action::requeue(Duration::from_millis(500))
}
