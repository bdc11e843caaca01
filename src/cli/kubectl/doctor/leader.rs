//! Whether a controller leads, by its Lease, and whether the clocks agree with that of the API server.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::join_all;
use jiff::fmt::rfc2822;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::Lease;
use kube::client::Body;
use kube::{Api, Client};
use tokio::time::Instant;

use super::super::cluster::{Cluster, in_time};
use super::finding::Finding;
use crate::api::{LockStore, lease_name};

/// How often a Lease is looked at until it changes.
const EVERY: Duration = Duration::from_secs(1);
/// No longer than this, whatever the Lease says of its own duration.
const PATIENCE: Duration = Duration::from_secs(60);
/// What clocks may differ in without a word: more than an answer takes, and the second that its date leaves out.
const SLACK: SignedDuration = SignedDuration::from_secs(5);
/// What to do about a clock.
const NTP: &str = "look at the time service (NTP) of that machine";

/// Looks at the leader of each controller that a store names.
pub(super) async fn look(cluster: &Cluster, namespace: &str, stores: &[LockStore]) -> Vec<Finding> {
    let asked = Instant::now();
    let date = date(&cluster.client).await;
    let mut findings: Vec<_> = date.map(|date| own_clock(date, Timestamp::now())).into_iter().collect();
    let controllers: BTreeSet<&str> = stores.iter().map(|store| store.spec.controller_name.as_str()).collect();
    let api: Api<Lease> = Api::namespaced(cluster.client.clone(), namespace);
    let looks = controllers.into_iter().map(async |controller| {
        let (name, place) = (lease_name(controller), format!("the Lease {namespace}/{}", lease_name(controller)));
        match renewed(&api, &name).await {
            Err(error) => vec![Finding::not_checked(&place, error)],
            Ok(None) => vec![Finding::note(
                format!("{place} isn't there, so that nobody can tell whether a controller runs"),
                "say where it runs with --controller-namespace; a controller without leader election has none",
            )],
            Ok(Some((first, later))) => {
                let clock = date.and_then(|date| leader_clock(&place, &first, &later, date, asked.elapsed()));
                std::iter::once(leads(&place, &first, &later)).chain(clock).collect()
            }
        }
    });
    findings.extend(join_all(looks).await.into_iter().flatten());
    findings
}

/// A Lease as it is first, and as soon as it has changed, or when it hasn't for its whole duration.
async fn renewed(api: &Api<Lease>, name: &str) -> kube::Result<Option<(Lease, Lease)>> {
    let Some(first) = in_time(api.get_opt(name)).await? else { return Ok(None) };
    let until = Instant::now() + duration(&first);
    loop {
        let later = in_time(api.get_opt(name)).await?.unwrap_or_else(|| first.clone());
        if later.spec != first.spec || Instant::now() > until {
            return Ok(Some((first, later)));
        }
        tokio::time::sleep(EVERY).await;
    }
}

fn duration(lease: &Lease) -> Duration {
    let spec = lease.spec.as_ref();
    let seconds = spec.and_then(|spec| u64::try_from(spec.lease_duration_seconds?).ok()).unwrap_or_default();
    Duration::from_secs(seconds).min(PATIENCE)
}

/// The API server's clock, from an answer of it.
async fn date(client: &Client) -> Option<Timestamp> {
    let request = http::Request::get("/version").body(Body::empty()).ok()?;
    let answer = in_time(client.send(request)).await.ok()?;
    let date = answer.headers().get(http::header::DATE)?.to_str().ok()?;
    Some(rfc2822::parse(date).ok()?.timestamp())
}

/// Somebody leads if the Lease changes: that needs no clock but ours.
fn leads(place: &str, first: &Lease, later: &Lease) -> Finding {
    let spec = later.spec.clone().unwrap_or_default();
    let holder = spec.holder_identity.filter(|holder| !holder.is_empty());
    let renewed = |lease: &Lease| lease.spec.as_ref().and_then(|spec| spec.renew_time.clone());
    match holder {
        None => Finding::wrong(
            format!("no controller leads: {place} has no holder"),
            "none runs, or none has started yet: docs/runbooks.md#leaseholdnoleader",
        ),
        Some(holder) if renewed(first) != renewed(later) => Finding::ok(format!("{holder} leads, and renews {place}")),
        Some(holder) => Finding::wrong(
            format!("{holder} has led and doesn't renew {place}, in its whole {} s", duration(later).as_secs()),
            "it has ended, or can't reach the API server, and no other one leads: docs/runbooks.md#leaseholdnoleader",
        ),
    }
}

