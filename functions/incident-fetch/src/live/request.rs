//! The query of a list: its parameters, its `next`, and the filters that Microsoft applies itself.

use std::collections::BTreeMap;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use shared::{
    error::{Error, Result},
    incident::record::Record,
    lambda::{event::HttpRequest, route::page_limit},
    microsoft::IncidentApi,
    tenant::TenantId,
    text::parse_utc,
};

use super::{page::Position, render::ResponseFormat};

/// The default of `from`, before the present.
const DEFAULT_SPAN: SignedDuration = SignedDuration::from_hours(24);

/// The most failed tenants that a `next` remembers. A request line has room for so many identifiers.
const MAX_FAILED_TENANTS: usize = 200;

/// The time after which a `next` is refused.
const NEXT_LIFETIME: SignedDuration = SignedDuration::from_hours(1);

const STATUSES: [&str; 5] = ["active", "in_progress", "awaiting_action", "resolved", "redirected"];
const SEVERITIES: [&str; 4] = ["informational", "low", "medium", "high"];
const FORMATS: [&str; 2] = ["envelope", "ocsf"];

/// A list that a caller requests. It travels in `next`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ListRequest {
    pub(super) from: Timestamp,
    pub(super) to: Option<Timestamp>,
    status: Option<String>,
    severity: Option<String>,
    assigned_to: Option<String>,
    pub(crate) limit: u32,
    pub(crate) format: ResponseFormat,
    /// The tenant of the list; `None` for all tenants.
    tenant: Option<TenantId>,
    /// The position at which the page before ended.
    pub(super) after: Option<Position>,
    /// The time after which a `next` made from this is refused.
    expires: Option<Timestamp>,
    /// The tenants that failed on a page before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    failed: Vec<FailedTenants>,
}

/// Tenants that failed alike.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct FailedTenants {
    code: String,
    reason: Option<String>,
    /// Their identifiers, 16 bytes each, in base64.
    tenants: String,
}

impl FailedTenants {
    fn ids(&self) -> Option<Vec<TenantId>> {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(&self.tenants).ok()?;
        let (ids, rest) = bytes.as_chunks::<16>();
        if rest.is_empty() { ids.iter().map(|id| TenantId::from_bytes(*id)).collect() } else { None }
    }

    /// Returns false for what no page has given: the caller held it.
    fn is_valid(&self) -> bool {
        let is_word = |word: &String| word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        is_word(&self.code) && self.reason.iter().all(is_word) && self.ids().is_some()
    }
}

impl ListRequest {
    /// Parses the query of a list. `tenant` is `None` for all tenants.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] for an unknown parameter or value and for a `next` of another list, [`Error::Gone`] for
    /// an expired `next`.
    pub(crate) fn parse(request: &HttpRequest, tenant: Option<TenantId>, now: Timestamp) -> Result<Self> {
        let names = ["from", "to", "status", "severity", "assigned_to", "limit", "next", "format"];
        let parameters = request.parameters(&names)?;
        let value = |name: &str| parameters.get(name).copied();
        let limit = page_limit(value("limit"))?;
        let list = Self {
            from: value("from").map(|from| time("from", from)).transpose()?.unwrap_or(now - DEFAULT_SPAN),
            to: value("to").map(|to| time("to", to)).transpose()?,
            status: one_of("status", value("status"), &STATUSES)?,
            severity: one_of("severity", value("severity"), &SEVERITIES)?,
            assigned_to: value("assigned_to").map(str::to_owned),
            limit,
            format: response_format(value("format"))?,
            tenant,
            after: None,
            expires: None,
            failed: Vec::new(),
        };
        if !list.is_forward() {
            return Err(Error::InvalidRequest("`to` must be later than `from`.".into()));
        }
        let Some(next) = value("next") else { return Ok(list) };
        // The list of the first page continues. Only the size and the form of a page may change.
        let mut resumed = Self::parse_next(next, tenant, now)?;
        if parameters.contains_key("limit") {
            resumed.limit = limit;
        }
        if parameters.contains_key("format") {
            resumed.format = list.format;
        }
        Ok(resumed)
    }

    /// Parses a `next`. The caller held it, so its values are checked like those of a query.
    fn parse_next(next: &str, tenant: Option<TenantId>, now: Timestamp) -> Result<Self> {
        let invalid = || Error::InvalidRequest("`next` is not one that this list gave.".into());
        let json = BASE64_URL_SAFE_NO_PAD.decode(next).map_err(|_| invalid())?;
        let list: Self = serde_json::from_slice(&json).map_err(|_| invalid())?;
        let times = [Some(list.from), list.to];
        let valid = list.tenant == tenant
            && page_limit(Some(&list.limit.to_string())).is_ok()
            && one_of("status", list.status.as_deref(), &STATUSES).is_ok()
            && one_of("severity", list.severity.as_deref(), &SEVERITIES).is_ok()
            && times.into_iter().flatten().all(|time| parse_utc(&time.to_string()).is_some())
            && list.failed.iter().all(FailedTenants::is_valid)
            && list.is_forward();
        if !valid {
            return Err(invalid());
        }
        if list.expires.is_none_or(|expires| expires < now) {
            return Err(Error::Gone);
        }
        Ok(list)
    }

