//! Content encodings: gzip and zstd, never more than the limit comes out.

use std::io::Read;

/// A body cannot be decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Neither gzip, zstd nor identity.
    #[error("the content encoding `{0}` is not known; use zstd, gzip or none")]
    Unknown(String),
    /// More comes out than is allowed.
    #[error("the body is larger than {0} bytes when decoded")]
    TooLarge(usize),
    /// Not what the header says.
    #[error("the body is not {0}")]
    Broken(&'static str),
}

/// Undoes the content encoding named by the header.
///
/// # Errors
/// [`DecodeError`].
pub fn decode(encoding: &str, body: &[u8], limit: usize) -> Result<Option<Vec<u8>>, DecodeError> {
    match encoding.trim().to_ascii_lowercase().as_str() {
        "" | "identity" => Ok(None),
        "gzip" | "x-gzip" => bounded(flate2::read::MultiGzDecoder::new(body), limit, "gzip").map(Some),
        "zstd" => {
            let decoder =
                ruzstd::decoding::StreamingDecoder::new(body).map_err(|_| DecodeError::Broken("zstd"))?;
            bounded(decoder, limit, "zstd").map(Some)
        }
        other => Err(DecodeError::Unknown(other.to_owned())),
    }
}

fn bounded(decoder: impl Read, limit: usize, what: &'static str) -> Result<Vec<u8>, DecodeError> {
    let mut decoded = Vec::new();
    let more_than_allowed = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    decoder.take(more_than_allowed).read_to_end(&mut decoded).map_err(|_| DecodeError::Broken(what))?;
    if decoded.len() > limit {
        return Err(DecodeError::TooLarge(limit));
    }
    Ok(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn gzip_and_zstd_come_out_as_they_went_in() {
        let text = b"{\"batch\":\"x\"}".repeat(100);
        let zstd = ruzstd::encoding::compress_to_vec(&text[..], ruzstd::encoding::CompressionLevel::Fastest);
        assert_eq!(decode("gzip", &gzip(&text), 10_000).unwrap().unwrap(), text);
        assert_eq!(decode("ZSTD", &zstd, 10_000).unwrap().unwrap(), text);
        assert_eq!(decode("identity", &text, 1).unwrap(), None);
    }

    #[test]
    fn a_bomb_an_unknown_encoding_and_rubbish_are_refused() {
        assert_eq!(decode("gzip", &gzip(&vec![0; 1_000_000]), 1000), Err(DecodeError::TooLarge(1000)));
        assert_eq!(decode("br", b"", 1000), Err(DecodeError::Unknown("br".into())));
        assert_eq!(decode("gzip", b"{}", 1000), Err(DecodeError::Broken("gzip")));
        assert_eq!(decode("zstd", b"{}", 1000), Err(DecodeError::Broken("zstd")));
    }
}
