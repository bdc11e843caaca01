//! Whether stores can grant: their gate, what their Redis evicts, and its clock. Pure.

use kube::ResourceExt;

use super::super::advice::advice;
use super::finding::{Finding, Level, words};
use crate::api::condition::{self, reasons, types};
use crate::api::{Condition, ConditionStatus, LockStore};

pub(super) fn findings(stores: &[LockStore]) -> Vec<Finding> {
    if stores.is_empty() {
        let advice = "name a Redis in the chart's values, or create a LockStore: docs/install.md";
        return vec![Finding::wrong("there is no LockStore, so that no lock is granted", advice)];
    }
    stores.iter().flat_map(of_store).collect()
}

fn of_store(store: &LockStore) -> Vec<Finding> {
    let conditions = store.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let found = conditions.iter().filter_map(|condition| {
        let level = level(condition).filter(|level| *level != Level::Ok)?;
        let advice = advice("LockStore", &condition.type_, &condition.reason).unwrap_or_default();
        Some(Finding { level, what: format!("LockStore {}: {}", store.name_any(), words(condition)), advice })
    });
    let mut found: Vec<_> = found.collect();
    if condition::is_true(conditions, types::READY) {
        found.insert(0, Finding::ok(format!("LockStore {}: it is open for grants", store.name_any())));
    } else if condition::get(conditions, types::READY).is_none() {
        let advice = advice("LockStore", types::READY, reasons::PENDING).unwrap_or_default();
        found.push(Finding::wrong(format!("LockStore {}: no controller has looked", store.name_any()), advice));
    }
    found
}

/// How bad a condition is; `None`: it says nothing about health.
fn level(condition: &Condition) -> Option<Level> {
    use ConditionStatus::{False, True, Unknown};
    let level = match (condition.type_.as_str(), condition.status) {
        (types::READY, True) => Level::Ok,
        (types::READY, _) => Level::Wrong,
        (types::EVICTION_SAFE, False) if condition.reason == reasons::EVICTING_MEMORY_POLICY => Level::Wrong,
        (types::EVICTION_SAFE | types::ISOLATED_MASTER_BOUNDED, False | Unknown) => Level::Note,
        (types::CLOCK_STEPPED | types::ETCD_RESTORED, True) => Level::Wrong,
        (types::RECOVERING | types::EPHEMERAL, True) => Level::Note,
        _ => return None,
    };
    Some(level)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::LockStoreSpec;

    fn store(conditions: &[(&str, &str, &str)]) -> LockStore {
        let conditions: Vec<_> = conditions
            .iter()
            .map(|(type_, status, reason)| {
                json!({"type": type_, "status": status, "reason": reason, "message": "why",
                    "lastTransitionTime": "2026-11-24T12:00:00Z"})
            })
            .collect();
        let mut store = LockStore::new("default", LockStoreSpec::default());
        store.status = serde_json::from_value(json!({ "conditions": conditions })).unwrap();
        store
    }

    #[test]
    fn each_bad_condition_is_a_finding_with_what_to_do() {
        for (condition, level, says) in [
            (("Ready", "False", "Unreachable"), Level::Wrong, "Redis doesn't answer"),
            (("Ready", "Unknown", "Pending"), Level::Wrong, "No controller has looked"),
            (("EvictionSafe", "False", "EvictingMemoryPolicy"), Level::Wrong, "noeviction"),
            (("EvictionSafe", "False", "EvictsVolatileKeys"), Level::Note, "noeviction"),
            (("ClockStepped", "True", "ClockStepped"), Level::Wrong, "time service"),
            (("EtcdRestored", "True", "AwaitingConfirmation"), Level::Wrong, "run the line"),
            (("Recovering", "True", "Recovering"), Level::Note, ""),
            (("Ready", "False", "Opening"), Level::Wrong, ""),
            (("Ephemeral", "True", "NothingOnDisk"), Level::Note, "lose their holds"),
        ] {
            let found = findings(&[store(&[condition])]);
            let found = found.iter().find(|found| found.level == level);
            let found = found.unwrap_or_else(|| panic!("{condition:?} isn't found"));
            assert!(found.advice.contains(says) && found.what.contains(condition.2), "{found:?}");
        }
    }

    #[test]
    fn a_good_store_is_one_line_and_none_at_all_is_wrong() {
        let good = store(&[
            ("Ready", "True", "GateOpen"),
            ("EvictionSafe", "True", "NoEviction"),
            ("ClockStepped", "False", "ClockSteady"),
            ("Ephemeral", "False", "Persisted"),
            ("IsolatedMasterBounded", "True", "NoReplicas"),
        ]);
        assert_eq!(findings(&[good]), [Finding::ok("LockStore default: it is open for grants")]);
        assert_eq!(findings(&[])[0].level, Level::Wrong);
        assert_eq!(findings(&[store(&[])])[0].level, Level::Wrong);
    }
}
