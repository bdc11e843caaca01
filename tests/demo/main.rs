//! The demo: the main job on a real API server and a real Redis, told by kubectl.
//!
//! Lines that begin with `#` are ours; every other line is what kubectl says of live objects. The demo fails where the
//! story doesn't come true. It ends by itself and leaves nothing behind; with `KEEP=1` it stays until Ctrl-C.

#[path = "../support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use support::{ControlPlane, Controller, ControllerOptions, RedisServer};

const NAMESPACE: &str = "demo";
const WAIT: &str = "--timeout=60s";

struct Demo {
    plane: ControlPlane,
    redis: RedisServer,
    _controller: Controller,
}

#[tokio::main]
async fn main() -> Result<()> {
    let start = Instant::now();
    let mut demo = Demo::start().await?;
    say(&format!("Up after {:.1} s.", start.elapsed().as_secs_f32()));
    demo.take_turns()?;
    demo.share()?;
    demo.end_with_the_pod()?;
    demo.lose_redis().await?;
    if std::env::var("KEEP").is_ok_and(|keep| keep == "1") {
        return demo.keep().await;
    }
    say(&format!("The end, after {:.0} s.", start.elapsed().as_secs_f32()));
    Ok(())
}

fn say(text: &str) {
    println!("\n# {text}");
}

/// The leasehold binary beside this one's folder.
fn binary() -> Result<PathBuf> {
    let own = std::env::current_exe().context("our own path")?;
    let folder = own.parent().and_then(Path::parent).context("our own folder")?;
    let binary = folder.join("leasehold");
    ensure!(binary.exists(), "{} is missing: cargo build", binary.display());
    Ok(binary)
}

impl Demo {
    async fn start() -> Result<Self> {
        say("Starting etcd, kube-apiserver, kube-controller-manager and redis-server on free ports.");
        let plane = ControlPlane::start().await;
        let redis = RedisServer::start().await;
        say("Installing the CRDs and starting the controller.");
        show(&plane, &["apply", "--server-side", "-f", "crds/"])?;
        show(&plane, &["wait", "--for=condition=Established", "crd", "--all", WAIT])?;
        for namespace in ["leasehold-system", NAMESPACE] {
            plane.kubectl(&["create", "namespace", namespace]).map_err(anyhow::Error::msg)?;
        }
        let mut options = ControllerOptions::new(binary()?, &plane);
        options.redis_address = Some(redis.address());
        let controller = Controller::start(options).await;
        let made = || plane.kubectl(&["get", "lockstore", "default"]).ok();
        support::wait_for("the controller makes the store", support::LIMIT, async || made()).await;
        show(&plane, &["wait", "--for=condition=Ready", "lockstore/default", WAIT])?;
        show(&plane, &["get", "lockstore"])?;
        Ok(Self { plane, redis, _controller: controller })
    }

    fn take_turns(&self) -> Result<()> {
        say("Two claims for one lock take turns. The first holds:");
        self.kubectl("apply -f tests/demo/turns.yaml")?;
        self.kubectl("wait --for=condition=Held lclaim/first")?;
        let first = self.token("first")?;
        say("the second waits:");
        self.kubectl("apply -f tests/demo/second.yaml")?;
        self.kubectl("wait --for=jsonpath={.status.waiters}=1 dlock/nightly-report")?;
        self.kubectl("get dlock,lclaim")?;
        say("and gets it, with a higher token, when the first is deleted:");
        self.kubectl("delete lclaim first")?;
        self.kubectl("wait --for=condition=Held lclaim/second")?;
        self.kubectl("wait --for=jsonpath={.status.holder}=claim/second dlock/nightly-report")?;
        self.kubectl("get dlock,lclaim")?;
        let second = self.token("second")?;
        ensure!(second > first, "the token {second} is not above {first}");
        Ok(())
    }

    fn share(&self) -> Result<()> {
        say("A semaphore of two, and three claims: two hold, the third follows.");
        self.kubectl("apply -f tests/demo/semaphore.yaml")?;
        self.kubectl("wait --for=jsonpath={.status.holderCount}=2 dlock/database-slots")?;
        self.kubectl("wait --for=jsonpath={.status.waiters}=1 dlock/database-slots")?;
        self.kubectl("get dlock database-slots -o wide")?;
        self.kubectl("get lclaim slot-a slot-b slot-c")?;
        let held = ["slot-a", "slot-b", "slot-c"].into_iter().filter(|name| self.token(name).is_ok());
        let gone = held.clone().next().context("nobody holds a slot")?;
        let last = ["slot-a", "slot-b", "slot-c"].into_iter().find(|name| self.token(name).is_err());
        let last = last.context("nobody waits for a slot")?;
        self.kubectl(&format!("delete lclaim {gone}"))?;
        self.kubectl(&format!("wait --for=condition=Held lclaim/{last}"))?;
        Ok(())
    }

