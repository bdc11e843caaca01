//! etcd, kube-apiserver and kube-controller-manager, real, on free ports.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Instant;

use jiff::Timestamp;
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde::Deserialize;

use super::{LIMIT, Process, Scratch, eventually, free_port};

/// The user as which the controller writes, so that its writes can be counted.
pub(crate) const CONTROLLER_USER: &str = "system:serviceaccount:leasehold-system:leasehold";
const USERS: [(&str, &str); 2] = [("admin", "admin"), ("controller", CONTROLLER_USER)];
const CONTROLLERS: &str = "namespace-controller,garbage-collector-controller,serviceaccount-controller,\
    job-controller,cronjob-controller,deployment-controller,replicaset-controller,statefulset-controller,\
    daemonset-controller,disruption-controller,resourcequota-controller";
/// In seconds, of one call.
const KUBECTL_LIMIT: &str = "120";
const AUDIT_POLICY: &str = r#"{"apiVersion": "audit.k8s.io/v1", "kind": "Policy",
 "omitStages": ["RequestReceived", "ResponseStarted"],
 "rules": [{"level": "None", "verbs": ["get", "list", "watch"]}, {"level": "Metadata"}]}"#;

/// One write that the API server has answered.
#[derive(Debug, Clone)]
pub(crate) struct AuditEntry {
    pub(crate) user: String,
    pub(crate) verb: String,
    pub(crate) resource: String,
    pub(crate) subresource: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) code: u16,
    pub(crate) time: Timestamp,
}

/// A running control plane.
pub(crate) struct ControlPlane {
    programs: Programs,
    port: u16,
    etcd_port: u16,
    peer_port: u16,
    apiserver: Mutex<Option<Process>>,
    manager: Mutex<Option<Process>>,
    etcd: Mutex<Option<Process>>,
    scratch: Scratch,
    /// What the API server can't do.
    without: Option<String>,
}

/// How the parts are started: by the binary of `tests/cluster`, or from `KUBEBUILDER_ASSETS`.
struct Programs {
    cluster: Option<String>,
    assets: Option<PathBuf>,
}

impl Programs {
    fn find() -> Self {
        let assets = std::env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from);
        let whole = assets.as_ref().is_some_and(|folder| folder.join("kube-controller-manager").exists());
        if whole {
            return Self { cluster: None, assets };
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cluster/build.sh");
        let output = Command::new(script).stderr(Stdio::inherit()).output().expect("tests/cluster/build.sh runs");
        assert!(output.status.success(), "tests/cluster/build.sh failed");
        let cluster = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        Self { cluster: Some(cluster), assets }
    }

    /// Program and first arguments of a part.
    fn part(&self, name: &str) -> (String, Vec<String>) {
        let asset = self.assets.as_ref().map(|folder| folder.join(name)).filter(|path| path.exists());
        match (asset, &self.cluster) {
            (Some(path), _) => (path.display().to_string(), Vec::new()),
            (None, Some(cluster)) => (cluster.clone(), vec![name.to_owned()]),
            (None, None) => panic!("KUBEBUILDER_ASSETS has no {name}"),
        }
    }
}

impl ControlPlane {
    /// Starts all parts and waits until the API server is ready.
    pub(crate) async fn start() -> Self {
        Self::start_without(None).await
    }

    /// As [`ControlPlane::start`], with an API server whose feature gate of this name is off.
    pub(crate) async fn start_without(feature: Option<&str>) -> Self {
        let programs = Programs::find();
        let scratch = Scratch::new("cluster");
        let (port, etcd_port, peer_port) = (free_port(), free_port(), free_port());
        prepare(&scratch, port);
        let (apiserver, manager, etcd) = (Mutex::default(), Mutex::default(), Mutex::default());
        let without = feature.map(ToOwned::to_owned);
        let plane = Self { programs, port, etcd_port, peer_port, apiserver, manager, etcd, scratch, without };
        plane.start_all().await;
        plane
    }

