//! The pages of host overrides: of one device with its forms, and of all devices by country (IO, with the rows made from
//! what the API gives).

use askama::Template;
use axum::extract::{Form, Path, Query, State};
use axum::response::{IntoResponse as _, Redirect, Response};
use http::StatusCode;
use samovar_wire::hosts::{TTL_DEFAULT, standing};
use samovar_wire::route::Table;
use sea_orm::{EntityTrait as _, QueryOrder as _, QuerySelect as _};
use serde::Deserialize;
use std::collections::BTreeSet;

use super::page;
use super::pages::missing;
use super::routes::frame;
use super::visitor::{Shell, Visitor, encoded};
use super::words::Words;
use crate::app::App;
use crate::auth::Role;
use crate::db::entity::store;
use crate::hosts::handlers::failure;
use crate::hosts::listing::{self, Which};
use crate::hosts::merge::Entry;
use crate::hosts::wanted::{self, Place, TTL_FIELD, WantError, Wish};
use crate::problem::Failure;
use crate::routes::published;

/// Devices of one page.
const DEVICES: u64 = 100;

/// One override in a list.
pub(super) struct HostRow {
    pub(super) device: String,
    pub(super) country: String,
    pub(super) name: String,
    pub(super) address: String,
    pub(super) by: String,
    pub(super) reason: String,
    pub(super) left: String,
    pub(super) until: String,
    /// Picks the colour.
    pub(super) kind: &'static str,
    pub(super) state: &'static str,
    pub(super) scope: &'static str,
    pub(super) why: String,
    /// The fleet can end it.
    pub(super) ours: bool,
}

#[derive(Template)]
#[template(path = "console/device_hosts.html")]
struct DevicePage {
    shell: Shell,
    device: String,
    store: String,
    may: bool,
    most_hours: u64,
    hosts: Vec<HostRow>,
    names: BTreeSet<String>,
    given: Given,
    problem: Option<String>,
}

#[derive(Template)]
#[template(path = "console/hosts.html")]
struct CountryPage {
    shell: Shell,
    may: bool,
    country: String,
    countries: Vec<String>,
    hosts: Vec<HostRow>,
    next: Option<String>,
}

/// What a form sends.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Given {
    csrf: String,
    #[serde(rename = "do")]
    deed: String,
    name: String,
    address: String,
    reason: String,
    ticket: String,
    hours: String,
    force: Option<String>,
}

/// Which country.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct Of {
    country: String,
    after: String,
}

/// Every override of a country, or of all.
pub(super) async fn everywhere(
    State(app): State<App>,
    visitor: Visitor,
    Query(of): Query<Of>,
) -> Result<Response, Failure> {
    let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let which =
        Which { country: given(&of.country), after: given(&of.after), limit: DEVICES, ..Which::default() };
    let (entries, next) = listing::page(&app.database, &which).await?;
    let countries = store::Entity::find()
        .select_only()
        .column(store::Column::Country)
        .distinct()
        .order_by_asc(store::Column::Country)
        .into_tuple()
        .all(app.database.read())
        .await?;
    let template = CountryPage {
        shell: visitor.shell(String::new()),
        may: visitor.operator.role >= Role::Field,
        country: of.country,
        countries,
        hosts: rows(&visitor, entries),
        next: next.map(|next| encoded(&next)),
    };
    Ok(page(StatusCode::OK, &template, visitor.speech.cookie))
}

/// The overrides of one device, with its forms.
pub(super) async fn of_device(
    State(app): State<App>,
    visitor: Visitor,
    Path(device): Path<String>,
) -> Result<Response, Failure> {
    let hours = (TTL_DEFAULT.as_secs() / 3_600).to_string();
    show(&app, visitor, &device, Given { hours, ..Given::default() }, None).await
}

/// Sets or clears one.
pub(super) async fn change(
    State(app): State<App>,
    visitor: Visitor,
    Path(device): Path<String>,
    Form(given): Form<Given>,
) -> Result<Response, Failure> {
    visitor.operator.check_csrf(&given.csrf)?;
    let done = match (given.deed.as_str(), ttl_s(&given.hours)) {
        ("clear", _) => wanted::clear(&app, &visitor.operator, &device, &given.name).await,
        (_, ttl_s) => wanted::set(&app, &visitor.operator, &device, wish(&given, ttl_s)).await,
    };
    match done {
        Ok(_) => Ok(Redirect::to(&format!("/console/devices/{}", encoded(&device))).into_response()),
        Err(error @ (WantError::Database(_) | WantError::Forbidden(_))) => Err(failure(&error)),
        Err(error) => {
            let problem = failure(&error).problem().clone();
            let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::CONFLICT);
            show(&app, visitor, &device, given, Some((status, problem.detail))).await
        }
    }
}

fn wish(given: &Given, ttl_s: u64) -> Wish {
    Wish {
        name: given.name.trim().to_owned(),
        address: given.address.clone(),
        reason: given.reason.clone(),
        ticket: Some(given.ticket.clone()),
        ttl_s: Some(ttl_s),
        force: given.force.is_some(),
    }
}

/// Hours as people write them (`0.5`); what is no number is refused as no time at all.
fn ttl_s(hours: &str) -> u64 {
    let hours: f64 = hours.trim().replace(',', ".").parse().unwrap_or(0.0);
    std::time::Duration::try_from_secs_f64((hours * 3_600.0).round()).map_or(0, |ttl| ttl.as_secs())
}

