//! What all servers of one fleet share: the authority, the route-signing key and the command-signing keys.
//!
//! ```text
//! database has it ────────────► use it; write the copy in DIR if it is missing
//! database has not, DIR has ──► store DIR's (a move to another database)
//! neither has ────────────────► make it, insert-if-absent, read back (two servers starting at once agree)
//! both have, and they differ ─► refuse to start: one of the two belongs to another fleet
//! ```

use std::path::{Path, PathBuf};

use samovar_wire::Timestamp;
use samovar_wire::activation::{CommandKey, Role};
use samovar_wire::dsse::{SigningKey, TrustedKeys, new_seed};
use samovar_wire::encoding::{hex, sha256};
use sea_orm::ActiveValue::Set;
use sea_orm::EntityTrait as _;
use sea_orm::sea_query::OnConflict;

use super::authority::{Authority, AuthorityPem, PkiError};
use crate::auth::role_name;
use crate::config;
use crate::db::entity::secret;
use crate::db::{Database, DatabaseError};
use crate::store::{ReplaceError, replace, replace_secret};

/// Shared keys could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    /// A file cannot be read.
    #[error("{path} cannot be read", path = path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A folder cannot be made.
    #[error("{path} cannot be made", path = path.display())]
    Folder {
        /// Which folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A copy cannot be written.
    #[error(transparent)]
    Write(#[from] ReplaceError),
    /// Directory and database belong to different fleets.
    #[error("{path} differs from what the database holds: this directory or this database belongs to another fleet", path = path.display())]
    Differs {
        /// The file that differs.
        path: PathBuf,
    },
    /// The database did not answer.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The authority cannot be made or used.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// A stored key is not one.
    #[error("the stored key `{name}` is not usable")]
    Unusable {
        /// Which one.
        name: String,
    },
    /// No randomness.
    #[error(transparent)]
    Random(#[from] crate::random::NoRandomness),
}

/// The keys this fleet signs with.
pub struct SigningKeys {
    /// Signs route tables; `None` on a server that signs none.
    pub routes: Option<SigningKey>,
    /// Sign commands, one for each role.
    pub commands: Vec<(Role, SigningKey)>,
}

impl std::fmt::Debug for SigningKeys {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("SigningKeys")
            .field("routes", &self.routes.as_ref().map(|key| &key.key_id))
            .finish_non_exhaustive()
    }
}

impl SigningKeys {
    /// What devices are told to trust for route tables.
    #[must_use]
    pub fn trusted(&self) -> TrustedKeys {
        self.routes.iter().map(|key| (key.key_id.clone(), key.public())).collect()
    }

    /// What devices are told to trust for commands.
    #[must_use]
    pub fn commands_keys(&self) -> std::collections::BTreeMap<String, CommandKey> {
        self.commands
            .iter()
            .map(|(role, key)| (key.key_id.clone(), CommandKey { key: key.public(), role: *role }))
            .collect()
    }
}

/// The authority of this fleet: from files if configured, else shared through the database.
///
/// # Errors
/// [`SecretsError`].
pub async fn authority(
    database: &Database,
    dir: &Path,
    (pki, fleet): (&config::Pki, &str),
    now: Timestamp,
) -> Result<Authority, SecretsError> {
    if !pki.ca_cert.as_os_str().is_empty() {
        let stored = AuthorityPem { certificate: read(&pki.ca_cert)?, key: read(&pki.ca_key)? };
        return Ok(Authority::from_pem(&stored)?);
    }
    let dir = dir.join("ca");
    folder(&dir)?;
    let (certificate, key) = (dir.join("ca.pem"), dir.join("ca.key"));
    let have = match (read_if_there(&certificate)?, read_if_there(&key)?) {
        (Some(certificate), Some(key)) => Some(AuthorityPem { certificate, key }),
        _ => None,
    };
    // One row holds both, so that they can never be of two authorities.
    let join = |pem: &AuthorityPem| format!("{}{}", pem.certificate, pem.key);
    let offered = match &have {
        Some(pem) => pem.clone(),
        None => Authority::generate(fleet, now)?,
    };
    let stored = agree(database, "ca", &join(&offered), now).await?;
    if have.is_some() && stored != join(&offered) {
        return Err(SecretsError::Differs { path: certificate });
    }
    let split =
        stored.find("-----BEGIN PRIVATE KEY").ok_or_else(|| SecretsError::Unusable { name: "ca".into() })?;
    let shared = AuthorityPem { certificate: stored[..split].to_owned(), key: stored[split..].to_owned() };
    let authority = Authority::from_pem(&shared)?;
    if have.is_none() {
        replace_secret(&key, shared.key.as_bytes())?;
        replace(&certificate, shared.certificate.as_bytes())?;
    }
    Ok(authority)
}

/// The signing keys of this fleet; the one for route tables only if `sign_routes`.
///
/// # Errors
/// [`SecretsError`].
pub async fn signing_keys(
    database: &Database,
    dir: &Path,
    sign_routes: bool,
    now: Timestamp,
) -> Result<SigningKeys, SecretsError> {
    let dir = dir.join("keys");
    folder(&dir)?;
    let routes = match sign_routes {
        true => Some(signing_key(database, &dir, "routes", now).await?),
        false => None,
    };
    let mut commands = Vec::new();
    for role in [Role::Support, Role::Field, Role::Netops, Role::Admin] {
        commands
            .push((role, signing_key(database, &dir, &format!("commands-{}", role_name(role)), now).await?));
    }
    Ok(SigningKeys { routes, commands })
}

async fn signing_key(
    database: &Database,
    dir: &Path,
    name: &str,
    now: Timestamp,
) -> Result<SigningKey, SecretsError> {
    let path = dir.join(format!("{name}.seed"));
    let have = read_if_there(&path)?.map(|text| text.trim().to_owned());
    let offered = match &have {
        Some(seed) => seed.clone(),
        None => new_seed().ok_or(crate::random::NoRandomness)?,
    };
    let stored = agree(database, name, &offered, now).await?;
    if have.is_some() && stored != offered {
        return Err(SecretsError::Differs { path });
    }
    let unusable = || SecretsError::Unusable { name: name.to_owned() };
    let public: String = SigningKey::from_seed("", &stored).map_err(|_| unusable())?.public().into();
    // The name of a key follows from the key, so that a new key never takes an old one's name.
    let key_id = format!("{name}-{}", &hex(&sha256(public.as_bytes()))[..8]);
    if have.is_none() {
        replace_secret(&path, format!("{stored}\n").as_bytes())?;
    }
    SigningKey::from_seed(key_id, &stored).map_err(|_| unusable())
}

/// Stores a value unless one is stored, and gives the stored one.
async fn agree(
    database: &Database,
    name: &str,
    offered: &str,
    now: Timestamp,
) -> Result<String, SecretsError> {
    let row = secret::ActiveModel {
        name: Set(name.to_owned()),
        value: Set(offered.as_bytes().to_vec()),
        created_at: Set(now.millis()),
    };
    let write = database.write().await?;
    secret::Entity::insert(row)
        .on_conflict(OnConflict::column(secret::Column::Name).do_nothing().to_owned())
        .exec_without_returning(&*write)
        .await
        .map_err(DatabaseError::Statement)?;
    write.commit().await?;
    let found =
        secret::Entity::find_by_id(name).one(database.read()).await.map_err(DatabaseError::Statement)?;
    found
        .and_then(|found| String::from_utf8(found.value).ok())
        .ok_or_else(|| SecretsError::Unusable { name: name.to_owned() })
}

fn folder(path: &Path) -> Result<(), SecretsError> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| SecretsError::Folder { path: path.to_owned(), source })
}

