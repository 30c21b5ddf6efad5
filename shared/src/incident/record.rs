//! One incident as Microsoft sent it, and the few members that we parse.

mod json;
mod members;

use std::borrow::Cow;

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use jiff::Timestamp;

use self::{
    json::text,
    members::{Members, identifier},
};
use crate::{
    microsoft::IncidentApi,
    tenant::TenantId,
    text::{UnknownWord, hex, plain_text_length},
};

/// One incident, with the members that the version rules and the filters need. The rest of it stays as it was sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Microsoft's id of the incident: digits today. Any name of at most 64 letters, digits and hyphens is accepted.
    pub incident_id: String,
    /// Time of the last update, with the fraction of a second that was sent.
    pub last_updated: Timestamp,
    /// Time of creation, if it was sent.
    pub created: Option<Timestamp>,
    /// Status in snake_case; `unknown` if none was sent.
    pub status: String,
    /// Severity in snake_case, if it was sent.
    pub severity: Option<String>,
    /// Name or address of the person that it is assigned to.
    pub assigned_to: Option<String>,
    /// Id of the incident that this one was merged into.
    pub merged_into: Option<String>,
    /// Number of alerts in it. `None`: it was read with [`Alerts::Omitted`].
    pub alerts: Option<usize>,
    /// Hash of status, merge target and set of alert ids. It tells apart two states with one time of last update.
    pub state_hash: String,
    /// The whole record as JSON without white space between its parts, and so on one line.
    pub json: Box<str>,
    /// Length of `json` before its alerts were left out. `None`: nothing was left out of it here.
    pub untruncated_bytes: Option<usize>,
}

/// The alerts of an incident in a response. Defender always sends them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alerts {
    /// Graph is asked to expand them.
    Included,
    /// Graph sends the incident alone.
    Omitted,
}

/// The reason why a record cannot be parsed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// The bytes are not a JSON object.
    NotJson,
    /// The id is missing, or is neither a number nor a short name.
    NoId,
    /// The time of the last update is missing or malformed.
    NoLastUpdate,
    /// The record names another tenant.
    ForeignTenant,
}

impl Unreadable {
    /// The word that the quarantine stores.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotJson => "not_json",
            Self::NoId => "no_id",
            Self::NoLastUpdate => "no_last_update",
            Self::ForeignTenant => "foreign_tenant",
        }
    }
}

/// What can be read of a record that cannot be parsed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct UnreadableRecord {
    /// Its id.
    pub incident_id: Option<String>,
    /// Its time of the last update.
    pub last_updated: Option<Timestamp>,
}

impl UnreadableRecord {
    /// Reads what can be read of a record that `api` sent.
    pub fn of(raw: &[u8], api: IncidentApi) -> Self {
        let whole = |members: &Members<'_>| members.length == raw.len() && str::from_utf8(raw).is_ok();
        let Some(members) = Members::of(raw).filter(whole) else { return Self::default() };
        Self {
            incident_id: members.find(&names_of(api, "id", "incidentId"), incident_id),
            last_updated: members.find(&names_of(api, "lastUpdateDateTime", "lastUpdateTime"), time),
        }
    }
}

/// Both names of a member. The name that `api` uses itself comes first.
pub(super) fn names_of<'n>(api: IncidentApi, graph: &'n str, defender: &'n str) -> [&'n str; 2] {
    match api {
        IncidentApi::Graph => [graph, defender],
        IncidentApi::Defender => [defender, graph],
    }
}

impl Record {
    /// Parses a record that `api` sent for `tenant`. With [`Alerts::Included`] the record holds all its alerts.
    ///
    /// A member that is missing or odd in form costs only itself. Where a member has the names of both APIs, the name that
    /// `api` uses itself counts.
    ///
    /// # Errors
    /// The reason to quarantine it.
    pub fn parse(raw: &[u8], tenant: &TenantId, api: IncidentApi, alerts: Alerts) -> Result<Self, Unreadable> {
        Self::of(Self::members_of_whole(raw, api, alerts)?, raw, tenant, api, alerts, |sent| sent.into())
    }

    /// Parses a record as [`Self::parse`] does. It becomes the record's JSON without a copy of it, where it has no white
    /// space between its parts and nothing else uses it.
    ///
    /// # Errors
    /// The reason to quarantine it, and `raw` again.
    pub fn parse_owned(
        raw: Bytes,
        tenant: &TenantId,
        api: IncidentApi,
        alerts: Alerts,
    ) -> Result<Self, (Unreadable, Bytes)> {
        let parsed = Self::members_of_whole(&raw, api, alerts)
            .and_then(|members| Self::of(members, &raw, tenant, api, alerts, |_| Box::default()));
        match parsed {
            Ok(record) if record.json.is_empty() => match String::from_utf8(raw.into()) {
                Ok(json) => Ok(Self { json: json.into(), ..record }),
                Err(error) => Err((Unreadable::NotJson, error.into_bytes().into())),
            },
            Ok(record) => Ok(record),
            Err(why) => Err((why, raw)),
        }
    }

