//! A person takes a hold by force: `leasehold.dev/force-release: <fencing token>` on the lock.
//!
//! # Sequence
//! 1. Nothing is held with the token (any more): the annotations go.
//! 2. The policy that guards the annotations must be in force, else the annotations go and an Event `PolicyMissing` says
//!    what to do.
//! 3. The hold goes by its own walk, in the order of all holds: a claim's by the claim's loop (etcd → Redis), a leader's by
//!    the election (pod → etcd → Redis), a direct one in Redis, since nobody else knows of it.
//! 4. As 1.
//!
//! The token names one hold for ever, so each step may be repeated, and a crash between two of them repeats it: at most
//! an Event comes twice.
//!
//! # Who may
//! Anybody who can write a lock could set the annotations, and any name with them. That the caller has the verb
//! `forcerelease`, and that `force-release-by` is the caller, is checked at admission, when the API server knows who asks;
//! the controller can't find out later. So it believes the annotations only where that policy is in force *in the lock's
//! namespace, now*: it asks, in a dry run, for a force-release that the policy lets nobody pass, whatever rights the
//! controller has. Looking for policy objects would say less (a binding may select other namespaces, only warn, or have
//! another name) and would need rights to read them.
//!
//! In force now isn't in force when the annotations were written. Annotations that were written before are refused as
//! soon as a controller sees them, and are removed, so that they can't become valid later. What is left: who may write
//! locks can leave annotations while neither the policy nor any controller is there; both must then come before the hold
//! ends.

use kube::api::{Patch, PatchParams};
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use tracing::{info, warn};

use super::super::writes::{api_of, patch_metadata};
use super::super::{Context, Error, OpenStore, claim};
use crate::api::condition::reasons;
use crate::api::force_release::{
    FORCE_RELEASE, FORCE_RELEASE_BY, FORCE_RELEASE_REASON, ForceRelease, INSTALL_POLICY, REFUSAL,
};
use crate::api::{DistributedLock, LockClaim};
use crate::failpoint::{Failpoint, around};
use crate::lease::{HolderId, LockKey};
use crate::store::{HoldState, Inspection};

/// What heeding the annotations has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heeded {
    /// Nothing is asked for.
    Nothing,
    /// A hold is being taken: look again soon.
    Taking,
    /// The lock was written, and is looked at again for that.
    Written,
}

/// The hold that a token names.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Target {
    Claim(ObjectRef<LockClaim>),
    Leader,
    /// Known to Redis alone: a direct one, or one of a claim that hasn't heard of it.
    Direct(HolderId),
    /// A pinned one that etcd doesn't have: it is freed as such.
    Orphan,
    Nothing,
}

fn target(token: Option<i64>, lock: &DistributedLock, record: &Inspection, claim: Option<&LockClaim>) -> Target {
    if let Some(claim) = claim {
        return Target::Claim(ObjectRef::from_obj(claim));
    }
    if lock.leaders().iter().any(|leader| Some(leader.fencing_token) == token) {
        return Target::Leader;
    }
    match record.holds.iter().find(|hold| Some(hold.token.get()) == token) {
        Some(hold) if hold.state == HoldState::Pinned => Target::Orphan,
        Some(hold) => Target::Direct(hold.id.clone()),
        None => Target::Nothing,
    }
}

/// Does what the annotations of the lock ask for, if there are some.
pub(super) async fn heed(
    ctx: &Context,
    lock: &DistributedLock,
    key: &LockKey,
    open: &OpenStore,
    record: &Inspection,
) -> Result<Heeded, Error> {
    let Some(asked) = lock.force_release() else {
        ctx.with_memory(key, |memory| memory.forced = None);
        return Ok(Heeded::Nothing);
    };
    let token = asked.fencing_token();
    let claims = ctx.claims.state();
    let holder = claims.iter().find(|claim| token.is_some_and(|token| claim::holds_with(claim, key, token)));
    let target = target(token, lock, record, holder.map(AsRef::as_ref));
    let begun = ctx.with_memory(key, |memory| memory.forced.clone()).filter(|(begun, _)| Some(*begun) == token);
    let Some(token) = token.filter(|_| target != Target::Nothing) else {
        return over(ctx, lock, key, &asked, begun.is_some()).await;
    };
    if begun.is_none() && !begin(ctx, lock, key, &asked, token).await? {
        return Ok(Heeded::Written);
    }
    match target {
        Target::Claim(claim) => ctx.triggers.claim(claim),
        Target::Direct(id) => {
            if let Err(refusal) = around(Failpoint::ForceFree, open.control.free(key, &id, None)).await? {
                info!(%key, %refusal, "not freed now");
            }
        }
        // The election of this look does it; a list of claims finds that nobody records it.
        Target::Leader | Target::Orphan | Target::Nothing => {}
    }
    Ok(Heeded::Taking)
}

