//! What users do, and what they see in the end. Each tour passes the writes of one loop, and is finished only when
//! everything is as it should be, whatever became of the controller on the way.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::{Resource, ResourceExt};
use leasehold::api::condition::{self, reasons, types};
use leasehold::api::direct::{CONNECTION, ROTATE};
use leasehold::api::force_release::{FORCE_RELEASE, FORCE_RELEASE_REASON};
use leasehold::api::gated::{LOCKS, START_TIMEOUT, WAIT_TIMEOUT};
use leasehold::api::{CONFIRM_ETCD_RESTORE, DistributedLock, LockClaim, LockClaimSpec, LockRequest, LockStore};
use leasehold::lease::{Acquired, HolderId, Mode, Request, Wait};
use leasehold::store::{Control, Inspection, Store};
use serde_json::json;

use super::attendant::Attendant;
use crate::controller::credentials::{disable, enable, refused_soon, secret_is, text, works_soon};
use crate::controller::direct;
use crate::controller::elections::{among, leaders};
use crate::controller::fixture::{Site, claim_condition, holder, is_ready, lock_condition, options, request};
use crate::controller::gated::{GATE, claim_of, fails, let_go, merge, queues, says};
use crate::controller::recovery::library_with_a_clock_to_set;
use crate::controller::several::waits_at;
use crate::policies::apply_force_release;
use crate::support::{ControllerOptions, LIMIT, RedisServer, TestNamespace, eventually, serving, wait_for};

/// How long a controller that was stopped stays so: longer than every lease here, and not so long that it loses the lead.
pub(super) const STALL: Duration = Duration::from_millis(2500);
/// How long it stays so on its way to a place: longer than the lease of [`short_lock`], and so short that it leads still.
pub(super) const SHORT_STALL: Duration = Duration::from_millis(1200);
/// One that follows a controller that died right before it made a record takes it for lost, and an epoch for it: there is
/// one a minute.
const NEXT_EPOCH: Duration = Duration::from_secs(90);
/// The Lease of the leading replica, its renewal and the pause between two tries, in seconds.
pub(super) const ELECTION: (u16, u16, f64) = (4, 3, 0.5);

/// A way past the writes of one loop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tour {
    Store,
    Lock,
    Claim,
    Several,
    Gated,
    Election,
    Force,
    Credentials,
    Replica,
}

impl Tour {
    /// The one that leads past a place.
    pub(super) fn past(place: &str) -> Self {
        let name = place.rsplit(' ').next().unwrap_or_default();
        match name.split('.').next().unwrap_or_default() {
            "store" => Tour::Store,
            "lock" => Tour::Lock,
            "claim" | "holds" => Tour::Claim,
            "several" => Tour::Several,
            "gated" => Tour::Gated,
            "election" => Tour::Election,
            "force" => Tour::Force,
            "credentials" => Tour::Credentials,
            "replica" => Tour::Replica,
            other => panic!("no tour leads past {other}"),
        }
    }

    /// What must happen to the controller before it gets to a place.
    pub(super) fn detour(self, place: &str) -> Option<&'static str> {
        // Its lease is over before it is pinned.
        (self == Tour::Claim && place.ends_with("claim.retry")).then_some("stop after claim.granted")
    }

    /// Whether a controller that was overtaken must end: one that stood by, or whose store is gone, goes on.
    pub(super) fn ends_loser(self) -> bool {
        !matches!(self, Tour::Replica | Tour::Store)
    }

    /// Where it takes place, and with what controller.
    pub(super) async fn site(self) -> (Site, ControllerOptions) {
        let site = Site { test: TestNamespace::new().await, redis: RedisServer::start().await };
        let mut options = options(&site.test, &site.redis);
        if self == Tour::Store {
            let library = Store::connect(&site.redis.endpoint(), "any").expect("a store");
            library.load_library(&library_with_a_clock_to_set()).await.expect("it is loaded");
            (options.password_secret, options.makes_password) = (Some("redis-auth".into()), true);
        }
        if self == Tour::Credentials {
            options.password_overlap = Some(2);
        }
        if self == Tour::Replica {
            options.election = Some(ELECTION);
        }
        (site, options)
    }

    /// The whole way. Panics where something isn't as it should be.
    pub(super) async fn walk(self, site: &mut Site, attendant: &Attendant) {
        site.store_is("is Ready", is_ready).await;
        match self {
            Tour::Store => store(site, attendant).await,
            Tour::Lock => lock(site, attendant).await,
            Tour::Claim => claim(site, attendant).await,
            Tour::Several => several(site, attendant).await,
            Tour::Gated => gated(site, attendant).await,
            Tour::Election => election(site, attendant).await,
            Tour::Force => force(site, attendant).await,
            Tour::Credentials => credentials(site, attendant).await,
            Tour::Replica => replica(site, attendant).await,
        }
    }
}

