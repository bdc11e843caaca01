//! While it is held, and when it is not any more.

use std::time::Duration;

use leasehold::clock::boottime;
use leasehold::keeper::{Options, ReleaseError, Rules, Standing, Wait};
use leasehold::lease::Released;
use rstest::rstest;
use tokio::time::timeout;

use super::{LEASE, lock, nobody_is_left, options};
use crate::run::fixture::{SOON, Scene};

/// How late a timer may be on a machine that is busy.
const LATE: Duration = Duration::from_millis(300);

#[tokio::test]
async fn a_hold_that_is_dropped_is_released() {
    let scene = Scene::new().await;
    drop(lock(&scene).acquire(options(Wait::No)).await.unwrap());
    nobody_is_left(&scene).await;
}

#[tokio::test]
async fn a_release_after_the_lease_says_that_it_was_lost() {
    let scene = Scene::with_lease(Duration::from_secs(1)).await;
    let hold = lock(&scene).acquire(options(Wait::No)).await.unwrap();
    let token = hold.token();
    scene.proxy.silence(true);
    timeout(SOON, hold.lost()).await.expect("it is lost");
    let next = scene.next(SOON).await;
    assert!(next.token() > token);
    scene.proxy.silence(false);
    assert_eq!(hold.release().await.unwrap(), Released::Lost);
    assert_eq!(scene.holders().await, 1, "the next one still holds");
}

#[tokio::test]
async fn a_release_without_an_answer_says_so_once_the_lease_is_over() {
    let scene = Scene::with_lease(Duration::from_secs(1)).await;
    let hold = lock(&scene).acquire(options(Wait::No)).await.unwrap();
    scene.proxy.silence(true);
    let deadline = hold.deadline();
    let released = timeout(SOON, hold.release()).await.expect("it says something");
    assert!(matches!(released, Err(ReleaseError::NoAnswer(_))), "{released:?}");
    assert!(boottime() >= deadline, "unknown for as long as it may be held");
    scene.next(SOON).await;
}

/// The task that renews ends with its runtime.
#[tokio::test]
async fn a_release_without_the_runtime_that_renewed_says_that_it_was_interrupted() {
    let scene = Scene::with_lease(Duration::from_secs(1)).await;
    let lock = lock(&scene);
    let other = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let hold = other.spawn(async move { lock.acquire(options(Wait::No)).await.unwrap() }).await.unwrap();
    other.shutdown_background();
    timeout(SOON, hold.lost()).await.expect("nobody renews it: it counts as lost");
    assert_eq!(hold.standing(), Standing::Lost);
    let released = timeout(SOON, hold.release()).await.expect("it says something");
    assert!(matches!(released, Err(ReleaseError::Interrupted)), "{released:?}");
    scene.next(SOON).await;
}

#[rstest]
#[case::answers_are_lost("hold")]
#[case::all_packets_are_lost("silence")]
#[case::connections_are_refused("refuse")]
#[tokio::test]
async fn a_loss_is_told_before_the_deadline_by_the_time_to_stop(#[case] fault: &str) {
    let scene = Scene::with_lease(LEASE).await;
    let stop = Duration::from_millis(700);
    let rules = Rules::stopping_within(stop);
    let hold = lock(&scene).acquire(Options { rules, ..Options::named("me") }).await.unwrap();
    match fault {
        "hold" => scene.proxy.hold_replies(true),
        "silence" => scene.proxy.silence(true),
        _ => {
            scene.proxy.refuse(true).await;
            scene.proxy.cut();
        }
    }
    timeout(SOON, hold.lost()).await.expect("it is told");
    let (now, stop_at) = (boottime(), hold.deadline() - stop);
    assert!(now >= stop_at && now < stop_at + LATE, "told {:?} from {stop_at:?}", now);
    assert_eq!(hold.standing(), Standing::Jeopardy, "unknown is not lost");
    tokio::time::sleep(hold.remaining()).await;
    assert_eq!((hold.standing(), hold.remaining()), (Standing::Lost, Duration::ZERO));
}

#[tokio::test]
async fn a_hold_whose_record_was_emptied_is_in_jeopardy_and_then_lost() {
    let scene = Scene::with_lease(LEASE).await;
    let mut hold = lock(&scene).acquire(options(Wait::No)).await.unwrap();
    scene.declared.server.send::<()>("FLUSHALL").await;
    let deadline = hold.deadline();
    let mut seen = vec![hold.standing()];
    while let Some(tenure) = timeout(SOON, hold.changed()).await.expect("news") {
        if seen.last() != Some(&tenure.standing) {
            seen.push(tenure.standing);
        }
        if tenure.standing == Standing::Lost {
            break;
        }
    }
    assert_eq!(seen, [Standing::Held, Standing::Jeopardy, Standing::Lost]);
    assert!(boottime() >= deadline, "no error is taken for a loss");
}

/// It is renewed in time where renewals fail and come back before the deadline.
#[tokio::test]
async fn a_hold_is_safe_again_once_a_renewal_is_answered() {
    let scene = Scene::with_lease(LEASE).await;
    let mut hold = lock(&scene).acquire(options(Wait::No)).await.unwrap();
    let token = hold.token();
    scene.proxy.silence(true);
    for expected in [Standing::Jeopardy, Standing::Held] {
        while hold.standing() != expected {
            timeout(SOON, hold.changed()).await.expect("news").expect("it is kept");
        }
        scene.proxy.silence(false);
    }
    tokio::time::sleep(LEASE).await;
    assert_eq!((hold.standing(), hold.token()), (Standing::Held, token));
}
