//! The command line: what is parsed here is run elsewhere.

mod agent;
mod check;
mod connect;
pub mod controller;
pub mod crd;
mod endpoint;
#[cfg(debug_assertions)]
mod failpoints;
mod kubectl;
mod reference;
mod release_finalizers;
mod run;
mod workload;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The exit code of a command that has failed.
const FAILED: u8 = 1;

/// Kubernetes-native leases: Redis for speed, etcd for memory.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the controller.
    Controller(Box<controller::ControllerArgs>),
    Run(Box<run::RunArgs>),
    Agent(Box<agent::AgentArgs>),
    Probe(agent::ProbeArgs),
    /// Take and release a lock, to see that everything works.
    Check(check::CheckArgs),
    /// Before an uninstall: end the controller, and let everything be deleted without it.
    ReleaseFinalizers(release_finalizers::ReleaseFinalizersArgs),
    /// See and take locks by the API server alone; the same as `kubectl leasehold`.
    Kubectl(Box<kubectl::KubectlArgs>),
    /// Print the definitions of the kinds, for kubectl apply.
    Crd(crd::CrdArgs),
    #[command(hide = true)]
    Guard(run::GuardArgs),
    #[command(hide = true)]
    Enter(run::EnterArgs),
    /// List where a test may stop or kill the controller.
    #[cfg(debug_assertions)]
    Failpoints,
}

/// Parses the arguments of the process and runs what they ask for. How it ended is the exit code of the process.
pub fn run() -> ExitCode {
    let (ended, failed) = match kubectl::by_name() {
        Ok(Some(code)) => return code,
        Ok(None) => Cli::parse().command.run(),
        Err(error) => (Err(error), FAILED),
    };
    ended.unwrap_or_else(|error| {
        eprintln!("leasehold: {error:#}");
        ExitCode::from(failed)
    })
}

impl Command {
    /// How it ended, and the exit code of one that failed.
    fn run(self) -> (anyhow::Result<ExitCode>, u8) {
        let done = |ended: anyhow::Result<()>| (ended.map(|()| ExitCode::SUCCESS), FAILED);
        match self {
            Self::Controller(args) => done(controller::run(*args)),
            Self::Check(args) => done(check::run(args)),
            Self::ReleaseFinalizers(args) => done(release_finalizers::run(args)),
            Self::Crd(args) => done(crd::run(&args)),
            #[cfg(debug_assertions)]
            Self::Failpoints => done(failpoints::run()),
            Self::Kubectl(args) => (Ok(kubectl::run(*args)), FAILED),
            Self::Run(args) => (run::run(*args), run::NOT_RUN),
            Self::Agent(args) => (agent::run(*args), run::NOT_RUN),
            Self::Probe(args) => (agent::probe(&args), run::NOT_RUN),
            Self::Guard(args) => (run::guard(args), run::NOT_RUN),
            Self::Enter(args) => (Ok(run::become_command(&args)), run::NOT_RUN),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn no_two_flags_have_one_name() {
        Cli::command().debug_assert();
    }
}
