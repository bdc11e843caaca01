//! I6: waiters of equal priority are served in the order of their arrival. After a loss claims by their creation, direct
//! ones as they come.

use std::collections::HashMap;

use super::super::event::{Entry, Kind, Micros};
use super::story::{Acquisition, Story};
use super::{Invariant, Violation};

/// A waiter that was served, or one that still waits: `token` is `None`.
struct Waiter<'a> {
    kind: Kind,
    priority: i32,
    asks: &'a Entry,
    /// It had its place, unless it was served at once.
    queued: Option<&'a Entry>,
    served: Option<(&'a Entry, i64)>,
    /// Until when it waited, if it was not served.
    gave_up: Micros,
}

pub(super) fn check(story: &Story<'_>) -> Vec<Violation> {
    let first = first_tokens(story.history);
    story.by_lock().values().flat_map(|acquisitions| overtaken(story, &first, acquisitions)).collect()
}

/// The first token of each id: what it was offered and has missed was its turn, too.
fn first_tokens(history: &[Entry]) -> HashMap<(&str, &str), i64> {
    let mut first = HashMap::new();
    for (lock, id, token) in history.iter().flat_map(super::tokens::told) {
        let lowest = first.entry((lock, id)).or_insert(token);
        *lowest = token.min(*lowest);
    }
    first
}

fn waiter<'a>(acquisition: &Acquisition<'a>, first: &HashMap<(&str, &str), i64>) -> Option<Waiter<'a>> {
    let Acquisition { lock, id, .. } = *acquisition;
    if acquisition.missed.is_some() {
        return None;
    }
    let gave_up = acquisition.gave_up.map_or(Micros::MAX, |entry| entry.at);
    let own = first.get(&(lock, id)).copied();
    let served = acquisition.grant().map(|grant| (grant.entry, own.unwrap_or(grant.token)));
    let Acquisition { kind, priority, .. } = *acquisition;
    let queued = acquisition.queued.first().copied();
    Some(Waiter { kind, priority, asks: acquisition.asks?, queued, served, gave_up })
}

fn overtaken(
    story: &Story<'_>,
    first: &HashMap<(&str, &str), i64>,
    acquisitions: &[&Acquisition<'_>],
) -> Option<Violation> {
    let mut waiters: Vec<_> = acquisitions.iter().filter_map(|a| waiter(a, first)).collect();
    waiters.sort_by_key(|waiter| waiter.asks.at);
    for (index, late) in waiters.iter().enumerate() {
        let Some((served, token)) = late.served else { continue };
        let overtakes = |early: &&Waiter<'_>| {
            let came_first =
                early.queued.is_some_and(|queued| queued.at < late.asks.at) && early.priority == late.priority;
            let waits_still = early.served.map_or(early.gave_up > served.at, |(_, own)| own > token);
            came_first && waits_still && comparable(story, early, late, served.at)
        };
        if let Some(early) = waiters[..index].iter().find(overtakes) {
            let what = "one that came later was served first".to_owned();
            let own = early.served.map(|(entry, _)| entry);
            let shown = early.queued.into_iter().chain([late.asks, served]).chain(own);
            return Some(Violation::new(Invariant::I6, what, shown));
        }
    }
    None
}

/// Places are kept while nothing is broken; those of claims always, since etcd knows when they were created.
fn comparable(story: &Story<'_>, early: &Waiter<'_>, late: &Waiter<'_>, served: Micros) -> bool {
    let claims = early.kind == Kind::Delegated && late.kind == Kind::Delegated;
    claims || story.steady(early.asks.at, served)
}