    async fn start_all(&self) {
        self.start_etcd();
        self.start_apiserver().await;
        self.start_manager();
    }

    fn start_etcd(&self) {
        let (port, peer_port) = (self.etcd_port, self.peer_port);
        let process = start_part(
            &self.programs,
            &self.scratch,
            "etcd",
            &[
                format!("--data-dir={}", self.etcd_data().display()),
                format!("--listen-client-urls=http://127.0.0.1:{port}"),
                format!("--advertise-client-urls=http://127.0.0.1:{port}"),
                format!("--listen-peer-urls=http://127.0.0.1:{peer_port}"),
                "--unsafe-no-fsync".to_owned(),
                "--log-level=error".to_owned(),
            ],
        );
        *self.etcd.lock().expect("not poisoned") = Some(process);
    }

    fn etcd_data(&self) -> PathBuf {
        self.scratch.path().join("etcd")
    }

    /// The API server before its etcd: without that it hangs.
    fn stop_all(&self) {
        *self.manager.lock().expect("not poisoned") = None;
        self.stop_apiserver();
        *self.etcd.lock().expect("not poisoned") = None;
    }

    /// Keeps a copy of everything that etcd has now; all parts are down meanwhile.
    pub(crate) async fn save_etcd(&self) -> Scratch {
        let copy = Scratch::new("etcd");
        self.stop_all();
        copy_folder(&self.etcd_data(), &copy.path().join("etcd"));
        self.start_all().await;
        copy
    }

    /// Puts an older copy back in the place of what etcd has now, as one does from a backup.
    pub(crate) async fn put_etcd_back(&self, copy: &Scratch) {
        self.stop_all();
        std::fs::remove_dir_all(self.etcd_data()).expect("removed");
        copy_folder(&copy.path().join("etcd"), &self.etcd_data());
        self.start_all().await;
    }

    /// Starts the API server on its port, and waits until it is ready.
    pub(crate) async fn start_apiserver(&self) {
        let file = |name: &str| self.scratch.path().join(name).display().to_string();
        // The API server makes it at its first start; it signs the tokens of service accounts, too.
        let key = file("certificates/apiserver.key");
        let features = self.without.as_ref().map(|feature| format!("--feature-gates={feature}=false"));
        let process = start_part(
            &self.programs,
            &self.scratch,
            "kube-apiserver",
            &[
                format!("--etcd-servers=http://127.0.0.1:{}", self.etcd_port),
                format!("--secure-port={}", self.port),
                "--bind-address=127.0.0.1".to_owned(),
                format!("--cert-dir={}", file("certificates")),
                "--service-cluster-ip-range=10.0.0.0/24".to_owned(),
                "--endpoint-reconciler-type=none".to_owned(),
                "--authorization-mode=RBAC".to_owned(),
                "--service-account-issuer=https://leasehold.test".to_owned(),
                format!("--service-account-key-file={key}"),
                format!("--service-account-signing-key-file={key}"),
                format!("--token-auth-file={}", file("tokens.csv")),
                format!("--audit-policy-file={}", file("audit.json")),
                format!("--audit-log-path={}", file("audit.log")),
            ]
            .into_iter()
            .chain(features)
            .collect::<Vec<_>>(),
        );
        *self.apiserver.lock().expect("not poisoned") = Some(process);
        let ready = eventually(2 * LIMIT, async || self.kubectl(&["get", "--raw", "/readyz"]).ok()).await;
        assert!(ready.is_some(), "kube-apiserver is not ready:\n{}", self.log("kube-apiserver"));
    }

    fn start_manager(&self) {
        let process = start_part(
            &self.programs,
            &self.scratch,
            "kube-controller-manager",
            &[
                format!("--kubeconfig={}", self.kubeconfig("admin").display()),
                format!("--controllers={CONTROLLERS}"),
                // Each with the rights that it has elsewhere, or nothing would be refused to it.
                "--use-service-account-credentials".to_owned(),
                "--leader-elect=false".to_owned(),
                "--secure-port=0".to_owned(),
            ],
        );
        *self.manager.lock().expect("not poisoned") = Some(process);
    }

