//! Randomness for secrets, from the system through ring.

use ring::rand::{SecureRandom, SystemRandom};

/// The system has no randomness to give.
#[derive(Debug, thiserror::Error)]
#[error("the system gives no random bytes")]
pub struct NoRandomness;

/// Some random bytes.
///
/// # Errors
/// When the system gives none; nothing secret can be made then.
pub fn bytes<const N: usize>() -> Result<[u8; N], NoRandomness> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| NoRandomness)?;
    Ok(bytes)
}

/// A secret of 256 bits, safe in headers, cookies and URLs.
///
/// # Errors
/// When the system gives no randomness.
pub fn token() -> Result<String, NoRandomness> {
    use base64::Engine as _;
    Ok(base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes::<32>()?))
}

/// Letters and digits that nobody confuses when reading aloud or off a screen: no 0 O, 1 I L, 5 S, 8 B, U V.
pub const READABLE: &[u8] = b"234679ACDEFGHJKMNPQRTWXYZ";

/// A text of `length` characters of [`READABLE`], each equally likely.
///
/// # Errors
/// When the system gives no randomness.
pub fn readable(length: usize) -> Result<String, NoRandomness> {
    let fair = u8::try_from(256 - 256 % READABLE.len()).unwrap_or(u8::MAX);
    let mut text = String::with_capacity(length);
    while text.len() < length {
        for byte in bytes::<32>()? {
            if byte < fair && text.len() < length {
                text.push(char::from(READABLE[usize::from(byte) % READABLE.len()]));
            }
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readable_text_has_only_readable_characters_and_never_repeats() {
        let one = readable(40).unwrap();
        assert!(one.bytes().all(|byte| READABLE.contains(&byte)));
        assert_eq!(one.len(), 40);
        assert_ne!(one, readable(40).unwrap());
    }
}
