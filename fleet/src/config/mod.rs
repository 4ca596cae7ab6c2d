//! The server's configuration: one TOML file, one struct for each section, defaults for everything.
//!
//! Unknown keys are errors that name the file, the line and the key, because a misspelt key that is silently ignored
//! is found at the worst time. `defaults.toml` beside this file lists every key with its default and is compared
//! with the structs by a test. Durations carry their unit in the name.
//!
//! Precedence: command line > `--set` > file > defaults.

mod sections;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use sections::{
    Activation, Broker, BrokerChoice, Database, Intake, Log, Operators, Pki, Routes, Server, Tls,
    broker_choice,
};

/// Every key with its default, commented.
pub const DEFAULTS: &str = include_str!("defaults.toml");

/// The whole configuration. Modules are handed their section, never this.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Listening, names and limits.
    pub server: Server,
    /// Where things are stored.
    pub database: Database,
    /// The MQTT broker, inside or outside.
    pub broker: Broker,
    /// Certificate files for servers that are not issued by this fleet's own authority.
    pub tls: Tls,
    /// The certificate authority.
    pub pki: Pki,
    /// Order intake.
    pub intake: Intake,
    /// Route tables.
    pub routes: Routes,
    /// Claims.
    pub activation: Activation,
    /// Other fleets by the name their claim codes begin with, for redirects.
    pub peers: std::collections::BTreeMap<String, String>,
    /// People who log in.
    pub operators: Operators,
    /// What is written to standard output.
    pub log: Log,
}

/// The configuration cannot be used. Exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path} cannot be read", path = path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("{path}:{line}: {message}", path = path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong, with the key.
        message: String,
    },
    /// A `--set` is not `section.key=value`.
    #[error("--set {given}: expected section.key=value")]
    SetForm {
        /// What was given.
        given: String,
    },
    /// A `--set` names an unknown key or has a wrong value.
    #[error("--set {given}: {message}")]
    Set {
        /// What was given.
        given: String,
        /// What is wrong.
        message: String,
    },
    /// A value is of the right type and makes no sense.
    #[error("{key}: {message}")]
    Value {
        /// `section.key`.
        key: &'static str,
        /// Why not.
        message: String,
    },
}

impl Config {
    /// Whoever asks for a free HTTP port wants a server beside others: listeners that nobody named then take free
    /// ports on the same address instead of the well-known ones.
    pub fn follow_free_port(&mut self) {
        let Some(host) = self.server.listen.strip_suffix(":0").map(str::to_owned) else { return };
        let (server, broker) = (Server::default(), Broker::default());
        for (key, default) in [
            (&mut self.server.https_listen, server.https_listen),
            (&mut self.broker.tls_listen, broker.tls_listen),
        ] {
            if *key == default {
                *key = format!("{host}:0");
            }
        }
    }

    /// Reads the file (if one is named), then applies the `section.key=value` settings.
    ///
    /// # Errors
    /// [`ConfigError`] names the file, line and key.
    pub fn load(file: Option<&Path>, sets: &[String]) -> Result<Self, ConfigError> {
        let (mut table, mut config) = match file {
            None => (toml::Table::new(), Self::default()),
            Some(path) => read(path)?,
        };
        for set in sets {
            config = apply(&mut table, set)?;
        }
        match config.check() {
            Err(ConfigError::Value { key, message }) => Err(match set_of(sets, key) {
                Some(given) => {
                    ConfigError::Set { given: given.clone(), message: format!("{key}: {message}") }
                }
                None => placed(file, key, message),
            }),
            checked => checked.map(|()| config),
        }
    }

    fn check(&self) -> Result<(), ConfigError> {
        self.server.check()?;
        self.broker.check()?;
        self.tls.check()?;
        self.pki.check()?;
        self.routes.check()?;
        self.intake.check()?;
        self.log.check()
    }
}

fn read(path: &Path) -> Result<(toml::Table, Config), ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    let wrong = |error: toml::de::Error| ConfigError::File {
        path: path.to_owned(),
        line: error.span().map_or(1, |span| line_of(&text, span.start)),
        message: match error.span().and_then(|span| key_at(&text, span.start)) {
            Some(key) if !error.message().contains('`') => format!("{key}: {}", error.message()),
            _ => error.message().to_owned(),
        },
    };
    let config = toml::from_str::<Config>(&text).map_err(wrong)?;
    let table = toml::from_str::<toml::Table>(&text).map_err(wrong)?;
    Ok((table, config))
}

/// The `--set` that gave a key its value.
fn set_of<'a>(sets: &'a [String], key: &str) -> Option<&'a String> {
    sets.iter().rfind(|set| set.split_once('=').is_some_and(|(path, _)| path.trim() == key))
}

/// Where a senseless value was written, if it was written in the file.
fn placed(file: Option<&Path>, key: &'static str, message: String) -> ConfigError {
    let text = file.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
    let mut offset = 0;
    for line in text.split_inclusive('\n') {
        let begins = line.split_once('=').is_some() && key_at(&text, offset).as_deref() == Some(key);
        if let Some(path) = file.filter(|_| begins) {
            let (path, line) = (path.to_owned(), line_of(&text, offset));
            return ConfigError::File { path, line, message: format!("{key}: {message}") };
        }
        offset += line.len();
    }
    ConfigError::Value { key, message }
}

