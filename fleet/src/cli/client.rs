//! Talking to a server: which one, with which token, and what it answers.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use http::Method;
use reqwest::tls::Certificate;
use samovar_wire::problem::Problem;
use serde::Deserialize;
use serde_json::{Value, json};

use super::logins;

/// Which server, and how its answers are shown.
#[derive(clap::Args, Debug)]
pub(super) struct Target {
    /// The server, such as https://fleet.example:7743 [env: SAMOVAR_SERVER]
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// On the server's own machine: its data directory, instead of --server
    #[arg(long, value_name = "DIR")]
    pub(super) data: Option<PathBuf>,
    /// The authority that the server's certificate is checked against (PEM) [env: SAMOVAR_CA]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Print the server's answer as JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// A server and the right to ask it.
pub(super) struct Client {
    http: reqwest::Client,
    pub(super) server: String,
    token: Option<String>,
}

#[derive(Deserialize)]
struct RunFile {
    http: String,
}

/// Runs one command to its end.
pub(super) fn block_on(work: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

impl Client {
    /// Finds the server; no token yet.
    pub(super) fn anonymous(target: &Target) -> Result<Self> {
        let server = server(target)?;
        let mut builder = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(10))
            .timeout(Duration::from_mins(1))
            .redirect(reqwest::redirect::Policy::none());
        let ca = target.ca.clone().or_else(|| std::env::var_os("SAMOVAR_CA").map(PathBuf::from));
        if let Some(ca) = ca {
            let pem = std::fs::read(&ca).with_context(|| format!("{} cannot be read", ca.display()))?;
            let roots =
                Certificate::from_pem_bundle(&pem).with_context(|| format!("{} is not PEM", ca.display()))?;
            builder = builder.tls_certs_only(roots);
        }
        Ok(Self { http: builder.build().context("HTTPS cannot be set up")?, server, token: None })
    }

    /// Finds the server and a token for it.
    pub(super) async fn find(target: &Target) -> Result<Self> {
        let mut client = Self::anonymous(target)?;
        client.token = Some(match std::env::var("SAMOVAR_TOKEN") {
            Ok(token) if !token.trim().is_empty() => sendable(token.trim())?,
            _ => client.known_token(target).await?,
        });
        Ok(client)
    }

    async fn known_token(&self, target: &Target) -> Result<String> {
        if let Some(dir) = &target.data {
            return self.first_admins_token(dir).await;
        }
        match logins::find(&self.server)? {
            Some(login) if login.is_alive() => Ok(login.token),
            _ => {
                let server = &self.server;
                bail!(
                    "not logged in at {server}: run `samovar-fleet login --name YOU --server {server}`, or set SAMOVAR_TOKEN"
                )
            }
        }
    }

    async fn first_admins_token(&self, dir: &Path) -> Result<String> {
        if let Some(login) = logins::of_data(dir)
            && self.opens(&login.token).await?
        {
            return Ok(login.token);
        }
        let hint = format!("log in: `samovar-fleet login --name YOU --data {}`", dir.display());
        let (name, password) = first_admin(dir).with_context(|| hint.clone())?;
        let answer = self
            .log_in(&name, &password)
            .await
            .with_context(|| format!("the password in {}/admin.txt does not open; {hint}", dir.display()))?;
        let text =
            |field: &str| answer[field].as_str().map(str::to_owned).context("the answer is not a session");
        let login = logins::Login { name, token: text("token")?, expires_at: text("expires_at")? };
        logins::keep_in_data(dir, &login)?;
        Ok(login.token)
    }

    /// Whether a session still stands: its operator may have been shut out, its database replaced.
    async fn opens(&self, token: &str) -> Result<bool> {
        let request = self.http.get(format!("{}/api/v1/me", self.server)).bearer_auth(token);
        let response = request.send().await.with_context(|| self.silent())?;
        Ok(response.status() != http::StatusCode::UNAUTHORIZED)
    }

    fn silent(&self) -> String {
        format!("{} does not answer", self.server)
    }

    /// Asks for a session.
    pub(super) async fn log_in(&self, name: &str, password: &str) -> Result<Value> {
        self.ask(Method::POST, "/api/v1/login", Some(json!({"name": name, "password": password}).to_string()))
            .await
    }

    pub(super) async fn get(&self, path: &str) -> Result<Value> {
        self.ask(Method::GET, path, None).await
    }

    pub(super) async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.ask(Method::POST, path, Some(body.to_string())).await
    }

    /// Approves something, if it still is what was looked at.
    pub(super) async fn approve(&self, path: &str, revision: Option<i64>) -> Result<Value> {
        let mut request = self.http.post(format!("{}{path}", self.server));
        if let Some(revision) = revision {
            request = request.header(http::header::IF_MATCH, format!("\"{revision}\""));
        }
        self.answer(request, None).await
    }

