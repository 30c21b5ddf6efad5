//! An alert as an entry of `finding_info_list`.

use serde_json::{Map, Value, json};

use super::{
    Item,
    json::{distinct, present, take_link, take_text, take_texts, take_time},
};
use crate::{
    incident::record::{names_of, snake_case},
    microsoft::IncidentApi,
};

/// The finding of an alert. `unnamed` is the id where none was sent, because the schema requires one. The sent id stays
/// in the alert, so that the rest of it can be matched with its finding.
pub(super) fn finding_info(
    alert: &mut Map<String, Value>,
    api: IncidentApi,
    unnamed: impl FnOnce() -> String,
) -> Value {
    let names = |graph, defender| names_of(api, graph, defender);
    let ids = names("id", "alertId").into_iter().chain(["providerAlertId"]);
    let uid = ids.into_iter().find_map(|name| match alert.get(name)? {
        Value::String(id) if !id.is_empty() => Some(id.clone()),
        Value::Number(id) => Some(id.to_string()),
        _ => None,
    });
    present(json!({
        "analytic": analytic(alert),
        "attacks": attacks(alert),
        "created_time": take_time(alert, &names("createdDateTime", "creationTime")),
        "desc": take_text(alert, &["description"]),
        "first_seen_time": take_time(alert, &names("firstActivityDateTime", "firstActivity")),
        "last_seen_time": take_time(alert, &names("lastActivityDateTime", "lastActivity")),
        "modified_time": take_time(alert, &names("lastUpdateDateTime", "lastUpdatedTime")),
        "product": take_text(alert, &["productName", "serviceSource"]).map(|name| json!({"name": name})),
        "src_url": take_link(alert, &["alertWebUrl"]),
        "title": take_text(alert, &["title"]),
        "types": types(alert),
        "uid": uid.unwrap_or_else(unnamed),
        "uid_alt": take_text(alert, &["providerAlertId"]),
    }))
}

/// The kill-chain phases of an alert. `categories` replaces `category`, and alerts have either or both.
fn types(alert: &mut Map<String, Value>) -> Option<Vec<String>> {
    distinct(take_text(alert, &["category"]).into_iter().chain(take_texts(alert, "categories")))
}

fn analytic(alert: &mut Map<String, Value>) -> Option<Value> {
    let uid = take_text(alert, &["detectorId"]);
    let name = take_text(alert, &["detectionSource"]);
    if uid.is_none() && name.is_none() {
        return None;
    }
    let kind = match name.as_deref().map(snake_case).as_deref() {
        // Rules that the customer wrote: those of Defender, and the scheduled and near-real-time ones of Sentinel.
        Some("custom_detection" | "scheduled_alerts" | "nrt_alerts") => Item::of(1, "Rule"),
        Some("built_in_ml") => Item::of(4, "Learning (ML/DL)"),
        _ => Item::unknown(),
    };
    Some(present(json!({"uid": uid, "name": name, "type": kind.caption, "type_id": kind.id})))
}

/// The techniques of an alert: `T1566`, or `T1566.001` with a sub-technique. A list with anything else in it also stays
/// in `unmapped`.
fn attacks(alert: &mut Map<String, Value>) -> Option<Vec<Value>> {
    let sent = alert.get("mitreTechniques")?.as_array()?;
    let attacks: Vec<Value> = sent
        .iter()
        .filter_map(Value::as_str)
        .filter(|uid| !uid.is_empty())
        .map(|uid| match uid.split_once('.') {
            Some((technique, _)) if !technique.is_empty() => {
                json!({"technique": {"uid": technique}, "sub_technique": {"uid": uid}})
            }
            _ => json!({"technique": {"uid": uid}}),
        })
        .collect();
    if attacks.len() == sent.len() {
        alert.remove("mitreTechniques");
    }
    (!attacks.is_empty()).then_some(attacks)
}
