//! Commands that ask a server.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;
use http::Method;
use serde_json::{Value, json};

use super::client::{Client, Target, encode, with_query};
use super::logins::{self, Login};
use super::{hosts, print, routes, terminal};

#[derive(Subcommand)]
pub(super) enum Ask {
    /// Log in and keep the token (password from the terminal, or the first line of the input)
    Login {
        /// Your name
        #[arg(long)]
        name: String,
        #[command(flatten)]
        target: Target,
    },
    /// Stores
    #[command(subcommand)]
    Store(Store),
    /// Make a claim code for one device of a store
    Claim {
        /// The store
        store: String,
        /// The device it will be
        #[arg(long)]
        device: String,
        /// Its class
        #[arg(long, default_value = "pos")]
        class: String,
        /// How long the code lives, such as 30m, 24h or 7d [default: the server's]
        #[arg(long, value_parser = duration)]
        expires: Option<Duration>,
        #[command(flatten)]
        target: Target,
    },
    /// Devices, or one of them
    Devices {
        /// Only this one
        device: Option<String>,
        /// Of this store only
        #[arg(long)]
        store: Option<String>,
        #[command(flatten)]
        target: Target,
    },
    /// One device
    #[command(subcommand)]
    Device(Device),
    /// Orders that the intake has
    Orders {
        /// One order by its id, with its body
        id: Option<String>,
        /// Of this store only
        #[arg(long)]
        store: Option<String>,
        /// Of this device only
        #[arg(long)]
        device: Option<String>,
        /// After this position
        #[arg(long)]
        after: Option<i64>,
        /// How many at most
        #[arg(long, default_value_t = 100)]
        limit: u64,
        /// Only say how many there are
        #[arg(long)]
        count: bool,
        #[command(flatten)]
        target: Target,
    },
    /// Host overrides of devices
    #[command(subcommand)]
    Hosts(hosts::Hosts),
    /// Route tables
    #[command(subcommand)]
    Routes(routes::Routes),
    /// Operators
    #[command(subcommand)]
    Operator(Operator),
    /// Who did what, the latest first
    Audit {
        /// How many at most
        #[arg(long, default_value_t = 100)]
        limit: u64,
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Subcommand)]
pub(super) enum Device {
    /// Revoke its certificates: it is cut off and let in no more until it is activated anew
    Revoke {
        /// Which
        device: String,
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Subcommand)]
pub(super) enum Store {
    /// Add a store
    Add {
        /// Its identifier
        id: String,
        /// Its country (ISO 3166-1 alpha-2)
        #[arg(long)]
        country: String,
        /// Its name
        #[arg(long, default_value = "")]
        name: String,
        #[command(flatten)]
        target: Target,
    },
    /// List the stores
    List {
        #[command(flatten)]
        target: Target,
    },
}

#[derive(Subcommand)]
pub(super) enum Operator {
    /// Add an operator (password from the terminal, or the first line of the input)
    Add {
        /// Their name
        name: String,
        /// admin, netops, field, support or viewer
        #[arg(long)]
        role: String,
        #[command(flatten)]
        target: Target,
    },
    /// List the operators
    List {
        #[command(flatten)]
        target: Target,
    },
    /// Set a password (from the terminal, or the first line of the input)
    Password {
        /// Whose
        name: String,
        #[command(flatten)]
        target: Target,
    },
    /// Shut an operator out at once
    Disable {
        /// Their name
        name: String,
        #[command(flatten)]
        target: Target,
    },
}

