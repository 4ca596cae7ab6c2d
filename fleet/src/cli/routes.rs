//! Route tables of a running server: look, write, put forward, approve, bring back.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};

use super::client::{Client, Target, with_query};
use super::{effect, offline, print};

#[derive(Subcommand)]
pub(super) enum Routes {
    /// List the published tables
    List {
        #[command(flatten)]
        target: Target,
    },
    /// Show the table in force, or one version
    Show {
        /// The version
        version: Option<u64>,
        #[command(flatten)]
        target: Target,
    },
    /// Write a table before it counts
    #[command(subcommand)]
    Draft(Draft),
    /// What a draft, a version or a file would change: who moves from where to where, and why
    Preview {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        suppose: Suppose,
        /// List changes of this country only
        #[arg(long)]
        country: Option<String>,
        /// Pass over this many changes
        #[arg(long)]
        offset: Option<usize>,
        /// List this many changes, 1000 at most
        #[arg(long, default_value_t = 100)]
        limit: usize,
        #[command(flatten)]
        target: Target,
    },
    /// Where one store, device or person would go, with everything that was looked at
    Explain {
        #[command(flatten)]
        which: Which,
        /// The device
        #[arg(long)]
        device: Option<String>,
        /// The store
        #[arg(long)]
        store: Option<String>,
        /// The order's UDL, else the store's country
        #[arg(long)]
        udl: Option<String>,
        /// The person the order concerns
        #[arg(long)]
        user: Option<String>,
        /// The device's class, if not as registered
        #[arg(long)]
        class: Option<String>,
        #[command(flatten)]
        suppose: Suppose,
        #[command(flatten)]
        target: Target,
    },
    /// Put a draft forward: it gets the next version and does not change any more
    Propose {
        /// The draft
        draft: i64,
        /// The version in force that you have compared it with, when it was begun from an older one
        #[arg(long, value_name = "VERSION")]
        over: Option<i64>,
        #[command(flatten)]
        target: Target,
    },
    /// Take a proposal back, to write at it again
    Withdraw {
        /// The draft
        draft: i64,
        #[command(flatten)]
        target: Target,
    },
    /// Approve a proposal: the server signs it and it comes into force
    Approve {
        /// The draft
        draft: i64,
        /// The revision that you have looked at; whatever it is unless it is named
        #[arg(long)]
        revision: Option<i64>,
        #[command(flatten)]
        target: Target,
    },
    /// Publish a signed table, or a plain one, which the server signs
    Publish {
        /// The file
        file: PathBuf,
        #[command(flatten)]
        target: Target,
    },
    /// Bring an older version back at once: its words under the next version, with new dates
    Rollback {
        /// The version
        version: i64,
        /// Why, for the audit log
        #[arg(long, default_value = "")]
        reason: String,
        /// Sign with this private key file, for a server that signs no tables
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
        #[command(flatten)]
        target: Target,
    },
    /// Devices that do not have the table in force yet, and why
    Stragglers {
        /// Minutes after the publication before anybody is behind
        #[arg(long, default_value_t = 15)]
        minutes: u64,
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Subcommand)]
pub(super) enum Draft {
    /// List the drafts that are open
    List {
        /// Also those that are published or discarded
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        target: Target,
    },
    /// Begin a draft, from the table in force unless something else is named
    New {
        /// What it is for
        #[arg(long, default_value = "")]
        title: String,
        /// From this version
        #[arg(long, conflicts_with = "file")]
        from: Option<i64>,
        /// From this file
        #[arg(long)]
        file: Option<PathBuf>,
        #[command(flatten)]
        target: Target,
    },
    /// Show a draft: what is wrong with it, and what it changes
    Show {
        /// The draft
        draft: i64,
        #[command(flatten)]
        target: Target,
    },
    /// Replace a draft's document
    Save {
        /// The draft
        draft: i64,
        /// The file
        file: PathBuf,
        /// The revision that the file was made from; the latest unless it is named
        #[arg(long)]
        revision: Option<i64>,
        /// Another title
        #[arg(long)]
        title: Option<String>,
        #[command(flatten)]
        target: Target,
    },
    /// Write a draft's document to a file, byte for byte, to edit or to sign
    Export {
        /// The draft
        draft: i64,
        /// The file; otherwise it is printed
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        #[command(flatten)]
        target: Target,
    },
    /// Throw a draft away
    Discard {
        /// The draft
        draft: i64,
        #[command(flatten)]
        target: Target,
    },
}

