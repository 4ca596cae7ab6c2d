//! `--set section.key=value`: single keys laid over the file, and which argument is to blame for an error. Pure.

use super::{Config, ConfigError};

/// The configuration of a file's text with the arguments laid over it, in their order.
pub(super) fn lay_over(text: &str, set: &[String]) -> Result<Config, ConfigError> {
    let table: toml::Table =
        toml::from_str(text).map_err(|error| ConfigError::invalid("configuration", &error))?;
    let mut tables = vec![table];
    for assignment in set {
        let mut table = tables.last().cloned().unwrap_or_default();
        insert(&mut table, assignment)
            .map_err(|why| ConfigError::invalid(format!("--set {assignment}"), &why))?;
        tables.push(table);
    }
    let typed = |table: &toml::Table| table.clone().try_into::<Config>();
    let whole = tables.pop().unwrap_or_default();
    typed(&whole).map_err(|error| {
        // The first argument after which it was wrong in the same way; one that a later one completes is not to blame.
        let same = |table| typed(table).is_err_and(|earlier| earlier.message() == error.message());
        let blamed = tables.iter().skip(1).position(same).unwrap_or(set.len().saturating_sub(1));
        let assignment = set.get(blamed).map(String::as_str).unwrap_or_default();
        ConfigError::invalid(format!("--set {assignment}"), &error.message())
    })
}

fn insert(table: &mut toml::Table, assignment: &str) -> Result<(), &'static str> {
    const FORM: &str = "write it as section.key=value";
    let (path, value) = assignment.split_once('=').ok_or(FORM)?;
    let (sections, key) = path.rsplit_once('.').ok_or(FORM)?;
    let mut inner = table;
    for section in sections.split('.') {
        inner = inner
            .entry(section.trim())
            .or_insert_with(|| toml::Value::Table(toml::Table::new()))
            .as_table_mut()
            .ok_or("that is a single value, not a section")?;
    }
    inner.insert(key.trim().to_owned(), parse_value(value.trim()));
    Ok(())
}

/// A TOML value, or else the text itself, so that `--set logs.level=debug` needs no quotes.
fn parse_value(text: &str) -> toml::Value {
    toml::from_str::<toml::Table>(&format!("v = {text}"))
        .ok()
        .filter(|table| table.len() == 1)
        .and_then(|mut table| table.remove("v"))
        .unwrap_or_else(|| toml::Value::String(text.to_owned()))
}

/// The argument that gives a key its value: the last one that names it, or something inside it.
pub(super) fn naming<'a>(set: &'a [String], key: &str) -> Option<&'a String> {
    set.iter().rfind(|assignment| {
        let rest = path(assignment).strip_prefix(key);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    })
}

/// The last argument that names a key of the same section.
pub(super) fn touching<'a>(set: &'a [String], key: &str) -> Option<&'a String> {
    let section = key.split('.').next();
    set.iter().rfind(|assignment| path(assignment).split('.').next() == section)
}

fn path(assignment: &str) -> &str {
    assignment.split_once('=').map_or(assignment, |(path, _)| path).trim()
}
