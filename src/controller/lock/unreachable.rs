//! Pods that hold a lock and can't be asked whether they still run: what the lock's status says of them.

use jiff::Timestamp;

use super::super::Context;
use super::super::nodes::Reach;
use crate::api::condition::{self, reasons, types};
use crate::api::{Condition, ConditionStatus};
use crate::lease::LockKey;
use crate::store::{HoldState, Inspection};

/// One such pod.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Stranded {
    identity: String,
    node: Option<String>,
    why: &'static str,
    token: i64,
}

/// What is known of the nodes of the pods that hold a lock.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Reachability {
    stranded: Vec<Stranded>,
    /// Some node has not been looked at yet.
    unknown: bool,
}

impl Reachability {
    /// Of the pods that hold, as far as their claims and the election have looked at them.
    pub(super) fn of(ctx: &Context, key: &LockKey, record: Option<&Inspection>) -> Self {
        let mut this = Self { unknown: record.is_none(), ..Self::default() };
        let holds = record.into_iter().flat_map(|record| &record.holds);
        for hold in holds.filter(|hold| hold.state == HoldState::Pinned) {
            let (Some(uid), Some(pod)) = (&hold.pod_uid, hold.identity.strip_prefix("pod/")) else { continue };
            let (node, reach) = ctx.pods.reach(key.namespace(), pod, uid).unwrap_or_default();
            this.unknown |= reach == Reach::Unknown;
            if let Some(why) = reach.unreachable() {
                this.stranded.push(Stranded { identity: hold.identity.clone(), node, why, token: hold.token.get() });
            }
        }
        this
    }

    /// How many pods can't be asked; `None`: not known.
    pub(super) fn count(&self) -> Option<i64> {
        (!self.unknown).then(|| i64::try_from(self.stranded.len()).unwrap_or(i64::MAX))
    }

    /// Sets the condition. What isn't known leaves it as it was.
    pub(super) fn describe(&self, conditions: &mut Vec<Condition>, generation: Option<i64>, now: Timestamp) {
        let before = condition::get(conditions, types::HOLDER_UNREACHABLE).cloned();
        let (status, reason, message) = match (self.stranded.first(), before) {
            (Some(first), _) => (true.into(), reasons::HOLDER_UNREACHABLE.to_owned(), self.message(first)),
            (None, Some(before)) if self.unknown => (before.status, before.reason, before.message),
            (None, None) if self.unknown => {
                let message = "the nodes of the pods that hold it have not been looked at";
                (ConditionStatus::Unknown, reasons::PENDING.to_owned(), message.to_owned())
            }
            (None, _) => {
                let message = "no pod that holds it is on a node that can't be asked";
                (false.into(), reasons::HOLDERS_REACHABLE.to_owned(), message.to_owned())
            }
        };
        condition::set(conditions, types::HOLDER_UNREACHABLE, status, &reason, &message, generation, now);
    }

    fn message(&self, first: &Stranded) -> String {
        let Stranded { identity, node, why, token } = first;
        let node = node.as_deref().map(|name| format!(" {name}")).unwrap_or_default();
        let more = match self.stranded.len() - 1 {
            0 => String::new(),
            more => format!(" (and {more} more)"),
        };
        format!(
            "{identity} holds it with token {token}, and its node{node} {why}{more}: wait until the node is back; or make \
             sure that it is off and taint it node.kubernetes.io/out-of-service=nodeshutdown:NoExecute; or take the hold \
             by kubectl leasehold force-release --token={token}, or by the annotations leasehold.dev/force-release={token}, \
             leasehold.dev/force-release-reason and, below Kubernetes 1.36, leasehold.dev/force-release-by"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stranded(pod: &str) -> Stranded {
        Stranded { identity: format!("pod/{pod}"), node: Some("n1".into()), why: "does not report", token: 7 }
    }

    fn described(of: &Reachability, conditions: &mut Vec<Condition>) -> (ConditionStatus, String) {
        of.describe(conditions, Some(1), Timestamp::UNIX_EPOCH);
        let set = condition::get(conditions, types::HOLDER_UNREACHABLE).unwrap();
        (set.status, set.message.clone())
    }

    #[test]
    fn the_condition_is_set_at_once_and_names_pod_node_and_ways_out() {
        let mut conditions = Vec::new();
        let reachable = Reachability::default();
        assert_eq!(described(&reachable, &mut conditions).0, ConditionStatus::False);
        let away = Reachability { stranded: vec![stranded("p"), stranded("q")], unknown: false };
        let (status, message) = described(&away, &mut conditions);
        assert_eq!((status, away.count()), (ConditionStatus::True, Some(2)));
        for part in ["pod/p", "n1 does not report", "and 1 more", "wait", "out-of-service", "force-release=7"] {
            assert!(message.contains(part), "{part} is not in: {message}");
        }
    }

    #[test]
    fn what_has_not_been_looked_at_leaves_the_condition_as_it_was() {
        let unknown = Reachability { stranded: Vec::new(), unknown: true };
        assert_eq!(described(&unknown, &mut Vec::new()).0, ConditionStatus::Unknown);
        let mut conditions = Vec::new();
        let away = described(&Reachability { stranded: vec![stranded("p")], unknown: false }, &mut conditions);
        assert_eq!(described(&unknown, &mut conditions), away);
        assert_eq!(unknown.count(), None);
    }
}
