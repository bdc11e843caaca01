//! Whatever is deleted, held or free, with Redis there or gone: it goes or says what it waits for, and nothing that runs
//! loses its hold.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use leasehold::api::condition::{self, reasons, types};
use leasehold::api::election::{LEADER, ROLE_LABEL};
use leasehold::api::{DistributedLock, ElectionSpec, LabelSelector, LockClaim};
use leasehold::lease::{Acquired, Renewed, Wait};
use leasehold::store::Store;
use rstest::rstest;
use serde_json::json;

use super::fixture::{
    Fixture, a_while, claim_condition, holder, lock_condition, lock_reason, not_ready, ready, request,
};
use crate::support::{LIMIT, Proxy, RedisServer, wait_for};

/// Who holds the lock that is deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Nobody,
    /// A process, by itself, which is not alive any more.
    Direct,
    /// A claim, for itself.
    Claim,
    /// A claim, for a pod that runs.
    Pod,
    /// A pod that is elected.
    Elected,
}

/// A lock `a`, held or free, of a store whose Redis may be out of reach.
struct Scene {
    f: Fixture,
    front: Proxy,
    by: By,
    granted: Instant,
}

impl Scene {
    async fn new(by: By) -> Self {
        let redis = RedisServer::start().await;
        let front = Proxy::start(redis.port());
        let f = Fixture::with(redis, |options| options.redis_address = Some(front.address())).await;
        f.store_is("is Ready", |store| ready(store).is_some_and(|(is, _)| is)).await;
        f.pods().node(f.test.name(), true).await;
        f.ready_lock("a", |spec| {
            spec.lease_duration_seconds = 3;
            if by == By::Elected {
                let match_labels = [("app".to_owned(), "app".to_owned())].into();
                let selector = LabelSelector { match_labels, match_expressions: Vec::new() };
                spec.election = Some(ElectionSpec { selector, failover_after_seconds: 1 });
            }
        })
        .await;
        let scene = Self { f, front, by, granted: Instant::now() };
        scene.hold().await;
        scene
    }

    async fn hold(&self) {
        let f = &self.f;
        match self.by {
            By::Nobody => {}
            By::Direct => {
                let answer = f.workload().acquire(&f.key("a"), &request("direct", Wait::No)).await.unwrap();
                assert!(matches!(answer, Acquired::Granted(_)), "{answer:?}");
                f.lock_is("a", "is held", |lock| lock_condition(lock, types::HELD)).await;
            }
            By::Claim => drop(f.claim("mine", "a", |_| {}).await),
            By::Pod => {
                let pod = f.pods().run("worker", "Always", Some(f.test.name())).await;
                // It takes its time to end.
                self.keep_pod(true).await;
                f.claim("mine", "a", |spec| spec.holder_ref = Some(holder(&pod))).await;
            }
            By::Elected => {
                f.pods().serve("leader", "app", f.test.name()).await;
                wait_for("the pod leads", LIMIT, async || self.leads().await.then_some(())).await;
            }
        }
        if matches!(self.by, By::Claim | By::Pod) {
            f.token_of("mine").await;
        }
    }

    async fn keep_pod(&self, keep: bool) {
        let finalizers = if keep { json!(["leasehold.dev/test"]) } else { json!(null) };
        let patch = Patch::Merge(json!({"metadata": {"finalizers": finalizers}}));
        self.f.pods().api().patch("worker", &PatchParams::default(), &patch).await.expect("patched");
    }

    async fn leads(&self) -> bool {
        let pod = self.f.pods().api().get_opt("leader").await.expect("an answer");
        pod.and_then(|pod| pod.metadata.labels).is_some_and(|l| l.get(ROLE_LABEL).is_some_and(|role| role == LEADER))
    }

    async fn redis_goes(&self) {
        self.front.refuse(true).await;
        self.front.cut();
        self.f.store_is("is unreachable", |store| not_ready(store, reasons::UNREACHABLE)).await;
    }

    async fn redis_is_back(&self) {
        self.front.refuse(false).await;
    }

    /// Who holds has lost nothing: neither in etcd nor in Redis.
    async fn still_held(&self) {
        a_while().await;
        if matches!(self.by, By::Claim | By::Pod) {
            let claim = self.f.test.api::<LockClaim>().get("mine").await.expect("the claim is there");
            assert!(claim_condition(&claim, types::HELD), "{:?}", claim.status);
            let workload = Store::connect(&self.f.redis.endpoint(), self.f.test.name()).unwrap();
            let record = workload.inspect(&self.f.key("a")).await.unwrap().expect("a record");
            assert_eq!(record.holds.len(), 1);
        }
        if self.by == By::Elected {
            assert!(self.leads().await);
        }
    }

