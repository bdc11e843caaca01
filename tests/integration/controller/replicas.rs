//! Replicas of one controller: one leads, and whatever becomes of it, another goes on.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use leasehold::api::LockClaim;

use super::fixture::{Fixture, claim_condition, options};
use crate::support::{ApiProxy, Controller, ControllerOptions, LIMIT, Proxy, RedisServer, TestNamespace, wait_for};
use leasehold::api::condition::types;

const LEASE: Duration = Duration::from_secs(3);
const ELECTION: (u16, u16, f64) = (3, 2, 0.5);

/// A leading replica and one that stands by.
struct Replicas {
    f: Fixture,
    other: Controller,
}

impl Replicas {
    async fn new() -> Self {
        Self::on(TestNamespace::new().await, |_| {}).await
    }

    /// The first of them with other options.
    async fn on(test: TestNamespace, change: impl FnOnce(&mut ControllerOptions)) -> Self {
        let f = Fixture::on(test, RedisServer::start().await, |options| {
            options.election = Some(ELECTION);
            options.instance = Some("first".into());
            change(options);
        })
        .await;
        f.ready_lock("a", |_| {}).await;
        let mut second = options(&f.test, &f.redis);
        second.election = Some(ELECTION);
        second.instance = Some("second".into());
        let other = Controller::start(second).await;
        let this = Self { f, other };
        this.leader_is("first").await;
        this
    }

    fn leases(&self) -> Api<Lease> {
        self.f.test.api()
    }

    fn lease(&self) -> String {
        format!("test-{}", self.f.test.name())
    }

    async fn leader(&self) -> Option<String> {
        let lease = self.leases().get_opt(&self.lease()).await.ok()??;
        lease.spec?.holder_identity
    }

    async fn leader_is(&self, instance: &str) {
        let leads = async || self.leader().await.filter(|me| me.starts_with(&format!("{instance}_")));
        wait_for(&format!("{instance} leads"), LIMIT, leads).await;
    }

    /// Held by the first of two claims; the token of the second, once it is handed over by who leads then.
    async fn hand_over(&self, first: i64) {
        self.f.claim("next", "a", |_| {}).await;
        self.f.has_its_place("next").await;
        self.f.claim_is("mine", "still holds", |claim| claim_condition(claim, types::HELD)).await;
        self.f.delete::<LockClaim>("mine").await;
        assert!(self.f.token_of("next").await > first);
    }
}

#[tokio::test]
async fn one_replica_works_and_the_other_stands_by() {
    let Replicas { f, mut other } = Replicas::new().await;
    f.claim("mine", "a", |_| {}).await;
    f.token_of("mine").await;
    let leads = async |controller: &Controller| {
        let (_, metrics) = controller.get("/metrics").await.expect("metrics");
        metrics.contains("\nleader_election_master_status 1\n")
    };
    assert!(leads(&f.controller).await && !leads(&other).await);
    assert!(!other.logs().contains("decided"), "who stands by decides nothing:\n{}", other.logs());
    assert!(other.stop().is_some_and(|status| status.success()));
}

#[tokio::test]
async fn a_leader_that_is_killed_is_followed_when_its_lease_is_over() {
    let mut replicas = Replicas::new().await;
    replicas.f.claim("mine", "a", |_| {}).await;
    let first = replicas.f.token_of("mine").await;
    replicas.f.controller.kill();
    let killed = Instant::now();
    replicas.leader_is("second").await;
    // The other has seen the Lease change at most one retry (0.5 s and 1.2 times that) later than it was written, which
    // was up to a retry before the end; then it asks again within as much.
    let after = killed.elapsed();
    assert!(after >= LEASE - Duration::from_millis(1600), "followed {after:?} after a Lease of {LEASE:?} was renewed");
    replicas.hand_over(first).await;
}

#[tokio::test]
async fn a_leader_that_is_asked_to_end_is_followed_at_once() {
    let mut replicas = Replicas::new().await;
    replicas.f.claim("mine", "a", |_| {}).await;
    let first = replicas.f.token_of("mine").await;
    assert!(replicas.f.controller.stop().is_some_and(|status| status.success()));
    let leader = replicas.leader().await;
    assert!(leader.as_deref().is_none_or(|leader| !leader.starts_with("first")), "{leader:?}");
    let stopped = Instant::now();
    replicas.leader_is("second").await;
    assert!(stopped.elapsed() < LEASE, "the Lease was released: {:?}", stopped.elapsed());
    replicas.hand_over(first).await;
}

/// The answer to its last renewal is on its way when it is asked to end: the Lease is no more as it has seen it.
#[tokio::test]
async fn a_leader_that_is_asked_to_end_while_it_renews_is_followed_at_once() {
    let test = TestNamespace::new().await;
    let http = ApiProxy::start(&test.plane().kubeconfig("controller"));
    let network = Proxy::start(http.port());
    let kubeconfig = http.kubeconfig(network.port());
    let mut replicas = Replicas::on(test, |options| options.kubeconfig = kubeconfig).await;
    let renewed = async || replicas.leases().get_opt(&replicas.lease()).await.ok()??.spec?.renew_time;
    network.hold_replies(true);
    let before = renewed().await;
    wait_for("a renewal that isn't answered", LIMIT, async || {
        renewed().await.filter(|now| Some(now) != before.as_ref())
    })
    .await;
    let sent = network.passed().to_server;
    replicas.f.controller.process().terminate();
    wait_for("its last word", LIMIT, async || (network.passed().to_server > sent).then_some(())).await;
    network.hold_replies(false);
    let ended = wait_for("its end", LIMIT, async || replicas.f.controller.process().exit_status()).await;
    assert!(ended.success(), "{}", replicas.f.controller.logs());
    let leader = replicas.leader().await;
    assert!(leader.as_deref().is_none_or(|leader| !leader.starts_with("first")), "{leader:?}");
}

#[tokio::test]
async fn a_leader_that_was_stopped_past_its_lease_ends_when_it_goes_on() {
    let mut replicas = Replicas::new().await;
    replicas.f.claim("mine", "a", |_| {}).await;
    let first = replicas.f.token_of("mine").await;
    replicas.f.controller.process().pause();
    replicas.leader_is("second").await;
    replicas.hand_over(first).await;
    replicas.f.controller.process().resume();
    let mut ended = None;
    let start = Instant::now();
    while ended.is_none() && start.elapsed() < LIMIT {
        ended = replicas.f.controller.process().exit_status();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(ended.is_some_and(|status| !status.success()), "{ended:?}:\n{}", replicas.f.controller.logs());
    assert!(replicas.f.token_of("next").await > first);
    replicas.leader_is("second").await;
}