/// Whether the tour of gated pods leads past this write of a claim. No claim there is lost before it was told, no pod holds for
/// too long, and the Events of such a claim are those of its pod.
pub(super) fn is_of_a_gated_pod_s_claim(name: &str) -> bool {
    let of_its_second_lock = ["several.ask", "several.pin"].contains(&name);
    of_its_second_lock || name.starts_with("claim.") && !["claim.retry", "claim.evict", "claim.event"].contains(&name)
}

/// A lock whose leases are short.
async fn short_lock(site: &Site, name: &str) {
    site.ready_lock(name, |spec| spec.lease_duration_seconds = 1).await;
}

async fn holds_still(site: &Site, claim: &str, token: i64) {
    let holds = |claim: &LockClaim| {
        claim_condition(claim, types::HELD) && claim.status.as_ref().and_then(|s| s.fencing_token) == Some(token)
    };
    site.claim_is(claim, &format!("holds with {token}"), holds).await;
}

async fn remove_claim(site: &Site, name: &str) {
    site.delete::<LockClaim>(name).await;
    site.test.gone::<LockClaim>(name, LIMIT).await;
}

async fn remove_lock(site: &Site, name: &str) {
    site.delete::<DistributedLock>(name).await;
    site.test.gone::<DistributedLock>(name, LIMIT).await;
}

/// Redis forgets everything, its clock is set, it is lost, and then the store goes.
async fn store(site: &mut Site, attendant: &Attendant) {
    short_lock(site, "a").await;
    site.claim("c", "a", |_| {}).await;
    let token = site.token_of("c").await;
    let epoch = epoch(site).await;
    site.redis.send::<()>("FLUSHALL").await;
    has_epoch_above(site, epoch).await;
    set_the_clock(site).await;
    etcd_seems_put_back(site).await;
    let epoch = self::epoch(site).await;
    site.redis.kill();
    site.redis.restart().await;
    has_epoch_above(site, epoch).await;
    holds_still(site, "c", token).await;
    site.claim("d", "a", |_| {}).await;
    site.has_its_place("d").await;
    holds_still(site, "c", token).await;
    attendant.calm().await;
    holds_still(site, "c", token).await;
    remove_claim(site, "c").await;
    assert!(site.token_of("d").await > token);
    remove_claim(site, "d").await;
    remove_lock(site, "a").await;
    let store = site.stores().get(&site.store_name()).await.expect("the store");
    site.stores().delete(&store.name_any(), &DeleteParams::default()).await.expect("deleted");
    // A controller that starts makes it again.
    let gone = async || {
        let found = site.stores().get_opt(&store.name_any()).await.ok()?;
        found.is_none_or(|found| found.uid() != store.uid()).then_some(())
    };
    wait_for("the store is gone", LIMIT, gone).await;
}

/// The epoch of a store that is Ready.
async fn epoch(site: &Site) -> Option<i64> {
    let ready = site.store_is("is Ready", is_ready).await;
    ready.status.and_then(|status| status.epoch)
}

async fn has_epoch_above(site: &Site, epoch: Option<i64>) {
    let anew = async || {
        let store = site.stores().get_opt(&site.store_name()).await.ok()??;
        (store.status?.epoch > epoch).then_some(())
    };
    wait_for("another epoch", NEXT_EPOCH, anew).await;
}

/// A step that a controller saw and died of is forgotten: its successor has never known the clock of before.
async fn set_the_clock(site: &Site) {
    let stepped = async || {
        let store = site.stores().get_opt(&site.store_name()).await.ok()??;
        let conditions = store.status.map(|status| status.conditions).unwrap_or_default();
        condition::is_true(&conditions, types::CLOCK_STEPPED).then_some(())
    };
    for hour in 1..=4 {
        site.redis.send::<()>(&format!("FCALL set_clock_by 0 {}", hour * 3600)).await;
        if eventually(Duration::from_secs(5), stepped).await.is_some() {
            return;
        }
    }
    panic!("the store never said that its clock was set");
}

