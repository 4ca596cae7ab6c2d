//! Route tables without a server: keys, signatures, the devices' own acceptance rules, and a preview of what a device
//! would do.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;
use samovar_wire::dsse::{self, Envelope, PublicKey, SigningKey, TrustedKeys};
use samovar_wire::encoding::{from_base64, hex, sha256};
use samovar_wire::route::{self, Facts, Query, Scheme, Table};
use samovar_wire::status::Health;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{effect, print};
use crate::clock;
use crate::store::{replace, replace_secret};

#[derive(Subcommand)]
pub(super) enum Route {
    /// Make a signing key: the private file, and the public key that devices trust
    Keygen {
        /// The private key file; it must not exist yet
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Its name; otherwise one that follows from the key
        #[arg(long)]
        key_id: Option<String>,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Sign a table
    Sign {
        /// The table (JSON)
        table: PathBuf,
        /// The private key file; several make several signatures
        #[arg(long, required = true, value_name = "FILE")]
        key: Vec<PathBuf>,
        /// Where the envelope is written; otherwise it is printed
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Check an envelope by the rules of the devices
    Verify {
        /// The envelope
        envelope: PathBuf,
        /// A key to trust, as key-id=base64; may be given several times
        #[arg(long, value_name = "ID=KEY", value_parser = trusted)]
        trust: Vec<(String, PublicKey)>,
        /// The environment it must be for
        #[arg(long, default_value = "prod")]
        environment: String,
        /// Print as JSON
        #[arg(long)]
        json: bool,
    },
    /// Say where a device would send an order, and why; or what a table would change for a list of stores
    Preview(Box<Preview>),
}

#[derive(clap::Args)]
pub(super) struct Preview {
    /// A table or an envelope (whose signature is not checked here)
    table: PathBuf,
    #[command(flatten)]
    many: effect::Many,
    /// The device
    #[arg(long, required_unless_present = "stores")]
    device: Option<String>,
    /// Its store
    #[arg(long, required_unless_present = "stores")]
    store: Option<String>,
    /// The order's UDL, else the store's country
    #[arg(long, alias = "udl", required_unless_present = "stores")]
    country: Option<String>,
    /// The device's class
    #[arg(long, default_value = "pos")]
    class: String,
    /// The service
    #[arg(long, default_value = "orders")]
    service: String,
    /// The person the order concerns
    #[arg(long)]
    user: Option<String>,
    /// Suppose this origin is down; may be given several times
    #[arg(long, value_name = "ORIGIN")]
    down: Vec<String>,
    /// Suppose this origin measures as nearest
    #[arg(long, value_name = "ORIGIN")]
    nearest: Option<String>,
    /// Suppose this is the time (RFC 3339)
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

/// The private key file.
#[derive(Serialize, Deserialize)]
struct KeyFile {
    key_id: String,
    seed: String,
}

pub(super) fn run(command: Route) -> Result<()> {
    match command {
        Route::Keygen { out, key_id, json } => keygen(&out, key_id, json),
        Route::Sign { table, key, out } => sign(&table, &key, out.as_deref()),
        Route::Verify { envelope, trust, environment, json } => {
            verify(&envelope, &trust.into_iter().collect(), &environment, json)
        }
        Route::Preview(wanted) => preview(&wanted),
    }
}

fn keygen(out: &Path, key_id: Option<String>, as_json: bool) -> Result<()> {
    if out.exists() {
        bail!("{} is there already; a key is never overwritten", out.display());
    }
    let seed = dsse::new_seed().context("the system gives no random bytes")?;
    let public: String = SigningKey::from_seed("", &seed)?.public().into();
    let key_id = key_id.unwrap_or_else(|| format!("route-{}", &hex(&sha256(public.as_bytes()))[..8]));
    let file = serde_json::to_vec_pretty(&KeyFile { key_id: key_id.clone(), seed })?;
    replace_secret(out, &file)?;
    let made = json!({"key_id": key_id, "public_key": public, "file": out});
    if as_json {
        print::json(&made);
    } else {
        print::fields(&made);
    }
    Ok(())
}

fn sign(table: &Path, keys: &[PathBuf], out: Option<&Path>) -> Result<()> {
    let payload = read(table)?;
    // A table that no device would take is not signed.
    let environment = serde_json::from_slice::<Value>(&payload)
        .with_context(|| format!("{} is not JSON", table.display()))?["environment"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    route::check(&payload, &environment).map_err(|refusal| anyhow::anyhow!("the table {refusal}"))?;
    let envelope = signed(&payload, keys)?;
    let text = serde_json::to_string_pretty(&envelope)?;
    match out {
        Some(path) => Ok(replace(path, text.as_bytes())?),
        None => {
            print::line(&text);
            Ok(())
        }
    }
}

/// The bytes of a table signed with some key files.
pub(super) fn signed(payload: &[u8], keys: &[PathBuf]) -> Result<Envelope> {
    let keys = keys.iter().map(|path| signing_key(path)).collect::<Result<Vec<_>>>()?;
    Ok(Envelope::sign(dsse::ROUTE_TABLE, payload, &keys.iter().collect::<Vec<_>>()))
}

fn verify(path: &Path, trusted: &TrustedKeys, environment: &str, as_json: bool) -> Result<()> {
    let envelope: Envelope = serde_json::from_slice(&read(path)?)
        .with_context(|| format!("{} is not an envelope", path.display()))?;
    let accepted = route::accept(&envelope, trusted, environment, None, Some(clock::now()))
        .map_err(|refusal| anyhow::anyhow!("refused: the table {refusal}"))?;
    let table = &accepted.table;
    let report = json!({
        "accepted": true, "key_id": accepted.key_id, "environment": table.environment, "version": table.version,
        "sha256": hex(&accepted.sha256), "expires_at": table.expires_at,
    });
    if as_json {
        print::json(&report);
    } else {
        print::fields(&report);
    }
    Ok(())
}

fn preview(wanted: &Preview) -> Result<()> {
    let health = |origin: &samovar_wire::OriginId| {
        if wanted.down.iter().any(|down| down == origin.as_str()) { Health::Down } else { Health::Up }
    };
    let nearest = wanted.nearest.as_ref().map(|name| name.parse()).transpose()?;
    let now = match &wanted.at {
        Some(at) => at.parse()?,
        None => clock::now(),
    };
    let facts = Facts { now: Some(now), health: &health, nearest: nearest.as_ref(), scheme: Scheme::Https };
    if let Some(stores) = &wanted.many.stores {
        let tables = (wanted.many.before.as_deref(), &*wanted.table);
        return effect::preview(tables, stores, (&wanted.service, &facts), wanted.many.limit, wanted.json);
    }
    let table = table(&wanted.table)?;
    let given = |text: &Option<String>| text.clone().unwrap_or_default();
    let query = Query {
        service: &wanted.service.parse()?,
        class: &wanted.class.parse()?,
        device: &given(&wanted.device).parse()?,
        store: &given(&wanted.store).parse()?,
        country: &given(&wanted.country).parse()?,
        user: wanted.user.as_deref(),
    };
    let told = route::explain(&table, &query, &facts);
    if wanted.json {
        print::json(&serde_json::to_value(&told)?);
        return Ok(());
    }
    let mut answer = serde_json::to_value(&told)?;
    let reason = answer["reason"].take();
    if let Some(answer) = answer.as_object_mut() {
        answer.retain(|name, _| name != "reason" && name != "candidates");
    }
    print::fields(&answer);
    print::line("");
    print::table(reason.as_array().map_or(&[], Vec::as_slice), &["rule", "result", "detail"]);
    Ok(())
}

/// A table from a file that holds it, or an envelope of it.
pub(super) fn table(path: &Path) -> Result<Table> {
    let bytes = read(path)?;
    let payload = match serde_json::from_slice::<Envelope>(&bytes) {
        Ok(envelope) => from_base64(&envelope.payload).context("the envelope's payload is not base64")?,
        Err(_) => bytes,
    };
    serde_json::from_slice(&payload).with_context(|| format!("{} is not a route table", path.display()))
}

fn signing_key(path: &Path) -> Result<SigningKey> {
    let file: KeyFile = serde_json::from_slice(&read(path)?)
        .with_context(|| format!("{} is not a key file made by `route keygen`", path.display()))?;
    Ok(SigningKey::from_seed(file.key_id, &file.seed)?)
}

pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("{} cannot be read", path.display()))
}

fn trusted(text: &str) -> Result<(String, PublicKey), String> {
    let (id, key) = text.split_once('=').ok_or_else(|| "expected key-id=base64".to_owned())?;
    let key = PublicKey::try_from(key.to_owned()).map_err(|error| error.to_string())?;
    Ok((id.to_owned(), key))
}
