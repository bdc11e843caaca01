//! A budget of so many a second, with a second's worth saved up.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// A token bucket.
#[derive(Debug)]
pub(super) struct Budget {
    rate: f64,
    state: Mutex<(f64, Instant)>,
}

impl Budget {
    /// Full.
    pub(super) fn new(rate: f64) -> Self {
        Self { rate, state: Mutex::new((rate, Instant::now())) }
    }

    /// Takes one, if there is one.
    pub(super) fn take(&self) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (saved, since) = *state;
        let saved = (saved + since.elapsed().as_secs_f64() * self.rate).min(self.rate);
        let enough = saved >= 1.0;
        *state = (if enough { saved - 1.0 } else { saved }, Instant::now());
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_runs_out() {
        let budget = Budget::new(3.0);
        let taken = (0..10).filter(|_| budget.take()).count();
        assert!((3..5).contains(&taken), "{taken}");
    }
}
