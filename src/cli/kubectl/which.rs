//! Which locks a command is about.

use kube::ResourceExt;
use kube::api::ListParams;

use super::super::endpoint::RedisArgs;
use super::End;
use super::cluster::Cluster;
use super::error::{explain, one_line};
use super::output::{OutputArgs, Row};
use super::record::Records;
use crate::api::{DistributedLock, LockClaim};

/// One lock, all of the namespace, or all of all namespaces.
#[derive(Debug, clap::Args)]
pub(super) struct WhichArgs {
    /// One lock; default: all of the namespace.
    pub(super) lock: Option<String>,
    /// The locks of all namespaces.
    #[arg(short = 'A', long, conflicts_with = "lock")]
    pub(super) all_namespaces: bool,
}

impl WhichArgs {
    pub(super) async fn locks(&self, cluster: &Cluster) -> anyhow::Result<Vec<DistributedLock>> {
        match &self.lock {
            Some(name) => Ok(vec![cluster.named(name).await?]),
            None => cluster.list(self.all_namespaces, &ListParams::default()).await.map_err(explain),
        }
    }

    /// The columns that say which lock a row is about, where there may be several.
    pub(super) fn columns(&self, lock: &DistributedLock) -> Row {
        let namespace = self.all_namespaces.then(|| ("NAMESPACE", lock.namespace().unwrap_or_default()));
        let name = self.lock.is_none().then(|| ("LOCK", lock.name_any()));
        namespace.into_iter().chain(name).collect()
    }

    /// In words.
    pub(super) fn place(&self, cluster: &Cluster) -> String {
        match (&self.lock, self.all_namespaces) {
            (Some(name), _) => name.clone(),
            (None, true) => "any lock of any namespace".to_owned(),
            (None, false) => format!("any lock of the namespace {}", cluster.namespace),
        }
    }
}

/// Whose holders or waiters are shown, from where, and how.
#[derive(Debug, clap::Args)]
pub(super) struct ShowArgs {
    #[command(flatten)]
    pub(super) which: WhichArgs,
    #[command(flatten)]
    pub(super) output: OutputArgs,
    /// Where it is read: Redis knows at once, and those that wait without a claim.
    #[arg(long, value_name = "SOURCE", default_value = "status")]
    from: Source,
    #[command(flatten)]
    redis: RedisArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Source {
    /// The statuses of locks and claims.
    Status,
    /// The records in Redis, with the connection's flags, variables or mounted Secret.
    Redis,
}

/// What is known of them.
pub(super) struct Known {
    pub(super) locks: Vec<DistributedLock>,
    /// The claims of their namespaces.
    pub(super) claims: Vec<LockClaim>,
    /// Where it is read from Redis.
    pub(super) records: Option<Records>,
}

impl ShowArgs {
    pub(super) async fn read(&self, cluster: &Cluster) -> anyhow::Result<Known> {
        let records = (self.from == Source::Redis).then(|| Records::of(self.redis.clone())).transpose()?;
        let locks = self.which.locks(cluster).await?;
        let claims = cluster.list(self.which.all_namespaces, &ListParams::default()).await.map_err(explain)?;
        Ok(Known { locks, claims, records })
    }
}

/// What is read of each lock. One that can't be read is an error where it was named; among others it is said, and left out.
#[derive(Default)]
pub(super) struct Unread(Vec<String>);

impl Unread {
    pub(super) fn note<T>(&mut self, which: &WhichArgs, read: anyhow::Result<T>) -> anyhow::Result<Option<T>> {
        match read {
            Ok(read) => Ok(Some(read)),
            Err(error) if which.lock.is_some() => Err(error),
            Err(error) => {
                self.0.push(one_line(&error));
                Ok(None)
            }
        }
    }

    /// Says them.
    pub(super) fn end(self) -> End {
        self.0.iter().for_each(|line| eprintln!("{line}"));
        if self.0.is_empty() { End::Done } else { End::Wrong }
    }
}
