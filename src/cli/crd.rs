//! `leasehold crd`: the definitions of the kinds, for `kubectl apply` and for the repository, and their reference.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::Value;

use super::reference;
use crate::api;

/// Prints the CRDs of all kinds as YAML.
#[derive(Debug, Clone, clap::Args)]
pub struct CrdArgs {
    /// Write one file per kind into this folder instead of printing them.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Write the reference of all kinds, in Markdown, instead of printing their CRDs.
    #[arg(long, value_name = "FILE")]
    reference: Option<PathBuf>,
}

/// One CRD as it is committed and applied.
#[derive(Debug, Clone)]
pub struct Document {
    /// The file's name: the kind's plural and group.
    pub file_name: String,
    /// A YAML document without separator.
    pub yaml: String,
}

/// The CRDs of all kinds; the same binary always gives the same text.
///
/// # Errors
/// Only if a CRD can't be written as YAML, which a test rules out.
pub fn documents() -> anyhow::Result<Vec<Document>> {
    let write = |value: &Value| {
        let name = name(value);
        let yaml = serde_saphyr::to_string(value).with_context(|| format!("cannot write {name} as YAML"))?;
        Ok(Document { file_name: format!("{name}.yaml"), yaml })
    };
    definitions()?.iter().map(write).collect()
}

/// The reference of all kinds, as it is committed.
///
/// # Errors
/// As [`documents`].
pub fn reference() -> anyhow::Result<String> {
    Ok(reference::page(&definitions()?))
}

fn name(crd: &Value) -> &str {
    crd["metadata"]["name"].as_str().unwrap_or_default()
}

fn definitions() -> anyhow::Result<Vec<Value>> {
    let tidied = api::crds().into_iter().map(|crd| {
        let mut value = serde_json::to_value(crd).context("cannot serialise a CRD")?;
        integers_as_such(&mut value);
        Ok(value)
    });
    tidied.collect()
}

/// Bounds are doubles in the type of a schema; `1` reads better than `1.0`.
fn integers_as_such(value: &mut Value) {
    match value {
        Value::Number(number) => {
            let whole = number.as_f64().filter(|n| n.fract() == 0.0 && n.abs() < 9.1e15);
            if let (true, Some(whole)) = (number.is_f64(), whole) {
                *value = Value::from(whole as i64);
            }
        }
        Value::Array(values) => values.iter_mut().for_each(integers_as_such),
        Value::Object(values) => values.values_mut().for_each(integers_as_such),
        _ => {}
    }
}

/// Runs the command.
///
/// # Errors
/// The folder or standard output can't be written.
pub fn run(args: &CrdArgs) -> anyhow::Result<()> {
    if let Some(file) = &args.reference {
        std::fs::write(file, reference()?).with_context(|| format!("cannot write {}", file.display()))?;
    }
    match &args.out {
        Some(folder) => write_files(folder, &documents()?),
        None if args.reference.is_some() => Ok(()),
        None => print(&documents()?).context("cannot write to standard output"),
    }
}

fn write_files(folder: &Path, documents: &[Document]) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    for Document { file_name, yaml } in documents {
        let path = folder.join(file_name);
        std::fs::write(&path, yaml).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn print(documents: &[Document]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for document in documents {
        write!(out, "---\n{}", document.yaml)?;
    }
    out.flush()
}
