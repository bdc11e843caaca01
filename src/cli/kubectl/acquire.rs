//! `kubectl leasehold acquire`: makes a claim, waits until it holds, and prints the token.

use std::time::Duration;

use anyhow::{anyhow, bail};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{DeleteParams, PostParams};

use super::End;
use super::advice::advice;
use super::cluster::{Cluster, in_time};
use super::error::explain;
use super::output::{OutputArgs, print_one};
use super::status::{held_by, is_held};
use crate::api::condition::{self, reasons, types};
use crate::api::{Condition, DistributedLock, HolderKind, HolderRef, LockClaim, LockClaimSpec, LockMode, LockRequest};
use crate::controller::random;
use crate::shutdown;

/// How much longer than the claim's own limit is waited for somebody to say that it is over.
const GRACE: Duration = Duration::from_secs(10);
/// How long a claim that has ended is kept, in seconds.
const KEPT: i32 = 3600;

/// Takes a lock.
#[derive(Debug, clap::Args)]
pub(super) struct AcquireArgs {
    /// The lock.
    lock: String,
    /// The name of the claim; default: the lock's, with something random.
    #[arg(long, value_name = "NAME")]
    claim: Option<String>,
    #[command(flatten)]
    what: WhatArgs,
    /// Seconds to wait for its turn; default: for ever.
    #[arg(short, long, value_name = "SECONDS", value_parser = clap::value_parser!(i32).range(0..=31_536_000))]
    wait: Option<i32>,
    /// Fail at once where the lock isn't free; the same as --wait 0.
    #[arg(long, conflicts_with = "wait")]
    no_wait: bool,
    /// Hold for this pod, until it has ended; default: until the claim is deleted.
    #[arg(long = "for", value_name = "pod/NAME", value_parser = pod_name)]
    holder: Option<String>,
    /// Give it back after so many seconds.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(i32).range(1..=31_536_000))]
    max_hold: Option<i32>,
    /// Higher ones are served first.
    #[arg(long, value_name = "NUMBER", default_value_t = 0, allow_negative_numbers = true)]
    priority: i32,
    #[command(flatten)]
    output: OutputArgs,
}

/// How much of the lock.
#[derive(Debug, Default, clap::Args)]
#[group(multiple = false)]
struct WhatArgs {
    /// How many permits; default: 1.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(i32).range(1..=10_000))]
    permits: Option<i32>,
    /// Beside any number of other shared holders.
    #[arg(long)]
    shared: bool,
    /// Beside nobody.
    #[arg(long)]
    exclusive: bool,
}

fn pod_name(text: &str) -> Result<String, String> {
    let name = text.strip_prefix("pod/").filter(|name| !name.is_empty());
    name.map(ToOwned::to_owned).ok_or_else(|| "only pods can hold: write pod/NAME".to_owned())
}

