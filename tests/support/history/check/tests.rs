//! For each invariant: histories that it accepts, and the smallest change that it rejects.

use rstest::rstest;

use super::super::event::{Entry, Event, Kind, Micros, Remembered, Share, Shown, Stage, Why};
use super::super::{read, save};
use super::{Invariant, check};

/// In milliseconds, as the tests count.
const LEASE: Micros = 1000;

/// A history, in milliseconds.
struct History(Vec<Entry>);

impl History {
    /// A lock of so many permits.
    fn of(permits: u32) -> Self {
        let mut history = Self(Vec::new());
        history.configured(0, permits);
        history
    }

    fn at(&mut self, ms: Micros, event: Event) -> &mut Self {
        self.0.push(Entry { at: ms * 1000, event });
        self
    }

    fn configured(&mut self, ms: Micros, permits: u32) -> &mut Self {
        self.at(ms, Event::Configured { lock: lock(), permits, lease: LEASE * 1000, sent: ms * 1000 })
    }

    fn asks(&mut self, ms: Micros, id: &str, kind: Kind) -> &mut Self {
        let name = id.to_owned();
        self.at(ms, Event::Asks { lock: lock(), id: id.into(), kind, name, priority: 0 })
    }

    fn queued(&mut self, ms: Micros, id: &str) -> &mut Self {
        self.at(ms, Event::Queued { lock: lock(), id: id.into() })
    }

    fn holds(&mut self, ms: Micros, id: &str, kind: Kind, token: i64) -> &mut Self {
        self.takes(ms, id, kind, token, Share::Permits(1))
    }

    fn takes(&mut self, ms: Micros, id: &str, kind: Kind, token: i64, share: Share) -> &mut Self {
        let until = (kind == Kind::Direct).then_some((ms + LEASE) * 1000);
        self.at(ms, Event::Holds { lock: lock(), id: id.into(), kind, token, share, until, lease_end: until })
    }

    fn stops(&mut self, ms: Micros, id: &str, why: Why) -> &mut Self {
        self.at(ms, Event::Stopped { lock: lock(), id: id.into(), why })
    }

    fn used(&mut self, ms: Micros, fenced: bool, read: u64, wrote: Option<u64>) -> &mut Self {
        self.at(ms, Event::Used { counter: "c".into(), fenced, id: "a".into(), token: 7, read, wrote })
    }

    fn published(&mut self, ms: Micros, version: u64, holders: &[(&str, i64, Micros)]) -> &mut Self {
        let shown =
            |(id, token, ms): &(&str, i64, Micros)| Shown { id: (*id).into(), token: *token, expires: ms * 1000 };
        let holders: Vec<_> = holders.iter().map(shown).collect();
        let expires = holders.iter().map(|holder| holder.expires).min();
        self.at(ms, Event::Published { lock: lock(), version, holders, expires, leaders: Vec::new() })
    }

    fn recorded(&mut self, ms: Micros, version: u64, pod: &str, token: i64) -> &mut Self {
        let leaders = vec![Remembered { id: pod.into(), pod_uid: pod.into(), token, releasing: false }];
        self.at(ms, Event::Published { lock: lock(), version, holders: Vec::new(), expires: None, leaders })
    }

    fn claimed(&mut self, ms: Micros, id: &str, stage: Stage, token: i64) -> &mut Self {
        let (claim, version) = (id.to_owned(), u64::try_from(ms).unwrap());
        let token = (token > 0).then_some(token);
        self.at(ms, Event::Claimed { lock: lock(), claim, version, id: id.into(), stage, token })
    }

    fn marked(&mut self, ms: Micros, version: u64, pod: &str, token: Option<i64>) -> &mut Self {
        let leads = token.is_some();
        self.at(ms, Event::Marked { lock: lock(), pod_uid: pod.into(), version, leads, token })
    }

    fn record(&mut self, ms: Micros, holds: &[(&str, i64, Micros)]) -> &mut Self {
        let shown =
            |(id, token, ms): &(&str, i64, Micros)| Shown { id: (*id).into(), token: *token, expires: ms * 1000 };
        let (sent, holds) = (ms * 1000 - 500, holds.iter().map(shown).collect());
        self.at(ms, Event::Record { lock: lock(), sent, open: true, holds })
    }

    /// It ends so late that everything could have happened.
    fn broken(&mut self) -> Vec<Invariant> {
        self.at(100_000, Event::Healed);
        let mut broken: Vec<_> = check(&self.0).into_iter().map(|violation| violation.invariant).collect();
        broken.dedup();
        broken
    }

