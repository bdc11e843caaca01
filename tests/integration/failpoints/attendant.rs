//! Keeps a controller running while a tour goes on, and strikes it once.

use std::cell::{Cell, RefCell};
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use futures::FutureExt;

use super::tours::{STALL, Tour};
use crate::controller::fixture::Site;
use crate::support::{Controller, ControllerOptions};

/// What a whole tour may take.
const TOUR_LIMIT: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(10);
const SIGKILL: i32 = 9;

/// Looks after one controller.
pub(super) struct Attendant {
    controller: RefCell<Controller>,
    place: String,
    lives: Cell<u32>,
    struck: Cell<bool>,
    asked_to_end: Cell<bool>,
}

impl Attendant {
    /// Kills it at a place, on the way that leads there.
    pub(super) fn kills(options: ControllerOptions, place: &str) -> Self {
        Self {
            controller: RefCell::new(Controller::not_started(options)),
            lives: Cell::new(0),
            place: place.to_owned(),
            struck: Cell::new(false),
            asked_to_end: Cell::new(false),
        }
    }

    /// How often the controller was started.
    pub(super) fn lives(&self) -> u32 {
        self.lives.get()
    }

    /// Asks the controller to end; it is started again.
    pub(super) fn ask_to_end(&self) {
        self.asked_to_end.set(true);
        self.controller.borrow_mut().process().terminate();
    }

    /// Goes on the tour, with a controller that is started again whenever it has died.
    pub(super) async fn guide(&self, tour: Tour, site: &mut Site) -> Result<(), String> {
        self.begin_life();
        let walk = std::panic::AssertUnwindSafe(tour.walk(site, self)).catch_unwind();
        let outcome = tokio::select! {
            outcome = tokio::time::timeout(TOUR_LIMIT, walk) => outcome,
            why = self.attend() => return Err(format!("{why}\n{}", self.last_words())),
        };
        match outcome {
            Err(_) => Err(format!("the tour took longer than {TOUR_LIMIT:?}\n{}", self.last_words())),
            Ok(Err(panic)) => Err(format!("{}\n{}", words(&*panic), self.last_words())),
            Ok(Ok(())) if !self.struck.get() => Err(format!("the tour never got there\n{}", self.last_words())),
            Ok(Ok(())) => Ok(()),
        }
    }

    fn begin_life(&self) {
        let plan = (!self.struck.get()).then(|| {
            let detour = Tour::detour(&self.place).map(|detour| format!("{detour}, ")).unwrap_or_default();
            format!("{detour}kill {}", self.place)
        });
        self.lives.set(self.lives.get() + 1);
        self.controller.borrow_mut().spawn_with(plan);
    }

    /// Starts it again whenever it has died, and returns why it died if nobody has killed it.
    async fn attend(&self) -> String {
        loop {
            tokio::time::sleep(POLL).await;
            let (ended, stopped) = {
                let mut controller = self.controller.borrow_mut();
                (controller.process().exit_status(), controller.process().is_stopped())
            };
            if stopped {
                tokio::time::sleep(STALL).await;
                self.controller.borrow_mut().process().resume();
            }
            let Some(status) = ended else { continue };
            match status.signal() {
                Some(SIGKILL) => self.struck.set(true),
                _ if status.success() && self.asked_to_end.take() => {}
                _ => return format!("the controller has ended: {status}"),
            }
            self.begin_life();
        }
    }

    /// The end of what the controller has logged.
    fn last_words(&self) -> String {
        let logs = self.controller.borrow().logs();
        let name = self.place.replace(' ', "-");
        let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("failpoint-{name}.log"));
        std::fs::write(&file, logs).ok();
        format!("   its log: {}", file.display())
    }
}

fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_else(|| "a panic".into())
}
