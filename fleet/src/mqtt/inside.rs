//! The broker inside: its files, its certificate, and its questions answered (IO).

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sea_orm::{ColumnTrait as _, EntityTrait as _, QueryFilter as _};
use tokio::sync::Notify;

use super::{Mqtt, MqttError, Needs, Tasks, ingest_config, told};
use crate::activation::revocation;
use crate::broker::{Admission, Broker, BrokerConfig, Cutter, Question, TlsListen};
use crate::clock;
use crate::db::Database;
use crate::db::entity::certificate;
use crate::ingest::Ingest;
use crate::ingest::url::BrokerUrl;
use crate::pki::server_cert;
use crate::store::{replace, replace_secret};

/// How long the broker's certificate lives. It is read once, at start, so it has to outlive the process.
const CERTIFICATE_DAYS: u16 = 825;

/// How often certificates are looked for that another server has revoked.
const LOOK: Duration = Duration::from_secs(3);
/// How long a revoked certificate's connection is looked for; also what the clocks of two servers may differ by.
const LINGER: Duration = Duration::from_secs(60);

/// Starts the broker and the flow on it.
pub(super) async fn start(needs: Needs<'_>) -> Result<Mqtt, MqttError> {
    let broker = &needs.config.broker;
    let dir = needs.dir.join("broker");
    std::fs::create_dir_all(&dir).map_err(|source| MqttError::Read { path: dir.clone(), source })?;
    let ca = dir.join("client-ca.pem");
    replace(&ca, needs.client_ca.as_bytes())?;
    let (cert, key) = own_certificate(&needs, &dir)?;
    let (admission, questions) = Admission::channel();
    tokio::spawn(admit(needs.database.clone(), questions));
    let running = Broker::start(BrokerConfig {
        data_dir: dir,
        environment: needs.config.server.environment.clone(),
        tls: Some(TlsListen { listen: address("broker.tls_listen", &broker.tls_listen)?, ca, cert, key }),
        plain_listen: address("broker.listen", &broker.listen)?,
        admission: Some(admission),
    })
    .await?;
    let port = running.tls_addr().map_or(0, |addr| addr.port());
    let url = running.fleet_url().parse::<BrokerUrl>()?;
    let (ingest, tasks) = Ingest::start(needs.database, ingest_config(&needs, url, None)?)?;
    let cutting = cut_off(needs.database.clone(), running.cutter(), ingest.revocations());
    let cutting = tokio::spawn(cutting).abort_handle();
    Ok(Mqtt {
        ingest,
        here: Some(format!("mqtts://127.0.0.1:{port}")),
        for_devices: told(broker, format!("mqtts://{}:{port}", needs.config.server.public_host)),
        tasks: Tasks { ingest: Some(tasks), broker: Some(running), cutting: Some(cutting) },
    })
}

/// The configured certificate, or one of our own authority that is made anew at each start.
fn own_certificate(needs: &Needs<'_>, dir: &Path) -> Result<(PathBuf, PathBuf), MqttError> {
    let (tls, server) = (&needs.config.tls, &needs.config.server);
    if !tls.cert.as_os_str().is_empty() {
        return Ok((tls.cert.clone(), tls.key.clone()));
    }
    let made = needs.authority.issue_server(&server_cert::names(server), clock::now(), CERTIFICATE_DAYS)?;
    let (cert, key) = (dir.join("server.pem"), dir.join("server.key"));
    replace_secret(&key, made.key.as_bytes())?;
    replace(&cert, format!("{}{}", made.certificate, needs.authority.pem()).as_bytes())?;
    Ok((cert, key))
}

/// Answers the broker: a certificate is good while the database has it, for this device and not revoked.
async fn admit(database: Database, mut questions: tokio::sync::mpsc::Receiver<Question>) {
    while let Some(question) = questions.recv().await {
        let good = certificate::Entity::find()
            .filter(certificate::Column::Device.eq(&question.device))
            .filter(certificate::Column::RevokedAt.is_null())
            .all(database.read())
            .await;
        let admitted = match good {
            Ok(rows) => rows
                .iter()
                .any(|row| row.serial.trim_start_matches('0') == question.serial.trim_start_matches('0')),
            Err(error) => {
                tracing::warn!(%error, "a device's certificate could not be looked up");
                false
            }
        };
        // Whoever asked may have given up.
        let _ = question.answer.send(admitted);
    }
}

/// Ends the connections of revoked certificates: at once when this server revoked them, soon when another did. Each is
/// asked for again for a while, because a device may have been on its way in when the certificate was still good.
async fn cut_off(database: Database, cutter: Cutter, revoked: Arc<Notify>) {
    let mut looked = clock::now();
    loop {
        tokio::select! {
            () = revoked.notified() => {}
            () = tokio::time::sleep(LOOK) => {}
        }
        let now = clock::now();
        match revocation::since(&database, clock::earlier(looked, LINGER)).await {
            Ok(found) => {
                looked = now;
                for (device, serial) in found {
                    cutter.cut(&device, &serial).await;
                }
            }
            Err(error) => tracing::warn!(%error, "revoked certificates could not be looked up"),
        }
    }
}

fn address(key: &'static str, text: &str) -> Result<SocketAddr, MqttError> {
    text.parse().map_err(|_| MqttError::Address { key, text: text.to_owned() })
}
