//! Servers that restart, change roles or are full, and records that are not ours.

use std::net::TcpListener;
use std::time::Duration;

use leasehold::lease::{Acquired, Epoch, FencingToken, HolderId, LockKey, Mode, Released, Renewed, Request, Wait};
use leasehold::store::{Control, Due, HoldState, LIBRARY_SOURCE, LibraryState, Provision, Refusal, Remembered};

use super::fixture::{Declared, id, provision, request};
use super::machine::patched;
use super::server::{PREFIX, Server};
use crate::support::{LIMIT, wait_for};

#[tokio::test]
async fn with_full_memory_holders_go_on_and_only_new_grants_fail() {
    let declared = Declared::mutex().await;
    let lock = &declared.lock;
    declared.granted("holder").await;
    declared.acquire("waiter", Wait::Forever).await;
    let () = declared.server.send("CONFIG SET maxmemory 1").await;
    let refused = declared.store.acquire(lock, &request("late", Wait::No)).await.unwrap_err();
    assert_eq!(refused.label(), "OutOfMemory");
    let renewed = declared.store.renew(&[(lock.clone(), id("holder"))]).await.unwrap();
    assert!(matches!(renewed[..], [Renewed::Held(_)]), "{renewed:?}");
    let due = declared.control.expire(std::slice::from_ref(lock)).await.unwrap().unwrap();
    assert!(matches!(due[..], [Due::In(_)]), "{due:?}");
    assert_eq!(declared.store.release(lock, &id("holder")).await.unwrap(), Released::Released);
    let renewed = declared.store.renew(&[(lock.clone(), id("waiter"))]).await.unwrap();
    assert!(matches!(renewed[..], [Renewed::Held(_)]), "the waiter was promoted: {renewed:?}");
    assert_eq!(declared.store.cancel(lock, &id("waiter")).await.unwrap(), Released::Cancelled);
    assert_eq!(declared.store.cancel(lock, &id("never")).await.unwrap(), Released::Cancelled);
}

async fn second_lock(declared: &Declared) -> (LockKey, HolderId) {
    let lock = LockKey::new("shop", "second").unwrap();
    declared.control.provision(&lock, &provision(1, Duration::from_secs(600))).await.unwrap().unwrap();
    let acquired = declared.store.acquire(&lock, &request("second", Wait::No)).await.unwrap();
    assert!(matches!(acquired, Acquired::Granted(_)));
    (lock, id("second"))
}

/// Every call on the lock is an error; calls for several locks serve the others.
async fn is_refused(declared: &Declared) {
    let (store, lock) = (&declared.store, &declared.lock);
    assert!(store.acquire(lock, &request("other", Wait::No)).await.is_err());
    assert!(store.renew(&[(lock.clone(), id("holder"))]).await.is_err());
    assert!(store.release(lock, &id("holder")).await.is_err());
    assert!(store.cancel(lock, &id("holder")).await.is_err());
    assert!(store.inspect(lock).await.is_err());
    assert!(declared.control.expire(std::slice::from_ref(lock)).await.is_err());
    assert!(declared.control.provision(lock, &provision(1, Duration::from_secs(5))).await.is_err());
    let second = second_lock(declared).await;
    let renewed = store.renew(&[(lock.clone(), id("holder")), second.clone()]).await.unwrap();
    assert!(matches!(renewed[..], [Renewed::Unprovisioned, Renewed::Held(_)]), "{renewed:?}");
    let due = declared.control.expire(&[lock.clone(), second.0]).await.unwrap().unwrap();
    assert!(matches!(due[..], [Due::Unprovisioned, Due::In(_)]), "{due:?}");
}

#[tokio::test]
async fn a_record_of_another_layout_is_an_error_for_it_alone() {
    let declared = Declared::mutex().await;
    declared.granted("holder").await;
    let key = format!("{PREFIX}:{{{}}}:lock", declared.lock);
    let mut config: Vec<u8> = declared.server.send(&format!("HGET {key} config")).await;
    config[0] += 1;
    let mut set = redis::cmd("HSET");
    set.arg(&key).arg("config").arg(config);
    let () = declared.server.query(&set).await.unwrap();
    let error = declared.store.inspect(&declared.lock).await.unwrap_err();
    let source = std::error::Error::source(&error).expect("the server's words").to_string();
    assert!(source.contains("layout 2"), "{source}");
    is_refused(&declared).await;
}

