//! `leasehold run`: the real binary, real processes and a real Redis. Who is left when the next token is granted is asked of
//! the kernel.
//!
//! What programs of this kind do wrong (etcdctl lock, consul lock, flock, klock, lock-run-cmd, kubelock), and where it is shown
//! that this one doesn't:
//!
//! | What | Test |
//! |---|---|
//! | The lock is lost and the child runs on, or one pid is killed | `losses::a_stubborn_command_is_killed_before_the_next_one_is_granted`, `trees::nothing_lives_on_where_one_of_the_two_is_killed` |
//! | The exit code of a loss is 0, or the child's | `losses::a_lock_that_is_taken_away_is_heard_of_by_the_next_renewal` |
//! | The child's code is swallowed | `codes::the_code_of_the_command_is_passed`, `codes::a_command_that_is_not_there_or_no_program_has_the_codes_of_a_shell` |
//! | Signals are not forwarded, or another one | `signals::all_that_can_be_caught_reach_the_command` |
//! | Released before the child is reaped | `trees::what_a_command_leaves_behind_ends_before_the_lock_is_free` |
//! | One pid or one group is all that is known of the tree | `trees::what_a_command_leaves_behind_ends_before_the_lock_is_free` |
//! | The child has no token | `codes::the_command_knows_its_lock_token_and_deadline_and_reads_stdin` |
//! | stdin is not the child's | `codes::the_command_knows_its_lock_token_and_deadline_and_reads_stdin` |
//! | Not acquired looks like any other failure | `codes::a_lock_that_is_held_is_busy_or_not_had_in_time`, `codes::a_store_that_is_not_there_is_said_after_five_seconds` |
//! | consul #2022: the shell is killed, its child lives on | `losses::a_stubborn_command_is_killed_before_the_next_one_is_granted` |
//! | consul #797, #3754, #4643: SIGTERM doesn't reach the child | `signals::the_whole_group_of_the_command_hears_it` |
//! | consul #2489, #1210: HUP and QUIT leave an orphan | `signals::a_signal_that_ends_the_command_leaves_no_orphan` |
//! | consul #4439: signals are ignored while it waits | `signals::one_that_waits_ends_leaves_the_queue_and_starts_nothing` |
//! | consul #1155 (and #800): the child is started while it shuts down | `signals::one_that_was_asked_to_end_starts_nothing_though_the_lock_is_granted` |
//! | consul #985: the lock is violated across a change of leader | `failovers::a_lease_that_a_failover_has_forgotten_is_no_lock_for_two` |
//! | consul #5437 (and #1162): an election ends the command and the wait | `failovers::a_command_and_one_that_waits_survive_a_failover`, `losses::what_passes_within_the_lease_is_survived` |
//! | consul #18271, #9788, #1843: where packets are dropped, the child runs beside the next for minutes | `losses::a_silent_partition_ends_the_command_within_its_lease_and_the_next_is_granted_after_it` |
//! | etcd #7983: nothing can be told to the child of a lock in danger | `losses::jeopardy_is_told_and_so_is_its_end` |

mod codes;
mod connection;
mod failovers;
pub(crate) mod fixture;
mod guardians;
mod losses;
mod pauses;
mod signals;
mod trees;

/// The table names tests that are there.
#[test]
fn each_test_of_the_table_exists() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/integration/run");
    let table = include_str!("run.rs").lines().filter(|line| line.starts_with("//! | "));
    let named = table.flat_map(|line| line.split('`').skip(1).step_by(2)).filter_map(|name| name.split_once("::"));
    let mut count = 0;
    for (module, test) in named {
        let source = std::fs::read_to_string(folder.join(format!("{module}.rs"))).unwrap();
        assert!(source.contains(&format!("fn {test}(")), "{module}::{test}");
        count += 1;
    }
    assert!(count > 20, "{count}");
}
