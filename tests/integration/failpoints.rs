//! The controller dies, or is overtaken, before and after each of its writes: whatever it left half done is finished
//! by its successor, and nobody who holds notices.

mod attendant;
mod tours;

use std::process::Command;

use futures::StreamExt;
use futures::stream;

use attendant::Attendant;
use tours::Tour;

/// Controllers that are tried at the same time: they mostly wait.
const AT_ONCE: usize = 6;

/// The names of all failpoints, as the binary tells them.
fn listed() -> Vec<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_leasehold")).arg("failpoints").output().expect("the binary runs");
    let lines = String::from_utf8(output.stdout).expect("text");
    let names: Vec<String> = lines.lines().filter_map(|line| line.split_whitespace().next()).map(Into::into).collect();
    assert!(names.len() > 50, "{lines}");
    names
}

/// Every place of every failpoint.
fn places() -> Vec<String> {
    let only = std::env::var("LEASEHOLD_ONLY").unwrap_or_default();
    let places = listed().into_iter().flat_map(|name| ["before", "after"].map(|side| format!("{side} {name}")));
    places.filter(|place| place.contains(&only)).collect()
}

/// Tries each place, and panics with all that failed.
async fn each_place(attempt: impl AsyncFn(String) -> Result<(), String>) {
    let outcomes: Vec<(String, Result<(), String>)> = stream::iter(places())
        .map(|place| {
            let outcome = attempt(place.clone());
            async move { (place, outcome.await) }
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let failed: Vec<String> =
        outcomes.iter().filter_map(|(place, outcome)| Some(format!("{place}: {}", outcome.as_ref().err()?))).collect();
    println!("{} places, {} failed", outcomes.len(), failed.len());
    assert!(failed.is_empty(), "\n{}", failed.join("\n"));
}

#[tokio::test]
async fn a_controller_that_is_killed_at_any_write_is_followed_by_one_that_heals_everything() {
    each_place(async |place| {
        let tour = Tour::past(&place);
        let (mut site, options) = tour.site().await;
        let attendant = Attendant::kills(options, &place);
        attendant.guide(tour, &mut site).await
    })
    .await;
}
