//! The lease protocol on a real server: against the reference model by random sequences, and by hand.

mod answers;
mod bounds;
mod faults;
pub(crate) mod fixture;
mod invariants;
mod machine;
mod messages;
pub(crate) mod server;
mod strategy;
mod trouble;
mod world;

use std::io::Write;
use std::time::Instant;

pub(crate) use machine::patched;
use machine::{Machine, Reference};
use proptest::test_runner::{Config, RngSeed, TestError, TestRunner};
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest};

/// So many sequences reach every outcome.
const ENOUGH: u32 = 2_000;
/// Steps of one sequence.
const STEPS: std::ops::Range<usize> = 50..70;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable}={text} is no number")))
}

/// Random sequences with the library that the thread was set up with, until one fails.
fn run(cases: u32, seed: u64, max_shrink_iters: u32) -> Result<(), String> {
    let rng_seed = RngSeed::Fixed(seed);
    let config = Config { cases, max_shrink_iters, rng_seed, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new(config.clone());
    let sequences = Reference::sequential_strategy(STEPS);
    let outcome = runner.run(&sequences, |(world, steps, seen)| {
        Machine::test_sequential(config.clone(), world, steps, seen);
        Ok(())
    });
    outcome.map_err(|error| match error {
        TestError::Fail(reason, (world, steps, _)) => format!("{reason}\nfrom {:#?}\nby {steps:#?}", world.plan),
        TestError::Abort(reason) => format!("given up: {reason}"),
    })
}

/// How many: `LEASEHOLD_SEQUENCES`. A failing run is repeated by its seed: `LEASEHOLD_SEED`.
#[test]
fn random_sequences_show_no_difference_between_the_model_and_a_real_server() {
    let cases = number("LEASEHOLD_SEQUENCES").map_or(ENOUGH, |n| u32::try_from(n).expect("a sensible number"));
    let seed = number("LEASEHOLD_SEED").unwrap_or_else(rand_seed);
    machine::set_up(machine::library_with_test_clock());
    let start = Instant::now();
    let outcome = run(cases, seed, 2_000);
    let rig = machine::tear_down();
    let summary =
        format!("{} sequences in {:.0?}, seed {seed}, {} recoveries", rig.sequences, start.elapsed(), rig.recoveries);
    // Not by `println`, which the test runner keeps to itself when a test passes.
    writeln!(std::io::stderr(), "{summary}\n{}", rig.tally.table()).expect("stderr is there");
    if let Err(failure) = outcome {
        panic!("LEASEHOLD_SEED={seed}: {failure}");
    }
    if cases < ENOUGH {
        return;
    }
    assert!(rig.recoveries > 0, "no loss of a record was made good by the rules");
    let surprises = rig.tally.surprises();
    assert!(surprises.is_empty(), "seed {seed}: {surprises:#?}");
}

fn rand_seed() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().0
}
