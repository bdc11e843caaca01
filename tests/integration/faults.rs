//! Contention, with and without faults, judged by one checker.

mod arena;
mod broken;
mod campaign;
mod claims;
mod contention;
mod counter;
mod dice;
mod direct;
mod elections;
mod several;
mod stage;
mod strikes;
mod watches;

use std::path::PathBuf;
use std::time::Duration;

use contention::{Load, acquisitions, contend, for_a_while, long_enough};
use dice::Dice;
use stage::{Set, Stage};
use strikes::Fault;

use crate::support::history::{Entry, Event, Share, check, read};
use crate::support::{LIMIT, wait_for};

/// A run with fewer acquisitions shows nothing.
const ENOUGH: usize = 50;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_contended_store_keeps_its_promises() {
    let mut stage = Stage::new(Set::default()).await;
    let outcome = contend(&mut stage, &Load::default(), 1, async |stage| {
        for_a_while(Duration::from_secs(8)).await;
        long_enough(|| acquisitions(&stage.recorder.history()) > ENOUGH).await;
    })
    .await;
    outcome.keep("contended");
    let count = outcome.acquisitions();
    println!("{count} acquisitions, updates lost (fenced, unfenced): {:?}", outcome.lost_updates());
    assert!(outcome.violations.is_empty());
    assert!(count > ENOUGH, "only {count} acquisitions");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_and_a_writer_of_a_contended_lock_keep_out_of_each_other_s_way() {
    let mut stage = Stage::new(Set::default()).await;
    let outcome = contend(&mut stage, &Load::with_modes(), 2, async |stage| {
        both_modes_are_held(stage).await;
        stage.recorder.note(Event::Fault { name: "the controller is killed".into() });
        Fault::ControllerKilled.strike(stage, &mut Dice::new(2)).await;
        stage.heals().await;
        stage.recorder.note(Event::Healed);
        both_modes_are_held(stage).await;
    })
    .await;
    outcome.keep("modes");
    assert!(outcome.violations.is_empty());
}

/// Waits until readers have held three times more, and the writer too.
async fn both_modes_are_held(stage: &Stage) {
    let seen = stage.recorder.history().len();
    let held = |history: &[Entry], share: &Share| {
        let holds = |entry: &&Entry| matches!(&entry.event, Event::Holds { share: held, .. } if held == share);
        history.iter().filter(holds).count()
    };
    let often = async || {
        let since = stage.recorder.history().split_off(seen);
        [Share::Shared, Share::Exclusive].iter().all(|share| held(&since, share) >= 3).then_some(())
    };
    wait_for("readers and the writer have held three times", 2 * LIMIT, often).await;
}

/// `make check-history FILE=...`
#[test]
#[ignore = "judges a history that was kept: LEASEHOLD_HISTORY=file"]
fn check_saved() {
    let file = std::env::var_os("LEASEHOLD_HISTORY").expect("LEASEHOLD_HISTORY names a file");
    let history = read(&PathBuf::from(file)).expect("a history");
    let violations = check(&history);
    violations.iter().for_each(|violation| println!("{violation}"));
    assert!(violations.is_empty(), "{} violations", violations.len());
    println!("{} entries, violations: none", history.len());
}