pub(super) async fn run(ask: Ask) -> Result<()> {
    match ask {
        Ask::Login { name, target } => login(&name, &target).await,
        Ask::Store(Store::Add { id, country, name, target }) => {
            let body = json!({"id": id, "country": country, "name": name});
            show(&target, &Client::find(&target).await?.post("/api/v1/stores", &body).await?)
        }
        Ask::Store(Store::List { target }) => {
            list(&target, "/api/v1/stores", &[], ("stores", &["id", "country", "name", "created_at"])).await
        }
        Ask::Claim { store, device, class, expires, target } => {
            let mut body = json!({"store": store, "device": device, "class": class});
            if let Some(expires) = expires {
                body["expires_s"] = expires.as_secs().into();
            }
            let answer = Client::find(&target).await?.post("/api/v1/claims", &body).await?;
            if target.json {
                print::json(&answer);
            } else {
                print::line(answer["claim"].as_str().unwrap_or_default());
            }
            Ok(())
        }
        Ask::Devices { device: Some(device), target, .. } => show(
            &target,
            &Client::find(&target).await?.get(&format!("/api/v1/devices/{}", encode(&device))).await?,
        ),
        Ask::Device(Device::Revoke { device, target }) => revoke(&device, &target).await,
        Ask::Devices { store, target, .. } => {
            let columns = &[
                "id",
                "store",
                "country",
                "class",
                "online",
                "revoked",
                "since",
                "line",
                "origin.origin",
                "orders.pending",
                "orders.quarantined",
                "last_match_at",
                "version",
                "certificate_ends_at",
            ][..];
            list(&target, "/api/v1/devices", &[("store", store)], ("devices", columns)).await
        }
        Ask::Orders { id: Some(id), device, target, .. } => {
            let path = with_query(&format!("/api/v1/orders/{}", encode(&id)), &[("device", device)]);
            show(&target, &Client::find(&target).await?.get(&path).await?)
        }
        Ask::Orders { store, device, after, limit, count, target, .. } => {
            orders(&target, (store, device), after, limit, count).await
        }
        Ask::Hosts(hosts) => hosts::run(hosts).await,
        Ask::Routes(routes) => routes::run(routes).await,
        Ask::Operator(operator) => run_operator(operator).await,
        Ask::Audit { limit, target } => {
            let columns = &["at", "actor", "action", "subject", "detail"];
            page(
                &target,
                &with_query("/api/v1/audit", &[("limit", Some(limit.to_string()))]),
                ("audit", columns),
            )
            .await
        }
    }
}

async fn revoke(device: &str, target: &Target) -> Result<()> {
    let path = format!("/api/v1/devices/{}/revoke", encode(device));
    let answer = Client::find(target).await?.ask(Method::POST, &path, None).await?;
    if target.json {
        print::json(&answer);
    } else {
        print::line(&format!("{device} is shut out ({} certificates revoked)", answer["revoked"]));
    }
    Ok(())
}

async fn login(name: &str, target: &Target) -> Result<()> {
    let client = Client::anonymous(target)?;
    let password = terminal::password(&format!("password of {name} at {}", client.server))?;
    let answer = client.log_in(name, &password).await?;
    let text = |field: &str| {
        answer[field].as_str().map(str::to_owned).context("the server's answer is not a session")
    };
    let login = Login { name: name.to_owned(), token: text("token")?, expires_at: text("expires_at")? };
    if target.json {
        print::json(&answer);
    } else {
        print::line(&format!("logged in as {name} ({}) until {}", text("role")?, login.expires_at));
    }
    match &target.data {
        Some(dir) => logins::keep_in_data(dir, &login),
        None => logins::keep(&client.server, login),
    }
}

