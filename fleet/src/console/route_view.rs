//! What the pages of route tables show, made from what is stored. Pure; escaping is the templates' business.

use std::collections::BTreeSet;

use samovar_wire::route::{Change, Explained, Flaw, Move, OriginTally, Preview, Rule, RuleResult, Table};
use samovar_wire::{OriginId, Timestamp};

use super::route_map::{self, Map, colour};
use super::view::{Lens, minute};
use super::words::{Language, Words};
use crate::db::entity::{route_draft, route_table};
use crate::routes::drafts::{self, DISCARDED, PROPOSED, PUBLISHED};
use crate::routes::stragglers::{Straggler, Why};

/// The width of a bar that stands for everything.
const BAR: u64 = 160;

/// A published table in a list.
pub(super) struct TableRow {
    pub(super) version: i64,
    pub(super) published: String,
    pub(super) by: String,
    pub(super) proposed_by: String,
    pub(super) summary: String,
    pub(super) reissue: String,
    pub(super) sha256: String,
}

/// A draft in a list.
pub(super) struct DraftRow {
    pub(super) id: i64,
    pub(super) title: String,
    pub(super) state: &'static str,
    pub(super) kind: &'static str,
    pub(super) base: i64,
    pub(super) authors: String,
    pub(super) proposed_by: String,
    pub(super) changed: String,
}

/// A flaw with what to do.
pub(super) struct FlawRow {
    pub(super) path: String,
    pub(super) message: String,
    pub(super) advice: String,
}

/// A device that is behind.
pub(super) struct StragglerRow {
    pub(super) device: String,
    pub(super) store: String,
    pub(super) country: String,
    pub(super) has: String,
    pub(super) why: &'static str,
    pub(super) kind: &'static str,
    pub(super) since: String,
    pub(super) detail: String,
}

/// An origin before and after, with bars.
pub(super) struct OriginLine {
    pub(super) name: String,
    pub(super) class: String,
    pub(super) stores: (u64, u64),
    pub(super) devices: (u64, u64),
    pub(super) bars: (u64, u64),
    pub(super) difference: String,
}

/// A country in a list.
pub(super) struct CountryLine {
    pub(super) code: String,
    pub(super) stores: u64,
    pub(super) devices: u64,
    pub(super) changed: u64,
    pub(super) now: String,
    pub(super) then: String,
}

/// A till that changes.
pub(super) struct MoveRow {
    pub(super) store: String,
    pub(super) device: String,
    pub(super) class: String,
    pub(super) country: String,
    pub(super) kind: &'static str,
    pub(super) change: &'static str,
    pub(super) from: String,
    pub(super) to: String,
    pub(super) rules: String,
    pub(super) reason: String,
}

/// Everything of a preview.
pub(super) struct Shown {
    pub(super) origins: Vec<OriginLine>,
    pub(super) countries: Vec<CountryLine>,
    pub(super) map: Map,
    pub(super) moves: Vec<MoveRow>,
}

/// Where one asker goes, with one line for each rule.
pub(super) struct Way {
    pub(super) heading: String,
    pub(super) class: String,
    pub(super) origin: String,
    pub(super) address: String,
    pub(super) steps: Vec<Step>,
}

/// One rule that was looked at.
pub(super) struct Step {
    pub(super) rule: &'static str,
    pub(super) kind: &'static str,
    pub(super) result: &'static str,
    pub(super) detail: String,
}

pub(super) fn table(lens: Lens, row: &route_table::Model) -> TableRow {
    let words = lens.language.words();
    let at = Timestamp::from_millis(row.published_at).to_string();
    TableRow {
        version: row.version,
        published: format!("{} · {}", minute(&at), lens.ago(Some(&at))),
        by: if row.origin == "starter" { words.starter.to_owned() } else { row.published_by.clone() },
        proposed_by: row.proposed_by.clone().unwrap_or_default(),
        summary: match lens.language {
            Language::English => row.summary.clone(),
            Language::Chinese => row.summary_zh.clone().or_else(|| row.summary.clone()),
        }
        .unwrap_or_default(),
        reissue: row
            .reissue_of
            .map(|version| words.reissue_of.replacen("{}", &version.to_string(), 1))
            .unwrap_or_default(),
        sha256: row.sha256.chars().take(16).collect(),
    }
}

