//! The loop of identity: notices an activation, renews the certificate, publishes both, raises conditions.
//!
//! Whoever connects somewhere takes the TLS configuration from [`Identity::tls`] and connects anew when it changes.
//! An activation made by the CLI while the agent runs is noticed within two seconds; nobody restarts anything.

use super::certificate::Validity;
use super::effective::{self, DeviceIdentity, LoadError, Loaded};
use super::files;
use super::renew::{self, Present};
use super::renewal::{self, Attempts, Facts, Outlook, Trouble};
use crate::clock;
use crate::config::Config;
use crate::heartbeat::Heartbeat;
use crate::net::explain;
use crate::status::Board;
use rustls::ClientConfig;
use samovar_wire::conditions::Condition;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;

/// How soon a changed file is noticed.
const NOTICE: Duration = Duration::from_secs(2);

/// How long the loop may go without a beat: three requests of a renewal, with room. Register its heartbeat with this.
pub const HEARTBEAT_LIMIT: Duration = Duration::from_secs(60);

type TlsConfig = Option<Arc<ClientConfig>>;
type Stamp = Vec<Option<(SystemTime, u64)>>;

/// Who the device is now, for every other flow.
#[derive(Debug, Clone)]
pub struct Identity {
    who: watch::Receiver<Option<Arc<DeviceIdentity>>>,
    tls: watch::Receiver<TlsConfig>,
    validity: watch::Receiver<Option<Validity>>,
}

impl Identity {
    /// Who the device is; `None` before activation.
    #[must_use]
    pub fn current(&self) -> Option<Arc<DeviceIdentity>> {
        self.who.borrow().clone()
    }

    /// Tells when the device becomes somebody, or somebody else.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Option<Arc<DeviceIdentity>>> {
        self.who.clone()
    }

    /// What to connect with; `None` when TLS cannot be set up. Changes with each renewal.
    #[must_use]
    pub fn tls(&self) -> watch::Receiver<TlsConfig> {
        self.tls.clone()
    }

    /// From when until when the certificate holds; `None` without one.
    #[must_use]
    pub fn validity(&self) -> Option<Validity> {
        *self.validity.borrow()
    }
}

/// The loop, before it runs.
#[derive(Debug)]
pub struct Flow {
    dir: PathBuf,
    config: Config,
    board: Board,
    loaded: Loaded,
    stamp: Stamp,
    attempts: Attempts,
    /// Why the last attempt or reload failed; empty when it did not.
    last_error: String,
    who: watch::Sender<Option<Arc<DeviceIdentity>>>,
    tls: watch::Sender<TlsConfig>,
    validity: watch::Sender<Option<Validity>>,
}

/// Loads the identity and prepares the loop. What is published holds from here on, also before the loop runs.
///
/// # Errors
/// When it cannot be loaded: a file that the configuration names is wrong, or the data directory cannot be read.
pub fn start(dir: &Path, config: &Config, board: Board) -> Result<(Identity, Flow), LoadError> {
    let stamp = files::stamp(&watched(dir, config));
    let loaded = effective::load(dir, config)?;
    let mut flow = Flow {
        dir: dir.to_owned(),
        config: config.clone(),
        board,
        loaded,
        stamp,
        attempts: Attempts::default(),
        last_error: String::new(),
        who: watch::Sender::new(None),
        tls: watch::Sender::new(None),
        validity: watch::Sender::new(None),
    };
    flow.publish();
    let identity = Identity {
        who: flow.who.subscribe(),
        tls: flow.tls.subscribe(),
        validity: flow.validity.subscribe(),
    };
    Ok((identity, flow))
}

fn watched(dir: &Path, config: &Config) -> Vec<PathBuf> {
    let mut files = effective::configured_files(&config.origin);
    files.push(files::commit_file(dir));
    files
}

impl Flow {
    /// Runs until told to stop.
    pub async fn run(mut self, heartbeat: Heartbeat, mut stop: watch::Receiver<bool>) {
        loop {
            heartbeat.beat();
            let outlook = self.outlook();
            self.tell(&outlook);
            let pause = outlook.look_again.min(NOTICE);
            tokio::select! {
                () = self.renew(), if outlook.renew => {}
                () = tokio::time::sleep(pause), if !outlook.renew => {}
                _ = stop.wait_for(|stopping| *stopping) => return,
            }
            self.notice();
        }
    }

