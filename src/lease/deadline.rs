//! Until when a holder may believe that it holds, by its own clock, and what it does meanwhile.

use std::fmt;
use std::time::Duration;

use super::{FencingToken, Grant, Renewed};

/// How much the rates of two clocks may differ, as one part in so many: 1 %.
const RATE_ERROR: u32 = 100;
/// How late a timer of ours may be.
const SLACK: Duration = Duration::from_millis(50);
/// Renewals in the time that is left of a lease.
const RENEWALS: u32 = 5;
/// Renewals that may fail before the holder has to stop.
const SPARE: u32 = 3;
/// Renewals are never more frequent.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(200);
/// After a renewal that failed the next comes so many times sooner, and never sooner than that.
const SOONER: u32 = 4;
const SHORTEST_RETRY: Duration = Duration::from_millis(100);

/// The moment until which a lease may be believed: `sent + R·(1 − 2ρ) − ε`, with `R` what the reply says is left, ρ the
/// error of a clock's rate (both clocks may have it, hence twice) and ε the slack of timers. `sent` is the holder's own
/// clock, read before the request was sent that was answered.
pub fn deadline(sent: Duration, remaining: Duration) -> Duration {
    (sent + believed(remaining)).saturating_sub(SLACK)
}

fn believed(remaining: Duration) -> Duration {
    remaining - remaining / RATE_ERROR * 2
}

/// The longest time to stop that a lease leaves: what is believed of it, without the slack and three renewals.
pub fn longest_stop(lease: Duration) -> Duration {
    believed(lease).saturating_sub(SLACK + lease / RENEWALS * SPARE)
}

/// A lease that leaves no time to stop and to renew. It shows the arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub struct TooShort {
    /// The lease of the lock.
    pub lease: Duration,
    /// How long the holder needs to stop.
    pub stop: Duration,
}

impl fmt::Display for TooShort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lease, stop } = self;
        write!(
            f,
            "a lease of {lease:?} is too short to stop within {stop:?}: of it {:?} are believed, less {SLACK:?} for \
             timers and {:?} for {SPARE} renewals leaves {:?}",
            believed(*lease),
            *lease / RENEWALS * SPARE,
            longest_stop(*lease),
        )
    }
}

/// Whether the holder holds, by what it knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Held, and the last renewal was answered.
    Held,
    /// Held until the deadline, but the last renewal was not answered, or the server has no record of the lock.
    Jeopardy,
    /// Held no more.
    Lost,
}

/// One hold, from its grant to its loss. Moments are the holder's own clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tenure {
    /// The fencing token of this hold.
    pub token: FencingToken,
    /// Whether it is held.
    pub standing: Standing,
    /// Until when it may be believed.
    pub deadline: Duration,
    /// When to begin to stop, if nothing else is heard.
    pub stop_at: Duration,
    /// When to renew.
    pub renew_at: Duration,
    interval: Duration,
    /// How long before the deadline it begins to stop.
    stop: Duration,
    rules: Rules,
}

/// What a holder asks of its lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rules {
    /// How long it would like from hearing of the loss until it has stopped; it gets less of a lease that leaves less.
    pub stop: Duration,
    /// How long it must have for that.
    pub least_stop: Duration,
    /// It believes at most so much of a lease.
    pub longest: Option<Duration>,
}

impl Rules {
    /// For a holder that needs so long to stop.
    pub fn stopping_within(stop: Duration) -> Self {
        Self { stop, least_stop: stop, longest: None }
    }

    /// The lease as this holder believes it.
    pub fn lease(self, lease: Duration) -> Duration {
        self.longest.map_or(lease, |longest| longest.min(lease))
    }

    /// Whether such a lease leaves time to stop and for three renewals.
    ///
    /// # Errors
    /// [`TooShort`] with the arithmetic.
    pub fn check(self, lease: Duration) -> Result<(), TooShort> {
        let (lease, stop) = (self.lease(lease), self.least_stop);
        if stop <= longest_stop(lease) { Ok(()) } else { Err(TooShort { lease, stop }) }
    }
}

impl Tenure {
    /// Begins with a grant that answered a request of that moment.
    pub fn begin(rules: Rules, sent: Duration, grant: Grant) -> Self {
        let (token, standing, zero) = (grant.token, Standing::Held, Duration::ZERO);
        let (stop, interval) = (zero, zero);
        let mut tenure = Self { token, standing, deadline: zero, stop_at: zero, renew_at: zero, interval, stop, rules };
        tenure.extend(sent, grant.remaining);
        tenure
    }

    /// Begins with an offer: its first renewal, due now, makes it a hold.
    pub fn begin_offered(rules: Rules, sent: Duration, grant: Grant) -> Self {
        Self { renew_at: sent, ..Self::begin(rules, sent, grant) }
    }

    fn extend(&mut self, sent: Duration, remaining: Duration) {
        let remaining = self.rules.lease(remaining);
        // An answer that comes late may say less than an earlier one; the server never takes back what it gave.
        self.deadline = self.deadline.max(deadline(sent, remaining));
        // The lease that is left shrinks at the end of the longest hold; the time to stop doesn't.
        let stop = self.rules.stop.min(longest_stop(remaining)).max(self.rules.least_stop);
        self.stop = self.stop.max(stop);
        self.stop_at = self.deadline.saturating_sub(self.stop);
        self.interval = (remaining / RENEWALS).max(SHORTEST_INTERVAL);
        self.renew_at = sent + self.interval;
    }

    /// How long an answer to a renewal that is sent now is waited for. `None`: it must not be sent any more.
    pub fn patience(&self, now: Duration) -> Option<Duration> {
        let left = self.deadline.checked_sub(now).filter(|left| !left.is_zero())?;
        (self.standing != Standing::Lost).then(|| left.min(self.interval))
    }

