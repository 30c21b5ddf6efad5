//! The secret's versions and stages in Secrets Manager.

use aws_config::SdkConfig;
use aws_sdk_secretsmanager::{Client, operation::get_secret_value::GetSecretValueError};
use shared::{
    error::{Error, Result},
    text::Secret,
};

const CURRENT: &str = "AWSCURRENT";
const PENDING: &str = "AWSPENDING";
const PREVIOUS: &str = "AWSPREVIOUS";

/// The versions of secrets in Secrets Manager.
pub(crate) struct SecretVersions {
    client: Client,
}

/// How the version of a rotation stands.
pub(crate) enum Standing {
    /// It is the current one.
    Finished,
    /// It is to become the current one.
    Pending {
        /// The version that is current.
        current: Option<String>,
    },
}

impl SecretVersions {
    pub(crate) fn new(aws: &SdkConfig) -> Self {
        Self { client: Client::new(aws) }
    }

    /// How the version `token` stands. `configured` is the one secret that may be rotated, by name or ARN.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] when Secrets Manager would not have sent this event.
    pub(crate) async fn standing(&self, secret: &str, configured: &str, token: &str) -> Result<Standing> {
        let description = Box::pin(self.client.describe_secret().secret_id(secret).send()).await;
        let description = description.map_err(|error| Error::aws("secretsmanager:DescribeSecret", &error))?;
        if description.arn() != Some(configured) && description.name() != Some(configured) {
            return Err(Error::InvalidRequest("This is not the secret that this function rotates.".into()));
        }
        if description.rotation_enabled() != Some(true) {
            return Err(Error::InvalidRequest("Rotation is not enabled for this secret.".into()));
        }
        let versions = description.version_ids_to_stages.unwrap_or_default();
        let has = |stages: &[String], stage: &str| stages.iter().any(|other| other == stage);
        match versions.get(token) {
            Some(stages) if has(stages, CURRENT) => Ok(Standing::Finished),
            Some(stages) if has(stages, PENDING) => {
                let current = versions.iter().find(|(_, stages)| has(stages, CURRENT));
                Ok(Standing::Pending { current: current.map(|(version, _)| version.clone()) })
            }
            Some(_) | None => Err(Error::InvalidRequest("This version is not pending.".into())),
        }
    }

    /// The pending value, if it was put already.
    pub(crate) async fn pending(&self, secret: &str, token: &str) -> Result<Option<Secret>> {
        self.value(secret, PENDING, Some(token)).await
    }

    /// The current value.
    pub(crate) async fn current(&self, secret: &str) -> Result<Secret> {
        let current = self.value(secret, CURRENT, None).await?;
        current.ok_or_else(|| Error::Internal("a secret has no current version".into()))
    }

    /// The value before the current one, if there is one.
    pub(crate) async fn previous(&self, secret: &str) -> Result<Option<Secret>> {
        self.value(secret, PREVIOUS, None).await
    }

    /// Keeps the value of the version `token`.
    pub(crate) async fn put_pending(&self, secret: &str, token: &str, value: &Secret) -> Result<()> {
        let put = self
            .client
            .put_secret_value()
            .secret_id(secret)
            .client_request_token(token)
            .secret_string(value.expose())
            .version_stages(PENDING);
        Box::pin(put.send()).await.map_err(|error| Error::aws("secretsmanager:PutSecretValue", &error))?;
        Ok(())
    }

    /// Makes the version `token` the current one; the one that was becomes the previous one.
    pub(crate) async fn make_current(&self, secret: &str, token: &str, current: Option<&str>) -> Result<()> {
        let update = self
            .client
            .update_secret_version_stage()
            .secret_id(secret)
            .version_stage(CURRENT)
            .move_to_version_id(token)
            .set_remove_from_version_id(current.map(str::to_owned));
        Box::pin(update.send()).await.map_err(|error| Error::aws("secretsmanager:UpdateSecretVersionStage", &error))?;
        Ok(())
    }

    async fn value(&self, secret: &str, stage: &str, version: Option<&str>) -> Result<Option<Secret>> {
        let get = self
            .client
            .get_secret_value()
            .secret_id(secret)
            .version_stage(stage)
            .set_version_id(version.map(str::to_owned));
        match Box::pin(get.send()).await {
            Ok(answer) => Ok(answer.secret_string.map(Secret::new)),
            Err(error)
                if error.as_service_error().is_some_and(GetSecretValueError::is_resource_not_found_exception) =>
            {
                Ok(None)
            }
            Err(error) => Err(Error::aws("secretsmanager:GetSecretValue", &error)),
        }
    }
}
