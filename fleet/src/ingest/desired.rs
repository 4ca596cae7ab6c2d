//! What each device should be: decided, numbered, signed and published as `dn/desired`.
//!
//! The revision of a device grows with each change of its content and is kept in the database; the document itself is
//! made again from its content whenever it is needed (the signature is deterministic), so that a fleet of tens of
//! thousands does not keep as many copies of one route table. A device that reports an older revision or table than it
//! should have is sent the document again; the retained message at the broker is only the fast way.
//!
//! Host overrides are the one part that is of one device and that ends by itself. A document with overrides is not
//! retained and soon forgotten by the broker: a device that comes later is sent one with the time that is left then.

use super::client::Link;
use super::entity::{device_desired, device_status};
use crate::activation::revocation;
use crate::db::entity::{device, host_override, route_table};
use crate::db::{Database, DatabaseError};
use crate::hosts::wanted;
use crate::pki::secrets::SigningKeys;
use samovar_wire::activation::Role;
use samovar_wire::dsse::{self, Envelope, SigningKey};
use samovar_wire::encoding::{hex, sha256};
use samovar_wire::mqtt::{Channel, Desired, DesiredDocument, Topic};
use samovar_wire::{DeviceId, Timestamp};
use sea_orm::ActiveValue::Set;
use sea_orm::sea_query::OnConflict;
use sea_orm::{ColumnTrait as _, EntityTrait as _, QueryFilter as _, QueryOrder as _, QuerySelect as _};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// A signed route table up to this size travels inside the desired state, a larger one is fetched.
const INLINE_MAX: usize = 128 * 1024;
/// Devices looked at in one transaction of a sweep.
const PAGE: u64 = 200;
/// What the broker did not deliver by then, it forgets, when it has overrides inside.
const OVERRIDES_EXPIRY_S: u32 = 60;
/// Names in one question to the database.
const ASK: usize = 1000;
/// How long a sweep waits for room in the outbox before it gives up until the next one.
const ROOM: Duration = Duration::from_secs(30);

/// What the publisher of desired states needs.
#[derive(Clone)]
pub struct DesiredConfig {
    /// The environment of topics.
    pub environment: String,
    /// The admin's key signs desired states; devices know it since their activation.
    pub keys: Arc<SigningKeys>,
    /// Where devices fetch a route table that is too large for a message.
    pub route_table_url: String,
}