/// A lock is made, changed, loses its record, is cleaned of what nobody records, and goes.
async fn lock(site: &mut Site, attendant: &Attendant) {
    site.ready_lock("a", |spec| spec.lease_duration_seconds = 2).await;
    site.claim("c", "a", |_| {}).await;
    let first = site.token_of("c").await;
    site.change::<DistributedLock>("a", json!({"leaseDurationSeconds": 1})).await;
    let lowered = |lock: &DistributedLock| lock.status.as_ref().and_then(|s| s.longest_lease_seconds) == Some(1);
    site.lock_is("a", "forgets its longer lease", lowered).await;
    ends_in_redis_alone(site, "c").await;
    is_held_in_redis(site, "a").await;
    site.claim("d", "a", |_| {}).await;
    site.has_its_place("d").await;
    let key = format!("{}:{{{}/a}}:", site.test.name(), site.test.name());
    site.redis.send::<i64>(&format!("DEL {key}lock {key}queue {key}waiters")).await;
    let record = is_held_in_redis(site, "a").await;
    assert_eq!(record.holds[0].token.get(), first);
    holds_still(site, "c", first).await;
    remove_claim(site, "c").await;
    let second = site.token_of("d").await;
    assert!(second > first, "{second} after {first}");
    remove_claim(site, "d").await;
    held_by_nobody(site).await;
    site.claim("e", "a", |_| {}).await;
    assert!(site.token_of("e").await > second);
    attendant.calm().await;
    remove_claim(site, "e").await;
    held_by_a_pod_that_ends(site).await;
    site.lock_is("a", "is free", |lock| !lock_condition(lock, types::HELD)).await;
    remove_lock(site, "a").await;
}

async fn is_held_in_redis(site: &Site, lock: &str) -> Inspection {
    let held = async || site.workload().inspect(&site.key(lock)).await.ok().flatten().filter(|r| !r.holds.is_empty());
    wait_for(&format!("{lock} is held in Redis"), NEXT_EPOCH, held).await
}

/// Its process has gone with it, and nobody renews; its lease would end in no test.
async fn held_by_a_pod_that_ends(site: &Site) {
    site.change::<DistributedLock>("a", json!({"leaseDurationSeconds": 600})).await;
    let pod = site.pods().run("direct", "Never", Some("node")).await;
    acquires_directly(site, &pod).await;
    site.pods().report("direct", json!({"phase": "Succeeded"})).await;
}

async fn acquires_directly(site: &Site, pod: &Pod) {
    let uid = pod.uid().expect("a UID");
    let granted = async || matches!(direct::acquire(site, "direct", &uid).await, Acquired::Granted(_)).then_some(());
    wait_for("a direct hold", LIMIT, granted).await;
}

/// Claims wait, hold, give up, end and go, and a pod holds for too long.
async fn claim(site: &mut Site, attendant: &Attendant) {
    short_lock(site, "a").await;
    site.claim("first", "a", |_| {}).await;
    let first = site.token_of("first").await;
    site.claim("leaves", "a", |_| {}).await;
    site.claim_reason("leaves", types::HELD, reasons::WAITING).await;
    remove_claim(site, "leaves").await;
    site.claim("wont-wait", "a", |spec| {
        (spec.wait_timeout_seconds, spec.ttl_seconds_after_finished) = (Some(0), Some(0));
    })
    .await;
    site.test.gone::<LockClaim>("wont-wait", LIMIT).await;
    let pod = site.pods().run("worker", "Never", Some("node")).await;
    finalizers_of_pod(site, json!(["test/kept"])).await;
    site.claim("worker", "a", |spec| {
        (spec.holder_ref, spec.max_hold_seconds) = (Some(holder(&pod)), Some(1));
    })
    .await;
    site.has_its_place("worker").await;
    holds_still(site, "first", first).await;
    remove_claim(site, "first").await;
    let held = |claim: &LockClaim| claim.status.as_ref().is_some_and(|s| s.fencing_token > Some(first));
    site.claim_is("worker", "has held", held).await;
    let evicted = |pod: &Pod| pod.metadata.deletion_timestamp.is_some();
    site.test.until("worker", "is being evicted", LIMIT, evicted).await;
    site.pods().report("worker", json!({"phase": "Succeeded"})).await;
    site.claim_is("worker", "has finished", |claim| claim_condition(claim, types::FINISHED)).await;
    finalizers_of_pod(site, json!([])).await;
    site.claim("next", "a", |_| {}).await;
    assert!(site.token_of("next").await > first);
    attendant.calm().await;
    remove_claim(site, "next").await;
    remove_lock(site, "a").await;
}

