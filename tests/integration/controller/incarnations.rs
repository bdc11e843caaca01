//! Another incarnation of Redis answers, or its data are gone: each is seen within two seconds, nothing that somebody
//! may still believe is granted again, and tokens rise.

use std::time::{Duration, Instant};

use leasehold::api::condition::{self, reasons, types};
use leasehold::api::{Condition, LockClaim, LockStore};
use leasehold::lease::{Acquired, Renewed, Wait};
use leasehold::store::Store;
use rstest::rstest;

use super::fixture::{Fixture, a_while, claim_condition, epoch, is_ready, lock_reason, request};
use super::pair::Pair;
use crate::support::{LIMIT, RedisServer, wait_for};

/// How soon the controller has to notice.
const SEEN_WITHIN: Duration = Duration::from_secs(2);
/// The lease of the lock that is held directly.
const LEASE: Duration = Duration::from_secs(5);

fn incarnation(store: &LockStore) -> Option<&str> {
    store.status.as_ref().and_then(|status| status.incarnation.as_deref())
}

fn of_store<'a>(store: &'a LockStore, type_: &str) -> Option<&'a Condition> {
    condition::get(&store.status.as_ref()?.conditions, type_)
}

fn recovering(store: &LockStore) -> bool {
    of_store(store, types::RECOVERING).is_some_and(|recovering| recovering.status == true.into())
}

/// A lock that a process holds directly and doesn't renew, and one that a claim holds; before something happens to
/// their Redis.
struct Scene {
    f: Fixture,
    granted: Instant,
    direct: i64,
    told: i64,
    before: LockStore,
}

impl Scene {
    async fn over(redis: RedisServer) -> Self {
        Self::of(Fixture::over(redis).await).await
    }

    async fn of(f: Fixture) -> Self {
        f.ready_lock("direct", |spec| spec.lease_duration_seconds = 5).await;
        f.ready_lock("told", |spec| spec.lease_duration_seconds = 2).await;
        let (granted, direct, told) = Self::hold(&f).await;
        let before = f.store_is("is Ready", |store| is_ready(store) && !recovering(store)).await;
        Self { f, granted, direct, told, before }
    }

    async fn hold(f: &Fixture) -> (Instant, i64, i64) {
        f.claim("told", "told", |_| {}).await;
        let told = f.token_of("told").await;
        let granted = Instant::now();
        let answer = f.workload().acquire(&f.key("direct"), &request("direct", Wait::No)).await.unwrap();
        let Acquired::Granted(grant) = answer else { panic!("not granted: {answer:?}") };
        (granted, grant.token.get(), told)
    }

    /// Waits until the controller has seen what has happened just now.
    async fn is_seen(&self, struck: Instant) {
        let store = self.f.store_is("is in a new epoch", |store| epoch(store) > epoch(&self.before)).await;
        assert!(struck.elapsed() < SEEN_WITHIN, "it took {:?} to be seen", struck.elapsed());
        assert!(recovering(&store), "it doesn't say that it recovers: {:?}", store.status);
    }

    /// Checks that nobody has lost or gained anything, by what answers now.
    async fn heals(&self, redis: &RedisServer) {
        let Self { f, granted, direct, told, before } = self;
        let workload = Store::connect(&redis.endpoint(), f.test.name()).unwrap();
        f.claim("next", "direct", |_| {}).await;
        let store = f.store_is("is Ready", |store| is_ready(store) && incarnation(store) != incarnation(before)).await;
        assert!(recovering(&store), "leases of before may still be believed: {:?}", store.status);
        f.event(&f.store_name(), reasons::RECOVERING).await;
        let record = workload.inspect(&f.key("told")).await.unwrap().expect("it was put back before the gate opened");
        assert_eq!((record.holds.len(), record.holds[0].token.get()), (1, *told));
        let next = f.token_of("next").await;
        assert!(granted.elapsed() >= LEASE, "granted beside a lease: {:?}", granted.elapsed());
        assert!(next > *direct, "{next} is not above {direct}");
        f.claim_is("told", "still holds with its token", |claim| {
            claim_condition(claim, types::HELD) && claim.status.as_ref().unwrap().fencing_token == Some(*told)
        })
        .await;
        f.delete::<LockClaim>("told").await;
        f.claim("after", "told", |_| {}).await;
        let after = f.token_of("after").await;
        assert!(after > *told, "{after} is not above {told}");
        let store = f.store_is("has recovered", |store| !recovering(store)).await;
        assert!(is_ready(&store));
        f.event(&f.store_name(), reasons::RECOVERED).await;
    }

