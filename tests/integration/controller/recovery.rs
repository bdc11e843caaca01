//! What is lost is put back: Redis, the controller, the API server.

use std::time::{Duration, Instant};

use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use leasehold::api::condition::{self, reasons, types};
use leasehold::api::{DistributedLock, LockClaim, LockStore};
use leasehold::lease::{Acquired, Wait};
use leasehold::store::{LIBRARY_SOURCE, Store};
use serde_json::json;

use super::fixture::{Fixture, claim_condition, epoch, is_ready, lock_condition, ready, request};
use crate::support::{LIMIT, RedisServer, eventually, wait_for};

async fn current(f: &Fixture) -> LockStore {
    f.store_is("is Ready", is_ready).await
}

#[tokio::test]
async fn redis_killed_and_back_empty_takes_no_hold_and_the_next_token_is_higher() {
    let mut f = Fixture::new().await;
    f.ready_lock("a", |spec| spec.lease_duration_seconds = 2).await;
    f.claim("holder", "a", |_| {}).await;
    let first = f.token_of("holder").await;
    for name in ["one", "two", "three"] {
        f.claim(name, "a", |_| {}).await;
        f.claim_reason(name, types::HELD, reasons::WAITING).await;
    }
    let before = epoch(&current(&f).await);
    f.redis.kill();
    f.store_is("is not Ready", |store| ready(store).is_some_and(|(is, _)| !is)).await;
    f.redis.restart().await;
    let after = f.store_is("is Ready in a new epoch", |store| epoch(store) > before && is_ready(store));
    after.await;
    let lock = f.workload().inspect(&f.key("a")).await.unwrap().expect("it is put back before the gate opens");
    assert_eq!((lock.holds.len(), lock.holds[0].token.get()), (1, first));
    f.claim_is("holder", "still holds with its token", |claim| {
        claim_condition(claim, types::HELD) && claim.status.as_ref().unwrap().fencing_token == Some(first)
    })
    .await;
    let mut last = first;
    for (gone, next) in [("holder", "one"), ("one", "two"), ("two", "three")] {
        f.delete::<LockClaim>(gone).await;
        let token = f.token_of(next).await;
        assert!(token > last, "{next} has {token}, after {last}");
        last = token;
    }
}

#[tokio::test]
async fn nothing_is_granted_after_a_loss_while_a_direct_lease_may_still_be_believed() {
    let mut f = Fixture::new().await;
    f.ready_lock("a", |spec| spec.lease_duration_seconds = 4).await;
    let Acquired::Granted(lost) = f.workload().acquire(&f.key("a"), &request("direct", Wait::No)).await.unwrap() else {
        panic!("not granted")
    };
    let granted = Instant::now();
    f.redis.kill();
    f.redis.restart().await;
    f.claim("next", "a", |_| {}).await;
    let token = f.token_of("next").await;
    assert!(granted.elapsed() >= Duration::from_secs(4), "granted beside a lease: {:?}", granted.elapsed());
    assert!(token > lost.token.get());
}

/// Time had taken its grant, and a process has held with a higher token since: Redis has forgotten both.
#[tokio::test]
async fn who_was_not_told_before_a_loss_is_told_of_a_token_above_all_before_it() {
    let mut f = Fixture::new().await;
    f.ready_lock("a", |spec| spec.lease_duration_seconds = 2).await;
    f.controller.kill();
    f.controller.spawn_with(Some("kill after claim.granted".into()));
    f.claim("mine", "a", |_| {}).await;
    wait_for("the controller dies", LIMIT, async || f.controller.process().exit_status()).await;
    let granted =
        f.claim_is("mine", "is granted", |claim| claim.status.as_ref().is_some_and(|s| s.fencing_token.is_some()));
    let mine = granted.await.status.and_then(|status| status.fencing_token);
    let acquire = async || match f.workload().acquire(&f.key("a"), &request("direct", Wait::No)).await {
        Ok(Acquired::Granted(grant)) => Some(grant.token.get()),
        _ => None,
    };
    let between = wait_for("it is granted to another", LIMIT, acquire).await;
    assert!(Some(between) > mine, "{between} after {mine:?}");
    f.workload().release(&f.key("a"), &request("direct", Wait::No).id).await.expect("it is given back");
    f.redis.kill();
    f.redis.restart().await;
    f.controller.spawn_with(None);
    let held = f.claim_is("mine", "holds", |claim| claim_condition(claim, types::HELD)).await;
    let told = held.status.and_then(|status| status.fencing_token);
    assert!(told > Some(between), "{told:?} after {between}");
}