/// Claims of several locks wait for one while they hold another, leave, wait again when Redis is lost, hold all, and give them
/// back.
async fn several(site: &mut Site, attendant: &Attendant) {
    for lock in ["aa", "b"] {
        short_lock(site, lock).await;
    }
    // Waited for again during its quarantine.
    site.ready_lock("a", |spec| spec.lease_duration_seconds = 4).await;
    site.claim("first", "b", |_| {}).await;
    let first = site.token_of("first").await;
    for (name, locks) in [("both", ["b", "a"]), ("leaves", ["aa", "b"])] {
        site.claim(name, "b", |spec| spec.locks = locks.map(LockRequest::new).to_vec()).await;
        waits_at(site, name, "b").await;
    }
    remove_claim(site, "leaves").await;
    site.claim("next", "aa", |_| {}).await;
    site.token_of("next").await;
    let epoch = self::epoch(site).await;
    site.redis.kill();
    site.redis.restart().await;
    has_epoch_above(site, epoch).await;
    is_held_in_redis(site, "a").await;
    holds_still(site, "first", first).await;
    remove_claim(site, "first").await;
    let both = site.token_of("both").await;
    assert!(both > first);
    attendant.calm().await;
    holds_still(site, "both", both).await;
    for claim in ["both", "next"] {
        remove_claim(site, claim).await;
    }
    for lock in ["a", "aa", "b"] {
        remove_lock(site, lock).await;
    }
}

/// Pods wait by a gate: one holds and ends, one holds, one gives up, one asks for another lock, one can't be read, and one doesn't start. A claim
/// for one that still has another gate is taken back.
async fn gated(site: &mut Site, attendant: &Attendant) {
    for lock in ["a", "b", "c", "d"] {
        short_lock(site, lock).await;
    }
    // Before all others, so that the places on the way of its claim are passed by that first.
    let quick = site.pods().gated("quick", "a", &[GATE], json!({})).await;
    let before = let_go(site, "quick").await;
    site.pods().start("quick", site.test.name()).await;
    site.pods().report("quick", json!({"phase": "Succeeded"})).await;
    site.test.gone::<LockClaim>(&claim_of(&quick), LIMIT).await;
    site.pods().gated("one", "a", &[GATE], json!({})).await;
    let first = let_go(site, "one").await;
    assert!(first > before);
    site.pods().start("one", site.test.name()).await;
    let hasty = site.pods().gated("hasty", "a", &[GATE], json!({ (WAIT_TIMEOUT): "0" })).await;
    fails(site, "hasty").await;
    site.test.gone::<LockClaim>(&claim_of(&hasty), LIMIT).await;
    let moves = site.pods().gated("moves", "a", &[GATE], json!({ (LOCKS): "a,d" })).await;
    queues(site, &moves).await;
    merge(site, "moves", json!({"metadata": {"labels": { GATE: "b" }, "annotations": { (LOCKS): "d,b" }}})).await;
    let_go(site, "moves").await;
    let apart = site.pods().gated("apart", "c", &["other", GATE], json!({})).await;
    let early = claim_of_its_own(site, &apart, "c").await;
    site.token_of(&early).await;
    remove_claim(site, &early).await;
    site.lock_is("c", "is free", |lock| !lock_condition(lock, types::HELD)).await;
    site.pods().gated("odd", "a", &[GATE], json!({ (LOCKS): "a=0", (START_TIMEOUT): "1" })).await;
    says(site, "odd", reasons::INVALID_LOCKS).await;
    merge(site, "odd", json!({"metadata": {"annotations": { (LOCKS): null }}})).await;
    site.pods().report("one", json!({"phase": "Succeeded"})).await;
    site.test.gone::<Pod>("odd", LIMIT).await;
    // Its status may never have shown a hold as short as that.
    let again = async || {
        let record = site.workload().inspect(&site.key("a")).await.ok()??;
        (record.last > first).then_some(())
    };
    wait_for("a was granted again", LIMIT, again).await;
    attendant.calm().await;
    for pod in ["moves", "apart"] {
        site.pods().delete_by_force(&site.pods().api().get(pod).await.expect("it is there")).await;
    }
    for lock in ["a", "c"] {
        remove_lock(site, lock).await;
    }
}

