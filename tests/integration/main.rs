//! Tests against real servers, in one binary so that they share them.

mod admission;
mod controller;
mod crds;
mod layering;
mod protocol;
#[path = "../support/mod.rs"]
mod support;
mod support_works;
