//! Judges a history by the invariants of the design. Pure: one function an invariant, and a story that they share.
//!
//! # Guarantee
//! What is reported was broken: where a history leaves open what happened first (a request and its answer are two
//! instants, and Redis decided between them), the holder is given the benefit of the doubt.

mod memory;
mod order;
mod permits;
mod promptness;
mod resource;
mod status;
mod story;
mod tokens;

use std::fmt;

use super::event::Entry;
pub(crate) use resource::lost_updates;
use story::Story;

/// An invariant of the design.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Invariant {
    /// Believed holds never exceed the permits, or stand beside an exclusive one.
    I1,
    /// Tokens of a lock strictly increase with each grant.
    I2,
    /// A resource that refuses lower tokens loses no update.
    I3,
    /// What the status says was true.
    I4,
    /// What is free is granted again in time.
    I5,
    /// Waiters are served in the order of their arrival.
    I6,
    /// etcd remembers a delegated hold before its holder learns of it, and until the holder has ended.
    I7,
}

/// A broken invariant, and what shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) invariant: Invariant,
    pub(crate) what: String,
    pub(crate) shown_by: Vec<Entry>,
}

impl Violation {
    fn new<'a>(invariant: Invariant, what: String, shown_by: impl IntoIterator<Item = &'a Entry>) -> Self {
        Self { invariant, what, shown_by: shown_by.into_iter().cloned().collect() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.invariant, self.what)?;
        for entry in &self.shown_by {
            write!(f, "\n    {}", serde_json::to_string(entry).map_err(|_| fmt::Error)?)?;
        }
        Ok(())
    }
}

/// Everything that a history shows to be broken.
pub(crate) fn check(history: &[Entry]) -> Vec<Violation> {
    let story = Story::of(history);
    let judges: [fn(&Story<'_>) -> Vec<Violation>; 7] =
        [permits::check, tokens::check, resource::check, status::check, promptness::check, order::check, memory::check];
    judges.iter().flat_map(|judge| judge(&story)).collect()
}

#[cfg(test)]
mod tests;
