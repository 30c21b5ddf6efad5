//! How the app proves who it is: the credential in Secrets Manager, its four kinds, and where it is kept.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use aws_lc_rs::digest;
use aws_sdk_dynamodb::error::{ProvideErrorMetadata, SdkError};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jiff::{SignedDuration, Timestamp};
use jsonwebtoken::EncodingKey;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde::Deserialize;
use tokio::sync::OnceCell;

use crate::{
    clock::Clock,
    error::{Error, Result},
    http::Deadline,
    text::Secret,
};

/// How long a secret that was read is used without looking again.
const KEPT: SignedDuration = SignedDuration::from_mins(5);

/// How long a secret that could not be read again is used before the next look.
const KEPT_ON_FAILURE: SignedDuration = SignedDuration::from_secs(30);

/// How long Secrets Manager may take.
const READ: Duration = Duration::from_secs(5);

/// One version of the app's credential.
pub struct AppCredential {
    client_id: String,
    version: String,
    kind: CredentialKind,
}

/// The ways of proving who the app is.
pub enum CredentialKind {
    /// A client secret.
    ClientSecret(Secret),
    /// A certificate whose private key is in our memory.
    Certificate {
        /// `x5t#S256`.
        thumbprint: String,
        /// Signs.
        key: Box<EncodingKey>,
    },
    /// A certificate whose private key never leaves KMS.
    Kms {
        /// `x5t#S256`.
        thumbprint: String,
        /// Key id, ARN or alias.
        key_id: String,
    },
    /// No secret at all: AWS vouches for the function's role.
    Federated,
}

#[derive(Deserialize)]
struct Body {
    client_id: Option<String>,
    client_secret: Option<Secret>,
    certificate: Option<String>,
    private_key: Option<Secret>,
    kms_key_id: Option<String>,
    #[serde(default)]
    federated: Option<bool>,
}

impl AppCredential {
    /// Reads the JSON that the secret holds; `version` is its version in Secrets Manager.
    ///
    /// # Errors
    /// Words for the operator, which never show a value.
    pub fn parse(json: &Secret, version: String) -> std::result::Result<Self, &'static str> {
        // The error is dropped because it may quote what it could not read.
        let body: Body = serde_json::from_str(json.expose()).map_err(
            |_| "it is not a JSON object whose client_id, client_secret, certificate, private_key and kms_key_id are texts and whose federated is true or false",
        )?;
        let client_id = given(body.client_id).ok_or("client_id is missing")?;
        let client_secret = body.client_secret.filter(|secret| !secret.expose().trim().is_empty());
        let private_key = body.private_key.filter(|key| !key.expose().trim().is_empty());
        let (certificate, kms_key_id) = (given(body.certificate), given(body.kms_key_id));
        let federated = body.federated == Some(true);
        let kind = match (client_secret, certificate, private_key, kms_key_id, federated) {
            (Some(secret), None, None, None, false) => CredentialKind::ClientSecret(secret),
            (None, Some(certificate), Some(key), None, false) => {
                let key = EncodingKey::from_rsa_pem(key.expose().as_bytes())
                    .map_err(|_| "private_key is not an RSA private key in PEM")?;
                CredentialKind::Certificate { thumbprint: thumbprint(&certificate)?, key: Box::new(key) }
            }
            (None, Some(certificate), None, Some(key_id), false) => {
                CredentialKind::Kms { thumbprint: thumbprint(&certificate)?, key_id }
            }
            (None, None, None, None, true) => CredentialKind::Federated,
            (None, Some(_), None, None, false) => return Err("certificate needs private_key or kms_key_id beside it"),
            (None, None, Some(_), _, false) | (None, None, None, Some(_), false) => {
                return Err("private_key and kms_key_id need certificate beside them");
            }
            (None, None, None, None, false) => {
                return Err(
                    "it holds no credential: give one of client_secret, certificate + private_key, certificate + kms_key_id, federated",
                );
            }
            _ => {
                return Err(
                    "it holds more than one credential: keep exactly one of client_secret, certificate + private_key, certificate + kms_key_id, federated",
                );
            }
        };
        Ok(Self { client_id, version, kind })
    }

    /// The application's id.
    pub fn client_id(&self) -> &str {
        &self.client_id
    }

    /// The version of the secret that this is.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Which way it is.
    pub fn kind(&self) -> &CredentialKind {
        &self.kind
    }
}

impl fmt::Debug for AppCredential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            CredentialKind::ClientSecret(_) => "client_secret",
            CredentialKind::Certificate { .. } => "certificate",
            CredentialKind::Kms { .. } => "kms",
            CredentialKind::Federated => "federated",
        };
        f.debug_struct("AppCredential").field("client_id", &self.client_id).field("kind", &kind).finish_non_exhaustive()
    }
}

fn given(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.trim().is_empty())
}

/// The SHA-256 of the certificate's DER, as `x5t#S256` wants it.
fn thumbprint(pem: &str) -> std::result::Result<String, &'static str> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| "certificate is not a certificate in PEM")?;
    Ok(BASE64_URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, &der)))
}