pub(super) fn draft(lens: Lens, row: &route_draft::Model) -> DraftRow {
    let words = lens.language.words();
    let (state, kind) = match row.state.as_str() {
        PROPOSED => (words.draft_state_proposed, "warning"),
        PUBLISHED => (words.draft_state_published, "good"),
        DISCARDED => (words.draft_state_discarded, "none"),
        _ => (words.draft_state_draft, "info"),
    };
    DraftRow {
        id: row.id,
        title: if row.title.is_empty() { format!("{} {}", words.draft, row.id) } else { row.title.clone() },
        state,
        kind,
        base: row.base_version,
        authors: drafts::authors(&row.authors).join(", "),
        proposed_by: row.proposed_by.clone().unwrap_or_default(),
        changed: lens.ago(Some(&Timestamp::from_millis(row.updated_at).to_string())),
    }
}

pub(super) fn flaw(language: Language, flaw: &Flaw) -> FlawRow {
    let message = match language {
        Language::English => flaw.to_string(),
        Language::Chinese => flaw.problem.message().zh,
    };
    let path =
        if flaw.path.is_empty() { language.words().whole_document.to_owned() } else { flaw.path.clone() };
    FlawRow { path, message, advice: language.of(flaw.problem.advice()) }
}

pub(super) fn straggler(lens: Lens, one: &Straggler) -> StragglerRow {
    let words = lens.language.words();
    let (why, kind) = match one.why {
        Why::Refused => (words.why_refused, "critical"),
        Why::Offline => (words.why_offline, "warning"),
        Why::NeverSeen => (words.why_never_seen, "none"),
        Why::Revoked => (words.why_revoked, "none"),
        Why::NotApplied => (words.why_not_applied, "warning"),
        Why::Unknown => (words.why_unknown, "warning"),
    };
    StragglerRow {
        device: one.device.clone(),
        store: one.store.clone(),
        country: one.country.clone().unwrap_or_default(),
        has: one.route_table.map_or_else(|| words.not_said.to_owned(), |version| version.to_string()),
        why,
        kind,
        since: lens.ago(one.since.as_deref()),
        detail: one.detail.clone(),
    }
}

/// All origins of two tables by name: their places are their colours.
pub(super) fn names(before: Option<&Table>, after: &Table) -> Vec<String> {
    let known: BTreeSet<&OriginId> =
        before.into_iter().chain([after]).flat_map(|table| table.origins.keys()).collect();
    known.into_iter().map(ToString::to_string).collect()
}

pub(super) fn preview(lens: Lens, preview: &Preview, names: &[String]) -> Shown {
    let words = lens.language.words();
    let told = |tallies: &[OriginTally], count: fn(&OriginTally) -> u64| {
        let present = tallies.iter().filter(|tally| count(tally) > 0);
        let part = |tally: &OriginTally| format!("{} {}", name(words, tally.origin.as_ref()), count(tally));
        present.map(part).collect::<Vec<_>>().join(", ")
    };
    let before = |tally: &OriginTally| tally.devices_before;
    let after = |tally: &OriginTally| tally.devices_after;
    let countries = preview.countries.iter().map(|country| CountryLine {
        code: country.country.to_string(),
        stores: country.stores,
        devices: country.devices,
        changed: country.changed,
        now: told(&country.origins, before),
        then: told(&country.origins, after),
    });
    let map = route_map::map(&preview.countries, names, |country| {
        format!(
            "{}: {} {}; {}: {}; {}: {}",
            country.country,
            country.stores,
            words.stores,
            words.now,
            told(&country.origins, before),
            words.then,
            told(&country.origins, after)
        )
    });
    Shown {
        origins: preview.origins.iter().map(|tally| origin(words, tally, preview.devices, names)).collect(),
        countries: countries.collect(),
        map,
        moves: preview.moves.iter().map(|one| moved(words, one)).collect(),
    }
}

