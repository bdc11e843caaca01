//! A history read once: who asked, held and believed, and when something was broken.

use std::collections::HashMap;

use super::super::event::{Entry, Event, Kind, Micros, Share, Why};

/// One acquisition.
pub(super) struct Acquisition<'a> {
    pub(super) lock: &'a str,
    pub(super) id: &'a str,
    pub(super) kind: Kind,
    pub(super) priority: i32,
    pub(super) asks: Option<&'a Entry>,
    pub(super) queued: Vec<&'a Entry>,
    pub(super) gave_up: Option<&'a Entry>,
    /// Its grant, and what has prolonged it.
    pub(super) holds: Vec<&'a Entry>,
    pub(super) renews: Vec<&'a Entry>,
    pub(super) stopped: Option<(&'a Entry, Why)>,
    /// It was served, and has missed it; from then on it is another acquisition.
    pub(super) missed: Option<&'a Entry>,
}

/// What its holder was told.
#[derive(Clone, Copy)]
pub(super) struct Grant<'a> {
    pub(super) entry: &'a Entry,
    pub(super) token: i64,
    pub(super) share: Share,
}

impl<'a> Acquisition<'a> {
    fn new(lock: &'a str, id: &'a str) -> Self {
        Self {
            lock,
            id,
            kind: Kind::Direct,
            priority: 0,
            asks: None,
            queued: Vec::new(),
            gave_up: None,
            holds: Vec::new(),
            renews: Vec::new(),
            stopped: None,
            missed: None,
        }
    }

    /// Whether it has come to nothing, or to something, by then.
    pub(super) fn is_over(&self, by: Micros) -> bool {
        let ends = [self.gave_up, self.missed, self.holds.first().copied(), self.stopped.map(|(entry, _)| entry)];
        ends.into_iter().flatten().any(|end| end.at <= by)
    }

    /// What it was told first.
    pub(super) fn grant(&self) -> Option<Grant<'a>> {
        let entry = self.holds.first()?;
        match entry.event {
            Event::Holds { token, share, .. } => Some(Grant { entry, token, share }),
            _ => None,
        }
    }

    /// When it may have been granted at the earliest.
    pub(super) fn asked(&self) -> Option<Micros> {
        self.asks.or(self.holds.first().copied()).map(|entry| entry.at)
    }

    /// From when to when its holder believes that it holds; nothing, if what it was told was over.
    pub(super) fn belief(&self) -> Option<(Micros, Micros)> {
        let start = self.holds.first()?.at;
        let until = |entry: &&Entry| match entry.event {
            Event::Holds { until, .. } => until.unwrap_or(Micros::MAX),
            _ => start,
        };
        let own = self.holds.iter().map(until).max()?;
        let end = self.stopped.map_or(own, |(entry, _)| own.min(entry.at));
        (start < end).then_some((start, end))
    }
}

/// A configuration of a lock.
pub(super) struct Configuration {
    /// In force from here on at the earliest …
    pub(super) sent: Micros,
    /// … and from here on for certain, until the next one.
    pub(super) known: Micros,
    pub(super) permits: u32,
    pub(super) lease: Micros,
}

/// A history, read.
pub(super) struct Story<'a> {
    pub(super) history: &'a [Entry],
    pub(super) acquisitions: Vec<Acquisition<'a>>,
    configurations: HashMap<&'a str, Vec<Configuration>>,
    faults: Vec<(Micros, Micros)>,
    /// Of a claim's id, one of its locks, and whether it has others.
    locks: HashMap<&'a str, (&'a str, bool)>,
}

impl<'a> Story<'a> {
    pub(super) fn of(history: &'a [Entry]) -> Self {
        let (configurations, locks) = (HashMap::new(), HashMap::new());
        let mut story = Self { history, acquisitions: Vec::new(), configurations, faults: Vec::new(), locks };
        let mut places = HashMap::new();
        for entry in history {
            story.read(entry, &mut places);
        }
        story.read_attempts(&places);
        story
    }

