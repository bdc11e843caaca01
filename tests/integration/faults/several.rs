//! Claims of one to four of six locks, in any order, while the leading controller is killed again and again.

use std::time::Duration;

use super::claims::{For, Wanted};
use super::contention::{Load, contend, for_a_while, long_enough};
use super::stage::{Set, Stage};
use super::strikes::Fault;
use crate::support::history::Event;

const RING: [&str; 6] = ["ring-1", "ring-2", "ring-3", "ring-4", "ring-5", "ring-6"];
/// A run with fewer acquisitions shows nothing.
const ENOUGH: usize = 200;
const KILLS: usize = 3;

fn load() -> Load {
    let claimants =
        [[For::Itself; 6], [For::Pod, For::Pod, For::Itself, For::Itself, For::Itself, For::Itself]].concat();
    let several = claimants.into_iter().map(|whom| (Wanted::Some(&RING, 4), whom)).collect();
    Load { direct: 0, claims: Vec::new(), elections: false, several, ..Load::default() }
}

/// How often a claim learned that it holds, each of its locks counted.
fn acquisitions(stage: &Stage) -> usize {
    let of_ring = |lock: &str| RING.contains(&lock);
    stage.recorder.history().iter().filter(|e| matches!(&e.event, Event::Holds { lock, .. } if of_ring(lock))).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_claims_of_several_locks_keep_their_promises_while_controllers_are_killed() {
    let mut stage = Stage::new(Set { locks: RING.to_vec(), ..Set::default() }).await;
    let (mut dice, mut count) = (super::dice::Dice::new(6), 0);
    let outcome = contend(&mut stage, &load(), 6, async |stage| {
        for _ in 0..KILLS {
            for_a_while(Duration::from_secs(3)).await;
            stage.recorder.note(Event::Fault { name: format!("{:?}", Fault::ControllerKilled) });
            Fault::ControllerKilled.strike(stage, &mut dice).await;
            stage.heals().await;
            stage.recorder.note(Event::Healed);
        }
        long_enough(|| acquisitions(stage) >= ENOUGH).await;
        count = acquisitions(stage);
    })
    .await;
    outcome.keep("several");
    println!("{count} locks were acquired, updates lost (fenced, unfenced): {:?}", outcome.lost_updates());
    assert!(outcome.violations.is_empty());
    assert_eq!(outcome.lost_updates(), (0, 0), "nobody was paused, so that nobody needed a fence");
    assert!(count >= ENOUGH, "only {count} acquisitions");
}