    /// What a process is answered that asks for the lock that is held directly.
    async fn ask(&self, redis: &RedisServer) -> Option<Acquired> {
        let workload = Store::connect(&redis.endpoint(), self.f.test.name()).unwrap();
        workload.acquire(&self.f.key("direct"), &request("other", Wait::No)).await.ok()
    }
}

#[rstest]
#[case::without_persistence(&[], false, None)]
#[case::with_every_write_appended(&["--appendonly", "yes", "--appendfsync", "always"], false, Some(Acquired::GateClosed))]
#[case::with_writes_appended_each_second(&["--appendonly", "yes", "--appendfsync", "everysec"], false, Some(Acquired::GateClosed))]
#[case::with_a_snapshot(&[], true, Some(Acquired::GateClosed))]
#[tokio::test]
async fn a_redis_that_starts_again_grants_nothing_that_is_believed(
    #[case] options: &[&str],
    #[case] snapshot: bool,
    #[case] closed: Option<Acquired>,
) {
    let mut scene = Scene::over(RedisServer::with(options).await).await;
    if snapshot {
        scene.f.redis.send::<()>("SAVE").await;
    }
    scene.f.controller.process().pause();
    scene.f.redis.kill();
    scene.f.redis.restart().await;
    // The process itself knows that its gate is closed: no controller has to tell it.
    assert_eq!(scene.ask(&scene.f.redis).await, closed);
    scene.f.controller.process().resume();
    scene.is_seen(Instant::now()).await;
    scene.heals(&scene.f.redis).await;
}

#[tokio::test]
async fn a_snapshot_that_knows_less_takes_nothing() {
    let f = Fixture::new().await;
    f.ready_lock("early", |_| {}).await;
    f.claim("early", "early", |_| {}).await;
    f.token_of("early").await;
    f.redis.send::<()>("SAVE").await;
    f.delete::<LockClaim>("early").await;
    f.test.gone::<LockClaim>("early", LIMIT).await;
    let mut scene = Scene::of(f).await;
    scene.f.redis.kill();
    scene.f.redis.restart().await;
    scene.is_seen(Instant::now()).await;
    // The snapshot has a hold that was given back since.
    scene.f.claim("late", "early", |_| {}).await;
    scene.heals(&scene.f.redis).await;
    scene.f.token_of("late").await;
}

#[tokio::test]
async fn a_replica_that_lags_and_has_been_up_for_long_is_waited_for_as_long() {
    let primary = RedisServer::start().await;
    let pair = Pair::of(&primary).await;
    let f = pair.fixture(primary).await;
    f.ready_lock("early", |_| {}).await;
    f.claim("early", "early", |_| {}).await;
    f.token_of("early").await;
    f.redis.wait_for_replica(&pair.replica).await;
    pair.cut().await;
    f.delete::<LockClaim>("early").await;
    f.test.gone::<LockClaim>("early", LIMIT).await;
    let old = async || {
        let info: String = pair.replica.send("INFO server").await;
        let up = info.lines().find_map(|line| line.strip_prefix("uptime_in_seconds:"))?.trim().parse::<u64>().ok()?;
        (up > 2 * LEASE.as_secs()).then_some(())
    };
    wait_for("the replica has been up for longer than any lease", LIMIT, old).await;
    let mut scene = Scene::of(f).await;
    assert!(
        scene.f.redis.replication("master_repl_offset").await > pair.replica.replication("slave_repl_offset").await
    );
    scene.f.redis.kill();
    let struck = pair.promote().await;
    scene.is_seen(struck).await;
    scene.f.claim("late", "early", |_| {}).await;
    scene.heals(&pair.replica).await;
    scene.f.token_of("late").await;
}

