//! A contended store, for a while; and what its history shows.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use leasehold::api::LockMode;
use tokio::task::JoinSet;

use super::arena::{ANOTHER, MUTEX, SEMAPHORE};
use super::claims::{Claimant, For, Wanted};
use super::dice::Dice;
use super::direct::{Direct, Habits};
use super::elections::Electorate;
use super::stage::Stage;
use crate::support::LIMIT;
use crate::support::history::{Entry, Event, Invariant, Violation, check, lost_updates, save};

/// The name of claims that hold for long.
pub(super) const LONG: &str = "long";

const ENOUGH_BY: Duration = Duration::from_secs(90);

/// Who contends.
#[derive(Debug, Clone)]
pub(super) struct Load {
    /// Direct holders of the mutex; the semaphore has as many.
    pub(super) direct: usize,
    pub(super) habits: Habits,
    /// Claims for the mutex.
    pub(super) claims: Vec<For>,
    /// Claims for several locks.
    pub(super) several: Vec<(Wanted, For)>,
    /// Claims for the semaphore in these modes.
    pub(super) modes: Vec<LockMode>,
    /// Whether pods are elected.
    pub(super) elections: bool,
    /// How long the claim for the semaphore holds, in milliseconds: most of the time, also when something breaks.
    pub(super) long: Range<u64>,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            direct: 3,
            habits: Habits::default(),
            claims: vec![For::Itself, For::Itself, For::Pod],
            several: vec![
                (Wanted::All(&[MUTEX, ANOTHER]), For::Itself),
                (Wanted::All(&[ANOTHER, SEMAPHORE, MUTEX]), For::Pod),
            ],
            modes: vec![],
            elections: true,
            long: 1000..3000,
        }
    }
}

impl Load {
    /// With readers and a writer of the semaphore: nobody holds that for long, or the writer would keep all others waiting.
    pub(super) fn with_modes() -> Self {
        let modes = vec![LockMode::Shared, LockMode::Shared, LockMode::Exclusive];
        Self { modes, long: 200..600, ..Self::default() }
    }
}

/// What a run has shown.
pub(super) struct Outcome {
    pub(super) history: Vec<Entry>,
    pub(super) violations: Vec<Violation>,
}

impl Outcome {
    pub(super) fn acquisitions(&self) -> usize {
        acquisitions(&self.history)
    }

    /// Updates that were lost, of the counters that refuse old tokens and of the others.
    pub(super) fn lost_updates(&self) -> (usize, usize) {
        let lost = lost_updates(&self.history);
        let fenced = lost.iter().filter(|(entry, _)| matches!(entry.event, Event::Used { fenced: true, .. })).count();
        (fenced, lost.len() - fenced)
    }

    pub(super) fn breaks(&self, invariant: Invariant) -> bool {
        self.violations.iter().any(|violation| violation.invariant == invariant)
    }

    /// Keeps the history under this name.
    pub(super) fn save(&self, name: &str) -> PathBuf {
        save(&self.history, name)
    }

    /// Keeps the history under this name, if it shows that something was broken.
    pub(super) fn keep(&self, name: &str) {
        if !self.violations.is_empty() {
            let path = self.save(name);
            println!("{self}\nthe history is kept: make check-history FILE={}", path.display());
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for violation in self.violations.iter().take(10) {
            writeln!(f, "{violation}")?;
        }
        write!(f, "{} violations", self.violations.len())
    }
}

/// How often somebody learned that it holds.
pub(super) fn acquisitions(history: &[Entry]) -> usize {
    let mut ids = HashSet::new();
    let granted = history.iter().filter(|entry| match &entry.event {
        Event::Holds { id, .. } => ids.insert(id.clone()),
        Event::Marked { leads, token: Some(token), .. } => *leads && ids.insert(token.to_string()),
        _ => false,
    });
    granted.count()
}

/// Lets them contend while `script` does to the stage what it wants.
pub(super) async fn contend(
    stage: &mut Stage,
    load: &Load,
    seed: u64,
    script: impl AsyncFnOnce(&mut Stage),
) -> Outcome {
    let mut dice = Dice::new(seed);
    let arena = stage.arena.clone();
    let mut holders = JoinSet::new();
    for lock in [MUTEX, SEMAPHORE] {
        for _ in 0..load.direct {
            holders.spawn(Direct::new(&arena, lock, dice.split(), load.habits.clone()).run());
        }
    }
    for (number, whom) in load.claims.iter().enumerate() {
        let name = format!("claim-{number}");
        holders.spawn(Claimant::new(&arena, Wanted::All(&[MUTEX]), &name, *whom, dice.split()).run());
    }
    for (number, (wanted, whom)) in load.several.iter().enumerate() {
        let name = format!("several-{number}");
        holders.spawn(Claimant::new(&arena, *wanted, &name, *whom, dice.split()).run());
    }
    for (number, mode) in load.modes.iter().enumerate() {
        let claimant = Claimant::new(
            &arena,
            Wanted::All(&[SEMAPHORE]),
            &format!("{mode:?}-{number}").to_lowercase(),
            For::Itself,
            dice.split(),
        );
        holders.spawn(claimant.in_mode(*mode).run());
    }
    holders.spawn(Direct::new(&arena, ANOTHER, dice.split(), load.habits.clone()).run());
    let long =
        Claimant::new(&arena, Wanted::All(&[SEMAPHORE]), LONG, For::Itself, dice.split()).for_long(load.long.clone());
    holders.spawn(long.run());
    if load.elections {
        holders.spawn(Electorate::new(&arena, dice.split()).run());
    }
    script(stage).await;
    arena.stop();
    let ended = tokio::time::timeout(2 * LIMIT, async {
        while let Some(ended) = holders.join_next().await {
            ended.expect("a holder has died of something else than a fault");
        }
    });
    ended.await.expect("the holders end in time");
    let history = stage.recorder.history();
    Outcome { violations: check(&history), history }
}

/// Until enough has been seen, on a slow machine too; who asks for it says so when it was too little.
pub(super) async fn long_enough(enough: impl Fn() -> bool) {
    let start = tokio::time::Instant::now();
    while !enough() && start.elapsed() < ENOUGH_BY {
        for_a_while(Duration::from_secs(1)).await;
    }
}

/// As long as nothing is broken.
pub(super) async fn for_a_while(time: Duration) {
    tokio::time::sleep(time).await;
}
