//! Reads incidents of one tenant while somebody waits.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    time::Duration,
};

use crate::{App, sync::window::floor};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json, value::RawValue};
use shared::{
    error::{Call, Error, Result},
    http::Deadline,
    incident::{
        line::IncidentLine,
        ocsf::incident_finding,
        record::{Alerts, Record},
        span::Span,
        version::{DeliveredVersion, Version, VersionComparison, compare},
    },
    incident_api::{
        client::{CallBudget, TenantClient, TokenFreshness},
        query::{IncidentQuery, MAX_SKIP},
    },
    lambda::{
        event::{HttpRequest, HttpResponse},
        route::page_limit,
    },
    microsoft::IncidentApi,
    registry::{tenants::Tenant, versions::VersionBlock},
    tenant::{Reason, TenantId},
    text::parse_utc,
};

/// How far back a list goes by default.
const DEFAULT_SPAN: SignedDuration = SignedDuration::from_hours(24);

/// How long a `next` lives.
const NEXT_LIVES: SignedDuration = SignedDuration::from_hours(1);

/// What one answer may hold, as [`length`] counts: Lambda gives 6 MB, and the rest of the answer needs some.
pub(crate) const LARGEST_ANSWER: usize = 5_500_000;

/// Kept back from a caller's time to answer with what was found.
pub(crate) const RESERVE: Duration = Duration::from_millis(1500);

/// The most requests to Microsoft for one page of one tenant, if they brought it on at all.
const MOST_CALLS: u32 = 20;

/// In what steps surfaces filter by time.
const SECOND: SignedDuration = SignedDuration::from_secs(1);

/// The largest incident that is read for a person who waits. It is larger than a response may be, because alerts can be
/// left out.
const MAX_INCIDENT_BYTES: usize = 16 << 20;

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
    pub(crate) limit: u32,
    pub(crate) ocsf: bool,
    /// Whose list it is; none for all tenants.
    tenant: Option<TenantId>,
    /// Up to where the list was shown.
    after: Option<Position>,
    /// Until when a `next` made from this may be used.
    expires: Option<Timestamp>,
}

/// Where an incident stands in a list: newest last update first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Position {
    newest_first: std::cmp::Reverse<Timestamp>,
    /// None before all tenants, where no incident stands.
    tenant: Option<TenantId>,
    incident_id: (usize, String),
}

impl Position {
    pub(crate) fn of(tenant: TenantId, record: &Record) -> Self {
        // By number: shorter ones first.
        let incident_id = (record.incident_id.len(), record.incident_id.clone());
        Self { newest_first: std::cmp::Reverse(record.last_updated), tenant: Some(tenant), incident_id }
    }

