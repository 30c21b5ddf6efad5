//! Replaces the app's client secret in the four steps of Secrets Manager's rotation.
//!
//! Entra generates the value, so the step that creates it also registers it. The name of a registered secret holds the
//! rotation's token, by which the next run finds the secrets of a run that was killed. The previous secret stays valid
//! while caches may hold it, and is removed in the next rotation. Each step may be repeated at any time.

mod application;
mod secret_versions;

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};
use shared::{
    clock::Clock,
    config::Variables,
    entra::{credential::AppCredential, token_endpoint::TokenEndpoint},
    error::{Error, Result},
    http::{Deadline, HttpClient},
    lambda::event::{Invocation, InvocationError},
    lambda::runtime::Platform,
    microsoft::{IncidentApi, Microsoft},
    telemetry,
    tenant::{Reason, TenantId},
    text::{Secret, from_json_object},
};

use application::Application;
use secret_versions::{RotationState, SecretVersions};

/// The display name of our secrets in the app registration, before the rotation's token.
const SECRET_NAME_PREFIX: &str = "mandate-rotation:";

/// The lifetime of a new secret: longer than three rounds of the monthly schedule.
const SECRET_LIFETIME: SignedDuration = SignedDuration::from_hours(24 * 100);

/// The first wait for Entra to spread a new secret. Each further wait is twice as long.
const FIRST_PROPAGATION_WAIT: Duration = Duration::from_secs(1);

/// The configuration, from environment variables.
#[derive(Clone, Debug)]
pub struct Config {
    /// The cloud, its hosts, and the app credential, which is rotated.
    pub microsoft: Microsoft,
    /// Name or ARN of the credential that the rotation itself uses. It belongs to another app, which owns the rotated one.
    pub rotation_credential_secret_id: String,
    /// The partner's own tenant, where both apps are registered.
    pub home_tenant: TenantId,
}

impl Config {
    /// Reads the variables. After `None`, `variables` names what is missing.
    pub fn read(variables: &mut Variables<'_>) -> Option<Self> {
        let microsoft = variables.microsoft();
        let rotation_credential_secret_id = variables.required("ROTATION_CREDENTIAL_SECRET_ID");
        // `microsoft` has read it, and names it if it is malformed.
        variables.required("HOME_TENANT_ID");
        let home_tenant = microsoft.as_ref().and_then(|microsoft| microsoft.home_tenant);
        // The table itself is not used, but metrics need its name as a dimension.
        variables.required("TABLE_NAME")?;
        Some(Self {
            microsoft: microsoft?,
            rotation_credential_secret_id: rotation_credential_secret_id?,
            home_tenant: home_tenant?,
        })
    }
}

/// The function. Each invocation is one step of one rotation.
pub struct App {
    config: Config,
    versions: SecretVersions,
    endpoint: TokenEndpoint,
    http: HttpClient,
    clock: Clock,
}

/// The event that Secrets Manager sends.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RotationBody {
    step: Step,
    secret_id: String,
    client_request_token: String,
}

#[derive(Clone, Copy, Debug, Deserialize)]
enum Step {
    #[serde(rename = "createSecret")]
    Create,
    #[serde(rename = "setSecret")]
    Set,
    #[serde(rename = "testSecret")]
    Test,
    #[serde(rename = "finishSecret")]
    Finish,
}

impl App {
    /// Builds the function's clients on `platform`.
    pub fn new(config: Config, platform: &Platform) -> Self {
        let Platform { aws, http, clock, random } = platform.clone();
        let endpoint = TokenEndpoint::new(&config.microsoft, http.clone(), &aws, clock.clone(), random);
        Self { versions: SecretVersions::new(&aws), endpoint, http, clock, config }
    }

    /// Runs one step.
    ///
    /// # Errors
    /// The failure of the step. Secrets Manager repeats a failed step, and abandons the rotation after some time.
    pub async fn handle(&self, event: Value, invocation: Invocation) -> Result<Value, InvocationError> {
        invocation
            .in_request_span(async {
                let deadline = invocation.deadline;
                let outcome = deadline.run(Box::pin(self.run_step(event, deadline))).await;
                outcome.map_err(|error| {
                    let (code, _) = error.code();
                    let reason = error.reason().map(Reason::as_str);
                    tracing::error!(code, reason, cause = %error, "the rotation step failed");
                    InvocationError::from(error)
                })
            })
            .await
    }

