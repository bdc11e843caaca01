//! `kubectl leasehold doctor`: what is wrong, a line each, and what to do.
//!
//! What may not be read isn't checked, and that is said. Nothing is changed: the policies are asked in dry runs.

mod definitions;
mod finding;
mod leader;
mod locks;
mod policies;
mod rights;
mod stores;

use kube::Api;
use kube::api::ListParams;
use serde_json::json;

use super::End;
use super::cluster::{Cluster, in_time};
use super::error::explain;
use super::output::{OutputArgs, print_as};
use crate::api::LockStore;
use finding::{Finding, Level};

/// Finds what is wrong.
#[derive(Debug, clap::Args)]
pub(super) struct DoctorArgs {
    /// The locks and pods of all namespaces.
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Where the controller runs.
    #[arg(long, value_name = "NAME", default_value = "leasehold-system")]
    controller_namespace: String,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) async fn run(cluster: &Cluster, args: DoctorArgs) -> anyhow::Result<End> {
    // Where nobody answers there is nothing to look at.
    let server = in_time(cluster.client.apiserver_version()).await.map_err(explain)?;
    let mut findings = vec![Finding::ok(format!("the API server answers: Kubernetes {}", server.git_version))];
    findings.extend(definitions::look(cluster).await);
    if findings.iter().all(|finding| finding.level != Level::Wrong) {
        findings.extend(rest(cluster, &args).await);
    }
    let names = || findings.iter().map(|finding| finding.what.clone()).collect();
    let text = || findings.iter().map(|finding| finding.line() + "\n").collect();
    print_as(args.output, || Ok(json!(findings)), names, text)?;
    let is_wrong = findings.iter().any(|finding| finding.level == Level::Wrong);
    Ok(if is_wrong { End::Wrong } else { End::Done })
}

/// What needs the kinds to be there.
async fn rest(cluster: &Cluster, args: &DoctorArgs) -> Vec<Finding> {
    let mut findings = Vec::new();
    let stores: Api<LockStore> = Api::all(cluster.client.clone());
    match in_time(stores.list(&ListParams::default())).await {
        Ok(stores) => {
            findings.extend(stores::findings(&stores.items));
            findings.extend(leader::look(cluster, &args.controller_namespace, &stores.items).await);
        }
        Err(error) => findings.push(Finding::not_checked("LockStores and their controller", error)),
    }
    findings.extend(locks::look(cluster, args.all_namespaces).await);
    findings.extend(policies::look(cluster).await);
    findings.extend(rights::look(cluster).await);
    findings
}
