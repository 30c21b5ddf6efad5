//! Changes an incident. The caller's values are translated to the form of the tenant's API.

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};
use shared::{
    error::{Call, Error, Result},
    http::Deadline,
    lambda::event::{HttpRequest, HttpResponse},
    microsoft::IncidentApi,
    registry::tenants::Tenant,
    tenant::{Reason, TenantId},
};

use crate::{
    App,
    live::{ResponseFormat, enum_member},
};

const STATUSES: [&str; 3] = ["active", "in_progress", "resolved"];
const CLASSIFICATIONS: [&str; 3] = ["true_positive", "false_positive", "informational_expected_activity"];

/// The maximum number of characters of a comment, an assignee or a tag.
const MAX_TEXT_CHARACTERS: usize = 1000;

/// The changes that a caller requests. An absent member stays as it is.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Changes {
    status: Option<String>,
    #[expect(clippy::option_option, reason = "absent and null mean different changes")]
    #[serde(default, deserialize_with = "present")]
    assigned_to: Option<Option<String>>,
    classification: Option<String>,
    determination: Option<String>,
    tags: Option<Vec<String>>,
    comment: Option<String>,
}

/// Distinguishes `null` from an absent member.
#[expect(clippy::option_option, reason = "absent and null mean different changes")]
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

impl Changes {
    fn parse(request: &HttpRequest) -> Result<Self> {
        let names =
            "any of `status`, `assigned_to`, `classification`, `determination`, `tags` and `comment`, and no others";
        request.parameters(&[])?;
        let body: Map<String, Value> = request.json(names)?;
        if body.is_empty() {
            return Err(Error::InvalidRequest(format!("The body holds no change. It may have {names}.")));
        }
        if body.iter().any(|(name, value)| value.is_null() && name != "assigned_to") {
            return Err(Error::InvalidRequest("Only `assigned_to` may be null.".into()));
        }
        let changes: Self = serde_json::from_value(Value::Object(body)).map_err(|_| {
            Error::InvalidRequest(format!("The body must be a JSON object with {names}, each of its own type."))
        })?;
        one_of("status", changes.status.as_deref(), &STATUSES)?;
        one_of("classification", changes.classification.as_deref(), &CLASSIFICATIONS)?;
        let snake = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        if changes.determination.as_deref().is_some_and(|text| !snake(text)) {
            return Err(Error::InvalidRequest(
                "`determination` must be a word in snake_case, like multi_staged_attack.".into(),
            ));
        }
        let texts =
            changes.tags.iter().flatten().chain(changes.comment.iter()).chain(changes.assigned_to.iter().flatten());
        if texts.into_iter().any(|text| text.is_empty() || text.chars().count() > MAX_TEXT_CHARACTERS) {
            return Err(Error::InvalidRequest(format!("A text must have 1 to {MAX_TEXT_CHARACTERS} characters.")));
        }
        Ok(changes)
    }

    /// The body of the API's PATCH request. On Graph a comment is a call of its own.
    fn body(&self, api: IncidentApi) -> Value {
        let mut body = Map::new();
        let member = |value: &str| json!(enum_member(value, api));
        let tags = match api {
            IncidentApi::Graph => "customTags",
            IncidentApi::Defender => "tags",
        };
        body.extend(self.status.as_deref().map(|status| ("status".into(), member(status))));
        body.extend(
            self.classification.as_deref().map(|classification| ("classification".into(), member(classification))),
        );
        body.extend(self.determination.as_deref().map(|word| ("determination".into(), member(word))));
        body.extend(self.tags.as_ref().map(|names| (tags.into(), json!(names))));
        body.extend(self.assigned_to.as_ref().map(|name| {
            let cleared = match api {
                IncidentApi::Graph => Value::Null,
                IncidentApi::Defender => json!(""),
            };
            ("assignedTo".into(), name.as_ref().map_or(cleared, |name| json!(name)))
        }));
        if api == IncidentApi::Defender {
            body.extend(self.comment.as_ref().map(|comment| ("comment".into(), json!(comment))));
        }
        Value::Object(body)
    }
}

