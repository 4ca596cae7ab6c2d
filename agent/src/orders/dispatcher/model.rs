//! What the dispatcher asks and what it wants done. Pure.

use super::queue::Page;
use crate::orders::ledger::{Change, Group, Head, Hold};
use samovar_wire::{Country, OriginId};

/// Where routing sends an order right now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// To this origin.
    To(OriginId),
    /// Nowhere, until the route table changes; the words say why.
    Hold(String),
    /// Nothing can be said yet.
    Wait,
}

/// What routing is asked.
#[derive(Debug, Clone, Copy)]
pub struct RouteQuery<'a> {
    /// The country of the order.
    pub country: &'a Country,
    /// The person it concerns.
    pub user: Option<&'a str>,
    /// The origin it is bound to.
    pub bound: Option<&'a OriginId>,
}

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Read more heads of a group and hand them to [`super::Dispatcher::loaded`].
    Load {
        /// Which group.
        group: Group,
        /// Which part of it.
        page: Page,
    },
    /// Bind these orders, send them (beside everything else when they are to go aside), and hand the outcome to [`super::Dispatcher::answered`].
    Send(Sending),
    /// Bind these orders, and keep them until `Go` or `Withdraw` is said of their origin.
    Prepare(Sending),
    /// Send what was prepared for this origin, and hand the outcome to [`super::Dispatcher::answered`].
    Go(OriginId),
    /// Do not send what was prepared for this origin; hand it to [`super::Dispatcher::withdrawn`] when it is bound.
    Withdraw(OriginId),
    /// Record these changes, and hand them to [`super::Dispatcher::recorded`].
    Record(Vec<Change>),
    /// Make orders held for a reason pending again.
    Unhold(Hold),
}

/// A batch to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sending {
    /// To this origin.
    pub origin: OriginId,
    /// Orders of this country.
    pub country: Country,
    /// These orders, ascending.
    pub heads: Vec<Head>,
    /// Beside the batches of this origin, and not in turn with them.
    pub aside: bool,
}