    /// Replaces something that must not have changed since `tag` (its `ETag`).
    pub(super) async fn replace(&self, path: &str, tag: &str, body: &Value) -> Result<Value> {
        let request = self.http.request(Method::PUT, format!("{}{path}", self.server));
        self.answer(request.header(http::header::IF_MATCH, tag), Some(body.to_string())).await
    }

    /// Sends one request; a problem document becomes an error in the server's words.
    pub(super) async fn ask(&self, method: Method, path: &str, body: Option<String>) -> Result<Value> {
        self.answer(self.http.request(method, format!("{}{path}", self.server)), body).await
    }

    async fn answer(&self, mut request: reqwest::RequestBuilder, body: Option<String>) -> Result<Value> {
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.header(http::header::CONTENT_TYPE, "application/json").body(body);
        }
        let response = request.send().await.map_err(|error| self.unreachable(error))?;
        let status = response.status();
        let bytes =
            response.bytes().await.with_context(|| format!("{} broke off its answer", self.server))?;
        if status.is_success() {
            let empty = bytes.is_empty();
            return if empty {
                Ok(Value::Null)
            } else {
                serde_json::from_slice(&bytes).context("the answer is not JSON")
            };
        }
        match serde_json::from_slice::<Problem>(&bytes) {
            Ok(problem) if !problem.kind.is_empty() => {
                bail!("{} ({status}, {})", problem.detail, problem.slug())
            }
            _ => bail!("{} answered {status}", self.server),
        }
    }
}

impl Client {
    /// Says what to do about a certificate of an authority that nobody here knows.
    fn unreachable(&self, error: reqwest::Error) -> anyhow::Error {
        let unknown = crate::problem::chain(&error).contains("UnknownIssuer");
        let error = anyhow::Error::new(error.without_url());
        if unknown {
            let hint = "its certificate is of an authority that is not known here: name it with --ca FILE or SAMOVAR_CA";
            return error.context(format!("{}: {hint}", self.server));
        }
        error.context(self.silent())
    }
}

/// A token that fits into a header.
fn sendable(token: &str) -> Result<String> {
    if token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(token.to_owned());
    }
    bail!("SAMOVAR_TOKEN is not a token: it holds white space or characters that are not ASCII")
}

fn server(target: &Target) -> Result<String> {
    let given =
        target.server.clone().or_else(|| std::env::var("SAMOVAR_SERVER").ok().filter(|url| !url.is_empty()));
    let server = match (given, &target.data) {
        (Some(server), _) => server,
        (None, Some(dir)) => {
            let path = dir.join("run.json");
            let bytes = std::fs::read(&path)
                .with_context(|| format!("{} cannot be read (is the server running?)", path.display()))?;
            serde_json::from_slice::<RunFile>(&bytes)
                .with_context(|| format!("{} is not valid", path.display()))?
                .http
        }
        (None, None) => {
            bail!("which server? use --server URL, SAMOVAR_SERVER, or --data DIR on its own machine")
        }
    };
    let server = server.trim_end_matches('/').to_owned();
    if !server.starts_with("http://") && !server.starts_with("https://") {
        bail!("`{server}` is not a URL: begin with https://");
    }
    Ok(server)
}

fn first_admin(dir: &Path) -> Result<(String, String)> {
    let path = dir.join("admin.txt");
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("{} cannot be read", path.display()))?;
    let field = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
    };
    field("name:")
        .zip(field("password:"))
        .with_context(|| format!("{} has no name and password", path.display()))
}

/// One part of a path or query, percent-encoded.
pub(super) fn encode(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
        encoded
    })
}

/// A path with its query; parameters without a value are left out.
pub(super) fn with_query(path: &str, parameters: &[(&str, Option<String>)]) -> String {
    let mut whole = path.to_owned();
    let given = parameters.iter().filter_map(|(name, value)| value.as_ref().map(|value| (name, value)));
    for (number, (name, value)) in given.enumerate() {
        whole.push(if number == 0 { '?' } else { '&' });
        whole.push_str(&format!("{name}={}", encode(value)));
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_fits_into_no_header_is_refused_by_name() {
        assert_eq!(sendable("abc-1_2.3").unwrap(), "abc-1_2.3");
        assert!(sendable("a\nb").unwrap_err().to_string().contains("SAMOVAR_TOKEN"));
    }

    #[test]
    fn queries_carry_what_was_given_and_encode_it() {
        let query = with_query("/x", &[("a", None), ("b", Some("1&2 é".into())), ("c", Some("3".into()))]);
        assert_eq!(query, "/x?b=1%262%20%C3%A9&c=3");
        assert_eq!(with_query("/x", &[("a", None)]), "/x");
    }
}