    fn is_accepted(&mut self) {
        assert_eq!(self.broken(), []);
    }

    fn breaks(&mut self, invariant: Invariant) {
        assert_eq!(self.broken(), [invariant]);
    }
}

fn lock() -> String {
    "l".into()
}

use Invariant::{I1, I2, I3, I4, I5, I6, I7};
use Kind::{Delegated, Direct};

/// `a` holds, then `b`, which learns of it at `then`.
fn two(permits: u32, then: Micros) -> History {
    let mut history = History::of(permits);
    history.asks(1, "a", Direct).holds(10, "a", Direct, 7).asks(11, "b", Direct).holds(then, "b", Direct, 8);
    history
}

#[test]
fn i1_one_after_the_other() {
    two(1, 1010).is_accepted();
    two(1, 1009).breaks(I1);
    two(2, 20).is_accepted();
}

#[test]
fn i1_who_has_stopped_believes_no_longer() {
    let mut history = History::of(1);
    history.asks(1, "a", Direct).holds(10, "a", Direct, 7).stops(20, "a", Why::Released);
    history.asks(21, "b", Direct).holds(22, "b", Direct, 8).is_accepted();
}

#[test]
fn i1_a_claim_believes_until_it_ends() {
    let mut history = History::of(1);
    history.asks(1, "a", Delegated).holds(10, "a", Delegated, 7);
    history.asks(11, "b", Direct).holds(9000, "b", Direct, 8).breaks(I1);
}

#[test]
fn i1_a_lowered_number_counts_from_the_next_grant() {
    let mut history = two(2, 20);
    history.configured(30, 1).is_accepted();
    let mut history = two(2, 20);
    history.configured(30, 1).asks(40, "c", Direct).holds(41, "c", Direct, 9).breaks(I1);
}

#[test]
fn i1_an_answer_from_before_the_change_is_judged_by_what_was_in_force_then() {
    let mut history = History::of(2);
    history.asks(1, "a", Direct).holds(10, "a", Direct, 8).asks(2, "b", Direct);
    history.configured(30, 1).holds(40, "b", Direct, 7).is_accepted();
}

#[rstest]
#[case(Share::Exclusive, Share::Permits(1), false)]
#[case(Share::Shared, Share::Exclusive, false)]
#[case(Share::Shared, Share::Shared, true)]
#[case(Share::Shared, Share::Permits(4), true)]
#[case(Share::Shared, Share::Permits(5), false)]
fn i1_shares_beside_each_other(#[case] first: Share, #[case] second: Share, #[case] fine: bool) {
    let mut history = History::of(5);
    history.asks(1, "a", Direct).takes(2, "a", Direct, 7, first);
    history.asks(3, "b", Direct).takes(4, "b", Direct, 8, second);
    if fine { history.is_accepted() } else { history.breaks(I1) }
}

#[test]
fn i1_one_pod_leads_at_each_version() {
    let mut history = History::of(1);
    history.recorded(1, 1, "p", 7).marked(5, 5, "p", Some(7)).recorded(6, 6, "q", 8);
    // The watch told the second before the first lost its label; by version it was the other way round.
    history.marked(10, 10, "q", Some(8)).marked(11, 9, "p", None).is_accepted();
    history.marked(12, 9, "p", Some(7)).breaks(I1);
}

#[test]
fn i2_tokens_rise() {
    let mut history = History::of(9);
    history.asks(1, "a", Direct).holds(10, "a", Direct, 7).asks(9, "b", Direct).holds(20, "b", Direct, 6).is_accepted();
    history.asks(21, "c", Direct).holds(22, "c", Direct, 5).breaks(I2);
}

#[test]
fn i2_a_token_is_one_holders() {
    let mut history = History::of(9);
    history.asks(1, "a", Direct).holds(10, "a", Direct, 7).asks(2, "b", Direct).holds(20, "b", Direct, 7).breaks(I2);
    let mut history = History::of(9);
    history.asks(1, "a", Direct).holds(10, "a", Direct, 7).holds(20, "a", Direct, 8).breaks(I2);
}

#[test]
fn i3_no_update_is_lost() {
    let mut history = History::of(1);
    history.used(1, true, 0, Some(1)).used(2, true, 1, None).used(3, true, 1, Some(2)).is_accepted();
    history.used(4, true, 1, Some(2)).breaks(I3);
}

