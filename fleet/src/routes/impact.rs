//! What a table would do to the stores of this fleet: the preview, and where one store, device or user would go.
//!
//! The chooser of the devices answers, for the stores and devices in the database (IO); what only a device knows, such as
//! which origin measures as nearest there, is told as an assumption or left out.

use std::collections::HashMap;

use samovar_wire::ids::DeviceClass;
use samovar_wire::route::{self, Explained, Facts, Page, Preview, Query, Scheme, Table, Till};
use samovar_wire::status::Health;
use samovar_wire::{Country, DeviceId, OriginId, ServiceName, StoreId, Timestamp};
use sea_orm::{ColumnTrait as _, EntityTrait as _, QueryFilter as _, QueryOrder as _, QuerySelect as _};
use serde::Deserialize;
use utoipa::IntoParams;

use crate::app::App;
use crate::clock;
use crate::db::entity::{device, store};
use crate::db::{Database, DatabaseError};
use crate::problem::Failure;

/// Changes of one page at most.
const PAGE: usize = 1000;

/// What is supposed, and which changes are listed.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
pub struct Suppose {
    /// The service; `orders` by default.
    pub service: Option<String>,
    /// The time (RFC 3339); now by default.
    pub at: Option<String>,
    /// Origins that are down, separated by commas.
    pub down: Option<String>,
    /// The origin that measures as nearest.
    pub nearest: Option<String>,
    /// List changes of this country only.
    pub country: Option<String>,
    /// Changes to pass over.
    pub offset: Option<usize>,
    /// Changes to list, up to 1000; 100 by default.
    pub limit: Option<usize>,
}

/// Who asks where an order would go. What is not given is taken from the registry.
#[derive(Clone, Debug, Default, Deserialize, IntoParams)]
#[serde(default)]
pub struct Asker {
    /// The device.
    pub device: Option<String>,
    /// The store.
    pub store: Option<String>,
    /// The order's UDL, else the store's country.
    pub udl: Option<String>,
    /// The device's class.
    pub class: Option<String>,
    /// The person the order concerns.
    pub user: Option<String>,
}

/// What is supposed, read.
struct Supposed {
    service: ServiceName,
    now: Timestamp,
    down: Vec<OriginId>,
    nearest: Option<OriginId>,
}

impl Suppose {
    fn read(&self) -> Result<Supposed, Failure> {
        let down = self.down.iter().flat_map(|list| list.split(',')).filter(|name| !name.trim().is_empty());
        let given = |text: &Option<String>| text.clone().filter(|text| !text.trim().is_empty());
        Ok(Supposed {
            service: parsed(given(&self.service).as_deref().unwrap_or("orders"))?,
            now: given(&self.at).map_or_else(|| Ok(clock::now()), |at| parsed(at.trim()))?,
            down: down.map(|name| parsed(name.trim())).collect::<Result<_, _>>()?,
            nearest: given(&self.nearest).map(|name| parsed(name.trim())).transpose()?,
        })
    }
}

fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, Failure> {
    text.parse().map_err(|error: T::Err| Failure::malformed(error.to_string()))
}

/// Every device of every store; a store without devices stands for itself. Sorted by store.
///
/// # Errors
/// When the database does not answer.
pub async fn tills(database: &Database) -> Result<Vec<Till>, DatabaseError> {
    let stores: Vec<(String, String)> = store::Entity::find()
        .select_only()
        .columns([store::Column::Id, store::Column::Country])
        .order_by_asc(store::Column::Id)
        .into_tuple()
        .all(database.read())
        .await?;
    let devices: Vec<(String, String, String)> = device::Entity::find()
        .select_only()
        .columns([device::Column::Id, device::Column::Store, device::Column::Class])
        .order_by_asc(device::Column::Id)
        .into_tuple()
        .all(database.read())
        .await?;
    let mut by_store: HashMap<&str, Vec<(&str, &str)>> = HashMap::new();
    for (id, store, class) in &devices {
        by_store.entry(store).or_default().push((id, class));
    }
    let mut tills = Vec::with_capacity(stores.len().max(devices.len()));
    for (id, country) in &stores {
        let (Ok(store), Ok(country)) = (id.parse::<StoreId>(), country.parse::<Country>()) else { continue };
        let till = |device: Option<DeviceId>, class: &str| {
            let class: DeviceClass = class.parse().ok()?;
            Some(Till { store: store.clone(), country: country.clone(), device, class })
        };
        match by_store.get(id.as_str()) {
            Some(devices) => {
                tills.extend(devices.iter().filter_map(|(id, class)| till(Some(id.parse().ok()?), class)));
            }
            None => tills.extend(till(None, "default")),
        }
    }
    Ok(tills)
}