    /// A real scheduler, for the pods that name it as theirs. It ends when it is dropped.
    pub(crate) fn start_scheduler(&self, name: &str) -> Process {
        let config = serde_json::json!({
            "apiVersion": "kubescheduler.config.k8s.io/v1", "kind": "KubeSchedulerConfiguration",
            "clientConnection": {"kubeconfig": self.kubeconfig("admin")},
            "leaderElection": {"leaderElect": false}, "profiles": [{ "schedulerName": name }],
        });
        let file = self.scratch.write(&format!("scheduler-{name}.json"), &config.to_string());
        let args = [format!("--config={}", file.display()), "--secure-port=0".to_owned()];
        start_part(&self.programs, &self.scratch, "kube-scheduler", &args)
    }

    /// Ends the API server at once; etcd keeps everything.
    pub(crate) fn stop_apiserver(&self) {
        *self.apiserver.lock().expect("not poisoned") = None;
    }

    /// The API server takes connections and answers nothing, until [`Self::resume_apiserver`].
    pub(crate) fn pause_apiserver(&self) {
        self.apiserver.lock().expect("not poisoned").iter().for_each(Process::pause);
    }

    pub(crate) fn resume_apiserver(&self) {
        self.apiserver.lock().expect("not poisoned").iter().for_each(Process::resume);
    }

    /// The process ids of its parts.
    pub(crate) fn pids(&self) -> Vec<u32> {
        let running = |part: &Mutex<Option<Process>>| part.lock().expect("not poisoned").as_ref().map(Process::pid);
        [&self.etcd, &self.apiserver, &self.manager].into_iter().filter_map(running).collect()
    }

    /// Where everything that it writes is.
    pub(crate) fn folder(&self) -> &Path {
        self.scratch.path()
    }

    fn log(&self, part: &str) -> String {
        let text = std::fs::read_to_string(self.scratch.path().join(format!("{part}.log"))).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// The kubeconfig of `admin` or `controller`.
    pub(crate) fn kubeconfig(&self, user: &str) -> PathBuf {
        self.scratch.path().join(format!("{user}.kubeconfig"))
    }

    /// A client as the administrator. Each runtime needs its own.
    pub(crate) async fn client(&self) -> Client {
        self.client_with(|_| {}).await
    }

    /// One that is told at once what the API server would rather be asked again later (kube asks again for minutes).
    pub(crate) async fn client_that_asks_once(&self) -> Client {
        self.client_with(|config| config.default_retry = false).await
    }

    /// One that asks with this token.
    pub(crate) async fn client_of(&self, token: &str) -> Client {
        let auth_info = AuthInfo { token: Some(token.to_owned().into()), ..AuthInfo::default() };
        self.client_with(|config| config.auth_info = auth_info).await
    }

    async fn client_with(&self, change: impl FnOnce(&mut Config)) -> Client {
        let file = Kubeconfig::read_from(self.kubeconfig("admin")).expect("our kubeconfig");
        let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.expect("a config");
        change(&mut config);
        rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
        Client::try_from(config).expect("a client")
    }

    /// Runs the real kubectl as the administrator.
    pub(crate) fn kubectl(&self, args: &[&str]) -> Result<String, String> {
        let (program, first) = self.programs.part("kubectl");
        let kubeconfig = self.kubeconfig("admin");
        let mut command = Command::new("timeout");
        command.args([KUBECTL_LIMIT, &program]).args(first).arg("--kubeconfig").arg(kubeconfig);
        command.arg("--cache-dir").arg(self.kubectl_cache()).args(args);
        let output = command.output().expect("timeout (of coreutils) runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    fn kubectl_cache(&self) -> PathBuf {
        self.scratch.path().join("kubectl-cache")
    }

    /// Applies a manifest with the real kubectl.
    pub(crate) fn apply(&self, namespace: &str, manifest: &str) -> Result<String, String> {
        let file = Scratch::new("manifest");
        let path = file.write("manifest.yaml", manifest).display().to_string();
        self.kubectl(&["--namespace", namespace, "apply", "-f", &path])
    }

    /// How kubectl is called by hand.
    pub(crate) fn kubectl_command(&self) -> String {
        let (program, first) = self.programs.part("kubectl");
        [vec![program], first].concat().join(" ")
    }

    /// Applies `crds/` and waits until they are served. The controller manager starts anew, since its garbage collector
    /// looks for new kinds at its start and then every 30 s only.
    pub(crate) fn install_crds(&self) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("crds").display().to_string();
        self.kubectl(&["apply", "--server-side", "-f", &folder]).expect("the CRDs are accepted");
        self.kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"]).expect("established");
        // kubectl keeps for hours which categories there are, and has looked before there was ours.
        let start = Instant::now();
        while let Err(error) = self.kubectl(&["get", "leasehold", "--all-namespaces"]) {
            assert!(start.elapsed() < LIMIT, "the category isn't discovered: {error}");
            std::fs::remove_dir_all(self.kubectl_cache()).ok();
        }
        self.start_manager();
    }

    /// The writes so far, oldest first.
    pub(crate) fn writes(&self) -> Vec<AuditEntry> {
        let text = std::fs::read_to_string(self.scratch.path().join("audit.log")).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str::<AuditLine>(line).ok()).map(AuditEntry::from).collect()
    }

