//! The members of a record as they were sent, with the ids of its alerts.

use std::borrow::Cow;

use super::json::Reader;
use crate::text::LossyText;

/// The members of a JSON object, in the order in which they were sent. One name may occur twice.
pub(super) struct Members<'a> {
    sent: Vec<(Cow<'a, str>, &'a str)>,
    /// The alerts, if they were read together with the members. They are not in `sent` then.
    pub(super) alerts: Option<AlertIds>,
    /// There is white space between parts of the object.
    pub(super) has_whitespace: bool,
}

/// The ids of the alerts in a list. An alert without one counts, other entries do not.
pub(super) type AlertIds = Vec<Option<String>>;

impl<'a> Members<'a> {
    /// Returns `None` for anything but an object.
    pub(super) fn of(object: &'a str) -> Option<Self> {
        Self::read(object, None)
    }

    /// The members and the alerts, whose ids have these names. Returns `None` for anything but an object.
    pub(super) fn with_alerts(object: &'a str, names: [&str; 2]) -> Option<Self> {
        Self::read(object, Some(names))
    }

    fn read(object: &'a str, alert_names: Option<[&str; 2]>) -> Option<Self> {
        let mut members = Self { sent: Vec::with_capacity(32), alerts: None, has_whitespace: false };
        let mut whole = Reader::new(object);
        whole.object(|reader, name| {
            match alert_names {
                // Of a member that was sent twice, the last one that can be read counts.
                Some(names) if name == "alerts" && reader.peek() == Some(b'[') => {
                    members.alerts = Some(alert_ids(reader, names)?);
                }
                Some(_) if name == "alerts" => {
                    reader.value()?;
                }
                _ => members.sent.push((name, reader.value()?)),
            }
            Some(())
        })?;
        whole.end()?;
        members.has_whitespace = whole.has_whitespace();
        Some(members)
    }

    /// Returns the first of these members that `read` accepts. Of a member that was sent twice, the last one is tried
    /// first.
    pub(super) fn find<T>(&self, names: &[&str], read: impl Fn(&'a str) -> Option<T>) -> Option<T> {
        names.iter().find_map(|name| self.all(name).rev().find_map(&read))
    }

    pub(super) fn all(&self, name: &str) -> impl DoubleEndedIterator<Item = &'a str> {
        self.sent.iter().filter(move |(other, _)| other == name).map(|(_, value)| *value)
    }
}

/// An id as text: a text or a number.
pub(super) fn identifier(raw: &str) -> Option<String> {
    let is_number = || raw.starts_with(|first: char| first == '-' || first.is_ascii_digit());
    text(raw).or_else(|| is_number().then(|| raw.to_owned()))
}

/// A string, or `None` for a value of any other type.
pub(super) fn text(raw: &str) -> Option<String> {
    serde_json::from_str(raw).ok().map(|LossyText(text)| text.into_owned())
}

/// The ids of the alerts in a list, by these names of the member.
fn alert_ids(list: &mut Reader<'_>, names: [&str; 2]) -> Option<AlertIds> {
    let mut ids = AlertIds::new();
    list.array(|entry| {
        if entry.peek() != Some(b'{') {
            return entry.value().map(|_| ());
        }
        let mut id = [None, None];
        entry.object(|member, name| {
            let value = member.value()?;
            if let Some(at) = names.iter().position(|wanted| *wanted == name) {
                id[at] = identifier(value).or_else(|| id[at].take());
            }
            Some(())
        })?;
        let [own, other] = id;
        ids.push(own.or(other));
        Some(())
    })?;
    Some(ids)
}