    fn is_forward(&self) -> bool {
        self.to.is_none_or(|to| to > self.from)
    }

    /// The entries of `failures` of the pages before, with their tenants.
    pub(crate) fn failures(&self) -> Vec<(TenantId, Value)> {
        let of_group = |group: &FailedTenants| {
            let entry = |id: TenantId| (id, json!({"tenant_id": id, "code": group.code, "reason": group.reason}));
            group.ids().unwrap_or_default().into_iter().map(entry).collect::<Vec<_>>()
        };
        self.failed.iter().flat_map(of_group).collect()
    }

    /// This list with `failures` for the pages after it. Each of them names these tenants again, because it lacks what they
    /// would have shown before. Where a `next` cannot hold all of them, the rest is tried again by the page after it.
    #[must_use]
    pub(crate) fn with_failures(&self, failures: &[Value]) -> Self {
        let mut groups: BTreeMap<(String, Option<String>), Vec<u8>> = BTreeMap::new();
        for failure in failures.iter().take(MAX_FAILED_TENANTS) {
            let word = |name: &str| failure[name].as_str().map(str::to_owned);
            let id: Option<TenantId> = failure["tenant_id"].as_str().and_then(|id| id.parse().ok());
            let group = groups.entry((word("code").unwrap_or_default(), word("reason"))).or_default();
            group.extend(id.map(TenantId::to_bytes).into_iter().flatten());
        }
        let failed = groups.into_iter().map(|((code, reason), ids)| FailedTenants {
            code,
            reason,
            tenants: BASE64_URL_SAFE_NO_PAD.encode(ids),
        });
        Self { failed: failed.collect(), ..self.clone() }
    }

    /// Returns the `next` of a page that ends at `after`.
    pub(crate) fn next(&self, after: Position, now: Timestamp) -> Result<String> {
        let next = Self { after: Some(after), expires: Some(now + NEXT_LIFETIME), ..self.clone() };
        let json =
            serde_json::to_vec(&next).map_err(|error| Error::internal("a `next` could not be written", error))?;
        Ok(BASE64_URL_SAFE_NO_PAD.encode(json))
    }

    /// Returns true if a record at `position` belongs to this page or a later one.
    pub(super) fn wants(&self, record: &Record, position: &Position) -> bool {
        record.last_updated >= self.from
            && self.to.is_none_or(|to| record.last_updated < to)
            && self.status.as_ref().is_none_or(|status| record.status == *status)
            && self.severity.as_ref().is_none_or(|severity| record.severity.as_ref() == Some(severity))
            && self.assigned_to.as_ref().is_none_or(|name| record.assigned_to.as_ref() == Some(name))
            && self.after.as_ref().is_none_or(|after| position > after)
    }

    /// The conditions that the API itself can apply, as members and values. They only save calls: [`Self::wants`] makes
    /// the filters hold.
    pub(super) fn conditions(&self, api: IncidentApi) -> Vec<(&'static str, String)> {
        let mut conditions = Vec::new();
        if let Some(status) = &self.status {
            // Not every API knows the newer members of the enumeration.
            if status != "awaiting_action" {
                conditions.push(("status", enum_member(status, api)));
            }
        }
        if let (Some(severity), IncidentApi::Graph) = (&self.severity, api) {
            conditions.push(("severity", enum_member(severity, api)));
        }
        if let Some(name) = &self.assigned_to {
            conditions.push(("assignedTo", name.clone()));
        }
        conditions
    }
}

/// Parses the parameter `format`.
pub(super) fn response_format(value: Option<&str>) -> Result<ResponseFormat> {
    let format = one_of("format", value, &FORMATS)?;
    Ok(if format.as_deref() == Some("ocsf") { ResponseFormat::Ocsf } else { ResponseFormat::Envelope })
}

fn one_of(name: &str, value: Option<&str>, values: &[&str]) -> Result<Option<String>> {
    match value {
        Some(value) if !values.contains(&value) => {
            Err(Error::InvalidRequest(format!("`{name}` must be one of: {}.", values.join(", "))))
        }
        value => Ok(value.map(str::to_owned)),
    }
}

fn time(name: &str, text: &str) -> Result<Timestamp> {
    parse_utc(text).ok_or_else(|| Error::InvalidRequest(format!("`{name}` must be a time like 2026-11-22T10:00:00Z.")))
}

/// Translates a value in snake case to the API's own form: `inProgress` on Graph, `InProgress` on Defender.
pub(crate) fn enum_member(snake: &str, api: IncidentApi) -> String {
    let words = snake.split('_').enumerate().map(|(index, word)| {
        let keep = index == 0 && api == IncidentApi::Graph;
        let mut letters = word.chars();
        let first = letters.next().map(|first| if keep { first } else { first.to_ascii_uppercase() });
        first.into_iter().chain(letters).collect::<String>()
    });
    words.collect()
}

