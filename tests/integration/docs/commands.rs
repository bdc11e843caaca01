//! The commands of the documentation, page by page and in their order, on a control plane with a controller and a Redis
//! that knows its user as `docs/install.md` says.
//!
//! A block that needs more says so in a comment before it: `<!-- needs: helm -->`.

use std::collections::BTreeSet;
use std::process::Command;

use super::page::{Block, Page, repository};
use crate::plugin::terminal::link as link_plugin;
use crate::support::{Controller, ControllerOptions, LIMIT, RedisServer, Scratch, TestNamespace, wait_for};

/// What a block may need that isn't here, and what it must have in it then.
const NEEDS: [(&str, &str); 5] = [
    ("helm", "helm "),
    ("pods", "-n leasehold-system "),
    ("files", "file"),
    ("redis", "redis2.example"),
    ("agent", "localhost:4040"),
];
/// Seconds that a command may take.
const SECONDS: &str = "60";
const PASSWORD: &str = "secret";

/// What is there before the commands of each page.
const SETUP: &str = r#"
for namespace in leasehold-system shop; do
  kubectl create namespace $namespace --dry-run=client -o yaml | kubectl apply -f - 2>&1
done
kubectl apply -f - <<'END'
{apiVersion: v1, kind: Node, metadata: {name: n1}}
---
{apiVersion: leasehold.dev/v1alpha1, kind: DistributedLock, metadata: {name: nightly-report}}
---
{apiVersion: leasehold.dev/v1alpha1, kind: DistributedLock, metadata: {name: db-migrate}}
---
{apiVersion: leasehold.dev/v1alpha1, kind: DistributedLock, metadata: {name: ledger}}
---
{apiVersion: leasehold.dev/v1alpha1, kind: LockClaim, metadata: {name: migrate}, spec: {locks: [{name: nightly-report}]}}
END
kubectl wait --for=condition=Held lclaim/migrate --timeout=30s
kubectl wait --for=condition=Ready dlock --all --timeout=30s
"#;

fn needs(block: &Block) -> Option<&str> {
    block.mark.as_deref()?.strip_prefix("needs: ")
}

/// The commands in a console block: each begins with `$ `, and goes on where a line ends with a backslash.
fn commands(text: &str) -> Vec<String> {
    let mut commands: Vec<String> = Vec::new();
    let mut goes_on = false;
    for line in text.lines() {
        match (line.strip_prefix("$ "), commands.last_mut()) {
            (Some(command), _) => commands.push(command.to_owned()),
            (None, Some(command)) if goes_on => *command += &format!("\n{line}"),
            // What it prints.
            (None, _) => continue,
        }
        goes_on = line.ends_with('\\');
    }
    commands
}

/// Where commands run: with our kubectl, `leasehold` and its Redis, in the namespace `shop`, in the repository.
struct Terminal {
    folder: Scratch,
    redis: String,
}

