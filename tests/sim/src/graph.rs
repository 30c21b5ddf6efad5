//! Microsoft Graph v1.0: `/security/incidents`.

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::{
    applications,
    clock::{guid, http_date},
    faults::{Host, RetryAfter},
    http::{BodyPart, Request, Response},
    hunting,
    incidents::{
        Caller, Dialect, caller, choice, collection, find, listing, nullable, page, patch, record, strings, time,
    },
    odata::{Field, FieldType, Operand},
    store::{Alert, Comment, Incident, Resource},
    world::{Tweaks, World},
};

const STATUS: &[&str] = &["active", "resolved", "inProgress", "redirected", "awaitingAction", "unknownFutureValue"];
const SEVERITY: &[&str] = &["unknown", "informational", "low", "medium", "high", "unknownFutureValue"];
const CLASSIFICATION: &[&str] =
    &["unknown", "falsePositive", "truePositive", "informationalExpectedActivity", "unknownFutureValue"];
const DETERMINATION: &[&str] = &[
    "unknown",
    "apt",
    "malware",
    "securityPersonnel",
    "securityTesting",
    "unwantedSoftware",
    "other",
    "multiStagedAttack",
    "compromisedUser",
    "compromisedAccount",
    "phishing",
    "maliciousUserActivity",
    "clean",
    "notMalicious",
    "insufficientData",
    "notEnoughDataToValidate",
    "confirmedActivity",
    "confirmedUserActivity",
    "lineOfBusinessApplication",
    "unknownFutureValue",
];

const DIALECT: Dialect = Dialect {
    options: &["$filter", "$top", "$skip", "$expand", "$count"],
    fields: &[
        Field { name: "lastUpdateDateTime", kind: FieldType::Time },
        Field { name: "createdDateTime", kind: FieldType::Time },
        Field { name: "status", kind: FieldType::Enumeration(STATUS) },
        Field { name: "severity", kind: FieldType::Enumeration(SEVERITY) },
        Field { name: "classification", kind: FieldType::Enumeration(CLASSIFICATION) },
        Field { name: "determination", kind: FieldType::Enumeration(DETERMINATION) },
        Field { name: "assignedTo", kind: FieldType::Text },
    ],
};

const READ: &[&str] = &["SecurityIncident.Read.All", "SecurityIncident.ReadWrite.All"];
const WRITE: &[&str] = &["SecurityIncident.ReadWrite.All"];
const CONTEXT: &str = "https://graph.microsoft.com/v1.0/$metadata#security/incidents";

/// Graph's error body.
pub(crate) fn error(world: &World, request: &Request, status: u16, code: &str, message: &str) -> Response {
    let id = guid();
    let client_id = request.header("client-request-id").map_or_else(|| id.clone(), str::to_owned);
    let body = json!({"error": {"code": code, "message": message, "innerError": {
        "date": world.now().strftime("%Y-%m-%dT%H:%M:%S").to_string(),
        "request-id": id,
        "client-request-id": client_id,
    }}});
    let response = Response::json(status, &body);
    match status {
        401 => response.with(
            "www-authenticate",
            "Bearer realm=\"\", authorization_uri=\"https://login.microsoftonline.com/common/oauth2/authorize\", \
             client_id=\"00000003-0000-0000-c000-000000000000\"",
        ),
        _ => response,
    }
}

pub(crate) fn bad(world: &World, request: &Request, message: &str) -> Response {
    error(world, request, 400, "BadRequest", message)
}

pub(crate) fn forbidden(world: &World, request: &Request, caller: &Caller, wanted: &[&str]) -> Response {
    let message = format!(
        "Missing application roles. API application roles({}), application roles({}).",
        wanted.join(","),
        caller.roles.join(",")
    );
    error(world, request, 403, "Forbidden", &message)
}

/// 429, with the wait said in one of four ways.
pub(crate) fn throttled(world: &World, request: &Request, retry_after: RetryAfter) -> Response {
    let message = match retry_after {
        RetryAfter::Body(seconds) => format!("Too many requests. Please retry after {seconds} seconds."),
        _ => "Too Many Requests".to_owned(),
    };
    retry_header(error(world, request, 429, "TooManyRequests", &message), world, retry_after)
}

