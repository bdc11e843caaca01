//! Whether the server's wall clock was set. Pure.
//!
//! The clocks of the two machines are never compared, only how far each goes: what the server's clock is ahead of ours
//! lies between two bounds, since it was read after the request was sent and before it was answered. With time the
//! bounds grow apart by what two clocks may differ in rate; a reading outside of them is a step.

use std::time::Duration;

/// Two clocks may differ in rate by one part in so many (design: ρ = 1 %).
const RATE: i64 = 100;
/// Steps that are not worth a word, in milliseconds: less than what any deadline leaves to spare.
const SLACK: i64 = 250;

/// What the server's clock is ahead of ours, in milliseconds: the bounds, and when they were found on our clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ahead {
    least: i64,
    most: i64,
    at: i64,
}

/// The clock of one process of the server, as seen by ours.
#[derive(Debug, Default)]
pub(super) struct ServerClock {
    ahead: Option<Ahead>,
}

impl ServerClock {
    /// Takes a reading of the server's clock that was asked for at `sent` and answered at `answered` on our own. How far
    /// the server's clock was set since the last one, in milliseconds, if it was.
    pub(super) fn read(&mut self, sent: Duration, answered: Duration, server: i64) -> Option<i64> {
        let ms = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        let now = Ahead { least: server - ms(answered) - 1, most: server - ms(sent) + 1, at: ms(answered) };
        let before = self.ahead.replace(now)?;
        let drift = (now.at - before.at).max(0) / RATE + 1;
        let (least, most) = (before.least - drift, before.most + drift);
        let step = match () {
            () if now.least > most => now.least - most,
            () if now.most < least => now.most - least,
            () => 0,
        };
        if step.abs() > SLACK {
            return Some(step);
        }
        if step == 0 {
            self.ahead = Some(Ahead { least: now.least.max(least), most: now.most.min(most), at: now.at });
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(clock: &mut ServerClock, sent: u64, answered: u64, server: i64) -> Option<i64> {
        clock.read(Duration::from_millis(sent), Duration::from_millis(answered), server)
    }

    #[test]
    fn a_clock_that_goes_on_is_not_stepped_however_slow_the_answers() {
        let mut clock = ServerClock::default();
        for second in 0..1000_u64 {
            let (sent, slow) = (second * 1000, if second % 7 == 0 { 900 } else { 2 });
            let server = 1_700_000_000_000 + i64::try_from(sent + slow / 2).unwrap();
            assert_eq!(read(&mut clock, sent, sent + slow, server), None);
        }
    }

    #[test]
    fn a_clock_that_is_slewed_is_not_stepped() {
        let mut clock = ServerClock::default();
        for second in 0..1000_i64 {
            let sent = u64::try_from(second * 1000).unwrap();
            assert_eq!(read(&mut clock, sent, sent + 1, 5_000 + second * 1005), None, "{second}");
        }
    }

    #[test]
    fn a_step_is_told_once_in_its_direction() {
        let mut clock = ServerClock::default();
        assert_eq!(read(&mut clock, 1000, 1002, 50_000), None);
        let step = read(&mut clock, 2000, 2002, 56_000).unwrap();
        assert!((4_900..=5_000).contains(&step), "{step}");
        assert_eq!(read(&mut clock, 3000, 3002, 57_000), None);
        let step = read(&mut clock, 4000, 4002, 55_000).unwrap();
        assert!((-3_000..=-2_900).contains(&step), "{step}");
    }

    #[test]
    fn a_step_hidden_by_a_slow_answer_is_found_by_the_next() {
        let mut clock = ServerClock::default();
        read(&mut clock, 1000, 1002, 50_000);
        assert_eq!(read(&mut clock, 2000, 3900, 52_900), None, "it may have been read at the end");
        let step = read(&mut clock, 4000, 4002, 55_000).unwrap();
        assert!((1_700..=2_000).contains(&step), "{step}");
    }
}
