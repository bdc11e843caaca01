//! The servers of one run: Redis behind a proxy, two controllers, locks.

use std::sync::Arc;

use leasehold::api::{DistributedLock, ElectionSpec, LabelSelector};
use leasehold::store::{Endpoint, Store};

use super::arena::{ANOTHER, Arena, ELECTED, LOCKS, MUTEX, SEMAPHORE};
use super::elections::APP;
use super::watches::Watches;
use crate::controller::fixture::{Fixture, options, ready};
use crate::support::history::{Event, Micros, Recorder, boottime};
use crate::support::{ApiProxy, Controller, ControllerOptions, LIMIT, Proxy, RedisServer, TestNamespace, wait_for};

/// Lease, renew deadline and retry period of the election among the controllers.
const ELECTION: (u16, u16, f64) = (3, 2, 0.5);
/// Of all locks, in seconds.
pub(super) const LEASE: i32 = 2;
/// Of the semaphore.
pub(super) const PERMITS: i32 = 2;

/// What a run is to be on.
#[derive(Default)]
pub(super) struct Set {
    /// Options of the Redis server.
    pub(super) redis: Vec<&'static str>,
    /// The library, if another one than the controller's own is to be there.
    pub(super) library: Option<String>,
    /// A control plane of its own, that may be broken.
    pub(super) alone: bool,
    /// Mutexes besides those that every run has.
    pub(super) locks: Vec<&'static str>,
    /// The controllers reach the API server through proxies.
    pub(super) api_proxy: bool,
}

/// What is between the controllers and the API server.
pub(super) struct Api {
    pub(super) network: Proxy,
    pub(super) http: ApiProxy,
}

/// One of the two controllers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Replica {
    First,
    Second,
}

/// Everything that can be broken.
pub(super) struct Stage {
    pub(super) f: Fixture,
    other: Controller,
    pub(super) proxy: Proxy,
    pub(super) api: Option<Api>,
    pub(super) recorder: Recorder,
    pub(super) arena: Arc<Arena>,
    watches: Watches,
}

impl Stage {
    pub(super) async fn new(set: Set) -> Self {
        let test = if set.alone { TestNamespace::alone().await } else { TestNamespace::new().await };
        Self::on(test, set).await
    }

    /// Watches again, from the beginning.
    pub(super) fn watch_anew(&mut self) {
        self.watches.restart();
    }

    async fn on(test: TestNamespace, set: Set) -> Self {
        let redis = RedisServer::with(&set.redis).await;
        if let Some(library) = &set.library {
            let store = Store::connect(&redis.endpoint(), "any").expect("a store");
            store.load_library(library).await.expect("the library is loaded");
            // On disk before there is any data: a server that comes back empty still has it.
            redis.send::<()>("SAVE").await;
        }
        let proxy = Proxy::start(redis.port());
        let api = set.api_proxy.then(|| {
            let http = ApiProxy::start(&test.plane().kubeconfig("controller"));
            Api { network: Proxy::start(http.port()), http }
        });
        let kubeconfig = api.as_ref().map(|api| api.http.kubeconfig(api.network.port()));
        let change = |instance: &str| {
            let (address, instance, kubeconfig) = (proxy.address(), instance.to_owned(), kubeconfig.clone());
            move |options: &mut ControllerOptions| {
                options.redis_address = Some(address);
                options.kubeconfig = kubeconfig.unwrap_or_else(|| options.kubeconfig.clone());
                options.election = Some(ELECTION);
                options.instance = Some(instance);
            }
        };
        let f = Fixture::on(test.clone(), redis, change("first")).await;
        let mut second = options(&f.test, &f.redis);
        change("second")(&mut second);
        let other = Controller::start(second).await;
        f.store_is("is Ready", |store| ready(store).is_some_and(|(is, _)| is)).await;
        let (recorder, endpoint) = (Recorder::default(), Endpoint::plain("127.0.0.1", proxy.port()));
        let locks = [LOCKS.to_vec(), set.locks.clone()].concat();
        let watches = Watches::start(&test, Store::connect(&endpoint, test.name()).expect("a store"), &recorder, locks);
        let arena = Arc::new(Arena::new(test, endpoint, recorder.clone(), &watches));
        let stage = Self { f, other, proxy, api, recorder, arena, watches };
        stage.declare(&set.locks).await;
        stage
    }

