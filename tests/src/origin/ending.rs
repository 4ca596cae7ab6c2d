//! Endings of a connection that an HTTP library would never make: they are written to the socket by hand after the
//! library has let go of it.

use bytes::Bytes;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// What still happens to a connection.
#[derive(Debug)]
pub(super) enum Ending {
    /// It is reset.
    Reset,
    /// It gets these bytes in pieces of this length, with a pause before each, and is closed.
    Bytes { bytes: Vec<u8>, piece: usize, pause: Duration },
}

/// Where the service leaves the ending for its connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Planned(Arc<Mutex<Option<Ending>>>);

impl Planned {
    /// The error that makes the library let go; what is sent instead comes after.
    pub(super) fn end(&self, ending: Ending) -> std::io::Error {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(ending);
        std::io::Error::other("scripted")
    }

    /// Does what was planned, if anything was.
    pub(super) async fn carry_out(&self, mut stream: TcpStream) {
        let planned = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        match planned {
            Some(Ending::Reset) => drop(stream.set_zero_linger()),
            Some(Ending::Bytes { bytes, piece, pause }) => {
                for piece in bytes.chunks(piece.max(1)) {
                    tokio::time::sleep(pause).await;
                    if stream.write_all(piece).await.is_err() {
                        return;
                    }
                }
                let _ = stream.shutdown().await;
            }
            None => {}
        }
    }
}

/// All at once.
pub(super) fn at_once(bytes: Vec<u8>) -> Ending {
    Ending::Bytes { piece: bytes.len(), bytes, pause: Duration::ZERO }
}

/// A 200 with a body of JSON, as it looks on the wire.
pub(super) fn ok(body: &Bytes) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// The same in chunks, without the chunk that says that it is complete.
pub(super) fn cut_chunks(body: &Bytes) -> Vec<u8> {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    let mut bytes = head.as_bytes().to_vec();
    for piece in body.chunks(64) {
        bytes.extend(format!("{:x}\r\n", piece.len()).bytes());
        bytes.extend(piece);
        bytes.extend(b"\r\n");
    }
    bytes
}
