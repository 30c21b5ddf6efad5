//! The summary of a version: what the event `Incident Changed` says about it.

use std::{borrow::Cow, fmt};

use serde::{
    Deserializer, Serialize,
    de::{IgnoredAny, MapAccess, Visitor},
};
use serde_json::value::RawValue;

use super::version::{Change, Version};
use crate::{microsoft::IncidentApi, text::LossyText};

/// The longest text of a summary, in characters. Rules on events need words, not descriptions.
const MAX_CHARACTERS: usize = 500;

/// The maximum number of tags in a summary. It keeps the event of any incident far below the 256 KB of `EventBridge`.
const MAX_TAGS: usize = 50;

/// The members of a record that a summary shows and the version rules do not need, by their names in both APIs.
const TITLE: [&str; 2] = ["displayName", "incidentName"];
const TAGS: [&str; 2] = ["customTags", "tags"];
const URL: [&str; 2] = ["incidentWebUrl", "incidentUri"];

/// The summary of one version. Its words are those of live reads, whatever the API. Its texts are cut to
/// `MAX_CHARACTERS`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct IncidentSummary {
    key: String,
    incident_id: String,
    change: Option<Change>,
    title: Option<String>,
    status: String,
    severity: Option<String>,
    assigned_to: Option<String>,
    /// `None`: the record was read without its alerts.
    alerts: Option<usize>,
    tags: Vec<String>,
    merged_into: Option<String>,
    url: Option<String>,
    created: Option<String>,
    last_updated: String,
}

impl IncidentSummary {
    /// The summary of a version. A member that is odd in form costs only itself.
    pub fn of(version: &Version<'_>) -> Self {
        let record = version.record;
        let members = NamedMembers::of(&record.json);
        let cut_text = |raw: &RawValue| text(raw).map(|text| cut(&text)).filter(|text| !text.is_empty());
        Self {
            key: version.key(),
            incident_id: record.incident_id.clone(),
            change: version.change,
            title: members.find(version.api, TITLE, cut_text),
            status: cut(&record.status),
            severity: record.severity.as_deref().map(cut),
            assigned_to: record.assigned_to.as_deref().map(cut),
            alerts: record.alerts,
            tags: members.find(version.api, TAGS, texts).unwrap_or_default(),
            merged_into: record.merged_into.as_deref().map(cut),
            url: members.find(version.api, URL, cut_text),
            created: record.created.map(|created| created.to_string()),
            last_updated: record.last_updated.to_string(),
        }
    }

    /// The memory of its texts, in bytes.
    pub fn size(&self) -> usize {
        let optional = [&self.title, &self.severity, &self.assigned_to, &self.merged_into, &self.url, &self.created];
        let texts = [&self.key, &self.incident_id, &self.status, &self.last_updated];
        texts.into_iter().chain(optional.into_iter().flatten()).chain(&self.tags).map(String::len).sum()
    }
}

/// The first [`MAX_CHARACTERS`] characters of a text.
fn cut(text: &str) -> String {
    let end = text.char_indices().nth(MAX_CHARACTERS).map_or(text.len(), |(end, _)| end);
    text[..end].to_owned()
}

fn text(raw: &RawValue) -> Option<Cow<'_, str>> {
    serde_json::from_str(raw.get()).ok().map(|LossyText(text)| text)
}

/// The texts in a list. `None`: it is not a list.
fn texts(raw: &RawValue) -> Option<Vec<String>> {
    let entries: Vec<&RawValue> = serde_json::from_str(raw.get()).ok()?;
    Some(entries.into_iter().filter_map(text).map(|text| cut(&text)).take(MAX_TAGS).collect())
}

/// The members of a record with one of the names above, in the order in which they were sent. One name may occur twice.
#[derive(Default)]
struct NamedMembers<'a>(Vec<(&'static str, &'a RawValue)>);

impl<'a> NamedMembers<'a> {
    fn of(json: &'a str) -> Self {
        struct Named;

        impl<'de> Visitor<'de> for Named {
            type Value = NamedMembers<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = NamedMembers::default();
                while let Some(LossyText(name)) = map.next_key()? {
                    match [TITLE, TAGS, URL].into_iter().flatten().find(|known| *known == name) {
                        Some(known) => members.0.push((known, map.next_value()?)),
                        None => {
                            let IgnoredAny = map.next_value()?;
                        }
                    }
                }
                Ok(members)
            }
        }

