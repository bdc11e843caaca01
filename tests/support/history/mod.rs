//! Histories: what happened in a run, recorded by those who took part, and judged afterwards.

#![allow(unused_imports, reason = "each target uses its part")]

mod check;
mod event;
mod recorder;

pub(crate) use check::{Invariant, Violation, check, lost_updates};
pub(crate) use event::{Entry, Event, Kind, Micros, Remembered, Share, Shown, Stage, Version, Why};
pub(crate) use recorder::{Recorder, boottime, from_wall_clock, public_id, read, save};
