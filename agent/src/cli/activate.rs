//! `samovar-agent activate`: from a claim code to an identity, in words a technician can act on.
//!
//! Works with and without a running agent: a running one takes the identity up by itself. The result goes to standard
//! output, what went wrong to standard error; with `--json` both are one JSON object on standard output.

use crate::identity::activate::{ActivateError, Activated, Request, activate};
use crate::net::explain;
use samovar_wire::conditions::Words;
use samovar_wire::plain;
use std::path::{Path, PathBuf};

/// Arguments of `activate`.
#[derive(Debug, Clone, clap::Args)]
pub struct ActivateArgs {
    /// Address of a fleet or of the common activation domain (https; http for this machine only)
    #[arg(long, value_name = "URL")]
    pub server: String,
    /// The claim code, such as USW-7K2M-9QXD
    #[arg(long, value_name = "CODE")]
    pub claim: String,
    /// Certificate authorities to believe (PEM), instead of the system's
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// The agent's data directory
    #[arg(long, value_name = "DIR", default_value = "/var/lib/samovar")]
    pub data: PathBuf,
    /// Replace the identity that is there; refused while orders wait
    #[arg(long)]
    pub replace: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// How `activate` ends, besides 0.
mod exit {
    /// The fleet refused, or the device has an identity or waiting orders.
    pub(super) const REFUSED: u8 = 1;
    /// The arguments cannot be used.
    pub(super) const USAGE: u8 = 2;
    /// The data directory cannot be used.
    pub(super) const STORAGE: u8 = 4;
    /// No usable answer: the same command may be repeated.
    pub(super) const NO_ANSWER: u8 = 5;
}

/// Runs `activate` and gives the exit code. `pending` counts the orders that have not reached their origin, or says why
/// it cannot; it is asked only when an identity is to be replaced.
pub async fn run<F>(args: &ActivateArgs, pending: F) -> u8
where
    F: AsyncFnOnce(&Path) -> Result<u64, String>,
{
    let pending = if args.replace { pending(&args.data).await } else { Ok(0) };
    let chinese = speaks_chinese(|name| std::env::var(name).ok());
    let (report, code) = match pending {
        Ok(pending) => report(args, activate(&request(args, pending)).await, chinese),
        // Orders that cannot be counted may be there.
        Err(why) => {
            let words = format!("cannot tell whether orders wait: {why}");
            (failure(args, "orders-unknown", &words, None), exit::STORAGE)
        }
    };
    report.print();
    code
}

fn request(args: &ActivateArgs, pending: u64) -> Request<'_> {
    Request {
        server: &args.server,
        claim: &args.claim,
        ca: args.ca.as_deref(),
        data: &args.data,
        replace: args.replace,
        pending,
    }
}

/// What is printed, and where.
#[derive(Debug, PartialEq, Eq)]
enum Report {
    Output(String),
    Complaint(String),
}

impl Report {
    fn print(&self) {
        use std::io::Write;
        // Nobody may be listening, as in `samovar-agent … | head`; the exit code says the same.
        let _ = match self {
            Self::Output(text) => writeln!(std::io::stdout(), "{}", plain::message(text)),
            Self::Complaint(text) => writeln!(std::io::stderr(), "{}", plain::message(text)),
        };
    }
}

fn report(args: &ActivateArgs, outcome: Result<Activated, ActivateError>, chinese: bool) -> (Report, u8) {
    match outcome {
        Ok(done) => (success(args, &done, chinese), 0),
        Err(error) => {
            let Words { en, zh } = error.advice();
            let advice = if chinese { zh } else { en };
            (failure(args, slug(&error), &explain(&error), Some(advice)), code(&error))
        }
    }
}

fn success(args: &ActivateArgs, done: &Activated, chinese: bool) -> Report {
    if args.json {
        return Report::Output(serde_json::json!({ "status": "activated", "activation": done }).to_string());
    }
    let Activated { device, store, country, class, fleet_url, valid_until, .. } = done;
    Report::Output(if chinese {
        format!(
            "本机已激活：{device}（{class}），门店 {store}，国家 {country}。\n总部：{fleet_url}\n证书有效期至 {valid_until}，到期前自动续签。\n正在运行的 agent 会自动使用新身份。"
        )
    } else {
        format!(
            "This device is {device} ({class}) of store {store}, {country}.\nFleet: {fleet_url}\nThe certificate holds until {valid_until} and renews itself before.\nA running agent takes the identity up by itself."
        )
    })
}

