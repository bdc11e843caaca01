//! The process that holds the locks.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use futures::stream::{BoxStream, select_all};
use futures::{FutureExt, StreamExt};
use rustix::process::{Pid, Signal, kill_process};
use tokio::net::unix::OwnedWriteHalf;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

use super::channel::{self, Incoming, Order, Report};
use super::deadline_file::DeadlineFile;
use super::start::start_guardian;
use super::tree::{Leaf, Tree};
use super::{Ended, Job, LOOK, RunError, ends, forwarded, reap};
use crate::clock::sleep_until;
use crate::keeper::{Holds, Options, Progress, Rules, Standing, acquire_all, left, narrate};
use crate::lease::Released;
use crate::random;

/// The grace where none is asked for and the lease leaves so much.
const GRACE: Duration = Duration::from_secs(5);
/// How long an acquire that was given up may take to leave the queue.
const LEAVES: Duration = Duration::from_secs(2);
/// How long the store may take to answer a release.
const RELEASES: Duration = Duration::from_secs(3);
/// How long the guardian may take to read an order. One that doesn't (SIGSTOP) goes by what it knew before.
const READS: Duration = Duration::from_millis(50);

/// Acquires the locks, runs the command, and gives them back when nothing is left of it.
///
/// # Errors
/// [`RunError`]: the command was not started.
pub async fn run(job: Job) -> Result<Ended, RunError> {
    let mut signals = signals().map_err(RunError::Signals)?;
    // Orphans come here, where this is the first process of a container or the guardian is killed.
    let mut children = signal(SignalKind::child()).map_err(RunError::Signals)?;
    let rules = Rules {
        stop: job.grace.unwrap_or(GRACE) + job.kill_time,
        least_stop: job.grace.unwrap_or_default() + job.kill_time,
        ..job.options.rules
    };
    let (progress, heard) = watch::channel(Progress::Asking);
    let options = Options { rules, progress: Some(progress), ..job.options.clone() };
    let won = tokio::select! {
        // The signal first: who is asked to end starts nothing.
        biased;
        signal = ending(&mut signals) => Err(signal),
        holds = acquire_all(&job.locks, &options) => Ok(holds?),
        never = narrate(heard.clone()) => match never {},
        never = reap_orphans(&mut children) => match never {},
    };
    match won {
        Ok(holds) => match ending(&mut signals).now_or_never() {
            Some(signal) => {
                give_back(holds).await;
                Ok(ended_by(signal))
            }
            None => Running::start(&job, holds).await?.watch_over(&job, signals, children).await,
        },
        Err(signal) => {
            drop(options);
            let _ = timeout(LEAVES, left(heard)).await;
            Ok(ended_by(signal))
        }
    }
}

fn ended_by(signal: Signal) -> Ended {
    Ended::Signal(128 + u8::try_from(signal.as_raw()).unwrap_or_default())
}

type Signals = BoxStream<'static, Signal>;
type Children = tokio::signal::unix::Signal;

/// While nothing of its own runs.
async fn reap_orphans(children: &mut Children) -> Infallible {
    loop {
        children.recv().await;
        reap(|_, _| {});
    }
}

fn signals() -> io::Result<Signals> {
    let streams = forwarded().map(|kind| {
        let caught = signal(SignalKind::from_raw(kind.as_raw()))?;
        let stream = futures::stream::unfold(caught, async |mut caught| caught.recv().await.map(|()| ((), caught)));
        Ok(stream.map(move |()| kind).boxed())
    });
    Ok(select_all(streams.collect::<io::Result<Vec<_>>>()?).boxed())
}

/// The next signal that ends a process.
async fn ending(signals: &mut Signals) -> Signal {
    loop {
        match signals.next().await {
            Some(signal) if ends(signal) => return signal,
            Some(_) => {}
            None => std::future::pending().await,
        }
    }
}

/// The command, the guardian and the locks.
struct Running {
    holds: Holds,
    guardian: Pid,
    orders: OwnedWriteHalf,
    reports: Incoming<Report>,
    file: Option<DeadlineFile>,
    /// Removed at the end, if the guardian hasn't.
    cgroup: Option<Leaf>,
    standing: Standing,
    lost: bool,
    kill_time: Duration,
    /// When the guardian kills, as it was told last.
    kill_at: Duration,
    /// The code of the command.
    ended: Option<u8>,
    gone: bool,
}

enum Heard {
    Report(Option<Report>),
    Signal(Signal),
    Child,
    Holds(bool),
    StopAt,
    KillAt,
}

impl Running {
    /// Starts the guardian, and lets it start the command. An error: the locks are given back, the guardian ends.
    async fn start(job: &Job, holds: Holds) -> Result<Self, RunError> {
        let name = random::secret().map_err(crate::keeper::AcquireError::from)?;
        let file = DeadlineFile::make(&name[..16])
            .inspect_err(|error| warn!(%error, "no folder for LEASEHOLD_DEADLINE_FILE; it is left out"))
            .ok();
        let cgroup = Leaf::make(job.cgroup.as_deref(), &name[..16]);
        let guardian = start_guardian(job, &holds, &name, file.as_ref(), cgroup.as_ref());
        let (guardian, stream) = match guardian.await {
            Ok(guardian) => guardian,
            Err(error) => {
                give_back(holds).await;
                return Err(RunError::Guardian(error));
            }
        };
        let (reports, orders) = stream.into_split();
        let kill_at = holds.deadline().saturating_sub(job.kill_time);
        let mut running = Self {
            holds,
            guardian,
            orders,
            reports: Incoming::new(reports),
            file,
            cgroup,
            standing: Standing::Held,
            lost: false,
            kill_time: job.kill_time,
            kill_at,
            ended: None,
            gone: false,
        };
        if running.holds.standing() == Standing::Lost {
            running.lose().await;
        } else {
            running.note_deadline().await;
        }
        Ok(running)
    }

