//! Names and ids: parsed once, valid for ever.

use std::fmt;

/// The longest name of a lock, that of a label value.
pub const MAX_LOCK_NAME_LEN: usize = 63;
/// The longest holder id, in bytes.
pub const MAX_ID_LEN: usize = 128;
/// The longest identity, in bytes.
pub const MAX_IDENTITY_LEN: usize = 320;

/// A name that can't be used, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value:?} {problem}")]
pub struct InvalidName {
    what: &'static str,
    value: String,
    problem: &'static str,
}

/// Which lock: namespace and name, as in Kubernetes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LockKey {
    namespace: String,
    name: String,
}

impl LockKey {
    /// Both parts must be DNS labels of at most 63 characters (a name may contain dots).
    ///
    /// # Errors
    /// [`InvalidName`] says which part and what is wrong with it.
    pub fn new(namespace: &str, name: &str) -> Result<Self, InvalidName> {
        check("namespace", namespace, |c| c == '-')?;
        check("lock name", name, |c| c == '-' || c == '.')?;
        Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
    }

    /// The namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The name within the namespace.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for LockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

fn check(what: &'static str, value: &str, also: fn(char) -> bool) -> Result<(), InvalidName> {
    let problem = if value.is_empty() {
        "is empty"
    } else if value.len() > MAX_LOCK_NAME_LEN {
        "is longer than 63 characters"
    } else if !value.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || also(c)) {
        "may have only lower-case letters, digits and dashes"
    } else {
        return Ok(());
    };
    Err(InvalidName { what, value: value.to_owned(), problem })
}

/// The id of one acquisition. A bearer secret: who knows it can renew and release.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HolderId(String);

impl HolderId {
    /// An id may have 1 to 128 printable ASCII characters, no spaces.
    ///
    /// # Errors
    /// [`InvalidName`] if it has others. The message doesn't show the id.
    pub fn new(id: impl Into<String>) -> Result<Self, InvalidName> {
        let id = id.into();
        if id.is_empty() || id.len() > MAX_ID_LEN || !id.bytes().all(|b| b.is_ascii_graphic()) {
            let problem = "must have 1 to 128 printable ASCII characters";
            return Err(InvalidName { what: "holder id", value: String::new(), problem });
        }
        Ok(Self(id))
    }

    /// The id itself, for the wire.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Shows the first characters only: logs must not carry the secret.
impl fmt::Debug for HolderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HolderId({:.4}…)", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_key_refuses_what_could_escape_its_hash_tag() {
        assert!(LockKey::new("shop", "nightly-report.v2").is_ok());
        for (namespace, name) in [("shop", "a}b"), ("sh/op", "a"), ("shop", ""), ("", "a"), ("shop", "A")] {
            assert!(LockKey::new(namespace, name).is_err(), "{namespace}/{name}");
        }
        assert!(LockKey::new("shop", &"a".repeat(64)).is_err());
    }

    #[test]
    fn a_holder_id_is_not_shown_whole() {
        let id = HolderId::new("0123456789abcdef").unwrap();
        assert_eq!(format!("{id:?}"), "HolderId(0123…)");
        assert!(HolderId::new("with space").is_err());
        assert!(!HolderId::new("secret id").unwrap_err().to_string().contains("secret"));
    }
}