#[tokio::test]
async fn a_master_that_nobody_demoted_is_closed_when_it_answers_again() {
    let primary = RedisServer::start().await;
    let pair = Pair::of(&primary).await;
    let f = pair.fixture(primary).await;
    f.ready_lock("a", |spec| spec.lease_duration_seconds = 5).await;
    let before = f.store_is("is Ready", is_ready).await;
    f.redis.wait_for_replica(&pair.replica).await;
    pair.promote().await;
    let promoted = f.store_is("is Ready again", |store| is_ready(store) && incarnation(store) != incarnation(&before));
    let promoted = promoted.await;
    let workload = Store::connect(&pair.replica.endpoint(), f.test.name()).unwrap();
    let granted = async || match workload.acquire(&f.key("a"), &request("direct", Wait::No)).await.ok()? {
        Acquired::Granted(grant) => Some((Instant::now(), grant.token.get())),
        _ => None,
    };
    let (granted, token) = wait_for("the promoted one grants", LIMIT, granted).await;
    pair.front.point_at(f.redis.port());
    let struck = Instant::now();
    f.store_is("is in a new epoch", |store| epoch(store) > epoch(&promoted)).await;
    assert!(struck.elapsed() < SEEN_WITHIN, "it took {:?} to be seen", struck.elapsed());
    f.claim("next", "a", |_| {}).await;
    let next = f.token_of("next").await;
    assert!(granted.elapsed() >= LEASE, "granted beside a lease: {:?}", granted.elapsed());
    assert!(next > token, "{next} is not above {token}");
}

#[tokio::test]
async fn a_master_that_was_a_replica_for_a_moment_closes_its_gate_by_itself() {
    let mut scene = Scene::over(RedisServer::start().await).await;
    let nobody = RedisServer::not_started(&[]);
    scene.f.controller.process().pause();
    scene.f.redis.send::<()>(&format!("REPLICAOF 127.0.0.1 {}", nobody.port())).await;
    scene.f.redis.promote().await;
    // It looks at itself every 10 ms.
    let closed = async || (scene.ask(&scene.f.redis).await? == Acquired::GateClosed).then_some(());
    wait_for("the gate is closed", Duration::from_millis(500), closed).await;
    scene.f.controller.process().resume();
    scene.is_seen(Instant::now()).await;
    scene.heals(&scene.f.redis).await;
}

#[tokio::test]
async fn a_lock_is_waited_for_as_long_as_its_own_leases_and_no_longer() {
    let mut f = Fixture::new().await;
    f.ready_lock("long", |spec| spec.lease_duration_seconds = 600).await;
    f.ready_lock("short", |spec| spec.lease_duration_seconds = 5).await;
    f.redis.kill();
    f.redis.restart().await;
    let back = Instant::now();
    for name in ["long", "short"] {
        f.claim(name, name, |_| {}).await;
    }
    f.token_of("short").await;
    assert!(back.elapsed() < Duration::from_secs(7), "it took {:?}", back.elapsed());
    f.claim_is("long", "waits", |claim| !claim_condition(claim, types::HELD)).await;
    let record = f.workload().inspect(&f.key("long")).await.unwrap().expect("a record");
    assert!(record.holds.is_empty() && record.quarantine > 500_000, "{record:?}");
    f.store_is("says that it recovers", |store| is_ready(store) && recovering(store)).await;
}

/// How long an isolated master of before may have gone on is waited for, too.
#[tokio::test]
async fn a_master_that_stops_by_itself_is_waited_for_after_a_promotion() {
    let primary = RedisServer::with(&["--min-replicas-to-write", "1", "--min-replicas-max-lag", "4"]).await;
    let pair = Pair::of(&primary).await;
    let f = pair.fixture(primary).await;
    f.ready_lock("a", |spec| spec.lease_duration_seconds = 2).await;
    f.redis.wait_for_replica(&pair.replica).await;
    let struck = pair.promote().await;
    f.claim("next", "a", |_| {}).await;
    f.token_of("next").await;
    assert!(struck.elapsed() >= Duration::from_secs(6), "granted after {:?}", struck.elapsed());
}