fn read(path: &Path) -> Result<String, SecretsError> {
    std::fs::read_to_string(path).map_err(|source| SecretsError::Read { path: path.to_owned(), source })
}

fn read_if_there(path: &Path) -> Result<Option<String>, SecretsError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(SecretsError::Read { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn database(dir: &Path) -> Database {
        Database::open(&format!("sqlite://{}/fleet.db", dir.display())).await.unwrap()
    }

    #[tokio::test]
    async fn two_servers_of_one_database_share_authority_and_keys_and_a_new_database_takes_the_directorys() {
        let (home, one, other) =
            (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let shared = database(home.path()).await;
        let now = crate::clock::now();
        let pki = config::Pki::default();
        let first = authority(&shared, one.path(), (&pki, "HQ"), now).await.unwrap();
        let second = authority(&shared, other.path(), (&pki, "HQ"), now).await.unwrap();
        assert_eq!(first.pem(), second.pem());
        let keys = signing_keys(&shared, one.path(), true, now).await.unwrap();
        assert_eq!(keys.trusted(), signing_keys(&shared, other.path(), true, now).await.unwrap().trusted());
        let elsewhere = tempfile::tempdir().unwrap();
        let empty = database(elsewhere.path()).await;
        assert_eq!(authority(&empty, one.path(), (&pki, "HQ"), now).await.unwrap().pem(), first.pem());
    }

    #[tokio::test]
    async fn a_directory_of_another_fleet_is_refused() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (first, second) = (database(one.path()).await, database(other.path()).await);
        let now = crate::clock::now();
        signing_keys(&first, one.path(), true, now).await.unwrap();
        signing_keys(&second, other.path(), true, now).await.unwrap();
        assert!(matches!(
            signing_keys(&second, one.path(), true, now).await,
            Err(SecretsError::Differs { .. })
        ));
    }
}