    /// The answer to a renewal that was sent at that moment. After the deadline nothing makes it held again.
    pub fn answered(&mut self, sent: Duration, now: Duration, answer: Renewed) {
        match answer {
            _ if self.at(now) == Standing::Lost => self.standing = Standing::Lost,
            Renewed::Held(grant) => {
                self.standing = Standing::Held;
                self.extend(sent, grant.remaining);
            }
            Renewed::Lost | Renewed::NotHeld => self.standing = Standing::Lost,
            Renewed::Unprovisioned => self.unanswered(now),
        }
    }

    /// A renewal had no answer, or none that says whether it is held. Unknown is not lost.
    pub fn unanswered(&mut self, now: Duration) {
        if self.standing == Standing::Held {
            self.standing = Standing::Jeopardy;
        }
        self.renew_at = now + (self.interval / SOONER).max(SHORTEST_RETRY);
    }

    /// What is left at that moment; nothing once it is lost.
    pub fn remaining(&self, now: Duration) -> Duration {
        if self.standing == Standing::Lost { Duration::ZERO } else { self.deadline.saturating_sub(now) }
    }

    /// Held until its deadline, and never after it.
    pub fn at(&self, now: Duration) -> Standing {
        if self.deadline <= now { Standing::Lost } else { self.standing }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn grant(remaining: u64) -> Grant {
        Grant { token: FencingToken::new((7 << 32) + 1).unwrap(), remaining: ms(remaining) }
    }

    fn tenure(sent: u64) -> Tenure {
        Tenure::begin(Rules::stopping_within(ms(2000)), ms(sent), grant(10_000))
    }

    #[test]
    fn belief_ends_before_the_lease_by_the_rate_of_two_clocks_and_the_slack() {
        let t = tenure(1000);
        assert_eq!((t.deadline, t.stop_at, t.renew_at), (ms(10_750), ms(8_750), ms(3000)));
    }

    #[test]
    fn a_lease_is_too_short_without_time_for_three_renewals_and_the_stop() {
        let rules = |stop| Rules::stopping_within(ms(stop));
        assert_eq!(rules(5650).check(ms(15_000)), Ok(()));
        let error = rules(5651).check(ms(15_000)).unwrap_err().to_string();
        let shown = "a lease of 15s is too short to stop within 5.651s: of it 14.7s are believed, less 50ms for timers \
                     and 9s for 3 renewals leaves 5.65s";
        assert_eq!(error, shown);
        assert!(Rules { longest: Some(ms(2000)), ..rules(1000) }.check(ms(15_000)).is_err());
    }

    #[test]
    fn an_unanswered_renewal_is_jeopardy_and_ends_at_the_deadline_alone() {
        let mut t = tenure(0);
        t.unanswered(ms(2000));
        assert_eq!((t.standing, t.renew_at, t.deadline), (Standing::Jeopardy, ms(2500), ms(9750)));
        assert_eq!(t.at(ms(9749)), Standing::Jeopardy);
        assert_eq!(t.at(ms(9750)), Standing::Lost);
        assert_eq!(t.patience(ms(9000)), Some(ms(750)));
        assert_eq!(t.patience(ms(9750)), None);
        t.answered(ms(2500), ms(9749), Renewed::Held(grant(10_000)));
        assert_eq!((t.standing, t.deadline), (Standing::Held, ms(12_250)));
        t.answered(ms(12_000), ms(12_250), Renewed::Held(grant(10_000)));
        assert_eq!(t.standing, Standing::Lost, "an answer after the deadline is too late");
    }

    #[test]
    fn a_record_that_is_missing_is_no_loss_and_one_without_the_hold_is() {
        let mut t = tenure(0);
        t.answered(ms(2000), ms(2000), Renewed::Unprovisioned);
        assert_eq!((t.standing, t.deadline), (Standing::Jeopardy, ms(9750)));
        t.answered(ms(2500), ms(2500), Renewed::NotHeld);
        assert_eq!((t.standing, t.remaining(ms(2600))), (Standing::Lost, ms(0)));
        t.answered(ms(2600), ms(2600), Renewed::Held(grant(10_000)));
        assert_eq!((t.standing, t.patience(ms(2700))), (Standing::Lost, None));
    }

    #[test]
    fn a_shorter_answer_takes_nothing_back_and_a_long_lease_is_believed_in_part() {
        let mut t = tenure(0);
        t.answered(ms(100), ms(100), Renewed::Held(grant(5000)));
        assert_eq!(t.deadline, ms(9750));
        let short = Tenure::begin(Rules { longest: Some(ms(1000)), ..Rules::default() }, ms(0), grant(10_000));
        assert_eq!((short.deadline, short.renew_at), (ms(930), ms(200)));
    }

    #[test]
    fn a_wish_is_cut_to_what_the_lease_leaves_and_not_below_the_need() {
        let rules = Rules { stop: ms(5000), least_stop: ms(300), longest: None };
        let stop = |lease| Tenure::begin(rules, ms(0), grant(lease)).stop;
        assert_eq!((stop(15_000), stop(5000), stop(500)), (ms(5000), ms(1850), ms(300)));
        let mut t = Tenure::begin(rules, ms(0), grant(15_000));
        t.answered(ms(9000), ms(9000), Renewed::Held(grant(6000)));
        assert_eq!((t.stop, t.deadline), (ms(5000), ms(14_830)));
    }

    #[test]
    fn an_offer_is_renewed_at_once() {
        let t = Tenure::begin_offered(Rules::default(), ms(50), grant(5000));
        assert_eq!((t.renew_at, t.deadline), (ms(50), ms(4900)));
    }
}
