//! The `leasehold` binary.

fn main() -> anyhow::Result<()> {
    leasehold::cli::run()
}
