//! `leasehold agent`: a sidecar that holds a lock for its pod.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;

use super::endpoint::RedisArgs;
use super::run::{LOST, NOT_RUN, seconds};
use super::workload::{IdentityArgs, NamespaceArgs, ShareArgs, block_on};
use crate::agent::{self, AgentError, Ended, Health, HealthSource, Mode, Place, Settings};
use crate::keeper::{Options, Rules, Wait};
use crate::lease::LockKey;
use crate::telemetry;

/// What a kubelet takes from the end of the agent until it has stopped the other containers: it looks each second, and sends
/// SIGKILL 2 s after SIGTERM.
const KUBELET_STOPS: Duration = Duration::from_secs(4);

/// The port of the retired leader-elector.
const LISTEN: &str = "127.0.0.1:4040";

/// Hold a lock for the other containers of this pod, and tell them so on localhost.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct AgentArgs {
    #[command(flatten)]
    namespace: NamespaceArgs,
    #[command(flatten)]
    identity: IdentityArgs,
    /// The lock.
    #[arg(short, long, value_name = "NAME", env = "LEASEHOLD_AGENT_LOCK")]
    lock: String,
    #[command(flatten)]
    share: ShareArgs,
    /// What happens when the lock is lost: contend again, or end so that the pod's containers are started again.
    #[arg(long, value_enum, default_value_t = ModeArg::Elect, env = "LEASEHOLD_AGENT_MODE")]
    mode: ModeArg,
    /// As what it runs: a native sidecar gives the lock back on SIGTERM, a container renews until it is killed.
    #[arg(long, value_enum, default_value_t = PlaceArg::Sidecar)]
    place: PlaceArg,
    /// Where it serves. Whoever reaches it can release the lock: other than loopback only behind a guard of your own.
    #[arg(long, value_name = "IP:PORT", default_value = LISTEN)]
    listen: SocketAddr,
    /// Seconds that the app needs to stop; default: what the lease leaves, at most 5 and in mode gate at least 4.
    #[arg(long, value_name = "SECONDS")]
    grace: Option<f64>,
    /// The app is well while this http:// URL answers 2xx.
    #[arg(long, value_name = "URL", conflicts_with = "health_file")]
    health_url: Option<http::Uri>,
    /// The app is well while this file exists.
    #[arg(long, value_name = "FILE")]
    health_file: Option<PathBuf>,
    /// Seconds that the app may be unwell before the lock is given up.
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0)]
    health_timeout: f64,
    #[command(flatten)]
    redis: RedisArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum ModeArg {
    Elect,
    Gate,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum PlaceArg {
    Sidecar,
    Container,
}

/// Runs the agent.
///
/// # Errors
/// Why it could not go on.
pub(super) fn run(args: AgentArgs) -> anyhow::Result<ExitCode> {
    telemetry::start();
    let ended = block_on(async { anyhow::Ok(agent::run(args.settings()?).await) })??;
    match ended {
        Ok(Ended::Asked) => Ok(ExitCode::SUCCESS),
        Ok(Ended::Lost) => Ok(ExitCode::from(LOST)),
        Err(AgentError::Refused(error)) => Err(error.into()),
        Err(error) => Err(error.into()),
    }
}

impl AgentArgs {
    fn settings(self) -> anyhow::Result<Settings> {
        let key = LockKey::new(&self.namespace.namespace(&self.redis)?, &self.lock)?;
        let grace = self.grace.map(|grace| seconds("--grace", grace)).transpose()?;
        let rules = match grace {
            Some(grace) => Rules::stopping_within(grace),
            None => {
                let least_stop = if self.mode == ModeArg::Gate { KUBELET_STOPS } else { Duration::ZERO };
                Rules { stop: Duration::from_secs(5), least_stop, ..Rules::default() }
            }
        };
        let options = Options {
            mode: self.share.mode(),
            priority: self.share.priority,
            wait: Wait::Forever,
            pod_uid: self.identity.pod_uid(),
            rules,
            ..Options::named(self.identity.identity())
        };
        let source = self.health_url.map(HealthSource::Url).or_else(|| self.health_file.map(HealthSource::File));
        let limit = seconds("--health-timeout", self.health_timeout)?;
        Ok(Settings {
            lock: self.redis.store()?.lock(key),
            options,
            mode: if self.mode == ModeArg::Gate { Mode::Gate } else { Mode::Elect },
            place: if self.place == PlaceArg::Container { Place::Container } else { Place::Sidecar },
            listen: self.listen,
            health: source.map(|source| Health { source, limit }),
        })
    }
}

/// Ask the agent of this pod: for probes, which reach no loopback by themselves.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct ProbeArgs {
    /// What is asked: /started, while it is held; /healthz, while the agent works.
    #[arg(default_value = "/started")]
    path: String,
    /// Where the agent serves.
    #[arg(long, value_name = "IP:PORT", default_value = LISTEN)]
    address: SocketAddr,
}

/// Asks, and fails where the answer is no.
///
/// # Errors
/// If there is no runtime.
pub(super) fn probe(args: &ProbeArgs) -> anyhow::Result<ExitCode> {
    let yes = block_on(agent::probe(args.address, &args.path)).context("the probe")?;
    Ok(if yes { ExitCode::SUCCESS } else { ExitCode::from(NOT_RUN) })
}