impl Terminal {
    fn new(test: &TestNamespace, redis: &RedisServer) -> Self {
        let folder = Scratch::new("terminal");
        let config = std::fs::read_to_string(test.plane().kubeconfig("admin")).expect("a kubeconfig");
        let in_shop = config.replace(r#""user": "test"}}]"#, r#""user": "test", "namespace": "shop"}}]"#);
        assert_ne!(config, in_shop);
        let config = folder.write("kubeconfig", &in_shop).display().to_string();
        let cache = folder.path().join("cache").display().to_string();
        let kubectl = test.plane().kubectl_command();
        // In the environment: nothing may stand between kubectl and the name of its plugin.
        let script = format!("#!/bin/sh\nKUBECONFIG={config} KUBECACHEDIR={cache} exec {kubectl} \"$@\"\n");
        let file = folder.write("kubectl", &script);
        link_plugin(&folder);
        assert!(Command::new("chmod").arg("+x").arg(file).status().expect("chmod runs").success());
        let leasehold = folder.path().join("leasehold");
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_leasehold"), leasehold).expect("a link");
        Self { folder, redis: redis.address() }
    }

    /// What a command has printed, if it ends well.
    fn run(&self, command: &str) -> Result<String, String> {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut bash = Command::new("timeout");
        bash.args([SECONDS, "bash", "-euo", "pipefail", "-c", command]).current_dir(repository());
        bash.env("PATH", format!("{}:{path}", self.folder.path().display()));
        bash.env("LEASEHOLD_REDIS_URL", format!("redis://{}", self.redis)).env("LEASEHOLD_NAMESPACE", "shop");
        let output = bash.output().expect("timeout (of coreutils) runs");
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        if output.status.success() { Ok(text.into()) } else { Err(format!("{}: {text}", output.status)) }
    }
}

/// The pages, with the one last that takes everything away.
fn pages() -> Vec<Page> {
    let mut pages = Page::all();
    pages.sort_by_key(|page| page.path.ends_with("uninstall.md"));
    pages
}

fn console(page: &Page) -> impl Iterator<Item = Block> + use<> {
    page.blocks().into_iter().filter(|block| block.language == "console")
}

/// Gives Redis the user of the documentation.
async fn add_user(redis: &RedisServer) {
    let blocks = Page::read("docs/install.md").blocks();
    let lines: Vec<_> = blocks.iter().filter(|block| block.text.starts_with("ACL SETUSER ")).collect();
    assert_eq!(lines.len(), 2, "the user's rights");
    for line in lines {
        redis.send::<()>(&line.text.replace("PASSWORD", PASSWORD)).await;
    }
}

#[tokio::test]
async fn commands_work() {
    let (test, redis) = (TestNamespace::alone().await, RedisServer::start().await);
    add_user(&redis).await;
    let terminal = Terminal::new(&test, &redis);
    let secret = format!("--from-literal=username=leasehold --from-literal=password={PASSWORD}");
    let begin = format!(
        "kubectl create namespace leasehold-system; kubectl -n leasehold-system create secret generic docs {secret}
        kubectl apply -f charts/leasehold/policies/"
    );
    terminal.run(&begin).expect("a Secret, and the policies that the chart brings");
    let mut options = ControllerOptions::new(env!("CARGO_BIN_EXE_leasehold"), test.plane());
    (options.redis_address, options.password_secret) = (Some(redis.address()), Some("docs".into()));
    let mut controller = Controller::start(options).await;
    let open = async || terminal.run("kubectl wait --for=condition=Ready lockstore/default --timeout=10s").ok();
    wait_for("the store is Ready, with the user of docs/install.md", LIMIT, open).await;
    terminal.run("kubectl get lockstore default -o yaml | grep -q NotAllowedToRead").expect_err("it may read all");
    let (mut wrong, mut count) = (Vec::new(), 0);
    for page in pages() {
        if page.path.ends_with("uninstall.md") {
            controller.stop();
        } else {
            let ready = terminal.run(SETUP);
            ready.unwrap_or_else(|error| panic!("before {}: {error}\n{}", page.path.display(), wrong.join("\n")));
        }
        for block in console(&page).filter(|block| needs(block).is_none()) {
            for command in commands(&block.text) {
                count += 1;
                if let Err(error) = terminal.run(&command) {
                    wrong.push(format!("{}: {command}\n{error}", page.at(block.line)));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let refused =
        controller.logs().lines().filter(|line| line.contains("NOPERM") || line.contains("can't listen")).count();
    assert_eq!(refused, 0, "the user of docs/install.md may do too little");
    assert!(count > 30, "only {count} commands were run");
    eprintln!("{count} commands");
}

#[test]
fn what_a_block_needs_is_known() {
    let mut used = BTreeSet::new();
    for page in Page::all() {
        for block in console(&page) {
            let at = page.at(block.line);
            assert!(!commands(&block.text).is_empty(), "{at}: a command begins with $");
            assert_eq!(needs(&block).is_none(), block.mark.is_none(), "{at}: {:?} says nothing", block.mark);
            let Some(what) = needs(&block) else { continue };
            let known = NEEDS.iter().find(|(name, _)| *name == what);
            let (name, text) = known.unwrap_or_else(|| panic!("{at}: nobody knows {what:?}"));
            assert!(block.text.contains(text), "{at}: it doesn't need {name}");
            used.insert(*name);
        }
    }
    assert_eq!(used, NEEDS.iter().map(|(name, _)| *name).collect());
}

#[test]
fn commands_are_told_from_what_they_print() {
    let text = "$ a \\\n    b\nprinted\n$ c   # why\nprinted \\\nmore\n";
    assert_eq!(commands(text), ["a \\\n    b", "c   # why"]);
}
