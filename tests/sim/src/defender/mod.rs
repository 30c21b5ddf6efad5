//! The Defender XDR API: `/api/incidents` and `/api/advancedhunting/run`.

mod incident_json;

use serde_json::{Value, json};

use crate::{
    caller::Caller,
    clock::{guid, truncate_to_100ns},
    faults::{Host, RetryAfter},
    graph::{hunting::run_query, quota_exceeded, retry_header},
    http::{Request, Response},
    list::{ListQuery, QuerySyntax, collection, find_incident, select_page},
    odata::{Field, FieldType, FieldValue},
    store::{Comment, HuntingColumn, Incident, Resource},
    update::{editor_name, nullable_property, parse_update, set_if_some, string_list, string_property},
    world::{Tweaks, World},
};
use incident_json::{camel, determination_to_graph, incident_json, pascal};

const QUERY_SYNTAX: QuerySyntax = QuerySyntax {
    options: &["$filter", "$top", "$skip"],
    fields: &[
        Field { name: "lastUpdateTime", kind: FieldType::Time },
        Field { name: "createdTime", kind: FieldType::Time },
        Field {
            name: "status",
            kind: FieldType::Enumeration(&["Active", "InProgress", "Resolved", "Redirected", "AwaitingAction"]),
        },
        Field { name: "assignedTo", kind: FieldType::Text },
    ],
};

const READ: &[&str] = &["Incident.Read.All", "Incident.ReadWrite.All"];
const WRITE: &[&str] = &["Incident.ReadWrite.All"];
const HUNT: &[&str] = &["AdvancedHunting.Read.All"];
const CONTEXT: &str = "https://api.security.microsoft.com/api/$metadata#Incidents";

/// A response with Defender's error body.
pub(crate) fn error(status: u16, code: &str, message: &str) -> Response {
    let response = Response::json(status, &json!({"error": {"code": code, "message": message, "target": guid()}}));
    if status == 401 { response.with("www-authenticate", "Bearer error=\"invalid_token\"") } else { response }
}

/// A 429 with the wait in one of five forms.
pub(crate) fn throttled(world: &World, retry_after: RetryAfter) -> Response {
    let message = match retry_after {
        RetryAfter::Quota { calls, seconds } => return quota_exceeded(calls, seconds),
        RetryAfter::Body(seconds) => format!(
            "You have sent too many requests in a given amount of time. Quota will be reset in {seconds} seconds. Please retry after {seconds} seconds."
        ),
        _ => "You have sent too many requests in a given amount of time.".to_owned(),
    };
    retry_header(error(429, "TooManyRequests", &message), world, retry_after)
}

/// Handles a request to Defender: token, then throttling, role and licence, then routes.
pub(crate) fn respond(world: &mut World, request: &Request, tweaks: &Tweaks) -> Response {
    let caller = match Caller::authenticate(world, request, Resource::Defender) {
        Ok(caller) => caller,
        Err(message) => return error(401, "Unauthorized", message),
    };
    if let Some(retry_after) = world.throttle(Host::Defender, &caller.tenant_id) {
        return throttled(world, retry_after);
    }
    let method = request.method.as_str();
    let segments = request.segments();
    let required_roles = match (method, segments.as_slice()) {
        (_, ["api", "advancedhunting", "run"]) => HUNT,
        ("GET", _) => READ,
        _ => WRITE,
    };
    if !caller.has_any(required_roles) {
        let message = format!("Missing application roles. API required roles: {}.", required_roles.join(", "));
        return error(403, "Forbidden", &message);
    }
    if !world.tenants.get(&caller.tenant_id).is_some_and(|tenant| tenant.seed.defender_licensed) {
        return error(403, "DisabledFeature", "Tenant feature is not enabled.");
    }
    match (method, segments.as_slice()) {
        ("POST", ["api", "advancedhunting", "run"]) => hunt(world, request, &caller),
        ("GET", ["api", "incidents"]) => list(world, request, &caller, tweaks),
        ("GET", ["api", "incidents", id]) => {
            if !request.query.is_empty() {
                return error(400, "ODataError", "The query options are not supported on a single incident.");
            }
            match find_incident(world, &caller.tenant_id, id, tweaks.versions_behind) {
                Some(incident) => incident_response(world, &caller, &incident),
                None => not_found(id),
            }
        }
        ("PATCH", ["api", "incidents", id]) => update_incident(world, request, &caller, id),
        (_, ["api", "incidents"] | ["api", "incidents", _]) => {
            error(405, "BadRequest", "The requested resource does not support this http method.")
        }
        _ => error(404, "NotFound", "No HTTP resource was found that matches the request URI."),
    }
}