    /// Parses the record at the start of `text`, and returns it with the number of bytes that it takes. `None`: it cannot be
    /// parsed, or `text` does not hold all of it.
    pub fn parse_first(text: &[u8], tenant: &TenantId, api: IncidentApi, alerts: Alerts) -> Option<(Self, usize)> {
        let members = Self::members(text, api, alerts)?;
        let length = members.length;
        Some((Self::of(members, &text[..length], tenant, api, alerts, |sent| sent.into()).ok()?, length))
    }

    fn members_of_whole(raw: &[u8], api: IncidentApi, alerts: Alerts) -> Result<Members<'_>, Unreadable> {
        Self::members(raw, api, alerts).filter(|members| members.length == raw.len()).ok_or(Unreadable::NotJson)
    }

    fn members(text: &[u8], api: IncidentApi, alerts: Alerts) -> Option<Members<'_>> {
        match alerts {
            Alerts::Included => Members::with_alerts(text, names_of(api, "id", "alertId")),
            Alerts::Omitted => Members::of(text),
        }
    }

    /// The record `raw`, which has these members. `json` makes the text of one without white space.
    fn of(
        mut members: Members<'_>,
        raw: &[u8],
        tenant: &TenantId,
        api: IncidentApi,
        alerts: Alerts,
        json: impl FnOnce(&str) -> Box<str>,
    ) -> Result<Self, Unreadable> {
        let sent = simdutf8::basic::from_utf8(raw).map_err(|_| Unreadable::NotJson)?;
        let json = if members.has_whitespace { without_whitespace(sent) } else { json(sent) };
        let sent_alerts = members.alerts.take().unwrap_or_default();
        let is_foreign = |named: &str| !named.is_empty() && TenantId::from_guid(named) != Ok(*tenant);
        if members.all("tenantId").filter_map(text).any(|named| is_foreign(&named)) {
            return Err(Unreadable::ForeignTenant);
        }
        let incident_id = members.find(&names_of(api, "id", "incidentId"), incident_id).ok_or(Unreadable::NoId)?;
        let last_updated = members
            .find(&names_of(api, "lastUpdateDateTime", "lastUpdateTime"), time)
            .ok_or(Unreadable::NoLastUpdate)?;
        let word = |name| members.find(&[name], text).as_deref().map(snake_case);
        let status = word("status").unwrap_or_else(|| "unknown".into());
        let merged_into =
            members.find(&["redirectIncidentId"], |raw| identifier(raw).filter(|id| !id.is_empty() && *id != "0"));
        Ok(Self {
            alerts: (alerts == Alerts::Included).then_some(sent_alerts.len()),
            state_hash: state_hash_of(&status, merged_into.as_deref(), sent_alerts.into_iter().flatten().collect()),
            created: members.find(&names_of(api, "createdDateTime", "createdTime"), time),
            severity: word("severity"),
            assigned_to: members.find(&["assignedTo"], text).filter(|name| !name.is_empty()).map(Cow::into_owned),
            incident_id,
            last_updated,
            status,
            merged_into: merged_into.map(Cow::into_owned),
            json,
            untruncated_bytes: None,
        })
    }

    /// The severity of an incident that is neither resolved nor redirected. `None` also for a severity that is no
    /// [`Severity`].
    pub fn open_severity(&self) -> Option<Severity> {
        match self.severity.as_deref().filter(|_| self.state() == State::Open).and_then(Severity::of) {
            // A word that this release does not know, as a later one may store it.
            Some(Severity::High) if cfg!(feature = "later-release") => {
                Some(Severity::Unknown(UnknownWord::of("critical")))
            }
            severity => severity,
        }
    }

    /// The state of the incident for [`Change`](super::version::Change).
    pub fn state(&self) -> State {
        match self.status.as_str() {
            "redirected" => State::Redirected,
            "resolved" => State::Resolved,
            _ if self.merged_into.is_some() => State::Redirected,
            _ => State::Open,
        }
    }
}

/// A severity of both APIs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Microsoft's lowest one, for what may be no threat.
    Informational,
    /// A threat that was not seen to do harm.
    Low,
    /// A threat that may do harm.
    Medium,
    /// Microsoft's highest one.
    High,
    /// A severity under which a newer release has counted an incident.
    Unknown(UnknownWord),
}