    fn end_with_the_pod(&self) -> Result<()> {
        say("A claim that names a pod holds until that pod has ended.");
        self.kubectl("apply -f tests/demo/pod.yaml")?;
        let uid = self.ask("get pod worker -o jsonpath={.metadata.uid}")?;
        let claim = format!(
            r#"{{"apiVersion": "leasehold.dev/v1alpha1", "kind": "LockClaim", "metadata": {{"name": "worker"}},
 "spec": {{"locks": [{{"name": "migrate"}}], "holderRef": {{"kind": "Pod", "name": "worker", "uid": "{uid}"}}}}}}"#
        );
        println!("$ kubectl apply -f - <<< '{claim}'");
        print!("{}", self.plane.apply(NAMESPACE, &claim).map_err(anyhow::Error::msg)?);
        self.kubectl("wait --for=condition=Held lclaim/worker")?;
        self.kubectl("wait --for=jsonpath={.status.holder}=pod/worker dlock/migrate")?;
        self.kubectl("get dlock migrate")?;
        say("The kubelet's part: it reports the containers terminated.");
        let status = r#"{"status":{"containerStatuses":[{"name":"main","image":"busybox","imageID":"","ready":false,"restartCount":0,"state":{"terminated":{"exitCode":0}}}]}}"#;
        self.kubectl(&format!("patch pod worker --subresource=status --type=merge -p {status}"))?;
        self.kubectl("wait --for=condition=Finished lclaim/worker")?;
        self.kubectl("wait --for=condition=Held=false dlock/migrate")?;
        self.kubectl("get dlock migrate")?;
        Ok(())
    }

    async fn lose_redis(&mut self) -> Result<()> {
        say("Redis is killed, and comes back empty. The holder still holds:");
        self.kubectl("get lclaim second")?;
        let (second, epoch) = (self.token("second")?, self.epoch()?);
        self.redis.kill();
        self.kubectl("wait --for=condition=Ready=false lockstore/default")?;
        self.redis.restart().await;
        self.kubectl("wait --for=condition=Ready lockstore/default")?;
        self.kubectl("get lockstore")?;
        ensure!(self.epoch()? > epoch, "the epoch is still {epoch}");
        self.kubectl("get lclaim second")?;
        ensure!(self.token("second")? == second, "the holder's token has changed");
        say("and the next token is higher, though Redis knew of none:");
        self.kubectl("apply -f tests/demo/third.yaml")?;
        self.kubectl("delete lclaim second")?;
        self.kubectl("wait --for=condition=Held lclaim/third")?;
        self.kubectl("wait --for=jsonpath={.status.holder}=claim/third dlock/nightly-report")?;
        self.kubectl("get dlock,lclaim")?;
        let third = self.token("third")?;
        ensure!(third > second, "the token {third} is not above {second}");
        Ok(())
    }

    async fn keep(&self) -> Result<()> {
        say("Everything runs on, until Ctrl-C. In another terminal:");
        println!("# export KUBECONFIG={}", self.plane.kubeconfig("admin").display());
        println!("# {} --namespace {NAMESPACE} get leasehold", self.plane.kubectl_command());
        tokio::signal::ctrl_c().await.context("no signal handler")
    }

    /// Runs kubectl on the demo's namespace and shows command and answer. A `wait` has a limit.
    fn kubectl(&self, words: &str) -> Result<()> {
        let mut args = vec!["--namespace", NAMESPACE];
        args.extend(words.split(' '));
        if words.starts_with("wait") {
            args.push(WAIT);
        }
        println!("$ kubectl {words}");
        print!("{}", self.plane.kubectl(&args).map_err(anyhow::Error::msg)?);
        Ok(())
    }

    /// Asks without showing it.
    fn ask(&self, words: &str) -> Result<String> {
        let mut args = vec!["--namespace", NAMESPACE];
        args.extend(words.split(' '));
        self.plane.kubectl(&args).map_err(anyhow::Error::msg)
    }

    fn token(&self, claim: &str) -> Result<i64> {
        let token = self.ask(&format!("get lclaim {claim} -o jsonpath={{.status.fencingToken}}"))?;
        token.parse().with_context(|| format!("{claim} has no token: {token:?}"))
    }

    fn epoch(&self) -> Result<i64> {
        let epoch = self.ask("get lockstore default -o jsonpath={.status.epoch}")?;
        epoch.parse().with_context(|| format!("no epoch: {epoch:?}"))
    }
}

fn show(plane: &ControlPlane, args: &[&str]) -> Result<()> {
    println!("$ kubectl {}", args.iter().filter(|arg| **arg != WAIT).copied().collect::<Vec<_>>().join(" "));
    print!("{}", plane.kubectl(args).map_err(anyhow::Error::msg)?);
    Ok(())
}
