//! The conditions of the line and the origins, as they follow from a view. Pure.

use super::health::Seen;
use super::view::{Ask, View};
use samovar_wire::conditions::Condition;
use samovar_wire::route::Scheme;
use samovar_wire::status::{Health, Line};
use samovar_wire::{OriginId, Timestamp};

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
    ]
}

fn line_down(view: &View) -> Option<String> {
    (view.line == Line::Down).then(|| {
        let errors: Vec<_> = view.origins.iter().filter_map(last_error).collect();
        format!("no origin answers: {}", errors.join("; "))
    })
}

/// An origin that the device's own rules choose does not answer, although the line is not known to be down.
fn unreachable(view: &View, scheme: Scheme, now: Option<Timestamp>) -> Option<String> {
    let in_force = view.in_force.as_ref()?;
    let country = &view.identity.as_ref()?.country;
    if view.line == Line::Down {
        return None;
    }
    let services = &in_force.table.countries.get(country)?.services;
    let mut told: Vec<String> = Vec::new();
    for service in services.keys() {
        let Ok(decision) = view.choose(&Ask::service(service), scheme, now) else { continue };
        let Some(own) = decision.candidates.first() else { continue };
        let Some((name, seen)) = view.origins.get_key_value(&own.origin) else { continue };
        if seen.shown == Health::Down {
            let error = last_error((name, seen)).unwrap_or_else(|| name.to_string());
            let instead = if decision.origin == own.origin {
                String::new()
            } else {
                format!(" ({} serves instead)", decision.origin)
            };
            told.push(format!("{error}{instead}"));
        }
    }
    told.dedup();
    (!told.is_empty()).then(|| told.join("; "))
}

fn impostor(view: &View) -> Option<String> {
    let told: Vec<_> = view.origins.values().filter_map(|seen| seen.impostor.clone()).collect();
    (!told.is_empty()).then(|| told.join("; "))
}

fn last_error((origin, seen): (&OriginId, &Seen)) -> Option<String> {
    seen.last_error.as_ref().map(|error| format!("{origin}: {error}"))
}
