//! A command that runs under locks, and is stopped before they are lost.
//!
//! # Who does what
//! * The *wrapper* (this process) acquires, renews and releases, and forwards signals.
//! * The *guardian*, the same program started again, is the parent of the command. All that the command starts stays below
//!   it, whatever sessions and groups it makes, since the guardian is their subreaper. It stops them by its own clock, and
//!   also when the wrapper is gone.
//! * The *command* is started by one more step that joins the control group, if there is one, asks to be killed with
//!   the guardian, and becomes the command.
//!
//! # Sequence
//! 1. The locks are acquired, the guardian is started, and told until when: `stop at`, `kill at`. Only then it starts the
//!    command.
//! 2. Each renewal tells it anew. Without news it asks the command to end (SIGTERM) at `stop at`, and kills all that is left
//!    (SIGKILL) at `kill at`, which is [`Job::kill_time`] before the deadline.
//! 3. Once the command has ended, what it has left behind is stopped in the same way.
//! 4. Nothing is left: the guardian says so and ends; the wrapper releases the locks.
//!
//! A wrapper that is killed at any step: the guardian hears it, and stops everything at once; the locks end with their leases. A
//! guardian that is killed: its child dies with it, the rest becomes the wrapper's, which kills it. A wrapper that is stopped
//! (SIGSTOP): the guardian goes on by its clock. A guardian that is stopped, and has not killed in time: the wrapper kills it,
//! half of [`Job::kill_time`] before the deadline. Both killed in one moment: the command dies; what it had started apart from
//! itself is killed only by a control group's end, such as that of its container.

mod channel;
mod deadline_file;
mod guardian;
mod start;
mod tree;
mod wrapper;

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

pub use guardian::{Guard, become_command, guard};
use rustix::process::Signal;
use rustix_libc_wrappers::process::SignalExt as _;
pub use wrapper::run;

use crate::keeper::{AcquireError, Lock, Options};

/// [`Job::kill_time`], where nobody says more.
pub const KILL_TIME: Duration = Duration::from_millis(250);

/// What is run, and under what.
#[derive(Clone)]
pub struct Job {
    /// The locks, at least one. The token of the first is `LEASEHOLD_TOKEN`.
    pub locks: Vec<Lock>,
    /// How each is asked for. The time to stop is set from `grace`.
    pub options: Options,
    /// Between SIGTERM and SIGKILL; what the lease leaves, at most 5 s, where absent.
    pub grace: Option<Duration>,
    /// From SIGKILL until everything is reaped, inside the lease: what the kernel needs for it on a busy machine.
    pub kill_time: Duration,
    /// Sent to the command's group when a renewal fails, and again when one is answered.
    pub on_jeopardy: Option<Signal>,
    /// A control group (version 2) in which a leaf is made for the command; this process's own where absent.
    pub cgroup: Option<PathBuf>,
    /// The command and its arguments.
    pub command: Vec<OsString>,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The command ended while the locks were held: its exit code, 128 + n for signal n.
    Command(u8),
    /// This signal came before the command was started.
    Signal(u8),
    /// The locks were lost, and the command was stopped or had ended too late.
    Lost,
}

/// Why it was not run, or not to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// A lock was not had; the command was not started.
    #[error(transparent)]
    NotAcquired(#[from] AcquireError),
    /// The guardian could not be started; the command was not started.
    #[error("the command can't be guarded")]
    Guardian(#[source] std::io::Error),
    /// Signals can't be handled; the command was not started.
    #[error("signals can't be handled")]
    Signals(#[source] std::io::Error),
}

/// Between two looks at what is left.
const LOOK: Duration = Duration::from_millis(10);

/// This program once more, as a step on the way to the command.
fn again(step: &str, cgroup: Option<&Path>) -> Command {
    let mut again = Command::new("/proc/self/exe");
    again.arg0("leasehold").arg(step);
    again.args(cgroup.iter().flat_map(|folder| ["--cgroup".as_ref(), folder.as_os_str()]));
    again
}

/// All signals that a process can catch and that others send to it, with the real-time ones that the C library leaves to
/// programs; those that were ignored at the start are left alone.
fn forwarded() -> impl Iterator<Item = Signal> {
    const NAMED: [Signal; 23] = [
        Signal::HUP,
        Signal::INT,
        Signal::QUIT,
        Signal::TERM,
        Signal::USR1,
        Signal::USR2,
        Signal::ALARM,
        Signal::CONT,
        Signal::TSTP,
        Signal::TTIN,
        Signal::TTOU,
        Signal::WINCH,
        Signal::URG,
        Signal::IO,
        Signal::POWER,
        Signal::TRAP,
        Signal::ABORT,
        Signal::STKFLT,
        Signal::XCPU,
        Signal::XFSZ,
        Signal::VTALARM,
        Signal::PROF,
        Signal::SYS,
    ];
    let ignored = crate::shutdown::ignored();
    NAMED.into_iter().chain((0..).map_while(Signal::rt)).filter(move |signal| !ignored.contains(&signal.as_raw()))
}

/// Those that end a process that doesn't handle them.
fn ends(signal: Signal) -> bool {
    const HARMLESS: [Signal; 6] = [Signal::CONT, Signal::TSTP, Signal::TTIN, Signal::TTOU, Signal::WINCH, Signal::URG];
    !HARMLESS.contains(&signal)
}

/// Reaps what has ended, and calls `see` with each. `false`: there is no child left.
fn reap(mut see: impl FnMut(rustix::process::Pid, u8)) -> bool {
    use rustix::process::{WaitOptions, wait};
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) => {
                let signal = status.terminating_signal().map(|signal| 128 + signal);
                let code = status.exit_status().or(signal);
                if let Some(code) = code {
                    see(pid, u8::try_from(code).unwrap_or(u8::MAX));
                }
            }
            Ok(None) => return true,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}
