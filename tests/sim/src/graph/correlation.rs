//! `mergeIncidents` and `moveAlerts`: changes of what belongs to which incident.

use serde_json::{Map, Value, json};

use super::{bad_request, error, forbidden};
use crate::{
    caller::Caller,
    clock::truncate_to_100ns,
    http::{Request, Response},
    store::Comment,
    update::{PropertyChange, editor_name, nullable_property, parse_update, string_list, string_property},
    world::World,
};

const MANAGE: &[&str] = &["SecurityData.Manage.All"];

/// `microsoft.graph.security.correlationReason`, an enumeration of flags.
const REASONS: &[&str] = &[
    "repeatedAlertOccurrence",
    "sameGeography",
    "similarArtifacts",
    "sameTargetedAsset",
    "sameNetworkSegment",
    "eventSequence",
    "timeFrame",
    "sameThreatSource",
    "similarTTPsOrBehavior",
    "sameActor",
    "sameCampaign",
    "sharedIndicators",
    "sameAsset",
    "networkProximity",
    "eventCasualSequence",
    "temporalProximity",
    "lateralMovementPath",
    "unknownFutureValue",
];

/// `POST /security/incidents/mergeIncidents`. The documents do not say which incident stays: here it is the one that was
/// created first.
pub(super) fn merge_incidents(world: &mut World, request: &Request, caller: &Caller) -> Response {
    if !caller.has_any(MANAGE) {
        return forbidden(world, request, caller, MANAGE);
    }
    let parsed = parse_update(request, &["incidentIds", "incidentComment", "mergeReasons"]).and_then(|body| {
        let comment = comment_and_reasons(&body, "incidentComment", "mergeReasons")?;
        Ok((string_list(&body, "incidentIds")?.unwrap_or_default(), comment))
    });
    let (ids, comment) = match parsed {
        Ok(parsed) => parsed,
        Err(message) => return bad_request(world, request, &message),
    };
    let tenant = world.tenants.get(&caller.tenant_id);
    let incidents: Option<Vec<_>> = ids
        .iter()
        .map(|id| {
            let stored = tenant?.incidents.get(&id.parse().ok()?)?;
            Some((stored.incident.created, stored.incident.id)).filter(|_| stored.incident.status != "redirected")
        })
        .collect();
    let Some(mut incidents) = incidents else { return not_found(world, request) };
    incidents.sort_unstable();
    incidents.dedup();
    let [(_, target), merged @ ..] = incidents.as_slice() else { return two_are_needed(world, request) };
    if merged.is_empty() {
        return two_are_needed(world, request);
    }
    for (_, incident) in merged {
        world.merge(&caller.tenant_id, *incident, *target);
    }
    merge_response(world, caller, *target, comment)
}

/// `POST /security/alerts_v2/moveAlerts`. Without an incident the alerts get a new one.
pub(super) fn move_alerts(world: &mut World, request: &Request, caller: &Caller) -> Response {
    if !caller.has_any(MANAGE) {
        return forbidden(world, request, caller, MANAGE);
    }
    let parsed =
        parse_update(request, &["alertIds", "incidentId", "alertComment", "newCorrelationReasons"]).and_then(|body| {
            let comment = comment_and_reasons(&body, "alertComment", "newCorrelationReasons")?;
            let into = match nullable_property(&body, "incidentId")? {
                PropertyChange::Keep | PropertyChange::Clear => None,
                PropertyChange::Set(id) => Some(id.parse().map_err(|_| format!("Invalid incident '{id}'."))?),
            };
            Ok((string_list(&body, "alertIds")?.unwrap_or_default(), into, comment))
        });
    let (ids, into, comment) = match parsed {
        Ok(parsed) => parsed,
        Err(message) => return bad_request(world, request, &message),
    };
    if ids.is_empty() {
        return bad_request(world, request, "The property 'alertIds' is required.");
    }
    match world.move_alerts(&caller.tenant_id, &ids, into) {
        Some(target) => merge_response(world, caller, target, comment),
        None => not_found(world, request),
    }
}

/// The comment of a request, whose reasons are checked.
fn comment_and_reasons(body: &Map<String, Value>, comment: &str, reasons: &str) -> Result<Option<String>, String> {
    let sent = string_property(body, reasons, &[])?.unwrap_or_default();
    if let Some(unknown) = sent.split(',').map(str::trim).find(|word| !word.is_empty() && !REASONS.contains(word)) {
        return Err(format!("Invalid value '{unknown}' for '{reasons}'."));
    }
    string_property(body, comment, &[])
}

fn merge_response(world: &mut World, caller: &Caller, target: u64, comment: Option<String>) -> Response {
    let (created_by, now) = (editor_name(world, caller), world.now());
    if let (Some(comment), Some(tenant)) = (comment, world.tenants.get_mut(&caller.tenant_id)) {
        tenant.update(target, now, |incident| {
            incident.comments.push(Comment { comment, created_by, created: truncate_to_100ns(now) });
        });
    }
    let context = "https://graph.microsoft.com/v1.0/$metadata#microsoft.graph.security.mergeResponse";
    Response::json(200, &json!({"@odata.context": context, "targetIncidentId": target.to_string()}))
}

fn two_are_needed(world: &World, request: &Request) -> Response {
    bad_request(world, request, "At least two incidents are needed for a merge.")
}

fn not_found(world: &World, request: &Request) -> Response {
    error(world, request, 404, "NotFound", "An alert or incident was not found.")
}