/// A desired state could not be made or published.
#[derive(Debug, thiserror::Error)]
pub(super) enum DesiredError {
    #[error(transparent)]
    Database(#[from] DatabaseError),
    #[error("the route table in the database is not a signed document")]
    Table(#[source] serde_json::Error),
    #[error("a desired state cannot be written as JSON")]
    Write(#[source] serde_json::Error),
    #[error("there is no key to sign desired states with")]
    NoKey,
    #[error("the broker takes no messages")]
    NoRoom,
}

/// What all devices should have, as of one route table.
pub(super) struct Content {
    version: Option<i64>,
    document: Option<DesiredDocument>,
    sha256: String,
}

impl Content {
    /// The newest route table as it goes into desired states.
    pub(super) async fn load(database: &Database, config: &DesiredConfig) -> Result<Self, DesiredError> {
        let Some(row) = latest_table(database).await? else {
            return Ok(Self { version: None, document: None, sha256: hex(&sha256(b"")) });
        };
        let document = if row.envelope.len() <= INLINE_MAX {
            DesiredDocument::Inline(serde_json::from_str(&row.envelope).map_err(DesiredError::Table)?)
        } else {
            DesiredDocument::Reference { sha256: row.sha256, url: config.route_table_url.clone() }
        };
        let text = serde_json::to_vec(&document).map_err(DesiredError::Write)?;
        Ok(Self { version: Some(row.version), sha256: hex(&sha256(&text)), document: Some(document) })
    }

    /// The version of its route table.
    pub(super) fn version(&self) -> Option<i64> {
        self.version
    }

    /// What distinguishes the content of one device: a row of overrides never changes, so its id stands for it.
    fn digest(&self, overrides: &[host_override::Model]) -> String {
        if overrides.is_empty() {
            return self.sha256.clone();
        }
        let ids = overrides.iter().map(|row| row.id.as_str());
        let text: Vec<&str> = std::iter::once(self.sha256.as_str()).chain(ids).collect();
        hex(&sha256(text.join(" ").as_bytes()))
    }

    fn sign(&self, wanted: &Wanted, key: &SigningKey, now: Timestamp) -> Result<Vec<u8>, DesiredError> {
        let desired = Desired {
            device: wanted.device.clone(),
            revision: u64::try_from(wanted.revision).unwrap_or(0),
            config: None,
            route_table: self.document.clone(),
            // Also when there is none: that is how a device learns that one was cleared.
            overrides: Some(wanted::entries(&wanted.overrides, now)),
            release: None,
        };
        let payload = serde_json::to_vec(&desired).map_err(DesiredError::Write)?;
        serde_json::to_vec(&Envelope::sign(dsse::DESIRED, &payload, &[key])).map_err(DesiredError::Write)
    }
}

/// What one device is to be told.
struct Wanted {
    device: DeviceId,
    revision: i64,
    overrides: Vec<host_override::Model>,
}

/// The newest route table, as it was signed.
///
/// # Errors
/// When the database does not answer.
pub async fn latest_table(database: &Database) -> Result<Option<route_table::Model>, DatabaseError> {
    let newest = route_table::Entity::find().order_by_desc(route_table::Column::Version);
    Ok(newest.one(database.read()).await?)
}

/// What a device has said of itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Reported {
    revision: i64,
    route_table: Option<i64>,
}

/// What to do for one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// It has, or is being sent, what it should.
    Nothing,
    /// Publish the revision that it should have.
    Send(i64),
    /// The content is new: number it and publish it.
    Number(i64),
}

/// Decides for one device. `stored` is its revision and content so far; `reported` is set when it has just spoken.
/// Revisions start at the clock, so that they grow even over a database that was restored from an old copy.
fn plan(
    stored: Option<(i64, bool)>,
    reported: Option<Reported>,
    wanted: Option<i64>,
    now: Timestamp,
) -> Step {
    let floor = (now.millis() / 1000).max(1);
    let said = reported.map_or(0, |reported| reported.revision);
    match stored {
        None if wanted.is_none() => Step::Nothing,
        None => Step::Number(floor.max(said.saturating_add(1))),
        Some((revision, same)) if !same || said > revision => {
            Step::Number(floor.max(revision.max(said).saturating_add(1)))
        }
        Some((revision, _)) => match reported {
            Some(reported) if reported.revision < revision || reported.route_table < wanted => {
                Step::Send(revision)
            }
            _ => Step::Nothing,
        },
    }
}

/// Compares one device, which has just reported, with what it should be.
pub(super) async fn check(
    database: &Database,
    config: &DesiredConfig,
    content: &Content,
    link: &Link,
    name: &DeviceId,
    now: Timestamp,
) -> Result<(), DesiredError> {
    let status = device_status::Entity::find_by_id(name.as_str())
        .one(database.read())
        .await
        .map_err(DatabaseError::from)?;
    let reported = status.map(|row| Reported { revision: row.config_revision, route_table: row.route_table });
    for wanted in number(database, content, vec![(name.clone(), reported)], now).await? {
        publish(config, content, link, &wanted, now).await?;
    }
    Ok(())
}

/// Devices whose overrides are not those that they were told last: somebody changed them, here or at another server, or
/// the time of one is over.
pub(super) async fn overridden(
    database: &Database,
    content: &Content,
    now: Timestamp,
) -> Result<Vec<DeviceId>, DatabaseError> {
    let lists = wanted::recent(database, now).await?;
    let names: Vec<&str> = lists.keys().map(String::as_str).collect();
    let mut told = BTreeMap::new();
    for some in names.chunks(ASK) {
        let rows = device_desired::Entity::find()
            .filter(device_desired::Column::Device.is_in(some.iter().copied()))
            .all(database.read())
            .await?;
        told.extend(rows.into_iter().map(|row| (row.device, row.content_sha256)));
    }
    let changed = |(name, rows): &(&String, &Vec<_>)| told.get(*name) != Some(&content.digest(rows));
    Ok(lists.iter().filter(changed).filter_map(|(name, _)| name.parse().ok()).collect())
}

/// Gives every device that has other content than this one a new revision and publishes it.
pub(super) async fn sweep(
    database: &Database,
    config: &DesiredConfig,
    content: &Content,
    link: &Link,
    now: impl Fn() -> Timestamp,
) -> Result<u64, DesiredError> {
    let (mut after, mut sent) = (String::new(), 0);
    loop {
        let page = device::Entity::find()
            .filter(device::Column::Id.gt(after.clone()))
            .order_by_asc(device::Column::Id)
            .limit(PAGE)
            .all(database.read())
            .await
            .map_err(DatabaseError::from)?;
        let Some(last) = page.last() else { return Ok(sent) };
        after.clone_from(&last.id);
        let names = page.iter().filter_map(|row| row.id.parse().ok()).map(|name| (name, None)).collect();
        for wanted in number(database, content, names, now()).await? {
            publish(config, content, link, &wanted, now()).await?;
            sent += 1;
        }
    }
}

/// Numbers what is new and gives what is to be published.
async fn number(
    database: &Database,
    content: &Content,
    devices: Vec<(DeviceId, Option<Reported>)>,
    now: Timestamp,
) -> Result<Vec<Wanted>, DatabaseError> {
    use device_desired::Column as D;
    let write = database.write().await?;
    let names: Vec<_> = devices.iter().map(|(name, _)| name.as_str()).collect();
    let revoked = revocation::among(&*write, &names).await?;
    let stored = device_desired::Entity::find()
        .filter(D::Device.is_in(names.iter().copied()))
        .lock_exclusive()
        .all(&*write)
        .await?;
    let mut overrides = wanted::active(&*write, &names, now).await?;
    let (mut rows, mut to_send) = (Vec::new(), Vec::new());
    for (name, reported) in &devices {
        if revoked.contains(name.as_str()) {
            continue;
        }
        let (name, reported) = (name.clone(), *reported);
        let row = stored.iter().find(|row| row.device == name.as_str());
        let overrides = overrides.remove(name.as_str()).unwrap_or_default();
        let digest = content.digest(&overrides);
        let row = row.map(|row| (row.revision, row.content_sha256 == digest));
        match plan(row, reported, content.version, now) {
            Step::Nothing => {}
            Step::Send(revision) => to_send.push(Wanted { device: name, revision, overrides }),
            Step::Number(revision) => {
                rows.push(device_desired::ActiveModel {
                    device: Set(name.as_str().to_owned()),
                    revision: Set(revision),
                    content_sha256: Set(digest),
                    route_table: Set(content.version),
                    signed_at: Set(now.millis()),
                });
                to_send.push(Wanted { device: name, revision, overrides });
            }
        }
    }
    if !rows.is_empty() {
        let replace = OnConflict::column(D::Device)
            .update_columns([D::Revision, D::ContentSha256, D::RouteTable, D::SignedAt])
            .to_owned();
        device_desired::Entity::insert_many(rows)
            .on_conflict(replace)
            .exec_without_returning(&*write)
            .await?;
    }
    write.commit().await?;
    Ok(to_send)
}

async fn publish(
    config: &DesiredConfig,
    content: &Content,
    link: &Link,
    wanted: &Wanted,
    now: Timestamp,
) -> Result<(), DesiredError> {
    let (environment, device) = (config.environment.clone(), wanted.device.clone());
    let topic = Topic { environment, device, channel: Channel::Desired };
    let key = config.keys.commands.iter().find(|(role, _)| *role == Role::Admin);
    let (_, key) = key.ok_or(DesiredError::NoKey)?;
    let payload = content.sign(wanted, key, now)?;
    let lasting = wanted.overrides.is_empty();
    let expiry = (!lasting).then_some(OVERRIDES_EXPIRY_S);
    let until = tokio::time::Instant::now() + ROOM;
    while link.publish(topic.to_string(), payload.clone(), lasting, expiry).is_err() {
        if tokio::time::Instant::now() >= until {
            return Err(DesiredError::NoRoom);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: fn(i64) -> Timestamp = |seconds| Timestamp::from_millis(seconds * 1000);

    fn reported(revision: i64, route_table: i64) -> Option<Reported> {
        Some(Reported { revision, route_table: (route_table > 0).then_some(route_table) })
    }

    #[test]
    fn a_device_gets_a_first_revision_when_there_is_something_to_say() {
        assert_eq!(plan(None, None, None, NOW(50)), Step::Nothing);
        assert_eq!(plan(None, None, Some(7), NOW(50)), Step::Number(50));
        assert_eq!(
            plan(None, reported(90, 0), Some(7), NOW(50)),
            Step::Number(91),
            "never below what it has"
        );
    }

    #[test]
    fn new_content_gets_a_higher_revision_whatever_the_clock_says() {
        assert_eq!(plan(Some((50, false)), None, Some(8), NOW(60)), Step::Number(60));
        assert_eq!(plan(Some((50, false)), None, Some(8), NOW(10)), Step::Number(51));
        assert_eq!(
            plan(Some((50, true)), reported(70, 8), Some(8), NOW(10)),
            Step::Number(71),
            "an old database"
        );
    }

    #[test]
    fn a_device_that_is_behind_is_sent_what_it_should_have() {
        assert_eq!(plan(Some((50, true)), reported(49, 7), Some(7), NOW(60)), Step::Send(50));
        assert_eq!(plan(Some((50, true)), reported(50, 6), Some(7), NOW(60)), Step::Send(50));
        assert_eq!(plan(Some((50, true)), reported(50, 0), Some(7), NOW(60)), Step::Send(50));
        assert_eq!(plan(Some((50, true)), reported(50, 7), Some(7), NOW(60)), Step::Nothing);
        assert_eq!(plan(Some((50, true)), None, Some(7), NOW(60)), Step::Nothing);
    }
}
