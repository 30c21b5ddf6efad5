//! The request for a hunt.

use std::{collections::BTreeSet, time::Duration};

use serde::Deserialize;
use shared::{
    error::{Error, Result},
    lambda::event::HttpRequest,
    registry::hunts::MAX_HUNTED_TENANTS,
    tenant::TenantId,
};

/// The longest query, in bytes. It is stored in one item of the table, together with the tenants.
const MAX_QUERY_BYTES: usize = 100_000;

/// The longest time span, in bytes. An interval of two times has fewer.
const MAX_TIMESPAN_BYTES: usize = 100;

/// The longest identifier in a request that is none of a tenant, in bytes. It is reported among the failures.
const MAX_MALFORMED_BYTES: usize = 100;

/// The most identifiers in a request that are none of a tenant.
const MAX_MALFORMED: usize = 100;

/// The default of `wait_seconds` of a new hunt.
const DEFAULT_WAIT: WaitSeconds = WaitSeconds(20);

const MAX_WAIT: WaitSeconds = WaitSeconds(25);

/// The time for which a caller waits for the end of a hunt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Deserialize)]
pub(super) struct WaitSeconds(u64);

impl From<WaitSeconds> for Duration {
    fn from(WaitSeconds(seconds): WaitSeconds) -> Self {
        Self::from_secs(seconds)
    }
}

impl WaitSeconds {
    /// The wait of a query string: without one, none.
    pub(super) fn of_query(request: &HttpRequest) -> Result<Self> {
        let parameters = request.parameters(&["wait_seconds"])?;
        let Some(text) = parameters.get("wait_seconds") else { return Ok(Self(0)) };
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        let seconds = text.parse().ok().filter(|_| digits).map(Self);
        seconds.and_then(Self::allowed).ok_or_else(wrong_wait)
    }

    fn allowed(self) -> Option<Self> {
        (self <= MAX_WAIT).then_some(self)
    }
}

fn at_most(name: &str, text: &str, bytes: usize) -> Result<()> {
    let fits = text.len() <= bytes;
    fits.then_some(()).ok_or_else(|| Error::InvalidRequest(format!("`{name}` must have at most {bytes} bytes.")))
}

fn wrong_wait() -> Error {
    Error::InvalidRequest(format!("`wait_seconds` must be a whole number from 0 to {}.", MAX_WAIT.0))
}

/// The body of a request.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    query: String,
    tenants: Option<Vec<String>>,
    timespan: Option<String>,
    wait_seconds: Option<WaitSeconds>,
}

/// A hunt that a caller asks for.
#[derive(Debug)]
pub(super) struct HuntRequest {
    pub(super) query: String,
    pub(super) timespan: Option<String>,
    /// The tenants to hunt in. `None`: all active ones.
    pub(super) tenants: Option<Vec<TenantId>>,
    /// Identifiers as the caller wrote them. They are reported as `not_found`, exactly like unknown ones.
    pub(super) malformed: Vec<String>,
    pub(super) wait: WaitSeconds,
}

impl HuntRequest {
    pub(super) fn parse(request: &HttpRequest) -> Result<Self> {
        let shape = "`query` and, if wanted, `tenants` (a list of tenant ids), `timespan` (ISO 8601, like P7D) and \
                     `wait_seconds` (0 to 25), and no others";
        let Body { query, tenants, timespan, wait_seconds } = request.json(shape)?;
        if query.trim().is_empty() {
            return Err(Error::InvalidRequest("`query` must not be empty.".into()));
        }
        at_most("query", &query, MAX_QUERY_BYTES)?;
        at_most("timespan", timespan.as_deref().unwrap_or_default(), MAX_TIMESPAN_BYTES)?;
        let wait = wait_seconds.unwrap_or(DEFAULT_WAIT).allowed().ok_or_else(wrong_wait)?;
        let (mut ids, mut malformed) = (BTreeSet::new(), BTreeSet::new());
        let is_list = tenants.is_some();
        for name in tenants.into_iter().flatten() {
            match name.parse::<TenantId>() {
                Ok(id) => drop(ids.insert(id)),
                Err(_) => drop(malformed.insert(name)),
            }
        }
        if ids.len() > MAX_HUNTED_TENANTS
            || malformed.len() > MAX_MALFORMED
            || malformed.iter().any(|name| name.len() > MAX_MALFORMED_BYTES)
        {
            return Err(Error::InvalidRequest(format!(
                "`tenants` must be at most {MAX_HUNTED_TENANTS} tenant ids, and at most {MAX_MALFORMED} malformed ones of at \
                 most {MAX_MALFORMED_BYTES} bytes each."
            )));
        }
        let tenants = is_list.then(|| ids.into_iter().collect());
        Ok(Self { query, timespan, tenants, malformed: malformed.into_iter().collect(), wait })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &str) -> Result<HuntRequest> {
        HuntRequest::parse(&HttpRequest { body: body.as_bytes().to_vec(), ..HttpRequest::default() })
    }

