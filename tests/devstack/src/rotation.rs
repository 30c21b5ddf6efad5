//! Secrets Manager's part in a rotation: it creates a pending version without a value and calls the four steps.
//! <https://docs.aws.amazon.com/secretsmanager/latest/userguide/rotate-secrets_lambda-functions.html>

use std::sync::Arc;

use serde::Deserialize;
use serde_json::json;

use crate::{ambient, aws::failed, error::StackError, pool::Pool};

const STEPS: [&str; 4] = ["createSecret", "setSecret", "testSecret", "finishSecret"];
const PENDING_STAGE: &str = "AWSPENDING";
const DOING: &str = "rotating a secret";

/// A rotation schedule as `deploy.py` reports it: the ARN of the secret and the name of the function.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct RotationConfig {
    pub(crate) secret: String,
    pub(crate) function: String,
}

/// The rotation of one secret by one function.
#[derive(Debug)]
pub(crate) struct Rotation {
    secret: String,
    function: Arc<Pool>,
    secrets: aws_sdk_secretsmanager::Client,
}

impl Rotation {
    pub(crate) fn new(secret: String, function: Arc<Pool>, secrets: aws_sdk_secretsmanager::Client) -> Self {
        Self { secret, function, secrets }
    }

    /// The ARN of the secret.
    pub(crate) fn secret(&self) -> &str {
        &self.secret
    }

    /// Rotates the secret once. A step that fails ends the rotation. AWS would retry the step; here the next call starts a
    /// new rotation.
    pub(crate) async fn rotate(&self) -> Result<(), StackError> {
        let token = ambient::request_id().to_string();
        // moto creates the version and calls no function.
        let start = self.secrets.rotate_secret().secret_id(&self.secret).client_request_token(&token);
        let start = start.rotation_lambda_arn(&self.function.spec().arn);
        start.send().await.map_err(|error| failed(DOING, &error))?;
        for step in STEPS {
            let event = json!({ "Step": step, "SecretId": self.secret, "ClientRequestToken": token });
            self.function.invoke(&event).await.map_err(|error| StackError::RotationFailed { step, error })?;
        }
        let finish = self.secrets.update_secret_version_stage().secret_id(&self.secret);
        let finish = finish.version_stage(PENDING_STAGE).remove_from_version_id(&token);
        finish.send().await.map_err(|error| failed(DOING, &error))?;
        Ok(())
    }
}