    /// The writes of the controller so far.
    pub(crate) fn controller_writes(&self) -> Vec<AuditEntry> {
        self.writes().into_iter().filter(|entry| entry.user == CONTROLLER_USER).collect()
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        self.stop_all();
    }
}

fn prepare(scratch: &Scratch, port: u16) {
    scratch.write("audit.json", AUDIT_POLICY);
    let tokens = USERS.map(|(short, user)| format!("{short}-token,{user},{short},system:masters"));
    scratch.write("tokens.csv", &tokens.join("\n"));
    for (short, _) in USERS {
        let config = format!(
            r#"{{"apiVersion": "v1", "kind": "Config", "current-context": "test",
 "clusters": [{{"name": "test", "cluster": {{"server": "https://127.0.0.1:{port}", "insecure-skip-tls-verify": true}}}}],
 "users": [{{"name": "test", "user": {{"token": "{short}-token"}}}}],
 "contexts": [{{"name": "test", "context": {{"cluster": "test", "user": "test"}}}}]}}"#
        );
        scratch.write(&format!("{short}.kubeconfig"), &config);
    }
}

fn copy_folder(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").args([from, to]).status().expect("cp runs");
    assert!(copied.success(), "{} can't be copied", from.display());
}

fn start_part(programs: &Programs, scratch: &Scratch, name: &str, args: &[String]) -> Process {
    let (program, first) = programs.part(name);
    let log = scratch.append(&format!("{name}.log"));
    let errors = log.try_clone().expect("a log");
    Process::start(&program, &[first, args.to_vec()].concat(), |command| {
        command.stdin(scratch.lifeline()).stdout(log).stderr(errors);
    })
}

#[derive(Deserialize)]
struct AuditLine {
    verb: String,
    user: AuditUser,
    #[serde(rename = "objectRef", default)]
    object: AuditObject,
    #[serde(rename = "responseStatus", default)]
    status: AuditStatus,
    #[serde(rename = "requestReceivedTimestamp")]
    time: Timestamp,
}

#[derive(Deserialize)]
struct AuditUser {
    username: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct AuditObject {
    resource: String,
    subresource: String,
    namespace: String,
    name: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct AuditStatus {
    code: u16,
}

impl From<AuditLine> for AuditEntry {
    fn from(line: AuditLine) -> Self {
        let AuditLine { verb, user, object, status, time } = line;
        let AuditObject { resource, subresource, namespace, name } = object;
        Self { user: user.username, verb, resource, subresource, namespace, name, code: status.code, time }
    }
}
