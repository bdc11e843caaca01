//! Links between pages and to files of the repository.

use std::collections::BTreeSet;

use super::page::{Page, anchor, repository};

fn anchors(page: &Page) -> BTreeSet<String> {
    page.headings().iter().map(|(_, heading)| anchor(heading)).collect()
}

/// What is wrong with a link on a page.
fn broken(page: &Page, link: &str) -> Option<String> {
    if link.starts_with("https://") {
        return None;
    }
    let (path, fragment) = link.split_once('#').unwrap_or((link, ""));
    let folder = page.path.parent().expect("a folder");
    let target = if path.is_empty() { page.path.clone() } else { folder.join(path) };
    let Ok(found) = repository().join(&target).canonicalize() else {
        return Some(format!("{}: there is no {link}", page.path.display()));
    };
    if fragment.is_empty() {
        return None;
    }
    let found = found.strip_prefix(repository().canonicalize().expect("a folder")).expect("it is in the repository");
    let known = anchors(&Page::read(found)).contains(fragment);
    (!known).then(|| format!("{}: {link} leads to no heading", page.path.display()))
}

#[test]
fn links_lead_somewhere() {
    let (mut wrong, mut count) = (Vec::new(), 0);
    for page in Page::all() {
        let links = page.links();
        count += links.len();
        wrong.extend(links.iter().filter_map(|link| broken(&page, link)));
    }
    assert_eq!(wrong, Vec::<String>::new());
    assert!(count > 50, "only {count} links were found");
}

#[test]
fn a_link_that_leads_nowhere_is_found() {
    let page = Page::read("docs/README.md");
    for (link, is_broken) in [
        ("api.md", false),
        ("api.md#lockstore", false),
        ("#documentation", false),
        ("../crds", false),
        ("../api.md", true),
        ("api.md#nothing", true),
        ("#nothing", true),
    ] {
        assert_eq!(broken(&page, link).is_some(), is_broken, "{link}");
    }
}

#[test]
fn no_two_headings_of_a_page_have_one_anchor() {
    for page in Page::all() {
        assert_eq!(anchors(&page).len(), page.headings().len(), "{}", page.path.display());
    }
}

#[test]
fn the_index_of_its_folder_names_every_page() {
    for page in Page::all().iter().filter(|page| page.path.starts_with("docs") && !page.path.ends_with("README.md")) {
        let name = page.path.file_name().expect("a name").to_string_lossy().into_owned();
        let index = Page::read(page.path.with_file_name("README.md"));
        assert!(index.links().contains(&name), "{} doesn't name {name}", index.path.display());
    }
    for (page, index) in [("README.md", "docs/README.md"), ("docs/README.md", "uses/README.md")] {
        assert!(Page::read(page).links().contains(&index.to_owned()), "{page} doesn't lead to {index}");
    }
}
