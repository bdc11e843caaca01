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
mod stage;
mod strikes;
mod watches;

use std::path::PathBuf;
use std::time::Duration;

use contention::{Load, contend, for_a_while};
use stage::{Set, Stage};

use crate::support::history::{check, read};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_contended_store_keeps_its_promises() {
    let mut stage = Stage::new(Set::default()).await;
    let outcome = contend(&mut stage, &Load::default(), 1, async |_| for_a_while(Duration::from_secs(8)).await).await;
    outcome.keep("contended");
    let acquisitions = outcome.acquisitions();
    println!("{acquisitions} acquisitions, updates lost (fenced, unfenced): {:?}", outcome.lost_updates());
    assert!(outcome.violations.is_empty());
    assert!(acquisitions > 50, "only {acquisitions} acquisitions");
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
