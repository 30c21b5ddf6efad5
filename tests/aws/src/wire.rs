//! The protocols: JSON 1.0 and 1.1, S3's REST and STS's query.

use axum::{
    body::Bytes,
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use serde_json::{Map, Value, json};

use crate::{Aws, fault::AwsFault, s3};

/// AWS's refusal of a request: the error's code and a message.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    code: &'static str,
    message: String,
    /// Further members of the response.
    more: Map<String, Value>,
}

pub(crate) type Served<T = Value> = Result<T, Refusal>;

impl Refusal {
    pub(crate) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), more: Map::new() }
    }

    /// The refusal of a transaction, with the code of each of its writes.
    pub(crate) fn of_transaction(codes: &[&str]) -> Self {
        let message =
            format!("Transaction cancelled, please refer cancellation reasons for specific reasons {codes:?}");
        let reasons = codes.iter().map(|code| json!({"Code": code})).collect();
        let more = Map::from_iter([("CancellationReasons".to_owned(), Value::Array(reasons))]);
        Self { more, ..Self::new("TransactionCanceledException", message) }
    }
}

/// A request that AWS would call invalid, or that the double does not understand.
pub(crate) fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::new("ValidationException", message)
}

pub(crate) fn text<'a>(request: &'a Value, member: &str) -> Served<&'a str> {
    request[member].as_str().ok_or_else(|| invalid(format!("{member} is not a text in {request}")))
}

pub(crate) fn list<'a>(request: &'a Value, member: &str) -> Served<&'a Vec<Value>> {
    request[member].as_array().ok_or_else(|| invalid(format!("{member} is not a list in {request}")))
}

/// Refuses a request with a member that the double does not know.
pub(crate) fn only(request: &Value, known: &[&str]) -> Served<()> {
    let members = request.as_object().ok_or_else(|| invalid("the body is not an object"))?;
    match members.keys().find(|member| !known.contains(&member.as_str())) {
        Some(unknown) => Err(invalid(format!("the double does not know {unknown}"))),
        None => Ok(()),
    }
}

/// Refuses a name that is not the account's only resource of its kind.
pub(crate) fn named(request: &Value, member: &str, name: &str) -> Served<()> {
    if text(request, member)? == name {
        return Ok(());
    }
    Err(Refusal::new("ResourceNotFoundException", format!("{member} is not {name}")))
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut body = json!({"__type": format!("com.amazonaws#{}", self.code), "message": self.message});
        body.as_object_mut().unwrap_or(&mut Map::new()).extend(self.more);
        (StatusCode::BAD_REQUEST, body.to_string()).into_response()
    }
}

pub(crate) async fn serve(
    State(aws): State<Aws>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let Some(caller) = header("authorization").split_once("Credential=").and_then(|(_, rest)| rest.split('/').next())
    else {
        return Refusal::new("MissingAuthenticationToken", "the request is not signed").into_response();
    };
    let form: std::collections::BTreeMap<String, String> =
        if header("content-type").starts_with("application/x-www-form-urlencoded") {
            url::form_urlencoded::parse(&body).into_owned().collect()
        } else {
            std::collections::BTreeMap::new()
        };
    let operation = match (header("x-amz-target").rsplit_once('.'), form.get("Action")) {
        (Some((_, operation)), _) => operation.to_owned(),
        (None, Some(action)) => action.clone(),
        (None, None) => s3::operation(&method, &uri),
    };
    let fault = {
        let mut account = aws.account();
        *account.calls.entry(operation.clone()).or_default() += 1;
        let now = account.now();
        account.called_at.insert(operation.clone(), now);
        if account.is_dead(caller) {
            return unreadable(&operation);
        }
        account.fault(caller, &operation)
    };
    if fault == Some(AwsFault::HeldBefore) {
        aws.hold().await;
    }
    let act = || {
        if let Some((_, _)) = header("x-amz-target").rsplit_once('.') {
            let Ok(request) = serde_json::from_slice::<Value>(&body) else {
                return invalid("the body is not JSON").into_response();
            };
            let is_partial = fault == Some(AwsFault::Partial);
            let served = match operation.as_str() {
                "Sign" | "GetPublicKey" => aws.kms(&operation, &request),
                _ => aws.account().call(&operation, &request, is_partial),
            };
            return served.map_or_else(IntoResponse::into_response, |served| served.to_string().into_response());
        }
        if form.contains_key("Action") {
            return aws.sts(&form).unwrap_or_else(IntoResponse::into_response);
        }
        aws.account().s3(caller, &operation, &uri, &headers, &body)
    };
    match fault {
        None | Some(AwsFault::Partial | AwsFault::HeldBefore) => act(),
        Some(AwsFault::LostBefore | AwsFault::KilledBefore) => unreadable(&operation),
        Some(AwsFault::LostAfter | AwsFault::KilledAfter) => {
            act();
            unreadable(&operation)
        }
        Some(AwsFault::FailedBefore) => broken(),
        Some(AwsFault::FailedAfter) => {
            act();
            broken()
        }
        Some(AwsFault::Conflict) => s3::refusal(StatusCode::CONFLICT, "ConditionalRequestConflict", "try again"),
        Some(AwsFault::Throttled) if s3::is_operation(&operation) => broken(),
        Some(AwsFault::Throttled) => Refusal::new("ThrottlingException", "throttled").into_response(),
        Some(AwsFault::HeldAfter) => {
            let response = act();
            aws.hold().await;
            response
        }
    }
}

impl crate::Account {
    pub(crate) fn call(&mut self, operation: &str, request: &Value, is_partial: bool) -> Served {
        match operation {
            "GetItem" | "PutItem" | "UpdateItem" | "DeleteItem" | "Query" | "BatchGetItem" | "TransactWriteItems" => {
                self.dynamodb(operation, request)
            }
            "GetSecretValue" | "PutSecretValue" | "DescribeSecret" | "UpdateSecretVersionStage" => {
                self.secrets_manager(operation, request)
            }
            "PutEvents" => self.put_events(request, is_partial),
            "SendMessage" => self.send_message(request),
            "SendMessageBatch" => self.send_message_batch(request, is_partial),
            other => Err(Refusal::new("UnknownOperationException", format!("the double does not serve {other}"))),
        }
    }
}

fn unreadable(operation: &str) -> Response {
    // S3 has no body that could be unreadable.
    if s3::is_operation(operation) { StatusCode::BAD_GATEWAY.into_response() } else { "{".into_response() }
}

fn broken() -> Response {
    (StatusCode::INTERNAL_SERVER_ERROR, json!({"__type": "InternalServerError"}).to_string()).into_response()
}
