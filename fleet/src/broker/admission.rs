//! A question that only the rest of the server can answer: is this certificate still good?
//!
//! The authority's signature is checked by TLS; that a certificate has since been revoked is known to the database. The
//! broker asks through a channel, because the database belongs to another runtime.

use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// Questions under way; the connecting devices beyond that wait for their turn.
const QUESTIONS: usize = 1024;
/// How long a device may be kept waiting; then it is refused and tries again.
const PATIENCE: Duration = Duration::from_secs(8);

/// Where the broker asks. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Admission(mpsc::Sender<Question>);

/// One connecting device.
#[derive(Debug)]
pub struct Question {
    /// The common name of its certificate.
    pub device: String,
    /// Its serial number, lower-case hex without leading zeros.
    pub serial: String,
    /// `true` lets it in.
    pub answer: oneshot::Sender<bool>,
}

impl Admission {
    /// The asking and the answering end.
    #[must_use]
    pub fn channel() -> (Self, mpsc::Receiver<Question>) {
        let (ask, questions) = mpsc::channel(QUESTIONS);
        (Self(ask), questions)
    }

    /// No answer is a no.
    pub(super) async fn admits(&self, device: &str, serial: &str) -> bool {
        let (answer, answered) = oneshot::channel();
        let question = Question { device: device.to_owned(), serial: serial.to_owned(), answer };
        let asked = async {
            self.0.send(question).await.ok()?;
            answered.await.ok()
        };
        timeout(PATIENCE, asked).await.ok().flatten().unwrap_or(false)
    }
}
