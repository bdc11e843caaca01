//! The process between the wrapper and the command: it ends everything in time, whatever becomes of the wrapper.

use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream as StdStream};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use rustix::process::{
    Pid, Signal, getpid, getppid, kill_process_group, set_child_subreaper, set_parent_process_death_signal, setsid,
};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::signal::unix::{SignalKind, signal};

use super::channel::{Incoming, Order, Report, tell};
use super::tree::{Leaf, Tree};
use super::{again, forwarded, reap};
use crate::clock::{boottime, sleep_until};

/// Exit codes of a command that isn't there or can't be started, as shells have them.
const NOT_FOUND: u8 = 127;
const NOT_STARTED: u8 = 126;

/// What a guardian is started with.
#[derive(Debug, Clone)]
pub struct Guard {
    /// The abstract socket on which the wrapper listens.
    pub socket: String,
    /// The control group of the command.
    pub cgroup: Option<PathBuf>,
    /// The command and its arguments.
    pub command: Vec<OsString>,
}

/// Is the guardian until nothing is left of the command.
///
/// # Errors
/// If the wrapper isn't there or the command can't be watched; then nothing was started.
pub async fn guard(guard: Guard) -> io::Result<ExitCode> {
    // A session of its own: what is sent to the wrapper's group or typed at its terminal comes through the wrapper alone.
    // Refused to a leader of a group, which has what is needed already.
    let _ = setsid();
    set_child_subreaper(Some(getpid()))?;
    // It outlives whatever is sent to it but SIGKILL: the handlers stay installed.
    let _ignored: Vec<_> =
        forwarded().map(|other| signal(SignalKind::from_raw(other.as_raw()))).collect::<io::Result<_>>()?;
    let children = signal(SignalKind::child())?;
    let stream = StdStream::connect_addr(&SocketAddr::from_abstract_name(&guard.socket)?)?;
    stream.set_nonblocking(true)?;
    let (orders, reports) = UnixStream::from_std(stream)?.into_split();
    let tree = Tree::new(guard.cgroup.clone().map(Leaf::at));
    let mut guardian = Guardian {
        tree,
        orders: Incoming::new(orders),
        reports,
        children,
        stop_at: Duration::MAX,
        kill_at: Duration::MAX,
        grace: Duration::ZERO,
        command: None,
        ended: false,
        stopping: false,
    };
    guardian.run(&guard).await;
    Ok(ExitCode::SUCCESS)
}

struct Guardian {
    tree: Tree,
    orders: Incoming<Order>,
    reports: OwnedWriteHalf,
    children: tokio::signal::unix::Signal,
    stop_at: Duration,
    kill_at: Duration,
    grace: Duration,
    /// The command, and the group of it.
    command: Option<Pid>,
    ended: bool,
    stopping: bool,
}

enum Heard {
    Order(Order),
    WrapperGone,
    Child,
    StopAt,
    KillAt,
}

impl Guardian {
    async fn run(&mut self, guard: &Guard) {
        loop {
            let heard = self.hear().await;
            match heard {
                Heard::Order(Order::Until { stop_at, kill_at }) => {
                    // Once it stops all, nothing makes that longer.
                    if !self.stopping {
                        (self.stop_at, self.kill_at) = (stop_at, kill_at);
                        self.grace = kill_at.saturating_sub(stop_at);
                    }
                    if self.command.is_none() && !self.ended && boottime() < self.stop_at {
                        self.start(guard).await;
                    }
                }
                Heard::Order(Order::Signal(signal)) => {
                    if let Some(group) = self.command.filter(|_| !self.ended) {
                        // Its leader may have ended by now.
                        let _ = kill_process_group(group, signal);
                    }
                }
                Heard::Order(Order::Stop) | Heard::WrapperGone => self.stop(),
                Heard::Child => {}
                Heard::StopAt => {
                    self.report(Report::Overdue).await;
                    self.stop();
                }
                Heard::KillAt => return self.kill().await,
            }
            if (self.command.is_some() || self.ended) && !self.reap().await {
                return self.report(Report::Gone).await;
            }
        }
    }

    async fn hear(&mut self) -> Heard {
        tokio::select! {
            biased;
            // First: what was ordered while this was stopped may be more time.
            order = self.orders.next() => order.map_or(Heard::WrapperGone, Heard::Order),
            () = sleep_until(self.kill_at) => Heard::KillAt,
            () = sleep_until(self.stop_at) => Heard::StopAt,
            _ = self.children.recv() => Heard::Child,
        }
    }

    async fn start(&mut self, guard: &Guard) {
        let mut enter = again("enter", guard.cgroup.as_deref());
        enter.process_group(0).arg("--").args(&guard.command);
        match enter.spawn() {
            Ok(child) => self.command = Some(Pid::from_child(&child)),
            Err(error) => {
                eprintln!("leasehold: the command can't be started: {error}");
                self.end(NOT_STARTED).await;
            }
        }
    }

    /// Asks all to end, and sets when they are killed: after the grace, and in time.
    fn stop(&mut self) {
        if !self.stopping {
            self.stopping = true;
            self.stop_at = Duration::MAX;
            self.kill_at = self.kill_at.min(boottime() + self.grace);
            self.tree.terminate();
        }
    }

    /// Kills until nothing is left.
    async fn kill(&mut self) {
        let (command, mut code) = (self.command, None);
        let see = |pid, ended| {
            if Some(pid) == command {
                code = Some(ended);
            }
        };
        self.tree.kill_all(&mut self.children, see).await;
        if let Some(code) = code {
            self.end(code).await;
        }
        self.report(Report::Gone).await;
    }

    /// `false`: nothing is left.
    async fn reap(&mut self) -> bool {
        let mut code = None;
        let left = reap(|pid, ended| {
            if Some(pid) == self.command {
                code = Some(ended);
            }
        });
        if let Some(code) = code {
            self.end(code).await;
            // What the command has left behind ends with it.
            if left {
                self.stop();
            }
        }
        left
    }

    async fn end(&mut self, code: u8) {
        self.ended = true;
        self.report(Report::Ended(code)).await;
    }

    async fn report(&mut self, report: Report) {
        // Where the wrapper is gone, nobody needs to know.
        let _ = tell(&mut self.reports, report).await;
    }
}

/// Becomes the command: only what could not be done returns.
pub fn become_command(cgroup: Option<&std::path::Path>, command: &[OsString]) -> ExitCode {
    let guardian = getppid();
    // Without it the guardian kills one by one.
    let _ = cgroup.map(Leaf::join);
    let prepared = set_parent_process_death_signal(Some(Signal::KILL)).map_err(io::Error::from).and_then(|()| {
        // The guardian may have gone before that.
        if getppid() == guardian { Ok(()) } else { Err(io::Error::from(io::ErrorKind::NotConnected)) }
    });
    let Some((program, arguments)) = command.split_first() else { return ExitCode::from(NOT_STARTED) };
    let error = match prepared {
        Ok(()) => Command::new(program).args(arguments).exec(),
        Err(error) => error,
    };
    eprintln!("leasehold: {}: {error}", program.display());
    ExitCode::from(if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_STARTED })
}
