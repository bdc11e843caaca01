//! The documentation tells the truth: its links lead somewhere, its reasons are those of the code, its manifests are
//! accepted, and its commands work.

mod commands;
mod health;
mod library;
mod links;
mod manifests;
mod page;
mod reasons;