/// The key whose line this is, such as `server.listen`.
fn key_at(text: &str, offset: usize) -> Option<String> {
    let end = text.get(offset..)?.find('\n').map_or(text.len(), |more| offset + more);
    let (before, line) = text.get(..end)?.rsplit_once('\n').unwrap_or(("", text.get(..end)?));
    let key = line.split_once('=')?.0.trim();
    let section = before.lines().rev().find_map(|line| line.trim().strip_prefix('[')?.split(']').next());
    Some(section.map_or_else(|| key.to_owned(), |section| format!("{}.{key}", section.trim())))
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1
}

/// Puts one setting into the table; a value that is not TOML is taken as a string.
fn apply(table: &mut toml::Table, set: &str) -> Result<Config, ConfigError> {
    let form = || ConfigError::SetForm { given: set.to_owned() };
    let (path, value) = set.split_once('=').ok_or_else(form)?;
    let (section, key) = path.trim().split_once('.').ok_or_else(form)?;
    let value = format!("value = {value}")
        .parse::<toml::Table>()
        .ok()
        .and_then(|mut parsed| parsed.remove("value"))
        .unwrap_or_else(|| toml::Value::String(value.to_owned()));
    table
        .entry(section)
        .or_insert_with(|| toml::Value::Table(toml::Table::new()))
        .as_table_mut()
        .ok_or_else(form)?
        .insert(key.to_owned(), value);
    table.clone().try_into().map_err(|error: toml::de::Error| ConfigError::Set {
        given: set.to_owned(),
        message: error.message().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fleet.toml");
        std::fs::write(&path, text).unwrap();
        (dir, path)
    }

    #[test]
    fn a_free_http_port_means_free_ports_for_all_that_are_not_named() {
        let mut config = Config::default();
        config.follow_free_port();
        assert_eq!(config, Config::default());
        config.server.listen = "127.0.0.1:0".into();
        config.broker.tls_listen = "127.0.0.1:9999".into();
        config.follow_free_port();
        assert_eq!(config.server.https_listen, "127.0.0.1:0");
        assert_eq!(config.broker.tls_listen, "127.0.0.1:9999");
    }

    #[test]
    fn the_commented_defaults_are_the_defaults_and_complete() {
        assert_eq!(toml::from_str::<Config>(DEFAULTS).unwrap(), Config::default());
        let listed: toml::Table = DEFAULTS.parse().unwrap();
        let real = toml::Table::try_from(Config::default()).unwrap();
        for (section, keys) in &real {
            let listed =
                listed.get(section).and_then(toml::Value::as_table).unwrap_or_else(|| panic!("[{section}]"));
            for key in keys.as_table().unwrap().keys() {
                assert!(listed.contains_key(key), "{section}.{key} is missing in defaults.toml");
            }
        }
    }

    #[test]
    fn an_unknown_key_is_refused_with_file_line_and_key() {
        let (_dir, path) = file("[server]\nlisten = \"127.0.0.1:0\"\nlistne = \"x\"\n");
        let message = Config::load(Some(&path), &[]).unwrap_err().to_string();
        assert!(message.contains("fleet.toml:3"), "{message}");
        assert!(message.contains("listne"), "{message}");
    }

    #[test]
    fn a_value_of_the_wrong_type_or_without_sense_is_named_with_file_line_and_key() {
        for (text, line) in [
            ("[server]\nconnections = \"many\"\n", "fleet.toml:2: server.connections"),
            ("[pki]\n\ndevice_days = 0\n", "fleet.toml:3: pki.device_days"),
        ] {
            let (_dir, path) = file(text);
            let message = Config::load(Some(&path), &[]).unwrap_err().to_string();
            assert!(message.contains(line), "{message}");
        }
    }

    #[test]
    fn a_setting_wins_over_the_file_and_a_wrong_one_is_named() {
        let (_dir, path) = file("[intake]\norigin = \"apac\"\n");
        let config =
            Config::load(Some(&path), &["intake.origin=us-west".into(), "server.connections=7".into()])
                .unwrap();
        assert_eq!((config.intake.origin.as_str(), config.server.connections), ("us-west", 7));
        let message = Config::load(None, &["intake.orign=x".into()]).unwrap_err().to_string();
        assert!(message.contains("intake.orign=x") && message.contains("unknown field"), "{message}");
        assert!(matches!(Config::load(None, &["orign".into()]), Err(ConfigError::SetForm { .. })));
        let (_dir, path) = file("[pki]\ndevice_days = 30\n");
        let message = Config::load(Some(&path), &["pki.device_days=0".into()]).unwrap_err().to_string();
        assert!(message.starts_with("--set pki.device_days=0: pki.device_days"), "{message}");
    }

    #[test]
    fn values_without_sense_are_refused() {
        for set in [
            "server.fleet=a-b",
            "intake.keep_keys_days=30",
            "broker.url=http://x",
            "tls.cert=only.pem",
            "pki.device_days=0",
            "routes.sign=false",
            "log.filter=info,samovar_fleet=loud",
        ] {
            let refused = Config::load(None, &[set.into()]).unwrap_err();
            let named = matches!(refused, ConfigError::Value { .. } | ConfigError::Set { .. });
            assert!(named, "{set}: {refused}");
        }
    }
}
