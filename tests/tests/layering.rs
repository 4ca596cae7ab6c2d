//! The architecture as a test: who may import whom, what stays pure, what every module says about itself.
//!
//! A rule that fails names the file and the line. A new folder in the agent must be put on one of the two lists below:
//! that is the moment to think about what it is.
#![expect(clippy::unwrap_used, reason = "a file that cannot be read is a failed test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Folders and files of the agent that are flows: they never import each other.
const FLOWS: &[&str] = &[
    "commands", "desired", "devices", "diagnose", "gateway", "hosts", "identity", "logs", "orders", "relay",
    "routing", "update",
];

/// Parts of the agent that see everything: they connect, show or ask.
const EDGES: &[&str] = &["assemble", "cli", "lib", "main", "page"];

/// Parts of the agent that everybody may use; they import no flow.
const SHARED: &[&str] =
    &["clock", "config", "data_dir", "heartbeat", "http", "logging", "net", "status", "stop", "store"];

/// The one flow that may read the others' snapshots: it carries out what head office asks for.
const READS_OTHERS: &[&str] = &["commands"];

/// Crates of ours and those of ours that each may depend on.
const CRATES: &[(&str, &str, &[&str])] = &[
    ("agent", "samovar-agent", &["samovar-drivers", "samovar-wire"]),
    ("drivers", "samovar-drivers", &[]),
    ("fleet", "samovar-fleet", &["samovar-wire"]),
    ("fleet/wire", "samovar-wire", &[]),
    ("tests", "samovar-tests", &["samovar-agent", "samovar-wire"]),
];

/// Files that only decide, whatever else changes.
const POLICIES: &[&str] = &[
    "agent/src/config/commands.rs",
    "agent/src/config/overlay.rs",
    "agent/src/config/single.rs",
    "agent/src/config/template.rs",
    "agent/src/gateway/policy.rs",
    "agent/src/hosts/file.rs",
    "agent/src/hosts/overrides.rs",
    "agent/src/hosts/trample.rs",
    "agent/src/hosts/wish.rs",
    "agent/src/identity/renewal.rs",
    "agent/src/net/names/answer.rs",
    "agent/src/net/names/cache.rs",
    "agent/src/net/names/choices.rs",
    "agent/src/net/names/figures.rs",
    "agent/src/net/names/known.rs",
    "agent/src/net/names/ladder.rs",
    "agent/src/net/names/message.rs",
    "agent/src/net/names/network.rs",
    "agent/src/net/names/servers.rs",
    "agent/src/net/names/wanted.rs",
    "agent/src/orders/backoff.rs",
    "agent/src/orders/conditions.rs",
    "agent/src/orders/dispatcher.rs",
    "agent/src/orders/dispatcher/partly.rs",
    "agent/src/orders/ledger/pace.rs",
    "agent/src/orders/outcome.rs",
    "agent/src/orders/outcome/single.rs",
    "agent/src/orders/shadow/compare.rs",
    "agent/src/orders/shadow/select.rs",
    "agent/src/orders/shadow/tally.rs",
    "agent/src/orders/recovery.rs",
    "agent/src/orders/reconcile/plan.rs",
    "agent/src/orders/reconcile/schedule.rs",
    "agent/src/orders/reconcile/view.rs",
    "agent/src/relay/backoff.rs",
    "agent/src/relay/cursor.rs",
    "agent/src/relay/session.rs",
    "agent/src/routing/health.rs",
    "agent/src/routing/nearest.rs",
    "agent/src/routing/pointed.rs",
    "agent/src/routing/verdict.rs",
    "fleet/src/ingest/shed.rs",
    "fleet/src/orders/compare.rs",
    "fleet/src/orders/judge.rs",
    "fleet/src/orders/pace.rs",
    "fleet/src/overload/admission.rs",
    "fleet/src/console/route_map.rs",
    "fleet/src/console/route_view.rs",
    "fleet/src/routes/difference.rs",
    "fleet/src/routes/document.rs",
    "fleet/src/routes/sensible.rs",
    "fleet/src/hosts/merge.rs",
    "fleet/wire/src/hosts.rs",
    "fleet/wire/src/plain.rs",
];

/// What a file that decides must not touch.
const IMPURE: &[&str] = &[
    "tokio::",
    "rusqlite",
    "reqwest",
    "rumqttc",
    "std::fs",
    "std::net::Tcp",
    "std::net::Udp",
    "std::thread",
    "Instant::now",
    "SystemTime::now",
    "Mutex",
    "RwLock",
    "fastrand::u",
    "fastrand::f",
];

/// Beyond this a file is two files.
const MAX_LINES: usize = 600;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A source file of ours.
struct Source {
    /// Relative to the root of the project.
    path: String,
    text: String,
}

impl Source {
    /// The product's part: tests at the end of the file, and whole test files, are left out.
    fn product(&self) -> &str {
        if self.is_test_file() {
            return "";
        }
        let tests = ["#[cfg(test)]\nmod ", "#[cfg(test)]\npub(crate) mod ", "#[cfg(test)]\npub mod "];
        let end = tests.iter().filter_map(|mark| {
            let at = self.text.find(mark)?;
            // `mod tests;` names a file; what follows it is still the product's.
            let line = self.text[at + mark.len()..].lines().next()?;
            line.ends_with('{').then_some(at)
        });
        &self.text[..end.min().unwrap_or(self.text.len())]
    }