/// The secret as it was read last: the current version, and the one before it where that is asked for.
pub(super) struct CredentialVersions {
    pub(super) current: Arc<AppCredential>,
    previous: OnceCell<Option<Arc<AppCredential>>>,
    /// Entra refused the current version and took the previous one: a rotation that has not spread yet.
    previous_works: AtomicBool,
    reading: u64,
}

impl CredentialVersions {
    /// The version that Entra is likely to take.
    pub(super) fn preferred(&self) -> Arc<AppCredential> {
        match self.previous.get() {
            Some(Some(previous)) if self.previous_works.load(Ordering::Relaxed) => previous.clone(),
            _ => self.current.clone(),
        }
    }

    pub(super) fn note_that_previous_works(&self) {
        self.previous_works.store(true, Ordering::Relaxed);
    }
}

/// Reads the app's credential from Secrets Manager and keeps it for five minutes; longer where Secrets Manager is down.
pub(super) struct CredentialCache {
    client: aws_sdk_secretsmanager::Client,
    secret_id: String,
    clock: Clock,
    kept: Mutex<Option<Kept>>,
    flight: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
struct Kept {
    loaded: Arc<CredentialVersions>,
    until: Timestamp,
}

impl CredentialCache {
    pub(super) fn new(aws: &aws_config::SdkConfig, secret_id: String, clock: Clock) -> Self {
        Self {
            client: aws_sdk_secretsmanager::Client::new(aws),
            secret_id,
            clock,
            kept: Mutex::new(None),
            flight: tokio::sync::Mutex::new(()),
        }
    }

    /// The credential, read at most five minutes ago, or longer ago where it cannot be read now.
    pub(super) async fn loaded(&self, deadline: Deadline) -> Result<Arc<CredentialVersions>> {
        if let Some(loaded) = self.unexpired() {
            return Ok(loaded);
        }
        let _flight = match (self.flight.try_lock(), self.kept()) {
            (Ok(flight), _) => flight,
            (Err(_), Some(kept)) => return Ok(kept.loaded),
            (Err(_), None) => deadline.run(async { Ok(self.flight.lock().await) }).await?,
        };
        match self.unexpired() {
            Some(loaded) => Ok(loaded),
            None => self.read(deadline).await,
        }
    }

    /// The credential as it is now, after Entra refused what an earlier reading gave.
    pub(super) async fn reloaded(
        &self,
        refused: &CredentialVersions,
        deadline: Deadline,
    ) -> Result<Arc<CredentialVersions>> {
        let _flight = deadline.run(async { Ok(self.flight.lock().await) }).await?;
        match self.kept() {
            Some(kept) if kept.loaded.reading > refused.reading => Ok(kept.loaded),
            _ => self.read(deadline).await,
        }
    }

    /// The version before the current one, where there is one of the same application.
    pub(super) async fn previous(&self, loaded: &CredentialVersions, deadline: Deadline) -> Option<Arc<AppCredential>> {
        let read = loaded.previous.get_or_try_init(|| async {
            let previous = self.version("AWSPREVIOUS", deadline).await?;
            // Another application is another set of consents.
            Ok::<_, Error>(previous.filter(|previous| previous.client_id == loaded.current.client_id).map(Arc::new))
        });
        match read.await {
            Ok(previous) => previous.clone(),
            Err(error) => {
                tracing::warn!(cause = %error, "the previous version of the app credential could not be read");
                None
            }
        }
    }

    fn kept(&self) -> Option<Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn unexpired(&self) -> Option<Arc<CredentialVersions>> {
        self.kept().filter(|kept| self.clock.now() < kept.until).map(|kept| kept.loaded)
    }

    fn keep(&self, loaded: &Arc<CredentialVersions>, duration: SignedDuration) {
        let kept = Kept { loaded: loaded.clone(), until: self.clock.now() + duration };
        *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
    }

    async fn read(&self, deadline: Deadline) -> Result<Arc<CredentialVersions>> {
        let before = self.kept().map(|kept| kept.loaded);
        let read = self.version("AWSCURRENT", deadline).await.and_then(|current| {
            current.ok_or_else(|| Error::Internal("the secret of the app credential has no current version".into()))
        });
        match (read, before) {
            (Ok(current), before) => {
                let reading = before.map_or(0, |before| before.reading) + 1;
                let loaded = Arc::new(CredentialVersions {
                    current: Arc::new(current),
                    previous: OnceCell::new(),
                    previous_works: AtomicBool::new(false),
                    reading,
                });
                self.keep(&loaded, KEPT);
                Ok(loaded)
            }
            (Err(error), Some(before)) => {
                tracing::error!(cause = %error, "the app credential could not be read again; the one read before stays in use");
                self.keep(&before, KEPT_ON_FAILURE);
                Ok(before)
            }
            (Err(error), None) => Err(error),
        }
    }

