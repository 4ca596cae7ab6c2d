//! The starter table: everything goes to this very server, so that a newcomer can take an order before writing a
//! table. What it says is pure ([`table`]); [`refresh`] keeps it in force until an operator publishes one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use samovar_wire::dsse::{self, Envelope};
use samovar_wire::encoding::{hex, sha256};
use samovar_wire::route::{
    Activation, Both, CacheMode, CountryRoutes, Dns, Endpoint, Fallback, FallbackMode, OriginEntry,
    OriginState, Pins, Service, Table,
};
use samovar_wire::{Country, OriginId, Timestamp};
use sea_orm::{EntityTrait as _, QuerySelect as _};

use super::published::{self, BY_STARTER, Publication, PublishError};
use crate::app::App;
use crate::db::entity::store;

/// How long a starter table lives; it is re-issued at half of it.
const LIFE: Duration = Duration::from_hours(24 * 30);

/// The service that devices use from the first day.
const ORDERS: &str = "orders";

/// What the starter table depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Situation {
    /// The environment.
    pub environment: String,
    /// The name of the one origin.
    pub origin: OriginId,
    /// Where it is.
    pub host: String,
    /// And at which port.
    pub port: u16,
    /// Every country that has a store.
    pub countries: BTreeSet<Country>,
}

/// The table for a situation.
///
/// # Errors
/// Never in practice: the fixed words `orders` and `default` are identifiers.
pub fn table(
    situation: &Situation,
    version: u64,
    now: Timestamp,
) -> Result<Table, samovar_wire::ids::InvalidId> {
    let origins = vec![situation.origin.clone()];
    let service = Service {
        domains: BTreeMap::from([("default".parse()?, situation.host.clone())]),
        overridable: true,
        cache: CacheMode::Off,
        residency: None,
    };
    let services = BTreeMap::from([(ORDERS.parse()?, service)]);
    let endpoint = Endpoint {
        host: situation.host.clone(),
        port: situation.port,
        addresses: Vec::new(),
        basis_points: None,
    };
    let entry = OriginEntry { endpoints: vec![endpoint], regions: Vec::new(), state: OriginState::Active };
    Ok(Table {
        schema: 1,
        environment: situation.environment.clone(),
        version,
        issued_at: now,
        not_before: now,
        expires_at: now.plus(LIFE),
        refresh_after_s: 900,
        origins: BTreeMap::from([(situation.origin.clone(), entry)]),
        activation: Some(Activation { domain: situation.host.clone(), origins: origins.clone() }),
        countries: situation
            .countries
            .iter()
            .map(|country| {
                (country.clone(), CountryRoutes { residency: origins.clone(), services: services.clone() })
            })
            .collect(),
        pins: Pins::default(),
        splits: Vec::new(),
        fallback: Fallback { mode: FallbackMode::Nearest, candidates: origins, ..Fallback::default() },
        shadow: Vec::new(),
        emergency: Vec::new(),
        protected: vec![],
        disable_overrides: false,
        probes: Vec::new(),
        dns: Dns { stale_max_s: Some(604_800), ..Dns::default() },
    })
}

/// Whether the starter table in force must be re-issued: it says something else, or half its life is over.
#[must_use]
pub fn is_due(in_force: &Table, situation: &Situation, now: Timestamp) -> bool {
    let same = table(situation, in_force.version, in_force.issued_at).is_ok_and(|fresh| {
        Table { not_before: in_force.not_before, expires_at: in_force.expires_at, ..fresh } == *in_force
    });
    !same || in_force.expires_at.since(now) < LIFE / 2
}

/// Keeps a starter table in force as long as no operator has published one, on a server that signs tables. Says whether a new one was issued.
///
/// # Errors
/// [`PublishError`].
pub async fn refresh(app: &App, now: Timestamp) -> Result<bool, PublishError> {
    let Some(key) = &app.keys.routes else { return Ok(false) };
    // Two servers of one database may both find it due; the second one's version is then taken, and it looks again.
    for _ in 0..5 {
        let in_force = published::in_force(&app.database).await?;
        if in_force.as_ref().is_some_and(|row| row.origin != BY_STARTER) {
            return Ok(false);
        }
        let situation = situation(app).await?;
        let present = in_force.as_ref().and_then(published::table);
        if present.is_some_and(|table| !is_due(&table, &situation, now)) {
            return Ok(false);
        }
        let version = in_force.map_or(1, |row| row.version.unsigned_abs() + 1);
        let table =
            table(&situation, version, now).map_err(|error| PublishError::Starter(error.to_string()))?;
        let payload = serde_json::to_vec(&table).map_err(|error| PublishError::Starter(error.to_string()))?;
        let publication = Publication {
            version,
            sha256: hex(&sha256(&payload)),
            envelope: Envelope::sign(dsse::ROUTE_TABLE, &payload, &[key]),
            origin: BY_STARTER,
            by: "samovar-fleet",
            proposed_by: None,
            reissue_of: None,
            reason: "",
            summary: told(situation.countries.len()),
        };
        match published::store(&app.database, &publication, now).await {
            Ok(()) => {
                tracing::info!(version, countries = situation.countries.len(), "starter route table issued");
                return Ok(true);
            }
            Err(PublishError::Version { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

fn told(countries: usize) -> Both {
    Both {
        en: format!("starter table for {countries} countries"),
        zh: format!("初始路由表，{countries} 个国家"),
    }
}

async fn situation(app: &App) -> Result<Situation, PublishError> {
    let countries: Vec<String> = store::Entity::find()
        .select_only()
        .column(store::Column::Country)
        .distinct()
        .into_tuple()
        .all(app.database.read())
        .await
        .map_err(crate::db::DatabaseError::Statement)?;
    let origin =
        app.config.intake.origin.parse().map_err(|error| PublishError::Starter(format!("{error}")))?;
    Ok(Situation {
        environment: app.config.server.environment.clone(),
        origin,
        host: app.config.server.public_host.clone(),
        port: app.public_port(),
        countries: countries.iter().filter_map(|country| country.parse().ok()).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use samovar_wire::route::check;

    fn situation(countries: &[&str]) -> Situation {
        Situation {
            environment: "prod".into(),
            origin: "origin-1".parse().unwrap(),
            host: "fleet.example".into(),
            port: 7743,
            countries: countries.iter().map(|country| country.parse().unwrap()).collect(),
        }
    }

    const NOW: i64 = 1_800_000_000_000;

    #[test]
    fn devices_accept_a_starter_table_with_and_without_stores() {
        for countries in [&[][..], &["US", "JP"]] {
            let made = table(&situation(countries), 1, Timestamp::from_millis(NOW)).unwrap();
            let read = check(&serde_json::to_vec(&made).unwrap(), "prod").unwrap();
            assert_eq!(read, made);
        }
    }

    #[test]
    fn it_is_reissued_for_a_new_country_a_new_port_and_at_half_its_life_and_not_otherwise() {
        let now = Timestamp::from_millis(NOW);
        let before = situation(&["US"]);
        let made = table(&before, 7, now).unwrap();
        assert!(!is_due(&made, &before, now.plus(LIFE / 3)));
        assert!(is_due(&made, &situation(&["US", "JP"]), now));
        assert!(is_due(&made, &Situation { port: 1, ..before.clone() }, now));
        assert!(is_due(&made, &before, now.plus(LIFE / 2 + Duration::from_secs(1))));
    }
}