/// Sets `Retry-After` where it goes into a header.
pub(crate) fn retry_header(response: Response, world: &World, retry_after: RetryAfter) -> Response {
    match retry_after {
        RetryAfter::Seconds(seconds) => response.with("retry-after", &seconds.to_string()),
        RetryAfter::Date(seconds) => {
            let wait = jiff::SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(0));
            let at = world.now().checked_add(wait).unwrap_or_else(|_| world.now());
            response.with("retry-after", &http_date(at))
        }
        RetryAfter::Body(_) | RetryAfter::Absent => response,
    }
}

/// Answers a request.
pub(crate) fn respond(world: &mut World, request: &Request, tweaks: &Tweaks) -> Response {
    let caller = match caller(world, request, Resource::Graph) {
        Ok(caller) => caller,
        Err(message) => return error(world, request, 401, "InvalidAuthenticationToken", message),
    };
    if let Some(retry_after) = world.throttle(Host::Graph, &caller.tenant_id) {
        return throttled(world, request, retry_after);
    }
    let response = match (request.method.as_str(), request.segments().as_slice()) {
        (_, ["v1.0", "security", "runHuntingQuery"]) => hunting::respond(world, request, &caller),
        (method, ["v1.0", "security", "incidents", rest @ ..]) => {
            incidents(world, request, &caller, method, rest, tweaks)
        }
        (_, ["v1.0", first, rest @ ..]) => applications::respond(world, request, &caller, first, rest),
        _ => error(world, request, 404, "ResourceNotFound", "Resource not found for the segment."),
    };
    response.with("request-id", &guid()).with("odata-version", "4.0")
}

fn incidents(
    world: &mut World,
    request: &Request,
    caller: &Caller,
    method: &str,
    rest: &[&str],
    tweaks: &Tweaks,
) -> Response {
    let wanted = if method == "GET" { READ } else { WRITE };
    if !caller.has_any(wanted) {
        return forbidden(world, request, caller, wanted);
    }
    if !world.tenants.get(&caller.tenant_id).is_some_and(|tenant| tenant.seed.defender_licensed) {
        return error(world, request, 403, "Forbidden", "The tenant is not provisioned for Microsoft Defender XDR.");
    }
    match (method, rest) {
        ("GET", []) => list(world, request, caller, tweaks),
        ("GET", [id]) => single(world, request, caller, id, tweaks),
        ("PATCH", [id]) => update(world, request, caller, id),
        ("POST", [id, "comments"]) => comment(world, request, caller, id),
        (_, [] | [_] | [_, "comments"]) => {
            error(world, request, 405, "UnknownError", "The requested resource does not support this http method.")
        }
        _ => error(world, request, 404, "ResourceNotFound", "Resource not found for the segment."),
    }
}

fn list(world: &mut World, request: &Request, caller: &Caller, tweaks: &Tweaks) -> Response {
    let behaviour = world.behaviour.graph;
    let listing = match listing(&request.query, &DIALECT, &behaviour) {
        Ok(listing) => listing,
        Err(message) => return bad(world, request, &message),
    };
    let page = page(world, request, &caller.tenant_id, &listing, operand, tweaks);
    let view =
        View { now: world.now(), tenant_id: &caller.tenant_id, expand: listing.expand, all: all_members(request) };
    let context = if listing.expand { format!("{CONTEXT}(alerts())") } else { CONTEXT.to_owned() };
    collection(&context, &page, listing.count, behaviour.next_link_first, |incident| view.record(incident, None))
        .with("content-type", CONTENT_TYPE)
}

const CONTENT_TYPE: &str =
    "application/json;odata.metadata=minimal;odata.streaming=true;IEEE754Compatible=false;charset=utf-8";

