//! Processes that end with the one that started them.

use std::io;
use std::net::TcpListener;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::LIMIT;

/// Below the range that systems take for outgoing connections: a port stays free while its server is restarted.
const FIRST_PORT: u16 = 20_000;
const PORTS: u16 = 10_000;

/// A port that nobody listens on; never the same twice in one process.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id().wrapping_mul(997) % u32::from(PORTS)) as u16;
    let mut candidates = (0..PORTS).map(|_| {
        let step = NEXT.fetch_add(1, Ordering::Relaxed) % PORTS;
        FIRST_PORT + (start + step) % PORTS
    });
    candidates.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).expect("a free port")
}

/// A listener, which doesn't block, on a port of [`free_port`]. A process that is being started has, until it runs its
/// program, what this one had open: a listener may so live a moment longer than it was kept.
pub(crate) fn listen_on(port: u16) -> TcpListener {
    let asked = Instant::now();
    loop {
        match TcpListener::bind(("127.0.0.1", port)) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && asked.elapsed() < LIMIT => {
                std::thread::sleep(Duration::from_millis(1));
            }
            bound => {
                let listener = bound.expect("the port is ours");
                listener.set_nonblocking(true).expect("a listener");
                return listener;
            }
        }
    }
}

type Order = (Command, Sender<io::Result<Child>>);

/// The kernel ends a child when the *thread* that started it ends, so that one thread, which lives as long as the
/// process, starts them all.
fn spawn(command: Command) -> io::Result<Child> {
    static STARTER: OnceLock<Mutex<Sender<Order>>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (orders, inbox) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, answer) in inbox {
                answer.send(command.spawn()).ok();
            }
        });
        Mutex::new(orders)
    });
    let (answer, child) = mpsc::channel();
    let orders = starter.lock().unwrap_or_else(PoisonError::into_inner);
    orders.send((command, answer)).map_err(io::Error::other)?;
    child.recv().map_err(io::Error::other)?
}

/// A running process. Killed when dropped, and by the kernel when this process ends in whatever way.
pub(crate) struct Process {
    name: String,
    child: Child,
}

impl Process {
    /// Starts `program args`, with what `set_up` adds, without standard input.
    pub(crate) fn start(program: &str, args: &[String], set_up: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", program]).args(args).stdin(Stdio::null());
        set_up(&mut command);
        let child = spawn(command).unwrap_or_else(|error| panic!("{program} (by setpriv, of util-linux): {error}"));
        Self { name: program.to_owned(), child }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Memory in KiB, as `/proc/PID/status` names it: `VmRSS`, or `VmHWM` for its peak.
    pub(crate) fn memory(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        line.and_then(|kib| kib.trim().trim_end_matches(" kB").parse().ok()).expect("a number")
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a pid");
        kill_process(pid, signal).ok();
    }

    /// As Ctrl-C at a terminal.
    pub(crate) fn interrupt(&self) {
        self.signal(Signal::INT);
    }

    /// Stops it where it is.
    pub(crate) fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub(crate) fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Asks it to end.
    pub(crate) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Whether a signal has stopped it.
    pub(crate) fn is_stopped(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    }

    /// How it ended, if it has.
    pub(crate) fn exit_status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Ends it at once.
    pub(crate) fn kill(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }

    /// Asks it to end, and kills it when it hasn't after `limit`.
    pub(crate) fn stop(&mut self, limit: Duration) -> Option<ExitStatus> {
        self.terminate();
        let start = Instant::now();
        while start.elapsed() < limit {
            if let Some(status) = self.exit_status() {
                return Some(status);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        eprintln!("{} did not end within {limit:?}", self.name);
        self.kill();
        None
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