#[rstest]
#[case::no_replica(None, None, "True", reasons::NO_REPLICAS)]
#[case::too_few_required(Some(1), Some("CONFIG SET min-replicas-to-write 0"), "False", reasons::TOO_FEW_REQUIRED)]
#[case::one_of_one(Some(1), Some("CONFIG SET min-replicas-to-write 1"), "True", reasons::MIN_REPLICAS_TO_WRITE)]
#[case::one_of_two(Some(2), Some("CONFIG SET min-replicas-to-write 1"), "False", reasons::TOO_FEW_REQUIRED)]
#[case::may_not_be_read(Some(1), Some("ACL SETUSER default -config"), "Unknown", reasons::NOT_ALLOWED_TO_READ)]
#[tokio::test]
async fn whether_an_isolated_master_stops_is_said(
    #[case] replicas: Option<usize>,
    #[case] set_up: Option<&str>,
    #[case] status: &str,
    #[case] reason: &str,
) {
    let primary = RedisServer::start().await;
    let mut following = Vec::new();
    for _ in 0..replicas.unwrap_or(0) {
        following.push(RedisServer::replica_of(primary.port()).await);
    }
    if let Some(command) = set_up {
        primary.send::<()>(command).await;
    }
    let f = Fixture::over(primary).await;
    let store = f.store_is("is Ready", is_ready).await;
    let bounded = of_store(&store, types::ISOLATED_MASTER_BOUNDED).expect("a condition");
    assert_eq!((format!("{:?}", bounded.status).as_str(), bounded.reason.as_str()), (status, reason));
}

fn record_key(f: &Fixture, lock: &str) -> String {
    format!("{prefix}:{{{prefix}/{lock}}}:lock", prefix = f.test.name())
}

#[tokio::test]
async fn one_record_that_is_gone_is_made_again_and_the_others_go_on() {
    let f = Fixture::new().await;
    for name in ["lost", "other", "second"] {
        f.ready_lock(name, |spec| spec.lease_duration_seconds = 5).await;
    }
    f.claim("told", "lost", |_| {}).await;
    let told = f.token_of("told").await;
    let (workload, other) = (f.workload(), f.key("other"));
    let mine = request("mine", Wait::No);
    assert!(matches!(workload.acquire(&other, &mine).await.unwrap(), Acquired::Granted(_)));
    let before = f.store_is("is Ready", is_ready).await;
    f.redis.send::<()>(&format!("DEL {}", record_key(&f, "lost"))).await;
    let struck = Instant::now();
    let after = f.store_is("is in a new epoch", |store| epoch(store) > epoch(&before)).await;
    assert!(struck.elapsed() < SEEN_WITHIN, "it took {:?} to be seen", struck.elapsed());
    assert_eq!(incarnation(&after), incarnation(&before));
    let taken = Instant::now();
    let goes_on = async || {
        let renewed = workload.renew(&[(other.clone(), mine.id.clone())]).await.unwrap();
        assert!(matches!(renewed[..], [Renewed::Held(_)]), "the other is disturbed: {renewed:?}");
        let record = workload.inspect(&f.key("lost")).await.unwrap()?;
        (record.holds.len() == 1 && record.holds[0].token.get() == told).then_some(record)
    };
    let record = wait_for("the record is made again, with its hold", LIMIT, goes_on).await;
    assert!(record.quarantine > 0, "a direct lease may have been beside it: {record:?}");
    f.event("lost", reasons::RECORD_LOST).await;
    let direct = workload.inspect(&other).await.unwrap().expect("a record");
    assert_eq!(direct.quarantine, 0, "the other has lost nothing");

    // Another one within the same minute.
    f.redis.send::<()>(&format!("DEL {}", record_key(&f, "second"))).await;
    f.lock_is("second", "says so", |lock| lock_reason(lock, types::READY, reasons::RECORD_LOST)).await;
    let patient = 3 * LIMIT;
    let again = async || f.stores().get(&f.store_name()).await.ok().filter(|store| epoch(store) > epoch(&after));
    wait_for("the next epoch", patient, again).await;
    assert!(taken.elapsed() > Duration::from_secs(58), "an epoch {:?} after the last", taken.elapsed());
    f.claim("late", "second", |_| {}).await;
    f.token_of("late").await;
}