fn not_found(id: &str) -> Response {
    error(404, "ResourceNotFound", &format!("Incident {id} was not found."))
}

/// Runs a query. The members of the response have other capitals than Graph's.
fn hunt(world: &World, request: &Request, caller: &Caller) -> Response {
    let body = request.json().unwrap_or_default();
    let Some(query) = body["Query"].as_str() else { return error(400, "BadRequest", "The query is empty.") };
    let tables = world.tenants.get(&caller.tenant_id).map(|tenant| tenant.hunting.as_slice()).unwrap_or_default();
    match run_query(tables, query) {
        Ok(table) => {
            let column = |column: &HuntingColumn| json!({"Name": column.name, "Type": column.kind});
            let schema: Vec<Value> = table.columns.iter().map(column).collect();
            Response::json(200, &json!({"Stats": {}, "Schema": schema, "Results": table.rows}))
        }
        Err(message) => error(400, "BadRequest", &message),
    }
}

const CONTENT_TYPE: &str = "application/json; odata.metadata=minimal; odata.streaming=true; charset=utf-8";

fn list(world: &mut World, request: &Request, caller: &Caller, tweaks: &Tweaks) -> Response {
    let behaviour = world.behaviour.defender;
    let list_query = match ListQuery::parse(&request.query, &QUERY_SYNTAX, &behaviour) {
        Ok(list_query) => list_query,
        Err(message) => return error(400, "ODataError", &message),
    };
    let page = select_page(world, request, &caller.tenant_id, &list_query, field_value, tweaks);
    let now = world.now();
    collection(CONTEXT, &page, |incident| incident_json(incident, &caller.tenant_id, now, None))
        .with("content-type", CONTENT_TYPE)
        .with("odata-version", "4.0")
}

fn incident_response(world: &World, caller: &Caller, incident: &Incident) -> Response {
    let mut response = Response::new(200, CONTENT_TYPE, String::new()).with("odata-version", "4.0");
    response.body = incident_json(incident, &caller.tenant_id, world.now(), Some(format!("{CONTEXT}/$entity")));
    response.incident_ids = vec![incident.id];
    response
}

fn update_incident(world: &mut World, request: &Request, caller: &Caller, id: &str) -> Response {
    let Some(incident) = find_incident(world, &caller.tenant_id, id, 0) else { return not_found(id) };
    if incident.status == "redirected" {
        return error(400, "BadRequest", "The incident was merged into another one and cannot be changed.");
    }
    match apply_update(world, request, caller, incident.id) {
        Ok(()) => match find_incident(world, &caller.tenant_id, id, 0) {
            Some(incident) => incident_response(world, caller, &incident),
            None => not_found(id),
        },
        Err(message) => error(400, "InvalidRequestBody", &message),
    }
}

