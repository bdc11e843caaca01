//! Where the story plays: on a Kubernetes of one node with the chart installed and pods that run, or on a control plane
//! alone, where we are the kubelet.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::support::{
    ControlPlane, Controller, ControllerOptions, RedisServer, Scratch, containers_terminated, serving,
};
use crate::{NAMESPACE, WAIT, say};

const SYSTEM: &str = "leasehold-system";
const NODE: &str = "demo-node";
/// In seconds, of one command.
const LIMIT: &str = "120";

pub(crate) enum Stage {
    /// Started by `tests/cluster/node/up.sh`, which keeps its state here. Who has started it ends it.
    Node { folder: PathBuf },
    /// Ours.
    ControlPlane { plane: Box<ControlPlane>, redis: RedisServer, controller: Box<Controller> },
}

impl Stage {
    /// Sets it up: on the node whose state is in `folder`, or else on a control plane.
    pub(crate) async fn set(folder: Option<PathBuf>) -> Result<Self> {
        let stage = match folder {
            Some(folder) => Self::Node { folder },
            None => Self::control_plane().await?,
        };
        if let Self::Node { folder } = &stage {
            say("The node:");
            stage.show("get nodes")?;
            say("Installing the chart, as you would:");
            let install = format!("install leasehold charts/leasehold -n {SYSTEM} --create-namespace --hide-notes");
            println!("$ helm {install}");
            print!("{}", on_node(folder, "helm", &install.split(' ').collect::<Vec<_>>())?);
        }
        stage.show("wait --for=create lockstore/default")?;
        stage.show("wait --for=condition=Ready lockstore/default")?;
        stage.show("get lockstore")?;
        stage.show(&format!("create namespace {NAMESPACE}"))?;
        stage.show(&format!("config set-context --current --namespace={NAMESPACE}"))?;
        Ok(stage)
    }

