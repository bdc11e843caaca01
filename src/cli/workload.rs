//! What the commands of a workload have in common: who it is, where its locks are, and how it speaks.

use std::fmt;

use anyhow::Context;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::endpoint::RedisArgs;
use crate::lease::Mode;

/// Where a pod finds its own namespace.
const OWN_NAMESPACE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";

/// Where the locks are.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct NamespaceArgs {
    /// The namespace of the locks; default: that of this pod, or of the Secret leasehold-connection, or `default`.
    #[arg(long, value_name = "NAMESPACE", env = "LEASEHOLD_NAMESPACE")]
    namespace: Option<String>,
}

impl NamespaceArgs {
    /// As the flag, the pod or the Secret of the connection says.
    pub(super) fn namespace(&self, redis: &RedisArgs) -> anyhow::Result<String> {
        match &self.namespace {
            Some(namespace) => Ok(namespace.clone()),
            None if std::path::Path::new(OWN_NAMESPACE).exists() => {
                Ok(std::fs::read_to_string(OWN_NAMESPACE).context(OWN_NAMESPACE)?.trim().to_owned())
            }
            None => Ok(redis.namespace()?.unwrap_or_else(|| "default".into())),
        }
    }
}

/// Who asks.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct IdentityArgs {
    /// The name under which the lock's status shows the holder; default: pod/NAME, or process/HOST/PID.
    #[arg(long, value_name = "NAME", env = "LEASEHOLD_IDENTITY")]
    identity: Option<String>,
    /// The name of this pod, by the downward API (metadata.name).
    #[arg(long, value_name = "NAME", env = "LEASEHOLD_POD_NAME")]
    pod_name: Option<String>,
    /// The UID of this pod, by the downward API (metadata.uid): the lock is free once the pod has ended.
    #[arg(long, value_name = "UID", env = "LEASEHOLD_POD_UID")]
    pod_uid: Option<String>,
}

impl IdentityArgs {
    pub(super) fn identity(&self) -> String {
        let process = || {
            let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            format!("process/{}/{}", host.trim(), std::process::id())
        };
        let pod = || self.pod_name.as_ref().map(|pod| format!("pod/{pod}"));
        self.identity.clone().or_else(pod).unwrap_or_else(process)
    }

    pub(super) fn pod_uid(&self) -> Option<String> {
        self.pod_uid.clone().filter(|uid| !uid.is_empty())
    }
}

/// How much of a lock, and how soon.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct ShareArgs {
    /// So many permits of each lock.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    permits: u32,
    /// Beside other shared holders, without limit.
    #[arg(short, long, conflicts_with_all = ["permits", "exclusive"])]
    shared: bool,
    /// Beside nobody, whatever the number of permits.
    #[arg(short = 'x', long, conflicts_with = "permits")]
    exclusive: bool,
    /// Higher is served first.
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    pub(super) priority: i32,
}

impl ShareArgs {
    pub(super) fn mode(&self) -> Mode {
        match (self.shared, self.exclusive) {
            (true, _) => Mode::Shared,
            (_, true) => Mode::Exclusive,
            _ => Mode::Counted(self.permits),
        }
    }
}

/// Runs a command on one thread, as small as it can be.
pub(super) fn block_on<T>(command: impl Future<Output = T>) -> anyhow::Result<T> {
    super::connect::install_tls()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no async runtime")?;
    Ok(runtime.block_on(command))
}

/// Speaks in lines on stderr, beside those of the command.
pub(super) fn say_on_stderr(verbose: bool) {
    let level = if verbose { Level::INFO } else { Level::WARN };
    // The only one: nothing has spoken before.
    let _ = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .event_format(Line)
        .try_init();
}

/// `leasehold: what happened`.
struct Line;

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        write!(writer, "leasehold: ")?;
        ctx.format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}
