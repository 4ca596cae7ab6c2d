//! What a table would change, from files alone: two tables and a list of stores.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use samovar_wire::route::{self, Facts, Page, Till};
use serde::Deserialize;
use serde_json::Value;

use super::{offline, print};

/// A line of the list of stores.
#[derive(Deserialize)]
struct Listed {
    #[serde(alias = "id")]
    store: String,
    country: String,
    #[serde(default)]
    device: Option<String>,
    #[serde(default)]
    class: Option<String>,
}

/// Shows what one table changes against another for a list of stores (CSV with a header, or JSON).
pub(super) fn preview(
    (before, after): (Option<&Path>, &Path),
    stores: &Path,
    (service, facts): (&str, &Facts<'_>),
    limit: usize,
    as_json: bool,
) -> Result<()> {
    let before = before.map(offline::table).transpose()?;
    let after = offline::table(after)?;
    let tills = tills(stores)?;
    let page = Page { offset: 0, limit, country: None };
    let seen = route::preview((before.as_ref(), &after), &tills, &service.parse()?, facts, page);
    let seen = serde_json::to_value(&seen)?;
    if as_json {
        print::json(&seen);
    } else {
        show(&seen);
    }
    Ok(())
}

/// Prints a preview, as the server gives it or as made here.
pub(super) fn show(seen: &Value) {
    let number = |name: &str| seen[name].as_u64().unwrap_or(0);
    let before =
        seen["version_before"].as_u64().map_or_else(|| "none".to_owned(), |version| version.to_string());
    print::line(&format!("version {before} -> {}", seen["version_after"]));
    print::line(&format!(
        "{} stores, {} devices: {} change origin, {} no longer served, {} served again, {} new address",
        number("stores"),
        number("devices"),
        number("moved"),
        number("held"),
        number("freed"),
        number("readdressed"),
    ));
    let rows = |name: &str| seen[name].as_array().cloned().unwrap_or_default();
    print::line("");
    let columns = &["origin", "stores_before", "stores_after", "devices_before", "devices_after"];
    print::table(&rows("origins"), columns);
    print::line("");
    print::table(&rows("countries"), &["country", "stores", "devices", "changed"]);
    let moves = rows("moves");
    if moves.is_empty() {
        return;
    }
    print::line("");
    print::table(&moves, &["store", "device", "country", "change", "from", "to", "rule_after", "reason"]);
    let more = number("moves_total").saturating_sub(moves.len() as u64);
    if more > 0 {
        eprintln!("there are {more} more");
    }
}

fn tills(path: &Path) -> Result<Vec<Till>> {
    let listed = listed(path)?;
    let till = |one: Listed| -> Result<Till> {
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        Ok(Till {
            store: one.store.parse()?,
            country: one.country.parse()?,
            device: given(one.device).map(|device| device.parse()).transpose()?,
            class: given(one.class).as_deref().unwrap_or("default").parse()?,
        })
    };
    let mut tills = Vec::with_capacity(listed.len());
    for (number, one) in listed.into_iter().enumerate() {
        tills.push(till(one).with_context(|| format!("{}: entry {}", path.display(), number + 1))?);
    }
    tills.sort_by(|one, other| one.store.cmp(&other.store));
    Ok(tills)
}

fn listed(path: &Path) -> Result<Vec<Listed>> {
    let text = offline::read(path)?;
    let begins = text.iter().find(|byte| !byte.is_ascii_whitespace());
    if !matches!(begins, Some(b'[' | b'{')) {
        let rows = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text.as_slice());
        let rows: Result<Vec<Listed>, _> = rows.into_deserialize().collect();
        return rows.with_context(|| {
            format!("{} is not a CSV with the columns store,country[,device,class]", path.display())
        });
    }
    // A list, or what `store list --json` and `devices --json` print.
    let mut value: Value = serde_json::from_slice(&text).with_context(|| unusable(path))?;
    for name in ["stores", "devices"] {
        if value[name].is_array() {
            value = value[name].take();
            break;
        }
    }
    if !value.is_array() {
        bail!("{}", unusable(path));
    }
    let devices = value.as_array().is_some_and(|list| list.iter().any(|one| one["store"].is_string()));
    let mut list: Vec<Value> = serde_json::from_value(value)?;
    if devices {
        // Of a device, `id` is its own.
        for one in &mut list {
            if one["device"].is_null() {
                one["device"] = one["id"].take();
            }
            if let Some(one) = one.as_object_mut() {
                one.remove("id");
            }
        }
    }
    list.into_iter().map(serde_json::from_value).collect::<Result<_, _>>().with_context(|| unusable(path))
}

fn unusable(path: &Path) -> String {
    format!("{} is neither a CSV nor a JSON list of stores (store, country, device, class)", path.display())
}

/// Which files, for a list of stores.
#[derive(clap::Args)]
pub(super) struct Many {
    /// The table in force, to compare with (a table or an envelope)
    #[arg(long, value_name = "FILE", requires = "stores")]
    pub(super) before: Option<PathBuf>,
    /// Ask for all of these: CSV with store,country[,device,class], or JSON
    #[arg(long, value_name = "FILE", conflicts_with_all = ["device", "store"])]
    pub(super) stores: Option<PathBuf>,
    /// With --stores: list this many changes
    #[arg(long, default_value_t = 100)]
    pub(super) limit: usize,
}