fn single(world: &World, request: &Request, caller: &Caller, id: &str, tweaks: &Tweaks) -> Response {
    let dialect = Dialect { options: &["$expand"], fields: &[] };
    let listing = match listing(&request.query, &dialect, &world.behaviour.graph) {
        Ok(listing) => listing,
        Err(message) => return bad(world, request, &message),
    };
    match find(world, &caller.tenant_id, id, tweaks.stale) {
        Some(incident) => entity(world, request, caller, &incident, listing.expand),
        None => not_found(world, request, id),
    }
}

fn not_found(world: &World, request: &Request, id: &str) -> Response {
    error(world, request, 404, "NotFound", &format!("Incident with id '{id}' was not found."))
}

fn entity(world: &World, request: &Request, caller: &Caller, incident: &Incident, expand: bool) -> Response {
    let view = View { now: world.now(), tenant_id: &caller.tenant_id, expand, all: all_members(request) };
    let mut response = Response::new(200, CONTENT_TYPE, String::new());
    response.body = view.record(incident, Some(format!("{CONTEXT}/$entity")));
    response.incidents = vec![incident.id];
    response
}

fn update(world: &mut World, request: &Request, caller: &Caller, id: &str) -> Response {
    let Some(incident) = find(world, &caller.tenant_id, id, 0) else { return not_found(world, request, id) };
    if incident.status == "redirected" {
        return bad(world, request, "The incident was merged into another one and cannot be changed.");
    }
    let changed = changes(request, incident.id, world, caller);
    match changed {
        Ok(()) => match find(world, &caller.tenant_id, id, 0) {
            Some(incident) => entity(world, request, caller, &incident, false),
            None => not_found(world, request, id),
        },
        Err(message) => bad(world, request, &message),
    }
}

fn changes(request: &Request, id: u64, world: &mut World, caller: &Caller) -> Result<(), String> {
    let body = patch(
        request,
        &[
            "assignedTo",
            "classification",
            "customTags",
            "description",
            "determination",
            "displayName",
            "severity",
            "resolvingComment",
            "status",
            "summary",
            "@odata.type",
        ],
    )?;
    let status = choice(&body, "status", &["active", "inProgress", "resolved", "redirected"])?;
    let severity = choice(&body, "severity", &SEVERITY[..5])?;
    let classification = choice(&body, "classification", &CLASSIFICATION[..4])?;
    let determination = choice(&body, "determination", &DETERMINATION[..19])?;
    let display_name = choice(&body, "displayName", &[])?;
    let assigned_to = nullable(&body, "assignedTo")?;
    let description = nullable(&body, "description")?;
    let resolving_comment = nullable(&body, "resolvingComment")?;
    let summary = nullable(&body, "summary")?;
    let custom_tags = strings(&body, "customTags")?;
    let editor = editor(world, caller);
    let now = world.now();
    let Some(tenant) = world.tenants.get_mut(&caller.tenant_id) else { return Ok(()) };
    tenant.touch(id, now, |incident| {
        set(&mut incident.status, status);
        set(&mut incident.severity, severity);
        set(&mut incident.classification, classification);
        set(&mut incident.determination, determination);
        set(&mut incident.display_name, display_name);
        assigned_to.or_clear().apply(&mut incident.assigned_to);
        description.apply(&mut incident.description);
        resolving_comment.apply(&mut incident.resolving_comment);
        summary.apply(&mut incident.summary);
        set(&mut incident.custom_tags, custom_tags);
        incident.last_modified_by = Some(editor);
    });
    Ok(())
}

/// Sets a field if there is something to set it to.
pub(crate) fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

/// How an app signs its changes.
pub(crate) fn editor(world: &World, caller: &Caller) -> String {
    let name = world.apps.get(&caller.client_id).map_or(caller.client_id.as_str(), |record| &record.app.display_name);
    format!("API-App:{name}")
}

