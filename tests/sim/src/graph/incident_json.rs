//! Incidents and alerts as Graph writes them.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::{
    http::BodyPart,
    list::{Alerts, json_time, record_parts},
    store::{Alert, Comment, EvidenceSamples, EvidenceSet, Incident},
};

pub(super) const CONTEXT: &str = "https://graph.microsoft.com/v1.0/$metadata#security/incidents";

/// The options that decide a caller's view of incidents.
pub(super) struct IncidentView<'a> {
    pub(super) now: Timestamp,
    pub(super) tenant_id: &'a str,
    pub(super) alerts: Alerts,
    /// Members of enumerations that are newer than `unknownFutureValue` are shown, not replaced.
    pub(super) all_enum_members: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct IncidentBody<'a> {
    #[serde(rename = "@odata.context", skip_serializing_if = "Option::is_none")]
    context: Option<String>,
    id: String,
    tenant_id: &'a str,
    status: &'a str,
    incident_web_url: String,
    redirect_incident_id: Option<String>,
    display_name: &'a str,
    created_date_time: Value,
    last_update_date_time: Value,
    assigned_to: Option<&'a str>,
    classification: &'a str,
    determination: &'a str,
    severity: &'a str,
    custom_tags: &'a [String],
    system_tags: &'a [String],
    description: Option<&'a str>,
    last_modified_by: Option<&'a str>,
    resolving_comment: Option<&'a str>,
    summary: Option<&'a str>,
    priority_score: Option<u8>,
    comments: Vec<Value>,
    #[serde(flatten)]
    extra: &'a Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    alerts: Option<Vec<Value>>,
}

impl IncidentView<'_> {
    pub(super) fn record(&self, incident: &Incident, context: Option<String>) -> Vec<BodyPart> {
        let expanded = self.alerts == Alerts::Included;
        let shows_alerts = incident.shows_alerts(self.now);
        let alerts = if shows_alerts { incident.alerts.as_slice() } else { &[] };
        let body = IncidentBody {
            context,
            id: incident.id.to_string(),
            tenant_id: self.tenant_id,
            status: self.member(&incident.status, &["awaitingAction"]),
            incident_web_url: incident_web_url(self.tenant_id, incident.id),
            redirect_incident_id: incident.redirect_incident_id.map(|id| id.to_string()),
            display_name: &incident.display_name,
            created_date_time: json_time(incident.created),
            last_update_date_time: json_time(incident.last_update),
            assigned_to: incident.assigned_to.as_deref(),
            classification: &incident.classification,
            determination: &incident.determination,
            severity: &incident.severity,
            custom_tags: &incident.custom_tags,
            system_tags: &incident.system_tags,
            description: incident.description.as_deref(),
            last_modified_by: incident.last_modified_by.as_deref(),
            resolving_comment: incident.resolving_comment.as_deref(),
            summary: incident.summary.as_deref(),
            priority_score: incident.priority_score,
            comments: incident.comments.iter().map(comment_json).collect(),
            extra: &incident.extra,
            alerts: expanded.then(|| alerts.iter().map(|alert| self.alert(alert, incident.id)).collect()),
        };
        let text = serde_json::to_string(&body).unwrap_or_default();
        record_parts(text, incident, incident.giant.filter(|_| expanded && shows_alerts), generated_alert)
    }

    /// A member of an enumeration, or `unknownFutureValue` if it is newer than the caller accepts.
    fn member<'v>(&self, value: &'v str, newer: &[&str]) -> &'v str {
        if !self.all_enum_members && newer.contains(&value) { "unknownFutureValue" } else { value }
    }

    fn alert(&self, alert: &Alert, incident_id: u64) -> Value {
        let mut value = alert_json(alert, incident_id, self.tenant_id);
        let newer = ["microsoftDefenderForCloud", "microsoftSentinel"];
        value["serviceSource"] = json!(self.member(&alert.service_source, &newer));
        value["detectionSource"] = json!(self.member(&alert.detection_source, &newer));
        value
    }
}

fn generated_alert(alert: &Alert, incident_id: u64) -> Value {
    alert_json(alert, incident_id, "")
}

fn incident_web_url(tenant_id: &str, id: u64) -> String {
    format!("https://security.microsoft.com/incident2/{id}/overview?tid={tenant_id}")
}