    /// Between the incidents last updated at `begin` or later, and all others.
    fn at(begin: Timestamp) -> Self {
        let before = begin.checked_sub(SignedDuration::from_nanos(1)).unwrap_or(Timestamp::MIN);
        Self { newest_first: std::cmp::Reverse(before), tenant: None, incident_id: (0, String::new()) }
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
    /// Up to where these are all there are; none: to the end of the list.
    pub(crate) until: Option<Position>,
}

impl Wanted {
    /// Reads the query of a list; `tenant` is none for all tenants.
    pub(crate) fn read(request: &HttpRequest, tenant: Option<TenantId>, now: Timestamp) -> Result<Self> {
        let known = ["from", "to", "status", "severity", "assigned_to", "limit", "next", "format"];
        let parameters = request.parameters(&known)?;
        let limit = page_limit(parameters.get("limit").copied())?;
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
            limit,
            ocsf: one_of("format", &["envelope", "ocsf"])?.as_deref() == Some("ocsf"),
            tenant,
            after: None,
            expires: None,
        };
        if !wanted.is_a_span() {
            return Err(Error::InvalidRequest("`to` must be later than `from`.".into()));
        }
        match parameters.get("next") {
            None => Ok(wanted),
            Some(next) => {
                // What was asked for first goes on; only the size and the form of a page may change.
                let mut resumed = Self::resumed(next, tenant, now)?;
                if parameters.contains_key("limit") {
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
        // It was in the caller's hands: what it holds must be what a query may say.
        let one_of = |value: &Option<String>, values: &[&str]| {
            value.as_ref().is_none_or(|value| values.contains(&value.as_str()))
        };
        let times = [Some(wanted.from), wanted.to];
        let whole = wanted.tenant == tenant
            && page_limit(Some(&wanted.limit.to_string())).is_ok()
            && one_of(&wanted.status, &STATUSES)
            && one_of(&wanted.severity, &SEVERITIES)
            && times.into_iter().flatten().all(|time| parse_utc(&time.to_string()).is_some())
            && wanted.is_a_span();
        if !whole {
            return Err(invalid());
        }
        if wanted.expires.is_none_or(|expires| expires < now) {
            return Err(Error::Gone);
        }
        Ok(wanted)
    }

    fn is_a_span(&self) -> bool {
        self.to.is_none_or(|to| to > self.from)
    }

    /// The `next` of a page that was shown up to `until`.
    pub(crate) fn next(&self, until: Position, now: Timestamp) -> Result<String> {
        let next = Self { after: Some(until), expires: Some(now + NEXT_LIVES), ..self.clone() };
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
    fn conditions(&self, api: IncidentApi) -> Vec<(&'static str, String)> {
        let mut conditions = Vec::new();
        if let Some(status) = &self.status {
            // What only newer members of the enumeration say is not known to every surface: those are left to us.
            if status != "awaiting_action" {
                conditions.push(("status", enumeration(status, api)));
            }
        }
        if let (Some(severity), IncidentApi::Graph) = (&self.severity, api) {
            conditions.push(("severity", enumeration(severity, api)));
        }
        if let Some(name) = &self.assigned_to {
            conditions.push(("assignedTo", name.clone()));
        }
        conditions
    }
}

/// A member of an enumeration as a surface writes it: `inProgress` on Graph, `InProgress` on Defender.
pub(crate) fn enumeration(snake: &str, api: IncidentApi) -> String {
    let words = snake.split('_').enumerate().map(|(index, word)| {
        let keep = index == 0 && api == IncidentApi::Graph;
        let mut letters = word.chars();
        let first = letters.next().map(|first| if keep { first } else { first.to_ascii_uppercase() });
        first.into_iter().chain(letters).collect::<String>()
    });
    words.collect()
}

fn time(name: &str, text: &str) -> Result<Timestamp> {
    parse_utc(text).ok_or_else(|| Error::InvalidRequest(format!("`{name}` must be a time like 2026-11-22T10:00:00Z.")))
}

/// The whole second at an instant or after it; none where time ends before.
fn second_from(instant: Timestamp) -> Option<Timestamp> {
    if floor(instant) == instant { Some(instant) } else { second_after(instant) }
}

/// The first whole second after an instant; none where time ends before.
fn second_after(instant: Timestamp) -> Option<Timestamp> {
    floor(instant).checked_add(SECOND).ok()
}

/// How long JSON is on its way to the gateway: it travels as a string of Lambda's own JSON, where a quote and a backslash
/// are two bytes. (It has no other letters that are escaped: serde wrote it, or Microsoft's white space is gone.)
pub(crate) fn length(json: &str) -> usize {
    json.len() + json.bytes().filter(|byte| matches!(byte, b'"' | b'\\')).count()
}

/// A record that can be part of an answer.
///
/// One whose JSON is too long for any answer is taken without its alerts: a list goes on, and whoever reads it sees that
/// there is no member `alerts`, which is an empty array in an incident that has none. What is too long even so is none.
/// The digest stays that of the whole record, so that the key is the one it was or will be delivered under.
fn fitting(record: Record) -> Option<Record> {
    if length(&record.json) <= LARGEST_ANSWER { Some(record) } else { without_alerts(&record) }
}

fn without_alerts(record: &Record) -> Option<Record> {
    let mut members: BTreeMap<String, &RawValue> = serde_json::from_str(&record.json).ok()?;
    members.remove("alerts")?;
    let json = serde_json::to_string(&members).ok()?;
    let record = Record { json: json.into(), ..record.clone() };
    Some(record).filter(|record| length(&record.json) <= LARGEST_ANSWER)
}

/// Incidents of one tenant on the way into a page: the newest ones, bounded in number and size.
struct Newest {
    rows: BTreeMap<Position, Record>,
    size: usize,
    limit: usize,
    /// The newest one that was left out. Of what is older nothing is taken in, however small: a list has no gaps.
    left_out: Option<Position>,
}

impl Newest {
    fn new(limit: u32) -> Self {
        Self { rows: BTreeMap::new(), size: 0, limit: limit as usize, left_out: None }
    }

    /// Takes a record in that is [`fitting`], and so at least the newest one stays.
    fn add(&mut self, position: Position, record: Record) {
        if self.left_out.as_ref().is_some_and(|left_out| position >= *left_out) {
            return;
        }
        self.size += length(&record.json);
        if let Some(twice) = self.rows.insert(position, record) {
            self.size -= length(&twice.json);
        }
        while self.rows.len() > self.limit || self.size > LARGEST_ANSWER {
            let Some((position, oldest)) = self.rows.pop_last() else { return };
            self.size -= length(&oldest.json);
            self.left_out = Some(position);
        }
    }

    /// Up to where all incidents of the list are in here, if from `reached` on all were seen; none: all to its end.
    fn until(&self, reached: Option<Timestamp>) -> Option<Position> {
        let last = self.rows.last_key_value().map(|(oldest, _)| oldest.clone());
        let shown = last.filter(|_| self.left_out.is_some());
        [shown, reached.map(Position::at)].into_iter().flatten().min()
    }

    /// Whether everything from `from` on being known, no older incident can still belong to the page.
    fn is_full_from(&self, from: Timestamp) -> bool {
        self.left_out.is_some() && self.rows.last_key_value().is_some_and(|(oldest, _)| oldest.newest_first.0 >= from)
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
        let part = self.part(&tenant, &wanted, deadline.reserving(RESERVE)).await?;
        let next = part.until.map(|until| wanted.next(until, now)).transpose()?;
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

    /// The tenant's incident API, for a person who waits.
    pub(crate) fn client(&self, tenant: &Tenant, deadline: Deadline) -> TenantClient<'_> {
        self.incidents.of(tenant.tenant_id, tenant.api, CallBudget::Table, deadline)
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
        let mut client = self.client(tenant, deadline);
        let raw = client.incident(incident_id, Alerts::Included, MAX_INCIDENT_BYTES).await?;
        let unreadable = Error::Malformed { call: Call::GetIncident };
        let record = Record::parse(&raw, &id, Alerts::Included).map_err(|_| unreadable.clone())?;
        if record.incident_id != incident_id {
            return Err(unreadable);
        }
        let shown = match fitting(record) {
            Some(record) => self.shown(tenant, record, ocsf, &mut HashMap::new()).await?,
            None => None,
        };
        shown.ok_or_else(|| Error::Conflict {
            detail: "The incident is too large for one answer. Its delivered versions lie in the bucket.".into(),
            reason: None,
        })
    }

    /// The newest incidents of a tenant that a caller wants, read window by window from the newest backwards.
    ///
    /// What was found is a part, too, when the requests, the budget or the time run out; how far it goes is in its
    /// `until`. So a filter that the surface does not apply, over however many incidents, takes pages and not for ever.
    ///
    /// # Errors
    /// That of Microsoft, and what ran out before anything was known.
    pub(crate) async fn part(&self, tenant: &Tenant, wanted: &Wanted, deadline: Deadline) -> Result<Part> {
        let mut newest = Newest::new(wanted.limit);
        let reached = Box::pin(self.fill(tenant, wanted, &mut newest, deadline)).await?;
        let mut part = Part { rows: Vec::new(), until: newest.until(reached) };
        let (mut known, mut size, mut last) = (HashMap::new(), 0, None);
        for (position, record) in newest.rows {
            if part.until.as_ref().is_some_and(|until| position > *until) {
                break;
            }
            if let Some(incident) = self.shown(tenant, record, wanted.ocsf, &mut known).await? {
                size += length(incident.get());
                if size > LARGEST_ANSWER {
                    part.until = last;
                    break;
                }
                part.rows.push(Row { position: position.clone(), incident });
            }
            last = Some(position);
        }
        Ok(part)
    }

    /// Reads as much as a page takes, or as much as there is time for. From the instant that it answers on, `newest` was
    /// shown all there is; without one, all there is at all.
    async fn fill(
        &self,
        tenant: &Tenant,
        wanted: &Wanted,
        newest: &mut Newest,
        deadline: Deadline,
    ) -> Result<Option<Timestamp>> {
        let begin = floor(wanted.from);
        let after = wanted.after.as_ref().and_then(|after| second_after(after.newest_first.0));
        let mut end = [wanted.to.and_then(second_from), after].into_iter().flatten().min();
        let mut from = begin;
        let (mut calls, mut reached, mut guessed) = (0, None, false);
        while end.is_none_or(|end| begin < end) {
            if calls >= MOST_CALLS && reached.is_some() {
                return Ok(reached);
            }
            calls += 1;
            // The end of the span; without one, what lies ahead of our clock is in its last second.
            let ahead = || second_after(self.clock.now().max(from)).unwrap_or(Timestamp::MAX);
            let present = end.unwrap_or_else(ahead);
            let mut question = IncidentQuery::of(Span { from, to: end }, tenant.api);
            question.equal = wanted.conditions(tenant.api);
            let mut page = self.take_page(tenant, &question, wanted, newest, deadline).await;
            let crowded = matches!(page, Ok((false, _))) && present.duration_since(from) <= SECOND;
            if crowded {
                page = self.page_second(tenant, &question, wanted, newest, &mut calls, deadline).await;
            }
            let (whole, oldest) = match page {
                Ok(page) => page,
                Err(Error::Throttled { .. } | Error::DeadlineExceeded) if reached.is_some() => return Ok(reached),
                Err(error) => return Err(error),
            };
            if whole {
                if newest.is_full_from(from) || from == begin {
                    return Ok(None);
                }
                // All of this span is known, and it was not enough: what lies before it, twice as much at once. The length
                // of a crowded second says nothing about that.
                (reached, end, guessed) = (Some(from), Some(from), false);
                let earlier = from.checked_sub(present.duration_since(from) * 2).ok().filter(|_| !crowded);
                from = earlier.map_or(begin, |earlier| earlier.max(begin));
            } else {
                // The rows shown are the newest as a rule; the second after the oldest of them begins a span that holds
                // all of the others. Where they are not, the span is halved.
                let half = (present.duration_since(from).as_secs() / 2).max(1);
                let guess = oldest.and_then(second_after).filter(|guess| !guessed && *guess > from);
                from = guess.unwrap_or(from + SignedDuration::from_secs(half)).min(present - SECOND);
                guessed = true;
            }
        }
        Ok(None)
    }

    /// Asks once; tells whether the answer held all of the span, and the oldest last update that it showed.
    async fn take_page(
        &self,
        tenant: &Tenant,
        question: &IncidentQuery,
        wanted: &Wanted,
        newest: &mut Newest,
        deadline: Deadline,
    ) -> Result<(bool, Option<Timestamp>)> {
        // Not worth a call of the budget.
        if deadline.left().is_zero() {
            return Err(Error::DeadlineExceeded);
        }
        let id = tenant.tenant_id;
        let read = async {
            let mut listing = self.client(tenant, deadline).list(question, TokenFreshness::Cached).await?;
            let mut oldest: Option<Timestamp> = None;
            while let Some(row) = listing.next().await? {
                // What cannot be read is set aside by the sync; a list shows the others.
                let Ok(record) = Record::parse(&row, &id, Alerts::Included) else { continue };
                oldest = Some(oldest.map_or(record.last_updated, |oldest| oldest.min(record.last_updated)));
                let position = Position::of(id, &record);
                if !wanted.wants(&record, &position) {
                    continue;
                }
                match fitting(record) {
                    Some(record) => newest.add(position, record),
                    None => too_large(&position),
                }
            }
            let end = listing.end()?;
            Ok((!end.more && end.rows < question.top, oldest))
        };
        deadline.run(read).await.map_err(|error| match error {
            // The call had less time than Microsoft may take.
            Error::Unreachable { .. } if deadline.left().is_zero() => Error::DeadlineExceeded,
            other => other,
        })
    }

    /// Pages through a second that one answer does not hold. Of more than Graph lets be skipped, the list shows what can
    /// be had, and goes on before that second; the sync tells them apart by their creation and delivers them all.
    async fn page_second(
        &self,
        tenant: &Tenant,
        question: &IncidentQuery,
        wanted: &Wanted,
        newest: &mut Newest,
        calls: &mut u32,
        deadline: Deadline,
    ) -> Result<(bool, Option<Timestamp>)> {
        for page in 1..=MAX_SKIP / question.top {
            *calls += 1;
            let question = IncidentQuery { skip: page * question.top, ..question.clone() };
            if self.take_page(tenant, &question, wanted, newest, deadline).await?.0 {
                return Ok((true, None));
            }
        }
        tracing::warn!(second = %question.updated.from, "a second holds more incidents than a list can show");
        Ok((true, None))
    }

    /// The incident as callers read it, with the key that its version was or will be delivered under. Where that is too
    /// long for an answer, it is [`without_alerts`]; none where it still is.
    async fn shown(
        &self,
        tenant: &Tenant,
        record: Record,
        ocsf: bool,
        known: &mut HashMap<VersionBlock, HashMap<String, DeliveredVersion>>,
    ) -> Result<Option<Box<RawValue>>> {
        let id = tenant.tenant_id;
        let block = VersionBlock::of(&record.incident_id)?;
        if let Entry::Vacant(unread) = known.entry(block) {
            unread.insert(self.registry.delivered_versions(&id, block).await?);
        }
        let delivered = known.get(&block).and_then(|known| known.get(&record.incident_id));
        let ordinal = match (compare(delivered, &record, tenant.api), delivered) {
            (VersionComparison::New { ordinal, .. }, _) => ordinal,
            (VersionComparison::Same, Some(delivered)) => delivered.ordinal,
            (VersionComparison::Same | VersionComparison::SameOnOtherApi | VersionComparison::Stale, _) => 1,
        };
        let fits = |shown: &RawValue| length(shown.get()) <= LARGEST_ANSWER;
        let shown = self.written(tenant, &record, ordinal, ocsf)?;
        if fits(&shown) {
            return Ok(Some(shown));
        }
        let shorter = without_alerts(&record).map(|record| self.written(tenant, &record, ordinal, ocsf)).transpose()?;
        let shorter = shorter.filter(|shorter| fits(shorter));
        if shorter.is_none() {
            too_large(&Position::of(id, &record));
        }
        Ok(shorter)
    }

    fn written(&self, tenant: &Tenant, record: &Record, ordinal: u32, ocsf: bool) -> Result<Box<RawValue>> {
        let fetched_at = self.clock.now();
        let Tenant { tenant_id, api, .. } = *tenant;
        let version = Version { tenant_id, api, record, change: None, ordinal, fetched_at };
        let json = if ocsf {
            serde_json::to_string(&incident_finding(&version)?)
        } else {
            serde_json::to_string(&IncidentLine::of(&version)?)
        };
        json.and_then(RawValue::from_string).map_err(|_| Error::Internal("an incident could not be written".into()))
    }
}

fn too_large(position: &Position) {
    let (_, incident_id) = &position.incident_id;
    tracing::warn!(incident_id, "an incident is too large for an answer even without its alerts");
}

/// The answer of a list.
#[derive(Serialize)]
pub(crate) struct Listed {
    pub(crate) incidents: Vec<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) failures: Option<Vec<Value>>,
    pub(crate) next: Option<String>,
}

/// A tenant that could not be read, in a list over many. `tenant` is as the caller wrote it, where a caller did.
pub(crate) fn failure(tenant: &str, error: &Error) -> Value {
    let (code, reason) = (error.code().0, error.reason().map(Reason::as_str));
    tracing::warn!(code, reason, cause = %error, "a tenant could not be read");
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
            Record::parse(br#"{"id":"9","lastUpdateDateTime":"2026-11-22T09:00:00Z"}"#, &tenant(), Alerts::Included)
                .unwrap();
        let next = wanted.next(Position::of(tenant(), &record), now()).unwrap();
        let query = [("next", next.as_str())];
        let read = |tenant, now| Wanted::read(&request(&query), tenant, now);
        let resumed = read(Some(tenant()), now()).unwrap();
        assert_eq!((resumed.status.as_deref(), resumed.limit), (Some("active"), 7));
        assert!(!resumed.wants(&record, &Position::of(tenant(), &record)), "what was shown is not shown again");
        assert_eq!(read(Some(tenant()), now() + SignedDuration::from_hours(2)), Err(Error::Gone));
        assert!(matches!(read(None, now()), Err(Error::InvalidRequest(_))), "a `next` of another list");
    }

    #[test]
    fn a_page_bounded_by_size_has_no_gaps() {
        let record = |second: u32, bytes: usize| {
            let note = "x".repeat(bytes);
            let json = format!(r#"{{"id":"1","lastUpdateDateTime":"2026-11-22T09:00:{second:02}Z","note":"{note}"}}"#);
            Record::parse(json.as_bytes(), &tenant(), Alerts::Included).unwrap()
        };
        let mut newest = Newest::new(50);
        for (second, bytes) in [(30, LARGEST_ANSWER - 1_000), (20, 5_000), (10, 1), (40, 1)] {
            let record = record(second, bytes);
            newest.add(Position::of(tenant(), &record), record);
        }
        let times: Vec<String> = newest.rows.values().map(|record| record.last_updated.to_string()).collect();
        let kept = ["2026-11-22T09:00:40Z", "2026-11-22T09:00:30Z"];
        assert_eq!(times, kept, "what is older than one that was left out comes on the next page");
        assert_eq!(newest.until(None), Some(Position::of(tenant(), &record(30, 1))));
    }

    #[test]
    fn what_cannot_be_cut_short_is_not_shown() {
        let sent = |alerts: usize, note: usize| {
            let (alert, note) = (format!(r#"{{"id":"{}"}}"#, "a".repeat(1_000)), "x".repeat(note));
            let alerts = vec![alert; alerts].join(",");
            let json = format!(
                r#"{{"id":"1","lastUpdateDateTime":"2026-11-22T09:00:00Z","alerts":[{alerts}],"note":"{note}"}}"#
            );
            Record::parse(json.as_bytes(), &tenant(), Alerts::Included).unwrap()
        };
        let small = sent(1, 1);
        assert_eq!(fitting(small.clone()), Some(small));
        let giant = sent(6_000, 1);
        let shown = fitting(giant.clone()).unwrap();
        assert_eq!(&*shown.json, r#"{"id":"1","lastUpdateDateTime":"2026-11-22T09:00:00Z","note":"x"}"#);
        assert_eq!(
            (shown.state_hash, shown.alerts),
            (giant.state_hash, giant.alerts),
            "its key is that of the whole record"
        );
        assert_eq!(fitting(sent(1, LARGEST_ANSWER)), None);
    }

    #[test]
    fn enumerations_are_written_as_each_surface_does() {
        assert_eq!(enumeration("in_progress", IncidentApi::Graph), "inProgress");
        assert_eq!(enumeration("in_progress", IncidentApi::Defender), "InProgress");
        assert_eq!(
            enumeration("informational_expected_activity", IncidentApi::Defender),
            "InformationalExpectedActivity"
        );
    }
}
