//! The members of a record as they were sent, with the ids of its alerts.

use std::{borrow::Cow, fmt};

use serde::{
    Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::text::LossyText;

/// The members of a JSON object, in the order in which they were sent. One name may occur twice.
pub(super) struct Members<'a> {
    sent: Vec<(Cow<'a, str>, &'a RawValue)>,
    /// The alerts, if they were read together with the members. They are not in `sent` then.
    pub(super) alerts: Option<AlertIds>,
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
        // The alerts are almost all of an incident, so the first try reads them in the same pass. It fails at half a surrogate
        // pair in the place of an alert, which is not an alert.
        Self::read(object, Some(names)).or_else(|| {
            let mut members = Self::of(object)?;
            members.alerts = members.find(&["alerts"], |raw| alert_ids(raw, names));
            Some(members)
        })
    }

    fn read(object: &'a str, alert_names: Option<[&str; 2]>) -> Option<Self> {
        struct InOrder<'n>(Option<[&'n str; 2]>);

        impl<'de> Visitor<'de> for InOrder<'_> {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Members { sent: Vec::with_capacity(32), alerts: None };
                while let Some(LossyText(name)) = map.next_key()? {
                    match self.0 {
                        // Of a member that was sent twice, the last one that can be read counts.
                        Some(names) if name == "alerts" => {
                            let ids = map.next_value_seed(AlertsVisitor { names, is_entry: false })?;
                            members.alerts = ids.or(members.alerts);
                        }
                        _ => members.sent.push((name, map.next_value()?)),
                    }
                }
                Ok(members)
            }
        }

        let mut whole = serde_json::Deserializer::from_str(object);
        let members = whole.deserialize_map(InOrder(alert_names)).ok()?;
        whole.end().ok().map(|()| members)
    }

    /// Returns the first of these members that `read` accepts. Of a member that was sent twice, the last one is tried
    /// first.
    pub(super) fn find<T>(&self, names: &[&str], read: impl Fn(&'a RawValue) -> Option<T>) -> Option<T> {
        names.iter().find_map(|name| self.all(name).rev().find_map(&read))
    }

    pub(super) fn all(&self, name: &str) -> impl DoubleEndedIterator<Item = &'a RawValue> {
        self.sent.iter().filter(move |(other, _)| other == name).map(|(_, value)| *value)
    }
}

/// An id as text: a text or a number.
pub(super) fn identifier(raw: &RawValue) -> Option<String> {
    let is_number = || raw.get().starts_with(|first: char| first == '-' || first.is_ascii_digit());
    text(raw).or_else(|| is_number().then(|| raw.get().to_owned()))
}

/// A string, or `None` for a value of any other type.
pub(super) fn text(raw: &RawValue) -> Option<String> {
    serde_json::from_str(raw.get()).ok().map(|LossyText(text)| text.into_owned())
}

/// The ids of the alerts in a list, by these names of the member. `None`: it is not a list.
pub(super) fn alert_ids(raw: &RawValue, names: [&str; 2]) -> Option<AlertIds> {
    let entries: Vec<&RawValue> = serde_json::from_str(raw.get()).ok()?;
    let ids = entries.into_iter().filter_map(|entry| Some(Members::of(entry.get())?.find(&names, identifier)));
    Some(ids.collect())
}

/// Reads the ids of the alerts in a list, or of one alert. `None`: it is neither a list nor an alert.
#[derive(Clone, Copy)]
struct AlertsVisitor<'n> {
    names: [&'n str; 2],
    is_entry: bool,
}

impl<'de> DeserializeSeed<'de> for AlertsVisitor<'_> {
    type Value = Option<AlertIds>;

    fn deserialize<D: Deserializer<'de>>(self, sent: D) -> Result<Self::Value, D::Error> {
        sent.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for AlertsVisitor<'_> {
    type Value = Option<AlertIds>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("alerts")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        if self.is_entry {
            while list.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(None);
        }
        let mut ids = AlertIds::new();
        while let Some(alert) = list.next_element_seed(Self { is_entry: true, ..self })? {
            ids.extend(alert.into_iter().flatten());
        }
        Ok(Some(ids))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut alert: A) -> Result<Self::Value, A::Error> {
        let mut ids = [None, None];
        while let Some(LossyText(name)) = alert.next_key()? {
            match self.names.iter().position(|wanted| *wanted == name) {
                Some(at) => ids[at] = identifier(alert.next_value()?).or_else(|| ids[at].take()),
                None => {
                    alert.next_value::<IgnoredAny>()?;
                }
            }
        }
        let [own, other] = ids;
        Ok(self.is_entry.then(|| vec![own.or(other)]))
    }

    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(None)
    }
}
