//! I6: waiters of equal priority are served in the order of their arrival. After a loss claims by their creation, direct
//! ones as they come.

use std::collections::HashMap;

use super::super::event::{Entry, Kind, Micros};
use super::story::{Acquisition, Story};
use super::{Invariant, Violation};

/// A waiter, as far as is known.
struct Waiter<'a> {
    kind: Kind,
    priority: i32,
    asks: &'a Entry,
    /// It had its place, unless it was served at once.
    queued: Option<&'a Entry>,
    /// When it learned that it holds.
    served: Option<&'a Entry>,
    /// It asks for other locks, too.
    several: bool,
    /// Its first token, whoever tells it: also of a grant that it has not waited for.
    token: Option<i64>,
    /// Until when it is known to have waited, if it was not served.
    waited: Micros,
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

fn waiter<'a>(
    story: &Story<'_>,
    acquisition: &Acquisition<'a>,
    first: &HashMap<(&str, &str), i64>,
) -> Option<Waiter<'a>> {
    let Acquisition { lock, id, .. } = *acquisition;
    if acquisition.missed.is_some() {
        return None;
    }
    let Acquisition { kind, priority, .. } = *acquisition;
    // What a claim's status says of a queue is late: it may have been served when it gave up.
    let told = acquisition.queued.last().filter(|_| kind == Kind::Direct).map_or(Micros::MIN, |entry| entry.at);
    let waited = acquisition.gave_up.map_or(Micros::MAX, |_| told);
    let served = acquisition.grant().map(|grant| grant.entry);
    let (queued, token) = (acquisition.queued.first().copied(), first.get(&(lock, id)).copied());
    let several = story.asks_for_several(id);
    Some(Waiter { kind, priority, asks: acquisition.asks?, queued, served, several, token, waited })
}

fn overtaken(
    story: &Story<'_>,
    first: &HashMap<(&str, &str), i64>,
    acquisitions: &[&Acquisition<'_>],
) -> Option<Violation> {
    let mut waiters: Vec<_> = acquisitions.iter().filter_map(|a| waiter(story, a, first)).collect();
    waiters.sort_by_key(|waiter| waiter.asks.at);
    for (index, late) in waiters.iter().enumerate() {
        let (Some(served), Some(token)) = (late.served, late.token) else { continue };
        let overtakes = |early: &&Waiter<'_>| {
            let came_first =
                early.queued.is_some_and(|queued| queued.at < late.asks.at) && early.priority == late.priority;
            let waits_still = early.token.map_or(early.waited > served.at, |own| own > token);
            came_first && waits_still && comparable(story, early, late, served.at)
        };
        if let Some(early) = waiters[..index].iter().find(overtakes) {
            let what = "one that came later was served first".to_owned();
            let shown = early.queued.into_iter().chain([late.asks, served]).chain(early.served);
            return Some(Violation::new(Invariant::I6, what, shown));
        }
    }
    None
}

/// Places are kept while nothing is broken; those of claims always, since etcd knows when they were created. But who has
/// lost another lock meanwhile has its place here reserved, and others may pass.
fn comparable(story: &Story<'_>, early: &Waiter<'_>, late: &Waiter<'_>, served: Micros) -> bool {
    let claims = early.kind == Kind::Delegated && late.kind == Kind::Delegated;
    claims && !early.several || story.steady(early.asks.at, served)
}
