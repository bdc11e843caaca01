//! What a network does to requests, answers and messages.

use std::time::Duration;

use leasehold::lease::{Acquired, HolderId, Mode, Released, Request, Wait};
use leasehold::store::{Hold, HoldState, LIBRARY_SOURCE, Store};
use tokio::time::Instant;

use super::super::arena::SEMAPHORE;
use super::super::dice::Dice;
use super::super::stage::{LEASE, Stage};
use crate::support::history::{Event, Kind, Share, Why, boottime, public_id};
use crate::support::{LIMIT, wait_for};

pub(super) async fn replies_dropped(stage: &mut Stage, dice: &mut Dice) -> String {
    let before = stage.proxy.passed().dropped;
    for _ in 0..15 {
        stage.proxy.drop_replies(dice.among(1..6));
        tokio::time::sleep(dice.millis(50..300)).await;
    }
    stage.proxy.drop_replies(0);
    let dropped = stage.proxy.passed().dropped - before;
    assert!(dropped > 0, "nothing was dropped");
    format!("{dropped} bytes of answers dropped")
}

pub(super) async fn replies_delayed(stage: &mut Stage, dice: &mut Dice) -> String {
    let delay = dice.millis(300..1200);
    stage.proxy.delay_replies(delay);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let (store, start) = (stage.arena.store(), Instant::now());
    store.inspect(&stage.arena.key(SEMAPHORE)).await.ok();
    let took = start.elapsed();
    assert!(took >= delay, "an answer took {took:?}");
    tokio::time::sleep(Duration::from_secs(4)).await;
    stage.proxy.delay_replies(Duration::ZERO);
    // Those that are on their way are late still.
    tokio::time::sleep(delay).await;
    format!("answers {delay:?} late: one took {took:.0?}")
}

pub(super) async fn connections_cut(stage: &mut Stage, dice: &mut Dice) -> String {
    let before = stage.proxy.passed().cut;
    for _ in 0..15 {
        stage.proxy.cut();
        tokio::time::sleep(dice.millis(20..400)).await;
    }
    let cut = stage.proxy.passed().cut - before;
    assert!(cut >= 15, "only {cut} connections were cut");
    format!("{cut} connections cut")
}

fn request(secret: &str) -> Request {
    let id = HolderId::new(secret).expect("an id");
    let (mode, wait) = (Mode::Counted(1), Wait::Forever);
    Request { id, mode, priority: 0, wait, identity: "process/of-the-row".into(), pod_uid: None }
}

/// Acquires by asking until it is granted. What it had to be noted of is noted.
async fn acquire(stage: &Stage, store: &Store, request: &Request) -> (i64, i64, i64) {
    let key = stage.arena.key(SEMAPHORE);
    let granted = async || {
        let sent = boottime();
        match store.acquire(&key, request).await {
            Ok(Acquired::Granted(grant)) => {
                Some((grant.token.get(), sent, i64::try_from(grant.remaining.as_micros()).expect("a lease")))
            }
            _ => None,
        }
    };
    wait_for("it is granted", LIMIT, granted).await
}

fn note_asks(stage: &Stage, id: &str) {
    let (lock, name) = (SEMAPHORE.to_owned(), "process/of-the-row".to_owned());
    stage.recorder.note(Event::Asks { lock, id: id.to_owned(), kind: Kind::Direct, name, priority: 0 });
}

fn note_hold(stage: &Stage, id: &str, (token, sent, remaining): (i64, i64, i64)) -> i64 {
    let until = sent + remaining / 100 * 98;
    stage.recorder.note(Event::Holds {
        lock: SEMAPHORE.to_owned(),
        id: id.to_owned(),
        kind: Kind::Direct,
        token,
        share: Share::Permits(1),
        until: Some(until),
        lease_end: Some(boottime() + remaining),
    });
    until
}

fn note_stop(stage: &Stage, id: &str, why: Why) {
    stage.recorder.note(Event::Stopped { lock: SEMAPHORE.to_owned(), id: id.to_owned(), why });
}