    async fn version(&self, stage: &str, deadline: Deadline) -> Result<Option<AppCredential>> {
        const CALL: &str = "secretsmanager:GetSecretValue";
        let request = Box::pin(self.client.get_secret_value().secret_id(&self.secret_id).version_stage(stage).send());
        let answer = deadline.at_most(READ).run(async { Ok(request.await) }).await?;
        let answer = match answer {
            Ok(answer) => answer,
            Err(SdkError::ServiceError(error))
                if stage == "AWSPREVIOUS" && error.err().code() == Some("ResourceNotFoundException") =>
            {
                return Ok(None);
            }
            Err(error) => return Err(Error::aws(CALL, &error)),
        };
        let version = answer.version_id.unwrap_or_default();
        let json = Secret::new(answer.secret_string.unwrap_or_default());
        match AppCredential::parse(&json, version) {
            Ok(credential) => Ok(Some(credential)),
            Err(fault) => Err(Error::Internal(
                format!("the secret of the app credential ({stage}) is not usable: {fault}").into(),
            )),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use aws_lc_rs::{
        encoding::{AsDer, Pkcs8V1Der},
        rsa::{KeyPair, KeySize},
        signature::KeyPair as _,
    };
    use base64::prelude::BASE64_STANDARD;
    use serde_json::{Value, json};

    use super::*;

    /// Only the bytes of a certificate are hashed, so any will do.
    pub(crate) const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nAQIDBA==\n-----END CERTIFICATE-----\n";

    /// A key that is new in each run, as PKCS #8 in PEM, and its public part in DER.
    pub(crate) fn key_pair() -> (String, Vec<u8>) {
        let key = KeyPair::generate(KeySize::Rsa2048).unwrap();
        let der: Pkcs8V1Der<'_> = key.as_der().unwrap();
        let pem = format!(
            "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
            BASE64_STANDARD.encode(der.as_ref())
        );
        (pem, key.public_key().as_ref().to_vec())
    }

    pub(crate) fn credential(json: &Value) -> std::result::Result<AppCredential, &'static str> {
        AppCredential::parse(&Secret::new(json.to_string()), "v1".into())
    }

    #[test]
    fn each_kind_is_chosen_by_what_the_secret_holds() {
        let kind = |json: Value| credential(&json).unwrap().kind;
        let (private_key, _) = key_pair();
        assert!(matches!(
            kind(json!({"client_id": "a", "client_secret": "s", "key_id": "k", "expires_at": "2027-01-01T00:00:00Z", "federated": false})),
            CredentialKind::ClientSecret(secret) if secret.expose() == "s"
        ));
        let certificate = kind(json!({"client_id": "a", "certificate": CERTIFICATE, "private_key": private_key}));
        assert!(matches!(certificate, CredentialKind::Certificate { thumbprint, .. } if thumbprint.len() == 43));
        let kms =
            kind(json!({"client_id": "a", "certificate": CERTIFICATE, "kms_key_id": "alias/x", "client_secret": null}));
        assert!(matches!(kms, CredentialKind::Kms { key_id, .. } if key_id == "alias/x"));
        assert!(matches!(
            kind(json!({"client_id": "a", "federated": true, "client_secret": ""})),
            CredentialKind::Federated
        ));
    }

    #[test]
    fn none_or_two_kinds_are_refused_with_words_and_without_values() {
        let (private_key, _) = key_pair();
        let table = [
            (json!({"client_secret": "canary"}), "client_id is missing"),
            (json!({"client_id": "a"}), "no credential"),
            (json!({"client_id": "a", "federated": false}), "no credential"),
            (json!({"client_id": "a", "certificate": CERTIFICATE}), "needs private_key or kms_key_id"),
            (json!({"client_id": "a", "private_key": "canary"}), "need certificate"),
            (json!({"client_id": "a", "kms_key_id": "canary"}), "need certificate"),
            (json!({"client_id": "a", "client_secret": "canary", "federated": true}), "more than one"),
            (json!({"client_id": "a", "client_secret": "canary", "certificate": CERTIFICATE}), "more than one"),
            (
                json!({"client_id": "a", "certificate": CERTIFICATE, "private_key": private_key, "kms_key_id": "canary"}),
                "more than one",
            ),
            (json!({"client_id": "a", "certificate": CERTIFICATE, "private_key": "canary"}), "not an RSA private key"),
            (json!({"client_id": "a", "certificate": "canary", "kms_key_id": "k"}), "not a certificate"),
            (json!({"client_id": "a", "client_secret": 7}), "not a JSON object"),
            (json!("canary"), "not a JSON object"),
        ];
        for (json, words) in table {
            let fault = credential(&json).unwrap_err();
            assert!(fault.contains(words) && !fault.contains("canary"), "{json}: {fault}");
        }
    }

    #[test]
    fn debug_output_shows_no_secret() {
        let (private_key, _) = key_pair();
        for json in [
            json!({"client_id": "a", "client_secret": "canary"}),
            json!({"client_id": "a", "certificate": CERTIFICATE, "private_key": private_key}),
        ] {
            let shown = format!("{:?}", credential(&json).unwrap());
            assert!(!shown.contains("canary") && !shown.contains("PRIVATE") && shown.len() < 100, "{shown}");
        }
    }
}
