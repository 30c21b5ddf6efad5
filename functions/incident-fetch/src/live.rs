//! Reads incidents of one tenant while somebody waits.

use std::collections::{BTreeMap, HashMap, hash_map::Entry};

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json, value::RawValue};
use shared::{
    delivery::{bucket::Envelope, ocsf},
    entra::TenantId,
    error::{Error, Result},
    event::{HttpRequest, HttpResponse},
    http::Deadline,
    incidents::{
        Surface,
        question::{Question, Span},
        record::Record,
        sync::window::{ceil, floor},
        version::{Verdict, judge, key},
    },
    registry::{tenants::Tenant, versions::Neighbourhood},
};

use crate::App;

/// How far back a list goes by default.
const DEFAULT_SPAN: SignedDuration = SignedDuration::from_hours(24);

/// How long a `next` lives.
const NEXT_LIVES: SignedDuration = SignedDuration::from_hours(1);

/// What one answer may hold: Lambda gives 6 MB, and the rest of the answer needs some.
pub(crate) const LARGEST_ANSWER: usize = 4_000_000;

/// The most requests to Microsoft for one page of one tenant.
const MOST_CALLS: u32 = 20;

const STATUSES: [&str; 5] = ["active", "in_progress", "awaiting_action", "resolved", "redirected"];
const SEVERITIES: [&str; 4] = ["informational", "low", "medium", "high"];

/// What a caller wants to see.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Wanted {
    from: Timestamp,
    to: Option<Timestamp>,
    status: Option<String>,
    severity: Option<String>,
    assigned_to: Option<String>,
    pub(crate) limit: usize,
    pub(crate) ocsf: bool,
    /// Whose list it is; none for all tenants.
    tenant: Option<TenantId>,
    /// The last incident that was shown.
    after: Option<Position>,
    /// Until when a `next` made from this may be used.
    expires: Option<Timestamp>,
}

/// Where an incident stands in a list: newest last update first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Position {
    newest_first: std::cmp::Reverse<Timestamp>,
    tenant: TenantId,
    incident_id: (usize, String),
}

impl Position {
    fn of(tenant: TenantId, record: &Record) -> Self {
        // By number: shorter ones first.
        let incident_id = (record.incident_id.len(), record.incident_id.clone());
        Self { newest_first: std::cmp::Reverse(record.last_updated), tenant, incident_id }
    }
}

/// One incident of a list.
pub(crate) struct Row {
    pub(crate) position: Position,
    pub(crate) incident: Box<RawValue>,
}

/// A tenant's part of a page.
#[derive(Default)]
pub(crate) struct Part {
    pub(crate) rows: Vec<Row>,
    /// Whether there are more after the last one.
    pub(crate) more: bool,
}

impl Wanted {
    /// Reads the query of a list; `tenant` is none for all tenants.
    pub(crate) fn read(request: &HttpRequest, tenant: Option<TenantId>, now: Timestamp) -> Result<Self> {
        let known = ["from", "to", "status", "severity", "assigned_to", "limit", "next", "format"];
        let parameters = request.parameters(&known)?;
        let limit = parameters.get("limit").map(|limit| whole_number(limit, 1, 100)).transpose()?;
        let one_of = |name: &str, values: &[&str]| match parameters.get(name) {
            None => Ok(None),
            Some(value) if values.contains(value) => Ok(Some((*value).to_owned())),
            Some(_) => Err(Error::InvalidRequest(format!("`{name}` must be one of: {}.", values.join(", ")))),
        };
        let wanted = Self {
            from: parameters.get("from").map(|from| time("from", from)).transpose()?.unwrap_or(now - DEFAULT_SPAN),
            to: parameters.get("to").map(|to| time("to", to)).transpose()?,
            status: one_of("status", &STATUSES)?,
            severity: one_of("severity", &SEVERITIES)?,
            assigned_to: parameters.get("assigned_to").map(|name| (*name).to_owned()),
            limit: limit.unwrap_or(50),
            ocsf: one_of("format", &["envelope", "ocsf"])?.as_deref() == Some("ocsf"),
            tenant,
            after: None,
            expires: None,
        };
        if wanted.to.is_some_and(|to| to <= wanted.from) {
            return Err(Error::InvalidRequest("`to` must be later than `from`.".into()));
        }
        match parameters.get("next") {
            None => Ok(wanted),
            Some(next) => {
                // What was asked for first goes on; only the size and the form of a page may change.
                let mut resumed = Self::resumed(next, tenant, now)?;
                if let Some(limit) = limit {
                    resumed.limit = limit;
                }
                if parameters.contains_key("format") {
                    resumed.ocsf = wanted.ocsf;
                }
                Ok(resumed)
            }
        }
    }

