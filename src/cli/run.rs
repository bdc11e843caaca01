//! `leasehold run`: a command under locks.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::process::Signal;

use super::endpoint::RedisArgs;
use super::workload::{IdentityArgs, NamespaceArgs, ShareArgs};
use crate::keeper::{AcquireError, Options, Rules, Wait};
use crate::lease::LockKey;
use crate::run::{self, Ended, Guard, Job, KILL_TIME, RunError};

/// Held by others.
const BUSY: u8 = 118;
/// Not granted in time.
const TIMED_OUT: u8 = 119;
/// Lost while the command ran.
pub(super) const LOST: u8 = 120;
/// The store can't be reached.
const UNREACHABLE: u8 = 121;
/// Everything else that kept the command from running.
pub(super) const NOT_RUN: u8 = 125;

/// Run a command while holding locks; it is stopped before they are lost.
///
/// The exit code is the command's, 128 + n if signal n ended it; 118: another holds the lock; 119: not granted in time; 120: the
/// lock was lost and the command stopped; 121: the store can't be reached; 125: not run for another reason; 126: it can't
/// be started; 127: there is no such command.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    namespace: NamespaceArgs,
    #[command(flatten)]
    identity: IdentityArgs,
    /// The lock; given several times: all of them or none.
    #[arg(short, long = "lock", value_name = "NAME", required = true)]
    locks: Vec<String>,
    #[command(flatten)]
    share: ShareArgs,
    /// Wait at most so long, then end with 119 (or the code of -E); where more than its turn was missing, with the code of that.
    #[arg(short, long, visible_alias = "timeout", value_name = "SECONDS", conflicts_with = "no_wait")]
    wait: Option<f64>,
    /// End at once with 118 (or the code of -E) if another holds it.
    #[arg(short, long = "no-wait", visible_aliases = ["nonblock", "nb"])]
    no_wait: bool,
    /// The exit code where the lock is not had in time.
    #[arg(short = 'E', long, value_name = "CODE")]
    conflict_exit_code: Option<u8>,
    /// The exit code where the lock is lost.
    #[arg(long, value_name = "CODE", default_value_t = LOST)]
    lost_exit_code: u8,
    /// Believe at most so many seconds of the lock's lease, so that the command is stopped sooner.
    #[arg(long, value_name = "SECONDS")]
    lease: Option<f64>,
    /// Seconds between SIGTERM and SIGKILL when the lock is lost; default: what the lease leaves, at most 5.
    #[arg(long, value_name = "SECONDS")]
    grace: Option<f64>,
    /// Seconds between SIGKILL and the deadline, for the kernel to end what is left: more than this on a machine that is overloaded.
    #[arg(long, value_name = "SECONDS", default_value_t = KILL_TIME.as_secs_f64())]
    kill_time: f64,
    /// Send the command this signal when a renewal fails and time is left, and again when one is answered.
    #[arg(long, value_name = "SIGNAL", value_parser = signal_of)]
    on_jeopardy: Option<Signal>,
    /// Make the command's control group below this one (version 2); default: this process's own, if it may be written.
    #[arg(long, value_name = "FOLDER", env = "LEASEHOLD_CGROUP")]
    cgroup: Option<PathBuf>,
    /// Say what is waited for.
    #[arg(short, long)]
    verbose: bool,
    #[command(flatten)]
    redis: RedisArgs,
    /// The command and its arguments; no shell is used.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Runs the command.
///
/// # Errors
/// What kept it from running.
pub(super) fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    super::workload::say_on_stderr(args.verbose);
    let (conflict, lost) = (args.conflict_exit_code, args.lost_exit_code);
    let names = args.locks.join(", ");
    // A connection is made inside the runtime.
    let ended = super::workload::block_on(async { anyhow::Ok(run::run(args.job()?).await) })??;
    let code = match ended {
        Ok(Ended::Command(code) | Ended::Signal(code)) => code,
        Ok(Ended::Lost) => lost,
        Err(error) => {
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            eprintln!("leasehold: {names}: {error}{cause}");
            code_of(&error, conflict)
        }
    };
    Ok(ExitCode::from(code))
}

