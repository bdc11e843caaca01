//! Whether a pod has ended: the evidence that lets its hold go. Pure.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::ResourceExt;

use super::nodes::Reach;
use crate::api::gated::{WITHDRAWN, is_gated};

/// After its grace period, a pod that is gone without evidence is believed to have ended so long later, where its
/// node is Ready: the kubelet has had the time to stop it.
const SETTLE: Duration = Duration::from_secs(30);
/// The grace period of a pod that names none, in seconds.
const DEFAULT_GRACE: i64 = 30;

/// What is known of a pod that holds or would.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fate {
    /// Not looked at yet.
    Unknown,
    /// There, and not ended.
    Alive {
        /// Its node, once it has one.
        node: Option<String>,
    },
    /// There, and nothing of it has run: it is not bound to a node, and our gate keeps it from being scheduled.
    Gated {
        /// The holder id of a hold that was taken back.
        withdrawn: Option<String>,
    },
    /// Ended for certain; the text says by what evidence.
    Ended(&'static str),
    /// Gone, and nothing shows that its containers have stopped.
    Vanished {
        /// Until it may be believed to have ended, where its node is Ready.
        settled_in: Duration,
        /// Its node, if it was seen.
        node: Option<String>,
    },
}

/// That there is no such pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Absence {
    /// For how long.
    pub(super) lasts: Duration,
    /// It was seen to go: as it was seen last, it was at its end. Otherwise anything may have become of it since.
    pub(super) was_seen: bool,
}

/// Judges from the pod as last seen, whether it is absent, and what is known of its node.
pub(super) fn judge(last: Option<&Pod>, absence: Option<Absence>, reach: Reach) -> Fate {
    if let Some(evidence) = last.and_then(evidence) {
        return Fate::Ended(evidence);
    }
    if reach == Reach::OutOfService {
        let terminating = last.is_some_and(|pod| pod.metadata.deletion_timestamp.is_some());
        match (absence.is_some(), terminating) {
            (true, _) => return Fate::Ended("it is gone and its node is out of service"),
            (false, true) => return Fate::Ended("it is terminating and its node is out of service"),
            (false, false) => {}
        }
    }
    let node = last.and_then(|pod| pod.spec.as_ref()).and_then(|spec| spec.node_name.clone());
    match (last, absence) {
        // The API server binds no pod that is being deleted.
        (Some(pod), None) if node.is_none() && pod.metadata.deletion_timestamp.is_some() => {
            Fate::Ended("it is being deleted and was never bound to a node")
        }
        (Some(pod), None) if node.is_none() && is_gated(pod) => {
            Fate::Gated { withdrawn: pod.annotations().get(WITHDRAWN).cloned() }
        }
        (Some(_), None) => Fate::Alive { node },
        (Some(_), Some(Absence { was_seen: true, .. })) if node.is_none() => {
            Fate::Ended("it was never bound to a node")
        }
        (_, Some(Absence { lasts, .. })) => {
            Fate::Vanished { settled_in: (grace(last) + SETTLE).saturating_sub(lasts), node }
        }
        (None, None) => Fate::Unknown,
    }
}

fn evidence(pod: &Pod) -> Option<&'static str> {
    let status = pod.status.as_ref()?;
    match status.phase.as_deref() {
        Some("Succeeded") => return Some("its phase is Succeeded"),
        Some("Failed") if !is_failed_for_its_node(status) => return Some("its phase is Failed"),
        _ => {}
    }
    let spec = pod.spec.as_ref()?;
    let never = spec.restart_policy.as_deref() == Some("Never");
    let statuses = status.container_statuses.as_deref().unwrap_or_default();
    let terminated = statuses.iter().filter(|c| c.state.as_ref().is_some_and(|state| state.terminated.is_some()));
    let all = !spec.containers.is_empty() && terminated.count() == spec.containers.len();
    (never && all).then_some("all its containers have terminated and restartPolicy is Never")
}

/// Kubernetes' garbage collection writes `Failed` into a pod whose Node object is gone, and deletes it: nothing of that was
/// seen on the node, where its containers may run on.
fn is_failed_for_its_node(status: &PodStatus) -> bool {
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let mut disruptions = conditions.iter().filter(|condition| condition.type_ == "DisruptionTarget");
    disruptions.any(|condition| condition.status == "True" && condition.reason.as_deref() == Some("DeletionByPodGC"))
}