/// Which table.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub(super) struct Which {
    /// A draft
    #[arg(long)]
    draft: Option<i64>,
    /// A published version
    #[arg(long)]
    version: Option<i64>,
    /// A file that holds a table or an envelope (preview only)
    #[arg(long)]
    file: Option<PathBuf>,
}

/// What is supposed.
#[derive(Args, Debug)]
pub(super) struct Suppose {
    /// The service
    #[arg(long, default_value = "orders")]
    service: String,
    /// Suppose this is the time (RFC 3339)
    #[arg(long, value_name = "TIME")]
    at: Option<String>,
    /// Suppose this origin is down; may be given several times
    #[arg(long, value_name = "ORIGIN")]
    down: Vec<String>,
    /// Suppose this origin measures as nearest
    #[arg(long, value_name = "ORIGIN")]
    nearest: Option<String>,
}

impl Suppose {
    fn query(&self) -> Vec<(&'static str, Option<String>)> {
        let down = Some(self.down.join(",")).filter(|down| !down.is_empty());
        vec![
            ("service", Some(self.service.clone())),
            ("at", self.at.clone()),
            ("down", down),
            ("nearest", self.nearest.clone()),
        ]
    }
}

pub(super) async fn run(routes: Routes) -> Result<()> {
    match routes {
        Routes::List { target } => {
            let columns = &["version", "published_at", "published_by", "proposed_by", "summary"];
            listed(&target, "/api/v1/routes", ("routes", columns)).await
        }
        Routes::Show { version, target } => {
            let which = version.map_or_else(|| "current".to_owned(), |version| version.to_string());
            let answer = Client::find(&target).await?.get(&format!("/api/v1/routes/{which}")).await?;
            print::json(if target.json { &answer } else { &answer["document"] });
            Ok(())
        }
        Routes::Draft(draft) => run_draft(draft).await,
        Routes::Preview { which, suppose, country, offset, limit, target } => {
            let mut query = suppose.query();
            query.push(("country", country));
            query.push(("offset", offset.map(|offset| offset.to_string())));
            query.push(("limit", Some(limit.to_string())));
            preview(&which, &query, &target).await
        }
        Routes::Explain { which, device, store, udl, user, class, suppose, target } => {
            let mut query = suppose.query();
            query.extend([
                ("device", device),
                ("store", store),
                ("udl", udl),
                ("user", user),
                ("class", class),
            ]);
            explain(&which, &query, &target).await
        }
        Routes::Propose { draft, over, target } => {
            let path = format!("/api/v1/routes/drafts/{draft}/propose");
            let answer = Client::find(&target).await?.post(&path, &json!({ "over": over })).await?;
            told_draft(&target, &answer);
            Ok(())
        }
        Routes::Withdraw { draft, target } => act(&target, &format!("drafts/{draft}/withdraw")).await,
        Routes::Approve { draft, revision, target } => {
            let path = format!("/api/v1/routes/drafts/{draft}/approve");
            let client = Client::find(&target).await?;
            let answer = client.approve(&path, revision).await?;
            told_table(&target, &answer);
            Ok(())
        }
        Routes::Publish { file, target } => {
            let answer = publish(&target, &read(&file)?).await?;
            told_table(&target, &answer);
            Ok(())
        }
        Routes::Rollback { version, reason, key, target } => {
            rollback(version, &reason, key.as_deref(), &target).await
        }
        Routes::Stragglers { minutes, target } => stragglers(minutes, &target).await,
    }
}

