//! `kubectl leasehold force-release`: asks for a hold to be taken, by the annotations that the controller heeds, and says
//! what has come of it.
//!
//! The fencing token that is written names one hold for ever: whoever holds by the time that it is heeded loses nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{anyhow, bail};
use k8s_openapi::api::core::v1::Event;
use kube::ResourceExt;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::json;
use tokio::time::Instant;

use super::End;
use super::cluster::{Cluster, in_time};
use super::error::explain;
use super::output::{OutputArgs, print_one};
use super::status::{held_by, holder_token, holders};
use crate::api::DistributedLock;
use crate::api::condition::reasons;
use crate::api::force_release::{FORCE_RELEASE, FORCE_RELEASE_BY, FORCE_RELEASE_REASON, INSTALL_POLICY};

/// How often is looked.
const EVERY: Duration = Duration::from_millis(300);
/// How long after the annotations have gone a status or an Event may come.
const SETTLE: Duration = Duration::from_secs(5);

/// Takes a hold by force.
#[derive(Debug, clap::Args)]
pub(super) struct ForceReleaseArgs {
    /// The lock.
    lock: String,
    /// Why, for the record: at most 256 characters.
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    reason: String,
    /// The fencing token of the hold; default: that of the only holder.
    #[arg(long, value_name = "TOKEN")]
    token: Option<i64>,
    /// Seconds to wait until it is done.
    #[arg(short, long, value_name = "SECONDS", default_value_t = 60)]
    wait: u32,
    #[command(flatten)]
    output: OutputArgs,
}

fn reason(text: &str) -> Result<String, String> {
    let fits = !text.trim().is_empty() && text.chars().count() <= 256;
    fits.then(|| text.to_owned()).ok_or_else(|| "say why, in at most 256 characters".to_owned())
}

pub(super) async fn run(cluster: &Cluster, args: ForceReleaseArgs) -> anyhow::Result<End> {
    let lock = cluster.lock_once(&args.lock, |lock| holder_token(lock, args.token).is_ok()).await?;
    let token = holder_token(&lock, args.token)?;
    if let Some(other) = lock.force_release().filter(|other| other.fencing_token() != Some(token)) {
        bail!("{} is asking for the token {} to be taken: wait until that is done", other.by, other.token);
    }
    let seen: BTreeSet<_> = events(cluster, &lock).await.iter().filter_map(version).collect();
    // Below Kubernetes 1.36 no policy fills in who asks.
    let by = cluster.user().await;
    let annotations =
        json!({ FORCE_RELEASE: token.to_string(), FORCE_RELEASE_REASON: args.reason, FORCE_RELEASE_BY: by });
    let patch = Patch::Merge(json!({ "metadata": { "uid": lock.uid(), "annotations": annotations } }));
    let locks = cluster.api::<DistributedLock>();
    in_time(locks.patch(&args.lock, &PatchParams::default(), &patch)).await.map_err(explain)?;
    let (until, mut settled) = (Instant::now() + Duration::from_secs(args.wait.into()), None);
    loop {
        tokio::time::sleep(EVERY).await;
        let now = in_time(locks.get_opt(&args.lock)).await.map_err(explain)?;
        let now = now.filter(|now| now.uid() == lock.uid());
        let is_heeded = now.as_ref().is_none_or(|now| now.force_release().is_none());
        if is_heeded {
            let news = events(cluster, &lock).await;
            let is_new = |event: &&Event| version(event).is_none_or(|version| !seen.contains(&version));
            let is_late = *settled.get_or_insert_with(|| Instant::now() + SETTLE) < Instant::now();
            match verdict(now.as_ref(), token, news.iter().filter(is_new), is_late) {
                Verdict::Open => {}
                Verdict::Taken => {
                    let done = || format!("{} is released from the hold with the token {token}\n", args.lock);
                    print_one(args.output, now.as_ref().unwrap_or(&lock), done)?;
                    now.as_ref().iter().for_each(|now| eprintln!("{}: {}", args.lock, held_by(now)));
                    return Ok(End::Done);
                }
                Verdict::Refused(why) => return Err(anyhow!("nothing was taken: {why}")),
            }
        } else if Instant::now() > until {
            let (name, seconds) = (&args.lock, args.wait);
            eprintln!(
                "the controller has not done it within {seconds} s; it goes on. To take it back: kubectl -n {} annotate \
                 dlock {name} {FORCE_RELEASE}- {FORCE_RELEASE_REASON}- {FORCE_RELEASE_BY}-; why: kubectl leasehold doctor",
                cluster.namespace
            );
            return Ok(End::Late);
        }
    }
}

/// What has come of it, once the annotations are gone.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Open,
    Taken,
    Refused(String),
}

fn verdict<'a>(
    lock: Option<&DistributedLock>,
    token: i64,
    mut news: impl Iterator<Item = &'a Event>,
    is_late: bool,
) -> Verdict {
    let holders = lock.map(holders).unwrap_or_default();
    let refusals = [reasons::POLICY_MISSING, reasons::NOTHING_TO_RELEASE];
    let refusal = news.find(|event| event.reason.as_deref().is_some_and(|reason| refusals.contains(&reason)));
    match refusal {
        Some(event) => Verdict::Refused(event.message.clone().unwrap_or_default()),
        None if holders.iter().all(|holder| holder.fencing_token != token) => Verdict::Taken,
        None if is_late => Verdict::Refused(format!(
            "the controller has removed the annotations, and the hold is there; mostly its policy isn't in force: \
             {INSTALL_POLICY}"
        )),
        None => Verdict::Open,
    }
}

/// One that comes again is counted in the same object.
fn version(event: &Event) -> Option<(String, String)> {
    Some((event.uid()?, event.resource_version()?))
}

/// The Events about a lock; none where they can't be read.
async fn events(cluster: &Cluster, lock: &DistributedLock) -> Vec<Event> {
    let about = format!("involvedObject.uid={}", lock.uid().unwrap_or_default());
    cluster.list::<Event>(false, &ListParams::default().fields(&about)).await.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::status::tests::held;
    use super::*;

    fn event(reason: &str) -> Event {
        Event { reason: Some(reason.into()), message: Some("apply it".into()), ..Event::default() }
    }

    #[test]
    fn the_verdict_is_that_of_the_controller() {
        let (with, without) = (held(&[("pod/p", 7), ("pod/q", 8)]), held(&[("pod/q", 8)]));
        let news = |reason| [event(reason)];
        assert_eq!(verdict(Some(&with), 7, [].iter(), false), Verdict::Open);
        assert_eq!(verdict(Some(&without), 7, news("ForceReleased").iter(), false), Verdict::Taken);
        assert_eq!(verdict(None, 7, [].iter(), false), Verdict::Taken);
        for reason in ["PolicyMissing", "NothingToRelease"] {
            let verdict = verdict(Some(&without), 7, news(reason).iter(), false);
            assert_eq!(verdict, Verdict::Refused("apply it".into()));
        }
        assert!(matches!(verdict(Some(&with), 7, [].iter(), true), Verdict::Refused(why) if why.contains("policy")));
    }

    #[test]
    fn a_reason_is_said_and_short() {
        assert!(reason("n1 burnt down").is_ok());
        assert!(reason(" ").is_err() && reason(&"x".repeat(257)).is_err());
    }
}
