//! `/security/incidents`: list, single read, update and comments.

use serde_json::json;

use super::{
    bad, error, forbidden,
    incident_json::{CONTEXT, IncidentView, comment_json},
};
use crate::{
    caller::Caller,
    clock::to_ticks,
    http::{Request, Response},
    list::{Dialect, collection, find, listing, page},
    odata::{Field, FieldType, Operand},
    store::{Comment, Incident},
    update::{choice, editor, nullable, patch, set, strings},
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

pub(super) fn respond(
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
    let view = IncidentView {
        now: world.now(),
        tenant_id: &caller.tenant_id,
        expand: listing.expand,
        all: all_members(request),
    };
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
    let view = IncidentView { now: world.now(), tenant_id: &caller.tenant_id, expand, all: all_members(request) };
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
            incident.comments.push(Comment { comment: text, created_by, created: to_ticks(now) });
            comments = incident.comments.iter().map(comment_json).collect();
        });
    }
    let context = format!("{CONTEXT}('{id}')/comments");
    Response::json(200, &json!({"@odata.context": context, "value": comments}))
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
