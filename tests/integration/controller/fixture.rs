//! One controller, one Redis, one namespace.

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::{Resource, ResourceExt};
use leasehold::api::condition::{self, reasons, types};
use leasehold::api::{
    DistributedLock, DistributedLockSpec, HolderKind, HolderRef, LockClaim, LockClaimSpec, LockStore, LockStoreSpec,
    Standalone,
};
use leasehold::lease::{HolderId, LockKey, Mode, Request, Wait};
use leasehold::store::Store;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::support::{Controller, ControllerOptions, LIMIT, PodActor, RedisServer, TestNamespace, wait_for};

/// A namespace and a Redis. The store and the controller's name are those of the namespace, so that tests don't meet.
pub(crate) struct Site {
    pub(crate) test: TestNamespace,
    pub(crate) redis: RedisServer,
}

/// A site and the controller that works there.
pub(crate) struct Fixture {
    site: Site,
    pub(crate) controller: Controller,
}

impl Deref for Fixture {
    type Target = Site;

    fn deref(&self) -> &Site {
        &self.site
    }
}

impl DerefMut for Fixture {
    fn deref_mut(&mut self) -> &mut Site {
        &mut self.site
    }
}

impl Fixture {
    /// A controller over an open store.
    pub(crate) async fn new() -> Self {
        let fixture = Self::over(RedisServer::start().await).await;
        fixture.store_is("is Ready", is_ready).await;
        fixture
    }

    /// A controller over this Redis, whatever state that is in.
    pub(crate) async fn over(redis: RedisServer) -> Self {
        Self::with(redis, |_| {}).await
    }

    /// As `over`, with other options.
    pub(crate) async fn with(redis: RedisServer, change: impl FnOnce(&mut ControllerOptions)) -> Self {
        Self::on(TestNamespace::new().await, redis, change).await
    }

    /// On a control plane that the test may stop.
    pub(crate) async fn alone() -> Self {
        Self::on(TestNamespace::alone().await, RedisServer::start().await, |_| {}).await
    }

    /// On a namespace of the test.
    pub(crate) async fn on(
        test: TestNamespace,
        redis: RedisServer,
        change: impl FnOnce(&mut ControllerOptions),
    ) -> Self {
        let mut options = options(&test, &redis);
        change(&mut options);
        let controller = Controller::start(options).await;
        Self::of(Site { test, redis }, controller)
    }

    /// A site and its controller.
    pub(crate) fn of(site: Site, controller: Controller) -> Self {
        Self { site, controller }
    }
}

impl Site {
    pub(crate) fn store_name(&self) -> String {
        self.test.name().to_owned()
    }

    pub(crate) fn stores(&self) -> Api<LockStore> {
        Api::all(self.test.client())
    }

    /// Waits until the store is as it should be.
    pub(crate) async fn store_is(&self, what: &str, is: impl Fn(&LockStore) -> bool) -> LockStore {
        store_is(&self.stores(), self.test.name(), what, is).await
    }

    /// Creates a lock of this store, changed as the test wants.
    pub(crate) async fn lock(&self, name: &str, change: impl FnOnce(&mut DistributedLockSpec)) -> DistributedLock {
        let mut spec = DistributedLockSpec { store_name: self.store_name(), ..DistributedLockSpec::default() };
        change(&mut spec);
        self.create(DistributedLock::new(name, spec)).await
    }

    /// Creates a lock and waits until it has a record.
    pub(crate) async fn ready_lock(
        &self,
        name: &str,
        change: impl FnOnce(&mut DistributedLockSpec),
    ) -> DistributedLock {
        self.lock(name, change).await;
        self.lock_is(name, "is Ready", |lock| lock_condition(lock, types::READY)).await
    }

    /// Creates a claim for a lock, changed as the test wants.
    pub(crate) async fn claim(&self, name: &str, lock: &str, change: impl FnOnce(&mut LockClaimSpec)) -> LockClaim {
        let mut spec = LockClaimSpec::for_lock(lock);
        change(&mut spec);
        self.create(LockClaim::new(name, spec)).await
    }

    async fn create<K>(&self, object: K) -> K
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + std::fmt::Debug,
        K: Serialize + DeserializeOwned,
    {
        self.test.api::<K>().create(&PostParams::default(), &object).await.expect("it is accepted")
    }

