//! The checker sees what it is for: for each invariant a library that breaks it, under the same contention.

use std::time::Duration;

use leasehold::store::LIBRARY_SOURCE;
use rstest::rstest;

use super::contention::{LONG, Load, Outcome, contend};
use super::direct::Habits;
use super::stage::{Set, Stage};
use super::watches::Claim;
use crate::protocol::patched;
use crate::support::history::{Event, Invariant, Stage as Progress, check};

/// In which time each has to be found.
const LIMIT: Duration = Duration::from_secs(25);

/// Pieces of the library, and by what they are replaced.
type Patches = &'static [(&'static str, &'static str)];

/// Everybody is granted, whatever others hold.
const NOTHING_IS_COUNTED: Patches = &[
    ("exclusive > 0 or used + permits > c.permits or", "exclusive > 0 or"),
    ("return h.used + math.min(h.shared, 1) + ask.permits <= h.permits", "return true"),
];
/// All holders of an epoch have the same token.
const TOKENS_REPEAT: Patches = &[("local token, first = last + 1,", "local token, first = last,")];
/// What is read is later than what stands in the record.
const EXPIRY_TOO_LATE: Patches = &[(
    "o.state, o.acquired, o.renewed, o.expires, o.identity",
    "o.state, o.acquired, o.renewed, o.expires + 1500, o.identity",
)];
/// What is given back or over stays free until a waiter asks by itself.
const NOBODY_IS_PROMOTED: Patches = &[
    ("end_hold(l, l.id, l.holder, how, now)\n  promote(l, now)", "end_hold(l, l.id, l.holder, how, now)"),
    ("local at = prune(l, now)\n  promote(l, now)", "local at = prune(l, now)"),
];
/// Who came last is served first.
const LAST_COME_FIRST_SERVED: Patches = &[("w.priority, w.seq) .. id", "w.priority, 1e16 - w.seq) .. id")];
/// What etcd remembers isn't put back.
const NOTHING_IS_PUT_BACK: Patches = &[("  put_back(l, args, 12, after - 1, now, gate)\n", "")];

fn library(patches: Patches) -> String {
    patches.iter().fold(LIBRARY_SOURCE.to_owned(), |source, (piece, by)| patched(&source, piece, by))
}

/// Who contends while it is broken. Where nobody is promoted, many waiters would hide it by asking, as would holders that
/// come back at once; one that waits asks again in less than a second anyhow, so that it takes many releases to see it.
fn load(invariant: Invariant) -> Load {
    let load = Load::default();
    match invariant {
        Invariant::I3 => Load { habits: Habits { pauses: 2, ..load.habits }, ..load },
        Invariant::I5 => Load {
            direct: 2,
            habits: Habits { holds: 100..200, rests: 150..250, ..load.habits },
            claims: vec![],
            several: vec![],
            ..load
        },
        Invariant::I7 => Load { long: 6000..8000, ..load },
        Invariant::I1 | Invariant::I2 | Invariant::I4 | Invariant::I6 => load,
    }
}

/// Redis comes back empty while a claim holds.
async fn lose_redis(stage: &mut Stage) {
    let mut claims = stage.arena.seen.claims.clone();
    let told = |(name, claim): (&String, &Claim)| name.starts_with(LONG) && claim.stage == Progress::Told;
    let told = claims.wait_for(|claims| claims.iter().any(told));
    tokio::time::timeout(LIMIT, told).await.expect("a claim holds in time").expect("it is watched");
    stage.recorder.note(Event::Fault { name: "Redis is lost".into() });
    stage.f.redis.kill();
    stage.f.redis.restart().await;
}

/// Contends until the invariant is seen to be broken.
async fn contend_over(patches: Patches, invariant: Invariant) -> Outcome {
    let mut stage = Stage::new(Set { library: Some(library(patches)), ..Set::default() }).await;
    contend(&mut stage, &load(invariant), 7, async |stage| {
        if invariant == Invariant::I7 {
            lose_redis(stage).await;
        }
        let start = tokio::time::Instant::now();
        let broken = |stage: &Stage| check(&stage.recorder.history()).iter().any(|v| v.invariant == invariant);
        while start.elapsed() < LIMIT && !broken(stage) {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    })
    .await
}

#[rstest]
#[case::i1(Invariant::I1, NOTHING_IS_COUNTED)]
#[case::i2(Invariant::I2, TOKENS_REPEAT)]
#[case::i3(Invariant::I3, TOKENS_REPEAT)]
#[case::i4(Invariant::I4, EXPIRY_TOO_LATE)]
#[case::i5(Invariant::I5, NOBODY_IS_PROMOTED)]
#[case::i6(Invariant::I6, LAST_COME_FIRST_SERVED)]
#[case::i7(Invariant::I7, NOTHING_IS_PUT_BACK)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_library_is_found(#[case] invariant: Invariant, #[case] patches: Patches) {
    let outcome = contend_over(patches, invariant).await;
    let first = outcome.violations.iter().find(|violation| violation.invariant == invariant);
    println!("{}", first.map(ToString::to_string).unwrap_or_default());
    let kept = (!outcome.breaks(invariant)).then(|| outcome.save(&format!("broken-{invariant:?}")));
    assert!(kept.is_none(), "it was not noticed in {kept:?}; what was: {outcome}");
}