#[cfg(test)]
mod tests {
    use shared::incident::record::Alerts;

    use super::*;

    fn request(query: &[(&str, &str)]) -> HttpRequest {
        let query = query.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        HttpRequest { query, ..HttpRequest::default() }
    }

    fn now() -> Timestamp {
        "2026-11-22T10:00:00Z".parse().unwrap()
    }

    fn tenant() -> TenantId {
        "11111111-2222-4333-8444-abcdefabcdef".parse().unwrap()
    }

    #[test]
    fn defaults_are_those_of_the_interface() {
        let list = ListRequest::parse(&request(&[]), Some(tenant()), now()).unwrap();
        assert_eq!((list.limit, list.format, list.to), (50, ResponseFormat::Envelope, None));
        assert_eq!(list.from.to_string(), "2026-11-21T10:00:00Z");
    }

    #[test]
    fn wrong_queries_are_refused() {
        for query in [
            [("limit", "0")],
            [("limit", "101")],
            [("limit", "x")],
            [("limit", "+5")],
            [("from", "yesterday")],
            [("from", "2026-11-22T10:00:00+01:00")],
            [("to", "2026-11-22 10:00:00Z")],
            [("status", "Active")],
            [("severity", "critical")],
            [("format", "xml")],
            [("next", "nonsense")],
            [("unknown", "1")],
        ] {
            let outcome = ListRequest::parse(&request(&query), Some(tenant()), now());
            assert!(matches!(outcome, Err(Error::InvalidRequest(_))), "{query:?}");
        }
        let reversed = [("from", "2026-11-22T10:00:00Z"), ("to", "2026-11-22T09:00:00Z")];
        assert!(ListRequest::parse(&request(&reversed), Some(tenant()), now()).is_err());
    }

    #[test]
    fn next_continues_its_own_list_for_an_hour() {
        let list =
            ListRequest::parse(&request(&[("status", "active"), ("limit", "7")]), Some(tenant()), now()).unwrap();
        let sent = br#"{"id":"9","lastUpdateDateTime":"2026-11-22T09:00:00Z"}"#;
        let record = Record::parse(sent, &tenant(), IncidentApi::Graph, Alerts::Included).unwrap();
        let next = list.next(Position::of(tenant(), &record), now()).unwrap();
        let query = [("next", next.as_str())];
        let parse = |tenant, now| ListRequest::parse(&request(&query), tenant, now);
        let resumed = parse(Some(tenant()), now()).unwrap();
        assert_eq!((resumed.status.as_deref(), resumed.limit), (Some("active"), 7));
        assert!(!resumed.wants(&record, &Position::of(tenant(), &record)), "a page does not repeat the page before");
        assert_eq!(parse(Some(tenant()), now() + SignedDuration::from_hours(2)), Err(Error::Gone));
        assert!(matches!(parse(None, now()), Err(Error::InvalidRequest(_))), "a `next` of another list");
    }

    #[test]
    fn failed_tenants_travel_in_the_next_of_a_list() {
        let list = ListRequest::parse(&request(&[]), None, now()).unwrap();
        let sent = br#"{"id":"9","lastUpdateDateTime":"2026-11-22T09:00:00Z"}"#;
        let record = Record::parse(sent, &tenant(), IncidentApi::Graph, Alerts::Included).unwrap();
        let failures = |count: u32| -> Vec<Value> {
            let id = |number: u32| format!("{number:08x}-2222-4333-8444-abcdefabcdef");
            let entry = |number| json!({"tenant_id": id(number), "code": "throttled", "reason": null});
            (0..count).map(entry).collect()
        };
        let next = |list: &ListRequest| list.next(Position::of(tenant(), &record), now()).unwrap();
        let longest = next(&list.with_failures(&failures(200)));
        assert!(longest.len() < 7_000, "{} characters; the gateway takes 10,240 with the headers", longest.len());
        let resumed = ListRequest::parse(&request(&[("next", &longest)]), None, now()).unwrap();
        let repeated: Vec<Value> = resumed.failures().into_iter().map(|(_, failure)| failure).collect();
        assert_eq!(repeated, failures(200));
        assert_eq!(next(&list.with_failures(&failures(201))), longest, "the rest is tried again");
        let group =
            |code: &str, tenants: &str| FailedTenants { code: code.into(), reason: None, tenants: tenants.into() };
        for tampered in [group("<b>", ""), group("throttled", "AAAA"), group("throttled", "AAAAAAAAAAAAAAAAAAAAAA")] {
            let tampered = next(&ListRequest { failed: vec![tampered], ..list.clone() });
            assert!(ListRequest::parse(&request(&[("next", &tampered)]), None, now()).is_err());
        }
    }

    #[test]
    fn enum_members_are_in_the_form_of_each_api() {
        assert_eq!(enum_member("in_progress", IncidentApi::Graph), "inProgress");
        assert_eq!(enum_member("in_progress", IncidentApi::Defender), "InProgress");
        assert_eq!(
            enum_member("informational_expected_activity", IncidentApi::Defender),
            "InformationalExpectedActivity"
        );
    }
}
