//! Passwords as argon2id digests. Hashing is slow on purpose, so it runs on its own threads, two at a time.

use std::sync::LazyLock;

use argon2::password_hash::SaltString;
use argon2::{Argon2, PasswordHash, PasswordHasher as _, PasswordVerifier as _};
use tokio::sync::Semaphore;

/// Hashing takes tens of megabytes for each; a burst of logins must not take them all at once.
static AT_ONCE: Semaphore = Semaphore::const_new(2);

/// What is compared when the name is unknown, so that it takes as long.
static NOBODY: LazyLock<String> = LazyLock::new(|| hash_now("nobody's password").unwrap_or_default());

/// The shortest password accepted.
pub const SHORTEST: usize = 10;

/// A password cannot be hashed or checked.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    /// Too short.
    #[error("a password has at least {SHORTEST} characters")]
    TooShort,
    /// No salt.
    #[error(transparent)]
    Random(#[from] crate::random::NoRandomness),
    /// The library refused.
    #[error("the password cannot be hashed: {0}")]
    Hash(argon2::password_hash::Error),
    /// The hashing thread did not finish.
    #[error("the password check was interrupted")]
    Interrupted,
}

/// The digest to store.
///
/// # Errors
/// [`PasswordError::TooShort`] and failures inside.
pub async fn hash(password: String) -> Result<String, PasswordError> {
    if password.chars().count() < SHORTEST {
        return Err(PasswordError::TooShort);
    }
    on_own_thread(move || hash_now(&password)).await?
}

/// Whether the password is the one of the digest; `None` stands for an unknown name and is always wrong.
///
/// # Errors
/// When the check could not be made.
pub async fn matches(password: String, digest: Option<String>) -> Result<bool, PasswordError> {
    on_own_thread(move || {
        let known = digest.is_some();
        let digest = digest.unwrap_or_else(|| NOBODY.clone());
        let right = PasswordHash::new(&digest)
            .is_ok_and(|parsed| Argon2::default().verify_password(password.as_bytes(), &parsed).is_ok());
        known && right
    })
    .await
}

fn hash_now(password: &str) -> Result<String, PasswordError> {
    let salt = SaltString::encode_b64(&crate::random::bytes::<16>()?).map_err(PasswordError::Hash)?;
    Ok(Argon2::default().hash_password(password.as_bytes(), &salt).map_err(PasswordError::Hash)?.to_string())
}

async fn on_own_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, PasswordError> {
    let _turn = AT_ONCE.acquire().await.map_err(|_| PasswordError::Interrupted)?;
    tokio::task::spawn_blocking(work).await.map_err(|_| PasswordError::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_right_password_of_a_known_name_matches() {
        let digest = hash("correct horse".into()).await.unwrap();
        assert!(digest.starts_with("$argon2id$"));
        assert!(matches("correct horse".into(), Some(digest.clone())).await.unwrap());
        assert!(!matches("wrong horse".into(), Some(digest)).await.unwrap());
        assert!(!matches("nobody's password".into(), None).await.unwrap());
    }

    #[tokio::test]
    async fn a_short_password_is_refused() {
        assert!(matches!(hash("short".into()).await, Err(PasswordError::TooShort)));
    }
}
