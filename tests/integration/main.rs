//! Tests against real servers, in one binary so that they share them.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod admission;
mod controller;
mod crds;
mod demo;
mod faults;
mod layering;
mod protocol;
#[path = "../support/mod.rs"]
mod support;
mod support_works;