    #[test]
    fn wait_is_bounded_by_what_the_gateway_allows() {
        assert_eq!(parse(r#"{"query":"T"}"#).unwrap().wait, DEFAULT_WAIT);
        assert_eq!(parse(r#"{"query":"T","wait_seconds":0}"#).unwrap().wait, WaitSeconds(0));
        assert_eq!(parse(r#"{"query":"T","wait_seconds":25}"#).unwrap().wait, MAX_WAIT);
        for wrong in ["26", "-1", "1.5", "\"5\"", "true"] {
            let body = format!(r#"{{"query":"T","wait_seconds":{wrong}}}"#);
            assert!(matches!(parse(&body), Err(Error::InvalidRequest(_))), "{wrong}");
        }
        let of_query = |text: &str| {
            let query = vec![("wait_seconds".to_owned(), text.to_owned())];
            WaitSeconds::of_query(&HttpRequest { query, ..HttpRequest::default() })
        };
        assert_eq!(of_query("7"), Ok(WaitSeconds(7)));
        for wrong in ["26", "-1", "+1", "", "x"] {
            assert!(of_query(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn each_tenant_is_hunted_in_once() {
        let tenant = "11111111-2222-4333-8444-abcdefabcdef";
        let wanted = parse(&format!(r#"{{"query":"T","tenants":["{tenant}","CONTOSO","{tenant}"]}}"#)).unwrap();
        assert_eq!(wanted.tenants, Some(vec![tenant.parse().unwrap()]));
        assert_eq!(wanted.malformed, ["CONTOSO"]);
        assert_eq!(parse(r#"{"query":"T"}"#).unwrap().tenants, None);
        assert_eq!(parse(r#"{"query":"T","tenants":[]}"#).unwrap().tenants, Some(Vec::new()));
    }

    #[test]
    fn refusal_names_the_member_that_is_too_long() {
        let text = |bytes: usize| "x".repeat(bytes);
        let with = |query: &str, timespan: &str, names: &[String]| {
            parse(&serde_json::json!({"query": query, "timespan": timespan, "tenants": names}).to_string())
        };
        let most: Vec<String> = (0..MAX_MALFORMED).map(|number| format!("{number:0100}")).collect();
        let parsed = with(&text(MAX_QUERY_BYTES), &text(MAX_TIMESPAN_BYTES), &most).unwrap();
        assert_eq!(parsed.malformed, most);
        let more: Vec<String> = (0..=MAX_MALFORMED).map(|number| number.to_string()).collect();
        for (refused, member) in [
            (with(&text(MAX_QUERY_BYTES + 1), "P7D", &[]), "`query` must have at most 100000 bytes"),
            (with("T", &text(MAX_TIMESPAN_BYTES + 1), &[]), "`timespan` must have at most 100 bytes"),
            (with("T", "P7D", &[text(MAX_MALFORMED_BYTES + 1)]), "`tenants` must be"),
            (with("T", "P7D", &more), "`tenants` must be"),
        ] {
            let Err(Error::InvalidRequest(detail)) = refused else { panic!("{member}: {refused:?}") };
            assert!(detail.starts_with(member), "{detail}");
        }
    }
}
