//! What an election needs next. Pure: values in, a decision out.

use std::time::Duration;

use super::candidate::Candidate;
use crate::api::condition::reasons;
use crate::api::{ElectedLeader, NodeUnreachablePolicy};
use crate::controller::fate::Fate;
use crate::controller::nodes::Reach;

/// A leader that etcd remembers.
#[derive(Debug, Clone)]
pub(super) struct Leader {
    pub(super) record: ElectedLeader,
    /// The pod, while it is there.
    pub(super) pod: Option<Candidate>,
    pub(super) fate: Fate,
    /// Still among the pods that are elected.
    pub(super) selected: bool,
    /// How long it has not been Ready, on our own clock.
    pub(super) not_ready_for: Option<Duration>,
    pub(super) node: Option<String>,
    /// Whether what runs on its node can be known.
    pub(super) reach: Reach,
}

/// Everything that a decision needs.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    /// The lock's name.
    pub(super) lock: String,
    /// How many leaders there should be; 0: the election is over.
    pub(super) seats: usize,
    pub(super) term: i64,
    pub(super) failover_after: Duration,
    pub(super) policy: NodeUnreachablePolicy,
    pub(super) leaders: Vec<Leader>,
    pub(super) candidates: Vec<Candidate>,
    /// Other locks that elect in this namespace.
    pub(super) others: Vec<String>,
    /// The token of a lead that a person takes, and who and why.
    pub(super) forced: Option<(i64, String)>,
}

/// The next step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Another lock has marked this pod: nobody is chosen while that is so.
    Conflict { pod: String, other: String },
    /// Mark the pod as standby, in this reign.
    Stamp { pod: String },
    /// Unmark the leader, for this reason.
    Untell { pod: String, reason: &'static str, message: String },
    /// The pod is unmarked or gone: let its lead go in etcd.
    Release { pod: String, message: String },
    /// Let it go in Redis, then forget it.
    Free { pod: String },
    /// Make its hold one that time doesn't take, then mark the pod.
    Tell { pod: String },
    /// Choose this pod.
    Grant { pod: String },
    /// Nothing until something changes or so long has passed.
    Rest(Option<Duration>),
}

impl Facts {
    /// Pods that could lead and don't, in the order in which they are chosen.
    fn free(&self) -> impl Iterator<Item = &Candidate> {
        let leads = |c: &&Candidate| self.leaders.iter().any(|leader| leader.record.pod_uid == c.uid);
        let mut free: Vec<&Candidate> = self.candidates.iter().filter(|c| c.fit() && !leads(c)).collect();
        free.sort_by(|a, b| a.before(b));
        free.into_iter()
    }

    fn conflict(&self) -> Option<Step> {
        self.candidates.iter().find_map(|c| {
            let other = c.marks.lock.as_ref().filter(|other| self.others.contains(other))?;
            Some(Step::Conflict { pod: c.name.clone(), other: other.clone() })
        })
    }
}

/// Decides. Holds are taken back before anybody is marked, and everybody is marked before anybody is chosen.
pub(super) fn plan(facts: &Facts) -> Step {
    let pod = |leader: &Leader| leader.record.pod_uid.clone();
    if let Some(leader) = facts.leaders.iter().find(|leader| leader.record.releasing) {
        return Step::Free { pod: pod(leader) };
    }
    for leader in &facts.leaders {
        if let Some((reason, message)) = goes(leader, facts) {
            let unmarked = leader.pod.is_none() || released(leader);
            return match unmarked {
                true => Step::Release { pod: pod(leader), message },
                false => Step::Untell { pod: pod(leader), reason, message },
            };
        }
    }
    if let Some(leader) = facts.leaders.iter().find(|leader| !told(leader, facts)) {
        return Step::Tell { pod: pod(leader) };
    }
    if facts.seats == 0 {
        return Step::Rest(None);
    }
    if let Some(conflict) = facts.conflict() {
        return conflict;
    }
    let leads = |c: &&Candidate| facts.leaders.iter().any(|leader| leader.record.pod_uid == c.uid);
    if let Some(pod) = facts.candidates.iter().find(|c| !leads(c) && !c.stamped(&facts.lock, facts.term)) {
        return Step::Stamp { pod: pod.uid.clone() };
    }
    match facts.free().next().filter(|_| facts.leaders.len() < facts.seats) {
        Some(pod) => Step::Grant { pod: pod.uid.clone() },
        None => Step::Rest(next_look(facts)),
    }
}