    async fn control_plane() -> Result<Self> {
        say("Starting etcd, kube-apiserver, kube-controller-manager and redis-server on free ports.");
        let plane = Box::new(ControlPlane::start().await);
        let redis = RedisServer::start().await;
        say("Installing the CRDs and starting the controller.");
        let mut options = ControllerOptions::new(binary()?, &plane);
        options.redis_address = Some(redis.address());
        let controller = Box::new(Controller::not_started(options));
        let mut stage = Self::ControlPlane { plane, redis, controller };
        stage.show("apply --server-side -f crds/")?;
        stage.show("wait --for=condition=Established crd --all")?;
        stage.kubectl(&["create", "namespace", SYSTEM])?;
        stage.apply(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}}).to_string())?;
        let ready = json!({"conditions": [{"type": "Ready", "status": "True"}]});
        stage.report("node", NODE, &ready)?;
        if let Self::ControlPlane { controller, .. } = &mut stage {
            controller.restart().await;
        }
        Ok(stage)
    }

    pub(crate) fn kubectl(&self, args: &[&str]) -> Result<String> {
        match self {
            Self::Node { folder } => on_node(folder, "kubectl", args),
            Self::ControlPlane { plane, .. } => plane.kubectl(args).map_err(anyhow::Error::msg),
        }
    }

    /// Asks without showing it.
    pub(crate) fn ask(&self, words: &str) -> Result<String> {
        self.kubectl(&words.split(' ').collect::<Vec<_>>())
    }

    /// Runs kubectl and shows command and answer. A `wait` has a limit.
    pub(crate) fn show(&self, words: &str) -> Result<()> {
        println!("$ kubectl {words}");
        let limited = if words.starts_with("wait") { format!("{words} {WAIT}") } else { words.to_owned() };
        print!("{}", self.ask(&limited)?);
        Ok(())
    }

    pub(crate) fn apply(&self, manifest: &str) -> Result<String> {
        let scratch = Scratch::new("manifest");
        let path = scratch.write("manifest", manifest).display().to_string();
        self.kubectl(&["apply", "-f", &path])
    }

    /// What a kubelet does: reports a status.
    fn report(&self, kind: &str, name: &str, status: &Value) -> Result<()> {
        let patch = json!({"status": status}).to_string();
        self.kubectl(&["patch", kind, name, "--subresource=status", "--type=merge", "-p", &patch]).map(drop)
    }

    /// What a scheduler does.
    fn bind(&self, pod: &str) -> Result<()> {
        let target = json!({"apiVersion": "v1", "kind": "Node", "name": NODE});
        let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod}, "target": target});
        let scratch = Scratch::new("manifest");
        let path = scratch.write("manifest", &binding.to_string()).display().to_string();
        let url = format!("/api/v1/namespaces/{NAMESPACE}/pods/{pod}/binding");
        self.kubectl(&["create", "--raw", &url, "-f", &path]).map(drop)
    }

    /// Waits until these pods run and are Ready.
    pub(crate) fn run(&self, pods: &[String]) -> Result<()> {
        if let Self::ControlPlane { .. } = self {
            say("The scheduler's and the kubelet's part, which we play: each pod gets a node, and runs.");
            for pod in pods {
                self.bind(pod)?;
                self.report("pod", pod, &serving(1, true))?;
            }
        }
        self.show(&format!("wait --for=condition=Ready pod {}", pods.join(" ")))
    }

    /// The pod's work is done: it ends, and isn't started again.
    pub(crate) fn end(&self, pod: &str) -> Result<()> {
        match self {
            Self::Node { .. } => self.show(&format!("exec {pod} -- touch /tmp/done")),
            Self::ControlPlane { .. } => {
                say("The kubelet's part: it reports the containers terminated.");
                self.report("pod", pod, &containers_terminated(0))
            }
        }
    }

    /// Kills the first process of the pod; its container is started again.
    pub(crate) fn kill(&self, pod: &str) -> Result<()> {
        match self {
            Self::Node { .. } => self.show(&format!("exec {pod} -- kill 1")),
            Self::ControlPlane { .. } => {
                say("The kubelet's part: it reports another container in the same pod.");
                self.report("pod", pod, &serving(2, true))
            }
        }
    }

    /// Ends Redis. It comes back empty.
    pub(crate) async fn lose_redis(&mut self) -> Result<()> {
        if let Self::ControlPlane { redis, .. } = self {
            redis.kill();
            self.show("wait --for=condition=Ready=false lockstore/default")?;
        }
        match self {
            Self::Node { .. } => self.show(&format!("--namespace {SYSTEM} delete pod leasehold-redis-0"))?,
            Self::ControlPlane { redis, .. } => redis.restart().await,
        }
        Ok(())
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        match self {
            Self::Node { folder } => folder.join("kubeconfig"),
            Self::ControlPlane { plane, .. } => plane.kubeconfig("admin"),
        }
    }

    /// How kubectl is called by hand.
    pub(crate) fn kubectl_command(&self) -> String {
        match self {
            Self::Node { folder } => folder.join("bin/kubectl").display().to_string(),
            Self::ControlPlane { plane, .. } => plane.kubectl_command(),
        }
    }
}

/// Runs one of the programs that the node comes with.
fn on_node(folder: &Path, program: &str, args: &[&str]) -> Result<String> {
    let mut command = Command::new("timeout");
    command.arg(LIMIT).arg(folder.join("bin").join(program)).args(args).env("KUBECONFIG", folder.join("kubeconfig"));
    let output = command.output().context("timeout (of coreutils) can't be started")?;
    ensure!(output.status.success(), "{program} {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The leasehold binary beside this one's folder.
fn binary() -> Result<PathBuf> {
    let own = std::env::current_exe().context("our own path")?;
    let folder = own.parent().and_then(Path::parent).context("our own folder")?;
    let binary = folder.join("leasehold");
    ensure!(binary.exists(), "{} is missing: cargo build", binary.display());
    Ok(binary)
}
