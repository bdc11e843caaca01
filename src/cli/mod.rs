//! The command line: what is parsed here is run elsewhere.

pub mod controller;
pub mod crd;
#[cfg(debug_assertions)]
mod failpoints;

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
        Command::Crd(args) => crd::run(&args),
        #[cfg(debug_assertions)]
        Command::Failpoints => failpoints::run(),
    }
}