#[test]
fn i3_is_about_resources_that_refuse() {
    let mut history = History::of(1);
    history.used(1, false, 0, Some(1)).used(4, false, 0, Some(1));
    assert_eq!(super::lost_updates(&history.0).len(), 1);
    history.is_accepted();
}

/// `a` holds with 7 from 10 to 1010.
fn held() -> History {
    let mut history = History::of(1);
    history.asks(1, "a", Direct).holds(10, "a", Direct, 7);
    history
}

#[test]
fn i4_who_is_shown_held_that_token() {
    held().published(15, 1, &[("a", 7, 1010)]).is_accepted();
    held().published(15, 1, &[("b", 8, 1010)]).breaks(I4);
    held().published(15, 1, &[("a", 8, 1010)]).breaks(I4);
}

#[test]
fn i4_an_expiry_is_never_later_than_the_lease() {
    held().published(15, 1, &[("a", 7, 1016)]).breaks(I4);
    held().published(15, 1, &[("a", 7, 1010)]).record(20, &[("a", 7, 1000)]).breaks(I4);
    let mut renewed = held();
    let renews = Event::Renews { lock: lock(), id: "a".into() };
    renewed.at(300, renews).published(301, 1, &[("a", 7, 1300)]).is_accepted();
    renewed.holds(310, "a", Direct, 7).is_accepted();
    renewed.published(320, 2, &[("a", 7, 1316)]).breaks(I4);
}

#[test]
fn i4_an_expiry_of_one_that_cannot_be_asked_is_within_a_lease() {
    let mut history = History::of(1);
    history.asks(1, "a", Delegated).holds(10, "a", Delegated, 7);
    history.published(5000, 1, &[("a", 7, 6000)]).is_accepted();
    history.published(5000, 2, &[("a", 7, 6100)]).breaks(I4);
}

/// `b` waits while `a` holds and stops at 100; `b` holds at `then`.
fn handed_over(why: Why, kind: Kind, then: Micros) -> History {
    let mut history = held();
    history.asks(20, "b", kind).queued(30, "b").stops(100, "a", why).holds(then, "b", kind, 8);
    history
}

#[rstest]
#[case(Why::Released, Direct, 1100)]
#[case(Why::Released, Delegated, 2100)]
#[case(Why::Died, Direct, 2100)]
#[case(Why::PodEnded, Delegated, 2100)]
fn i5_what_is_free_is_granted_again(#[case] why: Why, #[case] kind: Kind, #[case] limit: Micros) {
    handed_over(why, kind, limit).is_accepted();
    handed_over(why, kind, limit + 1).breaks(I5);
}

#[test]
fn i5_nobody_is_in_a_hurry_while_something_is_broken_or_nobody_waits() {
    let mut faulty = held();
    faulty.asks(20, "b", Direct).queued(30, "b").at(40, Event::Fault { name: "f".into() });
    faulty.stops(100, "a", Why::Released).holds(900, "b", Direct, 8).is_accepted();
    let mut alone = held();
    alone.stops(100, "a", Why::Released).asks(800, "b", Direct).queued(801, "b").holds(900, "b", Direct, 8);
    alone.is_accepted();
}

/// `both` asks for another lock, too, and learns of this one when it has both.
#[test]
fn i5_who_waits_for_another_lock_has_this_one_before_it_learns_of_it() {
    let history = || {
        let mut history = held();
        let (lock, claim, id) = ("other".to_owned(), "both".to_owned(), "both".to_owned());
        history.at(20, Event::Claimed { lock, claim, version: 20, id, stage: Stage::Waiting, token: None });
        history.claimed(21, "both", Stage::Waiting, 0);
        history.asks(20, "both", Delegated).asks(22, "b", Direct).queued(23, "b").stops(100, "a", Why::Released);
        history
    };
    history().record(200, &[("both", 8, 9000)]).holds(4000, "both", Delegated, 8).is_accepted();
    history().record(200, &[]).holds(4000, "both", Delegated, 8).breaks(I5);
}

/// `both` asks for another lock, too. What it had of that is lost in the fault, if there is one.
fn both(ms: Micros, fault: bool) -> History {
    let mut history = held();
    let (lock, claim, id) = ("other".to_owned(), "both".to_owned(), "both".to_owned());
    history.at(ms, Event::Claimed { lock, claim, version: 20, id, stage: Stage::Waiting, token: None });
    history.asks(ms, "both", Delegated).claimed(ms, "both", Stage::Waiting, 0).queued(ms, "both");
    if fault {
        history.at(ms + 1, Event::Fault { name: "f".into() }).at(ms + 2, Event::Healed);
    }
    history
}