/// What a table would change against the one before it.
///
/// # Errors
/// 400 for what cannot be read, 503.
pub async fn preview(
    app: &App,
    (before, after): (Option<Table>, Table),
    suppose: &Suppose,
) -> Result<Preview, Failure> {
    let supposed = suppose.read()?;
    let country = suppose.country.as_deref().filter(|country| !country.is_empty());
    let country: Option<Country> = country.map(parsed).transpose()?;
    let (offset, limit) = (suppose.offset.unwrap_or(0), suppose.limit.unwrap_or(100).min(PAGE));
    let tills = tills(&app.database).await?;
    // Ten thousand stores are a good part of a second of work: not on a thread that serves others.
    let work = tokio::task::spawn_blocking(move || {
        let page = Page { offset, limit, country: country.as_ref() };
        with_facts(&supposed, |facts| {
            route::preview((before.as_ref(), &after), &tills, &supposed.service, facts, page)
        })
    });
    work.await.map_err(|error| Failure::unavailable(&error))
}

fn with_facts<T>(supposed: &Supposed, ask: impl FnOnce(&Facts<'_>) -> T) -> T {
    let health = |origin: &OriginId| {
        if supposed.down.contains(origin) { Health::Down } else { Health::Unknown }
    };
    ask(&Facts {
        now: Some(supposed.now),
        health: &health,
        nearest: supposed.nearest.as_ref(),
        scheme: Scheme::Https,
    })
}

/// Where the orders of one asker would go under each of some tables.
///
/// # Errors
/// 400 for what cannot be read, 404 for a device or store that is not registered.
pub async fn explain<const N: usize>(
    app: &App,
    tables: [Option<&Table>; N],
    asker: &Asker,
    suppose: &Suppose,
) -> Result<[Option<Explained>; N], Failure> {
    let supposed = suppose.read()?;
    let (device, store, country, class) = who(&app.database, asker).await?;
    let user = asker.user.as_deref().filter(|user| !user.is_empty());
    let query = Query {
        service: &supposed.service,
        class: &class,
        device: &device,
        store: &store,
        country: &country,
        user,
    };
    Ok(with_facts(&supposed, |facts| tables.map(|table| Some(route::explain(table?, &query, facts)))))
}

async fn who(
    database: &Database,
    asker: &Asker,
) -> Result<(DeviceId, StoreId, Country, DeviceClass), Failure> {
    let given = |text: &Option<String>| {
        text.as_deref().map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned)
    };
    let (device, store, udl) = (given(&asker.device), given(&asker.store), given(&asker.udl));
    let row = match &device {
        Some(id) => device::Entity::find_by_id(id).one(database.read()).await?,
        None => None,
    };
    if store.is_none() && row.is_none() {
        let unknown = "name a device that is registered, or a store";
        return Err(device.map_or_else(
            || Failure::malformed(unknown),
            |id| Failure::not_found(format!("there is no device {id}: name its store and country")),
        ));
    }
    let store = store.or_else(|| row.as_ref().map(|row| row.store.clone())).unwrap_or_default();
    let country = match udl {
        Some(udl) => udl,
        None => {
            let found = store::Entity::find_by_id(&store).one(database.read()).await?;
            let missing = || Failure::not_found(format!("there is no store {store}: give its country"));
            found.ok_or_else(missing)?.country
        }
    };
    // A store alone is asked for as its first device would be.
    let first = match (&device, row.is_none()) {
        (None, _) => {
            device::Entity::find()
                .filter(device::Column::Store.eq(&store))
                .order_by_asc(device::Column::Id)
                .one(database.read())
                .await?
        }
        _ => row,
    };
    let class = given(&asker.class).or_else(|| first.as_ref().map(|row| row.class.clone()));
    let device = device.or_else(|| first.map(|row| row.id)).unwrap_or_else(|| store.clone());
    Ok((parsed(&device)?, parsed(&store)?, parsed(&country)?, parsed(class.as_deref().unwrap_or("default"))?))
}
