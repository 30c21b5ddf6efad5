//! The rotated app registration in Microsoft Graph. See "application: addPassword" and "application: removePassword".

use http::{HeaderValue, StatusCode, header};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::json;
use shared::{
    error::{Call, Result},
    http::{Deadline, Endpoint, HttpClient, Response, send},
    text::Secret,
};

/// One app registration, with a token that may change it.
pub(crate) struct Application<'a> {
    http: &'a HttpClient,
    graph: &'a Endpoint,
    path: String,
    authorization: HeaderValue,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ApplicationBody {
    password_credentials: Vec<Password>,
}

/// A registered client secret. Graph does not return its text.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Password {
    pub(crate) key_id: String,
    pub(crate) display_name: Option<String>,
}

/// A new client secret with its text, which Graph returns only once.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NewPassword {
    pub(crate) key_id: String,
    pub(crate) secret_text: Secret,
}

impl<'a> Application<'a> {
    pub(crate) fn new(http: &'a HttpClient, graph: &'a Endpoint, client_id: &str, authorization: HeaderValue) -> Self {
        Self { http, graph, path: format!("/v1.0/applications(appId='{client_id}')"), authorization }
    }

    /// The client secrets of the registration.
    pub(crate) async fn passwords(&self, deadline: Deadline) -> Result<Vec<Password>> {
        let request = self.http.get(self.graph.join(&self.path)).query(&[("$select", "passwordCredentials")]);
        let response = self.send(request, Call::GetApplication, deadline).await?;
        let body: ApplicationBody = expect_status(response, StatusCode::OK)?.json().await?;
        Ok(body.password_credentials)
    }

    /// Adds a client secret, which Entra generates. It expires at `end`.
    pub(crate) async fn add_password(&self, name: &str, end: Timestamp, deadline: Deadline) -> Result<NewPassword> {
        let body = json!({"passwordCredential": {"displayName": name, "endDateTime": end}});
        let url = self.graph.join(&format!("{}/addPassword", self.path));
        let response = self.send(self.http.post(url).json(&body), Call::AddPassword, deadline).await?;
        expect_status(response, StatusCode::OK)?.json().await
    }

    /// Removes a client secret. Success, too, if the registration does not have it.
    pub(crate) async fn remove_password(&self, key_id: &str, deadline: Deadline) -> Result<()> {
        let url = self.graph.join(&format!("{}/removePassword", self.path));
        let request = self.http.post(url).json(&json!({"keyId": key_id}));
        let response = self.send(request, Call::RemovePassword, deadline).await?;
        match response.status() {
            StatusCode::NO_CONTENT | StatusCode::NOT_FOUND => Ok(()),
            _ => Err(response.unexpected_status()),
        }
    }

    async fn send(&self, request: reqwest::RequestBuilder, call: Call, deadline: Deadline) -> Result<Response> {
        send(request.header(header::AUTHORIZATION, self.authorization.clone()), call, deadline).await
    }
}

fn expect_status(response: Response, status: StatusCode) -> Result<Response> {
    if response.status() == status {
        return Ok(response);
    }
    if response.status() == StatusCode::FORBIDDEN || response.status() == StatusCode::BAD_REQUEST {
        tracing::warn!(
            "Graph refuses to change the app registration. The rotation's app must own it and have the role \
             Application.ReadWrite.OwnedBy, and no policy of the tenant may forbid client secrets."
        );
    }
    Err(response.unexpected_status())
}
