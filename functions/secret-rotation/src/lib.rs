//! Replaces the app's client secret in the four steps of Secrets Manager's rotation.
//!
//! Entra makes the value, not we: so the step that creates also registers, and what a killed run left behind is found by
//! its name, which holds the rotation's token. The secret of the round before stays valid while caches may hold it, and is
//! removed in the next round. Each step may be repeated at any time.

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
use secret_versions::{SecretVersions, Standing};

/// What our own secrets are called in the app registration, before the rotation's token.
const NAME: &str = "mandate-rotation:";

/// How long a new secret is good: longer than three rounds of the monthly schedule.
const LIFETIME: SignedDuration = SignedDuration::from_hours(24 * 100);

/// The first wait for a new secret to be known everywhere in Entra; the next ones double.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// The function's configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The neighbours at Microsoft, and the secret that is rotated.
    pub microsoft: Microsoft,
    /// Name or ARN of the credential that the rotation itself uses: another app's, which owns the one that is rotated.
    pub rotation_credential_secret_id: String,
    /// The partner's own tenant, where both apps are registered.
    pub home_tenant: TenantId,
}

impl Config {
    /// Reads it; `None` has been noted as a fault.
    pub fn read(variables: &mut Variables<'_>) -> Option<Self> {
        let microsoft = variables.microsoft();
        let rotation_credential_secret_id = variables.required("ROTATION_CREDENTIAL_SECRET_ID");
        let home_tenant = variables.required_parsed("HOME_TENANT_ID", "must be a lower-case GUID");
        // The table itself is not needed, but metrics without its name would be nobody's.
        variables.required("TABLE_NAME")?;
        Some(Self {
            microsoft: microsoft?,
            rotation_credential_secret_id: rotation_credential_secret_id?,
            home_tenant: home_tenant?,
        })
    }
}

/// The function: one step of one rotation at a time.
pub struct App {
    config: Config,
    versions: SecretVersions,
    endpoint: TokenEndpoint,
    http: HttpClient,
    clock: Clock,
}

/// What Secrets Manager sends.
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
    /// Wires the function to its neighbours.
    pub fn new(config: Config, platform: &Platform) -> Self {
        let Platform { aws, http, clock, random } = platform.clone();
        let endpoint = TokenEndpoint::new(&config.microsoft, http.clone(), &aws, clock.clone(), random);
        Self { versions: SecretVersions::new(&aws), endpoint, http, clock, config }
    }

    /// Takes one step.
    ///
    /// # Errors
    /// Secrets Manager repeats a step that failed, and gives the rotation up after some time.
    pub async fn handle(&self, event: Value, invocation: Invocation) -> Result<Value, InvocationError> {
        invocation
            .in_request_span(async {
                let deadline = invocation.deadline;
                let outcome = deadline.run(Box::pin(self.step(event, deadline))).await;
                outcome.map_err(|error| {
                    let (code, _) = error.code();
                    let reason = error.reason().map(Reason::as_str);
                    tracing::error!(code, reason, cause = %error, "the rotation step failed");
                    InvocationError::from(error)
                })
            })
            .await
    }

    async fn step(&self, event: Value, deadline: Deadline) -> Result<Value> {
        let rotation: RotationBody = from_json_object(event).ok_or_else(|| {
            Error::InvalidRequest("The event must be Secrets Manager's {Step, SecretId, ClientRequestToken}.".into())
        })?;
        let (step, secret, token) = (rotation.step, rotation.secret_id, rotation.client_request_token);
        let configured = &self.config.microsoft.app_credential_secret_id;
        let done = match self.versions.standing(&secret, configured, &token).await? {
            Standing::Finished => "nothing: the version is current already",
            Standing::Pending { current } => match step {
                Step::Create => self.create(&secret, &token, deadline).await?,
                // Entra has known the value since it was created.
                Step::Set => "nothing: Entra set the value itself",
                Step::Test => self.test(&secret, &token, deadline).await?,
                Step::Finish => {
                    if self.versions.pending(&secret, &token).await?.is_none() {
                        return Err(Error::Internal("there is no pending value to make current".into()));
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
            return Err(Error::Internal("the app credential is no client secret: there is nothing to rotate".into()));
        }
        let application = self.application(&client_id, deadline).await?;
        for password in application.passwords(deadline).await? {
            let is_current = key_id(&current).as_ref() == Some(&password.key_id);
            let is_previous = previous_key.as_ref() == Some(&password.key_id);
            let is_ours = password.display_name.is_some_and(|name| name.starts_with(NAME));
            if !is_current && (is_previous || is_ours) {
                application.remove_password(&password.key_id, deadline).await?;
                record("client secret removed", &password.key_id);
            }
        }
        let end: Timestamp = self.clock.now() + LIFETIME;
        let added = application.add_password(&format!("{NAME}{token}"), end, deadline).await?;
        record("client secret added", &added.key_id);
        next.insert("client_secret".into(), json!(added.secret_text.expose()));
        next.insert("key_id".into(), json!(added.key_id));
        next.insert("expires_at".into(), json!(end));
        let next = Secret::new(Value::Object(next).to_string());
        self.versions.put_pending(secret, token, &next).await?;
        Ok("a new secret was created")
    }

    async fn test(&self, secret: &str, token: &str, deadline: Deadline) -> Result<&'static str> {
        // When a schedule is set up, Secrets Manager tries this step alone, before there is anything new.
        let value = match self.versions.pending(secret, token).await? {
            Some(pending) => pending,
            None => self.versions.current(secret).await?,
        };
        let credential = usable(&value, token)?;
        let mut wait = FIRST_WAIT;
        loop {
            let home = &self.config.home_tenant;
            match self.endpoint.app_token(home, IncidentApi::Graph, &credential, deadline).await {
                Ok(_) => return Ok("the new secret gets tokens"),
                Err(Error::CredentialRejected) if deadline.left() > wait * 2 => {
                    tracing::info!(wait_seconds = wait.as_secs(), "Entra does not know the new secret yet");
                    tokio::time::sleep(wait).await;
                    wait *= 2;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The registration of the app that is rotated, spoken to as the rotation's own app.
    async fn application(&self, client_id: &str, deadline: Deadline) -> Result<Application<'_>> {
        let rotator = self.versions.current(&self.config.rotation_credential_secret_id).await?;
        let rotator = usable(&rotator, "")?;
        let home = &self.config.home_tenant;
        let token = self.endpoint.app_token(home, IncidentApi::Graph, &rotator, deadline).await?;
        let graph = &self.config.microsoft.endpoints.graph;
        Ok(Application::new(&self.http, graph, client_id, token.authorization()))
    }
}

fn usable(credential: &Secret, version: &str) -> Result<AppCredential> {
    AppCredential::parse(credential, version.to_owned())
        .map_err(|fault| Error::Internal(format!("a credential in Secrets Manager is not usable: {fault}").into()))
}

fn fields(credential: &Secret) -> Result<serde_json::Map<String, Value>> {
    serde_json::from_str(credential.expose())
        .map_err(|_| Error::Internal("the app credential in Secrets Manager is no JSON object".into()))
}

fn key_id(credential: &Secret) -> Option<String> {
    fields(credential).ok()?.get("key_id")?.as_str().map(str::to_owned)
}

fn record(what: &str, key_id: &str) {
    tracing::info!(target: telemetry::RECORD, audit = true, key_id, "{what}");
}
