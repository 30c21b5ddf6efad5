//! The versions of a secret in Secrets Manager, and their stages.

use aws_config::SdkConfig;
use aws_sdk_secretsmanager::{
    Client,
    operation::{
        describe_secret::DescribeSecretOutput, get_secret_value::GetSecretValueError,
        put_secret_value::PutSecretValueError,
    },
};
use shared::{
    aws::{LazyClient, lazy_client},
    error::{Error, Result},
    registry::Write,
    text::Secret,
};

const CURRENT: &str = "AWSCURRENT";
const PENDING: &str = "AWSPENDING";
const PREVIOUS: &str = "AWSPREVIOUS";

/// Reads and moves the versions of secrets.
pub(crate) struct SecretVersions {
    client: LazyClient<Client>,
}

/// The state of the version that a rotation creates.
pub(crate) enum RotationState {
    /// The version is current.
    Finished,
    /// The version is pending.
    Pending {
        /// The id of the current version.
        current: Option<String>,
    },
}

/// The versions that functions or a rotation may use.
pub(crate) struct VersionsInUse {
    /// The values of the pending, the current and the previous version, as far as they exist.
    pub(crate) values: Vec<Secret>,
    /// The id of the pending version, if it has no value yet.
    pub(crate) without_value: Option<String>,
}

fn has(stages: &[String], stage: &str) -> bool {
    stages.iter().any(|other| other == stage)
}

impl SecretVersions {
    pub(crate) fn new(aws: &SdkConfig) -> Self {
        Self { client: lazy_client(aws, Client::new) }
    }

    /// The state of the version `token`. `configured` is the name or ARN of the one secret that may be rotated.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] for an event that Secrets Manager would not send.
    pub(crate) async fn rotation_state(&self, secret: &str, configured: &str, token: &str) -> Result<RotationState> {
        let description = self.describe(secret).await?;
        if description.arn() != Some(configured) && description.name() != Some(configured) {
            return Err(Error::InvalidRequest("This is not the secret that this function rotates.".into()));
        }
        if description.rotation_enabled() != Some(true) {
            return Err(Error::InvalidRequest("Rotation is not enabled for this secret.".into()));
        }
        let versions = description.version_ids_to_stages.unwrap_or_default();
        match versions.get(token) {
            Some(stages) if has(stages, CURRENT) => Ok(RotationState::Finished),
            Some(stages) if has(stages, PENDING) => {
                let current = versions.iter().find(|(_, stages)| has(stages, CURRENT));
                Ok(RotationState::Pending { current: current.map(|(version, _)| version.clone()) })
            }
            Some(_) | None => Err(Error::InvalidRequest("This version is not pending.".into())),
        }
    }

    /// The value of the pending version `token`. `None` before [`Self::put_pending`].
    pub(crate) async fn pending(&self, secret: &str, token: &str) -> Result<Option<Secret>> {
        self.value(secret, PENDING, Some(token)).await
    }

    /// The value of the current version.
    pub(crate) async fn current(&self, secret: &str) -> Result<Secret> {
        let current = self.value(secret, CURRENT, None).await?;
        current.ok_or_else(|| Error::CredentialUnusable {
            secret_id: secret.to_owned(),
            problem: "does not exist or has no value yet".into(),
        })
    }

    /// The versions that are pending, current and previous. A version that moves on meanwhile is read at least once.
    pub(crate) async fn in_use(&self, secret: &str) -> Result<VersionsInUse> {
        let versions = self.describe(secret).await?.version_ids_to_stages.unwrap_or_default();
        let pending = versions.into_iter().find(|(_, stages)| has(stages, PENDING)).map(|(version, _)| version);
        let mut values = Vec::new();
        for stage in [PENDING, CURRENT, PREVIOUS] {
            values.push(self.value(secret, stage, None).await?);
        }
        let without_value = pending.filter(|_| values.first().is_some_and(Option::is_none));
        Ok(VersionsInUse { values: values.into_iter().flatten().collect(), without_value })
    }

    /// Stores the value of the pending version `token`. [`Write::Conflict`]: another run has stored its value.
    pub(crate) async fn put_pending(&self, secret: &str, token: &str, value: &Secret) -> Result<Write> {
        let put = self
            .client
            .put_secret_value()
            .secret_id(secret)
            .client_request_token(token)
            .secret_string(value.expose())
            .version_stages(PENDING);
        match Box::pin(put.send()).await {
            Ok(_) => Ok(Write::Done),
            // Secrets Manager never changes the value of a version.
            Err(error) if error.as_service_error().is_some_and(PutSecretValueError::is_resource_exists_exception) => {
                Ok(Write::Conflict)
            }
            Err(error) => Err(Error::aws("secretsmanager:PutSecretValue", &error)),
        }
    }

    /// Makes the version `token` current. Secrets Manager makes `current` the previous version.
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

    async fn describe(&self, secret: &str) -> Result<DescribeSecretOutput> {
        let description = Box::pin(self.client.describe_secret().secret_id(secret).send()).await;
        description.map_err(|error| Error::aws("secretsmanager:DescribeSecret", &error))
    }

    async fn value(&self, secret: &str, stage: &str, version: Option<&str>) -> Result<Option<Secret>> {
        let get = self
            .client
            .get_secret_value()
            .secret_id(secret)
            .version_stage(stage)
            .set_version_id(version.map(str::to_owned));
        match Box::pin(get.send()).await {
            Ok(response) => Ok(response.secret_string.map(Secret::new)),
            Err(error)
                if error.as_service_error().is_some_and(GetSecretValueError::is_resource_not_found_exception) =>
            {
                Ok(None)
            }
            Err(error) => Err(Error::aws("secretsmanager:GetSecretValue", &error)),
        }
    }
}