fn grace(pod: Option<&Pod>) -> Duration {
    let deleted = pod.and_then(|pod| pod.metadata.deletion_grace_period_seconds);
    let spec = pod.and_then(|pod| pod.spec.as_ref()).and_then(|spec| spec.termination_grace_period_seconds);
    let seconds = deleted.or(spec).unwrap_or(DEFAULT_GRACE).max(spec.unwrap_or(0));
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(restart: &str, phase: &str, terminated: &[bool], node: Option<&str>) -> Pod {
        let state = |over: &bool| {
            if *over { json!({"terminated": {"exitCode": 1}}) } else { json!({"running": {}}) }
        };
        let statuses: Vec<_> = terminated
            .iter()
            .map(|over| json!({"name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": state(over)}))
            .collect();
        let containers: Vec<_> = terminated.iter().map(|_| json!({"name": "c"})).collect();
        serde_json::from_value(json!({
            "metadata": {"name": "p", "uid": "u"},
            "spec": {"containers": containers, "restartPolicy": restart, "nodeName": node},
            "status": {"phase": phase, "containerStatuses": statuses},
        }))
        .unwrap()
    }

    fn gone(seconds: u64) -> Option<Absence> {
        Some(Absence { lasts: Duration::from_secs(seconds), was_seen: true })
    }

    fn fate(pod: &Pod, absence: Option<Absence>) -> Fate {
        judge(Some(pod), absence, Reach::Unknown)
    }

    #[test]
    fn terminated_containers_end_a_pod_only_if_none_restarts() {
        assert!(matches!(fate(&pod("Never", "Running", &[true, true], Some("n")), None), Fate::Ended(_)));
        assert!(matches!(fate(&pod("Never", "Running", &[true, false], Some("n")), None), Fate::Alive { .. }));
        assert!(matches!(fate(&pod("Always", "Running", &[true], Some("n")), None), Fate::Alive { .. }));
        assert!(matches!(fate(&pod("Always", "Succeeded", &[], Some("n")), None), Fate::Ended(_)));
    }

    #[test]
    fn a_pod_that_failed_since_its_node_is_gone_may_run_on() {
        let mut failed = pod("Never", "Failed", &[false], Some("n"));
        let disrupted = json!([{"type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC"}]);
        failed.status.as_mut().unwrap().conditions = Some(serde_json::from_value(disrupted).unwrap());
        assert!(matches!(fate(&failed, gone(0)), Fate::Vanished { .. }));
        assert!(matches!(judge(Some(&failed), gone(0), Reach::OutOfService), Fate::Ended(_)));
        failed.status.as_mut().unwrap().conditions.as_mut().unwrap()[0].reason = Some("EvictionByEvictionAPI".into());
        assert!(matches!(fate(&failed, None), Fate::Ended(_)));
    }

    #[test]
    fn absence_alone_is_no_evidence() {
        let running = pod("Always", "Running", &[false], Some("n"));
        let node = Some("n".to_owned());
        assert_eq!(fate(&running, gone(0)), Fate::Vanished { settled_in: Duration::from_secs(60), node: node.clone() });
        assert_eq!(fate(&running, gone(100)), Fate::Vanished { settled_in: Duration::ZERO, node });
        let unseen = Fate::Vanished { settled_in: Duration::from_secs(60), node: None };
        assert_eq!(judge(None, gone(0), Reach::Ready), unseen);
        assert_eq!(judge(None, None, Reach::Unknown), Fate::Unknown);
    }

    #[test]
    fn a_pod_that_never_had_a_node_has_ended_when_it_is_gone() {
        let pending = pod("Always", "Pending", &[], None);
        assert_eq!(fate(&pending, None), Fate::Alive { node: None });
        assert!(matches!(fate(&pending, gone(0)), Fate::Ended(_)));
        let unseen = Some(Absence { lasts: Duration::ZERO, was_seen: false });
        assert!(matches!(fate(&pending, unseen), Fate::Vanished { .. }), "it may have been bound since");
        let mut leaving = pending;
        leaving.metadata.deletion_timestamp = Some(crate::api::time::seconds(jiff::Timestamp::UNIX_EPOCH));
        assert!(matches!(fate(&leaving, None), Fate::Ended(_)), "it will never be bound");
        leaving.spec.as_mut().unwrap().node_name = Some("n".into());
        assert!(matches!(fate(&leaving, None), Fate::Alive { .. }));
    }

    #[test]
    fn a_node_out_of_service_ends_pods_that_are_terminating_or_gone_and_no_other() {
        let mut running = pod("Always", "Running", &[false], Some("n"));
        assert!(matches!(judge(Some(&running), None, Reach::OutOfService), Fate::Alive { .. }), "it tolerates that");
        assert!(matches!(judge(Some(&running), gone(0), Reach::OutOfService), Fate::Ended(_)));
        assert!(matches!(judge(None, gone(0), Reach::OutOfService), Fate::Ended(_)));
        running.metadata.deletion_timestamp = Some(crate::api::time::seconds(jiff::Timestamp::UNIX_EPOCH));
        assert!(matches!(judge(Some(&running), None, Reach::OutOfService), Fate::Ended(_)));
        let unreachable = judge(Some(&running), None, Reach::Unreachable("does not report"));
        assert!(matches!(unreachable, Fate::Alive { .. }));
    }

    #[test]
    fn evidence_outlives_the_pod() {
        assert!(matches!(fate(&pod("Never", "Failed", &[], Some("n")), gone(0)), Fate::Ended(_)));
    }
}