#[tokio::test]
async fn flushall_takes_no_hold_and_the_next_token_is_higher() {
    let f = Fixture::new().await;
    f.ready_lock("a", |spec| spec.lease_duration_seconds = 2).await;
    f.claim("holder", "a", |_| {}).await;
    let first = f.token_of("holder").await;
    let before = epoch(&current(&f).await);
    f.redis.send::<()>("FLUSHALL").await;
    let back = async || f.workload().inspect(&f.key("a")).await.ok().flatten();
    let record = eventually(LIMIT, back).await.expect("the record is made again");
    assert_eq!((record.holds.len(), record.holds[0].token.get()), (1, first));
    assert!(epoch(&current(&f).await) > before, "a lost record is made again in a new epoch");
    f.claim("next", "a", |_| {}).await;
    f.delete::<LockClaim>("holder").await;
    assert!(f.token_of("next").await > first);
}

/// A namespace's credentials may write such keys.
#[tokio::test]
async fn keys_that_are_no_record_keep_no_other_lock_from_being_restored() {
    let mut f = Fixture::new().await;
    for lock in ["a", "b"] {
        f.ready_lock(lock, |spec| spec.lease_duration_seconds = 2).await;
    }
    f.claim("holder", "a", |_| {}).await;
    let first = f.token_of("holder").await;
    f.claim("next", "a", |_| {}).await;
    f.has_its_place("next").await;
    f.controller.stop();
    f.redis.kill();
    f.redis.restart().await;
    let record = format!("{0}:{{{0}/a}}:lock", f.test.name());
    f.redis.send::<()>(&format!("SET {record} none")).await;
    f.controller.restart().await;
    f.claim("other", "b", |_| {}).await;
    f.token_of("other").await;
    f.redis.send::<i64>(&format!("DEL {record}")).await;
    f.delete::<LockClaim>("holder").await;
    assert!(f.token_of("next").await > first, "it is made again once they are gone");
}

/// The library with a function that sets its clock.
pub(crate) fn library_with_a_clock_to_set() -> String {
    const NOW: &str = "local function now_ms()\n  local t = redis.call('TIME')\n";
    const SET: &str = "
local set_by = 0
redis.register_function{function_name = 'set_clock_by', flags = {'no-writes'},
  callback = function(_, args) set_by = tonumber(args[1]) end}
local function now_ms()
  local t = redis.call('TIME')
  t[1] = t[1] + set_by
";
    assert_eq!(LIBRARY_SOURCE.matches(NOW).count(), 1, "the library reads its clock in one place");
    LIBRARY_SOURCE.replace(NOW, SET)
}

#[tokio::test]
async fn a_server_whose_clock_is_set_grants_nothing_until_no_lease_of_before_can_be_believed() {
    let redis = RedisServer::start().await;
    let library = Store::connect(&redis.endpoint(), "any").unwrap();
    library.load_library(&library_with_a_clock_to_set()).await.unwrap();
    let f = Fixture::over(redis).await;
    f.store_is("is Ready", is_ready).await;
    f.ready_lock("a", |spec| spec.lease_duration_seconds = 6).await;
    f.ready_lock("delegated", |_| {}).await;
    f.claim("told", "delegated", |_| {}).await;
    let told = f.token_of("told").await;
    let Acquired::Granted(before) = f.workload().acquire(&f.key("a"), &request("direct", Wait::No)).await.unwrap()
    else {
        panic!("not granted")
    };
    let (granted, epoch_before) = (Instant::now(), epoch(&current(&f).await));
    f.redis.send::<()>("FCALL set_clock_by 0 3600").await;
    let stepped = |store: &LockStore| {
        let conditions = store.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
        condition::is_true(conditions, types::CLOCK_STEPPED)
    };
    f.store_is("says so", stepped).await;
    assert!(granted.elapsed() < Duration::from_secs(4), "it took {:?} to be seen", granted.elapsed());
    f.claim("next", "a", |_| {}).await;
    let token = f.token_of("next").await;
    assert!(granted.elapsed() >= Duration::from_secs(6), "granted beside a lease: {:?}", granted.elapsed());
    assert!(token > before.token.get() && epoch(&current(&f).await) > epoch_before);
    f.claim_is("told", "still holds with its token", |claim| {
        claim_condition(claim, types::HELD) && claim.status.as_ref().unwrap().fencing_token == Some(told)
    })
    .await;
    f.store_is("is steady again", |store| !stepped(store)).await;
}

