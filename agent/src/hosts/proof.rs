//! Whether an override takes effect: one request by the way that requests take now, and a look-up by a fresh process
//! (IO).

use super::effect::look_up_afresh;
use super::run::{Names, Tried};
use super::state::Proof;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Longest wait for the request.
const LIMIT: Duration = Duration::from_secs(8);
/// The file that the C library reads.
const SYSTEM: &str = "/etc/hosts";

/// What is to be proven.
pub(super) struct Target {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) address: IpAddr,
    /// The hosts file that holds the override.
    pub(super) file: Option<PathBuf>,
}

/// What a fresh process was told.
enum Looked {
    /// There was no point in asking.
    No,
    Up(Vec<IpAddr>),
    Failed(String),
}

pub(super) async fn prove(names: Arc<dyn Names>, target: Target) -> (String, Proof) {
    let request = tokio::time::timeout(LIMIT, names.through(&target.name, target.address));
    let tried = request
        .await
        .unwrap_or_else(|_| Tried::NotReached(format!("no answer within {} s", LIMIT.as_secs())));
    let looked = if target.file.as_deref() == Some(Path::new(SYSTEM)) {
        let name = target.name.clone();
        match tokio::task::spawn_blocking(move || look_up_afresh(&name)).await {
            Ok(Ok(found)) => Looked::Up(found),
            Ok(Err(why)) => Looked::Failed(why),
            Err(ended) => Looked::Failed(ended.to_string()),
        }
    } else {
        Looked::No
    };
    let proof = judge(tried, looked, &target);
    (target.id, proof)
}

fn judge(tried: Tried, looked: Looked, target: &Target) -> Proof {
    let address = target.address;
    let (reached, mut why) = match tried {
        Tried::Answered => (true, format!("the origin answers at {address}")),
        Tried::Else(what) => (true, format!("{address} answers, but {what}")),
        Tried::NotReached(why) => (false, format!("{address} does not answer: {why}")),
    };
    let seen = match looked {
        Looked::No => {
            if let Some(file) = &target.file {
                why.push_str(&format!("; other programs do not read {}", file.display()));
            }
            true
        }
        Looked::Up(found) if found == [address] => {
            why.push_str("; other programs look the name up there");
            true
        }
        Looked::Up(found) => {
            let found: Vec<_> = found.iter().map(IpAddr::to_string).collect();
            why.push_str(&format!("; other programs still get {}", found.join(", ")));
            false
        }
        Looked::Failed(problem) => {
            why.push_str(&format!("; whether other programs look it up there is not known: {problem}"));
            false
        }
    };
    Proof { effective: reached && seen, why }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn effective(tried: Tried, looked: Looked) -> bool {
        let target = Target {
            id: "1".into(),
            name: "us.store.example".into(),
            address: "203.0.113.10".parse().unwrap(),
            file: Some(SYSTEM.into()),
        };
        let proof = judge(tried, looked, &target);
        assert!(proof.why.len() > 20, "{}", proof.why);
        proof.effective
    }

    #[test]
    fn it_is_effective_when_requests_arrive_and_other_programs_see_it() {
        let up = |text: &[&str]| Looked::Up(text.iter().map(|ip| ip.parse().unwrap()).collect());
        assert!(effective(Tried::Answered, up(&["203.0.113.10"])));
        assert!(effective(Tried::Else("it says it is `apac`".into()), Looked::No));
        assert!(!effective(Tried::NotReached("refused".into()), up(&["203.0.113.10"])));
        assert!(!effective(Tried::Answered, up(&["203.0.113.10", "10.0.0.9"])));
        assert!(!effective(Tried::Answered, up(&[])));
        assert!(!effective(Tried::Answered, Looked::Failed("no answer".into())));
    }
}
