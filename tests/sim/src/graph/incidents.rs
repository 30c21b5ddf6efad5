//! `/security/incidents`: list, single read, update and comments.

use serde_json::json;

use super::{
    bad_request, error, forbidden,
    incident_json::{CONTEXT, IncidentView, comment_json},
};
use crate::{
    caller::Caller,
    clock::truncate_to_100ns,
    http::{Request, Response},
    list::{Alerts, ListQuery, QuerySyntax, collection, find_incident, select_page},
    odata::{Field, FieldType, FieldValue},
    store::{Comment, Incident},
    update::{editor_name, nullable_property, parse_update, set_if_some, string_list, string_property},
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

const QUERY_SYNTAX: QuerySyntax = QuerySyntax {
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

pub(super) fn respond(
    world: &mut World,
    request: &Request,
    caller: &Caller,
    method: &str,
    rest: &[&str],
    tweaks: &Tweaks,
) -> Response {
    let required_roles = if method == "GET" { READ } else { WRITE };
    if !caller.has_any(required_roles) {
        return forbidden(world, request, caller, required_roles);
    }
    if !world.tenants.get(&caller.tenant_id).is_some_and(|tenant| tenant.seed.defender_licensed) {
        return error(world, request, 403, "Forbidden", "The tenant is not provisioned for Microsoft Defender XDR.");
    }
    match (method, rest) {
        ("GET", []) => list(world, request, caller, tweaks),
        ("GET", [id]) => get_incident(world, request, caller, id, tweaks),
        ("PATCH", [id]) => update_incident(world, request, caller, id),
        ("POST", [id, "comments"]) => add_comment(world, request, caller, id),
        (_, [] | [_] | [_, "comments"]) => {
            error(world, request, 405, "UnknownError", "The requested resource does not support this http method.")
        }
        _ => error(world, request, 404, "ResourceNotFound", "Resource not found for the segment."),
    }
}

fn list(world: &mut World, request: &Request, caller: &Caller, tweaks: &Tweaks) -> Response {
    let behaviour = world.behaviour.graph;
    let list_query = match ListQuery::parse(&request.query, &QUERY_SYNTAX, &behaviour) {
        Ok(list_query) => list_query,
        Err(message) => return bad_request(world, request, &message),
    };
    let page = select_page(world, request, &caller.tenant_id, &list_query, field_value, tweaks);
    let view = IncidentView {
        now: world.now(),
        tenant_id: &caller.tenant_id,
        alerts: list_query.alerts,
        all_enum_members: wants_all_enum_members(request),
    };
    let context =
        if list_query.alerts == Alerts::Included { format!("{CONTEXT}(alerts())") } else { CONTEXT.to_owned() };
    collection(&context, &page, |incident| view.record(incident, None)).with("content-type", CONTENT_TYPE)
}

const CONTENT_TYPE: &str =
    "application/json;odata.metadata=minimal;odata.streaming=true;IEEE754Compatible=false;charset=utf-8";

fn get_incident(world: &World, request: &Request, caller: &Caller, id: &str, tweaks: &Tweaks) -> Response {
    let syntax = QuerySyntax { options: &["$expand"], fields: &[] };
    let list_query = match ListQuery::parse(&request.query, &syntax, &world.behaviour.graph) {
        Ok(list_query) => list_query,
        Err(message) => return bad_request(world, request, &message),
    };
    match find_incident(world, &caller.tenant_id, id, tweaks.versions_behind) {
        Some(incident) => incident_response(world, request, caller, &incident, list_query.alerts),
        None => not_found(world, request, id),
    }
}

fn not_found(world: &World, request: &Request, id: &str) -> Response {
    error(world, request, 404, "NotFound", &format!("Incident with id '{id}' was not found."))
}

fn incident_response(
    world: &World,
    request: &Request,
    caller: &Caller,
    incident: &Incident,
    alerts: Alerts,
) -> Response {
    let view = IncidentView {
        now: world.now(),
        tenant_id: &caller.tenant_id,
        alerts,
        all_enum_members: wants_all_enum_members(request),
    };
    let mut response = Response::new(200, CONTENT_TYPE, String::new());
    response.body = view.record(incident, Some(format!("{CONTEXT}/$entity")));
    response.incident_ids = vec![incident.id];
    response
}

fn update_incident(world: &mut World, request: &Request, caller: &Caller, id: &str) -> Response {
    let Some(incident) = find_incident(world, &caller.tenant_id, id, 0) else { return not_found(world, request, id) };
    if incident.status == "redirected" {
        return bad_request(world, request, "The incident was merged into another one and cannot be changed.");
    }
    let updated = apply_update(world, request, caller, incident.id);
    match updated {
        Ok(()) => match find_incident(world, &caller.tenant_id, id, 0) {
            Some(incident) => incident_response(world, request, caller, &incident, Alerts::Omitted),
            None => not_found(world, request, id),
        },
        Err(message) => bad_request(world, request, &message),
    }
}

fn apply_update(world: &mut World, request: &Request, caller: &Caller, id: u64) -> Result<(), String> {
    let body = parse_update(
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
    let status = string_property(&body, "status", &["active", "inProgress", "resolved", "redirected"])?;
    let severity = string_property(&body, "severity", &SEVERITY[..5])?;
    let classification = string_property(&body, "classification", &CLASSIFICATION[..4])?;
    let determination = string_property(&body, "determination", &DETERMINATION[..19])?;
    let display_name = string_property(&body, "displayName", &[])?;
    let assigned_to = nullable_property(&body, "assignedTo")?;
    let description = nullable_property(&body, "description")?;
    let resolving_comment = nullable_property(&body, "resolvingComment")?;
    let summary = nullable_property(&body, "summary")?;
    let custom_tags = string_list(&body, "customTags")?;
    let editor = editor_name(world, caller);
    let now = world.now();
    let Some(tenant) = world.tenants.get_mut(&caller.tenant_id) else { return Ok(()) };
    tenant.update(id, now, |incident| {
        set_if_some(&mut incident.status, status);
        set_if_some(&mut incident.severity, severity);
        set_if_some(&mut incident.classification, classification);
        set_if_some(&mut incident.determination, determination);
        set_if_some(&mut incident.display_name, display_name);
        assigned_to.empty_clears().apply(&mut incident.assigned_to);
        description.apply(&mut incident.description);
        resolving_comment.apply(&mut incident.resolving_comment);
        summary.apply(&mut incident.summary);
        set_if_some(&mut incident.custom_tags, custom_tags);
        incident.last_modified_by = Some(editor);
    });
    Ok(())
}

fn add_comment(world: &mut World, request: &Request, caller: &Caller, id: &str) -> Response {
    let Some(incident) = find_incident(world, &caller.tenant_id, id, 0) else { return not_found(world, request, id) };
    let text = parse_update(request, &["comment", "@odata.type"]).and_then(|body| {
        string_property(&body, "comment", &[])?
            .filter(|text| !text.is_empty())
            .ok_or_else(|| "The comment is empty.".to_owned())
    });
    let text = match text {
        Ok(text) => text,
        Err(message) => return bad_request(world, request, &message),
    };
    let (created_by, now) = (editor_name(world, caller), world.now());
    let mut comments = Vec::new();
    if let Some(tenant) = world.tenants.get_mut(&caller.tenant_id) {
        tenant.update(incident.id, now, |incident| {
            incident.comments.push(Comment { comment: text, created_by, created: truncate_to_100ns(now) });
            comments = incident.comments.iter().map(comment_json).collect();
        });
    }
    let context = format!("{CONTEXT}('{id}')/comments");
    Response::json(200, &json!({"@odata.context": context, "value": comments}))
}

fn field_value(incident: &Incident, field: &str) -> FieldValue {
    match field {
        "lastUpdateDateTime" => FieldValue::Time(incident.last_update),
        "createdDateTime" => FieldValue::Time(incident.created),
        "status" => FieldValue::Text(Some(incident.status.clone())),
        "severity" => FieldValue::Text(Some(incident.severity.clone())),
        "classification" => FieldValue::Text(Some(incident.classification.clone())),
        "determination" => FieldValue::Text(Some(incident.determination.clone())),
        _ => FieldValue::Text(incident.assigned_to.clone()),
    }
}

/// True if the caller accepts enumeration members newer than `unknownFutureValue`.
fn wants_all_enum_members(request: &Request) -> bool {
    request.header("prefer").is_some_and(|prefer| {
        prefer.split(',').any(|part| part.trim().eq_ignore_ascii_case("include-unknown-enum-members"))
    })
}
