//! Configuration: one TOML file, one struct per section, every key with a default.
//!
//! Unknown keys are errors that name the key and the line, because a misspelt limit that is silently ignored is a
//! fault nobody finds. `--set section.key=value` overlays single keys. Relative paths are relative to the file.
//! `defaults.toml` beside this module is the reference; a test holds it against the code.

mod commands;
mod overlay;
mod sections;
mod single;
mod template;

pub use commands::{CommandKey, CommandsSection};
pub use sections::{
    Compression, DnsSection, HostsSection, IdentitySection, LocalApiSection, LogsSection, OrdersSection, OriginMode,
    OriginSection, OriginTls, RelaySection, RoutingSection,
};
pub use single::{Meaning, SingleMethod, SingleSection, Status};
pub use template::{Field, HeaderTemplate, PathTemplate, TemplateError, header_safe};

use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The reference: every key, with its default and what it means.
pub const REFERENCE: &str = include_str!("defaults.toml");

/// The whole configuration.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Who this device is, when no activation says it.
    pub identity: IdentitySection,
    /// The route table.
    pub routing: RoutingSection,
    /// Who is asked for names.
    pub dns: DnsSection,
    /// How origins are spoken to.
    pub origin: OriginSection,
    /// MQTT.
    pub relay: RelaySection,
    /// Who may command this device.
    pub commands: CommandsSection,
    /// The HTTP API on the device.
    pub local_api: LocalApiSection,
    /// Names that are pointed elsewhere for a while.
    pub hosts: HostsSection,
    /// The ledger and its dispatch.
    pub orders: OrdersSection,
    /// The agent's own logs.
    pub logs: LogsSection,
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A key or value is wrong; the text holds line, column and key.
    #[error("{path}: {message}")]
    Invalid {
        /// The file, or `--set`.
        path: String,
        /// What is wrong and where.
        message: String,
    },
}

impl ConfigError {
    fn invalid(path: impl Into<String>, message: &impl ToString) -> Self {
        Self::Invalid { path: path.into(), message: message.to_string().trim_end().to_owned() }
    }
}

impl Config {
    /// Reads the file, if one is named, and lays `--set` values over it.
    ///
    /// # Errors
    /// When the file cannot be read or a key or value is wrong.
    pub fn load(file: Option<&Path>, set: &[String]) -> Result<Self, ConfigError> {
        let (name, text) = match file {
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
                (path.display().to_string(), text)
            }
            None => ("defaults".to_owned(), String::new()),
        };
        // Read typed first: only this way an error still knows its line.
        let mut config: Self = toml::from_str(&text).map_err(|error| ConfigError::invalid(&name, &error))?;
        if !set.is_empty() {
            config = overlay::lay_over(&text, set)?;
        }
        config.resolve_paths(file.and_then(Path::parent));
        config.check().map_err(|(key, problem)| blame(key, &problem, (&name, &text), set))?;
        Ok(config)
    }

    fn resolve_paths(&mut self, base: Option<&Path>) {
        let Some(base) = base else { return };
        let tls = self.origin.tls.iter_mut().flat_map(|tls| [&mut tls.ca, &mut tls.cert, &mut tls.key]);
        for path in self.routing.table.iter_mut().chain(tls.flatten()) {
            *path = base.join(&*path);
        }
        let hosts = [&mut self.hosts.file, &mut self.hosts.helper];
        for path in hosts.into_iter().filter(|path| !path.as_os_str().is_empty()) {
            *path = base.join(&*path);
        }
    }

    /// Rules that span values: the key that is wrong and why.
    fn check(&self) -> Result<(), (&'static str, String)> {
        self.identity.check()?;
        self.routing.check()?;
        self.dns.check()?;
        self.origin.check()?;
        self.relay.check()?;
        self.commands.check()?;
        self.local_api.check()?;
        self.orders.check()?;
        self.logs.check()
    }
}

/// Says where a value without sense was written: in an argument, on a line of the file, or nowhere.
fn blame(key: &'static str, problem: &str, (name, text): (&str, &str), set: &[String]) -> ConfigError {
    let problem = format!("{key}: {problem}");
    if let Some(assignment) = overlay::naming(set, key) {
        return ConfigError::invalid(format!("--set {assignment}"), &problem);
    }
    match line_of(text, key) {
        Some(line) => ConfigError::invalid(name, &format!("line {line}: {problem}")),
        // What is missing stands nowhere; the argument that touched its section comes nearest.
        None => match overlay::touching(set, key) {
            Some(assignment) => ConfigError::invalid(format!("--set {assignment}"), &problem),
            None => ConfigError::invalid(name, &problem),
        },
    }
}

/// The line on which a `section.key` stands, for errors found after parsing.
fn line_of(text: &str, key: &str) -> Option<usize> {
    let (section, key) = key.split_once('.')?;
    let mut inside = false;
    text.lines().enumerate().find_map(|(index, line)| {
        let line = line.trim();
        if let Some(name) = line.strip_prefix('[') {
            inside = name.split(']').next().is_some_and(|name| name.trim() == section);
        }
        let names_key = line.split('=').next().is_some_and(|name| name.trim() == key);
        (inside && names_key).then_some(index + 1)
    })
}

#[cfg(test)]
mod tests;