async fn show(
    app: &App,
    visitor: Visitor,
    device: &str,
    given: Given,
    problem: Option<(StatusCode, String)>,
) -> Result<Response, Failure> {
    let place = match wanted::place(&app.database, device).await {
        Ok(place) => place,
        Err(WantError::NoDevice(_)) => {
            return Ok(missing(&visitor, visitor.speech.language.words().no_device));
        }
        Err(error) => return Err(failure(&error)),
    };
    let table = published::in_force(&app.database).await?.as_ref().and_then(published::table);
    let most = if visitor.operator.role >= Role::Netops { samovar_wire::hosts::TTL_MAX } else { TTL_FIELD };
    let template = DevicePage {
        shell: frame(&visitor),
        may: visitor.operator.role >= Role::Field,
        most_hours: most.as_secs() / 3_600,
        hosts: of_place(app, &visitor, &place).await?,
        names: table.map(|table| names(&table, &place.country)).unwrap_or_default(),
        device: place.device.id,
        store: place.device.store,
        given,
        problem: problem.as_ref().map(|(_, detail)| detail.clone()),
    };
    let status = problem.map_or(StatusCode::OK, |(status, _)| status);
    Ok(page(status, &template, visitor.speech.cookie))
}

/// The rows of one device.
pub(super) async fn of_place(app: &App, visitor: &Visitor, place: &Place) -> Result<Vec<HostRow>, Failure> {
    Ok(rows(visitor, listing::of_device(&app.database, place).await?))
}

/// Names of a country that may be pointed elsewhere, to choose from.
fn names(table: &Table, country: &str) -> BTreeSet<String> {
    let routes = table.countries.iter().find(|(code, _)| code.as_str() == country);
    let mut names = BTreeSet::new();
    for entry in routes.iter().flat_map(|(_, routes)| routes.services.values()) {
        names.extend(entry.domains.values().cloned());
    }
    let origins = routes.iter().flat_map(|(_, routes)| &routes.residency);
    let endpoints =
        origins.filter_map(|origin| table.origins.get(origin)).flat_map(|origin| &origin.endpoints);
    names.extend(endpoints.map(|endpoint| endpoint.host.clone()));
    names.retain(|name| standing(table, name).is_ok());
    names
}

fn rows(visitor: &Visitor, entries: Vec<Entry>) -> Vec<HostRow> {
    let words = visitor.speech.language.words();
    entries.into_iter().map(|entry| row(words, entry)).collect()
}

fn row(words: &Words, entry: Entry) -> HostRow {
    let ours = entry.source == "fleet";
    let (kind, state) = match (entry.wanted, entry.in_force, entry.effective) {
        (true, false, Some(_)) => ("critical", words.override_refused),
        (true, false, None) => ("none", words.override_waiting),
        (false, _, _) if ours => ("warning", words.override_ending),
        (_, _, Some(true)) => ("good", words.override_effective),
        (_, _, Some(false)) => ("critical", words.override_idle),
        (_, _, None) => ("none", words.override_untried),
    };
    let scope = match entry.scope.as_deref() {
        Some("device") => words.scope_device,
        Some(_) => words.scope_agent,
        None => "",
    };
    // What the fleet knows by itself is said by the state, in the language of the page.
    let said = entry.in_force || entry.effective.is_some();
    let why = [said.then_some(entry.why), entry.scope_why];
    let ticket = entry.ticket.map(|ticket| format!(" · {ticket}")).unwrap_or_default();
    let place = if ours { String::new() } else { format!(" · {}", words.override_local) };
    HostRow {
        by: format!("{}{place}", entry.owner),
        reason: format!("{}{ticket}", entry.reason),
        left: left(words, entry.remaining_s),
        until: entry
            .until
            .map(|until| until.chars().take(16).collect::<String>().replace('T', " "))
            .unwrap_or_default(),
        why: why.into_iter().flatten().filter(|text| !text.is_empty()).collect::<Vec<_>>().join(" · "),
        ours: entry.wanted,
        device: entry.device,
        country: entry.country,
        name: entry.name,
        address: entry.address,
        kind,
        state,
        scope,
    }
}

fn left(words: &Words, seconds: u64) -> String {
    let number = |form: &str, number: u64| form.replacen("{}", &number.to_string(), 1);
    match seconds {
        0..=59 => number(words.left_seconds, seconds),
        60..=3_599 => number(words.left_minutes, seconds / 60),
        _ => {
            let minutes = number(words.left_minutes, seconds % 3_600 / 60);
            format!("{} {minutes}", number(words.left_hours, seconds / 3_600))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::words::Language;

    #[test]
    fn hours_are_read_as_people_write_them() {
        assert_eq!([ttl_s("4"), ttl_s(" 0,5 "), ttl_s("72")], [14_400, 1_800, 259_200]);
        for bad in ["", "soon", "-1", "NaN", "inf", "1e300"] {
            assert_eq!(ttl_s(bad), 0, "{bad}");
        }
    }

    #[test]
    fn what_is_left_is_said_in_the_two_largest_units() {
        let (en, zh) = (Language::English.words(), Language::Chinese.words());
        assert_eq!([left(en, 14_399), left(en, 61), left(en, 9)], ["3 h 59 min", "1 min", "9 s"]);
        assert_eq!(left(zh, 3_600), "1 小时 0 分钟");
    }
}