fn origin(words: &Words, tally: &OriginTally, devices: u64, names: &[String]) -> OriginLine {
    let bar = |count: u64| (count * BAR).checked_div(devices).unwrap_or(0).max(u64::from(count > 0));
    let difference = i128::from(tally.devices_after) - i128::from(tally.devices_before);
    OriginLine {
        name: name(words, tally.origin.as_ref()),
        class: colour(tally.origin.as_ref(), names),
        stores: (tally.stores_before, tally.stores_after),
        devices: (tally.devices_before, tally.devices_after),
        bars: (bar(tally.devices_before), bar(tally.devices_after)),
        difference: if difference == 0 { "–".to_owned() } else { format!("{difference:+}") },
    }
}

fn name(words: &Words, origin: Option<&OriginId>) -> String {
    origin.map_or_else(|| words.held_nowhere.to_owned(), ToString::to_string)
}

fn moved(words: &'static Words, one: &Move) -> MoveRow {
    let (kind, change) = match one.change {
        Change::Moved => ("info", words.moving),
        Change::Held => ("critical", words.held_after),
        Change::Freed => ("good", words.freed_after),
        Change::Readdressed => ("none", words.readdressed),
    };
    let rule_of = |found: Option<Rule>| found.map_or("–", |found| rule(words, found));
    let readdressed = one.change == Change::Readdressed;
    let shown = |origin: &Option<OriginId>, address: &Option<String>| match address {
        Some(address) if readdressed => address.clone(),
        _ => name(words, origin.as_ref()),
    };
    let (before, after) = (rule_of(one.rule_before), rule_of(one.rule_after));
    MoveRow {
        store: one.store.to_string(),
        device: one.device.as_ref().map(ToString::to_string).unwrap_or_default(),
        class: one.class.to_string(),
        country: one.country.to_string(),
        kind,
        change,
        from: shown(&one.from, &one.address_before),
        to: shown(&one.to, &one.address_after),
        rules: if before == after { after.to_owned() } else { format!("{before} → {after}") },
        reason: one.reason.clone(),
    }
}

pub(super) fn way(words: &'static Words, heading: &str, told: &Explained, names: &[String]) -> Way {
    let step = |reason: &samovar_wire::route::Reason| {
        let (kind, result) = match reason.result {
            RuleResult::Applied => ("good", words.result_applied),
            RuleResult::NoMatch => ("none", words.result_no_match),
            RuleResult::PassedOver => ("warning", words.result_passed_over),
        };
        Step { rule: rule(words, reason.rule), kind, result, detail: reason.detail.clone() }
    };
    let address = told.base_url.as_ref().zip(told.endpoint.as_ref());
    Way {
        heading: format!("{heading} · {}", told.table_version),
        class: colour(told.origin.as_ref(), names),
        origin: name(words, told.origin.as_ref()),
        address: address.map_or_else(
            || told.detail.clone().unwrap_or_default(),
            |(url, endpoint)| format!("{url} ({}:{})", endpoint.host, endpoint.port),
        ),
        steps: told.reason.iter().map(step).collect(),
    }
}

const fn rule(words: &'static Words, rule: Rule) -> &'static str {
    match rule {
        Rule::Protected => words.rule_protected,
        Rule::Emergency => words.rule_emergency,
        Rule::UserPin => words.rule_user_pin,
        Rule::DevicePin => words.rule_device_pin,
        Rule::StorePin => words.rule_store_pin,
        Rule::Split => words.rule_split,
        Rule::Fallback => words.rule_fallback,
        Rule::LastGood => words.rule_last_good,
        Rule::CompiledIn => words.rule_compiled_in,
        Rule::Residency => words.rule_residency,
        Rule::Health => words.rule_health,
        Rule::Bound => words.rule_bound,
        Rule::Override => words.rule_override,
    }
}
