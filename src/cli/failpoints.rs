//! `leasehold failpoints`: where a test may stop or kill the controller.

use std::io::Write;

use crate::failpoint::Failpoint;

/// Prints a line for each: its name, and what is written there.
pub(super) fn run() -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    for point in Failpoint::ALL {
        writeln!(out, "{:<22} {}", point.name(), point.what())?;
    }
    Ok(())
}