fn comment(world: &mut World, request: &Request, caller: &Caller, id: &str) -> Response {
    let Some(incident) = find(world, &caller.tenant_id, id, 0) else { return not_found(world, request, id) };
    let text = patch(request, &["comment", "@odata.type"]).and_then(|body| {
        choice(&body, "comment", &[])?.filter(|text| !text.is_empty()).ok_or_else(|| "The comment is empty.".to_owned())
    });
    let text = match text {
        Ok(text) => text,
        Err(message) => return bad(world, request, &message),
    };
    let (created_by, now) = (editor(world, caller), world.now());
    let mut comments = Vec::new();
    if let Some(tenant) = world.tenants.get_mut(&caller.tenant_id) {
        tenant.touch(incident.id, now, |incident| {
            incident.comments.push(Comment { comment: text, created_by, created: crate::clock::to_ticks(now) });
            comments = incident.comments.iter().map(comment_json).collect();
        });
    }
    let context = format!("{CONTEXT}('{id}')/comments");
    Response::json(200, &json!({"@odata.context": context, "value": comments}))
}

fn comment_json(comment: &Comment) -> Value {
    json!({
        "comment": comment.comment,
        "createdByDisplayName": comment.created_by,
        "createdDateTime": time(comment.created),
    })
}

fn operand(incident: &Incident, field: &str) -> Operand {
    match field {
        "lastUpdateDateTime" => Operand::Time(incident.last_update),
        "createdDateTime" => Operand::Time(incident.created),
        "status" => Operand::Text(Some(incident.status.clone())),
        "severity" => Operand::Text(Some(incident.severity.clone())),
        "classification" => Operand::Text(Some(incident.classification.clone())),
        "determination" => Operand::Text(Some(incident.determination.clone())),
        _ => Operand::Text(incident.assigned_to.clone()),
    }
}

/// Whether the caller understands enumeration members newer than `unknownFutureValue`.
fn all_members(request: &Request) -> bool {
    request.header("prefer").is_some_and(|prefer| {
        prefer.split(',').any(|part| part.trim().eq_ignore_ascii_case("include-unknown-enum-members"))
    })
}

/// How a caller sees incidents.
struct View<'a> {
    now: jiff::Timestamp,
    tenant_id: &'a str,
    expand: bool,
    all: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Wire<'a> {
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

impl View<'_> {
    fn record(&self, incident: &Incident, context: Option<String>) -> Vec<BodyPart> {
        let shows = incident.shows_alerts(self.now);
        let alerts = if shows { incident.alerts.as_slice() } else { &[] };
        let wire = Wire {
            context,
            id: incident.id.to_string(),
            tenant_id: self.tenant_id,
            status: self.member(&incident.status, &["awaitingAction"]),
            incident_web_url: web_url(self.tenant_id, incident.id),
            redirect_incident_id: incident.redirect_incident_id.map(|id| id.to_string()),
            display_name: &incident.display_name,
            created_date_time: time(incident.created),
            last_update_date_time: time(incident.last_update),
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
            alerts: self.expand.then(|| alerts.iter().map(|alert| self.alert(alert, incident.id)).collect()),
        };
        let text = serde_json::to_string(&wire).unwrap_or_default();
        record(text, incident, generated_alert, self.expand && shows)
    }

    /// A newer member of an enumeration, if the caller asked for those.
    fn member<'v>(&self, value: &'v str, newer: &[&str]) -> &'v str {
        if !self.all && newer.contains(&value) { "unknownFutureValue" } else { value }
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

fn web_url(tenant_id: &str, id: u64) -> String {
    format!("https://security.microsoft.com/incident2/{id}/overview?tid={tenant_id}")
}