/// As version 0.1 has written it.
#[tokio::test]
async fn a_delegated_hold_without_a_place_ends_with_its_lease_and_one_with_a_place_stands_there() {
    let declared = Declared::with(&provision(2, Duration::from_millis(300))).await;
    let claim = async |name: &str| {
        declared.control.claim(&declared.lock, &request(name, Wait::Forever)).await.unwrap().unwrap()
    };
    let (Acquired::Granted(_), Acquired::Granted(first)) = (claim("old").await, claim("new").await) else {
        panic!("not granted");
    };
    let (key, field) = (format!("{PREFIX}:{{{}}}:lock", declared.lock), "id:old");
    let mut hold: Vec<u8> = declared.server.send(&format!("HGET {key} {field}")).await;
    hold.truncate(hold.len() - 17);
    let mut set = redis::cmd("HSET");
    let () = declared.server.query(set.arg(&key).arg(field).arg(hold)).await.unwrap();
    wait_for("its lease is over", LIMIT, async || (claim("old").await == Acquired::Lost).then_some(())).await;
    let renew = async || declared.store.renew(&[(declared.lock.clone(), id("new"))]).await.unwrap();
    let Acquired::Granted(again) = claim("new").await else { panic!("it has lost its place") };
    assert!(again.token > first.token, "{again:?} after {first:?}");
    // Who can't be told, and renews nothing, keeps it from others no third time.
    let is_over = async || {
        let record = declared.store.inspect(&declared.lock).await.ok()??;
        record.holds.is_empty().then_some(())
    };
    wait_for("its lease is over", LIMIT, is_over).await;
    assert_eq!(renew().await, [Renewed::Lost]);
    assert_eq!(claim("new").await, Acquired::Lost);
}

#[tokio::test]
async fn a_next_attempt_that_was_granted_already_stands_where_the_one_before_did() {
    let declared = Declared::with(&provision(3, Duration::from_secs(600))).await;
    for name in ["first.1", "second.1", "first.2"] {
        let answer = declared.control.claim(&declared.lock, &request(name, Wait::Forever)).await.unwrap().unwrap();
        assert!(matches!(answer, Acquired::Granted(_)), "{name}: {answer:?}");
    }
    declared.control.free(&declared.lock, &id("first.1"), Some(&id("first.2"))).await.unwrap().unwrap();
    for name in ["second.1", "first.2"] {
        let answer = declared.control.reserve(&declared.lock, &request(name, Wait::Forever)).await.unwrap().unwrap();
        assert!(matches!(answer, Acquired::Queued { .. }), "{name}: {answer:?}");
    }
    let record = declared.store.inspect(&declared.lock).await.unwrap().unwrap();
    assert_eq!(record.waiters.into_iter().map(|(id, _)| id).collect::<Vec<_>>(), [id("first.2"), id("second.1")]);
}

#[tokio::test]
async fn of_a_hold_that_was_granted_again_the_newer_token_is_put_back() {
    let declared = Declared::mutex().await;
    let old = declared.granted("x").await.token.get();
    let newer = FencingToken::new(old + 3).unwrap();
    let hold =
        Remembered { id: id("x"), token: newer, mode: Mode::Counted(1), identity: "claim/x".into(), pod_uid: None };
    let known = Provision { holds: vec![hold], ..provision(1, Duration::from_secs(600)) };
    declared.provision(&known).await;
    let record = declared.store.inspect(&declared.lock).await.unwrap().unwrap();
    assert_eq!((record.holds[0].token, record.holds[0].state), (newer, HoldState::Pinned));
    assert_eq!(record.last, newer.get());
}

#[tokio::test]
async fn a_key_that_is_no_record_is_an_error_for_it_alone() {
    let declared = Declared::mutex().await;
    let () = declared.server.send(&format!("SET {PREFIX}:{{{}}}:lock nonsense", declared.lock)).await;
    is_refused(&declared).await;
}

#[tokio::test]
async fn senseless_requests_are_errors_and_change_nothing() {
    let declared = Declared::mutex().await;
    let before = declared.store.inspect(&declared.lock).await.unwrap().unwrap();
    let none = Request { mode: Mode::Counted(0), ..request("none", Wait::No) };
    assert!(declared.store.acquire(&declared.lock, &none).await.is_err());
    let lock = format!("{PREFIX}:{{{}}}", declared.lock);
    for ask in ["c -5 0 0", "c nan 0 0", "c 1.5 0 0", "c inf 0 0", "q 1 0 0", "c 1 9999999999 0", "c 1 0 -2", "c 1 0 x"]
    {
        let call = format!("FCALL leasehold1_acquire 3 {lock}:lock {lock}:queue {lock}:waiters x {ask} who ");
        declared.server.try_send::<redis::Value>(&call).await.expect_err(ask);
    }
    let after = declared.store.inspect(&declared.lock).await.unwrap().unwrap();
    assert_eq!((before.last, after.holds.len(), after.waiters.len()), (after.last, 0, 0));
}

