//! The API server, as the commands reach it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::api::CONTROLLER_NAME;
use crate::controller::Scope;

/// Calls to the API server that take longer are given up and tried again.
const API_TIMEOUT: Duration = Duration::from_secs(15);

/// Which API server.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct ConnectArgs {
    /// Kubeconfig to use; inside a cluster the service account is used, elsewhere $KUBECONFIG or ~/.kube/config.
    #[arg(long, value_name = "FILE", global = true)]
    kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig to use; default: its current one.
    #[arg(long, value_name = "NAME", global = true)]
    context: Option<String>,
}

impl ConnectArgs {
    pub(super) async fn client(self) -> anyhow::Result<Client> {
        Client::try_from(self.config().await?).context("no client for the API server")
    }

    pub(super) async fn config(self) -> anyhow::Result<Config> {
        let options = KubeConfigOptions { context: self.context, ..KubeConfigOptions::default() };
        let mut config = match self.kubeconfig {
            Some(path) => {
                let file = Kubeconfig::read_from(&path).with_context(|| format!("cannot read {}", path.display()))?;
                Config::from_custom_kubeconfig(file, &options).await.context("the kubeconfig")?
            }
            None if options.context.is_some() => Config::from_kubeconfig(&options).await.context("the kubeconfig")?,
            None => Config::infer().await.context("no kubeconfig and not inside a cluster")?,
        };
        config.connect_timeout = Some(API_TIMEOUT);
        Ok(config)
    }
}

/// Which install.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct InstallArgs {
    /// Touch only stores with this spec.controllerName, their locks and claims.
    #[arg(long, value_name = "NAME", env = "LEASEHOLD_CONTROLLER_NAME", default_value = CONTROLLER_NAME)]
    pub(super) controller_name: String,
    /// The controller's own namespace, where Secrets of stores are read.
    #[arg(long, value_name = "NAMESPACE", env = "LEASEHOLD_NAMESPACE", default_value = "leasehold-system")]
    pub(super) namespace: String,
    /// Touch only locks and claims in these namespaces, where a Role is enough; default: in all, by a ClusterRole.
    #[arg(long, value_name = "NAMESPACES", env = "LEASEHOLD_NAMESPACES", value_delimiter = ',')]
    namespaces: Vec<String>,
}

impl InstallArgs {
    /// Which namespaces are served.
    pub(super) fn scope(&self) -> Scope {
        // An empty variable is one that isn't set.
        Scope::of(self.namespaces.iter().map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()))
    }
}

/// Runs a command until it ends.
pub(super) fn block_on<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    install_tls()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("no async runtime")?;
    runtime.block_on(command)
}

pub(super) fn install_tls() -> anyhow::Result<()> {
    let installed = rustls::crypto::aws_lc_rs::default_provider().install_default();
    installed.map_err(|_| anyhow::anyhow!("another TLS provider was installed before"))
}