    fn is_test_file(&self) -> bool {
        let parts = ["/tests/", "/tests.rs", "/testing.rs", "/testing/", "/world.rs"];
        parts.iter().any(|part| self.path.contains(part)) && !self.path.starts_with("tests/src")
    }

    /// Lines of the product's part that are code, with their numbers.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.product().lines().enumerate().map(|(index, line)| (index + 1, line.trim_start()));
        lines.filter(|(_, line)| !line.starts_with("//"))
    }
}

fn sources(folder: &str) -> Vec<Source> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(directory) = folders.pop() {
        let Ok(entries) = fs::read_dir(&directory) else { continue };
        for path in entries.filter_map(|entry| entry.ok().map(|entry| entry.path())) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                let path = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
                found.push(Source { path, text });
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn all_sources() -> Vec<Source> {
    ["agent/src", "drivers/src", "fleet/src", "fleet/wire/src", "tests/src", "tests/tests", "tests/benches"]
        .iter()
        .flat_map(|folder| sources(folder))
        .collect()
}

fn nothing(wrong: &[String]) {
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn crates_depend_only_along_the_arrows() {
    let mut wrong = Vec::new();
    for (folder, name, allowed) in CRATES {
        let text = fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
        let manifest: toml::Table = text.parse().unwrap();
        assert_eq!(manifest["package"]["name"].as_str(), Some(*name));
        let target = manifest.get("target").and_then(toml::Value::as_table).into_iter().flatten();
        let tables = target.filter_map(|(_, table)| table.as_table()).chain([&manifest]);
        for table in tables {
            for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
                let names = table.get(kind).and_then(toml::Value::as_table).into_iter().flatten();
                for (dependency, _) in names.filter(|(dependency, _)| dependency.starts_with("samovar-")) {
                    if !allowed.contains(&dependency.as_str()) {
                        wrong.push(format!("{folder}/Cargo.toml: {name} must not depend on {dependency}"));
                    }
                }
            }
        }
    }
    nothing(&wrong);
}

/// The first word after each `crate::` of a file, groups (`crate::{a, b::c}`) taken apart.
fn imports(source: &Source) -> Vec<(usize, String)> {
    let product = source.product();
    let mut found = Vec::new();
    for (at, _) in product.match_indices("crate::") {
        let before = &product[..at];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let qualified = before.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        if qualified || product[line_start..].trim_start().starts_with("//") {
            continue;
        }
        let line = before.matches('\n').count() + 1;
        let rest = &product[at + "crate::".len()..];
        found.extend(first_words(rest).into_iter().map(|word| (line, word)));
    }
    found
}

fn first_words(path: &str) -> Vec<String> {
    let word = |text: &str| -> String {
        text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let Some(group) = path.strip_prefix('{') else { return vec![word(path)] };
    let (mut depth, mut item, mut words) = (1, String::new(), Vec::new());
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => words.push(word(&std::mem::take(&mut item))),
            _ => {}
        }
        if depth == 0 {
            break;
        }
        if depth == 1 && c != ',' {
            item.push(c);
        }
    }
    words.push(word(&item));
    words.retain(|word| !word.is_empty());
    words
}

/// Which part of the agent a file belongs to: the first folder, or the file's own name.
fn part(path: &str) -> String {
    let inside = path.strip_prefix("agent/src/").unwrap();
    inside.split('/').next().unwrap().trim_end_matches(".rs").to_owned()
}

#[test]
fn every_part_of_the_agent_is_a_flow_an_edge_or_shared() {
    let known: BTreeSet<_> = [FLOWS, EDGES, SHARED].concat().into_iter().collect();
    let parts: BTreeSet<_> = sources("agent/src").iter().map(|source| part(&source.path)).collect();
    let unknown: Vec<_> = parts.iter().filter(|part| !known.contains(part.as_str())).collect();
    assert!(unknown.is_empty(), "say in layering.rs what these are: {unknown:?}");
}

#[test]
fn flows_of_the_agent_do_not_import_each_other() {
    let mut wrong = Vec::new();
    for source in sources("agent/src") {
        let own = part(&source.path);
        if EDGES.contains(&own.as_str()) || READS_OTHERS.contains(&own.as_str()) {
            continue;
        }
        for (line, word) in imports(&source) {
            let edge = EDGES.contains(&word.as_str());
            if word != own && (FLOWS.contains(&word.as_str()) || edge) {
                wrong.push(format!("{}:{line}: `{own}` imports `{word}`", source.path));
            }
        }
    }
    nothing(&wrong);
}

/// A file that decides and does nothing else says so at its head: "Pure." (or "Pure:", "Pure;", ": pure.").
fn is_marked_pure(source: &Source) -> bool {
    let head: String = source.text.lines().take_while(|line| line.starts_with("//!")).collect();
    ["Pure.", "Pure:", "Pure;", ": pure."].iter().any(|mark| head.contains(mark))
}

