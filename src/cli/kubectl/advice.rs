//! What to do about a condition: what `docs/troubleshooting.md` says, so that it is written once. Pure.

const PAGE: &str = include_str!("../../../docs/troubleshooting.md");

/// What the reason of a condition of a kind means, and what to do, as plain text.
pub(super) fn advice(kind: &str, type_: &str, reason: &str) -> Option<String> {
    let of_kind = section(PAGE, "## ", kind)?;
    let of_type = section(of_kind, "### ", type_)?;
    let row = of_type.lines().find(|line| line.starts_with(&format!("| `{reason}` |")))?;
    let text = row.trim_end_matches('|').splitn(4, '|').nth(3)?;
    Some(plain(text.trim()))
}

/// What stands under the heading that begins with this word.
fn section<'a>(text: &'a str, marks: &str, word: &str) -> Option<&'a str> {
    let heading = |part: &&str| part.lines().next().and_then(|line| line.split(' ').next()) == Some(word);
    // The first part stands before any heading.
    text.split(&format!("\n{marks}")).skip(1).find(heading)
}

/// Markdown without its marks: of a link the text remains.
fn plain(text: &str) -> String {
    let mut parts = text.split("](");
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        plain += part.split_once(')').map_or(part, |(_, rest)| rest);
    }
    plain.replace(['`', '[', ']'], "").replace("**", "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_own_advice() {
        let of = |kind, type_, reason| advice(kind, type_, reason).unwrap_or_default();
        assert!(of("LockStore", "Ready", "Unreachable").starts_with("Redis doesn't answer"));
        assert!(of("DistributedLock", "Ready", "StoreNotFound").starts_with("There is no LockStore"));
        assert!(of("LockClaim", "Finished", "Busy").contains("lock was held"));
        assert!(of("Pod", "leasehold.dev/LockHeld", "InvalidLocks").contains("can't be read"));
        assert_eq!(advice("LockStore", "Ready", "NoSuchReason"), None);
        assert_eq!(advice("Nothing", "Ready", "Pending"), None);
    }

    #[test]
    fn markdown_becomes_plain() {
        assert_eq!(plain("**See** [`x` y](a.md#b), then [z](c)."), "See x y, then z.");
        assert_eq!(plain("plain"), "plain");
    }
}