fn failure(args: &ActivateArgs, slug: &str, words: &str, advice: Option<&str>) -> Report {
    if args.json {
        let kind = format!("urn:samovar:problem:{slug}");
        let problem = serde_json::json!({ "type": kind, "detail": words, "advice": advice });
        return Report::Output(serde_json::json!({ "status": "failed", "problem": problem }).to_string());
    }
    let advice = advice.map(|advice| format!("\n{advice}")).unwrap_or_default();
    Report::Complaint(format!("samovar-agent activate: {words}{advice}"))
}

/// The fleet's own name for its refusal, else ours.
fn slug(error: &ActivateError) -> &str {
    match error {
        ActivateError::Refused { problem, .. } if !problem.slug().is_empty() => problem.slug(),
        ActivateError::Refused { .. } => "claim-refused",
        ActivateError::AlreadyActive(_) => "already-active",
        ActivateError::OrdersPending(_) | ActivateError::OtherDevice { .. } => "orders-pending",
        ActivateError::Claim(_) | ActivateError::Server(_) | ActivateError::Roots(_) => "usage",
        ActivateError::Files(_) | ActivateError::Store(_) => "storage",
        ActivateError::SigningRequest(_) => "signing-request",
        ActivateError::Answer { .. } => "unusable-answer",
        _ => "no-answer",
    }
}

const fn code(error: &ActivateError) -> u8 {
    match error {
        ActivateError::Refused { .. }
        | ActivateError::AlreadyActive(_)
        | ActivateError::OrdersPending(_)
        | ActivateError::OtherDevice { .. } => exit::REFUSED,
        ActivateError::Claim(_) | ActivateError::Server(_) | ActivateError::Roots(_) => exit::USAGE,
        ActivateError::Files(_) | ActivateError::Store(_) | ActivateError::SigningRequest(_) => exit::STORAGE,
        _ => exit::NO_ANSWER,
    }
}

/// Whether the terminal's language is Chinese, in the order in which the system itself asks.
pub(super) fn speaks_chinese(variable: impl Fn(&str) -> Option<String>) -> bool {
    let set =
        ["LC_ALL", "LC_MESSAGES", "LANG"].into_iter().filter_map(variable).find(|value| !value.is_empty());
    set.is_some_and(|language| language.starts_with("zh"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use samovar_wire::problem::Problem;

    fn args(json: bool) -> ActivateArgs {
        ActivateArgs {
            server: "http://127.0.0.1:9".into(),
            claim: "USW-7K2M-9QXD".into(),
            ca: None,
            data: "/nowhere".into(),
            replace: true,
            json,
        }
    }

    fn refused() -> ActivateError {
        let problem = Problem::new(409, "claim-used", "this claim was used on 2026-11-20");
        ActivateError::Refused { host: "fleet.example".into(), status: 409, problem }
    }

    #[test]
    fn a_refusal_is_told_with_the_fleets_words_and_what_to_do_in_both_languages() {
        let (told, code) = report(&args(false), Err(refused()), false);
        let Report::Complaint(text) = told else { panic!("{told:?}") };
        assert_eq!(code, 1);
        assert!(
            text.contains("this claim was used on 2026-11-20") && text.contains("Ask the operator"),
            "{text}"
        );
        let (told, _) = report(&args(false), Err(refused()), true);
        assert!(matches!(told, Report::Complaint(text) if text.contains("激活码只能使用一次")));
    }

    #[test]
    fn json_names_the_problem_as_the_fleet_does() {
        let (told, _) = report(&args(true), Err(refused()), false);
        let Report::Output(text) = told else { panic!("{told:?}") };
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["status"], "failed");
        assert_eq!(json["problem"]["type"], "urn:samovar:problem:claim-used");
    }

    #[test]
    fn the_language_is_the_one_the_system_would_choose() {
        let with = |set: &'static [(&str, &str)]| {
            speaks_chinese(|name| set.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned()))
        };
        assert!(with(&[("LANG", "zh_CN.UTF-8")]));
        assert!(with(&[("LC_ALL", ""), ("LANG", "zh_CN.UTF-8")]));
        assert!(!with(&[("LC_ALL", "C"), ("LANG", "zh_CN.UTF-8")]));
        assert!(!with(&[]));
    }

    #[tokio::test]
    async fn orders_that_cannot_be_counted_stop_a_replacement() {
        assert_eq!(run(&args(true), async |_: &Path| Err("the ledger is damaged".to_owned())).await, 4);
    }
}
