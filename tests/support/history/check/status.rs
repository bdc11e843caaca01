//! I4: what the status says was true. A published holder held that token; a published expiry is never later than the
//! lease's own.

use std::collections::{HashMap, HashSet};

use super::super::event::{Entry, Event, Kind, Micros, Shown};
use super::story::{Acquisition, Story};
use super::{Invariant, Violation};

/// Between the wall clock, in which a status speaks, and ours; milliseconds are cut off.
const SLACK: Micros = 5_000;

pub(super) fn check(story: &Story<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    let known = known(story.history);
    let acquisitions: HashMap<_, _> = story.acquisitions.iter().map(|a| ((a.lock, a.id), a)).collect();
    for entry in story.history {
        let Event::Published { lock, holders, expires, .. } = &entry.event else { continue };
        if let Some(late) = expires.filter(|at| holders.iter().all(|holder| *at > holder.expires + SLACK)) {
            let what = format!("{lock} is said to be held until {late}, and no holder is");
            found.extend((!holders.is_empty()).then(|| Violation::new(Invariant::I4, what, [entry])));
        }
        for holder in holders {
            if !known.contains(&(lock.as_str(), holder.id.as_str())) {
                let what = format!("{lock} is said to be held by {}, who never asked", holder.id);
                found.push(Violation::new(Invariant::I4, what, [entry]));
            }
            found.extend(longer_than_any_lease(story, lock, entry, holder));
            if let Some(acquisition) = acquisitions.get(&(lock.as_str(), holder.id.as_str())) {
                found.extend(other_token(entry, holder, acquisition));
                found.extend(longer_than_its_lease(entry, holder, acquisition));
            }
        }
    }
    found.extend(longer_than_the_record(story));
    found
}

/// Everybody who has asked, as far as anybody tells.
fn known(history: &[Entry]) -> HashSet<(&str, &str)> {
    let mut known = HashSet::new();
    for entry in history {
        match &entry.event {
            Event::Asks { lock, id, .. } | Event::Claimed { lock, id, .. } => {
                known.insert((lock.as_str(), id.as_str()));
            }
            Event::Published { lock, leaders, .. } => {
                known.extend(leaders.iter().map(|leader| (lock.as_str(), leader.id.as_str())));
            }
            _ => {}
        }
    }
    known
}

fn other_token(entry: &Entry, holder: &Shown, acquisition: &Acquisition<'_>) -> Option<Violation> {
    let grant = acquisition.grant().filter(|grant| grant.token != holder.token)?;
    // A grant that has run out before the claim was told of it.
    if acquisition.kind == Kind::Delegated && holder.token < grant.token && entry.at < grant.entry.at {
        return None;
    }
    let what = format!("{} is said to have the token {}, it has {}", holder.id, holder.token, grant.token);
    Some(Violation::new(Invariant::I4, what, [grant.entry, entry]))
}

fn longer_than_any_lease(story: &Story<'_>, lock: &str, entry: &Entry, holder: &Shown) -> Option<Violation> {
    let lease = story.in_force(lock, Micros::MIN, entry.at).map(|c| c.lease).max()?;
    (holder.expires > entry.at + lease + SLACK).then(|| {
        let what = format!("{lock} has leases of {lease} µs, and {} is said to have more", holder.id);
        Violation::new(Invariant::I4, what, [entry])
    })
}

/// What the holder itself was answered. One whose renewal is not answered may have more than it knows.
fn longer_than_its_lease(entry: &Entry, holder: &Shown, acquisition: &Acquisition<'_>) -> Option<Violation> {
    let renewed = acquisition.renews.iter().filter(|renews| renews.at <= entry.at).count();
    let answers = acquisition.holds.get(..=renewed)?;
    let lease_end = |answer: &&Entry| match answer.event {
        Event::Holds { lease_end, .. } => lease_end,
        _ => None,
    };
    let ends: Option<Vec<_>> = answers.iter().map(lease_end).collect();
    let end = ends?.into_iter().max()?;
    (holder.expires > end + SLACK).then(|| {
        let what = format!("{} is said to hold until {}, its lease ended at {end}", holder.id, holder.expires);
        Violation::new(Invariant::I4, what, answers.iter().copied().chain([entry]))
    })
}

/// An expiry never shrinks while a hold stands: a record that is read later shows at least what was published, unless it
/// is an old copy.
fn longer_than_the_record(story: &Story<'_>) -> Vec<Violation> {
    let mut published: HashMap<(&str, &str), (&Entry, Micros)> = HashMap::new();
    let mut found = Vec::new();
    for entry in story.history {
        match &entry.event {
            Event::Published { lock, holders, .. } => {
                for holder in holders {
                    published.insert((lock, &holder.id), (entry, holder.expires));
                }
            }
            Event::Record { lock, sent, holds, .. } => {
                for hold in holds {
                    let Some((said, expires)) = published.get(&(lock.as_str(), hold.id.as_str())) else { continue };
                    let shrunk = *expires > hold.expires + SLACK;
                    if said.at < *sent && shrunk && story.steady(said.at, entry.at) {
                        let what = format!("{} is said to hold until {expires}, by its record it doesn't", hold.id);
                        found.push(Violation::new(Invariant::I4, what, [*said, entry]));
                    }
                }
            }
            _ => {}
        }
    }
    found
}
