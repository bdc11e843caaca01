//! What has happened to the lock, in order, for those who listen and for those who come back.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::watch;

use crate::keeper::{Standing, Tenure};
use crate::lease::FencingToken;

/// So many are kept for who comes back.
const KEPT: usize = 64;

/// What has happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    Waiting,
    Acquired(FencingToken),
    Jeopardy(FencingToken),
    Safe(FencingToken),
    Lost(FencingToken),
}

impl What {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Acquired(_) => "acquired",
            Self::Jeopardy(_) => "jeopardy",
            Self::Safe(_) => "safe",
            Self::Lost(_) => "lost",
        }
    }

    fn says_held(self) -> bool {
        !matches!(self, Self::Waiting | Self::Lost(_))
    }

    pub(super) fn token(self) -> Option<FencingToken> {
        match self {
            Self::Waiting => None,
            Self::Acquired(token) | Self::Jeopardy(token) | Self::Safe(token) | Self::Lost(token) => Some(token),
        }
    }
}

/// What is known now, and what has led to it.
#[derive(Debug, Clone, Default)]
pub(super) struct Story {
    tenure: Option<Tenure>,
    events: VecDeque<(u64, What)>,
    next: u64,
}

impl Story {
    /// The hold as it is at that moment: none after its deadline, whatever was heard.
    pub(super) fn held(&self, now: Duration) -> Option<Tenure> {
        self.tenure.filter(|tenure| tenure.at(now) != Standing::Lost)
    }

    /// The events after that one; where that isn't known, the last one.
    pub(super) fn after(&self, last: Option<u64>) -> impl Iterator<Item = (u64, What)> + '_ {
        let oldest = self.events.front().map_or(0, |(number, _)| *number);
        let known = last.filter(|last| (oldest..self.next).contains(&(last + 1)) || last + 1 == self.next);
        let from = known.map_or(self.next.saturating_sub(1), |last| last + 1);
        self.events.iter().copied().filter(move |(number, _)| *number >= from)
    }

    /// Whether this event says that it is held, which isn't true any more, and the end of that wasn't heard of yet.
    pub(super) fn is_over(&self, (number, what): (u64, What), now: Duration) -> bool {
        let mut later = self.events.iter().filter(|(later, _)| *later > number);
        what.says_held() && later.all(|(_, what)| what.says_held()) && self.held(now).is_none()
    }

    fn note(&mut self, what: What) {
        if self.events.len() == KEPT {
            self.events.pop_front();
        }
        self.events.push_back((self.next, what));
        self.next += 1;
    }

    fn hear(&mut self, tenure: Option<Tenure>) {
        let held = |tenure: &Option<Tenure>| tenure.filter(|tenure| tenure.standing != Standing::Lost);
        let what = match (held(&self.tenure), held(&tenure)) {
            (None, Some(new)) => Some(What::Acquired(new.token)),
            (Some(old), None) => Some(What::Lost(old.token)),
            (Some(old), Some(new)) => match (old.standing, new.standing) {
                (Standing::Held, Standing::Jeopardy) => Some(What::Jeopardy(new.token)),
                (Standing::Jeopardy, Standing::Held) => Some(What::Safe(new.token)),
                _ => None,
            },
            (None, None) => None,
        };
        self.tenure = tenure;
        what.into_iter().for_each(|what| self.note(what));
    }
}

/// Who tells the story.
pub(super) struct Teller(watch::Sender<Story>);

impl Teller {
    pub(super) fn new() -> (Self, watch::Receiver<Story>) {
        let (teller, told) = watch::channel(Story::default());
        (Self(teller), told)
    }

    /// It asks, and holds nothing.
    pub(super) fn waits(&self) {
        self.0.send_modify(|story| story.note(What::Waiting));
    }

    /// What is known of the hold; `None`: there is none any more.
    pub(super) fn hear(&self, tenure: Option<Tenure>) {
        self.0.send_modify(|story| story.hear(tenure));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::{Grant, Renewed, Rules};

    const fn s(s: u64) -> Duration {
        Duration::from_secs(s)
    }

    fn tenure() -> Tenure {
        let token = FencingToken::new((1 << 32) + 1).unwrap();
        Tenure::begin(Rules::default(), s(0), Grant { token, remaining: s(10) })
    }

    fn names(story: &Story, last: Option<u64>) -> Vec<(u64, &'static str)> {
        story.after(last).map(|(number, what)| (number, what.name())).collect()
    }

    #[test]
    fn changes_are_events_and_renewals_are_not() {
        let (teller, told) = Teller::new();
        teller.waits();
        let mut tenure = tenure();
        teller.hear(Some(tenure));
        tenure.answered(s(2), s(2), Renewed::Held(Grant { token: tenure.token, remaining: s(10) }));
        teller.hear(Some(tenure));
        tenure.unanswered(s(4));
        teller.hear(Some(tenure));
        tenure.answered(s(5), s(5), Renewed::Held(Grant { token: tenure.token, remaining: s(10) }));
        teller.hear(Some(tenure));
        teller.hear(None);
        let story = told.borrow().clone();
        let all = [(0, "waiting"), (1, "acquired"), (2, "jeopardy"), (3, "safe"), (4, "lost")];
        assert_eq!(names(&story, Some(0)), all[1..]);
        assert_eq!((names(&story, None), names(&story, Some(4))), (all[4..].to_vec(), vec![]));
        assert_eq!(names(&story, Some(77)), all[4..], "an id of another life of the agent");
    }

    #[test]
    fn nothing_is_held_after_the_deadline_though_nothing_was_heard() {
        let (teller, told) = Teller::new();
        teller.hear(Some(tenure()));
        let story = told.borrow();
        assert!(story.held(s(9)).is_some());
        assert!(story.held(s(10)).is_none());
    }

    #[test]
    fn no_event_says_after_the_deadline_that_it_is_held_though_its_end_was_not_heard_of() {
        let (teller, told) = Teller::new();
        let mut tenure = tenure();
        teller.hear(Some(tenure));
        tenure.unanswered(s(4));
        teller.hear(Some(tenure));
        let all: Vec<_> = told.borrow().after(Some(0)).chain([(0, What::Acquired(tenure.token))]).collect();
        assert_eq!(all.len(), 2, "acquired, jeopardy");
        for event in all.clone() {
            assert!(!told.borrow().is_over(event, s(5)) && told.borrow().is_over(event, s(10)), "{event:?}");
        }
        teller.hear(None);
        assert!(all.iter().all(|event| !told.borrow().is_over(*event, s(10))), "who hears of it hears of its end, too");
    }
}
