//! I1: believed holds never exceed the permits in force at each grant, or stand beside an exclusive one.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::super::event::{Entry, Event, Micros, Share};
use super::story::{Acquisition, Story};
use super::{Invariant, Violation};

pub(super) fn check(story: &Story<'_>) -> Vec<Violation> {
    let mut found = Vec::new();
    for (lock, acquisitions) in story.by_lock() {
        found.extend(believed_at_once(story, lock, &acquisitions));
    }
    found.extend(leading_at_once(story));
    found
}

/// A holder, and from when to when it believes.
struct Believer<'s, 'a> {
    acquisition: &'s Acquisition<'a>,
    entry: &'a Entry,
    share: Share,
    from: Micros,
    to: Micros,
}

fn believed_at_once(story: &Story<'_>, lock: &str, acquisitions: &[&Acquisition<'_>]) -> Option<Violation> {
    let mut believers: Vec<_> = acquisitions.iter().filter_map(|a| believer(a)).collect();
    believers.sort_by_key(|believer| believer.from);
    let mut beside: Vec<&Believer<'_, '_>> = Vec::new();
    for new in &believers {
        beside.retain(|other| other.to > new.from);
        beside.push(new);
        let asked = new.acquisition.asked().unwrap_or(new.from);
        let permits = story.in_force(lock, asked, new.from).map(|c| c.permits).max().unwrap_or(u32::MAX);
        if crowded(&beside, permits) {
            let names: Vec<_> = beside.iter().map(|b| (b.acquisition.id, b.share)).collect();
            let what = format!("{lock} has {permits} permits, and at {} believe to hold: {names:?}", new.from);
            return Some(Violation::new(Invariant::I1, what, beside.iter().map(|b| b.entry)));
        }
    }
    None
}

fn believer<'s, 'a>(acquisition: &'s Acquisition<'a>) -> Option<Believer<'s, 'a>> {
    let (from, to) = acquisition.belief()?;
    let grant = acquisition.grant()?;
    Some(Believer { acquisition, entry: grant.entry, share: grant.share, from, to })
}

fn crowded(believers: &[&Believer<'_, '_>], permits: u32) -> bool {
    if believers.iter().any(|b| b.share == Share::Exclusive) {
        return believers.len() > 1;
    }
    let counted: u32 = believers.iter().map(|b| if let Share::Permits(n) = b.share { n } else { 0 }).sum();
    counted + u32::from(believers.iter().any(|b| b.share == Share::Shared)) > permits
}

/// Pods with the leader's label of one lock, at one `resourceVersion`.
fn leading_at_once(story: &Story<'_>) -> Vec<Violation> {
    let mut marks: BTreeMap<(u32, &str, u64), &Entry> = BTreeMap::new();
    let mut lives_of_etcd = 0;
    for entry in story.history {
        match &entry.event {
            Event::PutBack => lives_of_etcd += 1,
            Event::Marked { lock, version, .. } => drop(marks.insert((lives_of_etcd, lock, *version), entry)),
            _ => {}
        }
    }
    let mut leading: HashMap<&str, BTreeMap<&str, &Entry>> = HashMap::new();
    let mut found = BTreeSet::new();
    let mut violations = Vec::new();
    for entry in marks.values() {
        let Event::Marked { lock, pod_uid, version, leads, .. } = &entry.event else { continue };
        let pods = leading.entry(lock).or_default();
        if *leads {
            pods.insert(pod_uid, entry)
        } else {
            pods.remove(pod_uid.as_str())
        };
        let permits = story.in_force(lock, Micros::MIN, entry.at).map(|c| c.permits).max().unwrap_or(1);
        if pods.len() > permits as usize && found.insert(lock) {
            let what = format!("{} pods lead {lock}, which has {permits} permits, at version {version}", pods.len());
            violations.push(Violation::new(Invariant::I1, what, pods.values().copied()));
        }
    }
    violations
}