    fn resumed(next: &str, tenant: Option<TenantId>, now: Timestamp) -> Result<Self> {
        let invalid = || Error::InvalidRequest("`next` is not one that this list gave.".into());
        let json = BASE64_URL_SAFE_NO_PAD.decode(next).map_err(|_| invalid())?;
        let wanted: Self = serde_json::from_slice(&json).map_err(|_| invalid())?;
        if wanted.tenant != tenant || !(1..=100).contains(&wanted.limit) {
            return Err(invalid());
        }
        if wanted.expires.is_none_or(|expires| expires < now) {
            return Err(Error::Gone);
        }
        Ok(wanted)
    }

    /// The `next` of the page that ends with `last`.
    pub(crate) fn next(&self, last: &Position, now: Timestamp) -> Result<String> {
        let next = Self { after: Some(last.clone()), expires: Some(now + NEXT_LIVES), ..self.clone() };
        let json = serde_json::to_vec(&next).map_err(|_| Error::Internal("a `next` could not be written".into()))?;
        Ok(BASE64_URL_SAFE_NO_PAD.encode(json))
    }

    fn wants(&self, record: &Record, position: &Position) -> bool {
        record.last_updated >= self.from
            && self.to.is_none_or(|to| record.last_updated < to)
            && self.status.as_ref().is_none_or(|status| record.status == *status)
            && self.severity.as_ref().is_none_or(|severity| record.severity.as_ref() == Some(severity))
            && self.assigned_to.as_ref().is_none_or(|name| record.assigned_to.as_ref() == Some(name))
            && self.after.as_ref().is_none_or(|after| position > after)
    }

    /// The conditions that the surface can apply itself.
    fn conditions(&self, surface: Surface) -> Vec<(&'static str, String)> {
        let mut conditions = Vec::new();
        if let Some(status) = &self.status {
            // What only newer members of the enumeration say is not known to every surface: those are left to us.
            if status != "awaiting_action" {
                conditions.push(("status", enumeration(status, surface)));
            }
        }
        if let (Some(severity), Surface::Graph) = (&self.severity, surface) {
            conditions.push(("severity", enumeration(severity, surface)));
        }
        if let Some(name) = &self.assigned_to {
            conditions.push(("assignedTo", name.clone()));
        }
        conditions
    }
}

/// A member of an enumeration as a surface writes it: `inProgress` on Graph, `InProgress` on Defender.
pub(crate) fn enumeration(snake: &str, surface: Surface) -> String {
    let words = snake.split('_').enumerate().map(|(index, word)| {
        let keep = index == 0 && surface == Surface::Graph;
        let mut letters = word.chars();
        let first = letters.next().map(|first| if keep { first } else { first.to_ascii_uppercase() });
        first.into_iter().chain(letters).collect::<String>()
    });
    words.collect()
}

fn whole_number(text: &str, least: usize, most: usize) -> Result<usize> {
    text.parse()
        .ok()
        .filter(|number| (least..=most).contains(number))
        .ok_or_else(|| Error::InvalidRequest(format!("`limit` must be a whole number from {least} to {most}.")))
}

fn time(name: &str, text: &str) -> Result<Timestamp> {
    text.parse()
        .map_err(|_| Error::InvalidRequest(format!("`{name}` must be a time like 2026-11-22T10:00:00Z (RFC 3339).")))
}

/// Incidents of one tenant on the way into a page: the newest ones, bounded in number and size.
struct Newest {
    rows: BTreeMap<Position, Record>,
    size: usize,
    limit: usize,
    /// Whether older ones were left out.
    more: bool,
}

