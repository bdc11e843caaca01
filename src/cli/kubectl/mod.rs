//! `kubectl leasehold`: the same binary, called `kubectl-leasehold` by a link, or `leasehold kubectl`.
//!
//! Everything is read from the API server, and holders and waiters from Redis where that is asked for. Each command is a
//! file: what it says is made by functions of objects, what it asks goes through [`cluster`]. Results go to standard output;
//! what happens meanwhile, and errors of one line, go to standard error.

mod acquire;
mod advice;
mod cluster;
mod completion;
mod doctor;
mod error;
mod force_release;
mod holders;
mod output;
mod record;
mod release;
mod status;
mod waiters;
mod which;

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use super::connect::{ConnectArgs, block_on};
use cluster::Cluster;
use completion::COMPLETER;

/// What links to the binary are called, for kubectl to find it.
const LINK: &str = "kubectl-leasehold";

/// See who holds and who waits, take locks and give them back, and find out what is wrong.
#[derive(Debug, Parser)]
#[command(name = LINK, bin_name = "kubectl leasehold", version)]
pub(super) struct Plugin {
    #[command(flatten)]
    pub(super) args: KubectlArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct KubectlArgs {
    #[command(flatten)]
    connect: ConnectArgs,
    /// Namespace; default: that of the kubeconfig's context.
    #[arg(short, long, value_name = "NAME", global = true)]
    namespace: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show a lock, or all locks of the namespace.
    Status(status::StatusArgs),
    /// Show who holds a lock, or all locks, with tokens.
    Holders(which::ShowArgs),
    /// Show who waits for a lock, or for all locks, in their order.
    Waiters(which::ShowArgs),
    /// Make a LockClaim, wait until it holds, and print its fencing token.
    Acquire(acquire::AcquireArgs),
    /// Delete a LockClaim, and wait until it holds nothing any more.
    Release(release::ReleaseArgs),
    /// Take a hold from whoever has it, alive or not.
    ForceRelease(force_release::ForceReleaseArgs),
    /// Find what is wrong, and say what to do.
    Doctor(doctor::DoctorArgs),
    /// Print the completion of a shell.
    Completion(completion::CompletionArgs),
}

/// How a command has ended, if not with an error. The exit codes are API: `docs/kubectl.md` lists them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Done,
    /// What was looked for is there, and it isn't good.
    Wrong,
    /// Not in time.
    Late,
    /// Ctrl-C or SIGTERM.
    Interrupted,
}

impl From<End> for ExitCode {
    fn from(end: End) -> Self {
        match end {
            End::Done => Self::SUCCESS,
            End::Wrong => Self::FAILURE,
            End::Late => Self::from(3),
            End::Interrupted => Self::from(130),
        }
    }
}

/// Runs what the name is for by which the binary was called, if that is one of the plugin's.
///
/// # Errors
/// Standard output can't be written.
pub(super) fn by_name() -> anyhow::Result<Option<ExitCode>> {
    let mut words = std::env::args_os().map(|word| word.to_string_lossy().into_owned());
    match words.next().as_deref().map(name) {
        Some(LINK) => Ok(Some(run(Plugin::parse().args))),
        Some(COMPLETER) => {
            completion::for_kubectl(&words.collect::<Vec<_>>())?;
            Ok(Some(ExitCode::SUCCESS))
        }
        _ => Ok(None),
    }
}

fn name(program: &str) -> &str {
    Path::new(program).file_stem().and_then(OsStr::to_str).unwrap_or_default()
}

/// Runs a command of the plugin, and says what went wrong in one line.
pub(super) fn run(args: KubectlArgs) -> ExitCode {
    match block_on(dispatch(args)) {
        Ok(end) => end.into(),
        Err(error) => {
            eprintln!("error: {}", error::one_line(&error));
            End::Wrong.into()
        }
    }
}

async fn dispatch(args: KubectlArgs) -> anyhow::Result<End> {
    let KubectlArgs { connect, namespace, command } = args;
    if let Command::Completion(args) = command {
        return completion::run(&args);
    }
    let cluster = Cluster::connect(connect, namespace).await?;
    match command {
        Command::Status(args) => status::run(&cluster, args).await,
        Command::Holders(args) => holders::run(&cluster, args).await,
        Command::Waiters(args) => waiters::run(&cluster, args).await,
        Command::Acquire(args) => acquire::run(&cluster, args).await,
        Command::Release(args) => release::run(&cluster, args).await,
        Command::ForceRelease(args) => force_release::run(&cluster, args).await,
        Command::Doctor(args) => doctor::run(&cluster, args).await,
        Command::Completion(args) => completion::run(&args),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_flags_fit_together() {
        Plugin::command().debug_assert();
    }

    #[test]
    fn links_are_known_by_their_name() {
        for (program, expected) in [
            ("/usr/local/bin/kubectl-leasehold", LINK),
            ("kubectl-leasehold", LINK),
            ("./kubectl_complete-leasehold", COMPLETER),
            ("/home/kubectl-leasehold/leasehold", "leasehold"),
        ] {
            assert_eq!(name(program), expected);
        }
    }

    #[test]
    fn flags_of_kubectl_stand_before_and_after_the_command() {
        for words in ["-n shop --context c status a", "status a -n shop --context=c"] {
            let words = std::iter::once(LINK).chain(words.split(' '));
            assert_eq!(Plugin::try_parse_from(words).unwrap().args.namespace.as_deref(), Some("shop"));
        }
    }
}
