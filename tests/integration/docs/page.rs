//! A page of the documentation, as far as the tests read Markdown.

use std::path::{Path, PathBuf};

/// One page.
pub(super) struct Page {
    /// Relative to the repository.
    pub(super) path: PathBuf,
    pub(super) text: String,
}

/// What stands between two fences.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) language: String,
    /// Without the indentation of the fence.
    pub(super) text: String,
    /// Of the fence, from 1.
    pub(super) line: usize,
    /// The comment `<!-- … -->` right before it.
    pub(super) mark: Option<String>,
}

pub(super) fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

impl Page {
    pub(super) fn read(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let text = std::fs::read_to_string(repository().join(&path));
        let text = text.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self { path, text }
    }

    /// All pages that are for users.
    pub(super) fn all() -> Vec<Self> {
        let files = |folder: &'static str| {
            let entries =
                std::fs::read_dir(repository().join(folder)).unwrap_or_else(|error| panic!("{folder}: {error}"));
            entries.flatten().map(move |entry| Path::new(folder).join(entry.file_name()))
        };
        let docs = ["docs", "docs/uses"].into_iter().flat_map(files);
        let mut paths: Vec<PathBuf> = docs.filter(|path| path.extension().is_some_and(|e| e == "md")).collect();
        paths.sort();
        paths.insert(0, "README.md".into());
        paths.push("charts/leasehold/README.md".into());
        assert!(paths.len() > 10, "only {paths:?} were found");
        paths.into_iter().map(Self::read).collect()
    }

    /// Where something is, for people.
    pub(super) fn at(&self, line: usize) -> String {
        format!("{}:{line}", self.path.display())
    }

    pub(super) fn blocks(&self) -> Vec<Block> {
        let mut blocks = Vec::new();
        let (mut open, mut mark): (Option<(usize, Block)>, Option<String>) = (None, None);
        for (number, line) in self.text.lines().enumerate() {
            let content = line.trim_start();
            match (&mut open, content.strip_prefix("```")) {
                (None, Some(language)) => {
                    let (language, text, mark) = (language.to_owned(), String::new(), mark.take());
                    let block = Block { language, text, line: number + 1, mark };
                    open = Some((line.len() - content.len(), block));
                }
                (Some(_), Some(_)) => blocks.extend(open.take().map(|(_, block)| block)),
                (Some((indent, block)), None) => {
                    let blank = line.len() - content.len();
                    block.text += &line[blank.min(*indent)..];
                    block.text.push('\n');
                }
                (None, None) => {
                    let comment = content.strip_prefix("<!-- ").and_then(|rest| rest.strip_suffix(" -->"));
                    mark = comment.map(ToOwned::to_owned);
                }
            }
        }
        assert!(open.is_none(), "{} ends in a fence", self.path.display());
        blocks
    }

    /// Its text without what stands between fences.
    fn prose(&self) -> impl Iterator<Item = &str> {
        let mut fenced = false;
        self.text.lines().filter(move |line| {
            let fence = line.trim_start().starts_with("```");
            fenced ^= fence;
            !fence && !fenced
        })
    }

    /// Where its links lead, without those in code.
    pub(super) fn links(&self) -> Vec<String> {
        let prose = self.prose().collect::<Vec<_>>().join("\n");
        let plain: String = prose.split('`').step_by(2).collect();
        let targets = plain.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        targets.map(ToOwned::to_owned).collect()
    }

    /// Level and text of its headings.
    pub(super) fn headings(&self) -> Vec<(usize, String)> {
        let headings = self.prose().filter_map(|line| {
            let text = line.trim_start_matches('#');
            let level = line.len() - text.len();
            Some((level, text.strip_prefix(' ')?.to_owned())).filter(|(level, _)| *level > 0)
        });
        headings.collect()
    }

    /// The first cells of its tables' rows, if they are one word of code.
    pub(super) fn keys<'a>(lines: impl Iterator<Item = &'a str>) -> Vec<String> {
        let cells = lines.filter_map(|line| line.strip_prefix("| `")?.split_once("` |"));
        cells.map(|(key, _)| key.to_owned()).collect()
    }
}

/// The anchor of a heading, as GitHub makes it.
pub(super) fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase().chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c)).collect();
    let kept: String = kept;
    kept.replace(' ', "-")
}

#[test]
fn a_page_is_read_as_it_is_meant() {
    let text = "# A `b` (c)'s\n[x](a.md#b) `[y](no)`\n- item\n\n  <!-- needs: helm -->\n  ```console\n  $ a \\\n      b\n  ```\n\
                ```yaml\n# no heading, [no](link)\n```\n";
    let page = Page { path: "a.md".into(), text: text.into() };
    let block = |language: &str, text: &str, line, mark: Option<&str>| Block {
        language: language.into(),
        text: text.into(),
        line,
        mark: mark.map(Into::into),
    };
    assert_eq!(
        page.blocks(),
        [
            block("console", "$ a \\\n    b\n", 6, Some("needs: helm")),
            block("yaml", "# no heading, [no](link)\n", 10, None)
        ]
    );
    assert_eq!(page.links(), ["a.md#b"]);
    assert_eq!(page.headings(), [(1, "A `b` (c)'s".into())]);
    assert_eq!(anchor("A `b` (c)'s"), "a-b-cs");
}
