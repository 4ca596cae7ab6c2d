//! The conditions of the line and the origins, as they follow from a view. Pure.

use super::health::Seen;
use super::view::{Ask, View};
use samovar_wire::conditions::Condition;
use samovar_wire::route::Scheme;
use samovar_wire::status::{Health, Line};
use samovar_wire::{Country, OriginId, Timestamp};

/// Each condition with its detail when it holds.
pub(super) fn conditions(
    view: &View,
    scheme: Scheme,
    now: Option<Timestamp>,
) -> Vec<(Condition, Option<String>)> {
    vec![
        (Condition::LineDown, line_down(view)),
        (Condition::OriginUnreachable, unreachable(view, scheme, now)),
        (Condition::NotTheOrigin, impostor(view)),
        (Condition::OriginFlapping, flapping(view)),
    ]
}

fn line_down(view: &View) -> Option<String> {
    (view.line == Line::Down).then(|| {
        let errors: Vec<_> = view.origins.iter().filter_map(last_error).collect();
        let detail =
            if view.line_detail.is_empty() { String::new() } else { format!("{}; ", view.line_detail) };
        format!("{detail}no origin answers: {}", errors.join("; "))
    })
}

/// An origin that the device's own rules choose does not answer, although the line is not known to be down.
fn unreachable(view: &View, scheme: Scheme, now: Option<Timestamp>) -> Option<String> {
    let in_force = view.in_force.as_ref()?;
    let country = &view.identity.as_ref()?.country;
    if view.line == Line::Down {
        return None;
    }
    let routes = in_force.table.countries.get(country)?;
    let mut told: Vec<String> = Vec::new();
    for (service, settings) in &routes.services {
        let Ok(decision) = view.choose(&Ask::service(service), scheme, now) else { continue };
        let Some(own) = decision.candidates.first() else { continue };
        let Some((name, seen)) = view.origins.get_key_value(&own.origin) else { continue };
        if seen.shown == Health::Down {
            let error = last_error((name, seen)).unwrap_or_else(|| name.to_string());
            let instead = if decision.origin == own.origin {
                let allowed = settings.residency.as_deref().unwrap_or(&routes.residency);
                not_allowed(view, country, allowed).unwrap_or_default()
            } else {
                format!(" ({} serves instead)", decision.origin)
            };
            told.push(format!("{error}{instead}"));
        }
    }
    told.dedup();
    (!told.is_empty()).then(|| told.join("; "))
}

/// Why nobody serves instead, when others answer that may not.
fn not_allowed(view: &View, country: &Country, allowed: &[OriginId]) -> Option<String> {
    let names =
        |origins: Vec<&OriginId>| origins.into_iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let others = view.origins.iter().filter(|(origin, seen)| {
        seen.shown == Health::Up && seen.routing == Health::Up && !allowed.contains(origin)
    });
    let others: Vec<_> = others.map(|(origin, _)| origin).collect();
    (!others.is_empty()).then(|| {
        let (others, allowed) = (names(others), names(allowed.iter().collect()));
        format!(
            " (orders wait: {others} could take them, but the residency of {country} allows only {allowed})"
        )
    })
}

fn flapping(view: &View) -> Option<String> {
    let names: Vec<_> =
        view.origins.iter().filter(|(_, seen)| seen.flapping).map(|(name, _)| name.as_str()).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

fn impostor(view: &View) -> Option<String> {
    let told: Vec<_> = view.origins.values().filter_map(|seen| seen.impostor.clone()).collect();
    (!told.is_empty()).then(|| told.join("; "))
}

fn last_error((origin, seen): (&OriginId, &Seen)) -> Option<String> {
    seen.last_error.as_ref().map(|error| format!("{origin}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::routing::world::{table, view};
    use serde_json::json;

    fn why(residency: &[&str]) -> Option<String> {
        let mut document = table(1, &[("a", "127.0.0.1", 1), ("b", "127.0.0.1", 1)]);
        document["countries"]["US"]["residency"] = json!(residency);
        let mut view = view(document);
        let seen = |health, error: Option<&str>| Seen {
            routing: health,
            shown: health,
            last_error: error.map(ToOwned::to_owned),
            ..Seen::default()
        };
        view.origins = [
            ("a".parse().unwrap(), seen(Health::Down, Some("refused"))),
            ("b".parse().unwrap(), seen(Health::Up, None)),
        ]
        .into();
        unreachable(&view, Scheme::Http, None)
    }

    #[test]
    fn an_origin_that_answers_and_may_not_take_the_orders_is_named_with_the_rule() {
        let told =
            "a: refused (orders wait: b could take them, but the residency of US allows only a)".to_owned();
        assert_eq!(why(&["a"]), Some(told));
        assert_eq!(why(&["a", "b"]).as_deref(), Some("a: refused (b serves instead)"));
    }
}
