//! `samovar-fleet origin-cert`: a server certificate from this fleet's authority, so that devices trust an origin that
//! is another process (or another program) than the fleet.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use serde_json::json;

use super::{client, print};
use crate::config::Config;
use crate::db::Database;
use crate::pki::secrets;
use crate::store::{replace, replace_secret};

#[derive(clap::Args)]
pub(super) struct OriginCert {
    /// The fleet's data directory
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// The fleet's configuration file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One setting, such as database.url=postgres://…
    #[arg(long, value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
    /// A name or address of the origin; may be given several times
    #[arg(long, required = true, value_name = "NAME")]
    name: Vec<String>,
    /// Where origin.pem, origin.key and client-ca.pem are written
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How long it lives
    #[arg(long, default_value_t = 365)]
    days: u16,
    /// Print what was written as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(wanted: &OriginCert) -> Result<()> {
    client::block_on(issue(wanted))
}

async fn issue(wanted: &OriginCert) -> Result<()> {
    let config = Config::load(wanted.config.as_deref(), &wanted.set)?;
    let url = if config.database.url.is_empty() {
        let path = wanted.data.join("fleet.db");
        anyhow::ensure!(path.exists(), "{} is not there: start the fleet once", path.display());
        format!("sqlite://{}", path.display())
    } else {
        config.database.url.clone()
    };
    let now = crate::clock::now();
    let database = Database::open(&url).await?;
    let authority =
        secrets::authority(&database, &wanted.data, (&config.pki, &config.server.fleet), now).await?;
    database.close().await;
    let issued = authority.issue_server(&wanted.name, now, wanted.days)?;
    std::fs::create_dir_all(&wanted.out)
        .with_context(|| format!("{} cannot be made", wanted.out.display()))?;
    let file = |name: &str| wanted.out.join(name);
    replace_secret(&file("origin.key"), issued.key.as_bytes())?;
    replace(&file("origin.pem"), issued.certificate.as_bytes())?;
    replace(&file("client-ca.pem"), authority.pem().as_bytes())?;
    let written = json!({
        "cert": file("origin.pem"), "key": file("origin.key"), "client_ca": file("client-ca.pem"), "names": wanted.name,
    });
    if wanted.json {
        print::json(&written);
    } else {
        print::fields(&written);
    }
    Ok(())
}
