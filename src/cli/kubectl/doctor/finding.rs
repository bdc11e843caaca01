//! What was found: what it is, and what to do.

use serde::Serialize;

use super::super::error::{explain, one_line};
use crate::api::Condition;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) enum Level {
    Ok,
    /// To be known; it may be so on purpose.
    Note,
    Wrong,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    pub(super) level: Level,
    pub(super) what: String,
    /// What to do; empty where there is nothing.
    #[serde(rename = "do", skip_serializing_if = "String::is_empty")]
    pub(super) advice: String,
}

impl Finding {
    pub(super) fn ok(what: impl Into<String>) -> Self {
        Self { level: Level::Ok, what: what.into(), advice: String::new() }
    }

    pub(super) fn note(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { level: Level::Note, what: what.into(), advice: advice.into() }
    }

    pub(super) fn wrong(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { level: Level::Wrong, what: what.into(), advice: advice.into() }
    }

    /// The API server didn't say.
    pub(super) fn not_checked(what: &str, error: kube::Error) -> Self {
        Self::note(format!("{what}: not checked"), one_line(&explain(error)))
    }

    /// In words for people.
    pub(super) fn line(&self) -> String {
        let level = format!("{:?}", self.level).to_uppercase();
        let advice = if self.advice.is_empty() { String::new() } else { format!(" => {}", self.advice) };
        format!("{level:5}  {}{advice}", self.what)
    }
}

/// A condition in words.
pub(super) fn words(condition: &Condition) -> String {
    let Condition { type_, status, reason, message, .. } = condition;
    let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
    format!("{type_} is {status:?} ({reason}: {message})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_a_line() {
        assert_eq!(Finding::ok("all is well").line(), "OK     all is well");
        assert_eq!(Finding::wrong("no Redis", "start it").line(), "WRONG  no Redis => start it");
    }
}
