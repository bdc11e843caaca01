//! I7: no delegated holder learns of its grant before etcd remembers it, and none loses it to the loss of Redis, of the
//! controller, or of both.

use std::collections::{HashMap, HashSet};

use super::super::event::{Entry, Event, Kind, Micros, Stage};
use super::story::{Acquisition, Story};
use super::{Invariant, Violation};

/// A watch tells that a pod is unmarked so much later, at most.
const WATCH_LAG: Micros = 1_000_000;

pub(super) fn check(story: &Story<'_>) -> Vec<Violation> {
    let mut found = told_before_recorded(story.history);
    found.extend(marked_before_recorded(story.history));
    found.extend(lost(story));
    found.extend(lost_by_a_leader(story.history));
    found
}

/// In the order of etcd: `Granted`, and only then `Told`.
fn told_before_recorded(history: &[Entry]) -> Vec<Violation> {
    let mut granted = HashSet::new();
    // Who was seen since the watch began anew: of others, what came before was missed.
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for entry in history {
        match &entry.event {
            Event::Listed { kind } if kind == "LockClaim" => seen.clear(),
            Event::Claimed { lock, claim, id, stage, token, .. } => {
                let whole = !seen.insert((lock.as_str(), claim.as_str()));
                match stage {
                    Stage::Granted => drop(granted.insert((lock.as_str(), id.as_str(), *token))),
                    Stage::Told if whole && !granted.contains(&(lock.as_str(), id.as_str(), *token)) => {
                        let what = format!("the claim {claim} was told of {token:?} before it was recorded");
                        found.push(Violation::new(Invariant::I7, what, [entry]));
                    }
                    // It may have been recorded unseen.
                    Stage::Told => drop(granted.insert((lock.as_str(), id.as_str(), *token))),
                    Stage::Waiting | Stage::Releasing | Stage::Finished => {}
                }
            }
            _ => {}
        }
    }
    found
}

/// A pod is marked at a later version than the one at which the lock's status has recorded it.
fn marked_before_recorded(history: &[Entry]) -> Vec<Violation> {
    let mut recorded: HashMap<(&str, i64), u64> = HashMap::new();
    // How far the watch of the locks has come, which may be behind that of the pods when a history ends.
    let mut known_until = 0;
    for entry in history {
        let Event::Published { version, leaders, .. } = &entry.event else { continue };
        known_until = known_until.max(*version);
        for leader in leaders.iter().filter(|leader| !leader.releasing) {
            let first = recorded.entry((&leader.pod_uid, leader.token)).or_insert(*version);
            *first = (*first).min(*version);
        }
    }
    // What came before the watch of the locks began anew may have been missed.
    let gaps = history.iter().filter(|e| matches!(&e.event, Event::Listed { kind } if kind == "DistributedLock"));
    let put_back = history.iter().any(|entry| entry.event == Event::PutBack);
    let whole = gaps.count() <= 1 && !put_back;
    let early = history.iter().filter(|entry| match &entry.event {
        Event::Marked { pod_uid, version, leads: true, token: Some(token), .. } => recorded
            .get(&(pod_uid.as_str(), *token))
            .map_or(whole && known_until > *version, |first| first > version && !put_back),
        _ => false,
    });
    let violation = |entry| Violation::new(Invariant::I7, "a pod leads that etcd doesn't remember".into(), [entry]);
    early.map(violation).collect()
}

/// Between being told and ending by itself, the claim says that it holds, and so does an open Redis.
fn lost(story: &Story<'_>) -> Vec<Violation> {
    let put_back: Vec<Micros> = story.history.iter().filter(|e| e.event == Event::PutBack).map(|e| e.at).collect();
    let delegated = story.acquisitions.iter().filter(|a| a.kind == Kind::Delegated);
    let belief = |a: &Acquisition<'_>| {
        let (from, to) = a.belief()?;
        // What etcd had since its copy was made, it has never had.
        Some((from, put_back.iter().copied().filter(|at| *at > from).fold(to, Micros::min)))
    };
    let beliefs: HashMap<_, _> =
        delegated.filter_map(|a| Some(((a.lock, a.id), (belief(a)?, a.grant()?.entry)))).collect();
    let mut by_lock: HashMap<&str, Vec<_>> = HashMap::new();
    for ((lock, id), belief) in &beliefs {
        by_lock.entry(lock).or_default().push((*id, *belief));
    }
    let mut found = Vec::new();
    for entry in story.history {
        match &entry.event {
            Event::Record { lock, sent, open: true, holds } => {
                let believed = by_lock.get(lock.as_str()).map(Vec::as_slice).unwrap_or_default();
                let now = believed.iter().filter(|(_, ((from, to), _))| from < sent && entry.at < *to);
                for (id, (_, told)) in now.filter(|(id, _)| holds.iter().all(|hold| hold.id != *id)) {
                    let what = format!("{lock}: {id} holds, and its record in an open Redis doesn't say so");
                    found.push(Violation::new(Invariant::I7, what, [*told, entry]));
                }
            }
            Event::Claimed { lock, id, stage, .. } if *stage != Stage::Told => {
                let Some(((from, to), told)) = beliefs.get(&(lock.as_str(), id.as_str())) else { continue };
                if (*from..*to).contains(&entry.at) {
                    let what = format!("{lock}: {id} holds, and etcd has it as {stage:?}");
                    found.push(Violation::new(Invariant::I7, what, [*told, entry]));
                }
            }
            _ => {}
        }
    }
    found
}

/// From being marked to being unmarked, an open Redis holds a leader's token.
fn lost_by_a_leader(history: &[Entry]) -> Vec<Violation> {
    let mut leads: HashMap<(&str, &str), (i64, &Entry)> = HashMap::new();
    let mut beliefs: Vec<(&str, i64, &Entry, Micros)> = Vec::new();
    for entry in history {
        let Event::Marked { lock, pod_uid, leads: is, token, .. } = &entry.event else { continue };
        let pod = (lock.as_str(), pod_uid.as_str());
        if let Some((held, marked)) = leads.remove(&pod) {
            beliefs.push((lock, held, marked, entry.at));
        }
        if let Some(token) = token.filter(|_| *is) {
            leads.insert(pod, (token, entry));
        }
    }
    let last = history.last().map_or(0, |entry| entry.at);
    beliefs.extend(leads.iter().map(|((lock, _), (token, marked))| (*lock, *token, *marked, last)));
    let mut found = Vec::new();
    for (lock, token, marked, end) in beliefs {
        let lost = history.iter().find(|entry| match &entry.event {
            Event::Record { lock: of, sent, open: true, holds } => {
                let within = marked.at < *sent && entry.at < end - WATCH_LAG;
                of == lock && within && holds.iter().all(|hold| hold.token != token)
            }
            _ => false,
        });
        if let Some(entry) = lost {
            let what = format!("{lock}: a pod leads with {token}, and its record in an open Redis doesn't say so");
            found.push(Violation::new(Invariant::I7, what, [marked, entry]));
        }
    }
    found
}