/// As the controller makes it for a pod, before it would.
async fn claim_of_its_own(site: &Site, pod: &Pod, lock: &str) -> String {
    let spec = LockClaimSpec { holder_ref: Some(holder(pod)), ..LockClaimSpec::for_lock(lock) };
    let mut claim = LockClaim::new(&claim_of(pod), spec);
    claim.metadata.owner_references = Some(vec![pod.owner_ref(&()).expect("a pod that is there")]);
    let claims: Api<LockClaim> = site.test.api();
    claims.create(&PostParams::default(), &claim).await.expect("created").name_any()
}

async fn finalizers_of_pod(site: &Site, finalizers: serde_json::Value) {
    let patch = Patch::Merge(json!({"metadata": {"finalizers": finalizers}}));
    site.pods().api().patch("worker", &PatchParams::default(), &patch).await.expect("patched");
}

/// A choice that etcd never heard of, then a leader, then another one, then none.
async fn election(site: &mut Site, attendant: &Attendant) {
    site.pods().node(site.test.name(), true).await;
    let app = "app";
    for pod in ["a", "b", "c"] {
        site.pods().serve(pod, app, site.test.name()).await;
        site.pods().report(pod, serving(1, false)).await;
    }
    let elects = |spec: &mut leasehold::api::DistributedLockSpec| {
        among(app)(spec);
        spec.lease_duration_seconds = 1;
    };
    let lock = site.ready_lock("l", elects).await;
    choose_without_a_word(site, &lock).await;
    for pod in ["b", "c"] {
        site.pods().report(pod, serving(1, true)).await;
    }
    let (first, token) = leaders(site, 1, 0).await.remove(0);
    site.pods().report("a", serving(1, true)).await;
    site.pods().report(&first, json!({"phase": "Failed"})).await;
    let (second, higher) = leaders(site, 1, token).await.remove(0);
    assert_ne!(first, second);
    attendant.calm().await;
    let (third, token) = leaders(site, 1, token).await.remove(0);
    assert_eq!((third, token), (second, higher));
    remove_lock(site, "l").await;
    leaders(site, 0, higher).await;
}

/// What an etcd that was put back to an older copy finds: a hold that it records and Redis has not.
async fn ends_in_redis_alone(site: &Site, claim: &str) {
    let told = site.claim_is(claim, "is told", |claim| claim_condition(claim, types::HELD)).await;
    let id = told.status.and_then(|status| status.holder_id).expect("its id");
    let id = HolderId::new(id).expect("an id");
    let freed = async || control(site).await?.free(&site.key("a"), &id, None).await.ok()?.ok();
    wait_for("its hold has ended in Redis", LIMIT, freed).await;
}

/// What a claim leaves that was deleted after somebody had taken our finalizer off.
async fn held_by_nobody(site: &Site) {
    let request = request("nobody.1", Wait::No);
    let pinned = async || {
        let control = control(site).await?;
        let answer = control.claim(&site.key("a"), &request).await.ok()?.ok()?;
        let Acquired::Granted(grant) = answer else { return None };
        control.pin(&site.key("a"), &request.id, grant.token.epoch()).await.ok()?.ok()
    };
    wait_for("it is held by nobody", LIMIT, pinned).await;
}

/// As the controller calls Redis now.
async fn control(site: &Site) -> Option<Control> {
    let store = site.stores().get(&site.store_name()).await.ok()?;
    let term = store.status.as_ref()?.term?;
    Some(Control::new(site.workload(), store.uid()?, term))
}