    async fn run_step(&self, event: Value, deadline: Deadline) -> Result<Value> {
        let rotation: RotationBody = from_json_object(event).ok_or_else(|| {
            Error::InvalidRequest("The event must be Secrets Manager's {Step, SecretId, ClientRequestToken}.".into())
        })?;
        let (step, secret, token) = (rotation.step, rotation.secret_id, rotation.client_request_token);
        let configured = &self.config.microsoft.app_credential_secret_id;
        let done = match self.versions.rotation_state(&secret, configured, &token).await? {
            RotationState::Finished => "nothing: the version is current already",
            RotationState::Pending { current } => match step {
                Step::Create => self.create(&secret, &token, deadline).await?,
                // Entra generated the value in the step before.
                Step::Set => "nothing: Entra set the value itself",
                Step::Test => self.test(&secret, &token, deadline).await?,
                Step::Finish => {
                    if self.versions.pending(&secret, &token).await?.is_none() {
                        return Err(Error::Internal(
                            "the pending version has no value, so it cannot become current".into(),
                        ));
                    }
                    self.versions.make_current(&secret, &token, current.as_deref()).await?;
                    "the new version is current"
                }
            },
        };
        tracing::info!(step = ?step, done, "rotation step done");
        Ok(json!({}))
    }

    async fn create(&self, secret: &str, token: &str, deadline: Deadline) -> Result<&'static str> {
        if self.versions.pending(secret, token).await?.is_some() {
            return Ok("nothing: the value is there already");
        }
        let current = self.versions.current(secret).await?;
        let previous_key = self.versions.previous(secret).await?.and_then(|previous| key_id(&previous));
        let mut next = fields(&current)?;
        let client_id = next.get("client_id").and_then(Value::as_str).unwrap_or_default().to_owned();
        if !next.contains_key("client_secret") || client_id.is_empty() {
            return Err(Error::Internal(
                "the app credential is not a client secret, so there is nothing to rotate".into(),
            ));
        }
        let application = self.application(&client_id, deadline).await?;
        for password in application.passwords(deadline).await? {
            let is_current = key_id(&current).as_ref() == Some(&password.key_id);
            let is_previous = previous_key.as_ref() == Some(&password.key_id);
            let is_ours = password.display_name.is_some_and(|name| name.starts_with(SECRET_NAME_PREFIX));
            if !is_current && (is_previous || is_ours) {
                application.remove_password(&password.key_id, deadline).await?;
                write_audit("client secret removed", &password.key_id);
            }
        }
        let end: Timestamp = self.clock.now() + SECRET_LIFETIME;
        let added = application.add_password(&format!("{SECRET_NAME_PREFIX}{token}"), end, deadline).await?;
        write_audit("client secret added", &added.key_id);
        next.insert("client_secret".into(), json!(added.secret_text.expose()));
        next.insert("key_id".into(), json!(added.key_id));
        next.insert("expires_at".into(), json!(end));
        let next = Secret::new(Value::Object(next).to_string());
        self.versions.put_pending(secret, token, &next).await?;
        Ok("a new secret was created")
    }

    async fn test(&self, secret: &str, token: &str, deadline: Deadline) -> Result<&'static str> {
        // Secrets Manager runs this step alone when a schedule is set up. No version is pending then.
        let value = match self.versions.pending(secret, token).await? {
            Some(pending) => pending,
            None => self.versions.current(secret).await?,
        };
        let credential = parse_credential(&value, token)?;
        let mut wait = FIRST_PROPAGATION_WAIT;
        loop {
            let home = &self.config.home_tenant;
            match self.endpoint.app_token(home, IncidentApi::Graph, &credential, deadline).await {
                Ok(_) => return Ok("the new secret gets tokens"),
                Err(Error::CredentialRejected) if deadline.left() > wait * 2 => {
                    tracing::info!(wait_seconds = wait.as_secs(), "Entra does not accept the new secret yet");
                    tokio::time::sleep(wait).await;
                    wait *= 2;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The registration of the rotated app, with a token of the rotation's own app.
    async fn application(&self, client_id: &str, deadline: Deadline) -> Result<Application<'_>> {
        let rotator = self.versions.current(&self.config.rotation_credential_secret_id).await?;
        let rotator = parse_credential(&rotator, "")?;
        let home = &self.config.home_tenant;
        let token = self.endpoint.app_token(home, IncidentApi::Graph, &rotator, deadline).await?;
        let graph = &self.config.microsoft.endpoints.graph;
        Ok(Application::new(&self.http, graph, client_id, token.authorization()))
    }
}

fn parse_credential(credential: &Secret, version: &str) -> Result<AppCredential> {
    AppCredential::parse(credential, version.to_owned())
        .map_err(|problem| Error::Internal(format!("a credential in Secrets Manager is not usable: {problem}").into()))
}

fn fields(credential: &Secret) -> Result<serde_json::Map<String, Value>> {
    serde_json::from_str(credential.expose())
        .map_err(|_| Error::Internal("the app credential in Secrets Manager is not a JSON object".into()))
}

fn key_id(credential: &Secret) -> Option<String> {
    fields(credential).ok()?.get("key_id")?.as_str().map(str::to_owned)
}

fn write_audit(event: &str, key_id: &str) {
    tracing::info!(target: telemetry::RECORD, audit = true, key_id, "{event}");
}
