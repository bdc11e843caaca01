//! Where things may be named: dependencies in one place each, imports downwards only, decisions without a clock.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use rstest::rstest;

/// A dependency, and the places in `src` that may name it.
const PLACES: [(&str, &[&str]); 5] = [
    ("axum", &["agent", "admin"]),
    ("clap", &["cli"]),
    ("clap_complete", &["cli"]),
    ("kube", &["api", "controller", "cli"]),
    ("redis", &["store"]),
];

/// A module, and the modules that it may import from.
const IMPORTS: [(&str, &[&str]); 17] = [
    ("main", &["cli"]),
    ("lib", &[]),
    (
        "cli",
        &[
            "controller",
            "agent",
            "run",
            "keeper",
            "store",
            "api",
            "lease",
            "admin",
            "metrics",
            "telemetry",
            "shutdown",
            "failpoint",
            "clock",
        ],
    ),
    ("controller", &["keeper", "store", "api", "lease", "metrics", "shutdown", "failpoint", "clock", "random"]),
    ("agent", &["keeper", "store", "lease", "metrics", "shutdown", "clock"]),
    ("run", &["keeper", "store", "lease", "shutdown", "clock", "random"]),
    ("keeper", &["store", "lease", "clock", "random"]),
    ("store", &["lease", "failpoint"]),
    ("api", &["lease"]),
    ("lease", &[]),
    ("admin", &["metrics"]),
    ("clock", &[]),
    ("failpoint", &[]),
    ("metrics", &[]),
    ("random", &[]),
    ("shutdown", &[]),
    ("telemetry", &[]),
];
/// What tells the time, waits for it, or rolls dice.
const IMPURE: [&str; 8] =
    ["::now()", "SystemTime", "clock_gettime", "sleep(", "new_v4", "rand::", "getrandom", "RandomState"];

/// What a file breaks. `path` is relative to `src`.
fn violations(path: &str, source: &str) -> Vec<String> {
    let code: String =
        source.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n");
    let module = path.split(['/', '.']).next().unwrap_or_default();
    let mut found = Vec::new();
    for (dependency, places) in PLACES {
        if path_roots(&code).contains(dependency) && !places.contains(&module) {
            found.push(format!("{path} names {dependency}, which only {places:?} may"));
        }
    }
    let allowed = allowed_imports(module);
    for import in crate_imports(&code) {
        if import != module && !allowed.contains(&import.as_str()) {
            found.push(format!("{path} imports from {import}; {module} may import from {allowed:?}"));
        }
    }
    if module == "lease" || path.ends_with("plan.rs") {
        let impure = IMPURE.iter().filter(|name| code.contains(**name));
        found.extend(impure.map(|name| format!("{path} is to be pure, and has {name}")));
    }
    found
}

fn allowed_imports(module: &str) -> &'static [&'static str] {
    let entry = IMPORTS.iter().find(|(name, _)| *name == module);
    entry.unwrap_or_else(|| panic!("say here what the new module {module} may import")).1
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The first names of all paths: `redis` of `redis::aio::Connection`.
fn path_roots(code: &str) -> BTreeSet<&str> {
    let names = code.match_indices("::").map(|(at, _)| {
        let start = code[..at].rfind(|c| !is_name(c)).map_or(0, |before| before + 1);
        (&code[..start], &code[start..at])
    });
    names.filter(|(before, _)| !before.ends_with("::")).map(|(_, name)| name).collect()
}

/// The modules in `crate::module` and `crate::{module, other::Thing}`.
fn crate_imports(code: &str) -> BTreeSet<String> {
    let mut modules = BTreeSet::new();
    for (at, prefix) in code.match_indices("crate::") {
        let rest = &code[at + prefix.len()..];
        match rest.strip_prefix('{') {
            Some(group) => modules.extend(group_heads(group)),
            None => modules.extend([rest.split(|c| !is_name(c)).next().unwrap_or_default().to_owned()]),
        }
    }
    modules
}

/// The first names in the rest of a `{…}` group.
fn group_heads(group: &str) -> Vec<String> {
    let (mut depth, mut heads) = (0, vec![String::new()]);
    for c in group.chars() {
        match c {
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            '{' => depth += 1,
            ',' if depth == 0 => heads.push(String::new()),
            _ if depth == 0 && !c.is_whitespace() => heads.iter_mut().last().expect("never empty").push(c),
            _ => {}
        }
    }
    let first = |head: &String| head.split("::").next().unwrap_or_default().to_owned();
    heads.iter().map(first).filter(|head| !head.is_empty()).collect()
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("src can be read").map(|entry| entry.expect("an entry").path());
    let (folders, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let here = files.into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
    here.chain(folders.iter().flat_map(|folder| rust_files(folder))).collect()
}

#[test]
fn every_file_keeps_to_its_layer() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let files = rust_files(&src);
    assert!(files.len() > 20, "only {} files were found", files.len());
    let broken: Vec<_> = files
        .iter()
        .flat_map(|file| {
            let path = file.strip_prefix(&src).expect("it is in src").to_string_lossy().into_owned();
            violations(&path, &std::fs::read_to_string(file).expect("it can be read"))
        })
        .collect();
    assert_eq!(broken, Vec::<String>::new());
}

#[rstest]
#[case::redis_above_the_store("controller/lock.rs", "use redis::Client;", "names redis")]
#[case::a_path_without_use("keeper.rs", "fn f() -> redis::RedisResult<()> {}", "names redis")]
#[case::the_web_in_the_controller("controller/mod.rs", "use axum::Router;", "names axum")]
#[case::the_command_line_elsewhere("telemetry.rs", "#[derive(clap::Args)] struct A;", "names clap")]
#[case::kubernetes_in_the_store("store/mod.rs", "use kube::Client;", "names kube")]
#[case::an_import_upwards("store/gate.rs", "use crate::controller::Context;", "imports from controller")]
#[case::an_import_in_a_group("lease/mod.rs", "use crate::{lease::{Token, Epoch}, store};", "imports from store")]
#[case::an_import_between_siblings("agent/mod.rs", "use crate::run::Child;", "imports from run")]
#[case::a_clock_in_the_domain("lease/mod.rs", "let now = Instant::now();", "has ::now()")]
#[case::a_clock_in_a_plan("controller/claim/plan.rs", "let now = Timestamp::now();", "has ::now()")]
#[case::randomness_in_a_plan("controller/plan.rs", "let id = Uuid::new_v4();", "has new_v4")]
fn a_broken_rule_is_named(#[case] path: &str, #[case] source: &str, #[case] expected: &str) {
    let found = violations(path, source);
    assert!(found.iter().any(|violation| violation.contains(expected)), "{found:?} doesn't say {expected:?}");
}

#[rstest]
#[case::redis_in_the_store("store/connect.rs", "use redis::Client;\nuse crate::lease::Token;")]
#[case::a_comment("lease/mod.rs", "//! Not like redis::Client, see crate::store and Instant::now().")]
#[case::our_own_module_of_that_name("controller/mod.rs", "use super::redis::Thing;\nuse crate::controller::redis;")]
#[case::a_clock_in_a_loop("controller/lock/mod.rs", "let now = Timestamp::now();")]
fn what_is_allowed_is_accepted(#[case] path: &str, #[case] source: &str) {
    assert_eq!(violations(path, source), Vec::<String>::new());
}
