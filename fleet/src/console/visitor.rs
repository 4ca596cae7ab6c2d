//! Who looks at a page, and in which language.

use axum::extract::FromRequestParts;
use axum::response::{IntoResponse as _, Redirect, Response};
use http::StatusCode;
use http::request::Parts;

use super::view::Lens;
use super::words::{self, Language, Words};
use crate::app::App;
use crate::auth::{Operator, Via};
use crate::clock;

/// The language of a request; also of those who are not signed in.
pub(super) struct Speech {
    pub(super) language: Language,
    /// To be set when the language was chosen with this request.
    pub(super) cookie: Option<String>,
}

impl<S: Sync> FromRequestParts<S> for Speech {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Self::Rejection> {
        let query = parts.uri.query();
        let cookie = Language::asked(query).map(|language| {
            format!("{}={}; Path=/; Max-Age=31536000; SameSite=Lax", words::COOKIE, language.code())
        });
        Ok(Self { language: Language::choose(query, &parts.headers), cookie })
    }
}

/// An operator at a page. Whoever is not signed in is sent to do so and comes back here.
pub(super) struct Visitor {
    pub(super) operator: Operator,
    pub(super) speech: Speech,
}

impl FromRequestParts<App> for Visitor {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Response> {
        let Ok(speech) = Speech::from_request_parts(parts, app).await;
        match Operator::of(&parts.headers, app).await {
            Ok(operator) => Ok(Self { operator, speech }),
            Err(failure) if failure.problem().status == StatusCode::UNAUTHORIZED.as_u16() => {
                let here = parts.uri.path_and_query().map_or("/console", |path| path.as_str());
                Err(Redirect::to(&format!("/console/sign-in?next={}", encoded(here))).into_response())
            }
            Err(failure) => Err(failure.into_response()),
        }
    }
}

impl Visitor {
    pub(super) fn lens(&self) -> Lens {
        Lens { language: self.speech.language, now: clock::now() }
    }

    /// The frame of a page. `watch` is the query of the changes that concern it.
    pub(super) fn shell(&self, watch: String) -> Shell {
        let csrf = match &self.operator.via {
            Via::Cookie { csrf } => csrf.clone(),
            Via::Bearer => String::new(),
        };
        Shell {
            who: Some(self.operator.name.clone()),
            csrf,
            watch: Some(watch),
            ..Shell::of(self.speech.language)
        }
    }
}

/// What is around every page.
pub(super) struct Shell {
    pub(super) w: &'static Words,
    pub(super) code: &'static str,
    pub(super) other_code: &'static str,
    pub(super) other_name: &'static str,
    pub(super) who: Option<String>,
    pub(super) csrf: String,
    pub(super) watch: Option<String>,
}

impl Shell {
    pub(super) fn of(language: Language) -> Self {
        let (other_code, other_name) = match language {
            Language::English => ("zh", "中文"),
            Language::Chinese => ("en", "English"),
        };
        Self {
            w: language.words(),
            code: language.code(),
            other_code,
            other_name,
            who: None,
            csrf: String::new(),
            watch: None,
        }
    }
}

/// Text as one value of a query.
pub(super) fn encoded(text: &str) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(text.len() * 2);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}