#[tokio::test]
async fn a_flush_is_seen_although_nobody_holds_or_waits() {
    let f = Fixture::new().await;
    f.ready_lock("a", |spec| spec.lease_duration_seconds = 9).await;
    let before = f.store_is("is Ready", is_ready).await;
    // What a lock does by itself soon after it was made is over.
    f.lock_is("a", "is free", |lock| lock_reason(lock, types::HELD, reasons::FREE)).await;
    a_while().await;
    f.redis.send::<()>("FLUSHALL").await;
    let struck = Instant::now();
    let after = f.store_is("is in a new epoch", |store| epoch(store) > epoch(&before)).await;
    assert!(struck.elapsed() < SEEN_WITHIN, "it took {:?} to be seen", struck.elapsed());
    assert!(recovering(&after));
    f.event("a", reasons::RECORD_LOST).await;
    f.claim("next", "a", |_| {}).await;
    f.token_of("next").await;
    f.store_is("has recovered", |store| !recovering(store)).await;
}

#[tokio::test]
async fn nothing_is_granted_beside_a_delegated_hold_while_it_is_put_back() {
    let mut f = Fixture::new().await;
    f.ready_lock("a", |spec| spec.lease_duration_seconds = 1).await;
    f.claim("told", "a", |_| {}).await;
    let told = f.token_of("told").await;
    let before = f.store_is("is Ready", is_ready).await;
    let (endpoint, prefix, key) = (f.redis.endpoint(), f.test.name().to_owned(), f.key("a"));
    let greedy = tokio::spawn(async move {
        let (workload, mut turn) = (Store::connect(&endpoint, &prefix).unwrap(), 0);
        loop {
            turn += 1;
            let answer = workload.acquire(&key, &request(&format!("greedy-{turn}"), Wait::No)).await;
            if let Ok(Acquired::Granted(grant)) = answer {
                return grant;
            }
            tokio::task::yield_now().await;
        }
    });
    f.redis.kill();
    f.redis.restart().await;
    let struck = Instant::now();
    f.store_is("is Ready again", |store| is_ready(store) && incarnation(store) != incarnation(&before)).await;
    // Longer than the quarantine of its lease.
    wait_for("some time", LIMIT, async || (struck.elapsed() > Duration::from_secs(4)).then_some(())).await;
    assert!(!greedy.is_finished(), "granted beside a claim that holds: {:?}", greedy.await);
    f.delete::<LockClaim>("told").await;
    let granted = tokio::time::timeout(LIMIT, greedy).await.expect("it is free").unwrap();
    assert!(granted.token.get() > told);
}

/// Turns of a direct holder; the last token.
async fn turns(f: &Fixture, lock: &str, name: &str, count: u32) -> i64 {
    let (workload, key, mut last) = (f.workload(), f.key(lock), 0);
    for turn in 0..count {
        let request = request(&format!("{name}-{turn}"), Wait::No);
        let answer = workload.acquire(&key, &request).await.unwrap();
        let Acquired::Granted(grant) = answer else { panic!("not granted: {answer:?}") };
        assert!(grant.token.get() > last);
        last = grant.token.get();
        workload.release(&key, &request.id).await.unwrap();
    }
    last
}

#[tokio::test]
async fn tokens_rise_also_when_etcd_is_put_back_beside_an_empty_redis() {
    let mut f = Fixture::alone().await;
    f.ready_lock("a", |spec| spec.lease_duration_seconds = 2).await;
    f.ready_lock("told", |spec| spec.lease_duration_seconds = 2).await;
    f.claim("before", "told", |_| {}).await;
    let before = f.token_of("before").await;
    turns(&f, "a", "before", 3).await;
    f.controller.stop();
    let copy = f.test.plane().save_etcd().await;
    f.controller.restart().await;
    f.store_is("is Ready", is_ready).await;
    f.delete::<LockClaim>("before").await;
    f.claim("since", "told", |_| {}).await;
    let since = f.token_of("since").await;
    let direct = turns(&f, "a", "since", 50).await;

    f.controller.stop();
    f.test.plane().put_etcd_back(&copy).await;
    f.redis.kill();
    f.redis.restart().await;
    f.controller.restart().await;
    f.store_is("is Ready", is_ready).await;
    assert_eq!(f.token_of("before").await, before, "the copy has it as held");
    f.claim("next", "a", |_| {}).await;
    let next = f.token_of("next").await;
    assert!(next > direct, "{next} is not above {direct}");
    f.delete::<LockClaim>("before").await;
    f.claim("after", "told", |_| {}).await;
    let after = f.token_of("after").await;
    assert!(after > since, "{after} is not above {since}");
}
