//! Keeps a controller running while a tour goes on, and strikes it once.

use std::cell::{Cell, RefCell};
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use futures::FutureExt;
use tokio::sync::Mutex;

use super::tours::{SHORT_STALL, STALL, Tour};
use super::witness;
use crate::controller::fixture::Site;
use crate::support::{Controller, ControllerOptions, LIMIT, eventually, panic_text, wait_for};

/// What a whole tour may take.
const TOUR_LIMIT: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(10);
const SIGKILL: i32 = 9;

/// How a controller is struck.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Blow {
    /// Killed; it is started again.
    Kill,
    /// Stopped, overtaken by another one, and then continued.
    Overtake,
}

/// Looks after one controller, and another one that overtakes it.
pub(super) struct Attendant {
    first: RefCell<Controller>,
    second: Mutex<Controller>,
    blow: Blow,
    elects: bool,
    place: String,
    lives: Cell<u32>,
    struck: Cell<bool>,
    overtaking: Cell<bool>,
    asked_to_end: Cell<bool>,
}

impl Attendant {
    /// Strikes it at a place.
    pub(super) fn new(options: ControllerOptions, blow: Blow, place: &str) -> Self {
        let named = |name: &str| ControllerOptions { instance: Some(name.to_owned()), ..options.clone() };
        Self {
            first: RefCell::new(Controller::not_started(named("first"))),
            second: Mutex::new(Controller::not_started(named("second"))),
            blow,
            elects: options.election.is_some(),
            place: place.to_owned(),
            lives: Cell::new(0),
            struck: Cell::new(false),
            overtaking: Cell::new(false),
            asked_to_end: Cell::new(false),
        }
    }

    /// How often a controller was started.
    pub(super) fn lives(&self) -> u32 {
        self.lives.get()
    }

    /// Asks the controller to end; another one follows.
    pub(super) fn ask_to_end(&self) {
        self.asked_to_end.set(true);
        self.first.borrow_mut().process().terminate();
    }

    /// Waits while a controller is being overtaken.
    pub(super) async fn calm(&self) {
        let calm = async || {
            let stopped = self.blow == Blow::Overtake && self.first.borrow_mut().process().is_stopped();
            (!stopped && self.overtaking.get() == self.struck.get()).then_some(())
        };
        wait_for("nobody is being overtaken", TOUR_LIMIT, calm).await;
    }

    /// Goes on the tour, whatever becomes of the controller.
    pub(super) async fn guide(&self, tour: Tour, site: &mut Site) -> Result<(), String> {
        let watch = witness::never_two(site.test.api(), site.test.api());
        let attend = async {
            match self.blow {
                Blow::Kill => self.follow(tour).await,
                Blow::Overtake => self.overtake(tour).await,
            }
        };
        let walk = async {
            tour.walk(site, self).await;
            // What happens at the very end is seen a moment later.
            eventually(Duration::from_secs(5), async || self.struck.get().then_some(())).await;
            self.calm().await;
        };
        let walk = std::panic::AssertUnwindSafe(walk).catch_unwind();
        let outcome = tokio::select! {
            outcome = tokio::time::timeout(TOUR_LIMIT, walk) => match outcome {
                Err(_) => Err(format!("the tour took longer than {TOUR_LIMIT:?}")),
                Ok(Err(panic)) => Err(panic_text(&*panic)),
                Ok(Ok(())) if !self.struck.get() => Err("the tour never got there".to_owned()),
                Ok(Ok(())) => Ok(()),
            },
            why = attend => Err(why),
            why = watch => Err(why),
        };
        outcome.map_err(|why| format!("{why}\n   its log: {}", self.save_logs()))
    }

    fn begin_life(&self, tour: Tour) {
        let plan = (!self.struck.get()).then(|| {
            let action = if self.blow == Blow::Kill { "kill" } else { "stop" };
            let detour = tour.detour(&self.place).map(|detour| format!("{detour}, ")).unwrap_or_default();
            format!("{detour}{action} {}", self.place)
        });
        self.lives.set(self.lives.get() + 1);
        self.first.borrow_mut().spawn_with(plan);
    }

    /// Starts it again whenever it has died, and returns why it died if nobody has killed it.
    async fn follow(&self, tour: Tour) -> String {
        self.begin_life(tour);
        loop {
            tokio::time::sleep(POLL).await;
            if self.first.borrow_mut().process().is_stopped() {
                self.stall_and_resume(SHORT_STALL).await;
            }
            let Some(status) = self.first.borrow_mut().process().exit_status() else { continue };
            match status.signal() {
                Some(SIGKILL) => {
                    self.overtaking.set(true);
                    self.struck.set(true);
                }
                _ if status.success() && self.asked_to_end.take() => {}
                _ => return format!("the controller has ended: {status}"),
            }
            self.begin_life(tour);
        }
    }

    async fn stall_and_resume(&self, stall: Duration) {
        tokio::time::sleep(stall).await;
        self.first.borrow_mut().process().resume();
    }

    /// Lets another controller take over while the first is stopped, and then the first go on. One of them must end:
    /// the one that is told that another reigns.
    async fn overtake(&self, tour: Tour) -> String {
        self.begin_life(tour);
        if tour.detour(&self.place).is_some() {
            self.is_stopped().await;
            self.stall_and_resume(SHORT_STALL).await;
        }
        self.is_stopped().await;
        self.overtaking.set(true);
        let mut second = self.second.lock().await;
        second.spawn_with(None);
        self.lives.set(self.lives.get() + 1);
        if self.elects {
            let leads = "\nleader_election_master_status 1\n";
            let ask = async || second.get("/metrics").await.filter(|(_, text)| text.contains(leads)).map(drop);
            wait_for("the second leads", LIMIT, ask).await;
        }
        self.stall_and_resume(STALL).await;
        let (resumed, mut follows) = (Instant::now(), self.elects);
        loop {
            tokio::time::sleep(POLL).await;
            let ended = (self.first.borrow_mut().process().exit_status(), second.process().exit_status());
            match ended {
                // It still took its reign, which ends the other, and then saw that it leads no more.
                (Some(_), Some(_)) if std::mem::take(&mut follows) => {
                    second.spawn_with(None);
                    self.lives.set(self.lives.get() + 1);
                }
                (Some(first), Some(second)) => return format!("both have ended: {first}, {second}"),
                (Some(status), None) | (None, Some(status)) if status.success() && !self.asked_to_end.get() => {
                    return format!("one has ended: {status}");
                }
                (None, None) if tour.ends_loser() && resumed.elapsed() > LIMIT => {
                    return "nobody was told that another one reigns".to_owned();
                }
                (None, None) if tour.ends_loser() => {}
                _ => self.struck.set(true),
            }
        }
    }

    async fn is_stopped(&self) {
        let stopped = async || self.first.borrow_mut().process().is_stopped().then_some(());
        wait_for(&format!("the controller stops {}", self.place), TOUR_LIMIT, stopped).await;
    }

    /// Where what the controllers have logged can be read.
    fn save_logs(&self) -> String {
        let mut logs = self.first.borrow().logs();
        if let Ok(second) = self.second.try_lock() {
            logs.push_str("--- the second ---\n");
            logs.push_str(&second.logs());
        }
        let name = format!("failpoint-{:?}-{}.log", self.blow, self.place.replace(' ', "-"));
        let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        std::fs::write(&file, logs).ok();
        file.display().to_string()
    }
}