        serde_json::Deserializer::from_str(json).deserialize_map(Named).unwrap_or_default()
    }

    /// Returns the first of these members that `read` accepts, the name that `api` uses itself before the other. Of a
    /// member that was sent twice, the last one is tried first.
    fn find<T>(
        &self,
        api: IncidentApi,
        [graph, defender]: [&'static str; 2],
        read: impl Fn(&'a RawValue) -> Option<T>,
    ) -> Option<T> {
        let names = match api {
            IncidentApi::Graph => [graph, defender],
            IncidentApi::Defender => [defender, graph],
        };
        let all =
            |name: &'static str| self.0.iter().rev().filter(move |(other, _)| *other == name).map(|(_, value)| *value);
        names.into_iter().find_map(|name| all(name).find_map(&read))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        incident::record::{Alerts, Record},
        tenant::TenantId,
    };

    fn summary(api: IncidentApi, json: &str, alerts: Alerts) -> IncidentSummary {
        let tenant_id: TenantId = "11111111-2222-4333-8444-abcdefabcdef".parse().unwrap();
        let record = Record::parse(json.as_bytes(), &tenant_id, api, alerts).unwrap();
        let fetched_at = record.last_updated;
        IncidentSummary::of(&Version {
            tenant_id,
            api,
            record: &record,
            change: Some(Change::Merged),
            ordinal: 2,
            fetched_at,
        })
    }

    #[test]
    fn both_apis_have_one_summary() {
        let graph = r#"{"id":"7","lastUpdateDateTime":"2026-11-22T10:00:00.1234567Z","createdDateTime":"2026-11-22T09:00:00Z",
            "displayName":"Multi-stage","status":"inProgress","severity":"high","assignedTo":"ada@contoso.example",
            "customTags":["vip"],"systemTags":["Ransomware"],"redirectIncidentId":"8","alerts":[{"id":"a"},{"id":"b"}],
            "incidentWebUrl":"https://security.microsoft.com/incidents/7"}"#;
        let defender = r#"{"incidentId":7,"lastUpdateTime":"2026-11-22T10:00:00.1234567Z","createdTime":"2026-11-22T09:00:00Z",
            "incidentName":"Multi-stage","status":"InProgress","severity":"High","assignedTo":"ada@contoso.example",
            "tags":["vip"],"redirectIncidentId":8,"alerts":[{"alertId":"a"},{"alertId":"b"}],
            "incidentUri":"https://security.microsoft.com/incidents/7"}"#;
        let expected = json!({
            "key": "11111111-2222-4333-8444-abcdefabcdef/7/2026-11-22T10:00:00.1234567Z~2", "incident_id": "7",
            "change": "merged", "title": "Multi-stage", "status": "in_progress", "severity": "high",
            "assigned_to": "ada@contoso.example", "alerts": 2, "tags": ["vip"], "merged_into": "8",
            "url": "https://security.microsoft.com/incidents/7", "created": "2026-11-22T09:00:00Z",
            "last_updated": "2026-11-22T10:00:00.1234567Z"
        });
        for (api, json) in [(IncidentApi::Graph, graph), (IncidentApi::Defender, defender)] {
            assert_eq!(serde_json::to_value(summary(api, json, Alerts::Included)).unwrap(), expected, "{api}");
        }
    }

    #[test]
    fn texts_are_cut_between_characters() {
        let long = "\u{1f4a5}".repeat(600);
        let record = json!({"id": "1", "lastUpdateDateTime": "2026-11-22T10:00:00Z", "displayName": long,
                            "customTags": vec![long.clone(); 60], "assignedTo": long, "incidentWebUrl": long});
        let summary = summary(IncidentApi::Graph, &record.to_string(), Alerts::Included);
        assert_eq!(summary.title, Some("\u{1f4a5}".repeat(500)));
        assert_eq!((summary.tags.len(), summary.tags[0].chars().count()), (50, 500));
        // An event may have 256 KB, and JSON writes six bytes for a control character.
        let longest = serde_json::to_string(&summary).unwrap().replace('\u{1f4a5}', "\\u0001");
        assert!(longest.len() < 200 << 10, "{} bytes", longest.len());
        assert!(summary.size() > 53 * 500 * 4);
    }

    #[test]
    fn odd_members_cost_only_themselves() {
        let record = r#"{"id":"1","lastUpdateDateTime":"2026-11-22T10:00:00Z","displayName":{"a":1},"incidentName":"\ud800x",
            "customTags":["a",null,7,"b"],"tags":["never"],"incidentWebUrl":7,"assignedTo":"","displayName":null}"#;
        let summary = summary(IncidentApi::Graph, record, Alerts::Omitted);
        let shown = serde_json::to_value(&summary).unwrap();
        assert_eq!((shown["title"].as_str(), &shown["tags"]), (Some("\u{fffd}\u{fffd}\u{fffd}x"), &json!(["a", "b"])));
        for member in ["url", "assigned_to", "alerts", "severity", "merged_into", "created"] {
            assert_eq!(shown[member], Value::Null, "{member}");
        }
        assert_eq!(shown["status"], "unknown");
    }
}
