//! Tests against real servers, in one binary so that they share them.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod admission;
mod controller;
mod crds;
mod demo;
mod docs;
mod examples;
mod failpoints;
mod faults;
mod fencing;
mod layering;
mod policies;
mod protocol;
#[path = "../support/mod.rs"]
mod support;
mod support_works;
