//! The members of a record as they were sent, with the ids of its alerts.

use std::borrow::Cow;

use super::json::{Reader, text};

/// The members of a JSON object, in the order in which they were sent. One name may occur twice.
pub(super) struct Members<'a> {
    sent: Vec<(Cow<'a, [u8]>, &'a [u8])>,
    /// The alerts, if they were read together with the members. They are not in `sent` then.
    pub(super) alerts: Option<AlertIds<'a>>,
    /// There is white space between parts of the object, or around it.
    pub(super) has_whitespace: bool,
    /// The number of bytes that the object takes, with the white space around it.
    pub(super) length: usize,
}

/// The ids of the alerts in a list. An alert without one counts, other entries do not.
pub(super) type AlertIds<'a> = Vec<Option<Cow<'a, str>>>;

impl<'a> Members<'a> {
    /// The members of the object at the start of a text. Returns `None` for anything else.
    pub(super) fn of(object: &'a [u8]) -> Option<Self> {
        Self::read(object, None)
    }

    /// The same with the alerts, whose ids have these names.
    pub(super) fn with_alerts(object: &'a [u8], names: [&str; 2]) -> Option<Self> {
        Self::read(object, Some(names))
    }

    fn read(object: &'a [u8], alert_names: Option<[&str; 2]>) -> Option<Self> {
        let mut members = Self { sent: Vec::with_capacity(24), alerts: None, has_whitespace: false, length: 0 };
        let mut whole = Reader::new(object);
        whole.object(|reader, name| {
            match alert_names {
                // Of a member that was sent twice, the last one that can be read counts.
                Some(names) if &*name == b"alerts" && reader.peek() == Some(b'[') => {
                    members.alerts = Some(alert_ids(reader, names)?);
                }
                Some(_) if &*name == b"alerts" => {
                    reader.value()?;
                }
                _ => members.sent.push((name, reader.value()?)),
            }
            Some(())
        })?;
        members.has_whitespace = whole.has_whitespace();
        members.length = whole.position();
        Some(members)
    }

    /// Returns the first of these members that `read` accepts. Of a member that was sent twice, the last one is tried
    /// first.
    pub(super) fn find<T>(&self, names: &[&str], read: impl Fn(&'a [u8]) -> Option<T>) -> Option<T> {
        names.iter().find_map(|name| self.all(name).rev().find_map(&read))
    }

    pub(super) fn all(&self, name: &str) -> impl DoubleEndedIterator<Item = &'a [u8]> {
        self.sent.iter().filter(move |(other, _)| **other == *name.as_bytes()).map(|(_, value)| *value)
    }
}

/// An id as text: a text or a number.
pub(super) fn identifier(raw: &[u8]) -> Option<Cow<'_, str>> {
    let is_number = matches!(raw.first(), Some(b'-' | b'0'..=b'9'));
    if is_number { str::from_utf8(raw).ok().map(Cow::Borrowed) } else { text(raw) }
}

/// The ids of the alerts in a list, by these names of the member.
fn alert_ids<'a>(list: &mut Reader<'a>, names: [&str; 2]) -> Option<AlertIds<'a>> {
    let mut ids = AlertIds::new();
    list.array(|entry| {
        if entry.peek() != Some(b'{') {
            return entry.value().map(|_| ());
        }
        let mut id = [None, None];
        entry.object(|member, name| {
            let value = member.value()?;
            if let Some(at) = names.iter().position(|wanted| *name == *wanted.as_bytes()) {
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
