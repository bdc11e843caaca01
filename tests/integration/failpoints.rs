//! The controller dies, or is overtaken, before and after each of its writes: whatever it left half done is finished
//! by its successor, and nobody who holds notices.

mod attendant;
mod tours;
pub(crate) mod witness;

use std::process::Command;

use futures::StreamExt;
use futures::stream;
use tokio::sync::Semaphore;

use attendant::{Attendant, Blow};
use tours::Tour;

/// Places that are tried at the same time, by all tests: they mostly wait.
const AT_ONCE: usize = 6;
static TURN: Semaphore = Semaphore::const_new(AT_ONCE);

/// The names of all failpoints, as the binary tells them.
fn listed() -> Vec<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_leasehold")).arg("failpoints").output().expect("the binary runs");
    let lines = String::from_utf8(output.stdout).expect("text");
    let names: Vec<String> = lines.lines().filter_map(|line| line.split_whitespace().next()).map(Into::into).collect();
    assert!(names.len() > 50, "{lines}");
    names
}

/// Tries each place, and panics with all that failed.
async fn at_each(places: impl Iterator<Item = String>, attempt: impl AsyncFn(String) -> Result<(), String>) {
    let only = std::env::var("LEASEHOLD_ONLY").unwrap_or_default();
    let outcomes: Vec<(String, Result<(), String>)> = stream::iter(places.filter(|place| place.contains(&only)))
        .map(|place| {
            let outcome = attempt(place.clone());
            async move {
                let _turn = TURN.acquire().await.expect("it is never closed");
                (place, outcome.await)
            }
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let failed: Vec<String> =
        outcomes.iter().filter_map(|(place, outcome)| Some(format!("{place}: {}", outcome.as_ref().err()?))).collect();
    println!("{} places, {} failed", outcomes.len(), failed.len());
    assert!(failed.is_empty(), "\n{}", failed.join("\n"));
}

fn around_each(names: impl IntoIterator<Item = String>) -> impl Iterator<Item = String> {
    names.into_iter().flat_map(|name| ["before", "after"].map(|side| format!("{side} {name}")))
}

#[tokio::test]
async fn a_controller_that_is_killed_at_any_write_is_followed_by_one_that_heals_everything() {
    at_each(around_each(listed()), async |place| {
        let tour = Tour::past(&place);
        let (mut site, options) = tour.site().await;
        Attendant::new(options, Blow::Kill, &place).guide(tour, &mut site).await
    })
    .await;
}

/// As [`a_controller_that_is_killed_at_any_write_is_followed_by_one_that_heals_everything`], where the claim is that of a pod
/// that waits by its gate.
#[tokio::test]
async fn a_controller_that_is_killed_at_a_write_of_a_gated_pod_s_claim_is_followed_by_one_that_heals_everything() {
    let of_claims = listed().into_iter().filter(|name| tours::is_of_a_gated_pod_s_claim(name));
    at_each(around_each(of_claims), async |place| {
        let (mut site, options) = Tour::Gated.site().await;
        Attendant::new(options, Blow::Kill, &place).guide(Tour::Gated, &mut site).await
    })
    .await;
}

/// After a write is before the next one.
fn before_each() -> impl Iterator<Item = String> {
    listed().into_iter().map(|name| format!("before {name}"))
}

#[tokio::test]
async fn a_leader_that_is_stopped_past_its_lease_at_any_write_does_no_harm_when_it_goes_on() {
    at_each(before_each(), async |place| {
        let tour = Tour::past(&place);
        let (mut site, mut options) = tour.site().await;
        options.election = Some(tours::ELECTION);
        Attendant::new(options, Blow::Overtake, &place).guide(tour, &mut site).await
    })
    .await;
}

/// Nothing tells it that it was overtaken: what it has begun to write is written, unless Redis or the API server refuses.
#[tokio::test]
async fn a_controller_that_believes_itself_alone_is_refused_what_it_is_late_with() {
    let places = before_each().filter(|place| Tour::past(place) != Tour::Replica);
    at_each(places, async |place| {
        let tour = Tour::past(&place);
        let (mut site, options) = tour.site().await;
        Attendant::new(options, Blow::Overtake, &place).guide(tour, &mut site).await
    })
    .await;
}
