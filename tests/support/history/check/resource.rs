//! I3: a resource that refuses tokens lower than the highest it has seen loses no update.

use std::collections::HashMap;

use super::super::event::{Entry, Event};
use super::story::Story;
use super::{Invariant, Violation};

pub(super) fn check(story: &Story<'_>) -> Vec<Violation> {
    let lost = lost_updates(story.history);
    let fenced = lost.into_iter().filter(|(entry, _)| matches!(entry.event, Event::Used { fenced: true, .. }));
    let violation = |(entry, before): (&Entry, Option<&Entry>)| {
        Violation::new(Invariant::I3, "an update was lost".into(), before.into_iter().chain([entry]))
    };
    fenced.map(violation).collect()
}

/// The updates that have overwritten another one, each with that one. Of counters that are fenced, and of others.
pub(crate) fn lost_updates(history: &[Entry]) -> Vec<(&Entry, Option<&Entry>)> {
    let mut counters: HashMap<&str, (u64, Option<&Entry>)> = HashMap::new();
    let mut lost = Vec::new();
    for entry in history {
        let Event::Used { counter, read, wrote: Some(wrote), .. } = &entry.event else { continue };
        let (value, before) = counters.entry(counter).or_default();
        if read != value {
            lost.push((entry, *before));
        }
        (*value, *before) = (*wrote, Some(entry));
    }
    lost
}