/// Redis knows a mark that etcd doesn't, and a person says that nothing runs that etcd has forgotten.
async fn etcd_seems_put_back(site: &Site) {
    site.redis.send::<i64>(&format!("HSET {}:store mark 1000000", site.test.name())).await;
    let condition = |store: &LockStore| {
        let status = store.status.clone().unwrap_or_default();
        condition::get(&status.conditions, types::ETCD_RESTORED).cloned()
    };
    let has = |reason| move |store: &LockStore| condition(store).is_some_and(|condition| condition.reason == reason);
    let store = site.store_is("awaits a person", has(reasons::AWAITING_CONFIRMATION)).await;
    let since = condition(&store).map(|condition| condition.last_transition_time.0.to_string());
    let annotation = Patch::Merge(json!({"metadata": {"annotations": { CONFIRM_ETCD_RESTORE: since }}}));
    site.stores().patch(&site.store_name(), &PatchParams::default(), &annotation).await.expect("patched");
    site.store_is("is confirmed", has(reasons::CONFIRMED)).await;
}

/// What a controller leaves that dies between Redis and etcd.
async fn choose_without_a_word(site: &Site, lock: &DistributedLock) {
    let pod = site.pods().api().get("a").await.expect("the pod").uid().expect("a UID");
    let id = HolderId::new(format!("{}.{pod}.1", lock.uid().expect("a UID"))).expect("an id");
    let wait = Wait::No;
    let (mode, identity) = (Mode::Counted(1), "pod/a".to_owned());
    let request = Request { id, mode, priority: 0, wait, identity, pod_uid: Some(pod) };
    let chosen = async || {
        let answer = control(site).await?.claim(&site.key("l"), &request).await.ok()?.ok()?;
        matches!(answer, Acquired::Granted(_)).then_some(())
    };
    wait_for("a choice is made", LIMIT, chosen).await;
}

/// A person takes the hold of a process by force.
async fn force(site: &mut Site, attendant: &Attendant) {
    apply_force_release(&site.test).await;
    // The lease outlasts the tour, so that only force ends it.
    site.ready_lock("a", |spec| spec.lease_duration_seconds = 3600).await;
    let granted = site.workload().acquire(&site.key("a"), &request("direct", Wait::No)).await;
    let Ok(Acquired::Granted(grant)) = granted else { panic!("not granted: {granted:?}") };
    let annotations = json!({ FORCE_RELEASE: grant.token.get().to_string(), FORCE_RELEASE_REASON: "a tour" });
    let patch = Patch::Merge(json!({"metadata": {"annotations": annotations}}));
    site.test.api::<DistributedLock>().patch("a", &PatchParams::default(), &patch).await.expect("it is accepted");
    let done = |lock: &DistributedLock| !lock.annotations().contains_key(FORCE_RELEASE);
    site.lock_is("a", "was taken by force", done).await;
    site.claim("next", "a", |_| {}).await;
    assert!(site.token_of("next").await > grant.token.get());
    attendant.calm().await;
    remove_claim(site, "next").await;
    remove_lock(site, "a").await;
}

/// A namespace gets credentials, another password, and loses them.
async fn credentials(site: &mut Site, attendant: &Attendant) {
    enable(site).await;
    let first = secret_is(site, "is made", |_| true).await;
    works_soon(&first).await;
    let wish = Patch::Merge(json!({"metadata": {"annotations": { (ROTATE): "a tour" }}}));
    site.test.api::<Secret>().patch(CONNECTION, &PatchParams::default(), &wish).await.expect("patched");
    let old = text(&first, "password");
    let second = secret_is(site, "has another password", |secret| text(secret, "password") != old).await;
    works_soon(&second).await;
    refused_soon(&first).await;
    attendant.calm().await;
    works_soon(&second).await;
    refused_soon(&first).await;
    disable(site).await;
    site.test.gone::<Secret>(CONNECTION, LIMIT).await;
    refused_soon(&second).await;
}

/// The controller ends when it is asked to, and another one follows.
async fn replica(site: &mut Site, attendant: &Attendant) {
    short_lock(site, "a").await;
    attendant.ask_to_end();
    wait_for("another one works", LIMIT, async || (attendant.lives() > 1).then_some(())).await;
    short_lock(site, "b").await;
    let granted = site.workload().acquire(&site.key("b"), &request("direct", Wait::No)).await;
    assert!(matches!(granted, Ok(Acquired::Granted(_))), "{granted:?}");
}
