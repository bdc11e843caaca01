//! Tests against real servers, in one binary so that they share them.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

mod admission;
mod agent;
mod controller;
mod crds;
mod demo;
mod docs;
mod examples;
mod failpoints;
mod faults;
mod fencing;
mod keeper;
mod languages;
mod layering;
mod plugin;
mod policies;
mod protocol;
mod run;
#[path = "../support/mod.rs"]
mod support;
mod support_works;
mod workloads;