    /// Whether the end of the holder is waited for.
    fn waits(&self) -> bool {
        matches!(self.by, By::Claim | By::Pod)
    }

    async fn holder_ends(&self) {
        match self.by {
            By::Claim => self.f.delete::<LockClaim>("mine").await,
            By::Pod => self.pod_ends().await,
            By::Nobody | By::Direct | By::Elected => {}
        }
    }

    async fn pod_ends(&self) {
        self.f.pods().report("worker", json!({"phase": "Failed"})).await;
        self.keep_pod(false).await;
    }

    async fn lock_waits_for_its_holder(&self) {
        self.f.lock_is("a", "waits for its holder", |lock| lock_reason(lock, types::READY, reasons::DELETING)).await;
        self.still_held().await;
    }

    async fn lock_waits_until_its_holder_ends(&self) {
        if self.waits() {
            self.lock_waits_for_its_holder().await;
            self.holder_ends().await;
        }
    }

    async fn lock_is_gone(&self) {
        self.f.test.gone::<DistributedLock>("a", LIMIT).await;
        if self.by == By::Direct {
            assert!(self.granted.elapsed() > Duration::from_secs(3), "gone before its last lease was over");
        }
    }

    async fn store_is_gone(&self) {
        let gone = async || self.f.stores().get_opt(&self.f.store_name()).await.ok()?.is_none().then_some(());
        wait_for("the store is gone", LIMIT, gone).await;
    }
}

#[rstest]
#[tokio::test]
async fn a_lock_that_is_deleted_goes_after_its_holders(
    #[values(By::Nobody, By::Direct, By::Claim, By::Pod, By::Elected)] by: By,
) {
    let scene = Scene::new(by).await;
    scene.f.delete::<DistributedLock>("a").await;
    scene.lock_waits_until_its_holder_ends().await;
    scene.lock_is_gone().await;
    assert!(!scene.leads().await);
}

#[rstest]
#[tokio::test]
async fn a_lock_that_is_deleted_while_redis_is_gone_says_so_and_goes_when_it_is_back(
    #[values(By::Nobody, By::Direct, By::Claim, By::Pod, By::Elected)] by: By,
) {
    let scene = Scene::new(by).await;
    scene.redis_goes().await;
    scene.f.delete::<DistributedLock>("a").await;
    let says_so = |lock: &DistributedLock| {
        let conditions = lock.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        let ready = condition::get(conditions, types::READY);
        ready.is_some_and(|r| r.reason == reasons::STORE_NOT_READY && r.message.contains("being deleted"))
    };
    scene.f.lock_is("a", "says what it waits for", says_so).await;
    scene.still_held().await;
    scene.redis_is_back().await;
    scene.lock_waits_until_its_holder_ends().await;
    scene.lock_is_gone().await;
    assert!(!scene.leads().await);
}

#[rstest]
#[tokio::test]
async fn a_store_that_is_deleted_waits_for_its_locks_and_no_redis(
    #[values(By::Nobody, By::Direct, By::Claim, By::Pod, By::Elected)] by: By,
    #[values(true, false)] redis_is_there: bool,
) {
    let scene = Scene::new(by).await;
    if !redis_is_there {
        scene.redis_goes().await;
    }
    scene.f.stores().delete(&scene.f.store_name(), &DeleteParams::default()).await.unwrap();
    if redis_is_there {
        scene.f.store_is("waits for its locks", |store| not_ready(store, reasons::IN_USE)).await;
    }
    scene.still_held().await;
    assert!(scene.f.stores().get_opt(&scene.f.store_name()).await.unwrap().is_some(), "it has a lock");
    scene.f.delete::<DistributedLock>("a").await;
    scene.lock_waits_until_its_holder_ends().await;
    scene.f.test.gone::<DistributedLock>("a", LIMIT).await;
    scene.store_is_gone().await;
}

#[rstest]
#[tokio::test]
async fn a_store_without_locks_goes_at_once(#[values(true, false)] redis_is_there: bool) {
    let scene = Scene::new(By::Nobody).await;
    scene.f.delete::<DistributedLock>("a").await;
    scene.lock_is_gone().await;
    if !redis_is_there {
        scene.redis_goes().await;
    }
    scene.f.stores().delete(&scene.f.store_name(), &DeleteParams::default()).await.unwrap();
    scene.store_is_gone().await;
}