fn apply_update(world: &mut World, request: &Request, caller: &Caller, id: u64) -> Result<(), String> {
    const TRUE_POSITIVE: &[&str] = &[
        "MultiStagedAttack",
        "MaliciousUserActivity",
        "CompromisedAccount",
        "Malware",
        "Phishing",
        "UnwantedSoftware",
        "Other",
    ];
    const INFORMATIONAL: &[&str] = &["SecurityTesting", "LineOfBusinessApplication", "ConfirmedActivity", "Other"];
    const FALSE_POSITIVE: &[&str] = &["Clean", "NoEnoughDataToValidate", "Other"];
    let body = parse_update(request, &["status", "assignedTo", "classification", "determination", "tags", "comment"])?;
    let status = string_property(&body, "status", &["Active", "InProgress", "Resolved", "Redirected"])?;
    let classification =
        string_property(&body, "classification", &["TruePositive", "InformationalExpectedActivity", "FalsePositive"])?;
    let allowed = match classification.as_deref() {
        Some("TruePositive") => TRUE_POSITIVE.to_vec(),
        Some("InformationalExpectedActivity") => INFORMATIONAL.to_vec(),
        Some(_) => FALSE_POSITIVE.to_vec(),
        None => [TRUE_POSITIVE, INFORMATIONAL, FALSE_POSITIVE].concat(),
    };
    let determination = string_property(&body, "determination", &allowed)?;
    let assigned_to = nullable_property(&body, "assignedTo")?;
    let tags = string_list(&body, "tags")?;
    let comment = string_property(&body, "comment", &[])?;
    let (editor, now) = (editor_name(world, caller), world.now());
    let Some(tenant) = world.tenants.get_mut(&caller.tenant_id) else { return Ok(()) };
    tenant.update(id, now, |incident| {
        set_if_some(&mut incident.status, status.as_deref().map(camel));
        set_if_some(&mut incident.classification, classification.as_deref().map(camel));
        set_if_some(&mut incident.determination, determination.as_deref().map(determination_to_graph));
        assigned_to.empty_clears().apply(&mut incident.assigned_to);
        set_if_some(&mut incident.custom_tags, tags);
        incident.last_modified_by = Some(editor.clone());
        if let Some(comment) = comment {
            incident.comments.push(Comment { comment, created_by: editor, created: truncate_to_100ns(now) });
        }
    });
    Ok(())
}

