//! What pods that wait cost the API server.

use std::collections::{BTreeMap, HashSet};

use kube::ResourceExt;
use serde_json::json;

use super::{running, to_each};
use crate::controller::fixture::Fixture;
use crate::controller::gated::GATE;
use crate::support::{LIMIT, wait_for};

const PODS: usize = 40;
const PERMITS: i32 = 4;
/// Of the controller, for each pod: docs/production.md has what each is for.
const WRITES: usize = 10;

/// Many more are measured by `cargo bench --bench leasehold -- gated`.
#[tokio::test]
async fn each_pod_costs_ten_writes_at_most_and_no_more_run_than_there_are_permits() {
    let f = Fixture::new().await;
    f.ready_lock("a", |spec| spec.permits = PERMITS).await;
    f.pods().node(f.test.name(), true).await;
    let make = async |name: String| drop(f.pods().gated(&name, "a", &[GATE], json!({})).await);
    to_each((0..PODS).map(|number| format!("p-{number}")), make).await;
    let mut ended = HashSet::new();
    while ended.len() < PODS {
        let some = async || Some(running(&f).await).filter(|running| !running.is_empty());
        let running = wait_for("somebody runs", LIMIT, some).await;
        assert!(running.len() <= PERMITS.unsigned_abs() as usize, "{running:?}");
        for pod in running {
            let name = pod.name_any();
            f.pods().start(&name, f.test.name()).await;
            f.pods().report(&name, json!({"phase": "Succeeded"})).await;
            ended.insert(name);
        }
    }
    let claims_are_gone =
        async || f.test.kubectl("get lclaim -o name").await.ok().filter(|left| left.trim().is_empty());
    wait_for("all claims are gone", LIMIT, claims_are_gone).await;
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    let writes = f.test.plane().controller_writes();
    let of_pods = ["lockclaims", "pods", "events"];
    for write in writes.iter().filter(|write| write.namespace == f.test.name() && of_pods.contains(&&*write.resource)) {
        *kinds.entry(format!("{} {} {}", write.verb, write.resource, write.subresource)).or_default() += 1;
    }
    let all: usize = kinds.values().sum();
    assert!(all > 5 * PODS && all <= WRITES * PODS, "{all} writes for {PODS} pods: {kinds:#?}");
}