impl Newest {
    fn add(&mut self, position: Position, record: Record) {
        self.size += record.json.len();
        if let Some(twice) = self.rows.insert(position, record) {
            self.size -= twice.json.len();
        }
        while self.rows.len() > self.limit || (self.size > LARGEST_ANSWER && self.rows.len() > 1) {
            if let Some((_, oldest)) = self.rows.pop_last() {
                self.size -= oldest.json.len();
            }
            self.more = true;
        }
    }

    /// Whether everything from `from` on being known, no older incident can still belong to the page.
    fn is_full_from(&self, from: Timestamp) -> bool {
        self.more && self.rows.last_key_value().is_some_and(|(oldest, _)| oldest.newest_first.0 >= from)
    }
}

impl App {
    /// `GET /tenants/{tenant_id}/incidents`.
    pub(crate) async fn list_tenant(
        &self,
        id: TenantId,
        request: &HttpRequest,
        deadline: Deadline,
    ) -> Result<HttpResponse> {
        let now = self.clock.now();
        let wanted = Wanted::read(request, Some(id), now);
        let tenant = self.registry.active_tenant(&id).await?;
        let wanted = wanted?;
        let part = self.part(&tenant, &wanted, deadline).await?;
        let next = match part.rows.last() {
            Some(last) if part.more => Some(wanted.next(&last.position, now)?),
            _ => None,
        };
        let incidents: Vec<Box<RawValue>> = part.rows.into_iter().map(|row| row.incident).collect();
        Ok(HttpResponse::json(200, &Listed { incidents, failures: None, next }))
    }

    /// `GET /tenants/{tenant_id}/incidents/{incident_id}`.
    pub(crate) async fn show(
        &self,
        id: TenantId,
        incident_id: &str,
        request: &HttpRequest,
        deadline: Deadline,
    ) -> Result<HttpResponse> {
        let parameters = request.parameters(&["format"]);
        let tenant = self.registry.active_tenant(&id).await?;
        let ocsf = match parameters?.get("format") {
            None | Some(&"envelope") => false,
            Some(&"ocsf") => true,
            Some(_) => return Err(Error::InvalidRequest("`format` must be one of: envelope, ocsf.".into())),
        };
        let incident = self.read_one(&tenant, incident_id, ocsf, deadline).await?;
        Ok(HttpResponse::json(200, &incident))
    }

    /// One incident, read live.
    pub(crate) async fn read_one(
        &self,
        tenant: &Tenant,
        incident_id: &str,
        ocsf: bool,
        deadline: Deadline,
    ) -> Result<Box<RawValue>> {
        let id = tenant.tenant_id;
        self.registry.take_call(&id, tenant.api, self.clock.now()).await?;
        let raw = self.incidents.one(&id, tenant.api, incident_id, true, deadline).await?;
        let unreadable = Error::Upstream { status: 200, call: "one incident" };
        let record = Record::read(&raw, &id, true).map_err(|_| unreadable.clone())?;
        if record.incident_id != incident_id {
            return Err(unreadable);
        }
        if record.json.len() > LARGEST_ANSWER {
            return Err(Error::Conflict {
                detail: "The incident is too large for one answer. Its delivered versions lie in the bucket.".into(),
                reason: None,
            });
        }
        self.shown(tenant, &record, ocsf).await
    }