#[tokio::test]
async fn a_reloaded_library_costs_no_epoch() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    let before = epoch(&current(&f).await);
    f.redis.send::<()>("FUNCTION FLUSH").await;
    f.claim("mine", "a", |_| {}).await;
    f.token_of("mine").await;
    assert_eq!(epoch(&current(&f).await), before);
}

#[tokio::test]
async fn a_controller_killed_while_claims_hold_and_wait_goes_on_where_it_was() {
    let mut f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    f.claim("holder", "a", |_| {}).await;
    let first = f.token_of("holder").await;
    f.claim("waiter", "a", |_| {}).await;
    f.claim_reason("waiter", types::HELD, reasons::WAITING).await;
    let term = current(&f).await.status.unwrap().term;
    f.controller.kill();
    f.delete::<LockClaim>("holder").await;
    f.controller.restart().await;
    assert!(f.token_of("waiter").await > first);
    f.test.gone::<LockClaim>("holder", LIMIT).await;
    assert!(current(&f).await.status.unwrap().term > term, "each reign has a term of its own");
}

#[tokio::test]
async fn an_api_server_away_for_thirty_seconds_takes_no_hold() {
    let f = Fixture::alone().await;
    f.ready_lock("a", |spec| spec.lease_duration_seconds = 5).await;
    f.claim("mine", "a", |_| {}).await;
    let first = f.token_of("mine").await;
    f.test.plane().stop_apiserver();
    let (store, key) = (f.workload(), f.key("a"));
    let away = Instant::now();
    while away.elapsed() < Duration::from_secs(30) {
        let record = store.inspect(&key).await.unwrap().expect("a record");
        let hold = record.holds.first().expect("it is held all the time");
        assert!(hold.token.get() == first && hold.expires > record.now, "not renewed: {hold:?} at {}", record.now);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    f.test.plane().start_apiserver().await;
    f.claim("next", "a", |_| {}).await;
    f.claim_reason("next", types::HELD, reasons::WAITING).await;
    f.delete::<LockClaim>("mine").await;
    assert!(f.token_of("next").await > first);
}

#[tokio::test]
async fn a_controller_that_is_asked_to_end_does() {
    let mut f = Fixture::new().await;
    let status = f.controller.stop().expect("it ends within the limit");
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn an_older_controller_ends_when_a_newer_one_reigns() {
    let mut f = Fixture::new().await;
    let newer = crate::support::Controller::start(super::fixture::options(&f.test, &f.redis)).await;
    let ended = eventually(LIMIT, async || f.controller.process().exit_status()).await.expect("the older one ends");
    assert!(!ended.success());
    f.ready_lock("a", |_| {}).await;
    drop(newer);
}

#[tokio::test]
async fn deleting_the_namespace_does_not_hang_on_a_redis_that_is_gone() {
    let mut f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    f.claim("mine", "a", |_| {}).await;
    f.token_of("mine").await;
    f.redis.kill();
    f.store_is("is not Ready", |store| ready(store).is_some_and(|(is, _)| !is)).await;
    f.test.delete().await;
    f.test.gone::<LockClaim>("mine", LIMIT).await;
    f.test.gone::<DistributedLock>("a", LIMIT).await;
}

#[tokio::test]
async fn a_store_waits_for_its_locks_and_its_prefix_is_free_afterwards() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    f.claim("mine", "a", |_| {}).await;
    let first = f.token_of("mine").await;
    let name = f.store_name();
    f.stores().delete(&name, &DeleteParams::default()).await.unwrap();
    f.store_is("waits for its lock", |store| super::fixture::not_ready(store, reasons::IN_USE)).await;
    f.delete::<LockClaim>("mine").await;
    f.delete::<DistributedLock>("a").await;
    f.test.gone::<DistributedLock>("a", LIMIT).await;
    let stores: Api<LockStore> = f.stores();
    let gone = async || stores.get_opt(&name).await.is_ok_and(|store| store.is_none()).then_some(());
    crate::support::wait_for("the store is gone", LIMIT, gone).await;
    let again = super::fixture::store(&name, &f.redis.address(), &format!("test/{}", f.test.name()));
    stores.create(&kube::api::PostParams::default(), &again).await.unwrap();
    current(&f).await;
    f.ready_lock("a", |_| {}).await;
    f.claim("again", "a", |_| {}).await;
    assert!(f.token_of("again").await > first);
    let mirror: Api<k8s_openapi::api::core::v1::ConfigMap> = f.test.api();
    let mirrored = mirror.get("leasehold-epochs").await.unwrap().data.unwrap()[&name].parse().ok();
    assert_eq!(mirrored, epoch(&current(&f).await));
}

#[tokio::test]
async fn a_store_that_was_deleted_goes_on_above_its_epochs_also_beside_an_empty_redis() {
    let mut f = Fixture::new().await;
    f.stores().patch(&f.store_name(), &PatchParams::default(), &far_ahead()).await.unwrap();
    f.redis.kill();
    f.redis.restart().await;
    let ahead = f.store_is("is far ahead", |store| epoch(store) >= Some(1_000_000)).await;
    current(&f).await;
    f.stores().delete(&f.store_name(), &DeleteParams::default()).await.unwrap();
    let gone = async || f.stores().get_opt(&f.store_name()).await.ok()?.is_none().then_some(());
    crate::support::wait_for("the store is gone", LIMIT, gone).await;
    f.redis.send::<()>("FLUSHALL").await;
    let again = super::fixture::store(&f.store_name(), &f.redis.address(), &format!("test/{}", f.test.name()));
    f.stores().create(&kube::api::PostParams::default(), &again).await.unwrap();
    let store = current(&f).await;
    assert!(epoch(&store) > epoch(&ahead), "{:?} after {:?}", epoch(&store), epoch(&ahead));
}

/// As if the store had lived for long.
fn far_ahead() -> Patch<serde_json::Value> {
    Patch::Merge(json!({"spec": {"minimumEpoch": 1_000_000}}))
}

#[tokio::test]
async fn probes_and_metrics_are_served() {
    let f = Fixture::new().await;
    f.ready_lock("a", |_| {}).await;
    f.claim("mine", "a", |_| {}).await;
    f.token_of("mine").await;
    assert_eq!(f.controller.get("/healthz").await.map(|(code, _)| code), Some(200));
    assert_eq!(f.controller.get("/readyz").await.map(|(code, _)| code), Some(200));
    let (_, metrics) = f.controller.get("/metrics").await.expect("metrics");
    let ready = format!("leasehold_store_ready{{store=\"{}\"}} 1", f.store_name());
    for line in [ready.as_str(), "leasehold_reconcile_duration_seconds_count", "leasehold_status_writes_total"] {
        assert!(metrics.contains(line), "no {line} in:\n{metrics}");
    }
}

#[tokio::test]
async fn changes_are_told_by_events_and_renewals_are_not() {
    let f = Fixture::new().await;
    f.ready_lock("a", |spec| spec.lease_duration_seconds = 1).await;
    f.claim("mine", "a", |_| {}).await;
    f.token_of("mine").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    f.delete::<LockClaim>("mine").await;
    f.lock_is("a", "is free", |lock| !lock_condition(lock, types::HELD)).await;
    let told = async || {
        let events = f.test.kubectl("get events -o json").await.ok()?;
        let events: serde_json::Value = serde_json::from_str(&events).ok()?;
        let mut reasons: Vec<String> = Vec::new();
        for event in events["items"].as_array()? {
            if event["involvedObject"]["name"] == json!("a") {
                reasons.push(event["reason"].as_str()?.to_owned());
            }
        }
        reasons.sort();
        (reasons == ["Acquired", "Released"]).then_some(())
    };
    crate::support::wait_for("one Event a change", LIMIT, told).await;
}