fn field_value(incident: &Incident, field: &str) -> FieldValue {
    match field {
        "lastUpdateTime" => FieldValue::Time(incident.last_update),
        "createdTime" => FieldValue::Time(incident.created),
        "status" => FieldValue::Text(Some(pascal(&incident.status))),
        _ => FieldValue::Text(incident.assigned_to.clone()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::{
        Fault, FaultKind, Host, HuntingColumn, HuntingTable, IncidentSeed, Limits, NextLink, Resource, RetryAfter,
        testing::{CLIENT, CONTOSO, FABRIKAM, rig},
    };

    #[tokio::test]
    async fn defender_has_no_next_links_unless_configured() {
        let rig = rig().await;
        rig.put_incidents(101);
        let first = rig.get("/api/incidents").await;
        assert_eq!((first.ids().len(), first.json().get("@odata.nextLink")), (100, None));
        assert_eq!(rig.get("/api/incidents?$skip=100&$top=100").await.ids(), [1]);
        rig.sim.configure(|behaviour| behaviour.defender.next_link = NextLink::Skip);
        let linked = rig.get("/api/incidents?$top=2").await.json();
        assert_eq!(linked["@odata.nextLink"], format!("{}/api/incidents?$top=2&$skip=2", rig.sim.defender_url()));
        for query in ["$top=101", "$expand=alerts", "$count=true", "$orderby=x", "$filter=severity%20eq%20'High'"] {
            let response = rig.get(&format!("/api/incidents?{query}")).await;
            assert_eq!(
                (response.status, response.json()["error"]["code"].as_str()),
                (400, Some("ODataError")),
                "{query}"
            );
        }
    }

    #[tokio::test]
    async fn hunting_has_capital_members_and_its_own_role() {
        let rig = rig().await;
        let column = HuntingColumn { name: "AlertId".into(), kind: "String".into() };
        let rows = vec![json!({"AlertId": "a"}).as_object().cloned().unwrap()];
        rig.sim.put_hunting_table(CONTOSO, HuntingTable { name: "AlertInfo".into(), columns: vec![column], rows });
        let run = async |query: &str| rig.call("POST", "/api/advancedhunting/run", Some(json!({"Query": query}))).await;
        let found = run("AlertInfo | take 1").await.json();
        assert_eq!(found["Schema"], json!([{"Name": "AlertId", "Type": "String"}]));
        assert_eq!(found["Results"], json!([{"AlertId": "a"}]));
        assert_eq!(run("NoSuchTable").await.status, 400);
        let token = rig.sim.issue_token(CONTOSO, CLIENT, &["Incident.Read.All"], Resource::Defender);
        let url = format!("{}/api/advancedhunting/run", rig.sim.defender_url());
        let refused = rig.http.post(url).bearer_auth(token).json(&json!({"Query": "AlertInfo"}));
        assert_eq!(rig.send(refused).await.status, 403);
    }

    #[tokio::test]
    async fn same_incident_has_defenders_names_and_values() {
        let rig = rig().await;
        let id = rig.sim.put_incident(CONTOSO, IncidentSeed { severity: "unknown".into(), ..IncidentSeed::default() });
        let record = rig.get(&format!("/api/incidents/{id}")).await.json();
        assert_eq!(record["incidentId"].to_string(), id);
        assert_eq!((&record["severity"], &record["determination"]), (&json!("UnSpecified"), &json!("NotAvailable")));
        assert_eq!(record["alerts"][0]["serviceSource"], "MicrosoftDefenderForEndpoint");
        let body = json!({"status": "InProgress", "determination": "NoEnoughDataToValidate", "classification": "FalsePositive"});
        let changed = rig.call("PATCH", &format!("/api/incidents/{id}"), Some(body)).await.json();
        assert_eq!(
            (&changed["status"], &changed["determination"]),
            (&json!("InProgress"), &json!("NoEnoughDataToValidate"))
        );
        let graph = rig.get(&format!("/v1.0/security/incidents/{id}")).await.json();
        assert_eq!(
            (&graph["status"], &graph["determination"]),
            (&json!("inProgress"), &json!("notEnoughDataToValidate"))
        );
        let mixed = json!({"classification": "TruePositive", "determination": "Clean"});
        assert_eq!(rig.call("PATCH", &format!("/api/incidents/{id}"), Some(mixed)).await.status, 400);
        let missing = rig.get("/api/incidents/99").await;
        assert_eq!((missing.status, missing.json()["error"]["code"].as_str()), (404, Some("ResourceNotFound")));
    }

    #[tokio::test]
    async fn call_51_of_a_minute_is_refused_until_a_minute_has_passed() {
        let rig = rig().await;
        rig.sim.clock().freeze("2026-11-22T10:00:00Z".parse().unwrap());
        rig.sim.set_limits(Host::Defender, None, Limits::DEFENDER);
        for _ in 0..50 {
            assert_eq!(rig.get("/api/incidents?$top=1").await.status, 200);
        }
        let refused = rig.get("/api/incidents?$top=1").await;
        assert_eq!((refused.status, refused.header("retry-after")), (429, "61"));
        assert_eq!(refused.json()["error"]["code"], "TooManyRequests");
        assert_eq!(rig.get("/v1.0/security/incidents").await.status, 200, "the other API has its own limit");
        rig.sim.clock().advance(jiff::SignedDuration::from_secs(61));
        assert_eq!(rig.get("/api/incidents?$top=1").await.status, 200);
        assert_eq!(rig.sim.count(Host::Defender, CONTOSO), 52);
        assert_eq!(rig.sim.count(Host::Defender, FABRIKAM), 0);
    }

    #[tokio::test]
    async fn wait_of_a_429_has_five_forms() {
        let rig = rig().await;
        rig.sim.clock().freeze("2026-11-22T10:00:00Z".parse().unwrap());
        for (retry_after, header, text) in [
            (RetryAfter::Seconds(0), "61", ""),
            (RetryAfter::Date(0), "Sun, 22 Nov 2026 10:01:01 GMT", ""),
            (RetryAfter::Body(0), "", "61 seconds"),
            (RetryAfter::Absent, "", ""),
            (RetryAfter::Quota { calls: 45, seconds: 60 }, "", "maximum allowed 0 per 00:01:00"),
        ] {
            let limits = Limits { per_minute: Some(0), per_hour: None, retry_after };
            for (host, path) in [(Host::Defender, "/api/incidents"), (Host::Graph, "/v1.0/security/incidents")] {
                rig.sim.set_limits(host, Some(CONTOSO), limits);
                let refused = rig.get(path).await;
                assert_eq!((refused.status, refused.header("retry-after")), (429, header));
                assert!(refused.text.contains(text), "{}", refused.text);
            }
        }
        let quota = RetryAfter::Quota { calls: 1500, seconds: 3600 };
        rig.sim.fault(Fault::new(FaultKind::Throttle { retry_after: quota }));
        let refused = rig.get("/api/incidents").await.json();
        assert_eq!(refused["error"]["code"], "429");
        assert_eq!(refused["error"]["message"], "API calls quota exceeded! maximum allowed 1500 per 01:00:00");
    }
}