fn told(leader: &Leader, facts: &Facts) -> bool {
    let Some(pod) = &leader.pod else { return true };
    pod.marks.leads
        && pod.marks.token == Some(leader.record.fencing_token)
        && pod.marks.lock.as_deref() == Some(&facts.lock)
}

/// It was unmarked after this lead: it can only lead again with a new token.
fn released(leader: &Leader) -> bool {
    leader.pod.as_ref().is_some_and(|pod| pod.marks.released >= Some(leader.record.fencing_token))
}

/// Why a leader has to go now.
fn goes(leader: &Leader, facts: &Facts) -> Option<(&'static str, String)> {
    let name = &leader.record.pod_name;
    if released(leader) {
        return Some((reasons::RELEASED, format!("{name} has been unmarked")));
    }
    if facts.seats == 0 {
        return Some((reasons::RELEASED, "the election has ended".into()));
    }
    if let Some((_, message)) = facts.forced.as_ref().filter(|(token, _)| *token == leader.record.fencing_token) {
        return Some((reasons::FORCE_RELEASED, message.clone()));
    }
    if let Fate::Ended(evidence) = &leader.fate {
        return Some((reasons::HOLDER_ENDED, format!("{name} has ended: {evidence}")));
    }
    if let Some(why) = leader.reach.unreachable().filter(|_| facts.policy == NodeUnreachablePolicy::Release) {
        let node = leader.node.as_deref().unwrap_or("of a name that is not known");
        let message = format!("{name} can't be asked: its node {node} {why}, and nodeUnreachablePolicy is Release");
        return Some((reasons::HOLDER_UNREACHABLE, message));
    }
    if let Fate::Vanished { settled_in, .. } = &leader.fate {
        let ended = settled_in.is_zero() && leader.reach == Reach::Ready;
        return ended.then(|| (reasons::HOLDER_ENDED, format!("{name} is gone and its node is Ready")));
    }
    let pod = leader.pod.as_ref()?;
    if !leader.selected {
        return Some((reasons::RELEASED, format!("{name} is no longer among the pods that are elected")));
    }
    let another = facts.free().next().is_some();
    let restarted = pod.stopped || pod.containers != leader.record.containers;
    if restarted && (another || (pod.ready && !pod.stopped)) {
        return Some((reasons::HOLDER_RESTARTED, format!("a container of {name} has ended")));
    }
    let for_too_long = leader.not_ready_for.is_some_and(|time| time >= facts.failover_after);
    // On a node that can't be asked nobody knows whether it serves: nodeUnreachablePolicy alone decides.
    if for_too_long && another && matches!(leader.reach, Reach::Ready | Reach::Unbound) {
        let seconds = facts.failover_after.as_secs();
        return Some((
            reasons::HOLDER_NOT_READY,
            format!("{name} has not been Ready for {seconds} s, and another pod is"),
        ));
    }
    None
}

/// When time alone changes the answer.
fn next_look(facts: &Facts) -> Option<Duration> {
    let settles = facts.leaders.iter().filter_map(|leader| match &leader.fate {
        Fate::Vanished { settled_in, .. } => Some((*settled_in).max(Duration::from_secs(2))),
        _ => None,
    });
    let hands_over = facts.leaders.iter().filter_map(|leader| {
        let left = facts.failover_after.saturating_sub(leader.not_ready_for?);
        Some(left.max(Duration::from_secs(2)))
    });
    let asked_again = facts.candidates.iter().any(|c| c.unreachable).then_some(Duration::from_secs(2));
    settles.chain(hands_over).chain(asked_again).min()
}

#[cfg(test)]
mod tests {
    use super::super::candidate::Marks;
    use super::*;

    const TERM: i64 = 4;

    fn standby(name: &str) -> Candidate {
        let marks = Marks { lock: Some("a".into()), stands_by: true, term: Some(TERM), ..Marks::default() };
        Candidate {
            name: name.into(),
            uid: name.into(),
            ready: true,
            containers: "c1".into(),
            marks,
            ..Candidate::default()
        }
    }

