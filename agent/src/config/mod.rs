//! Configuration: one TOML file, one struct per section, every key with a default.
//!
//! Unknown keys are errors that name the key and the line, because a misspelt limit that is silently ignored is a
//! fault nobody finds. `--set section.key=value` overlays single keys. Relative paths are relative to the file.
//! `defaults.toml` beside this module is the reference; a test holds it against the code.

mod sections;
mod single;
mod template;

pub use sections::{
    Compression, DnsSection, IdentitySection, LocalApiSection, LogsSection, OrdersSection, OriginMode,
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
    /// The HTTP API on the device.
    pub local_api: LocalApiSection,
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
            config = overlay(&text, set)?;
        }
        config.resolve_paths(file.and_then(Path::parent));
        config.check().map_err(|(key, problem)| {
            let at = line_of(&text, key).map(|line| format!("line {line}: ")).unwrap_or_default();
            ConfigError::invalid(&name, &format!("{at}{key}: {problem}"))
        })?;
        Ok(config)
    }

    fn resolve_paths(&mut self, base: Option<&Path>) {
        let Some(base) = base else { return };
        let tls = self.origin.tls.iter_mut().flat_map(|tls| [&mut tls.ca, &mut tls.cert, &mut tls.key]);
        for path in self.routing.table.iter_mut().chain(tls.flatten()) {
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
        self.local_api.check()?;
        self.orders.check()?;
        self.logs.check()
    }
}

fn overlay(text: &str, set: &[String]) -> Result<Config, ConfigError> {
    let mut table: toml::Table =
        toml::from_str(text).map_err(|error| ConfigError::invalid("configuration", &error))?;
    for assignment in set {
        let invalid = |why: &str| ConfigError::invalid(format!("--set {assignment}"), &why);
        let (key, value) =
            assignment.split_once('=').ok_or_else(|| invalid("write it as section.key=value"))?;
        let (section, key) = key.split_once('.').ok_or_else(|| invalid("write it as section.key=value"))?;
        let section = table
            .entry(section.trim())
            .or_insert_with(|| toml::Value::Table(toml::Table::new()))
            .as_table_mut()
            .ok_or_else(|| invalid("that is not a section"))?;
        section.insert(key.trim().to_owned(), parse_value(value.trim()));
    }
    table.try_into().map_err(|error| ConfigError::invalid(format!("--set {}", set.join(" --set ")), &error))
}

/// A TOML value, or else the text itself, so that `--set logs.level=debug` needs no quotes.
fn parse_value(text: &str) -> toml::Value {
    toml::from_str::<toml::Table>(&format!("v = {text}"))
        .ok()
        .and_then(|mut table| table.remove("v"))
        .unwrap_or_else(|| toml::Value::String(text.to_owned()))
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
