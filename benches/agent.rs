//! What an agent needs of memory: the real binary, a Redis with TLS, a lock with leases of one second, and an app that asks
//! each second, until so many renewals are answered.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use leasehold::agent::probe;

use crate::ours::Ours;
use crate::report::verdict;
use crate::server::Server;
use crate::support::{Certificates, LIMIT, Process, free_port, wait_for};

const LEASE: Duration = Duration::from_secs(1);
/// Of memory, in KiB: 10 MiB.
const TARGET: u64 = 10 * 1024;

/// Counts so many renewals, and prints. The binary is that of this build, or the one that LEASEHOLD_BINARY names.
pub(crate) async fn run(renewals: u32) -> Result<()> {
    let certificates = Certificates::new();
    let (redis, port) = certificates.server(&["--tls-auth-clients", "no"]).await;
    let server = Server::of(&redis).await?;
    let ours = Ours::set_up(&server, LEASE).await?;
    let (program, address) = (program(), SocketAddr::from(([127, 0, 0, 1], free_port())));
    let agent = start(&program, &ours, port, &certificates, address);
    let holds = async || probe(address, "/started").await.then_some(());
    wait_for("the agent holds", LIMIT, holds).await;
    println!("{program}, TLS to Redis, {renewals} renewals");
    println!("  {:>10}{:>14}{:>14}", "renewals", "VmRSS, KiB", "RssAnon, KiB");
    let (before, end) = (server.calls().await?, Instant::now() + LIMIT + LEASE * renewals);
    let mut next = 0;
    loop {
        ensure!(probe(address, "/v1/hold").await, "the agent does not answer");
        let done = server.calls().await? - before;
        if done >= next || done >= renewals {
            println!("  {done:>10}{:>14}{:>14}", agent.memory("VmRSS"), agent.memory("RssAnon"));
            next += (renewals / 6).max(1);
        }
        if done >= renewals {
            break;
        }
        ensure!(Instant::now() < end, "only {done} renewals");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let (rss, peak) = (agent.memory("VmRSS"), agent.memory("VmHWM"));
    println!("  VmRSS {rss} KiB, at its peak {peak}; target {TARGET}, {}", verdict(rss <= TARGET));
    Ok(())
}

fn program() -> String {
    std::env::var("LEASEHOLD_BINARY").unwrap_or_else(|_| env!("CARGO_BIN_EXE_leasehold").to_owned())
}

fn start(program: &str, ours: &Ours, port: u16, certificates: &Certificates, address: SocketAddr) -> Process {
    let key = ours.key(0);
    let flags = [
        format!("--namespace={}", key.namespace()),
        format!("--lock={}", key.name()),
        format!("--redis-url=rediss://localhost:{port}"),
        format!("--redis-ca-file={}", certificates.file("ca.crt").display()),
        format!("--listen={address}"),
        "--grace=0".to_owned(),
    ];
    Process::start(program, &[&["agent".to_owned()][..], &flags].concat(), |_| {})
}