impl Severity {
    /// All severities that this release knows, from the lowest one.
    pub const ALL: [Self; 4] = [Self::Informational, Self::Low, Self::Medium, Self::High];

    /// The interface's word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Informational => "informational",
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Unknown(word) => word.as_str(),
        }
    }

    /// The severity of a word. `None` for a word that this release does not know.
    pub fn of(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|severity| severity.as_str() == word)
    }
}

/// The part of a status that decides the name of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Any status but the others.
    Open,
    /// Closed by a person or by Microsoft.
    Resolved,
    /// Merged into another incident.
    Redirected,
}

/// Returns true if a caller may name an incident by this text: 1 to 20 digits.
pub fn is_incident_id(text: &str) -> bool {
    (1..=20).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// The id of an incident. A text may be any short name, so that a change of its form, to a GUID for example, does not
/// make each record unreadable.
fn incident_id(raw: &[u8]) -> Option<String> {
    let is_name = |name: &Cow<'_, str>| {
        (1..=64).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    match text(raw) {
        Some(name) => Some(name).filter(is_name).map(Cow::into_owned),
        None => str::from_utf8(raw).ok().filter(|number| is_incident_id(number)).map(str::to_owned),
    }
}

fn time(raw: &[u8]) -> Option<Timestamp> {
    text(raw).as_deref().and_then(parse_time)
}

/// Parses a time of either API. A time without an offset is in UTC. Digits beyond the nanosecond are cut off.
pub(super) fn parse_time(text: &str) -> Option<Timestamp> {
    const LONGEST_FRACTION: usize = ".123456789".len();
    let is_digit = |byte: &u8| byte.is_ascii_digit();
    let fraction = text.find('.').unwrap_or(text.len());
    let digits = text.bytes().skip(fraction + 1).take_while(is_digit).count();
    let end = fraction + 1 + digits;
    let short = if digits < LONGEST_FRACTION {
        Cow::Borrowed(text)
    } else {
        Cow::Owned(format!("{}{}", &text[..fraction + LONGEST_FRACTION], &text[end..]))
    };
    short.parse().or_else(|_| format!("{short}Z").parse()).ok()
}

/// Converts a word of either API: `InProgress`, `inProgress` and `in progress` all become `in_progress`.
pub(super) fn snake_case(text: &str) -> String {
    let mut snake = String::with_capacity(text.len() + 4);
    let mut after_lower = false;
    for letter in text.chars() {
        if letter.is_uppercase() {
            if after_lower {
                snake.push('_');
            }
            snake.extend(letter.to_lowercase());
        } else if letter.is_alphanumeric() {
            snake.push(letter);
        } else if !snake.ends_with('_') && !snake.is_empty() {
            snake.push('_');
        }
        after_lower = letter.is_lowercase() || letter.is_ascii_digit();
    }
    snake
}

fn state_hash_of(status: &str, merged_into: Option<&str>, mut alert_ids: Vec<Cow<'_, str>>) -> String {
    alert_ids.sort_unstable();
    alert_ids.dedup();
    let mut hashed = Vec::with_capacity(256);
    for part in [status, merged_into.unwrap_or_default()].into_iter().chain(alert_ids.iter().map(Cow::as_ref)) {
        hashed.extend_from_slice(&part.len().to_be_bytes());
        hashed.extend_from_slice(part.as_bytes());
    }
    hex(&digest(&SHA256, &hashed).as_ref()[..8])
}

/// The same JSON on one line, without white space between its parts. Strings and numbers keep every byte. `json` is valid.
fn without_whitespace(json: &str) -> Box<str> {
    let bytes = json.as_bytes();
    let (mut kept, mut kept_until, mut at) = (String::with_capacity(json.len()), 0, 0);
    while let Some(next) = bytes[at..].iter().position(|byte| matches!(byte, b'"' | b' ' | b'\t' | b'\r' | b'\n')) {
        at += next + 1;
        if bytes[at - 1] == b'"' {
            at = end_of_string(bytes, at);
        } else {
            kept.push_str(&json[kept_until..at - 1]);
            kept_until = at;
        }
    }
    kept.push_str(&json[kept_until..]);
    kept.into()
}

/// The place after the quote that ends the string that `at` lies in.
fn end_of_string(bytes: &[u8], mut at: usize) -> usize {
    loop {
        at += plain_text_length(&bytes[at..]);
        match bytes.get(at) {
            Some(b'"') => return at + 1,
            // The byte after a backslash ends no string.
            Some(b'\\') => at = (at + 2).min(bytes.len()),
            Some(_) => at += 1,
            None => return at,
        }
    }
}

#[cfg(test)]
mod tests;