#[tokio::test]
async fn the_library_is_missing_replaced_when_older_and_kept_when_newer() {
    let server = Server::start().await;
    let store = server.store();
    assert_eq!(store.library().await.unwrap(), LibraryState::Missing);
    let line = LIBRARY_SOURCE.lines().find(|line| line.starts_with("local VERSION = ")).unwrap();
    let version = |number: i32| patched(LIBRARY_SOURCE, line, &format!("local VERSION = {number}"));
    store.load_library(&version(0)).await.unwrap();
    assert_eq!(store.library().await.unwrap(), LibraryState::Missing, "an older one counts as none");
    store.load_library(LIBRARY_SOURCE).await.unwrap();
    assert_eq!(store.library().await.unwrap(), LibraryState::Current);
    store.load_library(&version(1_000)).await.unwrap();
    assert_eq!(store.library().await.unwrap(), LibraryState::Newer);
}

#[tokio::test]
async fn a_call_without_the_library_is_an_error_that_says_so() {
    let server = Server::start().await;
    let lock = LockKey::new("shop", "report").unwrap();
    let error = server.store().acquire(&lock, &request("a", Wait::No)).await.unwrap_err();
    assert!(error.is_missing_library(), "{error:?}");
}

#[tokio::test]
async fn a_master_that_was_a_replica_meanwhile_grants_nothing_until_it_is_opened_again() {
    let declared = Declared::mutex().await;
    let lock = &declared.lock;
    declared.granted("holder").await;
    let before = declared.opening(Epoch::new(1).unwrap()).await;
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let () = declared.server.send(&format!("REPLICAOF 127.0.0.1 {port}")).await;
    let error = declared.store.acquire(lock, &request("replica", Wait::No)).await.unwrap_err();
    assert_eq!(error.label(), "NotMaster");
    let () = declared.server.send("REPLICAOF NO ONE").await;

    // Without data lost, and without a restart: the library's memory is still there.
    wait_for("the gate to look at the replication", LIMIT, async || {
        (declared.acquire("other", Wait::No).await == Acquired::GateClosed).then_some(())
    })
    .await;
    let renewed = declared.store.renew(&[(lock.clone(), id("holder"))]).await.unwrap();
    assert!(matches!(renewed[..], [Renewed::Held(_)]), "what is held goes on: {renewed:?}");
    assert_eq!(declared.control.open(&before).await.unwrap(), Err(Refusal::OtherProcess));
    let after = declared.opening(Epoch::new(1).unwrap()).await;
    assert_eq!((after.run_id == before.run_id, after.replid == before.replid), (true, false));
    assert_eq!(declared.control.open(&after).await.unwrap(), Err(Refusal::StaleEpoch(1)));
    declared.open(Epoch::new(2).unwrap()).await;
    assert_eq!(declared.store.release(lock, &id("holder")).await.unwrap(), Released::Released);
    assert_eq!(declared.granted("next").await.token.epoch(), Epoch::new(2).unwrap());
}

#[tokio::test]
async fn a_process_that_restarts_empty_is_closed_and_knows_no_lock() {
    let mut declared = Declared::mutex().await;
    let lock = declared.lock.clone();
    declared.granted("holder").await;
    let before = declared.opening(Epoch::new(2).unwrap()).await;
    declared.server.restart().await;
    let store = declared.server.store();
    assert_eq!(store.library().await.unwrap(), LibraryState::Missing);
    store.load_library(LIBRARY_SOURCE).await.unwrap();
    let control = Control::new(store.clone(), "store", 1);
    assert_eq!(control.heartbeat("test", 0).await.unwrap().unwrap().gate, None);
    assert_eq!(control.open(&before).await.unwrap(), Err(Refusal::OtherProcess));
    assert_eq!(store.acquire(&lock, &request("other", Wait::No)).await.unwrap(), Acquired::Unprovisioned);
    assert_eq!(store.renew(&[(lock.clone(), id("holder"))]).await.unwrap(), [Renewed::Unprovisioned]);
    let fresh = provision(1, Duration::from_secs(5));
    assert_eq!(control.provision(&lock, &fresh).await.unwrap(), Err(Refusal::GateClosed));
}