fn one_of(name: &str, value: Option<&str>, values: &[&str]) -> Result<()> {
    if value.is_none_or(|value| values.contains(&value)) {
        return Ok(());
    }
    Err(Error::InvalidRequest(format!("`{name}` must be one of: {}.", values.join(", "))))
}

impl App {
    /// `PATCH /tenants/{tenant_id}/incidents/{incident_id}`, which returns the changed incident.
    pub(crate) async fn change(
        &self,
        id: TenantId,
        incident_id: &str,
        request: &HttpRequest,
        deadline: Deadline,
    ) -> Result<HttpResponse> {
        let tenant = self.registry.active_tenant(&id).await?;
        let changes = Changes::parse(request)?;
        self.apply(&tenant, incident_id, &changes, deadline).await.map_err(|error| match error {
            Error::Refused(Reason::RoleMissing) => read_only(),
            Error::Upstream { status: 400, call: Call::UpdateIncident | Call::AddComment } => Error::InvalidRequest(
                "Microsoft does not accept this change. A `determination` must go with its `classification`.".into(),
            ),
            other => other,
        })?;
        tracing::info!(
            target: shared::telemetry::RECORD,
            audit = true,
            tenant_id = %id,
            incident_id,
            caller = request.caller()?.name,
            "incident changed"
        );
        let incident = self.read_incident(&tenant, incident_id, ResponseFormat::Envelope, deadline).await?;
        Ok(HttpResponse::json(200, &incident))
    }

    async fn apply(&self, tenant: &Tenant, incident_id: &str, changes: &Changes, deadline: Deadline) -> Result<()> {
        let mut client = self.client(tenant, deadline);
        let body = changes.body(tenant.api);
        if body.as_object().is_some_and(|body| !body.is_empty()) {
            client.change(incident_id, &body).await?;
        }
        // The comment comes last: everything before it may be repeated without harm.
        if let (IncidentApi::Graph, Some(comment)) = (tenant.api, &changes.comment) {
            let body = json!({"@odata.type": "microsoft.graph.security.alertComment", "comment": comment});
            client.comment(incident_id, &body).await?;
        }
        Ok(())
    }
}

fn read_only() -> Error {
    Error::Conflict {
        detail: "The customer consented to reading only. Ask for consent to the app role that writes.".into(),
        reason: Some(Reason::RoleMissing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &str) -> Result<Changes> {
        Changes::parse(&HttpRequest { body: body.as_bytes().to_vec(), ..HttpRequest::default() })
    }

    #[test]
    fn wrong_bodies_are_refused() {
        for body in [
            "",
            "[]",
            "{}",
            r#"{"status":"closed"}"#,
            r#"{"status":"redirected"}"#,
            r#"{"status":null}"#,
            r#"{"unknown":1}"#,
            r#"{"tags":"a"}"#,
            r#"{"classification":"TruePositive"}"#,
            r#"{"determination":"Malware"}"#,
            r#"{"comment":""}"#,
        ] {
            assert!(matches!(parse(body), Err(Error::InvalidRequest(_))), "{body}");
        }
    }

    #[test]
    fn each_api_gets_its_own_form() {
        let changes = parse(
            r#"{"status":"in_progress","assigned_to":null,"classification":"true_positive","determination":"multi_staged_attack","tags":["a"],"comment":"c"}"#,
        )
        .unwrap();
        assert_eq!(
            changes.body(IncidentApi::Graph),
            json!({"status": "inProgress", "assignedTo": null, "classification": "truePositive", "determination": "multiStagedAttack", "customTags": ["a"]})
        );
        assert_eq!(
            changes.body(IncidentApi::Defender),
            json!({"status": "InProgress", "assignedTo": "", "classification": "TruePositive", "determination": "MultiStagedAttack", "tags": ["a"], "comment": "c"})
        );
    }
}
