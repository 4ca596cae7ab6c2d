//! What an origin can be told to do to a batch.

/// One way to treat a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Behaviour {
    /// Keeps the contract.
    Honest,
    /// Records the orders, then cuts the connection instead of answering.
    CommitThenDrop,
    /// Records the orders, then resets the connection instead of answering.
    CommitThenReset,
    /// Records the orders, then never answers.
    CommitThenStall,
    /// Neither records nor answers.
    Stall,
    /// Takes connections and reads nothing from them.
    Deaf,
    /// Cuts the connection before recording anything.
    Drop,
    /// Cuts the connection before the request has been read.
    CloseMidRequest,
    /// Answers a status with a problem document and records nothing.
    Status {
        /// The status.
        status: u16,
        /// `Retry-After`, in seconds.
        retry_after_s: Option<u64>,
    },
    /// Answers 400 to every batch in which a body contains this text; honest to others.
    RefuseBatchWith(&'static str),
    /// Answers this status to every batch in which a body contains this text; honest to others.
    StatusForBatchWith(&'static str, u16),
    /// Neither records nor answers a batch in which a body contains this text; honest to others.
    StallOn(&'static str),
    /// Answers 413 to every batch of more orders than this; honest to others.
    AtMost(usize),
    /// Answers `rejected` for orders whose body contains this text; honest to others.
    RejectOrdersWith(&'static str),
    /// The same, and quotes the text in its words.
    QuoteOrdersWith(&'static str),
    /// A captive portal: 200 with a page of HTML.
    Portal,
    /// 302 to another place.
    Redirect,
    /// Records the orders and answers with another batch's id.
    WrongBatchId,
    /// A 200 with `{}`: JSON, but no batch.
    EmptyObject,
    /// Records the orders and answers 200 with JSON that ends too early.
    WrongJson,
    /// Records the orders and sends half of the answer that `Content-Length` announces.
    HalfBody,
    /// Records the orders and cuts a chunked answer before its end.
    CutChunks,
    /// Records the orders and answers in small pieces, with a pause before each.
    Drip {
        /// Between two pieces, of which there are sixteen.
        pause_ms: u64,
    },
    /// Records the orders and sends the whole HTTP answer twice.
    AnswerTwice,
    /// Records and answers for the first order only.
    AnswerOnlyFirst,
    /// Records all, answers `retry` for all with a delay.
    RetryAll {
        /// Not before so many seconds.
        retry_after_s: u64,
    },
    /// Honest, with results for orders that were never sent.
    StrayResults,
    /// Honest, with every result twice.
    RepeatResults,
    /// Records the orders and answers for each of them first `settled`, then `rejected`.
    ContradictItself,
}

/// One way to treat the comparison of orders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// Keeps the contract, and names what is missing and unknown where it is told the keys.
    Honest,
    /// Says only whether a range matches.
    WithoutLists,
    /// Has no such call.
    Absent,
    /// Answers a status with a problem document.
    Status(u16),
    /// Never answers.
    Stall,
    /// A captive portal.
    Portal,
    /// Says of every order that it is shown that it is missing, for ever.
    AlwaysMissing,
}

impl Behaviour {
    /// Whether the orders of the batch are recorded.
    pub(super) const fn records(&self) -> bool {
        matches!(
            self,
            Self::Honest
                | Self::CommitThenDrop
                | Self::CommitThenReset
                | Self::CommitThenStall
                | Self::WrongBatchId
                | Self::WrongJson
                | Self::HalfBody
                | Self::CutChunks
                | Self::Drip { .. }
                | Self::AnswerTwice
                | Self::StrayResults
                | Self::RepeatResults
                | Self::ContradictItself
                | Self::RejectOrdersWith(_)
                | Self::QuoteOrdersWith(_)
        )
    }

    /// A plain status without a delay.
    #[must_use]
    pub const fn status(status: u16) -> Self {
        Self::Status { status, retry_after_s: None }
    }
}
