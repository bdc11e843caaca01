//! Real servers for tests, the demo and the benchmarks: started on free ports, stopped with whoever started them,
//! also when that is killed.

#![allow(dead_code, reason = "each target uses its part")]

mod api_proxy;
mod certificates;
mod control_plane;
mod controller;
pub(crate) mod history;
mod http;
mod namespace;
mod pods;
mod process;
mod proxy;
mod redis_server;
mod scratch;
mod wait;

#[allow(unused_imports, reason = "each target uses its part")]
pub(crate) use {
    api_proxy::ApiProxy,
    certificates::Certificates,
    control_plane::{AuditEntry, CONTROLLER_USER, ControlPlane},
    controller::{Controller, ControllerOptions},
    http::ask,
    namespace::TestNamespace,
    pods::{PodActor, containers_running, containers_terminated, containers_waiting, serving},
    process::{Process, free_port, listen_on},
    proxy::{Passed, Proxy},
    redis_server::RedisServer,
    scratch::Scratch,
    wait::{LIMIT, eventually, panic_text, wait_for},
};