async fn run_draft(draft: Draft) -> Result<()> {
    match draft {
        Draft::List { all, target } => {
            let columns = &[
                "id",
                "state",
                "title",
                "revision",
                "base_version",
                "updated_at",
                "updated_by",
                "proposed_by",
            ];
            let path = if all { "/api/v1/routes/drafts?all=true" } else { "/api/v1/routes/drafts" };
            listed(&target, path, ("drafts", columns)).await
        }
        Draft::New { title, from, file, target } => {
            let mut body = json!({ "title": title, "from": from });
            if let Some(file) = file {
                body["document"] = read(&file)?.into();
            }
            let answer = Client::find(&target).await?.post("/api/v1/routes/drafts", &body).await?;
            told_draft(&target, &answer);
            Ok(())
        }
        Draft::Show { draft, target } => {
            let answer = Client::find(&target).await?.get(&format!("/api/v1/routes/drafts/{draft}")).await?;
            told_draft(&target, &answer);
            Ok(())
        }
        Draft::Save { draft, file, revision, title, target } => {
            let client = Client::find(&target).await?;
            let path = format!("/api/v1/routes/drafts/{draft}");
            let revision = match revision {
                Some(revision) => revision,
                None => client.get(&path).await?["revision"].as_i64().context("the answer is not a draft")?,
            };
            let body = json!({ "title": title, "document": read(&file)? });
            let tag = format!("\"{revision}\"");
            let answer = client.replace(&path, &tag, &body).await?;
            told_draft(&target, &answer);
            Ok(())
        }
        Draft::Export { draft, out, target } => {
            let path = format!("/api/v1/routes/drafts/{draft}");
            let answer = Client::find(&target).await?.get(&path).await?;
            let text = answer["document"].as_str().context("the answer is not a draft")?;
            match out {
                Some(out) => Ok(crate::store::replace(&out, text.as_bytes())?),
                None => {
                    print::exactly(text);
                    Ok(())
                }
            }
        }
        Draft::Discard { draft, target } => {
            let path = format!("/api/v1/routes/drafts/{draft}");
            Client::find(&target).await?.ask(Method::DELETE, &path, None).await?;
            if !target.json {
                print::line(&format!("draft {draft} is discarded"));
            }
            Ok(())
        }
    }
}

async fn act(target: &Target, path: &str) -> Result<()> {
    let path = format!("/api/v1/routes/{path}");
    let answer = Client::find(target).await?.ask(Method::POST, &path, None).await?;
    told_draft(target, &answer);
    Ok(())
}

async fn preview(which: &Which, query: &[(&str, Option<String>)], target: &Target) -> Result<()> {
    let client = Client::find(target).await?;
    let answer = match &which.file {
        Some(file) => {
            let path = with_query("/api/v1/routes/preview", query);
            client.ask(Method::POST, &path, Some(read(file)?)).await?
        }
        None => client.get(&with_query(&format!("{}/preview", path(which)?), query)).await?,
    };
    if target.json {
        print::json(&answer);
    } else {
        effect::show(&answer);
    }
    Ok(())
}

async fn explain(which: &Which, query: &[(&str, Option<String>)], target: &Target) -> Result<()> {
    let path = with_query(&format!("{}/explain", path(which)?), query);
    let answer = Client::find(target).await?.get(&path).await?;
    if target.json {
        print::json(&answer);
        return Ok(());
    }
    for (heading, name) in [("in force", "in_force"), ("there", "there")] {
        let told = &answer[name];
        if told.is_null() {
            continue;
        }
        let origin = told["origin"].as_str().unwrap_or("held (residency)");
        print::line(&format!("{heading}, version {}: {origin}", told["table_version"]));
        let steps = told["reason"].as_array().map_or(&[][..], Vec::as_slice);
        print::table(steps, &["rule", "result", "detail"]);
        print::line("");
    }
    Ok(())
}

fn path(which: &Which) -> Result<String> {
    match (which.draft, which.version) {
        (Some(draft), _) => Ok(format!("/api/v1/routes/drafts/{draft}")),
        (None, Some(version)) => Ok(format!("/api/v1/routes/{version}")),
        (None, None) => bail!("name a draft or a version (a file is asked with `route preview`)"),
    }
}

