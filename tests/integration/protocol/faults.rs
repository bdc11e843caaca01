//! Seeded faults in the library: the machine of random sequences catches each.

use rstest::rstest;

use super::machine::{self, library_with_test_clock, patched};

/// As many as the machine runs without a fault.
const SEQUENCES: u32 = 2_000;
const SEED: u64 = 11;

#[rstest]
#[case::token_not_raised("  h.last = o.token\n", "")]
#[case::finished_ids_forgotten("return till > now and number >= h.finished - REMEMBERED and how or nil", "return nil")]
#[case::pinned_lease_taken_by_time("    if o.state == 'pinned' then return end\n", "")]
#[case::untold_hold_leaves_no_place("return o.seq and o.state ~= 'pinned' and", "return false and")]
#[case::untold_hold_is_kept_for_ever("local in_vain = o.again == AGAIN and", "local in_vain = false and")]
#[case::next_attempt_stands_at_the_end("if args[4] then hand_on(l, args[4], now) end", "")]
#[case::pinned_in_another_epoch("if args[4] and tonumber(args[4]) ~= gate.epoch then", "if false then")]
#[case::next_attempt_takes_no_place_of_a_hold_put_back("if stood and not gone(stood, now) then", "if false then")]
#[case::gate_ignored("if not gate then return nil end", "gate = gate or {epoch = 1, look = now, heartbeat = now}")]
#[case::demotion_not_noticed("if role ~= 'master' or replid ~= gate.replid then", "if false then")]
#[case::priority_ignored("2147483647 - w.priority, w.seq) .. id", "0, w.seq) .. id")]
#[case::order_of_arrival_reversed("w.priority, w.seq) .. id", "w.priority, 1e16 - w.seq) .. id")]
#[case::whole_lease_answered("{'granted', o.token, o.expires - now}", "{'granted', o.token, o.expires - o.renewed}")]
fn the_random_sequences_catch_a_fault(#[case] piece: &str, #[case] fault: &str) {
    machine::set_up(patched(&library_with_test_clock(), piece, fault));
    let outcome = super::run(SEQUENCES, SEED, 1);
    let passed = machine::tear_down().sequences;
    let failure = outcome.expect_err("the fault was not noticed");
    assert!(failure.contains("the model"), "it failed for another reason: {failure}");
    println!("caught after {passed} sequences: {}", failure.lines().next().unwrap_or_default());
}
