//! The loop: ask, hold, lose or give back, and ask again.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::events::{Story, Teller};
use super::health::{self, Well};
use super::{AgentError, Ended, Mode, Place, Settings};
use crate::clock::{boottime, sleep_until};
use crate::keeper::{AcquireError, Hold, Options, Progress, Standing, Tenure, Wait, left, narrate};

/// After an error that time may mend.
const AGAIN: Duration = Duration::from_secs(1);
/// How long the server may take to tell an end, of the time that the app has to stop.
const TELL: Duration = Duration::from_millis(50);
/// How long a release, or leaving the queue, may take at the end.
const RELEASE: Duration = Duration::from_millis(900);

/// What the server knows of the loop.
#[derive(Clone)]
pub(super) struct Told {
    pub(super) story: watch::Receiver<Story>,
    /// Told whether the hold was given back.
    pub(super) release: mpsc::UnboundedSender<oneshot::Sender<bool>>,
}

pub(super) struct Contender {
    teller: Teller,
    releases: mpsc::UnboundedReceiver<oneshot::Sender<bool>>,
}

pub(super) fn new() -> (Contender, Told) {
    let (teller, story) = Teller::new();
    let (release, releases) = mpsc::unbounded_channel();
    (Contender { teller, releases }, Told { story, release })
}

/// Why a hold has ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Lost,
    Unwell,
    Released,
    Asked,
}

impl Contender {
    pub(super) async fn run(mut self, settings: &Settings) -> Result<Ended, AgentError> {
        let mut asked = Asked::install(settings.place).map_err(AgentError::Signals)?;
        let mut well = health::watch(settings.health.clone());
        loop {
            self.teller.waits();
            let (progress, queue) = watch::channel(Progress::Asking);
            let hold = tokio::select! {
                biased;
                () = asked.came() => {
                    let _ = timeout(RELEASE, left(queue)).await;
                    return Ok(Ended::Asked);
                }
                hold = acquire(settings, progress, &mut well) => hold?,
                never = narrate(queue.clone()) => match never {},
            };
            info!(token = %hold.token(), "acquired");
            let end = self.hold(hold, settings.mode, &mut well, &mut asked).await;
            match end {
                End::Asked => return Ok(Ended::Asked),
                End::Lost => warn!("the lock is lost"),
                End::Unwell => warn!("the app is unwell; the lock is given up"),
                End::Released => info!("the app has asked to give it back"),
            }
            if settings.mode == Mode::Gate {
                return Ok(Ended::Lost);
            }
        }
    }

    async fn hold(&mut self, mut hold: Hold, mode: Mode, well: &mut Well, asked: &mut Asked) -> End {
        self.answer_releases(None, false);
        let mut asked_by = None;
        let (mut end, told) = loop {
            let tenure = hold.tenure();
            self.teller.hear(Some(tenure));
            let end = tokio::select! {
                () = asked.gives_back() => End::Asked,
                () = well.becomes(false) => End::Unwell,
                Some(whom) = self.releases.recv() => {
                    asked_by = Some(whom);
                    End::Released
                }
                () = sleep_until(tenure.stop_at) => End::Lost,
                heard = hold.changed() => {
                    if heard.is_some_and(|tenure| tenure.standing != Standing::Lost) {
                        continue;
                    }
                    End::Lost
                }
            };
            break (end, tenure);
        };
        // Told first: nobody may believe in it while it is given back.
        self.teller.hear(None);
        if mode == Mode::Gate && end != End::Asked {
            self.answer_releases(asked_by, false);
            // For those that listen, before the end of this process cuts them off.
            sleep(TELL).await;
            // The app runs until it is stopped for the end of this process. Nobody may have the lock before: the rest of
            // the lease is left for that. Not dropped: that would release it.
            std::mem::forget(hold);
            return end;
        }
        if matches!(end, End::Lost | End::Unwell) {
            // Nobody may have the lock before the app has stopped: it has heard of a loss, and needs its time for that. One that is
            // unwell may hear nothing, and works as long as it was told that it may.
            let Tenure { deadline, stop_at, .. } = told;
            let stopped_by = if end == End::Unwell { deadline } else { boottime() + deadline.saturating_sub(stop_at) };
            tokio::select! {
                () = sleep_until(stopped_by) => {}
                () = asked.gives_back() => end = End::Asked,
            }
        }
        let released = matches!(timeout(RELEASE, hold.release()).await, Ok(Ok(_)));
        if !released && end != End::Lost {
            warn!("the store does not answer; the lease ends by itself");
        }
        self.answer_releases(asked_by, released);
        end
    }

    /// Answers who has asked for a release, and all that have asked since.
    fn answer_releases(&mut self, first: Option<oneshot::Sender<bool>>, released: bool) {
        let since = std::iter::from_fn(|| self.releases.try_recv().ok());
        for whom in first.into_iter().chain(since) {
            // It may wait no longer.
            whom.send(released).ok();
        }
    }
}

/// Asks until it is held; what time may mend is waited for.
async fn acquire(
    settings: &Settings,
    progress: watch::Sender<Progress>,
    well: &mut Well,
) -> Result<Hold, AcquireError> {
    loop {
        well.becomes(true).await;
        let options = Options { wait: Wait::Forever, progress: Some(progress.clone()), ..settings.options.clone() };
        let asked = tokio::select! {
            asked = settings.lock.acquire(options) => asked,
            () = well.becomes(false) => continue,
        };
        match asked {
            Ok(hold) => return Ok(hold),
            Err(error @ (AcquireError::TooShort(_) | AcquireError::LockIsElected | AcquireError::Identity)) => {
                return Err(error);
            }
            Err(error) => {
                warn!("not acquired, and tried again: {error}");
                sleep(AGAIN).await;
            }
        }
    }
}

/// The signals that ask it to end.
struct Asked {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    place: Place,
    have_come: bool,
}

impl Asked {
    fn install(place: Place) -> std::io::Result<Self> {
        let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        Ok(Self { terminate, interrupt, place, have_come: false })
    }

    /// One has come, now or before: nothing is asked for any more.
    async fn came(&mut self) {
        if self.have_come {
            return;
        }
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
        self.have_come = true;
    }

    /// One has come, and the app has ended.
    async fn gives_back(&mut self) {
        let before = self.have_come;
        self.came().await;
        if self.place == Place::Container {
            if !before {
                info!("asked to end; the app may still run, so that the lock is held until the kill");
            }
            std::future::pending::<()>().await;
        }
    }
}
