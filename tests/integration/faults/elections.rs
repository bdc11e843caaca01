//! Pods among which is elected: they lead, end, restart in place, and others come.

use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt;
use kube::api::DeleteParams;
use serde_json::json;

use super::arena::{Arena, ELECTED};
use super::dice::Dice;
use super::watches::Leader;
use crate::support::history::{Event, Kind, Why};
use crate::support::{containers_terminated, serving};

/// The label `app` of the pods.
pub(super) const APP: &str = "app";
const PODS: usize = 3;

/// Plays the kubelet of all pods of the election.
pub(super) struct Electorate {
    arena: Arc<Arena>,
    dice: Dice,
    made: u32,
}

impl Electorate {
    pub(super) fn new(arena: &Arc<Arena>, dice: Dice) -> Self {
        Self { arena: arena.clone(), dice, made: 0 }
    }

    /// Lets leaders lead for a while, and end.
    pub(super) async fn run(mut self) {
        for _ in 0..PODS {
            self.serve().await;
        }
        let mut last = None;
        while let Some(leader) = self.leader_after(last).await {
            let stays = self.dice.millis(300..1500);
            self.lead(&leader, stays).await;
            last = Some(leader.token);
            if self.arena.is_over() {
                break;
            }
            self.end(&leader).await;
        }
    }

    async fn serve(&mut self) {
        self.made += 1;
        let name = format!("member-{}", self.made);
        let pod = self.arena.pods().serve(&name, APP, self.arena.test.name()).await;
        // It stands by from now on.
        let (lock, id) = (ELECTED.to_owned(), pod.uid().expect("a UID"));
        let asks = Event::Asks { lock: lock.clone(), id: id.clone(), kind: Kind::Delegated, name, priority: 0 };
        self.arena.note(asks);
        self.arena.note(Event::Queued { lock, id });
    }

    /// Waits until a pod leads with a higher token.
    async fn leader_after(&self, token: Option<i64>) -> Option<Leader> {
        let mut leaders = self.arena.seen.leaders.clone();
        let higher = |leader: &&Leader| Some(leader.token) > token;
        tokio::select! {
            leaders = leaders.wait_for(|leaders| leaders.values().any(|leader| higher(&leader))) => {
                leaders.ok()?.values().find(higher).cloned()
            }
            () = self.arena.over() => None,
        }
    }

    /// It does what leaders do while its label says that it leads.
    async fn lead(&mut self, leader: &Leader, stays: Duration) {
        let ends = tokio::time::Instant::now() + stays;
        while tokio::time::Instant::now() < ends && !self.arena.is_over() {
            if self.arena.seen.leaders.borrow().get(&leader.name) != Some(leader) {
                return;
            }
            let busy = self.dice.millis(1..5);
            if let Some(counters) = self.arena.counters(ELECTED) {
                counters.update(&leader.uid, leader.token, busy).await;
            }
            tokio::time::sleep(self.dice.millis(5..20)).await;
        }
    }

    async fn end(&mut self, leader: &Leader) {
        let pods = self.arena.pods();
        let (lock, id) = (ELECTED.to_owned(), leader.uid.clone());
        self.arena.note(Event::Stopped { lock, id, why: Why::PodEnded });
        if self.dice.percent(40) {
            pods.report(&leader.name, containers_terminated(1)).await;
            tokio::time::sleep(self.dice.millis(50..200)).await;
            pods.report(&leader.name, serving(self.made + 100, true)).await;
            return;
        }
        pods.report(&leader.name, json!({"phase": "Failed"})).await;
        self.serve().await;
        pods.api().delete(&leader.name, &DeleteParams::default().grace_period(0)).await.ok();
    }
}