#[rstest]
#[tokio::test]
async fn a_namespace_that_is_deleted_goes_after_its_pods(
    #[values(By::Nobody, By::Direct, By::Claim, By::Pod, By::Elected)] by: By,
    #[values(true, false)] redis_is_there: bool,
) {
    let scene = Scene::new(by).await;
    if !redis_is_there {
        scene.redis_goes().await;
    }
    scene.f.test.delete().await;
    if by == By::Direct && redis_is_there {
        let (workload, mine) = (scene.f.workload(), request("direct", Wait::No).id);
        let told = async || {
            let answers = workload.renew(&[(scene.f.key("a"), mine.clone())]).await.unwrap();
            (!matches!(answers[..], [Renewed::Held(_)])).then_some(())
        };
        wait_for("the holder is told", LIMIT, told).await;
    }
    if by == By::Pod {
        // Kubernetes ends the pods of a namespace first, and deletes all else when they are gone.
        scene.still_held().await;
        scene.pod_ends().await;
    }
    scene.f.test.gone::<LockClaim>("mine", LIMIT).await;
    scene.f.test.gone::<DistributedLock>("a", LIMIT).await;
    let namespaces: Api<Namespace> = Api::all(scene.f.test.client());
    let gone = async || namespaces.get_opt(scene.f.test.name()).await.ok()?.is_none().then_some(());
    wait_for("the namespace is gone", 2 * LIMIT, gone).await;
}

#[tokio::test]
async fn a_claim_that_is_deleted_while_redis_is_gone_goes_and_its_hold_is_free_when_it_is_back() {
    let scene = Scene::new(By::Claim).await;
    let first = scene.f.token_of("mine").await;
    scene.f.claim("next", "a", |_| {}).await;
    scene.f.claim("waiter", "a", |_| {}).await;
    for name in ["next", "waiter"] {
        scene.f.has_its_place(name).await;
    }
    scene.redis_goes().await;
    for name in ["mine", "waiter"] {
        scene.f.delete::<LockClaim>(name).await;
        scene.f.test.gone::<LockClaim>(name, LIMIT).await;
    }
    scene.redis_is_back().await;
    assert!(scene.f.token_of("next").await > first);
    let nobody_waits = |lock: &DistributedLock| lock.status.as_ref().is_some_and(|status| status.waiters == 0);
    scene.f.lock_is("a", "has no waiter", nobody_waits).await;
}

#[tokio::test]
async fn the_claim_of_a_running_pod_that_is_deleted_while_redis_is_gone_waits_for_the_pod_alone() {
    let scene = Scene::new(By::Pod).await;
    let first = scene.f.token_of("mine").await;
    scene.redis_goes().await;
    scene.f.delete::<LockClaim>("mine").await;
    scene.still_held().await;
    scene.pod_ends().await;
    scene.f.test.gone::<LockClaim>("mine", LIMIT).await;
    scene.redis_is_back().await;
    scene.f.claim("next", "a", |_| {}).await;
    assert!(scene.f.token_of("next").await > first);
}

#[tokio::test]
async fn a_lock_of_a_namespace_that_is_allowed_no_more_can_be_deleted() {
    let scene = Scene::new(By::Nobody).await;
    let selector = json!({"allowedNamespaces": {"from": "Selector", "selector": {"matchLabels": {"locks": "yes"}}}});
    let patch = Patch::Merge(json!({"spec": selector}));
    scene.f.stores().patch(&scene.f.store_name(), &PatchParams::default(), &patch).await.unwrap();
    scene.f.change::<DistributedLock>("a", json!({"permits": 2})).await;
    scene.f.lock_is("a", "is refused", |l| lock_reason(l, types::READY, reasons::NAMESPACE_NOT_ALLOWED)).await;
    scene.f.delete::<DistributedLock>("a").await;
    scene.lock_is_gone().await;
}

/// As of a controller that died between the last write of a claim and the one in Redis, or where somebody has taken the
/// finalizer off.
#[tokio::test]
async fn a_lock_that_is_deleted_is_not_kept_by_a_hold_that_no_claim_records() {
    let mut scene = Scene::new(By::Claim).await;
    scene.f.token_of("mine").await;
    scene.f.controller.stop();
    scene.f.delete::<LockClaim>("mine").await;
    let unfinalized = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    let claims: Api<LockClaim> = scene.f.test.api();
    claims.patch("mine", &PatchParams::default(), &unfinalized).await.expect("patched");
    scene.f.test.gone::<LockClaim>("mine", LIMIT).await;
    scene.f.delete::<DistributedLock>("a").await;
    scene.f.controller.restart().await;
    scene.lock_is_gone().await;
}