fn code_of(error: &RunError, conflict: Option<u8>) -> u8 {
    match error {
        RunError::NotAcquired(AcquireError::Busy) => conflict.unwrap_or(BUSY),
        RunError::NotAcquired(AcquireError::TimedOut(_)) => conflict.unwrap_or(TIMED_OUT),
        RunError::NotAcquired(AcquireError::Unreachable(_)) => UNREACHABLE,
        _ => NOT_RUN,
    }
}

impl RunArgs {
    fn job(self) -> anyhow::Result<Job> {
        let namespace = self.namespace.namespace(&self.redis)?;
        let store = self.redis.store()?;
        let mut locks = Vec::new();
        for name in self.locks.iter().flat_map(|names| names.split(',')) {
            let lock = store.lock(LockKey::new(&namespace, name)?);
            if locks.iter().any(|other: &crate::keeper::Lock| other.key() == lock.key()) {
                bail!("--lock {name} is given twice");
            }
            locks.push(lock);
        }
        let wait = match self.wait.map(|wait| seconds("--wait", wait)).transpose()? {
            _ if self.no_wait => Wait::No,
            Some(Duration::ZERO) => Wait::No,
            Some(limit) => Wait::For(limit),
            None => Wait::Forever,
        };
        let kill_time = seconds("--kill-time", self.kill_time)?;
        if kill_time < KILL_TIME {
            bail!("--kill-time {}: what is killed needs {} s to be gone", self.kill_time, KILL_TIME.as_secs_f64());
        }
        let longest = self.lease.map(|lease| seconds("--lease", lease)).transpose()?;
        let options = Options {
            mode: self.share.mode(),
            priority: self.share.priority,
            wait,
            pod_uid: self.identity.pod_uid(),
            rules: Rules { longest, ..Rules::default() },
            ..Options::named(self.identity.identity())
        };
        Ok(Job {
            locks,
            options,
            grace: self.grace.map(|grace| seconds("--grace", grace)).transpose()?,
            kill_time,
            on_jeopardy: self.on_jeopardy,
            cgroup: self.cgroup,
            command: self.command,
        })
    }
}

pub(super) fn seconds(flag: &str, seconds: f64) -> anyhow::Result<Duration> {
    Duration::try_from_secs_f64(seconds).with_context(|| format!("{flag} {seconds}"))
}

fn signal_of(text: &str) -> Result<Signal, String> {
    const NAMES: [(&str, Signal); 8] = [
        ("HUP", Signal::HUP),
        ("INT", Signal::INT),
        ("QUIT", Signal::QUIT),
        ("TERM", Signal::TERM),
        ("USR1", Signal::USR1),
        ("USR2", Signal::USR2),
        ("CONT", Signal::CONT),
        ("WINCH", Signal::WINCH),
    ];
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let named = NAMES.iter().find(|(known, _)| *known == name).map(|(_, signal)| *signal);
    let numbered = || text.parse().ok().and_then(Signal::from_named_raw);
    let known = || NAMES.map(|(known, _)| known).join(", ");
    named.or_else(numbered).ok_or_else(|| format!("not a signal; one of {}, or a number", known()))
}

/// Between `run` and its command; not for users.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct GuardArgs {
    #[arg(long)]
    socket: String,
    #[arg(long)]
    cgroup: Option<PathBuf>,
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Watches over a command.
///
/// # Errors
/// If it can't be watched; then it was not started.
pub(super) fn guard(args: GuardArgs) -> anyhow::Result<ExitCode> {
    let GuardArgs { socket, cgroup, command } = args;
    super::workload::block_on(run::guard(Guard { socket, cgroup, command }))?.context("the guardian")
}

/// The last step before a command; not for users.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct EnterArgs {
    #[arg(long)]
    cgroup: Option<PathBuf>,
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Becomes the command.
pub(super) fn become_command(args: &EnterArgs) -> ExitCode {
    run::become_command(args.cgroup.as_deref(), &args.command)
}
