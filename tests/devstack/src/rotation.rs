//! Secrets Manager's part in a rotation: a pending version without a value, and the four steps.
//! <https://docs.aws.amazon.com/secretsmanager/latest/userguide/rotate-secrets_lambda-functions.html>

use std::sync::Arc;

use serde::Deserialize;
use serde_json::json;

use crate::{ambient, aws::failed, error::StackError, pool::Pool};

const STEPS: [&str; 4] = ["createSecret", "setSecret", "testSecret", "finishSecret"];
const PENDING: &str = "AWSPENDING";
const DOING: &str = "rotating a secret";

/// A secret that the template rotates.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Declared {
    pub(crate) secret: String,
    pub(crate) function: String,
}

/// Its rotation.
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

    /// The ARN of what is rotated.
    pub(crate) fn secret(&self) -> &str {
        &self.secret
    }

    /// One round. A step that fails ends it, and is not repeated as AWS does; the next round is another.
    pub(crate) async fn rotate(&self) -> Result<(), StackError> {
        let token = ambient::request_id().to_string();
        // moto makes the version, and takes the steps for done.
        let begin = self.secrets.rotate_secret().secret_id(&self.secret).client_request_token(&token);
        let begin = begin.rotation_lambda_arn(&self.function.spec().arn);
        begin.send().await.map_err(|error| failed(DOING, &error))?;
        for step in STEPS {
            let event = json!({ "Step": step, "SecretId": self.secret, "ClientRequestToken": token });
            self.function.invoke(&event).await.map_err(|error| StackError::RotationFailed { step, error })?;
        }
        let end = self.secrets.update_secret_version_stage().secret_id(&self.secret);
        let end = end.version_stage(PENDING).remove_from_version_id(&token);
        end.send().await.map_err(|error| failed(DOING, &error))?;
        Ok(())
    }
}