/// A turn that is not taken lasts for a lease.
#[rstest]
#[case(true, 3100)]
#[case(false, 2100)]
fn i5_a_place_that_a_fault_made_a_reserved_one_has_its_turn_once(#[case] fault: bool, #[case] limit: Micros) {
    let history = |holds| {
        let mut history = both(20, fault);
        history.asks(30, "b", Delegated).queued(31, "b").stops(100, "a", Why::Released);
        history.holds(holds, "b", Delegated, 8).broken().contains(&I5)
    };
    assert!(!history(limit) && history(limit + 1));
}

#[test]
fn i6_a_place_that_a_fault_made_a_reserved_one_may_be_passed() {
    for (fault, broken) in [(true, vec![]), (false, vec![I6])] {
        let mut history = both(20, fault);
        history.asks(30, "b", Delegated).queued(31, "b").stops(100, "a", Why::Released);
        history.holds(200, "b", Delegated, 8).stops(210, "b", Why::Released).holds(300, "both", Delegated, 9);
        assert_eq!(history.broken(), broken);
    }
}

#[rstest]
#[case(50, vec![])]
#[case(51, vec![I5])]
fn i5_most_releases_are_fast(#[case] took: Micros, #[case] broken: Vec<Invariant>) {
    let mut history = held();
    let ids: Vec<_> = (0..25).map(|number| format!("w{number}")).collect();
    for id in &ids {
        history.asks(20, id, Direct).queued(20, id);
    }
    history.stops(100, "a", Why::Released);
    for (token, id) in (0..).zip(&ids) {
        let learns = 100 + (token + 1) * (took + 10) - 10;
        history.holds(learns, id, Direct, 8 + token).stops(learns + 10, id, Why::Released);
    }
    assert_eq!(history.broken(), broken);
}

/// `b` and `c` wait in this order; each holds for a moment, `b` with its token and then `c`.
fn served(kind: Kind, b: i64, c: i64) -> History {
    let mut history = held();
    history.asks(20, "b", kind).queued(21, "b").asks(22, "c", kind).queued(23, "c");
    let mut turns = [("b", b), ("c", c)];
    turns.sort_by_key(|(_, token)| *token);
    history.stops(30, "a", Why::Released);
    for (turn, (id, token)) in (0..).zip(turns) {
        history.holds(40 + 20 * turn, id, kind, token).stops(50 + 20 * turn, id, Why::Released);
    }
    history
}

#[rstest]
fn i6_first_come_first_served(#[values(Direct, Delegated)] kind: Kind) {
    served(kind, 8, 9).is_accepted();
    served(kind, 9, 8).breaks(I6);
}

#[test]
fn i6_one_that_still_waits_is_overtaken_too_but_not_by_one_that_came_at_the_same_time() {
    let mut history = held();
    history.asks(20, "b", Direct).queued(23, "b").asks(22, "c", Direct).queued(24, "c");
    history.stops(30, "a", Why::Released).holds(40, "c", Direct, 8).is_accepted();
    history.stops(50, "c", Why::Released).asks(60, "d", Direct).holds(61, "d", Direct, 9).breaks(I6);
}

#[test]
fn i6_one_that_waited_still_was_overtaken_though_it_gave_up_then() {
    for (kind, asked, broken) in [(Direct, 39, vec![]), (Direct, 41, vec![I6]), (Delegated, 41, vec![])] {
        let mut history = held();
        history.asks(20, "b", kind).queued(21, "b").asks(22, "c", Direct).stops(30, "a", Why::Released);
        history.holds(40, "c", Direct, 9).queued(asked, "b").at(42, Event::GaveUp { lock: lock(), id: "b".into() });
        assert_eq!(history.broken(), broken);
        // It was its turn, and nobody heard.
        assert_eq!(history.record(43, &[("b", 8, 500)]).broken(), []);
    }
}

#[test]
fn i6_a_claim_that_has_missed_its_turn_stands_behind_the_others() {
    let mut history = served(Delegated, 9, 8);
    let missed = [("b", "b"), ("b", "b-again")].map(|(claim, id)| Event::Claimed {
        lock: lock(),
        claim: claim.into(),
        version: 1,
        id: id.into(),
        stage: Stage::Waiting,
        token: None,
    });
    for event in missed {
        history.at(35, event);
    }
    history.is_accepted();
    let mut history = served(Delegated, 10, 9);
    history.record(35, &[("b", 8, 500)]).is_accepted();
}

