//! What a store's status and Events say.

use super::super::events::Events;
use super::ledger::Ledger;
use super::trouble::Trouble;
use crate::api::condition::{self, reasons, types};
use crate::api::{ConditionStatus, LockStore, LockStoreStatus};
use crate::failpoint::Failpoint;
use crate::store::ServerFacts;

/// What is said while it is True.
pub(super) const RECOVERING: &str =
    "what was lost is put back; a lock grants nothing while a lease of before may be believed";

/// What is to be said.
pub(super) struct News<'a> {
    /// Of the server, once it has been asked.
    pub(super) facts: Option<ServerFacts>,
    /// A lease of before the server's clock was set may still be believed.
    pub(super) clock_stepped: bool,
    /// A lock grants nothing yet, since a lease of before a loss may still be believed.
    pub(super) recovering: bool,
    pub(super) ready: bool,
    pub(super) reason: &'static str,
    pub(super) message: &'a str,
}

/// Writes the status if it says something else, and an Event if `Ready` has changed or all is recovered.
pub(super) async fn report(
    events: &Events,
    ledger: &mut Ledger,
    object: &LockStore,
    news: &News<'_>,
) -> Result<(), Trouble> {
    let News { facts, clock_stepped, recovering, ready, reason, message } = news;
    let generation = object.metadata.generation;
    let now = jiff::Timestamp::now();
    let change = |status: &mut LockStoreStatus| {
        status.observed_generation = generation;
        if let Some(facts) = facts {
            status.server_version = Some(facts.version.clone());
            let (ok, reason, message) = eviction_condition(facts.eviction.as_deref());
            condition::set(&mut status.conditions, types::EVICTION_SAFE, ok, reason, message, generation, now);
            let (is, reason, message) = persistence_condition(facts.persists);
            condition::set(&mut status.conditions, types::EPHEMERAL, is, reason, message, generation, now);
            let (ok, reason, message) = isolation_condition(facts);
            let type_ = types::ISOLATED_MASTER_BOUNDED;
            condition::set(&mut status.conditions, type_, ok, reason, message, generation, now);
        }
        condition::set(&mut status.conditions, types::READY, *ready, reason, message, generation, now);
        if *recovering {
            let (type_, reason) = (types::RECOVERING, reasons::RECOVERING);
            condition::set(&mut status.conditions, type_, true, reason, RECOVERING, generation, now);
        } else if *ready {
            let why = "nothing is to be recovered";
            let reason = reasons::RECOVERED;
            condition::set(&mut status.conditions, types::RECOVERING, false, reason, why, generation, now);
        }
        if !clock_stepped {
            let (type_, reason) = (types::CLOCK_STEPPED, reasons::CLOCK_STEADY);
            let why = "Redis's clock goes on as ours does";
            condition::set(&mut status.conditions, type_, false, reason, why, generation, now);
        }
    };
    let mut wanted = object.status.clone().unwrap_or_default();
    change(&mut wanted);
    if Some(&wanted) == object.status.as_ref() {
        return Ok(());
    }
    let of_before = |type_| object.status.as_ref().and_then(|status| condition::get(&status.conditions, type_));
    let was = of_before(types::READY).map(|condition| (condition.status, condition.reason.clone()));
    let recovered =
        *ready && !recovering && of_before(types::RECOVERING).is_some_and(|c| c.reason == reasons::RECOVERING);
    ledger.update(Failpoint::StoreStatus, change).await?;
    let changed = was.is_none_or(|(status, old)| (status == ConditionStatus::True) != *ready || old != *reason);
    if changed && *ready {
        events.normal(object, reason, "OpenGate", (*message).to_owned()).await;
    } else if changed && *reason != reasons::OPENING {
        events.warning(object, reason, "UseStore", (*message).to_owned()).await;
    }
    if recovered {
        let note = "no lease of before can be believed any more: every lock grants again";
        events.normal(object, reasons::RECOVERED, "OpenGate", note.to_owned()).await;
    }
    Ok(())
}

fn isolation_condition(facts: &ServerFacts) -> (ConditionStatus, &'static str, &'static str) {
    match (facts.replicas, facts.isolation, facts.isolated_for()) {
        (0, ..) => (ConditionStatus::True, reasons::NO_REPLICAS, "no replica can become a second master"),
        (_, None, _) => {
            (ConditionStatus::Unknown, reasons::NOT_ALLOWED_TO_READ, "CONFIG GET min-replicas-to-write is refused")
        }
        (_, _, Some(_)) => (
            ConditionStatus::True,
            reasons::MIN_REPLICAS_TO_WRITE,
            "a master that is cut off takes no writes after min-replicas-max-lag",
        ),
        (_, _, None) => (
            ConditionStatus::False,
            reasons::TOO_FEW_REQUIRED,
            "a master that is cut off goes on granting under its old epoch: set min-replicas-to-write to the number of \
             replicas that can be promoted",
        ),
    }
}

fn persistence_condition(persists: Option<bool>) -> (ConditionStatus, &'static str, &'static str) {
    match persists {
        None => (ConditionStatus::Unknown, reasons::NOT_ALLOWED_TO_READ, "CONFIG GET save and appendonly is refused"),
        Some(true) => (ConditionStatus::False, reasons::PERSISTED, "Redis finds its data again when it restarts"),
        Some(false) => (
            ConditionStatus::True,
            reasons::NOTHING_ON_DISK,
            "a restart of Redis loses its data: delegated holds are put back from etcd, and each lock grants nothing for its \
             own longest lease",
        ),
    }
}

fn eviction_condition(policy: Option<&str>) -> (ConditionStatus, &'static str, &'static str) {
    match policy {
        None => (ConditionStatus::Unknown, reasons::NOT_ALLOWED_TO_READ, "CONFIG GET maxmemory-policy is refused"),
        Some("noeviction") => (ConditionStatus::True, reasons::NO_EVICTION, "nothing is evicted"),
        Some(policy) if policy.starts_with("volatile-") => (
            ConditionStatus::False,
            reasons::EVICTS_VOLATILE_KEYS,
            "locks have no TTL and are not evicted, but noeviction says it for sure",
        ),
        Some(_) => (ConditionStatus::False, reasons::EVICTING_MEMORY_POLICY, "Redis may evict locks"),
    }
}
