//! Client assertions: signed JWTs that prove who the app is, in place of a client secret. See "Microsoft identity platform
//! application authentication certificate credentials".

use aws_sdk_kms::{
    primitives::Blob,
    types::{MessageType, SigningAlgorithmSpec},
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jiff::{SignedDuration, Timestamp};
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    credential::{AppCredential, CredentialKind},
    web_identity::WebIdentity,
};
use crate::{
    aws::{LazyClient, lazy_client},
    clock::Clock,
    error::{Error, Result},
    http::Deadline,
    microsoft::Cloud,
    random::{Random, random_uuid},
    text::Secret,
};

const ASSERTION_LIFETIME: SignedDuration = SignedDuration::from_mins(5);

/// Builds client assertions for the token endpoints of one cloud.
pub(super) struct ClientAssertions {
    cloud: Cloud,
    kms: LazyClient<aws_sdk_kms::Client>,
    web_identity: WebIdentity,
    clock: Clock,
    random: Random,
}

impl ClientAssertions {
    pub(super) fn new(cloud: Cloud, aws: &aws_config::SdkConfig, clock: Clock, random: Random) -> Self {
        let web_identity = WebIdentity::new(aws, cloud.federation_audience(), clock.clone());
        Self { cloud, kms: lazy_client(aws, aws_sdk_kms::Client::new), web_identity, clock, random }
    }

    /// A client assertion for the token endpoint of `authority`. `None` for a client secret, which needs none.
    pub(super) async fn assertion(
        &self,
        authority: &str,
        credential: &AppCredential,
        deadline: Deadline,
    ) -> Result<Option<Secret>> {
        match credential.kind() {
            CredentialKind::ClientSecret(_) => Ok(None),
            CredentialKind::Certificate { thumbprint, key } => {
                let input = self.signing_input(authority, credential.client_id(), thumbprint)?;
                sign_with_key(&input, key).map(Some)
            }
            CredentialKind::Kms { thumbprint, key_id } => {
                let input = self.signing_input(authority, credential.client_id(), thumbprint)?;
                self.sign_with_kms(&input, key_id, deadline).await.map(Some)
            }
            CredentialKind::Federated => {
                let token = self.web_identity.token(deadline).await?;
                Ok(Some(Secret::new(token.expose().to_owned())))
            }
        }
    }

    /// Drops what is cached, because Entra refused an assertion.
    pub(super) async fn forget(&self) {
        self.web_identity.forget().await;
    }

    async fn sign_with_kms(&self, input: &str, key_id: &str, deadline: Deadline) -> Result<Secret> {
        let request = self
            .kms
            .sign()
            .key_id(key_id)
            .message(Blob::new(input.as_bytes()))
            .message_type(MessageType::Raw)
            .signing_algorithm(SigningAlgorithmSpec::RsassaPssSha256)
            .send();
        let response = deadline.run(async { Ok(Box::pin(request).await) }).await?;
        let signature = response.map_err(|error| Error::aws("kms:Sign", &error))?.signature;
        let signature = signature.ok_or_else(|| Error::Internal("kms:Sign: the response has no signature".into()))?;
        Ok(Secret::new(format!("{input}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))))
    }

    fn signing_input(&self, authority: &str, client_id: &str, thumbprint: &str) -> Result<String> {
        let jti = random_uuid(self.random.as_ref())?;
        Ok(signing_input(&self.cloud.token_endpoint(authority), client_id, thumbprint, jti, self.clock.now()))
    }
}

fn sign_with_key(input: &str, key: &EncodingKey) -> Result<Secret> {
    let signature = jsonwebtoken::crypto::sign(input.as_bytes(), key, Algorithm::PS256)
        .map_err(|_| Error::Internal("the client assertion could not be signed".into()))?;
    Ok(Secret::new(format!("{input}.{signature}")))
}

/// Header and claims of a client assertion, encoded for the signature.
fn signing_input(audience: &str, client_id: &str, thumbprint: &str, jti: Uuid, now: Timestamp) -> String {
    let header = json!({"alg": "PS256", "typ": "JWT", "x5t#S256": thumbprint});
    let now = now.as_second();
    let claims = json!({"aud": audience, "iss": client_id, "sub": client_id, "jti": jti, "nbf": now, "iat": now,
                        "exp": now + ASSERTION_LIFETIME.as_secs()});
    let encoded = |value: Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}", encoded(header), encoded(claims))
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use aws_lc_rs::rand::SystemRandom;
    use jsonwebtoken::{DecodingKey, Validation};

    use super::*;
    use crate::entra::credential::tests::{CERTIFICATE, credential, key_pair};

    #[tokio::test]
    async fn certificate_assertion_is_ps256_and_verifies() {
        let (private_key, public_key) = key_pair();
        let json = json!({"client_id": "app", "certificate": CERTIFICATE, "private_key": private_key});
        let credential = credential(&json).unwrap();
        let aws = aws_config::SdkConfig::builder().behavior_version(aws_config::BehaviorVersion::latest()).build();
        let random = Arc::new(SystemRandom::new());
        let assertions = ClientAssertions::new(Cloud::Commercial, &aws, Clock::system(), random);
        let deadline = Deadline::within(Duration::from_secs(5), &Clock::system());
        let mut ids = Vec::new();
        for authority in ["organizations", "11111111-2222-4333-8444-abcdefabcdef"] {
            let assertion = assertions.assertion(authority, &credential, deadline).await.unwrap().unwrap();
            let mut validation = Validation::new(Algorithm::PS256);
            validation.set_audience(&[format!("https://login.microsoftonline.com/{authority}/oauth2/v2.0/token")]);
            validation.set_issuer(&["app"]);
            validation.validate_nbf = true;
            let key = DecodingKey::from_rsa_der(&public_key);
            let decoded = jsonwebtoken::decode::<Value>(assertion.expose(), &key, &validation).unwrap();
            assert_eq!(decoded.header.x5t_s256.as_deref(), Some("n2SnR-G5fxMfq7a0Rylsm28CAeefs8U1bmx36JtqgGo"));
            assert_eq!(decoded.claims["sub"], "app");
            assert_eq!(decoded.claims["exp"].as_i64().unwrap() - decoded.claims["nbf"].as_i64().unwrap(), 300);
            ids.push(decoded.claims["jti"].as_str().unwrap().parse::<Uuid>().unwrap());
        }
        assert_ne!(ids[0], ids[1], "each assertion has an identifier of its own");
    }
}
