//! The app registration that is rotated, in Microsoft Graph. See "application: addPassword" and "removePassword".

use http::{HeaderValue, StatusCode, header};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::json;
use shared::{
    error::{Call, Result},
    http::{Deadline, Endpoint, HttpClient, Response, send},
    text::Secret,
};

/// One app registration, and the token to change it with.
pub(crate) struct Application<'a> {
    outbound: &'a HttpClient,
    graph: &'a Endpoint,
    path: String,
    authorization: HeaderValue,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ApplicationBody {
    password_credentials: Vec<Password>,
}

/// A secret that is registered; its text is not to be had any more.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Password {
    pub(crate) key_id: String,
    pub(crate) display_name: Option<String>,
}

/// A secret that was just registered.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NewPassword {
    pub(crate) key_id: String,
    pub(crate) secret_text: Secret,
}

impl<'a> Application<'a> {
    pub(crate) fn new(
        outbound: &'a HttpClient,
        graph: &'a Endpoint,
        client_id: &str,
        authorization: HeaderValue,
    ) -> Self {
        Self { outbound, graph, path: format!("/v1.0/applications(appId='{client_id}')"), authorization }
    }

    /// The secrets that are registered.
    pub(crate) async fn passwords(&self, deadline: Deadline) -> Result<Vec<Password>> {
        let request = self.outbound.get(self.graph.join(&self.path)).query(&[("$select", "passwordCredentials")]);
        let answer = self.send(request, Call::GetApplication, deadline).await?;
        let body: ApplicationBody = expect(answer, StatusCode::OK)?.json().await?;
        Ok(body.password_credentials)
    }

    /// Registers another secret, whose text Entra makes.
    pub(crate) async fn add_password(&self, name: &str, end: Timestamp, deadline: Deadline) -> Result<NewPassword> {
        let body = json!({"passwordCredential": {"displayName": name, "endDateTime": end}});
        let url = self.graph.join(&format!("{}/addPassword", self.path));
        let answer = self.send(self.outbound.post(url).json(&body), Call::AddPassword, deadline).await?;
        expect(answer, StatusCode::OK)?.json().await
    }

    /// Takes a secret away; one that is gone already is no failure.
    pub(crate) async fn remove_password(&self, key_id: &str, deadline: Deadline) -> Result<()> {
        let url = self.graph.join(&format!("{}/removePassword", self.path));
        let request = self.outbound.post(url).json(&json!({"keyId": key_id}));
        let answer = self.send(request, Call::RemovePassword, deadline).await?;
        match answer.status() {
            StatusCode::NO_CONTENT | StatusCode::NOT_FOUND => Ok(()),
            _ => Err(answer.unexpected_status()),
        }
    }

    async fn send(&self, request: reqwest::RequestBuilder, call: Call, deadline: Deadline) -> Result<Response> {
        send(request.header(header::AUTHORIZATION, self.authorization.clone()), call, deadline).await
    }
}

fn expect(answer: Response, status: StatusCode) -> Result<Response> {
    if answer.status() == status {
        return Ok(answer);
    }
    if answer.status() == StatusCode::FORBIDDEN || answer.status() == StatusCode::BAD_REQUEST {
        tracing::warn!(
            "Graph refuses to change the app registration: the rotation's app must own it and hold \
             Application.ReadWrite.OwnedBy, and no policy of the tenant may forbid client secrets"
        );
    }
    Err(answer.unexpected_status())
}