    async fn declare(&self, others: &[&str]) {
        self.f.pods().node(self.f.test.name(), true).await;
        self.declare_lock(MUTEX, 1, false).await;
        self.declare_lock(SEMAPHORE, PERMITS, false).await;
        self.declare_lock(ANOTHER, 1, false).await;
        self.declare_lock(ELECTED, 1, true).await;
        for lock in others {
            self.declare_lock(lock, 1, false).await;
        }
    }

    /// A lock; it can be held when this returns.
    pub(super) async fn declare_lock(&self, name: &str, permits: i32, elects: bool) {
        let sent = boottime();
        let match_labels = [("app".to_owned(), APP.to_owned())].into();
        let selector = LabelSelector { match_labels, match_expressions: Vec::new() };
        let election = elects.then_some(ElectionSpec { selector, failover_after_seconds: 1 });
        self.f
            .lock(name, |spec| {
                (spec.permits, spec.lease_duration_seconds, spec.election) = (permits, LEASE, election);
            })
            .await;
        self.note_configuration(name, sent, |_| true).await;
    }

    /// Waits until Redis has a configuration, and takes it down.
    pub(super) async fn note_configuration(
        &self,
        name: &str,
        sent: Micros,
        is: impl Fn(&leasehold::store::Inspection) -> bool,
    ) {
        let (store, key) = (self.arena.store(), self.arena.key(name));
        let known = async || store.inspect(&key).await.ok().flatten().filter(|record| is(record));
        let record = wait_for(&format!("the record of {name}"), LIMIT, known).await;
        let (lock, permits, lease) = (name.to_owned(), record.permits, record.lease * 1_000);
        self.recorder.note(Event::Configured { lock, permits, lease, sent });
    }

    /// The controller that leads.
    pub(super) async fn leading(&self) -> Replica {
        self.leading_with("leads", "").await
    }

    /// The one that leads, once its metrics have this line, too.
    async fn leading_with(&self, what: &str, line: &str) -> Replica {
        let replicas = [(Replica::First, &self.f.controller), (Replica::Second, &self.other)];
        let leading = async || {
            for (replica, controller) in replicas {
                let metrics = controller.get("/metrics").await;
                let has = |line: &str| metrics.as_ref().is_some_and(|(_, metrics)| metrics.contains(line));
                if has("\nleader_election_master_status 1\n") && has(line) {
                    return Some(replica);
                }
            }
            None
        };
        wait_for(&format!("a controller {what}"), LIMIT, leading).await
    }

    pub(super) fn controller(&mut self, replica: Replica) -> &mut Controller {
        match replica {
            Replica::First => &mut self.f.controller,
            Replica::Second => &mut self.other,
        }
    }

    /// What a kubelet does: starts controllers again that have ended.
    pub(super) async fn revive(&mut self) {
        for replica in [Replica::First, Replica::Second] {
            let controller = self.controller(replica);
            if controller.process().exit_status().is_some() {
                controller.restart().await;
            }
        }
    }

    /// Waits until every lock grants again: its gate is open and its quarantine is over. What the store says may be of
    /// before the fault: the leader says itself that it has opened it.
    pub(super) async fn heals(&mut self) {
        self.revive().await;
        let open = format!("\nleasehold_store_ready{{store=\"{}\"}} 1\n", self.f.store_name());
        self.leading_with("has opened the store", &open).await;
        self.f.store_is("is Ready", |store| ready(store).is_some_and(|(is, _)| is)).await;
        let store = self.arena.store();
        for lock in &self.arena.locks {
            let key = self.arena.key(lock);
            let grants = async || {
                let record = store.inspect(&key).await.ok().flatten()?;
                (record.gate_open && record.quarantine == 0 && !record.sealed).then_some(())
            };
            wait_for(&format!("{lock} grants again"), 2 * LIMIT, grants).await;
        }
    }

    /// The lock as etcd has it.
    pub(super) async fn lock(&self, name: &str) -> Option<DistributedLock> {
        self.f.test.api::<DistributedLock>().get_opt(name).await.ok().flatten()
    }
}
