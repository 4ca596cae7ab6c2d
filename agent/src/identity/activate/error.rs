//! Why a device was not activated, and what to do about it.

use super::{MAX_HOPS, words};
use crate::identity::answer::AnswerError;
use crate::identity::files::FilesError;
use crate::identity::http::{HttpError, UrlError};
use crate::identity::tls::TlsError;
use crate::store::StoreError;
use samovar_wire::DeviceId;
use samovar_wire::conditions::Words;
use samovar_wire::problem::Problem;

/// Why a device was not activated. Nothing has changed on disk, but for the key of a claim without an answer.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// There is an identity.
    #[error("this device is already activated as {0}")]
    AlreadyActive(DeviceId),
    /// Orders would be sent under another name than they were taken under.
    #[error("{0} orders have not reached their origin yet")]
    OrdersPending(u64),
    /// The claim is for another device than the one whose orders wait.
    #[error("the claim is for {granted}, and orders of {present} have not reached their origin yet")]
    OtherDevice {
        /// Whom the claim is for.
        granted: DeviceId,
        /// Who the device is.
        present: DeviceId,
    },
    /// The code cannot be one.
    #[error("`{0}` is not a claim code such as USW-7K2M-9QXD")]
    Claim(String),
    /// The server's address.
    #[error(transparent)]
    Server(#[from] UrlError),
    /// The file of authorities.
    #[error(transparent)]
    Roots(TlsError),
    /// The data directory.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// The data directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The signing request cannot be made.
    #[error("cannot make a signing request")]
    SigningRequest(#[source] rcgen::Error),
    /// No usable answer.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The fleet says no.
    #[error("{host} refused the claim ({status}): {}", problem_words(problem))]
    Refused {
        /// Who.
        host: String,
        /// HTTP status.
        status: u16,
        /// Its words.
        problem: Problem,
    },
    /// The fleet cannot say now.
    #[error("{host} cannot answer now ({status}): {}", problem_words(problem))]
    Busy {
        /// Who.
        host: String,
        /// HTTP status.
        status: u16,
        /// Its words.
        problem: Problem,
    },
    /// Something else than a fleet answered.
    #[error("{host} answered {status}, which no fleet does: a sign-in page, a proxy or a wrong address")]
    NotAFleet {
        /// Who.
        host: String,
        /// HTTP status.
        status: u16,
    },
    /// A fleet passes the claim on to nowhere.
    #[error("{host} passes the claim on to `{location}`, which cannot be followed")]
    Redirect {
        /// Who.
        host: String,
        /// Where to.
        location: String,
    },
    /// Fleets pass the claim round.
    #[error("the claim was passed on more than {MAX_HOPS} times")]
    TooManyHops,
    /// The answer cannot be believed.
    #[error("{host}: {problem}")]
    Answer {
        /// Who.
        host: String,
        /// Why not.
        problem: AnswerError,
    },
}

fn problem_words(problem: &Problem) -> &str {
    let given = [&problem.detail, &problem.title].into_iter().find(|text| !text.is_empty());
    given.map_or("it gave no reason", String::as_str)
}

impl ActivateError {
    /// Whether the fleet has said no, so that no key is of use with this claim.
    #[must_use]
    pub const fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }

    /// Whether the fleet may have granted the claim without this device knowing.
    #[must_use]
    pub const fn may_have_arrived(&self) -> bool {
        matches!(
            self,
            Self::Http(HttpError::Lost { .. } | HttpError::Unread { .. })
                | Self::Busy { .. }
                | Self::Answer { .. }
        )
    }

    /// What to do about it, in the languages of the product.
    #[must_use]
    pub fn advice(&self) -> Words {
        match self {
            Self::AlreadyActive(_) => words::REPLACE,
            Self::OrdersPending(_) => words::WAIT_FOR_ORDERS,
            Self::OtherDevice { .. } => words::SAME_DEVICE,
            Self::Claim(_) => words::CODE,
            Self::Server(_) => words::SERVER,
            Self::Roots(_) => words::AUTHORITY,
            Self::Files(_) | Self::Store(_) | Self::SigningRequest(_) => words::DATA,
            Self::Http(HttpError::NotConnected { .. }) => words::LINE,
            Self::Http(_) | Self::Busy { .. } => words::AGAIN,
            Self::Refused { problem, status, .. } => match (problem.slug(), status) {
                ("unknown-claim", _) | (_, 404) => words::UNKNOWN,
                ("claim-used", _) | (_, 409) => words::USED,
                ("claim-expired", _) | (_, 410) => words::EXPIRED,
                _ => words::SUPPORT,
            },
            Self::NotAFleet { .. } | Self::Redirect { .. } | Self::TooManyHops => words::SERVER,
            Self::Answer { .. } => words::UNUSABLE,
        }
    }
}