    fn leading(name: &str, token: i64) -> Leader {
        let marks = Marks { lock: Some("a".into()), leads: true, token: Some(token), ..Marks::default() };
        let record = ElectedLeader {
            pod_name: name.into(),
            pod_uid: name.into(),
            attempt: 1,
            fencing_token: token,
            node_name: Some("n".into()),
            containers: "c1".into(),
            releasing: false,
        };
        let (pod, fate) = (Some(Candidate { marks, ..standby(name) }), Fate::Alive { node: Some("n".into()) });
        let node = Some("n".into());
        Leader { record, pod, fate, selected: true, not_ready_for: None, node, reach: Reach::Ready }
    }

    fn facts(leaders: Vec<Leader>, standbys: &[Candidate]) -> Facts {
        let candidates = leaders.iter().filter_map(|l| l.pod.clone()).chain(standbys.iter().cloned()).collect();
        let (failover_after, policy) = (Duration::from_secs(30), NodeUnreachablePolicy::Keep);
        let (lock, others, forced) = ("a".into(), vec![], None);
        Facts { lock, seats: 1, term: TERM, failover_after, policy, leaders, candidates, others, forced }
    }

    fn untold(step: Step) -> Option<&'static str> {
        match step {
            Step::Untell { reason, .. } => Some(reason),
            _ => None,
        }
    }

    #[test]
    fn everybody_is_marked_in_this_reign_before_anybody_is_chosen() {
        let mut unmarked = standby("p");
        unmarked.marks = Marks::default();
        assert_eq!(plan(&facts(vec![], &[standby("o"), unmarked])), Step::Stamp { pod: "p".into() });
        let mut of_before = standby("p");
        of_before.marks.term = Some(TERM - 1);
        assert_eq!(plan(&facts(vec![], &[standby("o"), of_before])), Step::Stamp { pod: "p".into() });
        assert_eq!(plan(&facts(vec![], &[standby("o"), standby("p")])), Step::Grant { pod: "o".into() });
    }

    #[test]
    fn a_healthy_leader_stays_and_its_reign_is_not_asked() {
        let mut old = standby("a-better-one");
        old.created = Some(Timestamp::UNIX_EPOCH);
        assert_eq!(plan(&facts(vec![leading("p", 7)], &[old])), Step::Rest(None));
    }

    #[test]
    fn a_leader_that_is_not_ready_hands_over_in_time_to_one_that_is() {
        let mut leader = leading("p", 7);
        leader.pod.as_mut().unwrap().ready = false;
        leader.not_ready_for = Some(Duration::from_secs(29));
        assert!(matches!(plan(&facts(vec![leader.clone()], &[standby("q")])), Step::Rest(Some(_))));
        leader.not_ready_for = Some(Duration::from_secs(30));
        assert!(matches!(plan(&facts(vec![leader.clone()], &[])), Step::Rest(_)), "nobody else is Ready");
        assert_eq!(untold(plan(&facts(vec![leader.clone()], &[standby("q")]))), Some(reasons::HOLDER_NOT_READY));
        for reach in [AWAY, Reach::OutOfService, Reach::Unknown] {
            leader.reach = reach;
            let kept = plan(&facts(vec![leader.clone()], &[standby("q")]));
            assert!(matches!(kept, Step::Rest(_)), "its node can't be asked: {kept:?}");
        }
    }

    const AWAY: Reach = Reach::Unreachable("does not report");

    #[test]
    fn a_leader_on_an_unreachable_node_leads_on_unless_the_policy_is_to_release() {
        let mut leader = leading("p", 7);
        leader.reach = AWAY;
        let mut facts = facts(vec![leader], &[standby("q")]);
        assert_eq!(plan(&facts), Step::Rest(None));
        facts.policy = NodeUnreachablePolicy::Release;
        let Step::Untell { reason, message, .. } = plan(&facts) else { panic!("it leads on") };
        assert_eq!(reason, reasons::HOLDER_UNREACHABLE);
        assert!(message.contains("its node n does not report"), "{message}");
        facts.candidates.clear();
        assert!(matches!(plan(&facts), Step::Untell { .. }), "whoever else there is: the policy alone decides");
    }

    #[test]
    fn nobody_is_chosen_on_an_unreachable_node() {
        let mut away = standby("p");
        away.unreachable = true;
        assert_eq!(plan(&facts(vec![], &[away.clone(), standby("q")])), Step::Grant { pod: "q".into() });
        let again = plan(&facts(vec![], &[away]));
        assert!(matches!(again, Step::Rest(Some(_))), "its node is asked again: {again:?}");
    }

    #[test]
    fn force_takes_the_lead_that_the_token_names_and_no_other() {
        let mut facts = facts(vec![leading("p", 7)], &[]);
        facts.forced = Some((6, "taken by ann".into()));
        assert_eq!(plan(&facts), Step::Rest(None));
        facts.forced = Some((7, "taken by ann".into()));
        assert_eq!(untold(plan(&facts)), Some(reasons::FORCE_RELEASED));
    }

    #[test]
    fn a_leader_whose_container_was_restarted_hands_over_or_begins_anew() {
        let mut leader = leading("p", 7);
        leader.pod.as_mut().unwrap().stopped = true;
        assert_eq!(plan(&facts(vec![leader.clone()], &[])), Step::Rest(None), "nobody else, and it doesn't run");
        assert_eq!(untold(plan(&facts(vec![leader.clone()], &[standby("q")]))), Some(reasons::HOLDER_RESTARTED));
        let pod = leader.pod.as_mut().unwrap();
        (pod.stopped, pod.containers) = (false, "c2".into());
        assert_eq!(untold(plan(&facts(vec![leader], &[]))), Some(reasons::HOLDER_RESTARTED));
    }

    #[test]
    fn an_ended_leader_is_unmarked_then_let_go_in_etcd_then_in_redis() {
        let mut leader = leading("p", 7);
        leader.fate = Fate::Ended("its phase is Failed");
        assert_eq!(untold(plan(&facts(vec![leader.clone()], &[standby("q")]))), Some(reasons::HOLDER_ENDED));
        let pod = leader.pod.as_mut().unwrap();
        pod.marks = Marks { released: Some(7), ..standby("p").marks };
        assert!(matches!(plan(&facts(vec![leader.clone()], &[standby("q")])), Step::Release { .. }));
        leader.record.releasing = true;
        assert_eq!(plan(&facts(vec![leader], &[standby("q")])), Step::Free { pod: "p".into() });
    }

    #[test]
    fn a_leader_that_was_unmarked_is_never_marked_again_with_its_token() {
        let mut leader = leading("p", 7);
        leader.pod.as_mut().unwrap().marks = Marks { released: Some(7), ..standby("p").marks };
        assert!(matches!(plan(&facts(vec![leader], &[])), Step::Release { .. }));
    }

    #[test]
    fn a_leader_that_looks_unmarked_is_still_unmarked_by_a_write() {
        let mut leader = leading("p", 7);
        leader.pod = Some(standby("p"));
        leader.fate = Fate::Ended("its phase is Failed");
        assert!(matches!(plan(&facts(vec![leader], &[])), Step::Untell { .. }), "its mark may be on its way");
    }

    #[test]
    fn a_leader_that_is_gone_without_evidence_is_kept_unless_its_node_is_ready() {
        let mut leader = leading("p", 7);
        leader.pod = None;
        leader.reach = AWAY;
        leader.fate = Fate::Vanished { settled_in: Duration::ZERO, node: Some("n".into()) };
        let mut facts = facts(vec![leader], &[standby("q")]);
        assert!(matches!(plan(&facts), Step::Rest(Some(_))));
        facts.policy = NodeUnreachablePolicy::Release;
        assert!(matches!(plan(&facts), Step::Release { .. }));
        facts.policy = NodeUnreachablePolicy::Keep;
        facts.leaders[0].reach = Reach::Ready;
        assert!(matches!(plan(&facts), Step::Release { .. }));
    }

    #[test]
    fn who_has_led_last_is_chosen_last() {
        let mut led = standby("a");
        led.marks.released = Some(9);
        assert_eq!(plan(&facts(vec![], &[led, standby("b")])), Step::Grant { pod: "b".into() });
    }

    #[test]
    fn pods_of_another_election_are_left_alone() {
        let mut theirs = standby("p");
        theirs.marks.lock = Some("b".into());
        let mut facts = facts(vec![], &[theirs]);
        assert_eq!(plan(&facts), Step::Stamp { pod: "p".into() }, "b elects no more");
        facts.others = vec!["b".into()];
        assert_eq!(plan(&facts), Step::Conflict { pod: "p".into(), other: "b".into() });
    }

    #[test]
    fn an_election_that_is_over_takes_every_lead_back() {
        let mut facts = facts(vec![leading("p", 7)], &[]);
        facts.seats = 0;
        assert_eq!(untold(plan(&facts)), Some(reasons::RELEASED));
    }

    use jiff::Timestamp;
}