fn differ(what: &str, ahead: SignedDuration) -> String {
    let (seconds, way) = (ahead.abs().as_secs(), if ahead.is_negative() { "behind" } else { "ahead of" });
    format!("{what} is {seconds} s {way} that of the API server")
}

/// Our own: it shows ages.
fn own_clock(server: Timestamp, now: Timestamp) -> Finding {
    let ahead = now.duration_since(server);
    match ahead.abs() > SLACK {
        true => Finding::note(differ("the clock of this machine", ahead), NTP),
        false => Finding::ok("the clock of this machine is that of the API server"),
    }
}

/// The leader's: it wrote the time of its last renewal, `since` after the API server's date at the latest, and not before
/// that where the Lease was seen to change.
fn leader_clock(place: &str, first: &Lease, later: &Lease, server: Timestamp, since: Duration) -> Option<Finding> {
    let spec = later.spec.as_ref()?;
    let holder = spec.holder_identity.as_deref().filter(|holder| !holder.is_empty())?;
    let since = SignedDuration::try_from(since).ok()?;
    let after_date = spec.renew_time.as_ref()?.0.duration_since(server);
    let ahead = after_date.checked_sub(since)?;
    let is_behind = first.spec != later.spec && after_date < -SLACK;
    let difference = if is_behind { after_date } else { ahead };
    let what = format!("the clock of {holder}, which renews {place},");
    (is_behind || ahead > SLACK).then(|| Finding::note(differ(&what, difference), NTP))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::finding::Level;
    use super::*;

    fn lease(holder: &str, renewed: &str) -> Lease {
        let spec = json!({"holderIdentity": holder, "renewTime": renewed, "leaseDurationSeconds": 15});
        serde_json::from_value(json!({"metadata": {"name": "l"}, "spec": spec})).unwrap()
    }

    #[test]
    fn a_leader_is_one_that_renews() {
        let (first, later) = (lease("a", "2026-11-24T12:00:00.000000Z"), lease("a", "2026-11-24T12:00:02.000000Z"));
        assert_eq!(leads("it", &first, &later).level, Level::Ok);
        assert_eq!(leads("it", &first, &first).level, Level::Wrong);
        assert!(leads("it", &first, &lease("", "2026-11-24T12:00:02.000000Z")).what.contains("no controller leads"));
    }

    #[test]
    fn clocks_that_differ_are_named() {
        let server: Timestamp = "2026-11-24T12:00:00Z".parse().unwrap();
        let at = |seconds| server + SignedDuration::from_secs(seconds);
        assert_eq!(own_clock(server, at(4)).level, Level::Ok);
        assert!(own_clock(server, at(60)).what.contains("60 s ahead of"));
        assert!(own_clock(server, at(-60)).what.contains("60 s behind"));
        let before = lease("a", "2026-11-24T11:58:00.000000Z");
        let of_leader = |first: &Lease, renewed: &str| {
            leader_clock("it", first, &lease("a", renewed), server, Duration::from_secs(5)).map(|found| found.what)
        };
        assert_eq!(of_leader(&before, "2026-11-24T12:00:05.000000Z"), None);
        assert!(of_leader(&before, "2026-11-24T12:01:05.000000Z").unwrap().contains("60 s ahead of"));
        assert!(of_leader(&before, "2026-11-24T11:59:00.000000Z").unwrap().contains("60 s behind"));
        assert_eq!(of_leader(&before, "2026-11-24T11:58:00.000000Z"), None, "nobody has renewed it since");
    }

    #[test]
    fn dates_of_http_are_understood() {
        let date = rfc2822::parse("Tue, 24 Nov 2026 12:00:00 GMT").unwrap().timestamp();
        assert_eq!(date.to_string(), "2026-11-24T12:00:00Z");
    }
}