    /// Merges into a spec.
    pub(crate) async fn change<K>(&self, name: &str, spec: Value) -> K
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
    {
        let patch = Patch::Merge(json!({"spec": spec}));
        self.test.api::<K>().patch(name, &PatchParams::default(), &patch).await.expect("the change is accepted")
    }

    /// Deletes, and doesn't wait.
    pub(crate) async fn delete<K>(&self, name: &str)
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned,
    {
        self.test.api::<K>().delete(name, &DeleteParams::default()).await.expect("it is deleted");
    }

    pub(crate) async fn lock_is(
        &self,
        name: &str,
        what: &str,
        is: impl Fn(&DistributedLock) -> bool,
    ) -> DistributedLock {
        self.test.until(name, what, LIMIT, is).await
    }

    pub(crate) async fn claim_is(&self, name: &str, what: &str, is: impl Fn(&LockClaim) -> bool) -> LockClaim {
        self.test.until(name, what, LIMIT, is).await
    }

    /// Waits until a claim holds, and returns its token.
    pub(crate) async fn token_of(&self, claim: &str) -> i64 {
        let claim = self.claim_is(claim, "is Held", |claim| claim_condition(claim, types::HELD)).await;
        claim.status.and_then(|status| status.fencing_token).expect("a claim that holds has a token")
    }

    /// Waits until a condition of a claim has this reason.
    pub(crate) async fn claim_reason(&self, name: &str, type_: &str, reason: &str) -> LockClaim {
        self.claim_is(name, &format!("is {type_} with reason {reason}"), |claim| {
            let conditions = claim.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
            condition::get(conditions, type_).is_some_and(|condition| condition.reason == reason)
        })
        .await
    }

    /// Waits until a claim stands in its queue, or has been granted. That it has a status says nothing: a new object
    /// has the default conditions.
    pub(crate) async fn has_its_place(&self, name: &str) -> LockClaim {
        self.claim_is(name, "stands in the queue", |claim| {
            let conditions = claim.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
            let held = condition::get(conditions, types::HELD);
            held.is_some_and(|held| [reasons::WAITING, reasons::GRANTED, reasons::HELD].contains(&held.reason.as_str()))
        })
        .await
    }

    /// The notes of all Events of this reason about an object of the namespace, or about the store, oldest first.
    pub(crate) async fn events(&self, about: &str, reason: &str) -> Vec<String> {
        let namespace = if about == self.store_name() { "default" } else { self.test.name() };
        self.events_in(namespace, about, reason).await
    }

    async fn events_in(&self, namespace: &str, about: &str, reason: &str) -> Vec<String> {
        let events = Api::<Event>::namespaced(self.test.client(), namespace)
            .list(&ListParams::default())
            .await
            .expect("a list")
            .items;
        let of = |event: &&Event| {
            event.reason.as_deref() == Some(reason)
                && event.regarding.as_ref().is_some_and(|object| object.name.as_deref() == Some(about))
        };
        let mut of: Vec<&Event> = events.iter().filter(of).collect();
        of.sort_by_key(|event| event.event_time.as_ref().map(|at| at.0));
        of.into_iter().map(|event| event.note.clone().unwrap_or_default()).collect()
    }

    /// Waits until there is an Event of this reason about an object, and returns its note.
    pub(crate) async fn event(&self, about: &str, reason: &str) -> String {
        let what = format!("an Event {reason} about {about}");
        wait_for(&what, LIMIT, async || self.events(about, reason).await.pop()).await
    }

    /// Waits until there is an Event of this reason about the namespace, and returns its note.
    pub(crate) async fn namespace_event(&self, reason: &str) -> String {
        let name = self.test.name();
        let what = format!("an Event {reason} about the namespace {name}");
        wait_for(&what, LIMIT, async || self.events_in(name, name, reason).await.pop()).await
    }

    /// How often the controller has written the status of an object of the namespace.
    pub(crate) fn status_writes(&self, name: &str) -> usize {
        self.status_tries(name, 200).len()
    }

