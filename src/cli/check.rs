//! `leasehold check`: a lock is declared, claimed, held and released, as a user does it.

use std::time::Duration;

use anyhow::{Context, bail};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, ResourceExt};
use tokio::time::Instant;

use super::connect::{ConnectArgs, block_on};
use crate::api::condition::{self, types};
use crate::api::{DEFAULT_STORE, DistributedLock, DistributedLockSpec, LockClaim, LockClaimSpec};

/// How often is looked.
const EVERY: Duration = Duration::from_millis(200);

/// Takes and releases a lock of its own.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct CheckArgs {
    #[command(flatten)]
    connect: ConnectArgs,
    /// Where the lock is made.
    #[arg(long, value_name = "NAMESPACE", env = "LEASEHOLD_NAMESPACE", default_value = "default")]
    namespace: String,
    /// The LockStore to check.
    #[arg(long, value_name = "NAME", default_value = DEFAULT_STORE)]
    store: String,
    /// Seconds within which the lock must be held, and then be gone.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u16,
}

/// Runs the check.
///
/// # Errors
/// What went wrong, with the conditions that say why.
pub(super) fn run(args: CheckArgs) -> anyhow::Result<()> {
    block_on(check(args))
}

async fn check(args: CheckArgs) -> anyhow::Result<()> {
    let client = args.connect.client().await?;
    let locks: Api<DistributedLock> = Api::namespaced(client.clone(), &args.namespace);
    let claims: Api<LockClaim> = Api::namespaced(client, &args.namespace);
    let limit = Duration::from_secs(args.timeout.into());

    let spec = DistributedLockSpec { store_name: args.store.clone(), ..DistributedLockSpec::default() };
    let mut lock = DistributedLock::new("", spec);
    lock.metadata.generate_name = Some("leasehold-check-".into());
    let lock = locks.create(&PostParams::default(), &lock).await.context("the DistributedLock was refused")?;
    let name = lock.name_any();
    let held = hold(&claims, &name, &args.store, limit).await;
    // Whatever came of it, nothing is left.
    let claim = remove(&claims, &name, limit).await;
    let lock = remove(&locks, &name, limit).await;
    println!("held {}/{name} with token {}", args.namespace, held?);
    claim.and(lock)?;
    println!("released and deleted");
    Ok(())
}

/// Claims the lock, and returns the token with which it is held.
async fn hold(claims: &Api<LockClaim>, name: &str, store: &str, limit: Duration) -> anyhow::Result<i64> {
    let claim = LockClaim::new(name, LockClaimSpec::for_lock(name));
    claims.create(&PostParams::default(), &claim).await.context("the LockClaim was refused")?;
    let until = Instant::now() + limit;
    loop {
        let status = claims.get(name).await.context("the LockClaim")?.status.unwrap_or_default();
        let held = condition::get(&status.conditions, types::HELD);
        match (status.fencing_token, held) {
            (Some(token), Some(held)) if held.status == true.into() => return Ok(token),
            (_, held) if Instant::now() > until => {
                let why = held.map(|held| format!("{}: {}", held.reason, held.message)).unwrap_or_default();
                bail!("not held after {} s ({why}); look at: kubectl describe lockstore {store}", limit.as_secs());
            }
            _ => tokio::time::sleep(EVERY).await,
        }
    }
}

async fn remove<K>(api: &Api<K>, name: &str, limit: Duration) -> anyhow::Result<()>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let until = Instant::now() + limit;
    match api.delete(name, &DeleteParams::default()).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
        Err(error) => return Err(error).context("it can't be deleted"),
    }
    while api.get_metadata_opt(name).await.context("it can't be read")?.is_some() {
        if Instant::now() > until {
            bail!("{name} is not gone after {} s", limit.as_secs());
        }
        tokio::time::sleep(EVERY).await;
    }
    Ok(())
}