pub(super) async fn run(cluster: &Cluster, args: AcquireArgs) -> anyhow::Result<End> {
    let lock = cluster.named::<DistributedLock>(&args.lock).await?;
    if lock.spec.election.is_some() {
        bail!("{} elects its holders, so that no claim gets it: claim another lock", args.lock);
    }
    let holder = match &args.holder {
        Some(name) => Some(reference(&cluster.named::<Pod>(name).await?)),
        None => None,
    };
    // From here on nothing ends without a look at the claim.
    let asked = shutdown::asked()?;
    let name = args.claim.clone().unwrap_or_else(|| format!("{}-{:05x}", args.lock, random() & 0xf_ffff));
    let claim = LockClaim::new(&name, spec(&args, holder));
    let claim = create(cluster, &claim).await?;
    let limit = claim.wait_timeout().map(|wait| wait + GRACE);
    let outcome = tokio::select! {
        outcome = until_it_holds(cluster, &claim) => outcome,
        () = asked => Ok(Outcome::Interrupted),
        () = at_the(limit) => Err(anyhow!("nobody has answered the claim {name}: kubectl leasehold doctor says why")),
    };
    if !matches!(outcome, Ok(Outcome::Holds(..))) {
        remove(cluster, &claim).await?;
    }
    match outcome? {
        Outcome::Holds(claim, token) => {
            print_one(args.output, &*claim, || format!("{token}\n"))?;
            eprintln!(
                "{name} holds {}; to give it back: kubectl leasehold -n {} release {name}",
                args.lock, cluster.namespace
            );
            Ok(End::Done)
        }
        Outcome::Ended(condition) if [reasons::WAIT_TIMEOUT, reasons::BUSY].contains(&condition.reason.as_str()) => {
            let lock = cluster.lock_once(&args.lock, is_held).await?;
            eprintln!("{} was not granted in time: {}", args.lock, held_by(&lock));
            Ok(End::Late)
        }
        Outcome::Ended(Condition { reason, message, .. }) => {
            let advice = advice("LockClaim", types::FINISHED, &reason).unwrap_or_default();
            Err(anyhow!("the claim has ended ({reason}): {message}. {advice}"))
        }
        Outcome::Gone => Err(anyhow!("somebody has deleted the claim {name}")),
        Outcome::Interrupted => {
            eprintln!("given up: the claim {name} is deleted");
            Ok(End::Interrupted)
        }
    }
}

fn reference(pod: &Pod) -> HolderRef {
    let (name, uid) = (pod.name_any(), pod.uid().unwrap_or_default());
    HolderRef { api_group: String::new(), kind: HolderKind::Pod, name, uid }
}

fn spec(args: &AcquireArgs, holder_ref: Option<HolderRef>) -> LockClaimSpec {
    let WhatArgs { permits, shared, exclusive } = args.what;
    let mode = match (shared, exclusive) {
        (true, _) => Some(LockMode::Shared),
        (_, true) => Some(LockMode::Exclusive),
        _ => None,
    };
    LockClaimSpec {
        locks: vec![LockRequest { name: args.lock.clone(), permits, mode }],
        holder_ref,
        wait_timeout_seconds: if args.no_wait { Some(0) } else { args.wait },
        priority: args.priority,
        max_hold_seconds: args.max_hold,
        // Nobody is left to look at it.
        ttl_seconds_after_finished: Some(KEPT),
    }
}

/// Makes the claim; where nobody knows whether it was made, it is deleted.
async fn create(cluster: &Cluster, claim: &LockClaim) -> anyhow::Result<LockClaim> {
    let api = cluster.api::<LockClaim>();
    match in_time(api.create(&PostParams::default(), claim)).await {
        Ok(claim) => Ok(claim),
        Err(kube::Error::Api(status)) if status.code == 409 => {
            Err(anyhow!("there is a claim {} already: release it, or take another name", claim.name_any()))
        }
        Err(error @ kube::Error::Api(_)) => Err(explain(error)),
        Err(error) => {
            let name = claim.name_any();
            let gone = in_time(api.delete(&name, &DeleteParams::default())).await;
            let left = gone.is_err().then(|| format!("; look whether there is a claim {name}, and delete it"));
            Err(anyhow!("{}{}", explain(error), left.unwrap_or_default()))
        }
    }
}

/// How waiting has ended.
enum Outcome {
    Holds(Box<LockClaim>, i64),
    Ended(Condition),
    Gone,
    Interrupted,
}

/// Where a claim stands.
#[derive(Debug, PartialEq)]
enum Standing {
    Waits(String),
    Holds(i64),
    Ended(Condition),
}

fn standing(claim: &LockClaim) -> Standing {
    let status = claim.status.clone().unwrap_or_default();
    let of = |type_| condition::get(&status.conditions, type_);
    let is = |condition: &&Condition| condition.status == true.into();
    match (of(types::FINISHED).filter(is), of(types::HELD), status.fencing_token) {
        (Some(finished), ..) => Standing::Ended(finished.clone()),
        (None, Some(held), Some(token)) if is(&held) => Standing::Holds(token),
        (None, held, _) => {
            let told = held.filter(|held| held.reason != reasons::PENDING);
            Standing::Waits(told.map(|held| format!("{}: {}", held.reason, held.message)).unwrap_or_default())
        }
    }
}

