//! Replaces the app's client secret in the four steps of Secrets Manager's rotation.
//!
//! Entra generates the value, so the step that creates it also registers it. The previous secret stays valid while caches
//! may hold it. The last step removes older secrets of the rotation, and those that a killed run left. It removes no
//! secret before its replacement is current, and none that the rotation did not make. Each step may be repeated at any
//! time, and two runs of a step may overlap.

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
    registry::Write,
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
            RotationState::Finished if matches!(step, Step::Finish) => self.remove_unused(&secret, deadline).await?,
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
                    self.remove_unused(&secret, deadline).await?
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
        let mut next = fields(&current)?;
        if !next.contains_key("client_secret") {
            return Err(Error::Internal(
                "the app credential is not a client secret, so there is nothing to rotate".into(),
            ));
        }
        let application = self.application(&current, deadline).await?;
        let end: Timestamp = self.clock.now() + SECRET_LIFETIME;
        let added = application.add_password(&format!("{SECRET_NAME_PREFIX}{token}"), end, deadline).await?;
        write_audit("client secret added", &added.key_id);
        next.insert("client_secret".into(), json!(added.secret_text.expose()));
        next.insert("key_id".into(), json!(added.key_id));
        next.insert("expires_at".into(), json!(end));
        let next = Secret::new(Value::Object(next).to_string());
        match self.versions.put_pending(secret, token, &next).await? {
            Write::Done => Ok("a new secret was created"),
            Write::Conflict => {
                remove_password(&application, &added.key_id, deadline).await?;
                Ok("nothing: another run of this step stored its value first")
            }
        }
    }

    /// Removes the rotation's secrets that no version holds. Removes nothing if a version does not name its secret by
    /// `key_id`, because each of them may be that version's.
    async fn remove_unused(&self, secret: &str, deadline: Deadline) -> Result<&'static str> {
        let current = self.versions.current(secret).await?;
        let application = self.application(&current, deadline).await?;
        // A secret that a later round adds after this list is not in it. One that was added before has its version below.
        let passwords = application.passwords(deadline).await?;
        let versions = self.versions.in_use(secret).await?;
        let Some(used) = versions.values.iter().map(key_id).collect::<Option<Vec<_>>>() else {
            return Ok("the new version is current; no old secret was removed, because a version has no key_id");
        };
        for password in passwords {
            let token = password.display_name.as_deref().and_then(|name| name.strip_prefix(SECRET_NAME_PREFIX));
            let is_unused = !used.contains(&password.key_id) && token.map(str::to_owned) != versions.without_value;
            if token.is_some() && is_unused {
                remove_password(&application, &password.key_id, deadline).await?;
            }
        }
        Ok("the new version is current, and unused secrets were removed")
    }

    async fn test(&self, secret: &str, token: &str, deadline: Deadline) -> Result<&'static str> {
        // Secrets Manager runs this step alone when a schedule is set up. No version is pending then.
        let value = match self.versions.pending(secret, token).await? {
            Some(pending) => pending,
            None => self.versions.current(secret).await?,
        };
        let credential = parse_credential(&value, secret, token)?;
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
    async fn application(&self, credential: &Secret, deadline: Deadline) -> Result<Application<'_>> {
        let client_id = member(credential, "client_id").unwrap_or_default();
        if client_id.is_empty() {
            return Err(Error::Internal("the app credential has no client_id".into()));
        }
        let rotator_secret = &self.config.rotation_credential_secret_id;
        let rotator = parse_credential(&self.versions.current(rotator_secret).await?, rotator_secret, "")?;
        let home = &self.config.home_tenant;
        let token = self.endpoint.app_token(home, IncidentApi::Graph, &rotator, deadline).await?;
        let graph = &self.config.microsoft.endpoints.graph;
        Ok(Application::new(&self.http, graph, &client_id, token.authorization()))
    }
}

fn parse_credential(credential: &Secret, secret_id: &str, version: &str) -> Result<AppCredential> {
    AppCredential::parse(credential, version.to_owned()).map_err(|problem| Error::CredentialUnusable {
        secret_id: secret_id.to_owned(),
        problem: format!("holds no usable credential: {problem}"),
    })
}

fn fields(credential: &Secret) -> Result<serde_json::Map<String, Value>> {
    serde_json::from_str(credential.expose())
        .map_err(|_| Error::Internal("the app credential in Secrets Manager is not a JSON object".into()))
}

fn key_id(credential: &Secret) -> Option<String> {
    member(credential, "key_id")
}

fn member(credential: &Secret, name: &str) -> Option<String> {
    fields(credential).ok()?.get(name)?.as_str().map(str::to_owned)
}

async fn remove_password(application: &Application<'_>, key_id: &str, deadline: Deadline) -> Result<()> {
    application.remove_password(key_id, deadline).await?;
    write_audit("client secret removed", key_id);
    Ok(())
}

fn write_audit(event: &str, key_id: &str) {
    tracing::info!(target: telemetry::RECORD, audit = true, key_id, "{event}");
}