async fn publish(target: &Target, text: &str) -> Result<Value> {
    Client::find(target).await?.ask(Method::POST, "/api/v1/routes", Some(text.to_owned())).await
}

async fn rollback(version: i64, reason: &str, key: Option<&Path>, target: &Target) -> Result<()> {
    let path = format!("/api/v1/routes/{version}/rollback");
    let answer = Client::find(target).await?.post(&path, &json!({ "reason": reason })).await?;
    let Some(draft) = answer["draft"].as_i64() else {
        told_table(target, &answer["published"]);
        return Ok(());
    };
    let Some(key) = key else {
        if target.json {
            print::json(&answer);
        } else {
            print::line(&format!("this server signs no tables: draft {draft} waits for its signature"));
            print::line(&format!("  samovar-fleet routes draft export {draft} --out table.json"));
            print::line("  samovar-fleet route sign table.json --key KEY --out envelope.json");
            print::line("  samovar-fleet routes publish envelope.json");
        }
        return Ok(());
    };
    let proposed = Client::find(target).await?.get(&format!("/api/v1/routes/drafts/{draft}")).await?;
    let text = proposed["document"].as_str().context("the answer is not a draft")?;
    let envelope = offline::signed(text.as_bytes(), &[key.to_owned()])?;
    let answer = publish(target, &serde_json::to_string(&envelope)?).await?;
    told_table(target, &answer);
    Ok(())
}

async fn stragglers(minutes: u64, target: &Target) -> Result<()> {
    let client = Client::find(target).await?;
    let (mut rows, mut after) = (Vec::new(), None);
    let mut whole = loop {
        let query = [("minutes", Some(minutes.to_string())), ("after", after)];
        let mut answer = client.get(&with_query("/api/v1/routes/stragglers", &query)).await?;
        if let Value::Array(page) = answer["stragglers"].take() {
            rows.extend(page);
        }
        after = answer["next"].as_str().map(str::to_owned);
        if after.is_none() {
            break answer;
        }
    };
    if target.json {
        whole["stragglers"] = rows.into();
        print::json(&whole);
        return Ok(());
    }
    let (have, all) = (&whole["have_it"], &whole["devices"]);
    print::line(&format!("version {}: {have} of {all} devices have it", whole["version"]));
    if whole["due"] == false {
        print::line(&format!(
            "published {}: nobody is behind yet",
            whole["published_at"].as_str().unwrap_or("-")
        ));
        return Ok(());
    }
    print::table(&rows, &["device", "store", "country", "route_table", "why", "since", "detail"]);
    Ok(())
}

async fn listed(target: &Target, path: &str, (name, columns): (&str, &[&str])) -> Result<()> {
    let answer = Client::find(target).await?.get(path).await?;
    if target.json {
        print::json(&answer);
    } else {
        print::table(answer[name].as_array().map_or(&[], Vec::as_slice), columns);
    }
    Ok(())
}

/// A draft in a few lines: where it is, what is wrong, what it changes.
fn told_draft(target: &Target, answer: &Value) {
    if target.json {
        return print::json(answer);
    }
    let text = |name: &str| answer[name].as_str().unwrap_or_default().to_owned();
    let title = if text("title").is_empty() { String::new() } else { format!(" ({})", text("title")) };
    print::line(&format!(
        "draft {}{title}: {}, revision {}",
        answer["id"],
        text("state"),
        answer["revision"]
    ));
    let list = |name: &str| answer[name].as_array().cloned().unwrap_or_default();
    for line in list("differences") {
        print::line(&format!("  {}", line.as_str().unwrap_or_default()));
    }
    let flaws = list("flaws");
    if !flaws.is_empty() {
        print::table(&flaws, &["path", "message", "advice"]);
    }
}

fn told_table(target: &Target, answer: &Value) {
    if target.json {
        return print::json(answer);
    }
    let summary = answer["summary"].as_str().unwrap_or_default();
    print::line(&format!("version {} is in force: {summary}", answer["version"]));
}

fn read(file: &Path) -> Result<String> {
    std::fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))
}
