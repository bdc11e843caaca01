//! A real control plane with the real controller, over a Redis of its own.

use anyhow::Result;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::{Api, Client};

use crate::support::{ControlPlane, Controller, ControllerOptions, LIMIT, RedisServer, wait_for};

/// Where a bench works.
pub(crate) const NAMESPACE: &str = "default";

pub(crate) struct Cluster {
    pub(crate) plane: ControlPlane,
    pub(crate) client: Client,
    _redis: RedisServer,
    controller: Controller,
}

impl Cluster {
    /// Ready for pods in [`NAMESPACE`].
    pub(crate) async fn start() -> Result<Self> {
        let (plane, redis) = (ControlPlane::start().await, RedisServer::start().await);
        plane.install_crds();
        plane.kubectl(&["create", "namespace", "leasehold-system"]).map_err(anyhow::Error::msg)?;
        let mut options = ControllerOptions::new(env!("CARGO_BIN_EXE_leasehold"), &plane);
        options.redis_address = Some(redis.address());
        let controller = Controller::start(options).await;
        let client = plane.client().await;
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), NAMESPACE);
        wait_for("the default service account", LIMIT, async || accounts.get_opt("default").await.ok()?).await;
        Ok(Self { plane, client, _redis: redis, controller })
    }

    pub(crate) fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.plane.kubectl(args).map_err(anyhow::Error::msg)
    }

    pub(crate) fn apply(&self, manifest: &str) -> Result<()> {
        self.plane.apply(NAMESPACE, manifest).map(drop).map_err(anyhow::Error::msg)
    }

    /// A file about the controller's process.
    pub(crate) fn proc(&mut self, file: &str) -> Result<String> {
        Ok(std::fs::read_to_string(format!("/proc/{}/{file}", self.controller.process().pid()))?)
    }

    /// Memory of the controller in MiB: `VmRSS`, or `VmHWM` for its peak.
    pub(crate) fn memory(&mut self, field: &str) -> f64 {
        self.controller.process().memory(field) as f64 / 1024.0
    }
}
