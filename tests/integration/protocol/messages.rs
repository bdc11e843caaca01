//! What is published, to whom, and what happens where it may not be.

use std::time::Duration;

use futures::{Stream, StreamExt};
use leasehold::lease::{Acquired, Released, Renewed, Wait};
use leasehold::store::{Changes, Inbox, Offered, Password, Store};

use super::fixture::{Declared, id};
use super::server::PREFIX;

const LIMIT: Duration = Duration::from_secs(10);

async fn next<T>(stream: &mut (impl Stream<Item = T> + Unpin)) -> T {
    tokio::time::timeout(LIMIT, stream.next()).await.expect("a message in time").expect("the stream goes on")
}

async fn inboxes(declared: &Declared) -> redis::aio::PubSub {
    let port = declared.server.endpoint().port;
    let client = redis::Client::open(("127.0.0.1", port)).unwrap();
    let mut pubsub = client.get_async_pubsub().await.unwrap();
    pubsub.psubscribe(format!("{PREFIX}:{{shop/report}}:inbox:*")).await.unwrap();
    pubsub
}

#[tokio::test]
async fn a_release_wakes_exactly_the_waiter_it_promotes() {
    let declared = Declared::mutex().await;
    let mut messages = inboxes(&declared).await.into_on_message();
    declared.granted("holder").await;
    for waiter in ["first", "second", "third"] {
        assert!(matches!(declared.acquire(waiter, Wait::Forever).await, Acquired::Queued { .. }));
    }
    assert_eq!(declared.store.release(&declared.lock, &id("holder")).await.unwrap(), Released::Released);
    let inbox = format!("{PREFIX}:{{{}}}:inbox:", declared.lock);
    let () = declared.server.send(&format!("PUBLISH {inbox}end-of-test 1")).await;
    let mut woken = Vec::new();
    loop {
        let message = next(&mut messages).await;
        match message.get_channel_name().strip_prefix(&inbox) {
            Some("end-of-test") => break,
            Some(id) => woken.push(id.to_owned()),
            None => panic!("{message:?}"),
        }
    }
    assert_eq!(woken, ["first"]);
    assert!(matches!(declared.acquire("first", Wait::Forever).await, Acquired::Granted(_)));
    assert!(matches!(declared.acquire("second", Wait::Forever).await, Acquired::Queued { .. }));
}

#[tokio::test]
async fn an_offer_is_held_from_the_message_on_until_it_ends() {
    let declared = Declared::mutex().await;
    let (lock, waiter) = (&declared.lock, id("waiter"));
    let mut inbox = Inbox::connect(&declared.server.endpoint(), PREFIX).await.unwrap();
    inbox.subscribe(lock, &waiter).await.unwrap();
    declared.granted("holder").await;
    let Acquired::Queued { reading, .. } = declared.acquire("waiter", Wait::Forever).await else {
        panic!("it is held");
    };
    declared.store.release(lock, &id("holder")).await.unwrap();
    let (whose, offer) = tokio::time::timeout(LIMIT, inbox.next()).await.expect("in time").expect("an offer");
    let record = declared.store.inspect(lock).await.unwrap().unwrap();
    let hold = &record.holds[0];
    assert_eq!((&whose, offer.token, offer.expires), (&hold.id, hold.token, hold.expires));
    let grant = offer.granted_since(reading).expect("it is of the same process");
    let promised = i64::try_from(grant.remaining.as_millis()).unwrap();
    assert_eq!((grant.token, reading.at + promised), (hold.token, hold.expires));
    let renewed = declared.store.renew(&[(lock.clone(), waiter)]).await.unwrap();
    assert!(matches!(renewed[..], [Renewed::Held(held)] if held.token == grant.token), "{renewed:?}");
}

#[tokio::test]
async fn the_stream_of_offers_tells_who_was_promoted() {
    let declared = Declared::mutex().await;
    let mut offers = Box::pin(declared.server.endpoint().offers(PREFIX).await.unwrap());
    declared.granted("holder").await;
    declared.acquire("waiter", Wait::Forever).await;
    declared.store.release(&declared.lock, &id("holder")).await.unwrap();
    assert_eq!(next(&mut offers).await, Offered { lock: declared.lock.clone(), id: id("waiter") });
}

#[tokio::test]
async fn a_change_is_told_once_and_again_if_the_answer_was_lost() {
    let declared = Declared::mutex().await;
    let changes = async |told| declared.control.changes(told).await.unwrap().unwrap();
    let mut told = changes(0).await.batch;
    let lock = vec![declared.lock.clone()];
    declared.granted("holder").await;
    for (what, changed) in [("a grant", true), ("nothing", false)] {
        let Changes { batch, locks } = changes(told).await;
        assert_eq!(locks == lock, changed, "{what}: {locks:?}");
        told = batch;
    }
    for _ in 0..5 {
        declared.store.renew(&[(declared.lock.clone(), id("holder"))]).await.unwrap();
    }
    told = {
        let Changes { batch, locks } = changes(told).await;
        assert_eq!(locks, [], "renewals");
        batch
    };
    declared.acquire("waiter", Wait::Forever).await;
    assert_eq!(changes(told).await.locks, lock, "a place in the queue");
    let again = changes(told).await;
    assert_eq!(again.locks, lock, "the answer was lost");
    assert_eq!(changes(again.batch).await.locks, []);
    declared.store.release(&declared.lock, &id("holder")).await.unwrap();
    assert_eq!(changes(again.batch + 1).await.locks, lock, "an end and an offer");
}

#[tokio::test]
async fn a_grant_stands_where_the_user_may_not_publish() {
    let declared = Declared::mutex().await;
    let () = declared.server.send("ACL SETUSER tenant on >secret ~test:{shop/* resetchannels +@all -publish").await;
    let mut endpoint = declared.server.endpoint();
    (endpoint.username, endpoint.password) = (Some("tenant".to_owned()), Some(Password::new("secret")));
    let tenant = Store::connect(&endpoint, PREFIX).unwrap();
    let request = super::fixture::request("tenant", Wait::No);
    let Acquired::Granted(grant) = tenant.acquire(&declared.lock, &request).await.unwrap() else {
        panic!("not granted");
    };
    let record = declared.store.inspect(&declared.lock).await.unwrap().unwrap();
    assert_eq!((record.holds[0].id.clone(), record.holds[0].token), (id("tenant"), grant.token));
    declared.acquire("waiter", Wait::Forever).await;
    assert_eq!(tenant.release(&declared.lock, &id("tenant")).await.unwrap(), Released::Released);
    assert!(matches!(declared.acquire("waiter", Wait::Forever).await, Acquired::Granted(_)));
}