    /// The newest incidents of a tenant that a caller wants, read window by window from the newest backwards.
    pub(crate) async fn part(&self, tenant: &Tenant, wanted: &Wanted, deadline: Deadline) -> Result<Part> {
        let mut newest = Newest { rows: BTreeMap::new(), size: 0, limit: wanted.limit, more: false };
        let begin = floor(wanted.from);
        let after = wanted.after.as_ref().map(|after| floor(after.newest_first.0) + SignedDuration::from_secs(1));
        let mut end = [wanted.to.map(ceil), after].into_iter().flatten().min();
        let mut from = begin;
        let mut calls = 0;
        while end.is_none_or(|end| begin < end) {
            calls += 1;
            if calls > MOST_CALLS {
                return Err(Error::DeadlineExceeded);
            }
            let span = Span { from, to: end };
            let mut question = Question::of(span, tenant.api);
            question.equal = wanted.conditions(tenant.api);
            let (whole, oldest) = self.take_page(tenant, &question, wanted, &mut newest, deadline).await?;
            if whole {
                if newest.is_full_from(from) || from == begin {
                    break;
                }
                // All of this span is known, and it was not enough: what lies before it, twice as much at once.
                let length = end.unwrap_or_else(|| ceil(self.clock.now())).duration_since(from);
                end = Some(from);
                from = (from - length * 2).max(begin);
            } else if span.seconds() == Some(1) {
                calls += self.page_second(tenant, &question, wanted, &mut newest, deadline).await?;
                if newest.is_full_from(from) || from == begin {
                    break;
                }
                end = Some(from);
                from = begin;
            } else {
                // The rows shown are the newest as a rule; the second after the oldest of them begins a span that holds
                // all of the others. Where they are not, the span is halved.
                let present = end.unwrap_or_else(|| ceil(self.clock.now()) + SignedDuration::from_secs(1));
                let guess = oldest.map(|oldest| floor(oldest) + SignedDuration::from_secs(1));
                let half = from + SignedDuration::from_secs((present.as_second() - from.as_second()) / 2);
                from = guess
                    .filter(|guess| *guess > from && *guess < present)
                    .unwrap_or(half.max(from + SignedDuration::from_secs(1)));
                if from >= present {
                    from = present - SignedDuration::from_secs(1);
                }
            }
        }
        let mut part = Part { rows: Vec::new(), more: newest.more };
        let mut known = HashMap::new();
        for (position, record) in newest.rows {
            let incident = self.shown_with(tenant, &record, wanted.ocsf, &mut known).await?;
            part.rows.push(Row { position, incident });
        }
        Ok(part)
    }

    /// Asks once; tells whether the answer held all of the span, and the oldest last update that it showed.
    async fn take_page(
        &self,
        tenant: &Tenant,
        question: &Question,
        wanted: &Wanted,
        newest: &mut Newest,
        deadline: Deadline,
    ) -> Result<(bool, Option<Timestamp>)> {
        let id = tenant.tenant_id;
        self.registry.take_call(&id, tenant.api, self.clock.now()).await?;
        let mut listing = self.incidents.list_live(&id, tenant.api, question, deadline).await?;
        let mut oldest: Option<Timestamp> = None;
        while let Some(row) = listing.next().await? {
            // What cannot be read is set aside by the sync; a list shows the others.
            let Ok(record) = Record::read(&row, &id, true) else { continue };
            oldest = Some(oldest.map_or(record.last_updated, |oldest| oldest.min(record.last_updated)));
            let position = Position::of(id, &record);
            if wanted.wants(&record, &position) {
                newest.add(position, record);
            }
        }
        let end = listing.end()?;
        Ok((!end.more && end.rows < question.top, oldest))
    }

    /// Pages through a second that one answer does not hold; tells how many calls that took.
    async fn page_second(
        &self,
        tenant: &Tenant,
        question: &Question,
        wanted: &Wanted,
        newest: &mut Newest,
        deadline: Deadline,
    ) -> Result<u32> {
        // Graph refuses to skip more than 500 rows.
        for page in 1..=500 / question.top {
            let question = Question { skip: page * question.top, ..question.clone() };
            if self.take_page(tenant, &question, wanted, newest, deadline).await?.0 {
                return Ok(page);
            }
        }
        Err(Error::DeadlineExceeded)
    }

    async fn shown(&self, tenant: &Tenant, record: &Record, ocsf: bool) -> Result<Box<RawValue>> {
        self.shown_with(tenant, record, ocsf, &mut HashMap::new()).await
    }

