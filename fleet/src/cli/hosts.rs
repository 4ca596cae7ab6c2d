//! `hosts`: names of one device that point elsewhere for a while.

use std::time::Duration;

use anyhow::Result;
use clap::Subcommand;
use http::Method;
use serde_json::{Value, json};

use super::ask::{duration, list};
use super::client::{Client, Target, encode};
use super::print;

const COLUMNS: &[&str] = &[
    "device",
    "country",
    "name",
    "address",
    "source",
    "owner",
    "reason",
    "ticket",
    "remaining_s",
    "in_force",
    "scope",
    "effective",
    "why",
];

#[derive(Subcommand)]
pub(super) enum Hosts {
    /// Overrides that the fleet wants and that devices report
    List {
        /// Of this country only
        #[arg(long)]
        country: Option<String>,
        /// Of this store only
        #[arg(long)]
        store: Option<String>,
        /// Of this device only
        #[arg(long)]
        device: Option<String>,
        #[command(flatten)]
        target: Target,
    },
    /// Point a name of a device elsewhere for a while
    Set {
        /// The device
        device: String,
        /// The exact name, as the route table has it
        name: String,
        /// Where it shall point
        address: String,
        /// Why
        #[arg(long)]
        reason: String,
        /// The ticket
        #[arg(long)]
        ticket: Option<String>,
        /// For how long, such as 30m or 4h; 72h at most [default: 4h]
        #[arg(long, value_parser = duration)]
        ttl: Option<Duration>,
        /// Also when the address does not prove that it is the name
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        target: Target,
    },
    /// End an override
    Clear {
        /// The device
        device: String,
        /// The name
        name: String,
        #[command(flatten)]
        target: Target,
    },
}

pub(super) async fn run(hosts: Hosts) -> Result<()> {
    match hosts {
        Hosts::List { country, store, device, target } => {
            let filter = [("country", country), ("store", store), ("device", device)];
            list(&target, "/api/v1/hosts", &filter, ("hosts", COLUMNS)).await
        }
        Hosts::Set { device, name, address, reason, ticket, ttl, force, target } => {
            let ttl = ttl.map(|ttl| ttl.as_secs());
            let body = json!({ "address": address, "reason": reason, "ticket": ticket, "ttl_s": ttl, "force": force });
            let client = Client::find(&target).await?;
            let entry = client.ask(Method::PUT, &path(&device, &name), Some(body.to_string())).await?;
            let until = entry["until"].as_str().unwrap_or_default();
            say(&target, &entry, &format!("{device}: {name} is to point at {address} until {until}"));
            Ok(())
        }
        Hosts::Clear { device, name, target } => {
            let client = Client::find(&target).await?;
            let answer = client.ask(Method::DELETE, &path(&device, &name), None).await?;
            let rest = if answer["cleared"]["in_force"] == true { "; the device is being told" } else { "" };
            say(&target, &answer, &format!("{device}: {name} is no longer overridden{rest}"));
            Ok(())
        }
    }
}

fn path(device: &str, name: &str) -> String {
    format!("/api/v1/devices/{}/hosts/{}", encode(device), encode(name))
}

fn say(target: &Target, answer: &Value, words: &str) {
    if target.json {
        print::json(answer);
    } else {
        print::line(words);
    }
}
