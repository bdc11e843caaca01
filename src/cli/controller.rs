//! `leasehold controller`: the controller's process.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;

use super::connect::{ConnectArgs, InstallArgs, block_on};
use crate::api::{AuthSpec, DEFAULT_STORE, LockStoreSpec, SecretRef, Standalone};
use crate::controller::{self, Bootstrap, Election, Scope, Settings};
use crate::metrics::Metrics;
use crate::{admin, shutdown, telemetry};

/// Reconciles locks and claims, and serves their stores.
#[derive(Debug, Clone, clap::Args)]
pub struct ControllerArgs {
    #[command(flatten)]
    connect: ConnectArgs,
    #[command(flatten)]
    install: InstallArgs,
    /// Whether nodes may be read, to know if a pod's node can be asked; default: unless --namespaces is given.
    #[arg(long = "read-nodes", value_name = "BOOL", action = clap::ArgAction::Set)]
    reads_nodes: Option<bool>,
    /// Who reports Events: the pod's name.
    #[arg(long, value_name = "NAME", env = "LEASEHOLD_INSTANCE", default_value = "leasehold")]
    instance: String,
    /// Where probes and metrics are served.
    #[arg(long, value_name = "IP:PORT", default_value = "0.0.0.0:8080")]
    admin_address: SocketAddr,
    #[command(flatten)]
    election: ElectionArgs,
    #[command(flatten)]
    bootstrap: BootstrapArgs,
    #[command(flatten)]
    direct: DirectArgs,
}

/// What namespaces get that are labelled leasehold.dev/direct: enabled.
#[derive(Debug, Clone, clap::Args)]
struct DirectArgs {
    /// Give them a Redis user, and the Secret leasehold-connection.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    direct_credentials: bool,
    /// Seconds that an old password works after another was made.
    #[arg(long, value_name = "SECONDS", default_value_t = controller::PASSWORD_OVERLAP.as_secs(), value_parser = clap::value_parser!(u64).range(1..=2_592_000))]
    password_overlap: u64,
}

impl DirectArgs {
    fn overlap(&self) -> Option<Duration> {
        self.direct_credentials.then(|| Duration::from_secs(self.password_overlap))
    }
}

/// How replicas elect the one that works.
#[derive(Debug, Clone, clap::Args)]
struct ElectionArgs {
    /// Work only while leading the other replicas, by a Lease in the controller's namespace.
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    leader_elect: bool,
    /// Seconds that the other replicas wait after the Lease was last renewed.
    #[arg(long, value_name = "SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u16).range(2..=3600))]
    leader_elect_lease_duration: u16,
    /// Seconds after which a leader that could not renew gives up; less than the lease.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=3600))]
    leader_elect_renew_deadline: u16,
    /// Seconds between two tries; the deadline is more than 1.2 of them.
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0)]
    leader_elect_retry_period: f64,
}

impl ElectionArgs {
    fn election(&self) -> anyhow::Result<Option<Election>> {
        let seconds = |whole| Duration::from_secs(u64::from(whole));
        let (lease, renew_deadline) =
            (seconds(self.leader_elect_lease_duration), seconds(self.leader_elect_renew_deadline));
        let retry =
            Duration::try_from_secs_f64(self.leader_elect_retry_period).context("--leader-elect-retry-period")?;
        if lease <= renew_deadline {
            anyhow::bail!("--leader-elect-lease-duration must be longer than --leader-elect-renew-deadline");
        }
        if retry.is_zero() || renew_deadline <= retry.mul_f64(1.2) {
            anyhow::bail!(
                "--leader-elect-renew-deadline must be longer than 1.2 times --leader-elect-retry-period, and that more than 0"
            );
        }
        Ok(self.leader_elect.then_some(Election { lease, renew_deadline, retry }))
    }
}

/// The LockStore that is created at the start if there is none of its name.
#[derive(Debug, Clone, clap::Args)]
struct BootstrapArgs {
    /// Create a LockStore for this Redis if there is none.
    #[arg(long, value_name = "HOST:PORT", env = "LEASEHOLD_REDIS_ADDRESS")]
    redis_address: Option<String>,
    /// Secret with the keys username (optional) and password.
    #[arg(long, value_name = "SECRET", requires = "redis_address")]
    redis_password_secret: Option<String>,
    /// Make that Secret, with a random password, if there is none.
    #[arg(long, requires = "redis_password_secret")]
    redis_make_password: bool,
    /// What the keys in Redis begin with.
    #[arg(long, value_name = "PREFIX", requires = "redis_address", default_value = "leasehold")]
    key_prefix: String,
    /// The name of the LockStore.
    #[arg(long, value_name = "NAME", requires = "redis_address", default_value = DEFAULT_STORE)]
    store_name: String,
}

impl BootstrapArgs {
    fn bootstrap(self) -> Option<Bootstrap> {
        let Self { redis_address, redis_password_secret, redis_make_password, key_prefix, store_name } = self;
        let standalone = Some(Standalone { address: redis_address?, database: 0 });
        let auth = redis_password_secret.map(|name| AuthSpec { secret_ref: SecretRef { name } });
        let spec = LockStoreSpec { key_prefix, standalone, auth, ..LockStoreSpec::default() };
        Some(Bootstrap { store: store_name, spec, make_password: redis_make_password })
    }
}

/// Runs until asked to end.
///
/// # Errors
/// No configuration for the API server, an address in use, or a loop that failed.
pub fn run(args: ControllerArgs) -> anyhow::Result<()> {
    telemetry::start();
    #[cfg(debug_assertions)]
    crate::failpoint::arm().map_err(anyhow::Error::msg)?;
    block_on(serve(args))
}

async fn serve(args: ControllerArgs) -> anyhow::Result<()> {
    let ControllerArgs { connect, install, reads_nodes, instance, admin_address, election, bootstrap, direct } = args;
    let scope = install.scope();
    let reads_nodes = reads_nodes.unwrap_or(scope == Scope::All);
    let InstallArgs { controller_name, namespace, .. } = install;
    let election = election.election()?;
    let shutdown = shutdown::asked().context("no signal handlers")?;
    let client = controller::client(connect.config().await?).context("no client for the API server")?;
    let listener =
        TcpListener::bind(admin_address).await.with_context(|| format!("cannot listen on {admin_address}"))?;
    tracing::info!(address = %listener.local_addr().context("no address")?, "serving probes and metrics");
    let (metrics, readiness) = (Metrics::new(), admin::Readiness::default());
    let settings = Settings {
        controller_name,
        namespace,
        scope,
        reads_nodes,
        instance,
        election,
        direct: direct.overlap(),
        bootstrap: bootstrap.bootstrap(),
    };
    let admin = admin::serve(listener, metrics.clone(), readiness.clone());
    let version = client.clone();
    let work = async move {
        version.apiserver_version().await.context("the API server can't be asked")?;
        readiness.ready();
        controller::run(client, settings, metrics, shutdown).await.context("the controller")
    };
    tokio::select! {
        result = work => result,
        result = admin => result.context("probes and metrics"),
    }
}
