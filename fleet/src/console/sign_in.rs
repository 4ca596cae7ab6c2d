//! Signing in and out of the console.

use std::time::Duration;

use axum::extract::{Form, Query, State};
use axum::response::{IntoResponse as _, Redirect, Response};
use axum::{Extension, http::HeaderMap};
use http::{HeaderValue, StatusCode, header};
use serde::Deserialize;

use super::visitor::{Shell, Speech};
use super::{inside, page};
use crate::app::App;
use crate::auth::Operator;
use crate::auth::extract::{COOKIE, cookie, set_cookie};
use crate::auth::operators::{LoginError, log_in};
use crate::auth::session::{self, Kind};
use crate::clock;
use crate::metrics::count;
use crate::problem::Failure;
use crate::server::Peer;

#[derive(askama::Template)]
#[template(path = "console/sign_in.html")]
struct SignInPage {
    shell: Shell,
    problem: Option<&'static str>,
    next: String,
    name: String,
}

/// Where to go afterwards.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Onward {
    next: String,
}

/// What the form sends.
#[derive(Deserialize)]
pub(super) struct Credentials {
    name: String,
    password: String,
    #[serde(default)]
    next: String,
}

/// What the button sends.
#[derive(Deserialize)]
pub(super) struct Goodbye {
    #[serde(default)]
    csrf: String,
}

pub(super) async fn form(speech: Speech, Query(onward): Query<Onward>) -> Response {
    let shell = Shell::of(speech.language);
    let template = SignInPage { shell, problem: None, next: local(&onward.next), name: String::new() };
    page(StatusCode::OK, &template, speech.cookie)
}

pub(super) async fn sign_in(
    State(app): State<App>,
    speech: Speech,
    peer: Option<Extension<Peer>>,
    Form(given): Form<Credentials>,
) -> Response {
    let address = peer.map_or_else(|| "unknown".to_owned(), |Extension(peer)| peer.address.ip().to_string());
    let lasting = Duration::from_hours(1) * app.config.operators.session_hours;
    let who = (given.name.as_str(), given.password);
    let opened =
        log_in(&app.database, &app.logins, who, &address, (Kind::Cookie, lasting), clock::now()).await;
    let error = match opened {
        Ok((opened, _role)) => {
            let cookie = set_cookie(&opened.token, lasting.as_secs(), app.config.operators.secure_cookie);
            return with_cookie(Redirect::to(&local(&given.next)).into_response(), &cookie);
        }
        Err(error) => error,
    };
    count(&app.metrics.logins_refused);
    let words = speech.language.words();
    let (status, problem) = match &error {
        LoginError::Wrong => (StatusCode::UNAUTHORIZED, words.wrong_login),
        LoginError::Wait { .. } => (StatusCode::TOO_MANY_REQUESTS, words.wait_login),
        LoginError::Password(_) | LoginError::Session(_) | LoginError::Database(_) => {
            inside(&error);
            (StatusCode::SERVICE_UNAVAILABLE, words.later)
        }
    };
    let shell = Shell::of(speech.language);
    let template = SignInPage { shell, problem: Some(problem), next: local(&given.next), name: given.name };
    page(status, &template, None)
}

pub(super) async fn sign_out(
    State(app): State<App>,
    headers: HeaderMap,
    Form(given): Form<Goodbye>,
) -> Result<Response, Failure> {
    // Whoever is not signed in (any more) is where they want to be.
    if let Ok(operator) = Operator::of(&headers, &app).await {
        operator.check_csrf(&given.csrf)?;
    }
    if let Some(token) = cookie(&headers, COOKIE) {
        session::close(&app.database, token).await?;
    }
    let forget = set_cookie("", 0, app.config.operators.secure_cookie);
    Ok(with_cookie(Redirect::to("/console/sign-in").into_response(), &forget))
}

fn with_cookie(mut response: Response, cookie: &str) -> Response {
    if let Ok(value) = HeaderValue::from_str(cookie) {
        response.headers_mut().append(header::SET_COOKIE, value);
    }
    response
}

/// A page of ours, or the overview: nobody is sent elsewhere by a link to the sign-in page.
fn local(next: &str) -> String {
    let ours = next == "/console" || next.starts_with("/console/") || next.starts_with("/console?");
    let plain = !next.contains("//") && !next.contains('\\') && !next.chars().any(char::is_control);
    if ours && plain { next.to_owned() } else { "/console".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::local;

    #[test]
    fn signing_in_leads_to_our_own_pages_only() {
        assert_eq!(local("/console/devices/POS-1?lang=zh"), "/console/devices/POS-1?lang=zh");
        for other in [
            "",
            "https://evil.example",
            "//evil.example",
            "/console//evil",
            "/consolex",
            "/console/\\evil",
            "/api",
        ] {
            assert_eq!(local(other), "/console", "{other}");
        }
    }
}
