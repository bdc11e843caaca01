//! What went wrong, in one line that says what to do. Pure.

use std::error::Error as _;

use anyhow::anyhow;

/// How to get the definitions.
pub(super) const INSTALL: &str =
    "install Leasehold (its chart brings the definitions), or: leasehold crd | kubectl apply --server-side -f -";
/// How many names are listed where none is like the one that was meant.
const NAMES: usize = 5;

/// Everything that an error says, without line ends.
pub(super) fn one_line(error: &anyhow::Error) -> String {
    format!("{error:#}").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether the API server refuses because of rights.
pub(super) fn is_forbidden(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 403)
}

/// What the API server or the connection to it says, with what to do.
pub(super) fn explain(error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(status) if status.code == 401 => {
            anyhow!("the API server doesn't accept your credentials ({}): log in again", status.message)
        }
        // Where a policy refuses, it says what to do.
        kube::Error::Api(status) if status.code == 403 && status.message.contains(" cannot ") => {
            anyhow!("{}: ask for this right; docs/security.md lists the roles", status.message)
        }
        kube::Error::Api(status) if is_unknown_kind(&status) => {
            anyhow!("the API server doesn't know the kinds of leasehold.dev: {INSTALL}")
        }
        kube::Error::Api(status) => anyhow!("the API server refuses: {}", status.message),
        error => {
            anyhow!("the API server can't be reached: {}: check --kubeconfig, --context and the network", root(&error))
        }
    }
}

/// An object that is missing has a name in the answer.
fn is_unknown_kind(status: &kube::core::Status) -> bool {
    status.code == 404 && status.details.as_ref().is_none_or(|details| details.name.is_empty())
}

fn root(error: &kube::Error) -> String {
    let mut cause = error.source();
    while let Some(deeper) = cause.and_then(std::error::Error::source) {
        cause = Some(deeper);
    }
    cause.map_or_else(|| error.to_string(), ToString::to_string)
}

/// There is no object of this name; the names that there are may tell which one was meant.
pub(super) fn missing(kind: &str, name: &str, namespace: &str, names: &[String]) -> anyhow::Error {
    let longer = names.iter().find(|other| other.contains(name));
    let near = names.iter().map(|other| (distance(name, other), other)).min();
    let near = near.filter(|(distance, _)| distance * 3 <= name.len().max(3)).map(|(_, other)| other);
    let hint = match (near.or(longer), names.len()) {
        (Some(near), _) => format!("did you mean {near}?"),
        (None, 0) => format!("there is none at all; another namespace: -n NAME{}", where_to_look(kind)),
        (None, 1..=NAMES) => format!("there are: {}", names.join(", ")),
        (None, count) => format!("there are {count} others; another namespace: -n NAME{}", where_to_look(kind)),
    };
    anyhow!("there is no {kind} {name} in the namespace {namespace}; {hint}")
}

fn where_to_look(kind: &str) -> &'static str {
    if kind == "DistributedLock" { ", and all locks: kubectl leasehold status -A" } else { "" }
}

/// How many letters are to be added, left out or changed to make one of the other.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (at, letter) in one.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], at + 1);
        for (column, to) in other.iter().enumerate() {
            let change = diagonal + usize::from(letter != *to);
            diagonal = row[column + 1];
            row[column + 1] = change.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    fn api(code: u16, message: &str) -> kube::Error {
        kube::Error::Api(Status { code, message: message.into(), ..Status::default() }.boxed())
    }

    #[test]
    fn each_refusal_says_what_to_do() {
        for (error, says) in [
            (api(401, "Unauthorized"), "log in again"),
            (api(403, "User \"u\" cannot list resource \"distributedlocks\""), "ask for this right"),
            (api(404, "404 page not found"), "leasehold crd | kubectl apply"),
            (api(422, "spec.permits: too low"), "refuses: spec.permits: too low"),
            (kube::Error::Service("connection refused".into()), "check --kubeconfig"),
        ] {
            let line = one_line(&explain(error));
            assert!(line.contains(says), "{line}");
        }
        let policy = one_line(&explain(api(403, "denied request: ask for the verb forcerelease")));
        assert!(!policy.contains("ask for this right"), "{policy}");
    }

    #[test]
    fn a_name_that_is_meant_is_suggested() {
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        for (name, there, says) in [
            ("nightly-reprot", names(&["db", "nightly-report"]), "did you mean nightly-report?"),
            ("nightly", names(&["db", "nightly-report"]), "did you mean nightly-report?"),
            ("cache", names(&["db", "nightly-report"]), "there are: db, nightly-report"),
            ("cache", names(&["l1", "l2", "l3", "l4", "l5", "l6"]), "there are 6 others"),
            ("cache", names(&[]), "there is none at all"),
        ] {
            let line = one_line(&missing("DistributedLock", name, "shop", &there));
            assert!(line.contains(says), "{line}");
        }
    }

    #[test]
    fn letters_are_counted() {
        for (one, other, expected) in [("", "abc", 3), ("abc", "abc", 0), ("abc", "axc", 1), ("kitten", "sitting", 3)] {
            assert_eq!(distance(one, other), expected, "{one} {other}");
        }
    }
}
