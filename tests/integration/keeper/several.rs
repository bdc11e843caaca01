//! Several locks: all of them, or none.

use std::time::Duration;

use leasehold::keeper::{AcquireError, Lock, Options, Wait, acquire_all};
use leasehold::lease::LockKey;
use rstest::rstest;

use super::{lock, nobody_is_left, options, store};
use crate::protocol::fixture::provision;
use crate::run::fixture::{SOON, Scene};

/// The lock of the scene, and one that comes after it in the order in which they are taken.
async fn both(scene: &Scene) -> [Lock; 2] {
    scene.declare("zebra").await;
    [lock(scene), store(scene).lock(LockKey::new("shop", "zebra").unwrap())]
}

#[rstest]
#[case::without_waiting(Wait::No)]
#[case::in_time(Wait::For(Duration::from_millis(300)))]
#[tokio::test]
async fn where_one_is_not_had_the_others_are_given_back_before_it_is_told(#[case] wait: Wait) {
    let scene = Scene::new().await;
    let locks = both(&scene).await;
    let _other = locks[1].acquire(Options::named("other")).await.unwrap();
    let error = acquire_all(&locks, &options(wait)).await.unwrap_err();
    assert!(matches!(error, AcquireError::Busy | AcquireError::TimedOut(_)), "{error}");
    assert_eq!((scene.holders().await, scene.waiters().await), (0, 0), "nothing is held");
}

#[tokio::test]
async fn dropped_while_it_waits_it_holds_nothing() {
    let scene = Scene::new().await;
    let locks = both(&scene).await;
    let _other = locks[1].acquire(Options::named("other")).await.unwrap();
    let asks = tokio::spawn(async move { acquire_all(&locks, &options(Wait::Forever)).await });
    crate::support::wait_for("the first", SOON, async || (scene.holders().await == 1).then_some(())).await;
    asks.abort();
    nobody_is_left(&scene).await;
}

#[tokio::test]
async fn one_that_is_lost_while_another_is_waited_for_is_acquired_anew() {
    let scene = Scene::with_lease(super::LEASE).await;
    let locks = both(&scene).await;
    let other = locks[1].acquire(Options::named("other")).await.unwrap();
    let asks = tokio::spawn(async move { acquire_all(&locks, &options(Wait::Forever)).await });
    crate::support::wait_for("the first", SOON, async || (scene.holders().await == 1).then_some(())).await;
    // Its record comes back without it, as after a failover to a replica that lagged behind.
    let taken = scene.declared.store.inspect(&scene.declared.lock).await.unwrap().unwrap().holds[0].token;
    scene.declared.server.send::<()>("DEL test:{shop/report}:lock").await;
    let floor = leasehold::store::Provision { token_floor: taken.get(), ..provision(1, super::LEASE) };
    scene.declared.provision(&floor).await;
    let anew = async || {
        let record = scene.declared.store.inspect(&scene.declared.lock).await.ok()??;
        record.holds.first().filter(|hold| hold.token > taken).map(|hold| hold.token)
    };
    let token = crate::support::wait_for("it is acquired anew", SOON, anew).await;
    other.release().await.unwrap();
    let holds = tokio::time::timeout(SOON, asks).await.expect("both").unwrap().unwrap();
    assert_eq!(holds.iter().next().unwrap().token(), token, "only what is held now is believed");
    assert_eq!(holds.iter().count(), 2);
}
