//! `docs/troubleshooting.md` has an entry for every condition and Event, and for nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::page::{Page, repository};

fn source(path: &str) -> String {
    std::fs::read_to_string(repository().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The code in a folder, without tests and comments: what stands there as a text isn't written.
fn code(folder: &Path) -> String {
    let entries = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let texts = entries.map(|path| match path.is_dir() {
        true => code(&path),
        false => {
            let text = std::fs::read_to_string(&path).expect("it can be read");
            let text = text.split("#[cfg(test)]").next().unwrap_or_default();
            text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
        }
    });
    texts.collect::<Vec<_>>().join("\n")
}

/// The constants of a module in `src/api/condition.rs`: name → value.
fn constants(module: &str) -> BTreeMap<String, String> {
    let text = source("src/api/condition.rs");
    let (_, rest) = text.split_once(&format!("pub mod {module} {{\n")).expect("the module");
    let (body, _) = rest.split_once("\n}").expect("its end");
    let lines = body.lines().filter_map(|line| line.trim().strip_prefix("pub const ")?.split_once(": &str = \""));
    lines.map(|(name, value)| (name.to_owned(), value.trim_end_matches("\";").to_owned())).collect()
}

/// The reasons of a Redis that gives no answer.
fn store_errors() -> BTreeSet<String> {
    let text = source("src/store/error.rs");
    let arms = text.lines().filter_map(|line| line.split_once("=> \"")?.1.strip_suffix("\","));
    arms.map(ToOwned::to_owned).collect()
}

fn known() -> BTreeSet<String> {
    let reasons: BTreeSet<String> = constants("reasons").into_values().chain(store_errors()).collect();
    assert!(reasons.len() > 70, "only {} reasons were found", reasons.len());
    reasons
}

/// The arguments of every call of a function, as far as a line or two of them.
fn calls<'a>(code: &'a str, function: &str) -> Vec<&'a str> {
    code.split(function).skip(1).map(|rest| rest.split(';').next().unwrap_or_default()).collect()
}

fn troubleshooting() -> Page {
    Page::read("docs/troubleshooting.md")
}

fn difference(one: &BTreeSet<String>, other: &BTreeSet<String>) -> Vec<String> {
    one.difference(other).cloned().collect()
}

#[test]
fn every_reason_has_an_entry_and_every_entry_a_reason() {
    let entries: BTreeSet<String> = Page::keys(troubleshooting().text.lines()).into_iter().collect();
    assert_eq!(difference(&known(), &entries), Vec::<String>::new(), "have no entry");
    assert_eq!(difference(&entries, &known()), Vec::<String>::new(), "are written by no code");
}

#[test]
fn every_type_has_a_heading_and_every_heading_a_type() {
    let headings = troubleshooting().headings();
    let headings = headings.iter().filter(|(level, _)| *level == 3).filter_map(|(_, text)| text.split(' ').next());
    let headings: BTreeSet<String> = headings.map(ToOwned::to_owned).collect();
    let types: BTreeSet<String> = constants("types").into_values().collect();
    assert_eq!(headings, types);
}

#[test]
fn every_event_stands_among_the_events() {
    let page = troubleshooting();
    let (_, events) = page.text.split_once("\n## Events\n").expect("a part about Events");
    let entries: BTreeSet<String> = Page::keys(events.lines()).into_iter().collect();
    let (code, reasons) = (code(&repository().join("src/controller")), constants("reasons"));
    let calls = ["events.normal(", "events.warning("].map(|function| calls(&code, function)).concat();
    assert!(calls.len() > 15, "only {} Events were found", calls.len());
    for call in calls {
        let Some((_, named)) = call.split_once("reasons::") else { continue };
        let name: String = named.chars().take_while(|c| c.is_ascii_uppercase() || *c == '_').collect();
        assert!(entries.contains(&reasons[&name]), "{} isn't among the Events", reasons[&name]);
    }
}

/// Calls that take a reason, and the place of it among their arguments.
const TAKE_A_REASON: [(&str, usize); 5] = [
    ("events.normal(", 1),
    ("events.warning(", 1),
    ("Trouble::new(", 0),
    ("Readiness::not(", 0),
    ("condition::set(", 3),
];

/// Reasons that stand in such a call as texts.
fn literals(code: &str) -> Vec<&str> {
    let of = |(function, place)| {
        let arguments = calls(code, function).into_iter().filter_map(move |call| call.split(',').nth(place));
        arguments.map(str::trim).filter(|argument| argument.starts_with('"')).collect::<Vec<_>>()
    };
    TAKE_A_REASON.into_iter().flat_map(of).collect()
}

#[test]
fn reasons_stand_in_the_table_and_all_of_them_are_used() {
    let code = code(&repository().join("src"));
    for name in constants("reasons").into_keys() {
        let path = format!("reasons::{name}");
        let mut used = code.match_indices(&path).map(|(at, text)| &code[at + text.len()..]);
        assert!(
            used.any(|rest| !rest.starts_with(|c: char| c.is_ascii_uppercase() || c == '_')),
            "nothing writes {path}"
        );
    }
    assert_eq!(literals(&code), Vec::<&str>::new(), "are not in the table");
    let literal = r#"ctx.events.normal(lock, "New", "Do", note); Trouble::new("Newer", "why"); condition::set(a, b, c, "Newest", d);"#;
    assert_eq!(literals(literal), [r#""New""#, r#""Newer""#, r#""Newest""#]);
}
