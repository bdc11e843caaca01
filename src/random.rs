//! Secrets that nobody can guess.

/// As many bits as a key of AES-256.
const BYTES: usize = 32;

/// The system gives no random bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the system gives no random bytes")]
pub struct NoRandomness;

/// 256 random bits, in 64 hexadecimal digits.
///
/// # Errors
/// [`NoRandomness`] where the system has none.
pub fn secret() -> Result<String, NoRandomness> {
    let mut bytes = [0; BYTES];
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.secure_random.fill(&mut bytes).map_err(|_| NoRandomness)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_long_and_its_own() {
        let (one, other) = (secret().unwrap(), secret().unwrap());
        assert_eq!(one.len(), 2 * BYTES);
        assert_ne!(one, other);
    }
}
