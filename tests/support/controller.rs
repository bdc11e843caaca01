//! Our controller, as a process of the real binary.

use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use super::{ControlPlane, LIMIT, Process, Scratch, ask, eventually, free_port};

/// What a controller is started with.
#[derive(Debug, Clone)]
pub(crate) struct ControllerOptions {
    pub(crate) binary: PathBuf,
    pub(crate) kubeconfig: PathBuf,
    pub(crate) namespace: String,
    /// What it serves; none: all.
    pub(crate) namespaces: Vec<String>,
    pub(crate) controller_name: Option<String>,
    pub(crate) redis_address: Option<String>,
    pub(crate) password_secret: Option<String>,
    /// Whether it makes that Secret.
    pub(crate) makes_password: bool,
    pub(crate) key_prefix: Option<String>,
    pub(crate) store_name: Option<String>,
    pub(crate) instance: Option<String>,
    /// Seconds that an old password of a namespace works.
    pub(crate) password_overlap: Option<u32>,
    /// Lease, renew deadline and retry period of an election among replicas, in seconds; `None`: it is alone.
    pub(crate) election: Option<(u16, u16, f64)>,
    /// Where it is stopped or killed: see `leasehold::failpoint`.
    pub(crate) failpoint: Option<String>,
}

impl ControllerOptions {
    /// As the controller's user; `binary` is the leasehold binary.
    pub(crate) fn new(binary: impl Into<PathBuf>, plane: &ControlPlane) -> Self {
        Self {
            binary: binary.into(),
            kubeconfig: plane.kubeconfig("controller"),
            namespace: "leasehold-system".into(),
            namespaces: Vec::new(),
            controller_name: None,
            redis_address: None,
            password_secret: None,
            makes_password: false,
            key_prefix: None,
            store_name: None,
            instance: None,
            password_overlap: None,
            election: None,
            failpoint: None,
        }
    }

    fn args(&self, admin_port: u16) -> Vec<String> {
        let Self { binary: _, kubeconfig, namespace, controller_name, redis_address, .. } = self;
        let mut args = vec!["controller".to_owned(), format!("--admin-address=127.0.0.1:{admin_port}")];
        args.push(format!("--kubeconfig={}", kubeconfig.display()));
        args.push(format!("--namespace={namespace}"));
        args.extend(self.namespaces.iter().map(|namespace| format!("--namespaces={namespace}")));
        let flags = [
            ("controller-name", controller_name),
            ("redis-address", redis_address),
            ("redis-password-secret", &self.password_secret),
            ("key-prefix", &self.key_prefix),
            ("store-name", &self.store_name),
            ("instance", &self.instance),
        ];
        args.extend(self.password_overlap.map(|seconds| format!("--password-overlap={seconds}")));
        args.extend(self.makes_password.then(|| "--redis-make-password".to_owned()));
        match self.election {
            None => args.push("--leader-elect=false".to_owned()),
            Some((lease, deadline, retry)) => args.extend([
                format!("--leader-elect-lease-duration={lease}"),
                format!("--leader-elect-renew-deadline={deadline}"),
                format!("--leader-elect-retry-period={retry}"),
            ]),
        }
        args.extend(flags.iter().filter_map(|(flag, value)| value.as_ref().map(|value| format!("--{flag}={value}"))));
        args
    }
}

/// A running controller.
pub(crate) struct Controller {
    options: ControllerOptions,
    admin_port: u16,
    process: Option<Process>,
    scratch: Scratch,
}

impl Controller {
    /// Starts one and waits until it says that it is ready.
    pub(crate) async fn start(options: ControllerOptions) -> Self {
        let mut controller = Self::not_started(options);
        controller.restart().await;
        controller
    }

    /// One to be started later.
    pub(crate) fn not_started(options: ControllerOptions) -> Self {
        Self { options, admin_port: free_port(), process: None, scratch: Scratch::new("controller") }
    }

    /// Starts it (again) and waits until it says that it is ready.
    pub(crate) async fn restart(&mut self) {
        self.spawn();
        let ready = eventually(LIMIT, async || self.get("/readyz").await.filter(|(code, _)| *code == 200)).await;
        assert!(ready.is_some(), "the controller is not ready:\n{}", self.logs());
    }

    /// Starts it (again), with a failpoint or without.
    pub(crate) fn spawn_with(&mut self, failpoint: Option<String>) {
        self.options.failpoint = failpoint;
        self.spawn();
    }

    fn spawn(&mut self) {
        self.process = None;
        let (log, lifeline) = (self.scratch.append("log"), self.scratch.lifeline());
        let binary = self.options.binary.display().to_string();
        self.process = Some(Process::start(&binary, &self.options.args(self.admin_port), |command| {
            command.env("RUST_LOG", "info,leasehold=debug").env("RUST_BACKTRACE", "0").stdin(lifeline).stderr(log);
            command.envs(self.options.failpoint.iter().map(|plan| ("LEASEHOLD_FAILPOINT", plan)));
        }));
    }

    pub(crate) fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("it runs")
    }

    /// Ends it at once.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    /// Asks it to end, and waits.
    pub(crate) fn stop(&mut self) -> Option<ExitStatus> {
        self.process.take().and_then(|mut process| process.stop(Duration::from_secs(10)))
    }

    /// Everything that it has logged.
    pub(crate) fn logs(&self) -> String {
        std::fs::read_to_string(self.scratch.path().join("log")).unwrap_or_default()
    }

    /// Code and body of what it serves; `None`: no answer.
    pub(crate) async fn get(&self, path: &str) -> Option<(u16, String)> {
        ask("GET", &format!("127.0.0.1:{}", self.admin_port), path).await
    }
}
