//! I2: the tokens of a lock strictly increase with each grant.

use std::collections::HashMap;

use super::super::event::{Entry, Event, Micros};
use super::story::{Acquisition, Story};
use super::{Invariant, Violation};

pub(super) fn check(story: &Story<'_>) -> Vec<Violation> {
    let mut found: Vec<_> = one_token_one_id(story.history).into_iter().collect();
    found.extend(story.by_lock().iter().filter_map(|(lock, acquisitions)| rising(lock, acquisitions)));
    found
}

/// Every pair of an id and its token that anybody tells.
pub(super) fn told(entry: &Entry) -> Vec<(&str, &str, i64)> {
    match &entry.event {
        Event::Holds { lock, id, token, .. } | Event::Claimed { lock, id, token: Some(token), .. } => {
            vec![(lock, id, *token)]
        }
        Event::Record { lock, holds: shown, .. } | Event::Published { lock, holders: shown, .. } => {
            shown.iter().map(|hold| (lock.as_str(), hold.id.as_str(), hold.token)).collect()
        }
        _ => Vec::new(),
    }
}

/// A token is that of one acquisition, and what a holder was told doesn't change. An id whose offer has run out before
/// its holder was told may be offered another, later.
fn one_token_one_id(history: &[Entry]) -> Option<Violation> {
    let mut ids: HashMap<_, (&str, &Entry)> = HashMap::new();
    let mut tokens: HashMap<_, (i64, &Entry)> = HashMap::new();
    for entry in history {
        for (lock, id, token) in told(entry) {
            let (other, first) = *ids.entry((lock, token)).or_insert((id, entry));
            if other != id {
                let what = format!("{lock}: {other} and {id} have the same token {token}");
                return Some(Violation::new(Invariant::I2, what, [first, entry]));
            }
            if !matches!(entry.event, Event::Holds { .. }) {
                continue;
            }
            let (other, first) = *tokens.entry((lock, id)).or_insert((token, entry));
            if other != token {
                let what = format!("{lock}: {id} has the tokens {other} and {token}");
                return Some(Violation::new(Invariant::I2, what, [first, entry]));
            }
        }
    }
    None
}

/// A grant that was asked for after another was known has a higher token.
fn rising(lock: &str, acquisitions: &[&Acquisition<'_>]) -> Option<Violation> {
    let grants = acquisitions.iter().filter_map(|a| Some((a.asked()?, a.grant()?)));
    let mut by_request: Vec<_> = grants.collect();
    by_request.sort_by_key(|(asked, _)| *asked);
    let mut by_answer = by_request.clone();
    by_answer.sort_by_key(|(_, grant)| grant.entry.at);
    let mut known = by_answer.into_iter().peekable();
    let mut highest: Option<(Micros, super::story::Grant<'_>)> = None;
    for (asked, grant) in by_request {
        while let Some(earlier) = known.next_if(|(_, earlier)| earlier.entry.at < asked) {
            highest = Some(highest.filter(|(_, h)| h.token >= earlier.1.token).unwrap_or(earlier));
        }
        if let Some((_, before)) = highest.filter(|(_, before)| before.token >= grant.token) {
            let what = format!("{lock}: {} was granted after {}", grant.token, before.token);
            return Some(Violation::new(Invariant::I2, what, [before.entry, grant.entry]));
        }
    }
    None
}
