//! The example of the library is the doc test of `src/keeper/mod.rs`, which is compiled.

use super::page::{Page, repository};

#[test]
fn the_example_is_the_one_that_is_compiled() {
    let source = std::fs::read_to_string(repository().join("src/keeper/mod.rs")).expect("the source");
    let code = source.split("```no_run\n").nth(1).and_then(|rest| rest.split("//! ```").next()).expect("a doc test");
    let lines = code.lines().map(|line| line.strip_prefix("//!").unwrap_or(line).strip_prefix(' ').unwrap_or_default());
    let shown: Vec<&str> = lines.filter(|line| !line.starts_with("# ")).collect();
    let blocks = Page::read("docs/library.md").blocks();
    let block = blocks.iter().find(|block| block.language == "rust").expect("an example");
    assert_eq!(block.text.trim_end(), shown.join("\n").trim_end());
}
