//! The campaign: one fault a row, under contention, from a seed. Each row proves that its fault struck.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::contention::{acquisitions, contend, for_a_while, long_enough};
use super::dice::Dice;
use super::stage::Stage;
use super::strikes::Fault;
use crate::support::history::Event;
use crate::support::panic_text;

/// A run with fewer acquisitions shows nothing.
const ENOUGH: usize = 40;
const BEFORE: Duration = Duration::from_secs(2);
const AFTER: Duration = Duration::from_secs(4);
/// Of `make test`: rows that differ most in what they break.
const SHORT: [Fault; 6] = [
    Fault::RedisKilled,
    Fault::ControllerKilled,
    Fault::HolderPaused,
    Fault::LaggingReplicaPromoted,
    Fault::WritesConflict,
    Fault::RepliesDropped,
];

/// What a row has shown.
struct Line {
    fault: Fault,
    seed: u64,
    result: Result<Shown, String>,
}

struct Shown {
    acquisitions: usize,
    lost: (usize, usize),
    proof: String,
    violations: usize,
}

async fn row(fault: Fault, seed: u64) -> Shown {
    let mut dice = Dice::new(seed);
    let mut stage = Stage::new(fault.set()).await;
    let mut proof = String::new();
    let outcome = contend(&mut stage, &fault.load(), seed, async |stage| {
        for_a_while(BEFORE + dice.millis(0..1000)).await;
        stage.recorder.note(Event::Fault { name: format!("{fault:?}") });
        proof = fault.strike(stage, &mut dice).await;
        stage.heals().await;
        stage.recorder.note(Event::Healed);
        for_a_while(AFTER).await;
        long_enough(|| acquisitions(&stage.recorder.history()) >= ENOUGH).await;
    })
    .await;
    outcome.keep(&format!("{fault:?}-{seed}"));
    let (acquisitions, lost) = (outcome.acquisitions(), outcome.lost_updates());
    Shown { acquisitions, lost, proof, violations: outcome.violations.len() }
}

fn run_row(fault: Fault, seed: u64) -> Line {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let run = || runtime.block_on(row(fault, seed));
    let result = catch_unwind(AssertUnwindSafe(run)).map_err(|panic| panic_text(&*panic));
    runtime.shutdown_background();
    Line { fault, seed, result }
}

/// Runs the rows, so many at once, and prints the table.
fn run(faults: &[Fault], seed: u64, at_once: usize) {
    let (next, lines) = (Mutex::new(faults.iter()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while let Some(fault) = take(&next) {
                    let line = run_row(*fault, seed);
                    print(&line);
                    lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
                }
            });
        }
    });
    let mut lines = lines.into_inner().unwrap_or_else(PoisonError::into_inner);
    lines.sort_by_key(|line| faults.iter().position(|fault| *fault == line.fault));
    println!("\n{:<28} {:>10} {:>6} {:>14}  violations  proof", "fault", "seed", "grants", "lost (un)fenced");
    lines.iter().for_each(print);
    let broken: Vec<_> = lines.iter().filter(|line| !line.is_clean()).map(|line| line.fault).collect();
    assert!(broken.is_empty(), "seed {seed}: {broken:?}");
}

fn take<'a>(faults: &Mutex<std::slice::Iter<'a, Fault>>) -> Option<&'a Fault> {
    faults.lock().unwrap_or_else(PoisonError::into_inner).next()
}

impl Line {
    /// The positive control loses updates where nobody looks at the token; nowhere are they lost where somebody does.
    fn is_clean(&self) -> bool {
        let Ok(Shown { acquisitions, lost, violations, .. }) = &self.result else { return false };
        *acquisitions >= ENOUGH && *violations == 0 && lost.0 == 0
    }
}

fn print(Line { fault, seed, result }: &Line) {
    match result {
        Ok(Shown { acquisitions, lost: (fenced, unfenced), proof, violations }) => {
            let violations = if *violations == 0 { "none".to_owned() } else { violations.to_string() };
            let name = format!("{fault:?}");
            println!(
                "{name:<28} {seed:>10} {acquisitions:>6} {:>14}  {violations:<10}  {proof}",
                format!("{fenced} / {unfenced}")
            );
        }
        Err(error) => println!("{:<28} {seed:>10} failed: {error}", format!("{fault:?}")),
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

#[test]
fn a_short_campaign_of_faults_breaks_no_promise() {
    run(&SHORT, number("LEASEHOLD_SEED").unwrap_or(1), 2);
}

/// `make faults`; LEASEHOLD_FAULTS has parts of the names of those that are wanted.
#[test]
#[ignore = "minutes: make faults"]
fn all_faults_break_no_promise() {
    let wanted = std::env::var("LEASEHOLD_FAULTS").unwrap_or_default();
    let is_wanted = |fault: &Fault| wanted.split(',').any(|part| format!("{fault:?}").contains(part));
    let faults: Vec<_> = Fault::ALL.into_iter().filter(is_wanted).collect();
    let at_once = number("LEASEHOLD_AT_ONCE").and_then(|count| usize::try_from(count).ok()).unwrap_or(2);
    run(&faults, number("LEASEHOLD_SEED").unwrap_or(1), at_once);
}
