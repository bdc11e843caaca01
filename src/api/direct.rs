//! Namespaces whose processes hold locks by themselves: what they are labelled with, and what they get.

/// The label of a namespace that is to get a Redis user and its Secret: [`ENABLED`].
pub const DIRECT: &str = "leasehold.dev/direct";
/// The one value of [`DIRECT`].
pub const ENABLED: &str = "enabled";
/// An annotation on the namespace: the `LockStore` that its Secret leads to. On the Secret: the one that it does.
pub const DIRECT_STORE: &str = "leasehold.dev/direct-store";
/// The name of the Secret.
pub const CONNECTION: &str = "leasehold-connection";
/// An annotation on the Secret: another value than before asks for a new password.
pub const ROTATE: &str = "leasehold.dev/rotate";
/// An annotation on the Secret: the value of [`ROTATE`] that was heeded last.
pub const ROTATED: &str = "leasehold.dev/rotated";
/// An annotation on the Secret: passwords of before that still work, as `SHA-256=TIME`, separated by commas.
pub const OLD_PASSWORDS: &str = "leasehold.dev/old-passwords";
/// An annotation on the Secret: the `spec.controllerName` of whose it is.
pub const CONTROLLER: &str = "leasehold.dev/controller";
/// A label of the Secret, that says that it is ours.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// The value of [`MANAGED_BY`].
pub const LEASEHOLD: &str = "leasehold";

/// The keys of the Secret.
pub mod keys {
    /// `redis://HOST:PORT` or `rediss://HOST:PORT`, with `/DATABASE` where that isn't 0. It has no password.
    pub const URL: &str = "url";
    /// The Redis user.
    pub const USERNAME: &str = "username";
    /// Its password.
    pub const PASSWORD: &str = "password";
    /// What all keys in Redis begin with.
    pub const PREFIX: &str = "prefix";
    /// The namespace whose locks the user reaches.
    pub const NAMESPACE: &str = "namespace";
    /// The authorities against which the server is checked. Absent: plain TCP, or the public ones.
    pub const CA: &str = "ca.crt";
}