fn alert_json(alert: &Alert, incident_id: u64, tenant_id: &str) -> Value {
    let common = |kind: &str| {
        json!({
            "@odata.type": format!("#microsoft.graph.security.{kind}"), "createdDateTime": time(alert.created),
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
            "firstSeenDateTime": time(alert.first_activity), "mdeDeviceId": "335b3ef544f5d3690b6c75c776dc3e52bb3485c4",
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
    let evidence: Vec<Value> = devices.chain(users).chain(files).chain(mailboxes).collect();
    json!({
        "id": alert.id, "providerAlertId": alert.id.trim_start_matches("da"), "incidentId": incident_id.to_string(),
        "status": alert.status, "severity": alert.severity, "classification": alert.classification,
        "determination": alert.determination, "serviceSource": alert.service_source,
        "detectionSource": alert.detection_source, "productName": "Microsoft Defender for Endpoint",
        "detectorId": "da88ec89-31c5-4864-8609-dce36e65bbc4", "tenantId": tenant_id, "title": alert.title,
        "description": alert.description, "recommendedActions": "", "category": alert.category,
        "assignedTo": alert.assigned_to, "alertWebUrl": format!("https://security.microsoft.com/alerts/{}?tid={tenant_id}", alert.id),
        "incidentWebUrl": web_url(tenant_id, incident_id), "actorDisplayName": null, "threatDisplayName": null,
        "threatFamilyName": null, "mitreTechniques": alert.mitre_techniques, "createdDateTime": time(alert.created),
        "lastUpdateDateTime": time(alert.last_update), "resolvedDateTime": alert.resolved.map(time),
        "firstActivityDateTime": time(alert.first_activity), "lastActivityDateTime": time(alert.last_activity),
        "systemTags": [], "alertPolicyId": null, "investigationState": alert.investigation_state, "comments": [],
        "customDetails": {}, "additionalData": null, "evidence": evidence,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::{
        HuntingTable, IncidentSeed, NextLink, Resource, SimOptions,
        testing::{CLIENT, CONTOSO, rig},
    };

    const LIST: &str = "/v1.0/security/incidents";

    #[tokio::test]
    async fn pages_are_newest_first_and_linked() {
        let rig = rig().await;
        rig.incidents(120);
        for link in [NextLink::Skip, NextLink::Skiptoken] {
            rig.sim.configure(|behaviour| behaviour.graph.next_link = link);
            let mut path = format!("{LIST}?$top=50&$expand=alerts&$filter=createdDateTime+gt+2000-01-01T00:00:00Z");
            let mut seen = Vec::new();
            loop {
                let page = rig.get(&path).await;
                seen.extend(page.ids());
                let body = page.json();
                assert!(body["value"][0]["alerts"].is_array());
                let Some(next) = body["@odata.nextLink"].as_str() else { break };
                path = next.strip_prefix(rig.sim.graph_url()).unwrap().to_owned();
            }
            assert_eq!(seen, (1..=120).rev().collect::<Vec<u64>>());
        }
    }

    #[tokio::test]
    async fn what_is_not_documented_is_a_400() {
        let rig = rig().await;
        for query in [
            "$top=51",
            "$top=0",
            "$top=x",
            "$skip=501",
            "$orderby=lastUpdateDateTime%20asc",
            "$select=id",
            "$expand=comments",
            "$filter=displayName%20eq%20'x'",
            "$filter=lastUpdateDateTime%20ge%202026-11-22T00:00:00+00:00",
            "$top=1&$top=1",
            "colour=blue",
            "$filter=%zz",
        ] {
            let response = rig.get(&format!("{LIST}?{query}")).await;
            assert_eq!(
                (response.status, response.json()["error"]["code"].as_str()),
                (400, Some("BadRequest")),
                "{query}"
            );
        }
    }

    #[tokio::test]
    async fn alerts_only_when_expanded_and_unknown_members_only_when_preferred() {
        let rig = rig().await;
        let seed = IncidentSeed { status: "awaitingAction".into(), ..IncidentSeed::default() };
        let id = rig.sim.put_incident(CONTOSO, seed);
        let plain = rig.get(&format!("{LIST}/{id}")).await.json();
        assert_eq!((plain.get("alerts"), &plain["status"]), (None, &json!("unknownFutureValue")));
        let full = rig.get(&format!("{LIST}/{id}?$expand=alerts")).await.json();
        assert_eq!(full["alerts"][0]["evidence"][0]["@odata.type"], "#microsoft.graph.security.deviceEvidence");
        let token = rig.sim.issue_token(CONTOSO, CLIENT, &["SecurityIncident.Read.All"], Resource::Graph);
        let request = rig.http.get(format!("{}{LIST}?$count=true", rig.sim.graph_url())).bearer_auth(token);
        let preferred = rig.send(request.header("prefer", "include-unknown-enum-members")).await.json();
        assert_eq!(
            (&preferred["@odata.count"], &preferred["value"][0]["status"]),
            (&json!(1), &json!("awaitingAction"))
        );
    }

    #[tokio::test]
    async fn who_may_not_is_told_so() {
        let rig = rig().await;
        let url = format!("{}{LIST}", rig.sim.graph_url());
        let none = rig.send(rig.http.get(&url)).await;
        assert_eq!((none.status, none.json()["error"]["code"].as_str()), (401, Some("InvalidAuthenticationToken")));
        let try_token = async |token: String| rig.send(rig.http.get(&url).bearer_auth(token)).await.status;
        let roles = &["SecurityIncident.Read.All"];
        assert_eq!(try_token(rig.sim.issue_token(CONTOSO, CLIENT, &[], Resource::Graph)).await, 403);
        assert_eq!(try_token(rig.sim.issue_token(CONTOSO, CLIENT, roles, Resource::Defender)).await, 401);
        assert_eq!(try_token(rig.sim.issue_token(CONTOSO, CLIENT, roles, Resource::Graph)).await, 200);
        let stranger = crate::Sim::start(SimOptions::default()).await.unwrap();
        stranger.roll_keys(true).unwrap();
        assert_eq!(try_token(stranger.issue_token(CONTOSO, CLIENT, roles, Resource::Graph)).await, 401);
        let old = rig.sim.issue_token(CONTOSO, CLIENT, roles, Resource::Graph);
        rig.sim.clock().advance(jiff::SignedDuration::from_hours(1));
        assert_eq!(try_token(old).await, 401);
    }

    #[tokio::test]
    async fn changes_are_documented_fields_in_documented_values() {
        let rig = rig().await;
        rig.incidents(1);
        let path = format!("{LIST}/1");
        let before = rig.get(&path).await.json();
        for bad in [json!({}), json!({"status": "Active"}), json!({"tags": []}), json!({"customTags": [1]}), json!([])]
        {
            assert_eq!(rig.call("PATCH", &path, Some(bad.clone())).await.status, 400, "{bad}");
        }
        let change =
            json!({"status": "resolved", "assignedTo": "a@b", "classification": "truePositive", "customTags": ["x"]});
        let after = rig.call("PATCH", &path, Some(change)).await.json();
        assert_eq!((&after["status"], &after["customTags"]), (&json!("resolved"), &json!(["x"])));
        assert_ne!(after["lastUpdateDateTime"], before["lastUpdateDateTime"]);
        assert_eq!(rig.call("PATCH", &path, Some(json!({"assignedTo": null}))).await.json()["assignedTo"], Value::Null);
        let comment = rig.call("POST", &format!("{path}/comments"), Some(json!({"comment": "hello"}))).await;
        assert_eq!(comment.json()["value"][0]["comment"], "hello");
        assert_eq!(rig.get("/api/incidents/1").await.json()["comments"][0]["comment"], "hello");
        assert_eq!(rig.call("PATCH", &format!("{LIST}/99"), Some(json!({"status": "resolved"}))).await.status, 404);
    }

    #[tokio::test]
    async fn hunting_answers_in_lower_case() {
        let rig = rig().await;
        rig.sim.put_hunting_table(
            CONTOSO,
            HuntingTable {
                name: "DeviceInfo".into(),
                columns: vec![("DeviceName".into(), "String".into())],
                rows: vec![json!({"DeviceName": "a"}).as_object().unwrap().clone()],
            },
        );
        let run = async |body: Value| rig.call("POST", "/v1.0/security/runHuntingQuery", Some(body)).await;
        let body = run(json!({"Query": "DeviceInfo | take 5", "Timespan": "P7D"})).await.json();
        assert_eq!(body["results"], json!([{"DeviceName": "a"}]));
        assert_eq!(body["schema"], json!([{"name": "DeviceName", "type": "String"}]));
        assert_eq!(run(json!({"Query": "Nothing"})).await.status, 400);
        assert_eq!(run(json!({"Query": "DeviceInfo", "Top": 1})).await.status, 400);
    }
}
