//! The extractor that every API route uses: who is asking.

use axum::extract::FromRequestParts;
use http::request::Parts;
use http::{HeaderMap, Method, StatusCode, header};

use super::session::{self, Holder, Kind};
use super::{Role, role_name};
use crate::app::App;
use crate::clock;
use crate::problem::Failure;

/// The console's cookie.
pub const COOKIE: &str = "samovar_session";

/// Where scripts of the console show the CSRF token; forms use a field `csrf`.
pub const CSRF_HEADER: &str = "x-csrf-token";

/// How an operator showed who they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Via {
    /// A bearer token.
    Bearer,
    /// The console's cookie, with the CSRF token that its forms must show.
    Cookie {
        /// The token expected.
        csrf: String,
    },
}

/// An operator who is logged in. As an extractor it answers 401 without a session, and 403 when a cookie alone asks
/// for a change.
#[derive(Clone, Debug)]
pub struct Operator {
    /// Their name, for the audit log.
    pub name: String,
    /// Their role.
    pub role: Role,
    /// How they showed it.
    pub via: Via,
}

impl Operator {
    /// Refuses operators below a role.
    ///
    /// # Errors
    /// 403 `forbidden`.
    pub fn needs(&self, role: Role) -> Result<(), Failure> {
        if self.role >= role {
            return Ok(());
        }
        Err(Failure::forbidden(format!(
            "this needs the role {}; yours is {}",
            role_name(role),
            role_name(self.role)
        )))
    }

    /// Compares the CSRF token of a form. Bearers need none.
    ///
    /// # Errors
    /// 403 `csrf`.
    pub fn check_csrf(&self, shown: &str) -> Result<(), Failure> {
        match &self.via {
            Via::Bearer => Ok(()),
            Via::Cookie { csrf } if !csrf.is_empty() && same(csrf, shown) => Ok(()),
            Via::Cookie { .. } => Err(Failure::new(
                StatusCode::FORBIDDEN,
                "csrf",
                "the form is out of date; load the page again",
            )),
        }
    }

    /// Finds the operator of a request without the CSRF check, for pages that check a form field themselves.
    ///
    /// # Errors
    /// 401 `unauthenticated`, 503.
    pub async fn of(headers: &HeaderMap, app: &App) -> Result<Self, Failure> {
        let now = clock::now();
        let (found, bearer) = if let Some(token) = bearer(headers) {
            (session::find(&app.database, token, Kind::Bearer, now).await?, true)
        } else if let Some(token) = cookie(headers, COOKIE) {
            (session::find(&app.database, token, Kind::Cookie, now).await?, false)
        } else {
            (None, false)
        };
        let Some(Holder { name, role, csrf }) = found else {
            return Err(Failure::new(StatusCode::UNAUTHORIZED, "unauthenticated", "log in first"));
        };
        let via = if bearer { Via::Bearer } else { Via::Cookie { csrf: csrf.unwrap_or_default() } };
        Ok(Self { name, role, via })
    }
}

impl FromRequestParts<App> for Operator {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Failure> {
        let operator = Self::of(&parts.headers, app).await?;
        if !matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS) {
            let shown =
                parts.headers.get(CSRF_HEADER).and_then(|value| value.to_str().ok()).unwrap_or_default();
            operator.check_csrf(shown)?;
        }
        Ok(operator)
    }
}

/// The bearer token of a request.
#[must_use]
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

/// One cookie of a request.
#[must_use]
pub fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find_map(|(found, value)| (found == name).then_some(value))
}

/// The `Set-Cookie` value that hands a session to a browser.
#[must_use]
pub fn set_cookie(token: &str, max_age_s: u64, secure: bool) -> String {
    let secure = if secure { "; Secure" } else { "" };
    format!("{COOKIE}={token}; Path=/; Max-Age={max_age_s}; HttpOnly; SameSite=Strict{secure}")
}

/// Compares secrets in a time that does not tell where they differ.
#[must_use]
pub fn same(one: &str, other: &str) -> bool {
    one.len() == other.len() && one.bytes().zip(other.bytes()).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_found_among_others_and_a_token_whatever_the_case_of_its_scheme() {
        let mut headers = HeaderMap::new();
        headers.insert(header::COOKIE, "a=1; samovar_session=xyz; b=2".parse().unwrap());
        headers.insert(header::AUTHORIZATION, "bearer  tok".parse().unwrap());
        assert_eq!(cookie(&headers, COOKIE), Some("xyz"));
        assert_eq!(bearer(&headers), Some("tok"));
        assert_eq!(cookie(&headers, "session"), None);
    }

    #[test]
    fn a_role_opens_what_is_at_or_below_it() {
        let netops = Operator { name: "n".into(), role: Role::Netops, via: Via::Bearer };
        assert!(netops.needs(Role::Support).is_ok());
        assert!(netops.needs(Role::Netops).is_ok());
        assert_eq!(netops.needs(Role::Admin).unwrap_err().problem().status, 403);
    }

    #[test]
    fn a_cookie_needs_its_csrf_token_and_an_empty_one_never_matches() {
        let with = |csrf: &str| Operator {
            name: "n".into(),
            role: Role::Admin,
            via: Via::Cookie { csrf: csrf.into() },
        };
        assert!(with("abc").check_csrf("abc").is_ok());
        assert!(with("abc").check_csrf("abd").is_err());
        assert!(with("").check_csrf("").is_err());
    }
}
