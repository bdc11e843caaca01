//! Writing histories down.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use rustix::time::{ClockId, clock_gettime};
use sha2::{Digest, Sha256};

use super::event::{Entry, Event, Micros};

/// Set for tests, and for benchmarks.
const TARGET: &str = match option_env!("CARGO_TARGET_TMPDIR") {
    Some(folder) => folder,
    None => concat!(env!("CARGO_MANIFEST_DIR"), "/target/tmp"),
};

/// This machine's `CLOCK_BOOTTIME`.
pub(crate) fn boottime() -> Micros {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec * 1_000_000 + now.tv_nsec / 1_000
}

/// An instant of the wall clock, in which Redis and Kubernetes tell the time.
pub(crate) fn from_wall_clock(at: Timestamp) -> Micros {
    boottime() + (at.as_microsecond() - Timestamp::now().as_microsecond())
}

/// A holder's id as a status shows it.
pub(crate) fn public_id(id: &str) -> String {
    Sha256::digest(id.as_bytes()).iter().take(10).map(|byte| format!("{byte:02x}")).collect()
}

/// Takes down what happens. Clones write into the same history.
#[derive(Clone, Default)]
pub(crate) struct Recorder(Arc<Mutex<Vec<Entry>>>);

impl Recorder {
    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes it down as of now, and says when that is.
    pub(crate) fn note(&self, event: Event) -> Micros {
        let mut entries = self.entries();
        let at = boottime();
        entries.push(Entry { at, event });
        at
    }

    /// Takes down what has happened at an instant of before, of which only now is known how to name it.
    pub(crate) fn note_since(&self, at: Micros, event: Event) {
        self.entries().push(Entry { at, event });
    }

    /// What was taken down so far.
    pub(crate) fn history(&self) -> Vec<Entry> {
        self.entries().clone()
    }
}

/// Keeps a history in `target`, for another look at it: one JSON object a line.
pub(crate) fn save(history: &[Entry], name: &str) -> PathBuf {
    let folder = Path::new(TARGET).join("histories");
    std::fs::create_dir_all(&folder).expect("a folder in target");
    let path = folder.join(format!("{name}.jsonl"));
    let mut text = String::new();
    for entry in history {
        writeln!(text, "{}", serde_json::to_string(entry).expect("JSON")).expect("a string");
    }
    std::fs::write(&path, text).expect("a file in target");
    path
}

/// Reads a history that was kept.
pub(crate) fn read(path: &Path) -> std::io::Result<Vec<Entry>> {
    let text = std::fs::read_to_string(path)?;
    text.lines().map(|line| serde_json::from_str(line).map_err(std::io::Error::other)).collect()
}
