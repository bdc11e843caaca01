//! The command line: what is parsed here is run elsewhere.

mod check;
mod connect;
pub mod controller;
pub mod crd;
#[cfg(debug_assertions)]
mod failpoints;
mod reference;
mod release_finalizers;

use clap::{Parser, Subcommand};

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
    /// Take and release a lock, to see that everything works.
    Check(check::CheckArgs),
    /// Before an uninstall: end the controller, and let everything be deleted without it.
    ReleaseFinalizers(release_finalizers::ReleaseFinalizersArgs),
    /// Print the definitions of the kinds, for kubectl apply.
    Crd(crd::CrdArgs),
    /// List where a test may stop or kill the controller.
    #[cfg(debug_assertions)]
    Failpoints,
}

/// Parses the arguments of the process and runs what they ask for.
///
/// # Errors
/// Whatever the command could not do.
pub fn run() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Controller(args) => controller::run(*args),
        Command::Check(args) => check::run(args),
        Command::ReleaseFinalizers(args) => release_finalizers::run(args),
        Command::Crd(args) => crd::run(&args),
        #[cfg(debug_assertions)]
        Command::Failpoints => failpoints::run(),
    }
}