fn alert_json(alert: &Alert, incident_id: u64, tenant_id: &str) -> Value {
    let common = |kind: &str| {
        json!({
            "@odata.type": format!("#microsoft.graph.security.{kind}"), "createdDateTime": json_time(alert.created),
            "verdict": "suspicious", "remediationStatus": "none", "remediationStatusDetails": null, "roles": [],
            "detailedRoles": [], "tags": [],
        })
    };
    let with = |mut base: Value, more: Value| {
        if let (Value::Object(base), Value::Object(more)) = (&mut base, more) {
            base.extend(more);
        }
        base
    };
    let devices = alert.devices.iter().map(|name| {
        with(common("deviceEvidence"), json!({
            "firstSeenDateTime": json_time(alert.first_activity), "mdeDeviceId": "335b3ef544f5d3690b6c75c776dc3e52bb3485c4",
            "azureAdDeviceId": null, "deviceDnsName": name, "hostName": name.split('.').next(), "ntDomain": null,
            "dnsDomain": name.split_once('.').map(|(_, domain)| domain), "osPlatform": "Windows11", "osBuild": 26200,
            "version": "25H2", "healthStatus": "active", "riskScore": "high", "rbacGroupId": 125,
            "rbacGroupName": "Clients", "onboardingStatus": "onboarded", "defenderAvStatus": "updated",
            "lastIpAddress": "172.19.50.102", "lastExternalIpAddress": "203.0.113.7",
            "ipInterfaces": ["172.19.50.102", "::1"], "vmMetadata": null, "loggedOnUsers": [],
            "resourceAccessEvents": [],
        }))
    });
    let users = alert.users.iter().map(|name| {
        let (account, domain) = name.split_once('@').unwrap_or((name, ""));
        with(
            common("userEvidence"),
            json!({"stream": null, "userAccount": {
                "accountName": account, "domainName": domain, "userSid": "S-1-12-1-1-2-3-4",
                "azureAdUserId": "22222222-2222-2222-2222-222222222222", "userPrincipalName": name, "displayName": null,
                "activeDirectoryObjectGuid": null,
            }}),
        )
    });
    let files = alert.files.iter().map(|name| {
        with(
            common("fileEvidence"),
            json!({
                "detectionStatus": "detected", "mdeDeviceId": null,
                "fileDetails": {"sha1": null, "sha256": "0".repeat(64), "fileName": name, "filePath": "C:\\Temp",
                    "fileSize": 1024, "filePublisher": null, "signer": null, "issuer": null},
            }),
        )
    });
    let mailboxes = alert.mailboxes.iter().map(|address| {
        with(common("mailboxEvidence"), json!({"primaryAddress": address, "displayName": null, "upn": address}))
    });
    let samples = match alert.evidence {
        EvidenceSet::Ordinary => &[],
        EvidenceSet::AllTypes => EvidenceSamples::get().evidence.as_slice(),
    };
    let samples = samples.iter().map(|sample| with(common(""), sample.clone()));
    let evidence: Vec<Value> = devices.chain(users).chain(files).chain(mailboxes).chain(samples).collect();
    let mut value = json!({
        "id": alert.id, "providerAlertId": alert.id.trim_start_matches("da"), "incidentId": incident_id.to_string(),
        "status": alert.status, "severity": alert.severity, "classification": alert.classification,
        "determination": alert.determination, "serviceSource": alert.service_source,
        "detectionSource": alert.detection_source, "productName": "Microsoft Defender for Endpoint",
        "detectorId": "da88ec89-31c5-4864-8609-dce36e65bbc4", "tenantId": tenant_id, "title": alert.title,
        "description": alert.description, "recommendedActions": "", "category": alert.category,
        "assignedTo": alert.assigned_to, "alertWebUrl": format!("https://security.microsoft.com/alerts/{}?tid={tenant_id}", alert.id),
        "incidentWebUrl": incident_web_url(tenant_id, incident_id), "actorDisplayName": null, "threatDisplayName": null,
        "threatFamilyName": null, "mitreTechniques": alert.mitre_techniques, "createdDateTime": json_time(alert.created),
        "lastUpdateDateTime": json_time(alert.last_update), "resolvedDateTime": alert.resolved.map(json_time),
        "firstActivityDateTime": json_time(alert.first_activity), "lastActivityDateTime": json_time(alert.last_activity),
        "systemTags": [], "alertPolicyId": null, "investigationState": alert.investigation_state, "comments": [],
        "customDetails": {}, "additionalData": null, "evidence": evidence,
    });
    if !alert.categories.is_empty() {
        value["categories"] = json!(alert.categories);
    }
    value
}

pub(super) fn comment_json(comment: &Comment) -> Value {
    json!({
        "comment": comment.comment,
        "createdByDisplayName": comment.created_by,
        "createdDateTime": json_time(comment.created),
    })
}
