//! What the lock is for: counters that each holder reads, increments and writes. One refuses old tokens, one doesn't.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::support::history::{Event, Recorder};

/// A counter that knows the highest token that it has seen, and refuses lower ones if it is fenced.
struct Counter {
    name: String,
    fenced: bool,
    recorder: Recorder,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    highest: i64,
    value: u64,
}

impl Counter {
    fn new(name: String, fenced: bool, recorder: &Recorder) -> Self {
        Self { name, fenced, recorder: recorder.clone(), state: Mutex::default() }
    }

    fn admits(&self, state: &mut State, token: i64) -> bool {
        let refused = self.fenced && token < state.highest;
        state.highest = state.highest.max(token);
        !refused
    }

    /// A reading counts as seen: who reads with an old token would write what is older.
    fn read(&self, token: i64) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.admits(&mut state, token).then_some(state.value)
    }

    fn write(&self, id: &str, token: i64, read: u64) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let wrote = self.admits(&mut state, token).then_some(read + 1);
        state.value = wrote.unwrap_or(state.value);
        let Self { name, fenced, .. } = self;
        let (counter, id) = (name.clone(), id.to_owned());
        self.recorder.note(Event::Used { counter, fenced: *fenced, id, token, read, wrote });
    }
}

/// The counters of one lock.
pub(super) struct Counters {
    fenced: Counter,
    unfenced: Counter,
}

impl Counters {
    pub(super) fn of(lock: &str, recorder: &Recorder) -> Self {
        Self {
            fenced: Counter::new(format!("{lock}/fenced"), true, recorder),
            unfenced: Counter::new(format!("{lock}/unfenced"), false, recorder),
        }
    }

    /// Reads both, is busy for so long, writes both.
    pub(super) async fn update(&self, id: &str, token: i64, busy: Duration) {
        let (fenced, unfenced) = (self.fenced.read(token), self.unfenced.read(token));
        tokio::time::sleep(busy).await;
        for (counter, read) in [(&self.fenced, fenced), (&self.unfenced, unfenced)] {
            if let Some(read) = read {
                counter.write(id, token, read);
            }
        }
    }
}
