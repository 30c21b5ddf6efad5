//! JSON that Microsoft sent: as values without a loss, and member by member.

use std::{collections::HashSet, fmt};

use jiff::Timestamp;
use serde::{
    Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::{Map, Number, Value, value::RawValue};

use crate::{incident::record::parse_time, text::LossyText};

/// JSON that is nested deeper stays text.
pub(super) const MAX_DEPTH: usize = 64;

/// The members of a record as values, and its alerts as they were sent, if they are a list. In place of the list, the member
/// `alerts` is null. What is no object is the member `record`.
pub(super) fn members_and_alerts(record: &str) -> (Map<String, Value>, Option<Vec<&RawValue>>) {
    let mut alerts = None;
    let members = object(record, |name, value| match name {
        "alerts" => {
            alerts = Some(value);
            Value::Null
        }
        _ => value_at(value, 1),
    });
    let Some(mut members) = members else { return (Map::from_iter([("record".to_owned(), record.into())]), None) };
    let listed = alerts.and_then(|alerts| serde_json::from_str(alerts.get()).ok());
    if let (Some(alerts), None) = (alerts, &listed) {
        members.insert("alerts".to_owned(), value_at(alerts, 1));
    }
    (members, listed)
}

/// An alert of the list as a value. What a value cannot hold becomes text, as
/// [`write_incident_finding`](super::write_incident_finding) says.
pub(super) fn alert_value(raw: &RawValue) -> Value {
    value_at(raw, 2)
}

fn value_at(raw: &RawValue, depth: usize) -> Value {
    let sent = raw.get();
    let read = match sent.as_bytes().first() {
        Some(b'{') if depth < MAX_DEPTH => object(sent, |_, value| value_at(value, depth + 1)).map(Value::Object),
        Some(b'[') if depth < MAX_DEPTH => serde_json::from_str::<Vec<&RawValue>>(sent)
            .ok()
            .map(|items| items.into_iter().map(|item| value_at(item, depth + 1)).collect::<Value>()),
        Some(b'"') => serde_json::from_str::<LossyText<'_>>(sent).ok().map(|text| text.0.into()),
        Some(b't' | b'f' | b'n') => serde_json::from_str(sent).ok(),
        Some(b'-' | b'0'..=b'9') => exact_number(sent).map(Value::Number),
        _ => None,
    };
    read.unwrap_or_else(|| Value::String(sent.to_owned()))
}

/// An object, each of whose members has the value that `value_of` makes of its name and of what was sent.
fn object<'a>(sent: &'a str, value_of: impl FnMut(&str, &'a RawValue) -> Value) -> Option<Map<String, Value>> {
    serde_json::Deserializer::from_str(sent).deserialize_map(Members(value_of)).ok()
}

/// The members of an object. Of one that was sent twice, the last one that is not null counts.
struct Members<F>(F);

impl<'de, F: FnMut(&str, &'de RawValue) -> Value> Visitor<'de> for Members<F> {
    type Value = Map<String, Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut members: A) -> Result<Self::Value, A::Error> {
        let mut object = Map::new();
        while let Some((LossyText(name), value)) = members.next_entry::<_, &RawValue>()? {
            if value.get() != "null" || !object.contains_key(name.as_ref()) {
                let value = (self.0)(&name, value);
                object.insert(name.into_owned(), value);
            }
        }
        Ok(object)
    }
}

/// The number, if a 64-bit integer or float holds it exactly. Fifteen digits always fit into a float.
fn exact_number(sent: &str) -> Option<Number> {
    let number: Number = serde_json::from_str(sent).ok()?;
    let mantissa = sent.split(['e', 'E']).next().unwrap_or_default();
    let digits = mantissa.chars().filter(char::is_ascii_digit).skip_while(|digit| *digit == '0').count();
    let vanished = digits > 0 && number.as_f64() == Some(0.0);
    (!number.is_f64() || (digits <= 15 && !vanished) || number.to_string() == sent).then_some(number)
}

/// A member that is a text and not empty.
pub(super) fn text<'a>(sent: &'a Map<String, Value>, name: &str) -> Option<&'a str> {
    sent.get(name)?.as_str().filter(|text| !text.is_empty())
}

/// Takes out the first of these members that `read` accepts. The others stay.
fn take<T>(sent: &mut Map<String, Value>, names: &[&str], read: impl Fn(&str) -> Option<T>) -> Option<T> {
    let (name, value) = names.iter().find_map(|name| Some((name, read(text(sent, name)?)?)))?;
    sent.remove(*name);
    Some(value)
}

/// Takes out a text that is not empty.
pub(super) fn take_text(sent: &mut Map<String, Value>, names: &[&str]) -> Option<String> {
    take(sent, names, |text| Some(text.to_owned()))
}

/// Takes out a time, in milliseconds of the epoch.
pub(super) fn take_time(sent: &mut Map<String, Value>, names: &[&str]) -> Option<i64> {
    take(sent, names, |text| parse_time(text).and_then(milliseconds))
}

/// A time in milliseconds of the epoch. `None` for one that was never set: .NET writes the year 1 then, and other systems
/// write 1601 or the epoch itself.
pub(super) fn milliseconds(time: Timestamp) -> Option<i64> {
    Some(time.as_millisecond()).filter(|milliseconds| *milliseconds > 0)
}

/// Takes out the texts of a list. A list that holds anything but texts and nulls stays, too.
pub(super) fn take_texts(sent: &mut Map<String, Value>, name: &str) -> Vec<String> {
    let Some(Value::Array(items)) = sent.get(name) else { return Vec::new() };
    let texts = items.iter().filter_map(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned).collect();
    if items.iter().all(|item| item.is_string() || item.is_null()) {
        sent.remove(name);
    }
    texts
}

/// The texts without repetitions, in their order. `None` if there are none.
pub(super) fn distinct(texts: impl IntoIterator<Item = String>) -> Option<Vec<String>> {
    let mut seen = HashSet::new();
    let texts: Vec<String> = texts.into_iter().filter(|text| seen.insert(text.clone())).collect();
    (!texts.is_empty()).then_some(texts)
}

/// Takes out a link. Only `https` passes, because consumers make links of it.
pub(super) fn take_link(sent: &mut Map<String, Value>, names: &[&str]) -> Option<String> {
    take(sent, names, |text| text.starts_with("https://").then(|| text.to_owned()))
}

/// An object without its nulls.
pub(super) fn present(mut object: Value) -> Value {
    if let Value::Object(members) = &mut object {
        members.retain(|_, value| !value.is_null());
    }
    object
}