async fn until_it_holds(cluster: &Cluster, claim: &LockClaim) -> anyhow::Result<Outcome> {
    let mut changes = std::pin::pin!(cluster.follow::<LockClaim>(&claim.name_any()));
    let mut said = String::new();
    while let Some(change) = changes.next().await {
        let Some(now) = change?.filter(|now| now.uid() == claim.uid()) else { return Ok(Outcome::Gone) };
        match standing(&now) {
            Standing::Holds(token) => return Ok(Outcome::Holds(Box::new(now), token)),
            Standing::Ended(condition) => return Ok(Outcome::Ended(condition)),
            Standing::Waits(why) if why != said => {
                eprintln!("{}", why.trim_end());
                said = why;
            }
            Standing::Waits(_) => {}
        }
    }
    Err(anyhow!("the claim can't be followed any more"))
}

/// When so long has passed; without a limit never.
pub(super) async fn at_the(limit: Option<Duration>) {
    match limit {
        Some(limit) => tokio::time::sleep(limit).await,
        None => std::future::pending().await,
    }
}

/// Deletes a claim that we have made, and no other.
async fn remove(cluster: &Cluster, claim: &LockClaim) -> anyhow::Result<()> {
    let name = claim.name_any();
    let left = |error| anyhow!("{}; the claim {name} is left: kubectl delete lclaim {name}", explain(error));
    cluster.delete(claim).await.map_err(left)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::super::waiters::tests::{claim, says};
    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: AcquireArgs,
    }

    fn parse(words: &str) -> Result<AcquireArgs, clap::Error> {
        Line::try_parse_from(std::iter::once("acquire").chain(words.split(' '))).map(|line| line.args)
    }

    #[test]
    fn flags_become_a_claim() {
        let spec = |words: &str| {
            let spec = serde_json::to_value(spec(&parse(words).unwrap(), None)).unwrap();
            (spec["locks"].clone(), spec["waitTimeoutSeconds"].clone(), spec["maxHoldSeconds"].clone())
        };
        assert_eq!(spec("a"), (json!([{"name": "a"}]), json!(null), json!(null)));
        assert_eq!(
            spec("a --permits 2 --wait 5 --max-hold 9"),
            (json!([{"name": "a", "permits": 2}]), json!(5), json!(9))
        );
        assert_eq!(spec("a --shared --no-wait"), (json!([{"name": "a", "mode": "Shared"}]), json!(0), json!(null)));
        assert_eq!(spec("a --exclusive").0, json!([{"name": "a", "mode": "Exclusive"}]));
    }

    #[test]
    fn what_does_not_go_together_is_refused() {
        for words in [
            "a --permits 2 --shared",
            "a --shared --exclusive",
            "a --wait 5 --no-wait",
            "a --for job/x",
            "a --permits 0",
        ] {
            assert!(parse(words).is_err(), "{words}");
        }
        assert_eq!(parse("a --for pod/p").unwrap().holder.as_deref(), Some("p"));
    }

    #[test]
    fn a_claim_holds_only_with_its_token() {
        let mut holds = claim("c", says("Held", "True", "Held"));
        assert!(matches!(standing(&holds), Standing::Waits(_)));
        holds.status.as_mut().unwrap().fencing_token = Some(7);
        assert_eq!(standing(&holds), Standing::Holds(7));
        assert_eq!(standing(&claim("c", says("Held", "False", "Waiting"))), Standing::Waits("Waiting: why".into()));
        assert_eq!(standing(&claim("c", says("Held", "Unknown", "Pending"))), Standing::Waits(String::new()));
        let ended = standing(&claim("c", says("Finished", "True", "Busy")));
        assert!(matches!(ended, Standing::Ended(condition) if condition.reason == "Busy"));
    }
}
