//! `kubectl leasehold release`: deletes a claim, and waits until it holds nothing any more.

use std::time::Duration;

use anyhow::anyhow;
use futures::StreamExt;
use kube::ResourceExt;

use super::End;
use super::acquire::at_the;
use super::cluster::Cluster;
use super::error::explain;
use super::output::{OutputArgs, print_one};
use crate::api::LockClaim;
use crate::api::condition::{self, types};

/// Gives back.
#[derive(Debug, clap::Args)]
pub(super) struct ReleaseArgs {
    /// The claim, as acquire has named it.
    claim: String,
    /// Seconds to wait until it holds nothing any more; default: for ever.
    #[arg(short, long, value_name = "SECONDS")]
    wait: Option<u32>,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) async fn run(cluster: &Cluster, args: ReleaseArgs) -> anyhow::Result<End> {
    let claim = cluster.named::<LockClaim>(&args.claim).await?;
    cluster.delete(&claim).await.map_err(explain)?;
    let limit = args.wait.map(|seconds| Duration::from_secs(seconds.into()));
    tokio::select! {
        gone = until_it_is_gone(cluster, &claim) => {
            gone?;
            print_one(args.output, &claim, || format!("released {}\n", claim.lock_names()))?;
            Ok(End::Done)
        }
        () = at_the(limit) => {
            eprintln!("{} is deleted and not gone yet; it goes by itself", args.claim);
            Ok(End::Late)
        }
    }
}

async fn until_it_is_gone(cluster: &Cluster, claim: &LockClaim) -> anyhow::Result<()> {
    let mut changes = std::pin::pin!(cluster.follow::<LockClaim>(&claim.name_any()));
    let mut said = String::new();
    while let Some(change) = changes.next().await {
        let Some(now) = change?.filter(|now| now.uid() == claim.uid()) else { return Ok(()) };
        let why = still(&now);
        if why != said {
            eprintln!("{why}");
            said = why;
        }
    }
    Err(anyhow!("the claim can't be followed any more"))
}

/// Who holds on though the claim is deleted.
fn still(claim: &LockClaim) -> String {
    let status = claim.status.clone().unwrap_or_default();
    let held = condition::get(&status.conditions, types::HELD);
    let (name, locks) = (claim.name_any(), claim.lock_names());
    match (&claim.spec.holder_ref, held) {
        (Some(holder), Some(held)) if held.status == true.into() => {
            let pod = &holder.name;
            format!("{name} holds {locks} for pod/{pod} until that has ended; to end it: kubectl delete pod {pod}")
        }
        _ => format!("{name} is being released from {locks}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::waiters::tests::{claim, says};
    use super::*;
    use crate::api::HolderRef;

    #[test]
    fn a_pod_that_holds_on_is_named() {
        let mut held = claim("c", says("Held", "True", "Held"));
        assert_eq!(still(&held), "c is being released from a");
        held.spec.holder_ref = Some(HolderRef { name: "p".into(), ..HolderRef::default() });
        assert!(still(&held).contains("for pod/p until that has ended"));
        held.status = None;
        assert_eq!(still(&held), "c is being released from a");
    }
}