    /// The incident as callers read it, with the key that its version was or will be delivered under.
    async fn shown_with(
        &self,
        tenant: &Tenant,
        record: &Record,
        ocsf: bool,
        known: &mut HashMap<Neighbourhood, HashMap<String, shared::incidents::version::Known>>,
    ) -> Result<Box<RawValue>> {
        let id = tenant.tenant_id;
        let neighbourhood = Neighbourhood::of(&record.incident_id)?;
        if let Entry::Vacant(unread) = known.entry(neighbourhood) {
            unread.insert(self.registry.known_versions(&id, neighbourhood).await?);
        }
        let delivered = known.get(&neighbourhood).and_then(|known| known.get(&record.incident_id));
        let ordinal = match (judge(delivered, record, tenant.api), delivered) {
            (Verdict::New { ordinal, .. }, _) => ordinal,
            (Verdict::Same, Some(delivered)) => delivered.ordinal,
            (Verdict::Same | Verdict::SameElsewhere | Verdict::Stale, _) => 1,
        };
        let now = self.clock.now();
        let json = if ocsf {
            let key = key(&id, record, ordinal);
            let finding =
                ocsf::Finding { tenant_id: &id, surface: tenant.api, record, change: None, key: &key, fetched_at: now };
            serde_json::to_string(&ocsf::incident_finding(&finding)?)
        } else {
            serde_json::to_string(&Envelope::of(&id, tenant.api, record, ordinal, None, now)?)
        };
        json.and_then(RawValue::from_string).map_err(|_| Error::Internal("an incident could not be written".into()))
    }
}

/// The answer of a list.
#[derive(Serialize)]
pub(crate) struct Listed {
    pub(crate) incidents: Vec<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) failures: Option<Vec<Value>>,
    pub(crate) next: Option<String>,
}

/// A tenant that could not be read, in a list over many.
pub(crate) fn failure(tenant: &TenantId, error: &Error) -> Value {
    json!({"tenant_id": tenant, "code": error.code().0, "reason": error.reason()})
}

#[cfg(test)]
mod tests {
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
    fn defaults_are_the_interface_s() {
        let wanted = Wanted::read(&request(&[]), Some(tenant()), now()).unwrap();
        assert_eq!((wanted.limit, wanted.ocsf, wanted.to), (50, false, None));
        assert_eq!(wanted.from.to_string(), "2026-11-21T10:00:00Z");
    }

    #[test]
    fn wrong_queries_are_refused() {
        for query in [
            [("limit", "0")],
            [("limit", "101")],
            [("limit", "x")],
            [("from", "yesterday")],
            [("status", "Active")],
            [("severity", "critical")],
            [("format", "xml")],
            [("next", "nonsense")],
            [("unknown", "1")],
        ] {
            let outcome = Wanted::read(&request(&query), Some(tenant()), now());
            assert!(matches!(outcome, Err(Error::InvalidRequest(_))), "{query:?}");
        }
        let reversed = [("from", "2026-11-22T10:00:00Z"), ("to", "2026-11-22T09:00:00Z")];
        assert!(Wanted::read(&request(&reversed), Some(tenant()), now()).is_err());
    }

    #[test]
    fn a_next_goes_on_in_its_own_list_for_an_hour() {
        let wanted = Wanted::read(&request(&[("status", "active"), ("limit", "7")]), Some(tenant()), now()).unwrap();
        let record =
            Record::read(br#"{"id":"9","lastUpdateDateTime":"2026-11-22T09:00:00Z"}"#, &tenant(), true).unwrap();
        let next = wanted.next(&Position::of(tenant(), &record), now()).unwrap();
        let query = [("next", next.as_str())];
        let read = |tenant, now| Wanted::read(&request(&query), tenant, now);
        let resumed = read(Some(tenant()), now()).unwrap();
        assert_eq!((resumed.status.as_deref(), resumed.limit), (Some("active"), 7));
        assert!(!resumed.wants(&record, &Position::of(tenant(), &record)), "what was shown is not shown again");
        assert_eq!(read(Some(tenant()), now() + SignedDuration::from_hours(2)), Err(Error::Gone));
        assert!(matches!(read(None, now()), Err(Error::InvalidRequest(_))), "a `next` of another list");
    }

    #[test]
    fn enumerations_are_written_as_each_surface_does() {
        assert_eq!(enumeration("in_progress", Surface::Graph), "inProgress");
        assert_eq!(enumeration("in_progress", Surface::Defender), "InProgress");
        assert_eq!(enumeration("informational_expected_activity", Surface::Defender), "InformationalExpectedActivity");
    }
}