#[test]
fn i6_direct_waiters_lose_their_places_with_the_record_and_claims_do_not() {
    for (kind, broken) in [(Direct, vec![]), (Delegated, vec![I6])] {
        let mut history = served(kind, 9, 8);
        let fault = Entry { at: 25_000, event: Event::Fault { name: "f".into() } };
        let place = history.0.iter().position(|entry| entry.at > 25_000).unwrap();
        history.0.insert(place, fault);
        assert_eq!(history.broken(), broken);
    }
}

#[test]
fn i7_etcd_remembers_before_a_claim_is_told() {
    let mut history = History::of(1);
    history.claimed(1, "a", Stage::Waiting, 0).claimed(2, "a", Stage::Granted, 7).claimed(3, "a", Stage::Told, 7);
    history.is_accepted();
    let mut history = History::of(1);
    history.claimed(1, "a", Stage::Waiting, 0).claimed(3, "a", Stage::Told, 7).breaks(I7);
}

#[test]
fn i7_what_a_watch_has_missed_is_not_judged() {
    let mut history = History::of(1);
    history.claimed(1, "a", Stage::Waiting, 0).at(2, Event::Listed { kind: "LockClaim".into() });
    history.claimed(3, "a", Stage::Told, 7).claimed(4, "a", Stage::Told, 7).is_accepted();
}

#[test]
fn i7_etcd_remembers_before_a_pod_leads() {
    let mut history = History::of(1);
    history.recorded(9, 4, "p", 7).marked(8, 5, "p", Some(7)).is_accepted();
    let mut history = History::of(1);
    history.recorded(8, 6, "p", 7).marked(9, 5, "p", Some(7)).breaks(I7);
    let mut history = History::of(1);
    history.marked(8, 5, "p", Some(7)).recorded(9, 6, "q", 6).breaks(I7);
}

#[test]
fn i7_what_no_watch_of_the_locks_has_reached_is_not_judged() {
    History::of(1).recorded(8, 4, "q", 6).marked(9, 5, "p", Some(7)).is_accepted();
}

#[test]
fn i7_a_told_claim_loses_nothing_to_a_loss() {
    let mut history = History::of(1);
    history.asks(1, "a", Delegated).holds(10, "a", Delegated, 7).record(50, &[("a", 7, 1000)]);
    history.stops(60, "a", Why::Released).record(70, &[]).claimed(80, "a", Stage::Releasing, 7).is_accepted();
    let mut history = History::of(1);
    history.asks(1, "a", Delegated).holds(10, "a", Delegated, 7).record(50, &[]).breaks(I7);
    let mut history = History::of(1);
    history.asks(1, "a", Delegated).holds(10, "a", Delegated, 7).claimed(50, "a", Stage::Releasing, 7).breaks(I7);
}

#[test]
fn i7_a_leader_loses_nothing_to_a_loss() {
    let mut history = History::of(1);
    history.recorded(1, 1, "p", 7).marked(2, 2, "p", Some(7)).record(9, &[("x", 7, 1000)]);
    history.record(1500, &[]).marked(2000, 9, "p", None).is_accepted();
    let mut history = History::of(1);
    history.recorded(1, 1, "p", 7).marked(2, 2, "p", Some(7)).record(1500, &[]).marked(3000, 9, "p", None).breaks(I7);
}

#[test]
fn i1_versions_begin_anew_with_an_older_copy_of_etcd_and_beliefs_do_not() {
    let mut history = History::of(1);
    history.recorded(1, 1, "p", 7).marked(5, 5, "p", Some(7)).marked(6, 6, "p", None);
    history.at(7, Event::PutBack).recorded(8, 3, "q", 8).marked(9, 4, "q", Some(8)).is_accepted();
    let mut history = History::of(1);
    history.asks(1, "a", Delegated).holds(10, "a", Delegated, 7).at(11, Event::PutBack).record(20, &[]);
    history.is_accepted();
    history.asks(30, "b", Direct).holds(31, "b", Direct, 8).breaks(I1);
}

#[test]
fn a_history_that_is_read_back_is_judged_alike() {
    let mut history = two(1, 500);
    history.published(15, 1, &[("a", 7, 1010)]).record(20, &[("a", 7, 1010)]).marked(30, 1, "p", Some(5));
    let path = save(&history.0, "read-back");
    let again = read(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    assert_eq!(again, history.0);
    assert!(!check(&again).is_empty());
}