    fn facts(&self) -> Option<Facts> {
        let credential = self.loaded.credential.as_ref()?;
        let [high, low, ..] = credential.fingerprint();
        Some(Facts {
            validity: credential.validity(),
            renewable: self.loaded.renewable,
            spread: u16::from_be_bytes([high, low]),
            now: clock::trusted_wall(),
            mono: clock::mono(),
        })
    }

    fn outlook(&self) -> Outlook {
        let idle = Outlook { renew: false, look_again: NOTICE, trouble: None };
        self.facts().map_or(idle, |facts| renewal::outlook(&facts, &self.attempts))
    }

    fn tell(&self, outlook: &Outlook) {
        let words = || {
            let end = self.facts().map(|facts| facts.validity.not_after.to_string()).unwrap_or_default();
            let why = if self.last_error.is_empty() { "" } else { "; " };
            Some(format!("certificate ends at {end}{why}{}", self.last_error))
        };
        let told = |trouble| if outlook.trouble == Some(trouble) { words() } else { None };
        self.board.set(Condition::CertificateExpiring, told(Trouble::Expiring));
        self.board.set(Condition::CertificateExpired, told(Trouble::Expired));
    }

    async fn renew(&mut self) {
        let (Some(facts), Some(activation)) = (self.facts(), self.loaded.activation.clone()) else { return };
        let outcome = match self.loaded.client_config() {
            Ok(tls) => renew::renew(Present { dir: self.dir.clone(), activation, tls }).await,
            Err(error) => Err(error.into()),
        };
        match outcome {
            Ok(_) => {
                tracing::info!("the certificate was renewed");
                self.attempts = Attempts::default();
                self.last_error.clear();
                self.reload();
            }
            Err(error) => {
                self.last_error = explain(&error);
                tracing::warn!(error = self.last_error, "the certificate was not renewed");
                let left = renewal::left(facts.validity, facts.now);
                self.attempts.failed(clock::mono(), left, fastrand::u16(..));
            }
        }
    }

    /// Reloads when a file has changed.
    fn notice(&mut self) {
        if files::stamp(&watched(&self.dir, &self.config)) != self.stamp {
            self.reload();
        }
    }

    fn reload(&mut self) {
        // Before the content, so that a change in between is seen the next time.
        self.stamp = files::stamp(&watched(&self.dir, &self.config));
        match effective::load(&self.dir, &self.config) {
            Ok(loaded) => {
                let fingerprint = |loaded: &Loaded| loaded.credential.as_ref().map(|own| own.fingerprint());
                if fingerprint(&loaded) != fingerprint(&self.loaded) {
                    self.attempts = Attempts::default();
                    self.last_error.clear();
                }
                self.loaded = loaded;
                self.publish();
            }
            // What was loaded before stays in force, and the next look tries again: a file may be half replaced at
            // this moment, or still belong to whoever ran the command.
            Err(error) => {
                self.stamp.clear();
                let words = explain(&error);
                if words != self.last_error {
                    tracing::error!(error = words, "the identity on disk cannot be loaded");
                    self.last_error = words;
                }
            }
        }
    }

    fn why_not_active(&self) -> Option<&'static str> {
        let Loaded { identity, activation, credential, .. } = &self.loaded;
        match (identity, activation, credential) {
            (None, ..) => Some("no identity in the configuration or on disk"),
            // It knows its name and cannot prove it.
            (Some(_), Some(_), None) => {
                Some("the certificate or its key is damaged: activate again with --replace")
            }
            _ => None,
        }
    }

    fn publish(&mut self) {
        let set_aside: Vec<String> = self.loaded.set_aside.iter().map(ToString::to_string).collect();
        if !set_aside.is_empty() {
            self.board.raise(Condition::FileSetAside, set_aside.join("; "));
        }
        self.board.set(Condition::NotActivated, self.why_not_active().map(str::to_owned));
        let tls = self.loaded.client_config().map(Arc::new).inspect_err(|error| {
            tracing::error!(
                error = explain(error),
                "no TLS: only plain connections to this machine can work"
            );
        });
        self.tls.send_replace(tls.ok());
        self.validity.send_replace(self.loaded.credential.as_ref().map(|own| own.validity()));
        let who = self.loaded.identity.clone().map(Arc::new);
        self.who.send_if_modified(|known| {
            let changed = *known != who;
            *known = who;
            changed
        });
    }
}

#[cfg(test)]
mod tests;