/// The annotations have nothing to do any more.
async fn over(
    ctx: &Context,
    lock: &DistributedLock,
    key: &LockKey,
    asked: &ForceRelease,
    done: bool,
) -> Result<Heeded, Error> {
    forget(ctx, lock).await?;
    ctx.with_memory(key, |memory| memory.forced = None);
    if !done {
        let note = format!("nothing is held with the token {}; its force-release was removed", asked.token);
        ctx.events.warning(lock, reasons::NOTHING_TO_RELEASE, "ForceRelease", note).await;
    }
    Ok(Heeded::Written)
}

/// Whether what is asked for is allowed; from then on the loops take the hold. If not, the annotations are removed.
async fn begin(
    ctx: &Context,
    lock: &DistributedLock,
    key: &LockKey,
    asked: &ForceRelease,
    token: i64,
) -> Result<bool, Error> {
    let ForceRelease { by, reason, .. } = asked;
    if by.is_empty() || !is_guarded(ctx, lock).await? {
        forget(ctx, lock).await?;
        let note = format!(
            "the force-release was refused and removed, since no policy has checked who asks: {INSTALL_POLICY}"
        );
        ctx.events.warning(lock, reasons::POLICY_MISSING, "ForceRelease", note).await;
        return Ok(false);
    }
    let message = format!("{by} has taken the hold with token {token} by force: {reason}");
    warn!(%key, message, "force-release");
    ctx.with_memory(key, |memory| memory.forced = Some((token, message.clone())));
    ctx.events.warning(lock, reasons::FORCE_RELEASED, "ForceRelease", message).await;
    Ok(true)
}

fn annotations(token: Value, by: Value) -> Value {
    json!({ "annotations": { FORCE_RELEASE: token, FORCE_RELEASE_REASON: null, FORCE_RELEASE_BY: by } })
}

async fn forget(ctx: &Context, lock: &DistributedLock) -> Result<(), Error> {
    let gone = annotations(Value::Null, Value::Null);
    patch_metadata(Failpoint::ForceForget, &api_of(&ctx.client, lock), lock, gone).await?;
    Ok(())
}

/// Whether the policy is in force in the lock's namespace: it refuses what it lets nobody pass. Changes nothing.
async fn is_guarded(ctx: &Context, lock: &DistributedLock) -> Result<bool, Error> {
    let api: Api<DistributedLock> = api_of(&ctx.client, lock);
    let params = PatchParams { dry_run: true, ..PatchParams::default() };
    let probe = json!({ "metadata": annotations(json!("probe"), json!("nobody")) });
    match api.patch(&lock.name_any(), &params, &Patch::Merge(probe)).await {
        Ok(_) => Ok(false),
        Err(kube::Error::Api(status)) if status.message.contains(REFUSAL) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{DistributedLockStatus, ElectedLeader, ElectionStatus, LockClaimSpec};
    use crate::lease::{FencingToken, Mode};
    use crate::store::Hold;

    fn record(state: HoldState) -> Inspection {
        let hold = Hold {
            id: HolderId::new("h").unwrap(),
            token: FencingToken::new(7).unwrap(),
            mode: Mode::Counted(1),
            state,
            acquired: 0,
            renewed: 0,
            expires: 0,
            identity: "process/test".into(),
            pod_uid: None,
        };
        Inspection {
            now: 0,
            lock_uid: "uid".into(),
            generation: 1,
            permits: 1,
            lease: 15_000,
            last: 7,
            sealed: false,
            quarantine: 0,
            gate_open: true,
            holds: vec![hold],
            waiters: Vec::new(),
        }
    }

    fn led(token: i64) -> DistributedLock {
        let leader = ElectedLeader {
            pod_name: "p".into(),
            pod_uid: "u".into(),
            node_name: None,
            attempt: 1,
            fencing_token: token,
            containers: String::new(),
            releasing: false,
        };
        let election = Some(ElectionStatus { attempts: 1, leaders: vec![leader] });
        DistributedLock { status: Some(DistributedLockStatus { election, ..Default::default() }), ..Default::default() }
    }

    #[test]
    fn a_token_names_one_hold_and_who_takes_it() {
        let free = DistributedLock::default();
        let claim = LockClaim::new("c", LockClaimSpec::for_lock("a"));
        let pinned = record(HoldState::Pinned);
        assert_eq!(target(Some(7), &free, &pinned, Some(&claim)), Target::Claim(ObjectRef::from_obj(&claim)));
        assert_eq!(target(Some(7), &led(7), &pinned, None), Target::Leader);
        assert_eq!(target(Some(7), &led(6), &pinned, None), Target::Orphan);
        let direct = Target::Direct(HolderId::new("h").unwrap());
        assert_eq!(target(Some(7), &free, &record(HoldState::Held), None), direct);
        assert_eq!(target(Some(6), &free, &record(HoldState::Held), None), Target::Nothing);
        assert_eq!(target(None, &free, &record(HoldState::Held), None), Target::Nothing);
    }
}
