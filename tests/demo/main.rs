//! The demo: the main job on a real Kubernetes and a real Redis, told by kubectl.
//!   demo [DIR]    DIR: where `tests/cluster/node/up.sh` keeps the state of a Kubernetes of one node, which then is the
//!                 stage; without it, a control plane without pods that run
//!
//! Lines that begin with `#` are ours; every other line is what kubectl says of live objects. The demo fails where the
//! story doesn't come true. It ends by itself and leaves nothing behind; with `KEEP=1` it stays until Ctrl-C.

mod stage;
#[path = "../support/mod.rs"]
mod support;

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use stage::Stage;

const NAMESPACE: &str = "demo";
const WAIT: &str = "--timeout=60s";

struct Demo {
    stage: Stage,
}

#[tokio::main]
async fn main() -> Result<()> {
    let start = Instant::now();
    let mut demo = Demo { stage: Stage::set(std::env::args_os().nth(1).map(Into::into)).await? };
    say(&format!("Up after {:.1} s.", start.elapsed().as_secs_f32()));
    demo.take_turns()?;
    demo.share()?;
    demo.end_with_the_pod()?;
    demo.elect().await?;
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

impl Demo {
    fn take_turns(&self) -> Result<()> {
        say("Two claims for one lock take turns. The first holds:");
        self.stage.show("apply -f tests/demo/turns.yaml")?;
        self.stage.show("wait --for=condition=Held lclaim/first")?;
        let first = self.token("first")?;
        say("the second waits:");
        self.stage.show("apply -f tests/demo/second.yaml")?;
        self.stage.show("wait --for=jsonpath={.status.waiters}=1 dlock/nightly-report")?;
        self.stage.show("get dlock,lclaim")?;
        say("and gets it, with a higher token, when the first is deleted:");
        self.stage.show("delete lclaim first")?;
        self.stage.show("wait --for=condition=Held lclaim/second")?;
        self.stage.show("wait --for=jsonpath={.status.holder}=claim/second dlock/nightly-report")?;
        self.stage.show("get dlock,lclaim")?;
        let second = self.token("second")?;
        ensure!(second > first, "the token {second} is not above {first}");
        Ok(())
    }

    fn share(&self) -> Result<()> {
        say("A semaphore of two, and three claims: two hold, the third follows.");
        self.stage.show("apply -f tests/demo/semaphore.yaml")?;
        self.stage.show("wait --for=jsonpath={.status.holderCount}=2 dlock/database-slots")?;
        self.stage.show("wait --for=jsonpath={.status.waiters}=1 dlock/database-slots")?;
        self.stage.show("get dlock database-slots -o wide")?;
        self.stage.show("get lclaim slot-a slot-b slot-c")?;
        let held = ["slot-a", "slot-b", "slot-c"].into_iter().filter(|name| self.token(name).is_ok());
        let gone = held.clone().next().context("nobody holds a slot")?;
        let last = ["slot-a", "slot-b", "slot-c"].into_iter().find(|name| self.token(name).is_err());
        let last = last.context("nobody waits for a slot")?;
        self.stage.show(&format!("delete lclaim {gone}"))?;
        self.stage.show(&format!("wait --for=condition=Held lclaim/{last}"))?;
        Ok(())
    }

    fn end_with_the_pod(&self) -> Result<()> {
        say("A claim that names a pod holds until that pod has ended.");
        self.stage.show("apply -f tests/demo/pod.yaml")?;
        self.stage.run(&["worker".to_owned()])?;
        let uid = self.stage.ask("get pod worker -o jsonpath={.metadata.uid}")?;
        let claim = format!(
            r#"{{"apiVersion": "leasehold.dev/v1alpha1", "kind": "LockClaim", "metadata": {{"name": "worker"}},
 "spec": {{"locks": [{{"name": "migrate"}}], "holderRef": {{"kind": "Pod", "name": "worker", "uid": "{uid}"}}}}}}"#
        );
        println!("$ kubectl apply -f - <<< '{claim}'");
        print!("{}", self.stage.apply(&claim)?);
        self.stage.show("wait --for=condition=Held lclaim/worker")?;
        self.stage.show("wait --for=jsonpath={.status.holder}=pod/worker dlock/migrate")?;
        self.stage.show("get dlock migrate")?;
        say("Its work is done:");
        self.stage.end("worker")?;
        self.stage.show("wait --for=condition=Finished lclaim/worker")?;
        self.stage.show("wait --for=condition=Held=false dlock/migrate")?;
        self.stage.show("get dlock migrate")?;
        Ok(())
    }

    async fn elect(&self) -> Result<()> {
        say("An election among the pods of a Deployment, which know nothing of it. One leads:");
        self.stage.show("apply -f tests/demo/election.yaml")?;
        let pods = async || {
            let names = self.stage.ask("get pods -l app=report -o jsonpath={.items[*].metadata.name}").ok()?;
            let names: Vec<String> = names.split(' ').map(ToOwned::to_owned).collect();
            (names.len() == 3).then_some(names)
        };
        self.stage.run(&support::wait_for("the Deployment's pods", support::LIMIT, pods).await)?;
        let (first, before) = self.leader_above(0).await?;
        self.show_election(&first)?;
        say("Its process is killed. Another pod leads, with a higher token:");
        self.stage.kill(&first)?;
        let (second, _) = self.leader_above(before).await?;
        ensure!(second != first, "{first} leads again");
        self.show_election(&second)
    }

    fn show_election(&self, leader: &str) -> Result<()> {
        self.stage.show(&format!("wait --for=jsonpath={{.status.holder}}=pod/{leader} dlock/report-leader"))?;
        self.stage.show("get pods -l app=report -L leasehold.dev/role")?;
        self.stage.show("get dlock report-leader")
    }

    /// Waits until exactly one pod leads, with a token above `before`, and the other two stand by.
    async fn leader_above(&self, before: i64) -> Result<(String, i64)> {
        let one = async || self.leader().ok().filter(|(_, token, standby)| *token > before && *standby == 2);
        let (name, token, _) = support::eventually(support::LIMIT, one).await.context("nobody leads")?;
        Ok((name, token))
    }

    /// Name and token of the pod that leads, and how many stand by.
    fn leader(&self) -> Result<(String, i64, usize)> {
        const NAMES: &str = "-o jsonpath={.items[*].metadata.name}";
        const TOKENS: &str = r"-o jsonpath={.items[*].metadata.annotations.leasehold\.dev/fencing-token}";
        let token = self.stage.ask(&format!("get pods -l leasehold.dev/role=leader {TOKENS}"))?;
        let name = self.stage.ask(&format!("get pods -l leasehold.dev/role=leader {NAMES}"))?;
        let standby = self.stage.ask(&format!("get pods -l leasehold.dev/role=standby {NAMES}"))?;
        let token = token.parse().with_context(|| format!("the leader has no token: {token:?}"))?;
        Ok((name, token, standby.split_whitespace().count()))
    }

    async fn lose_redis(&mut self) -> Result<()> {
        say("Redis is killed, and comes back empty. The holders still hold, the leader leads:");
        self.stage.show("get lclaim second")?;
        let (second, epoch, leader) = (self.token("second")?, self.epoch()?, self.leader()?);
        self.stage.lose_redis().await?;
        let risen = async || self.epoch().ok().filter(|now| *now > epoch);
        support::eventually(2 * support::LIMIT, risen).await.context("the epoch does not rise")?;
        self.stage.show("wait --for=condition=Ready lockstore/default")?;
        self.stage.show("get lockstore")?;
        self.stage.show("get lclaim second")?;
        ensure!(self.token("second")? == second, "the holder's token has changed");
        ensure!(self.leader()? == leader, "the leader or its token has changed");
        say("and the next token is higher, though Redis knew of none:");
        self.stage.show("apply -f tests/demo/third.yaml")?;
        self.stage.show("delete lclaim second")?;
        self.stage.show("wait --for=condition=Held lclaim/third")?;
        self.stage.show("wait --for=jsonpath={.status.holder}=claim/third dlock/nightly-report")?;
        self.stage.show("get dlock,lclaim")?;
        let third = self.token("third")?;
        ensure!(third > second, "the token {third} is not above {second}");
        Ok(())
    }

    async fn keep(&self) -> Result<()> {
        say("Everything runs on, until Ctrl-C. In another terminal:");
        println!("# export KUBECONFIG={}", self.stage.kubeconfig().display());
        println!("# {} get leasehold", self.stage.kubectl_command());
        tokio::signal::ctrl_c().await.context("no signal handler")
    }

    fn token(&self, claim: &str) -> Result<i64> {
        let token = self.stage.ask(&format!("get lclaim {claim} -o jsonpath={{.status.fencingToken}}"))?;
        token.parse().with_context(|| format!("{claim} has no token: {token:?}"))
    }

    fn epoch(&self) -> Result<i64> {
        let epoch = self.stage.ask("get lockstore default -o jsonpath={.status.epoch}")?;
        epoch.parse().with_context(|| format!("no epoch: {epoch:?}"))
    }
}