    /// Until nothing is left of the command.
    async fn watch_over(mut self, job: &Job, mut signals: Signals, mut children: Children) -> Result<Ended, RunError> {
        while !self.gone {
            let heard = self.hear(&mut signals, &mut children).await;
            match heard {
                Heard::Report(Some(Report::Ended(code))) => self.ended = Some(code),
                Heard::Report(Some(Report::Overdue)) => self.lose().await,
                Heard::Report(Some(Report::Gone)) => self.gone = true,
                Heard::Report(None) => self.kill_what_is_left(&mut children).await,
                Heard::Signal(signal) => self.order(Order::Signal(signal)).await,
                Heard::Child => drop(reap(|_, _| {})),
                Heard::Holds(true) => self.note_change(job).await,
                Heard::Holds(false) | Heard::StopAt => self.lose().await,
                Heard::KillAt => self.replace_guardian(),
            }
        }
        Ok(self.release().await)
    }

    async fn hear(&mut self, signals: &mut Signals, children: &mut Children) -> Heard {
        let (stop_at, lost) = (self.holds.stop_at(), self.lost);
        // It has had time to do so, and there is some left.
        let kill_at = self.kill_at.saturating_add(self.kill_time / 2);
        tokio::select! {
            biased;
            report = self.reports.next() => Heard::Report(report),
            more = self.holds.changed(), if !lost => Heard::Holds(more),
            () = sleep_until(kill_at), if lost => Heard::KillAt,
            () = sleep_until(stop_at), if !lost => Heard::StopAt,
            Some(signal) = signals.next() => Heard::Signal(signal),
            _ = children.recv() => Heard::Child,
        }
    }

    /// A renewal was answered, or not.
    async fn note_change(&mut self, job: &Job) {
        let standing = self.holds.standing();
        if standing == Standing::Lost {
            return self.lose().await;
        }
        self.note_deadline().await;
        if standing != self.standing {
            match standing {
                Standing::Jeopardy => warn!("the store does not answer; the lock is held until the deadline"),
                _ => info!("the store answers again"),
            }
            self.standing = standing;
            if let Some(signal) = job.on_jeopardy {
                self.order(Order::Signal(signal)).await;
            }
        }
    }

    /// Tells guardian and command until when.
    async fn note_deadline(&mut self) {
        let (deadline, stop_at) = (self.holds.deadline(), self.holds.stop_at());
        self.write_file(deadline, self.holds.standing());
        self.kill_at = deadline.saturating_sub(self.kill_time);
        self.order(Order::Until { stop_at, kill_at: self.kill_at }).await;
    }

    fn write_file(&self, deadline: Duration, standing: Standing) {
        if let Some(file) = &self.file
            && let Err(error) = file.write(deadline, standing)
        {
            warn!(%error, "LEASEHOLD_DEADLINE_FILE can't be written");
        }
    }

    async fn lose(&mut self) {
        if !self.lost {
            self.lost = true;
            error!("the lock is lost; the command is stopped");
            self.write_file(self.holds.deadline(), Standing::Lost);
            self.order(Order::Stop).await;
        }
    }

    async fn order(&mut self, order: Order) {
        // Where the guardian is gone, its reports have ended, too.
        let _ = timeout(READS, channel::tell(&mut self.orders, order)).await;
    }

    /// The guardian has not killed in time: it is stopped, or starved. Without it this process does.
    fn replace_guardian(&mut self) {
        self.kill_at = Duration::MAX;
        // It may have ended by now; either way its reports end.
        let _ = kill_process(self.guardian, Signal::KILL);
    }

    /// The guardian was killed: what it watched over is this process's now, and nobody stops it in time but this.
    async fn kill_what_is_left(&mut self, children: &mut Children) {
        error!("the guardian of the command is gone; all that is left is killed");
        Tree::new(self.cgroup.take()).kill_all(children, |_, _| {}).await;
        self.gone = true;
    }

    async fn release(self) -> Ended {
        let Self { holds, guardian, ended, lost, .. } = self;
        // Where all of this was stopped, nobody has said so.
        let overdue = holds.standing() == Standing::Lost;
        // A zombie otherwise, until this process ends.
        while reap(|_, _| {}) {
            if rustix::process::test_kill_process(guardian).is_err() {
                break;
            }
            sleep(LOOK).await;
        }
        let was_held = give_back(holds).await;
        // The store knows it, whatever this machine's clock says.
        if !lost && (overdue || !was_held) {
            error!("the lease had ended before the command ended");
            return Ended::Lost;
        }
        match ended {
            Some(code) if !lost => Ended::Command(code),
            _ if lost => Ended::Lost,
            // Killed with its guardian.
            _ => Ended::Command(128 + 9),
        }
    }
}

/// `false`: they, or one of them, had been lost before.
async fn give_back(holds: Holds) -> bool {
    match timeout(RELEASES, holds.release()).await {
        // Of an emptied store nothing is known, and nobody else can have been granted anything before the deadline.
        Ok(Ok(released)) => released.iter().all(|how| matches!(how, Released::Released | Released::Unprovisioned)),
        Ok(Err(error)) => {
            warn!(%error, "not released");
            true
        }
        Err(_) => {
            warn!("the store does not answer; the lease ends by itself");
            true
        }
    }
}