    /// When it has tried to, with this answer.
    pub(crate) fn status_tries(&self, name: &str, code: u16) -> Vec<Timestamp> {
        let writes = self.test.plane().controller_writes();
        let ours = writes.iter().filter(|entry| entry.namespace == self.test.name() && entry.name == name);
        ours.filter(|entry| entry.subresource == "status" && entry.code == code).map(|entry| entry.time).collect()
    }

    pub(crate) fn pods(&self) -> PodActor {
        PodActor::new(self.test.client(), self.test.name())
    }

    /// What a workload calls, on the same Redis.
    pub(crate) fn workload(&self) -> Store {
        Store::connect(&self.redis.endpoint(), self.test.name()).expect("a store")
    }

    pub(crate) fn key(&self, lock: &str) -> LockKey {
        LockKey::new(self.test.name(), lock).expect("a name")
    }
}

/// The options of a controller whose store and prefix are the namespace's.
pub(crate) fn options(test: &TestNamespace, redis: &RedisServer) -> ControllerOptions {
    let mut options = ControllerOptions::new(env!("CARGO_BIN_EXE_leasehold"), test.plane());
    options.namespace = test.name().to_owned();
    options.controller_name = Some(format!("test/{}", test.name()));
    options.redis_address = Some(redis.address());
    options.key_prefix = Some(test.name().to_owned());
    options.store_name = Some(test.name().to_owned());
    options
}

pub(crate) async fn store_is(
    stores: &Api<LockStore>,
    name: &str,
    what: &str,
    is: impl Fn(&LockStore) -> bool,
) -> LockStore {
    let ask = async || stores.get_opt(name).await.ok().flatten().filter(|store| is(store));
    wait_for(&format!("the LockStore {name} {what}"), LIMIT, ask).await
}

/// A store of a controller, by hand.
pub(crate) fn store(name: &str, address: &str, controller: &str) -> LockStore {
    let standalone = Some(Standalone { address: address.to_owned(), database: 0 });
    let (key_prefix, controller_name) = (name.to_owned(), controller.to_owned());
    LockStore::new(name, LockStoreSpec { key_prefix, controller_name, standalone, ..LockStoreSpec::default() })
}

/// Status and reason of a store's Ready.
pub(crate) fn ready(store: &LockStore) -> Option<(bool, String)> {
    let status = store.status.as_ref()?;
    let ready = condition::get(&status.conditions, types::READY)?;
    Some((ready.status == true.into(), ready.reason.clone()))
}

/// Whether a store is Ready.
pub(crate) fn is_ready(store: &LockStore) -> bool {
    ready(store).is_some_and(|(is, _)| is)
}

/// The epoch in a store's status.
pub(crate) fn epoch(store: &LockStore) -> Option<i64> {
    store.status.as_ref().and_then(|status| status.epoch)
}

/// Whether a store is not Ready for this reason.
pub(crate) fn not_ready(store: &LockStore, reason: &str) -> bool {
    ready(store).is_some_and(|(is, why)| !is && why == reason)
}

pub(crate) fn lock_condition(lock: &DistributedLock, type_: &str) -> bool {
    lock.status.as_ref().is_some_and(|status| condition::is_true(&status.conditions, type_))
}

pub(crate) fn lock_reason(lock: &DistributedLock, type_: &str, reason: &str) -> bool {
    let conditions = lock.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    condition::get(conditions, type_).is_some_and(|condition| condition.reason == reason)
}

pub(crate) fn claim_condition(claim: &LockClaim, type_: &str) -> bool {
    claim.status.as_ref().is_some_and(|status| condition::is_true(&status.conditions, type_))
}

/// A reference to a pod.
pub(crate) fn holder(pod: &k8s_openapi::api::core::v1::Pod) -> HolderRef {
    let uid = pod.uid().expect("a UID");
    HolderRef { api_group: String::new(), kind: HolderKind::Pod, name: pod.name_any(), uid }
}

/// A direct holder's request.
pub(crate) fn request(id: &str, wait: Wait) -> Request {
    let id = HolderId::new(id).expect("an id");
    Request { id, mode: Mode::Counted(1), priority: 0, wait, identity: "process/test".into(), pod_uid: None }
}

/// A little while in which something must not happen.
pub(crate) async fn a_while() {
    tokio::time::sleep(Duration::from_millis(1200)).await;
}
