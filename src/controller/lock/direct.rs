//! Direct holders that name their pod: once that has ended for certain, nobody renews any more, and what it held is free at
//! once. Without evidence the end of the lease decides, as for any direct holder.

use tracing::info;

use super::super::fate::Fate;
use super::super::pods::Follower;
use super::super::{Context, Error, lock_ref};
use super::OpenStore;
use crate::api::condition::reasons;
use crate::api::{DistributedLock, HolderKind, HolderRef};
use crate::failpoint::{Failpoint, around};
use crate::lease::LockKey;
use crate::store::{Hold, HoldState, Inspection};

/// The pod that a direct hold names.
fn pod_of(hold: &Hold) -> Option<HolderRef> {
    let name = hold.identity.strip_prefix("pod/").filter(|_| hold.state == HoldState::Held)?.to_owned();
    let uid = hold.pod_uid.clone()?;
    Some(HolderRef { api_group: String::new(), kind: HolderKind::Pod, name, uid })
}

/// Frees what pods that have ended still hold; the end of any other is heard of from now on. Whether anything was freed.
pub(super) async fn free_ended(
    ctx: &Context,
    lock: &DistributedLock,
    key: &LockKey,
    open: &OpenStore,
    record: &Inspection,
) -> Result<bool, Error> {
    let follower = Follower::Lock(lock_ref(key));
    let holding: Vec<(&Hold, HolderRef)> = record.holds.iter().filter_map(|hold| Some((hold, pod_of(hold)?))).collect();
    let now: Vec<HolderRef> = holding.iter().map(|(_, pod)| pod.clone()).collect();
    let before = ctx.with_memory(key, |memory| std::mem::replace(&mut memory.direct, now.clone()));
    for gone in before.iter().filter(|pod| !now.contains(pod)) {
        ctx.pods.forget_one(key.namespace(), gone, &follower);
    }
    let mut freed = false;
    for (hold, pod) in holding {
        let Fate::Ended(evidence) = ctx.pods.fate(key.namespace(), &pod, follower.clone()).await? else { continue };
        match around(Failpoint::LockFreeEnded, open.control.free(key, &hold.id, None)).await? {
            Ok(()) => {
                freed = true;
                let note = format!(
                    "{} has ended ({evidence}): token {} is free before its lease ends",
                    hold.identity, hold.token
                );
                ctx.events.normal(lock, reasons::HOLDER_ENDED, "Release", note).await;
            }
            Err(refusal) => info!(%key, %refusal, "not freed now"),
        }
    }
    Ok(freed)
}
