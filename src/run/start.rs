//! How the guardian is started, and what the command finds in its environment.

use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener as StdListener};
use std::time::Duration;

use rustix::process::{Pid, getpid, set_child_subreaper};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use super::deadline_file::DeadlineFile;
use super::tree::Leaf;
use super::{Job, again};
use crate::keeper::{Hold, Holds, Lock};

/// Where the command finds its deadline.
const DEADLINE_FILE: &str = "LEASEHOLD_DEADLINE_FILE";
/// How long the guardian may take to call.
const GUARDIAN_CALLS: Duration = Duration::from_secs(10);

/// Starts the guardian, and waits for its call.
pub(super) async fn start_guardian(
    job: &Job,
    holds: &Holds,
    name: &str,
    file: Option<&DeadlineFile>,
    cgroup: Option<&Leaf>,
) -> io::Result<(Pid, UnixStream)> {
    // What a guardian that was killed leaves comes here.
    set_child_subreaper(Some(getpid()))?;
    let socket = format!("leasehold-{name}");
    let listener = StdListener::bind_addr(&SocketAddr::from_abstract_name(&socket)?)?;
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let mut guardian = again("guard", cgroup.map(Leaf::path));
    // That of a run around this one says nothing of these locks.
    guardian.env_remove(DEADLINE_FILE).envs(environment(job, holds, file));
    guardian.args(["--socket", &socket, "--"]).args(&job.command);
    let pid = Pid::from_child(&guardian.spawn()?);
    let called = timeout(GUARDIAN_CALLS, async {
        loop {
            let (stream, _) = listener.accept().await?;
            // Whoever else calls is not heard.
            if stream.peer_cred()?.pid() == Some(pid.as_raw_nonzero().get()) {
                return io::Result::Ok(stream);
            }
        }
    });
    Ok((pid, called.await??))
}

/// What the command finds in its environment.
fn environment(job: &Job, holds: &Holds, file: Option<&DeadlineFile>) -> Vec<(&'static str, OsString)> {
    let token = |lock: &Lock| holds.iter().find(|hold| hold.key() == lock.key()).map(Hold::token);
    let mut found = vec![("LEASEHOLD_HOLDER", job.options.identity.clone().into())];
    if let Some(first) = job.locks.first() {
        found.push(("LEASEHOLD_LOCK", first.key().name().into()));
        found.extend(token(first).map(|token| ("LEASEHOLD_TOKEN", token.to_string().into())));
    }
    let all = job.locks.iter().filter_map(|lock| Some(format!("{}={}", lock.key().name(), token(lock)?)));
    found.push(("LEASEHOLD_LOCKS", all.collect::<Vec<_>>().join(",").into()));
    found.extend(file.map(|file| (DEADLINE_FILE, file.path().into())));
    found
}
