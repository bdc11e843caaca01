//! I5: what is free is granted again in time, where nothing is broken and somebody waits.

use super::super::event::{Entry, Event, Kind, Micros, Why};
use super::story::{Acquisition, Story};
use super::{Invariant, Violation};

const MS: Micros = 1_000;
/// A dead direct holder's permits, after its lease.
const AFTER_LEASE: Micros = 1_000 * MS;
/// A clean release, to a waiter that listens: milliseconds, and what a test machine that is busy makes of them.
const RELEASED: Micros = 1_000 * MS;
/// Of so many such releases, half are faster than this.
const MANY: usize = 20;
const TYPICAL: Micros = 50 * MS;
/// The same from or to a claim, by way of etcd.
const BY_WAY_OF_ETCD: Micros = 2_000 * MS;
/// An offer lasts for a lease, and so does the turn of a reserved place, but no longer than this.
const LONGEST_OFFER: Micros = 15_000 * MS;
/// A pod that the API server knows to have ended: 200 ms, and what that machine makes of them.
const POD_ENDED: Micros = 2_000 * MS;

pub(super) fn check(story: &Story<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for (lock, acquisitions) in story.by_lock() {
        if story.in_force(lock, Micros::MIN, Micros::MAX).any(|configuration| configuration.permits != 1) {
            continue;
        }
        let regained = regained(story, lock, &acquisitions);
        found.extend(slow(story, lock, &acquisitions, &regained));
        for acquisition in &acquisitions {
            found.extend(granted_again(story, &acquisitions, &regained, acquisition));
        }
    }
    found
}

/// When somebody learned that it holds, in this order. Who asks for several locks learns it when it has all: what it has
/// of this one before, its record tells.
fn regained<'a>(story: &Story<'a>, lock: &str, acquisitions: &[&Acquisition<'a>]) -> Vec<(&'a Entry, Kind)> {
    let grants = acquisitions.iter().filter_map(|a| Some((a.grant()?.entry, a.kind)));
    // One that was never told at all, since its offer came too late for that, is known by the record alone.
    let untold = |id: &str, at: Micros| match acquisitions.iter().find(|a| a.id == id) {
        Some(known) if known.kind == Kind::Direct => false,
        Some(known) => known.grant().is_none_or(|grant| story.asks_for_several(id) && grant.entry.at > at),
        None => true,
    };
    let others = story.history.iter().filter(|entry| match &entry.event {
        Event::Marked { lock: of, leads: true, .. } => of == lock,
        Event::Record { lock: of, sent, holds, .. } => of == lock && holds.iter().any(|hold| untold(&hold.id, *sent)),
        _ => false,
    });
    let mut regained: Vec<_> = grants.chain(others.map(|entry| (entry, Kind::Delegated))).collect();
    regained.sort_by_key(|(entry, _)| entry.at);
    regained
}

fn granted_again(
    story: &Story<'_>,
    acquisitions: &[&Acquisition<'_>],
    regained: &[(&Entry, Kind)],
    of: &Acquisition<'_>,
) -> Option<Violation> {
    let (lock, (stopped, why)) = (of.lock, of.stopped?);
    let freed = stopped.at;
    let next = regained.get(regained.partition_point(|(entry, _)| entry.at <= freed));
    let lease = story.in_force(lock, freed, freed).map(|c| c.lease).max()?;
    let direct = of.kind == Kind::Direct && next.is_some_and(|(_, kind)| *kind == Kind::Direct);
    let limit = match why {
        Why::Died => lease + AFTER_LEASE,
        Why::Released if direct => RELEASED,
        Why::Released => BY_WAY_OF_ETCD,
        Why::PodEnded => POD_ENDED,
        // Told that it lost: somebody else has it already. Nobody says that a pod has vanished.
        Why::Lost | Why::PodVanished => return None,
    };
    // Each reserved place has a turn, once.
    let reserved = acquisitions.iter().filter(|a| !a.is_over(freed) && story.may_be_reserved(a, freed));
    let turns: Micros = reserved.map(|_| lease.min(LONGEST_OFFER)).sum();
    let till = freed + limit + turns;
    let ends = story.history.last().map_or(0, |last| last.at);
    if next.is_some_and(|(entry, _)| entry.at <= till) || ends < till || !story.steady(freed, till) {
        return None;
    }
    let waiting = acquisitions.iter().find_map(|waiter| waits_through(story, waiter, freed, till))?;
    let what = format!("{lock} was free at {freed} ({why:?}), somebody waited, and nobody held it by {till}");
    Some(Violation::new(Invariant::I5, what, [waiting, stopped].into_iter().chain(next.map(|(entry, _)| *entry))))
}

/// The entry by which it has waited all the time. What a direct waiter was told before something broke says nothing.
fn waits_through<'a>(story: &Story<'_>, waiter: &Acquisition<'a>, from: Micros, to: Micros) -> Option<&'a Entry> {
    let stands =
        |queued: &&&Entry| queued.at < from && (waiter.kind == Kind::Delegated || story.steady(queued.at, from));
    waiter.queued.iter().rev().find(stands).copied().filter(|_| !waiter.is_over(to))
}

/// Releases to waiters that listen, of which one may be late, but not most.
fn slow(
    story: &Story<'_>,
    lock: &str,
    acquisitions: &[&Acquisition<'_>],
    regained: &[(&Entry, Kind)],
) -> Option<Violation> {
    let direct = acquisitions.iter().filter(|a| a.kind == Kind::Direct);
    let released = direct.filter_map(|a| a.stopped.filter(|(_, why)| *why == Why::Released));
    let mut handed_over: Vec<(Micros, &Entry, &Entry)> = released
        .filter_map(|(stopped, _)| {
            let (next, kind) = regained.get(regained.partition_point(|(entry, _)| entry.at <= stopped.at))?;
            let waited = acquisitions.iter().any(|waiter| {
                let queued = waiter.queued.iter().any(|queued| queued.at < stopped.at);
                queued && waiter.grant().is_some_and(|grant| std::ptr::eq(grant.entry, *next))
            });
            let counts = *kind == Kind::Direct && waited && story.steady(stopped.at, next.at);
            counts.then_some((next.at - stopped.at, stopped, *next))
        })
        .collect();
    handed_over.sort_by_key(|(took, ..)| *took);
    let (took, stopped, next) = handed_over.get(handed_over.len() / 2)?;
    (handed_over.len() >= MANY && *took > TYPICAL).then(|| {
        let what = format!("{lock}: half of {} releases took {took} µs or more", handed_over.len());
        Violation::new(Invariant::I5, what, [*stopped, *next])
    })
}
