//! The HTTP response for a function's response, by the rules of payload format 2.0.

use axum::{
    body::Body,
    http::{
        HeaderName, HeaderValue, StatusCode,
        header::{CONTENT_TYPE, SET_COOKIE},
    },
    response::Response,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::{Map, Value, json};

const JSON: HeaderValue = HeaderValue::from_static("application/json");

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct FunctionResponse {
    status_code: u16,
    #[serde(default)]
    headers: Option<Map<String, Value>>,
    #[serde(default)]
    cookies: Option<Vec<String>>,
    #[serde(default)]
    body: Option<String>,
    #[serde(default)]
    is_base64_encoded: Option<bool>,
}

/// Returns an error response of the gateway itself.
pub(crate) fn from_gateway(status: StatusCode, message: &str) -> Response {
    json_response(status, json!({ "message": message }).to_string().into_bytes())
}

/// Converts a function's response. One without `statusCode` becomes the body of a 200. A malformed one becomes a 500.
pub(crate) fn from_function(response: &Value) -> Response {
    if response.get("statusCode").is_none() {
        let body = response.as_str().map_or_else(|| response.to_string(), str::to_owned);
        return json_response(StatusCode::OK, body.into_bytes());
    }
    convert(response).unwrap_or_else(|| from_gateway(StatusCode::INTERNAL_SERVER_ERROR, "Internal Server Error"))
}

fn convert(response: &Value) -> Option<Response> {
    let from_function = FunctionResponse::deserialize(response).ok()?;
    let status = StatusCode::from_u16(from_function.status_code).ok()?;
    let body = from_function.body.unwrap_or_default();
    let body =
        if from_function.is_base64_encoded == Some(true) { STANDARD.decode(body).ok()? } else { body.into_bytes() };
    let mut response = json_response(status, body);
    for (name, value) in from_function.headers.unwrap_or_default() {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        response.headers_mut().insert(name.parse::<HeaderName>().ok()?, value.parse().ok()?);
    }
    for cookie in from_function.cookies.unwrap_or_default() {
        response.headers_mut().append(SET_COOKIE, cookie.parse().ok()?);
    }
    Some(response)
}

/// Builds a response whose content type is JSON until a header replaces it.
fn json_response(status: StatusCode, body: Vec<u8>) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(response: Response) -> (u16, String, Vec<String>, String) {
        let status = response.status().as_u16();
        let content_type = response.headers()[CONTENT_TYPE].to_str().unwrap().to_owned();
        let cookies = response.headers().get_all(SET_COOKIE).iter().map(|value| value.to_str().unwrap().to_owned());
        let cookies = cookies.collect();
        let body = axum::body::to_bytes(response.into_body(), 1024).await.unwrap();
        (status, content_type, cookies, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn status_headers_cookies_and_binary_body_are_converted() {
        let redirect = json!({
            "statusCode": 302,
            "headers": { "content-type": "text/html", "x-count": 3 },
            "cookies": ["a=1", "b=2"],
            "body": "aGk=",
            "isBase64Encoded": true,
        });
        let response = from_function(&redirect);
        assert_eq!(response.headers()["x-count"], "3");
        let cookies = vec!["a=1".to_owned(), "b=2".to_owned()];
        assert_eq!(read(response).await, (302, "text/html".into(), cookies, "hi".into()));
    }

    #[tokio::test]
    async fn response_without_status_is_the_body() {
        let json = "application/json".to_owned();
        assert_eq!(read(from_function(&json!({ "a": 1 }))).await, (200, json.clone(), vec![], "{\"a\":1}".into()));
        assert_eq!(read(from_function(&json!("hi"))).await, (200, json, vec![], "hi".into()));
    }

    #[tokio::test]
    async fn malformed_response_is_an_error() {
        let malformed = [
            json!({ "statusCode": "x" }),
            json!({ "statusCode": 200, "headers": { "bad name": "" } }),
            json!({ "statusCode": 200, "body": "?", "isBase64Encoded": true }),
        ];
        for response in malformed {
            let (status, _, _, body) = read(from_function(&response)).await;
            assert_eq!((status, body.as_str()), (500, "{\"message\":\"Internal Server Error\"}"), "{response}");
        }
    }
}
