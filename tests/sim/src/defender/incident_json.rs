//! Incidents and alerts as the Defender XDR API writes them.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::{
    http::BodyPart,
    list::{json_time, record_parts},
    store::{Alert, EvidenceSamples, EvidenceSet, Incident},
};

/// A member of an enumeration as Defender writes it, from Graph's name.
pub(super) fn pascal(member: &str) -> String {
    let mut characters = member.chars();
    characters.next().map_or_else(String::new, |first| first.to_uppercase().chain(characters).collect())
}

pub(super) fn camel(member: &str) -> String {
    let mut characters = member.chars();
    characters.next().map_or_else(String::new, |first| first.to_lowercase().chain(characters).collect())
}

fn severity(member: &str) -> String {
    if member == "unknown" { "UnSpecified".to_owned() } else { pascal(member) }
}

fn determination(member: &str) -> String {
    match member {
        "unknown" => "NotAvailable".to_owned(),
        "notEnoughDataToValidate" => "NoEnoughDataToValidate".to_owned(),
        other => pascal(other),
    }
}

pub(super) fn determination_to_graph(member: &str) -> String {
    if member == "NoEnoughDataToValidate" { "notEnoughDataToValidate".to_owned() } else { camel(member) }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct IncidentBody<'a> {
    #[serde(rename = "@odata.context", skip_serializing_if = "Option::is_none")]
    context: Option<String>,
    incident_id: u64,
    incident_uri: String,
    redirect_incident_id: Option<u64>,
    incident_name: &'a str,
    created_time: Value,
    last_update_time: Value,
    assigned_to: Option<&'a str>,
    classification: String,
    determination: String,
    status: String,
    severity: String,
    tags: &'a [String],
    comments: Vec<Value>,
    #[serde(flatten)]
    extra: &'a Map<String, Value>,
    alerts: Vec<Value>,
}

pub(super) fn incident_json(
    incident: &Incident,
    tenant_id: &str,
    now: Timestamp,
    context: Option<String>,
) -> Vec<BodyPart> {
    let shows_alerts = incident.shows_alerts(now);
    let alerts = if shows_alerts { incident.alerts.as_slice() } else { &[] };
    let comments = incident.comments.iter().map(|comment| {
        json!({
            "comment": comment.comment,
            "createdBy": comment.created_by,
            "createdTime": json_time(comment.created),
        })
    });
    let body = IncidentBody {
        context,
        incident_id: incident.id,
        incident_uri: format!("https://security.microsoft.com/incidents/{}?tid={tenant_id}", incident.id),
        redirect_incident_id: incident.redirect_incident_id,
        incident_name: &incident.display_name,
        created_time: json_time(incident.created),
        last_update_time: json_time(incident.last_update),
        assigned_to: incident.assigned_to.as_deref(),
        classification: pascal(&incident.classification),
        determination: determination(&incident.determination),
        status: pascal(&incident.status),
        severity: severity(&incident.severity),
        tags: &incident.custom_tags,
        comments: comments.collect(),
        extra: &incident.extra,
        alerts: alerts.iter().map(|alert| alert_json(alert, incident.id)).collect(),
    };
    let text = serde_json::to_string(&body).unwrap_or_default();
    record_parts(text, incident, incident.giant.filter(|_| shows_alerts), alert_json)
}

fn alert_json(alert: &Alert, incident_id: u64) -> Value {
    let devices: Vec<Value> = alert
        .devices
        .iter()
        .map(|name| {
            json!({
                "mdatpDeviceId": "335b3ef544f5d3690b6c75c776dc3e52bb3485c4", "aadDeviceId": null, "deviceDnsName": name,
                "osPlatform": "Windows11", "version": "25H2", "osProcessor": "x64", "osBuild": 26200,
                "healthStatus": "Active", "riskScore": "High", "rbacGroupName": "Clients", "rbacGroupId": 125,
                "firstSeen": json_time(alert.first_activity), "tags": [], "defenderAvStatus": "Updated",
                "onboardingStatus": "Onboarded", "vmMetadata": null,
            })
        })
        .collect();
    let users = alert.users.iter().map(|name| {
        let (account, domain) = name.split_once('@').unwrap_or((name, ""));
        json!({
            "entityType": "User", "evidenceCreationTime": json_time(alert.created), "verdict": "Suspicious",
            "remediationStatus": "None", "accountName": account, "domainName": domain, "userSid": "S-1-12-1-1-2-3-4",
            "aadUserId": "22222222-2222-2222-2222-222222222222", "userPrincipalName": name,
        })
    });
    let files = alert.files.iter().map(|name| {
        json!({
            "entityType": "File", "sha1": null, "sha256": "0".repeat(64), "fileName": name, "filePath": "C:\\Temp",
            "processId": null, "deviceId": null,
        })
    });
    // The documents say MailBox; live responses say Mailbox.
    let mailboxes = alert.mailboxes.iter().map(|address| {
        json!({
            "entityType": "Mailbox", "verdict": "Suspicious", "remediationStatus": "None", "mailboxDisplayName": null,
            "mailboxAddress": address, "userPrincipalName": address,
        })
    });
    let samples = match alert.evidence {
        EvidenceSet::Ordinary => &[],
        EvidenceSet::AllTypes => EvidenceSamples::get().entities.as_slice(),
    };
    let entities: Vec<Value> = users.chain(files).chain(mailboxes).chain(samples.iter().cloned()).collect();
    let service = match alert.service_source.as_str() {
        "microsoftDefenderForCloudApps" => "MicrosoftCloudAppSecurity".to_owned(),
        other => pascal(other),
    };
    let mut value = json!({
        "alertId": alert.id, "providerAlertId": alert.id.trim_start_matches("da"), "incidentId": incident_id,
        "serviceSource": service, "creationTime": json_time(alert.created), "lastUpdatedTime": json_time(alert.last_update),
        "resolvedTime": alert.resolved.map(json_time), "firstActivity": json_time(alert.first_activity),
        "lastActivity": json_time(alert.last_activity), "title": alert.title, "description": alert.description,
        "category": alert.category, "status": pascal(&alert.status), "severity": severity(&alert.severity),
        "investigationId": null, "investigationState": pascal(&alert.investigation_state),
        "classification": alert.classification.as_deref().map(pascal),
        "determination": alert.determination.as_deref().map(determination),
        "detectionSource": pascal(&alert.detection_source), "detectorId": "da88ec89-31c5-4864-8609-dce36e65bbc4",
        "assignedTo": alert.assigned_to, "actorName": null, "threatFamilyName": null,
        "mitreTechniques": alert.mitre_techniques, "devices": devices, "entities": entities,
    });
    if !alert.categories.is_empty() {
        value["categories"] = json!(alert.categories);
    }
    value
}