    /// A claim that goes on under another id has missed what its last one was offered.
    fn read_attempts(&mut self, places: &HashMap<(&'a str, &'a str), usize>) {
        let mut attempts: HashMap<(&str, &str), &str> = HashMap::new();
        for entry in self.history {
            let Event::Claimed { lock, claim, id, .. } = &entry.event else { continue };
            let before = attempts.insert((lock, claim), id).filter(|before| before != id);
            if let Some(place) = before.and_then(|before| places.get(&(lock.as_str(), before))) {
                self.acquisitions[*place].missed = Some(entry);
            }
        }
    }

    fn read(&mut self, entry: &'a Entry, places: &mut HashMap<(&'a str, &'a str), usize>) {
        match &entry.event {
            Event::Claimed { lock, id, .. } => {
                let (first, several) = self.locks.entry(id).or_insert((lock, false));
                *several |= first != lock;
            }
            Event::Configured { lock, permits, lease, sent } => {
                let configuration = Configuration { sent: *sent, known: entry.at, permits: *permits, lease: *lease };
                self.configurations.entry(lock).or_default().push(configuration);
            }
            Event::Fault { .. } => self.faults.push((entry.at, Micros::MAX)),
            Event::Healed => {
                for fault in self.faults.iter_mut().filter(|fault| fault.1 == Micros::MAX) {
                    fault.1 = entry.at;
                }
            }
            Event::Asks { lock, id, .. }
            | Event::Queued { lock, id }
            | Event::GaveUp { lock, id }
            | Event::Renews { lock, id }
            | Event::Holds { lock, id, .. }
            | Event::Stopped { lock, id, .. } => {
                let place = *places.entry((lock, id)).or_insert_with(|| {
                    self.acquisitions.push(Acquisition::new(lock, id));
                    self.acquisitions.len() - 1
                });
                self.acquisitions[place].read(entry);
            }
            _ => {}
        }
    }

    /// The acquisitions by their locks.
    pub(super) fn by_lock(&self) -> HashMap<&'a str, Vec<&Acquisition<'a>>> {
        let mut by_lock: HashMap<_, Vec<_>> = HashMap::new();
        for acquisition in &self.acquisitions {
            by_lock.entry(acquisition.lock).or_default().push(acquisition);
        }
        by_lock
    }

    /// Whether this id asks for more than one lock.
    pub(super) fn asks_for_several(&self, id: &str) -> bool {
        self.locks.get(id).is_some_and(|(_, several)| *several)
    }

    /// Whether it may have lost, when something was broken, what it held before it came to this lock: until it has that
    /// again its place here is reserved, and when its turn comes it is kept for one offer's time and then passed over.
    pub(super) fn may_be_reserved(&self, acquisition: &Acquisition<'_>, at: Micros) -> bool {
        self.asks_for_several(acquisition.id) && acquisition.asks.is_some_and(|asks| !self.steady(asks.at, at))
    }

    /// The configurations that may have been in force between two instants.
    pub(super) fn in_force(&self, lock: &str, from: Micros, to: Micros) -> impl Iterator<Item = &Configuration> {
        let all = self.configurations.get(lock).map(Vec::as_slice).unwrap_or_default();
        all.iter().enumerate().filter_map(move |(index, one)| {
            let replaced = all.get(index + 1).map_or(Micros::MAX, |next| next.known);
            (one.sent <= to && replaced >= from).then_some(one)
        })
    }

    /// Whether nothing was broken between two instants.
    pub(super) fn steady(&self, from: Micros, to: Micros) -> bool {
        self.faults.iter().all(|(start, end)| *end < from || *start > to)
    }
}

impl<'a> Acquisition<'a> {
    fn read(&mut self, entry: &'a Entry) {
        match &entry.event {
            Event::Asks { kind, priority, .. } => {
                self.asks.get_or_insert(entry);
                (self.kind, self.priority) = (*kind, *priority);
            }
            Event::Queued { .. } => self.queued.push(entry),
            Event::GaveUp { .. } => self.gave_up = Some(entry),
            Event::Renews { .. } => self.renews.push(entry),
            Event::Holds { kind, .. } => {
                self.kind = *kind;
                self.holds.push(entry);
            }
            Event::Stopped { why, .. } => {
                self.stopped.get_or_insert((entry, *why));
                self.missed = self.missed.or(self.holds.is_empty().then_some(entry));
            }
            _ => {}
        }
    }
}