async fn orders(
    target: &Target,
    (store, device): (Option<String>, Option<String>),
    after: Option<i64>,
    limit: u64,
    count: bool,
) -> Result<()> {
    let filter = [("store", store), ("device", device)];
    if count {
        let answer = Client::find(target).await?.get(&with_query("/api/v1/orders:count", &filter)).await?;
        if target.json {
            print::json(&answer);
        } else {
            print::line(&answer["count"].to_string());
        }
        return Ok(());
    }
    let [store, device] = filter;
    let columns = &["position", "received_at", "device", "seq", "key", "order_no", "udl", "sha256"];
    let client = Client::find(target).await?;
    let (mut rows, mut next) = (Vec::new(), after);
    loop {
        let wanted = limit.saturating_sub(rows.len() as u64).min(1000);
        let (after, wanted) = (next.map(|after| after.to_string()), Some(wanted.to_string()));
        let parameters = [store.clone(), device.clone(), ("after", after), ("limit", wanted)];
        let mut answer = client.get(&with_query("/api/v1/orders", &parameters)).await?;
        match answer["orders"].take() {
            Value::Array(page) => rows.extend(page),
            _ => bail!("the server's answer has no orders"),
        }
        next = answer["next"].as_i64();
        if next.is_none() || rows.len() as u64 >= limit {
            break;
        }
    }
    if target.json {
        print::json(&json!({"orders": rows, "next": next}));
        return Ok(());
    }
    print::table(&rows, columns);
    if let Some(next) = next {
        eprintln!("there are more: --after {next}");
    }
    Ok(())
}

async fn run_operator(operator: Operator) -> Result<()> {
    match operator {
        Operator::Add { name, role, target } => {
            let client = Client::find(&target).await?;
            let password = terminal::password(&format!("password for {name}"))?;
            let body = json!({"name": name, "password": password, "role": role});
            show(&target, &client.post("/api/v1/operators", &body).await?)
        }
        Operator::List { target } => {
            page(&target, "/api/v1/operators", ("operators", &["name", "role", "created_at", "disabled_at"]))
                .await
        }
        Operator::Password { name, target } => {
            let client = Client::find(&target).await?;
            let password = terminal::password(&format!("new password for {name}"))?;
            let path = format!("/api/v1/operators/{}/password", encode(&name));
            client.post(&path, &json!({"password": password})).await?;
            if !target.json {
                print::line(&format!("{name} has a new password"));
            }
            Ok(())
        }
        Operator::Disable { name, target } => {
            let path = format!("/api/v1/operators/{}/disable", encode(&name));
            Client::find(&target).await?.ask(Method::POST, &path, None).await?;
            if !target.json {
                print::line(&format!("{name} is shut out"));
            }
            Ok(())
        }
    }
}

/// All pages of a list that is ordered by identifier.
pub(super) async fn list(
    target: &Target,
    path: &str,
    filter: &[(&str, Option<String>)],
    (name, columns): (&str, &[&str]),
) -> Result<()> {
    let client = Client::find(target).await?;
    let mut rows = Vec::new();
    let mut after = None;
    loop {
        let mut parameters = filter.to_vec();
        parameters.push(("after", after));
        let mut answer = client.get(&with_query(path, &parameters)).await?;
        match answer[name].take() {
            Value::Array(page) => rows.extend(page),
            _ => bail!("the server's answer has no {name}"),
        }
        after = answer["next"].as_str().map(str::to_owned);
        if after.is_none() {
            break;
        }
    }
    if target.json {
        print::json(&json!({name: rows}));
    } else {
        print::table(&rows, columns);
    }
    Ok(())
}

/// One page of a list.
async fn page(target: &Target, path: &str, (name, columns): (&str, &[&str])) -> Result<()> {
    let answer = Client::find(target).await?.get(path).await?;
    if target.json {
        print::json(&answer);
    } else {
        print::table(answer[name].as_array().map_or(&[], Vec::as_slice), columns);
    }
    Ok(())
}

fn show(target: &Target, answer: &Value) -> Result<()> {
    if target.json {
        print::json(answer);
    } else {
        print::fields(answer);
    }
    Ok(())
}

/// Reads `90s`, `30m`, `24h`, `7d`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a duration such as 90s, 30m, 24h or 7d");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_number_and_a_unit() {
        assert_eq!(duration("24h"), Ok(Duration::from_hours(24)));
        assert_eq!(duration("7d"), Ok(Duration::from_hours(24 * 7)));
        for bad in ["", "24", "h", "1w", "-1h", "1é", "99999999999999999999d"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