/// The acquire of one that has released arrives again, byte by byte.
pub(super) async fn late_duplicates(stage: &mut Stage) -> String {
    const TURNS: u32 = 5;
    let (store, key) = (stage.arena.store(), stage.arena.key(SEMAPHORE));
    for _ in 0..TURNS {
        let secret = uuid::Uuid::new_v4().to_string();
        let (id, request) = (public_id(&secret), request(&secret));
        // As the wire has it: the id, and then the mode of an acquire.
        stage.proxy.aim_at(&format!("{secret}\r\n$1\r\nc\r\n"));
        note_asks(stage, &id);
        let granted = acquire(stage, &store, &request).await;
        note_hold(stage, &id, granted);
        note_stop(stage, &id, Why::Released);
        assert_eq!(store.release(&key, &request.id).await.expect("an answer"), Released::Released);
        let answer = stage.proxy.repeat_request().await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.contains("lost"), "a late duplicate is answered: {answer}");
    }
    stage.proxy.aim_at("");
    format!("{TURNS} acquires arrived once more, each answered lost")
}

/// One lost reply to an acquire, and a resend near the lease's end: what is left is little.
pub(super) async fn lost_reply_and_late_resend(stage: &mut Stage) -> String {
    let secret = uuid::Uuid::new_v4().to_string();
    let (id, request, key) = (public_id(&secret), request(&secret), stage.arena.key(SEMAPHORE));
    let store = stage.arena.store();
    note_asks(stage, &id);
    // Queue first, then lose the answer that grants.
    let before = stage.proxy.passed().dropped;
    let granted_unheard = async || {
        stage.proxy.aim_at(&format!("{secret}\r\n$1\r\nc\r\n"));
        stage.proxy.drop_replies(1);
        store.acquire(&key, &request).await.ok();
        stage.proxy.drop_replies(0);
        let record = stage.f.workload().inspect(&key).await.ok().flatten()?;
        // An offer is not yet granted: the next acquire accepts it, with a whole lease.
        let granted = |hold: &Hold| hold.id == request.id && hold.state == HoldState::Held;
        record.holds.into_iter().find(granted).map(|hold| hold.expires - record.now)
    };
    let left = wait_for("it is granted and doesn't know", LIMIT, granted_unheard).await;
    stage.proxy.aim_at("");
    let dropped = stage.proxy.passed().dropped - before;
    assert!(dropped > 0, "no answer was lost");
    let wait = u64::try_from(left - 400).unwrap_or_default();
    tokio::time::sleep(Duration::from_millis(wait)).await;
    let sent = boottime();
    let answer = store.acquire(&key, &request).await.expect("an answer");
    let Acquired::Granted(grant) = answer else { panic!("the resend is answered {answer:?}") };
    let remaining = i64::try_from(grant.remaining.as_micros()).expect("a lease");
    assert!(grant.remaining < Duration::from_millis(600), "the resend has {:?}", grant.remaining);
    let until = note_hold(stage, &id, (grant.token.get(), sent, remaining));
    tokio::time::sleep(Duration::from_micros(u64::try_from(until - boottime()).unwrap_or_default())).await;
    note_stop(stage, &id, Why::Lost);
    format!("{dropped} bytes of an answer lost, the resend had {:?} of {LEASE} s", grant.remaining)
}

/// The controller's `open` of one process arrives at the next one.
pub(super) async fn open_retried_on_a_fresh_process(stage: &mut Stage) -> String {
    stage.proxy.aim_at("leasehold1_open");
    stage.f.redis.kill();
    stage.f.redis.restart().await;
    stage.heals().await;
    stage.proxy.refuse(true).await;
    stage.proxy.cut();
    stage.f.redis.kill();
    stage.f.redis.restart().await;
    let direct = Store::connect(&stage.f.redis.endpoint(), stage.f.test.name()).expect("a store");
    direct.load_library(LIBRARY_SOURCE).await.expect("the library is loaded");
    let answer = stage.proxy.repeat_request().await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.contains("other-process"), "a late open is answered: {answer}");
    stage.proxy.aim_at("");
    stage.proxy.refuse(false).await;
    "an open arrived at the next process and was answered other-process".to_owned()
}

/// Everybody's connection for messages goes, again and again.
pub(super) async fn promotions_not_heard(stage: &mut Stage, dice: &mut Dice) -> String {
    let mut killed = 0;
    for _ in 0..20 {
        killed += stage.f.redis.send::<u64>("CLIENT KILL TYPE pubsub").await;
        tokio::time::sleep(dice.millis(20..300)).await;
    }
    assert!(killed > 0, "nobody listened");
    format!("{killed} listening connections killed")
}
