//! What is printed: tables of plain text, or objects. No colour, and nothing is cut: the same for people and programs.

use std::io::{self, Write};
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde_json::{Value, json};

use crate::api::LockMode;

/// How results are printed; default: a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Output {
    /// In JSON.
    Json,
    /// In YAML.
    Yaml,
    /// A table with more columns.
    Wide,
    /// Names alone.
    Name,
}

/// The flag `-o`.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(super) struct OutputArgs {
    /// How to print; default: a table.
    #[arg(short, long, value_name = "FORMAT")]
    pub(super) output: Option<Output>,
}

impl OutputArgs {
    pub(super) fn is_wide(self) -> bool {
        self.output == Some(Output::Wide)
    }

    /// Whether people read it.
    pub(super) fn is_table(self) -> bool {
        self.output.is_none() || self.is_wide()
    }
}

/// A row: each column with its heading.
pub(super) type Row = Vec<(&'static str, String)>;

/// Rows of the same columns, aligned.
pub(super) fn table(rows: &[Row]) -> String {
    let Some(first) = rows.first() else { return String::new() };
    let heads = first.iter().map(|(head, _)| (*head).to_owned()).collect();
    let cells = rows.iter().map(|row| row.iter().map(|(_, cell)| cell.clone()).collect());
    let lines: Vec<Vec<String>> = std::iter::once(heads).chain(cells).collect();
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..first.len()).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        text += cells.collect::<Vec<_>>().join("   ").trim_end();
        text.push('\n');
    }
    text
}

/// How long ago something was, as kubectl says it.
pub(super) fn age(then: Option<Timestamp>, now: Timestamp) -> String {
    let Some(then) = then else { return "-".to_owned() };
    let seconds = Duration::try_from(now.duration_since(then)).unwrap_or_default().as_secs();
    match seconds {
        0..120 => format!("{seconds}s"),
        120..10_800 => format!("{}m", seconds / 60),
        10_800..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// What stands in a cell that has nothing to say.
pub(super) fn or_dash(text: Option<impl ToString>) -> String {
    text.map_or_else(|| "-".to_owned(), |text| text.to_string())
}

/// How much of a lock somebody has or wants: permits, or a mode.
pub(super) fn takes(permits: Option<i32>, mode: Option<LockMode>) -> String {
    mode.map_or_else(|| or_dash(permits), |mode| format!("{mode:?}"))
}

/// An object as people name it: `distributedlock.leasehold.dev/a`.
pub(super) fn full_name<K: Resource<DynamicType = ()>>(object: &K) -> String {
    format!("{}.{}/{}", K::kind(&()).to_lowercase(), K::group(&()), object.name_any())
}

/// Objects without what only field managers read.
fn tidy<K: Resource<DynamicType = ()> + Clone + Serialize>(object: &K) -> anyhow::Result<Value> {
    let mut object = object.clone();
    object.meta_mut().managed_fields = None;
    serde_json::to_value(object).context("an object can't be written")
}

/// Prints one object.
pub(super) fn print_one<K>(output: OutputArgs, object: &K, table: impl FnOnce() -> String) -> anyhow::Result<()>
where
    K: Resource<DynamicType = ()> + Clone + Serialize,
{
    print_as(output, || tidy(object), || vec![full_name(object)], table)
}

/// Prints objects, as a list of Kubernetes.
pub(super) fn print_list<K>(output: OutputArgs, objects: &[K], table: impl FnOnce() -> String) -> anyhow::Result<()>
where
    K: Resource<DynamicType = ()> + Clone + Serialize,
{
    let list = || {
        let items = objects.iter().map(tidy).collect::<anyhow::Result<Vec<_>>>()?;
        Ok(json!({ "apiVersion": "v1", "kind": "List", "items": items }))
    };
    print_as(output, list, || objects.iter().map(full_name).collect(), table)
}

/// Prints in the form that was asked for.
pub(super) fn print_as(
    OutputArgs { output }: OutputArgs,
    value: impl FnOnce() -> anyhow::Result<Value>,
    names: impl FnOnce() -> Vec<String>,
    table: impl FnOnce() -> String,
) -> anyhow::Result<()> {
    let text = match output {
        Some(Output::Json) => serde_json::to_string_pretty(&value()?)? + "\n",
        Some(Output::Yaml) => serde_saphyr::to_string(&value()?).context("YAML")?,
        Some(Output::Name) => names().into_iter().map(|name| name + "\n").collect(),
        Some(Output::Wide) | None => table(),
    };
    print(&text)
}

/// Writes to standard output; that nobody reads it any more is no error.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done.context("cannot write to standard output"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::DistributedLock;

    #[test]
    fn columns_are_aligned_and_nothing_is_cut() {
        let row = |lock: &str, token: &str| vec![("LOCK", lock.to_owned()), ("TOKEN", token.to_owned())];
        let long = "x".repeat(70);
        let text = table(&[row("ä", "1"), row(&long, "")]);
        let pad = " ".repeat(66);
        assert_eq!(text, format!("LOCK{pad}   TOKEN\nä{pad}      1\n{long}\n"));
        assert_eq!(table(&[]), "");
    }

    #[test]
    fn ages_are_those_of_kubectl() {
        let now: Timestamp = "2026-11-24T12:00:00Z".parse().unwrap();
        for (seconds, says) in [(0, "0s"), (119, "119s"), (120, "2m"), (10_800, "3h"), (172_800, "2d"), (-5, "0s")] {
            let then = now.checked_sub(jiff::SignedDuration::from_secs(seconds)).unwrap();
            assert_eq!(age(Some(then), now), says);
        }
        assert_eq!(age(None, now), "-");
    }

    #[test]
    fn an_object_has_its_kind_and_no_managed_fields() {
        let mut lock = DistributedLock::default();
        lock.metadata.name = Some("a".into());
        lock.metadata.managed_fields = Some(Vec::new());
        let value = tidy(&lock).unwrap();
        assert_eq!((&value["kind"], value["metadata"].get("managedFields")), (&json!("DistributedLock"), None));
        assert_eq!(full_name(&lock), "distributedlock.leasehold.dev/a");
    }
}