#[test]
fn files_that_decide_touch_neither_clock_nor_file_nor_socket_nor_lock() {
    let mut wrong = Vec::new();
    for source in all_sources() {
        let wire = source.path.starts_with("fleet/wire/");
        if !wire && !is_marked_pure(&source) {
            continue;
        }
        for (line, code) in source.code() {
            for word in IMPURE.iter().filter(|word| code.contains(**word)) {
                wrong.push(format!("{}:{line}: `{word}` in a file that only decides", source.path));
            }
        }
    }
    nothing(&wrong);
}

#[test]
fn the_policies_are_marked_as_pure() {
    let sources: BTreeMap<_, _> = all_sources().into_iter().map(|s| (s.path.clone(), s)).collect();
    let marked = |path: &&&str| sources.get(**path).is_some_and(is_marked_pure);
    let wrong: Vec<_> =
        POLICIES.iter().filter(|path| !marked(path)).map(|path| format!("{path}: not pure")).collect();
    nothing(&wrong);
}

#[test]
fn every_module_says_what_it_is_for() {
    let silent =
        |source: &Source| !source.text.starts_with("//!") || source.text.lines().next().unwrap().len() < 12;
    // A file of tests speaks through the names of its tests.
    let of_tests = |source: &Source| source.path.contains("/src/") && source.path.contains("/tests");
    let sources = all_sources().into_iter().filter(|source| !of_tests(source));
    let wrong: Vec<_> = sources.filter(silent).map(|s| format!("{}: no `//!`", s.path)).collect();
    nothing(&wrong);
}

#[test]
fn no_file_has_grown_into_two() {
    let mut wrong = Vec::new();
    for source in all_sources() {
        let lines = source.product().lines().count();
        if lines > MAX_LINES {
            wrong.push(format!("{}: {lines} lines of product code, {MAX_LINES} at most", source.path));
        }
    }
    nothing(&wrong);
}

#[test]
fn exceptions_from_lints_are_expected_with_a_reason() {
    let mut wrong = Vec::new();
    for source in all_sources() {
        for (index, line) in source.text.lines().enumerate() {
            let code = line.trim_start();
            let allowed = code.starts_with("#[allow(") || code.starts_with("#![allow(");
            if allowed {
                wrong.push(format!("{}:{}: use #[expect(…, reason = …)]", source.path, index + 1));
            }
        }
    }
    nothing(&wrong);
}

/// Paths in back quotes that begin at one of our top-level folders.
fn named_paths(text: &str) -> Vec<String> {
    let tops =
        ["agent/", "drivers/", "fleet/", "cross/", "tests/", "packaging/", "decisions/", ".ci/", ".config/"];
    let quoted = text.split('`').skip(1).step_by(2);
    let is_path =
        |quote: &&str| tops.iter().any(|top| quote.starts_with(top)) && !quote.contains([' ', '*', '<', '{']);
    quoted.filter(is_path).map(|quote| quote.trim_end_matches([':', ',']).to_owned()).collect()
}

#[test]
fn paths_named_in_documents_exist() {
    let mut wrong = Vec::new();
    let decisions = fs::read_dir(root().join("decisions")).unwrap();
    let decisions = decisions.filter_map(|entry| Some(entry.ok()?.path()));
    let documents =
        ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "GLOSSARY.md"].map(|name| root().join(name));
    for document in documents.into_iter().chain(decisions) {
        let Ok(text) = fs::read_to_string(&document) else {
            wrong.push(format!("{} is missing", document.display()));
            continue;
        };
        for path in named_paths(&text).into_iter().filter(|path| !root().join(path).exists()) {
            wrong.push(format!("{} names {path}, which is not there", document.display()));
        }
    }
    nothing(&wrong);
}

/// What an agent's build contains: one crypto provider, no OpenSSL.
#[test]
fn the_agent_is_built_with_ring_alone() {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let tree = std::process::Command::new(cargo)
        .args(["tree", "--offline", "--locked", "-p", "samovar-agent", "-e", "no-dev", "--prefix", "none"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let tree = String::from_utf8_lossy(&tree.stdout);
    let crates: BTreeSet<_> = tree.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(
        crates.contains("ring") && crates.contains("rusqlite"),
        "this is not the agent's tree: {crates:?}"
    );
    for banned in ["aws-lc-rs", "aws-lc-sys", "openssl", "openssl-sys", "native-tls"] {
        assert!(!crates.contains(banned), "{banned} is in the agent's tree");
    }
}

#[test]
fn imports_are_read_with_their_groups() {
    let text = "//! x\nuse crate::{clock, orders::{a, b}, store::x};\nfn f() { crate::relay::g(); my_crate::no(); }\n";
    let source = Source { path: "agent/src/x.rs".into(), text: text.into() };
    let words: Vec<_> = imports(&source).into_iter().map(|(_, word)| word).collect();
    assert_eq!(words, ["clock", "orders", "store", "relay"]);
}
