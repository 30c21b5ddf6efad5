//! The app credential: what Entra accepts as proof of who the app is, in one of four kinds.

use std::fmt;

use aws_lc_rs::digest;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jiff::Timestamp;
use jsonwebtoken::EncodingKey;
use rustls::pki_types::{CertificateDer, pem::PemObject};
use serde::Deserialize;
use serde_json::Value;

use crate::text::Secret;

/// One version of the app's credential.
pub struct AppCredential {
    client_id: String,
    version: String,
    kind: CredentialKind,
    expiry: Expiry,
}

/// The member `expires_at` of the credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expiry {
    /// The credential names no end.
    Unknown,
    /// The end of the credential.
    At(Timestamp),
    /// The member is not an RFC 3339 time.
    Malformed,
}

/// The four kinds of credential.
pub(super) enum CredentialKind {
    /// The secret goes into each request.
    ClientSecret(Secret),
    /// A certificate. Its private key is in memory and signs client assertions.
    Certificate { thumbprint: String, key: Box<EncodingKey> },
    /// A certificate. Its private key stays in KMS, which signs client assertions.
    Kms {
        thumbprint: String,
        /// Key id, ARN or alias.
        key_id: String,
    },
    /// No secret: a web identity token of the function's role is the client assertion.
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
    #[serde(default)]
    expires_at: Value,
}

impl AppCredential {
    /// Parses the JSON that the secret holds. `version` is the version id in Secrets Manager.
    ///
    /// # Errors
    /// A sentence for the operator, which never shows a value.
    pub fn parse(json: &Secret, version: String) -> Result<Self, &'static str> {
        // The error is dropped, because it may quote the value that it could not parse.
        let body: Body = serde_json::from_str(json.expose()).map_err(
            |_| "it is not a JSON object whose client_id, client_secret, certificate, private_key and kms_key_id are texts and whose federated is true or false",
        )?;
        let client_id = non_blank(body.client_id).ok_or("client_id is missing")?;
        let client_secret = body.client_secret.filter(|secret| !secret.expose().trim().is_empty());
        let private_key = body.private_key.filter(|key| !key.expose().trim().is_empty());
        let (certificate, kms_key_id) = (non_blank(body.certificate), non_blank(body.kms_key_id));
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
        let expiry = Expiry::parse(&body.expires_at);
        Ok(Self { client_id, version, kind, expiry })
    }

    pub(super) fn client_id(&self) -> &str {
        &self.client_id
    }

    /// The version id in Secrets Manager.
    pub(super) fn version(&self) -> &str {
        &self.version
    }

    pub(super) fn kind(&self) -> &CredentialKind {
        &self.kind
    }

    pub(super) fn expiry(&self) -> Expiry {
        self.expiry
    }
}

impl Expiry {
    /// A malformed time refuses no credential, because Entra decides about its validity.
    fn parse(value: &Value) -> Self {
        match value {
            Value::Null => Self::Unknown,
            other => other.as_str().and_then(|text| text.parse().ok()).map_or(Self::Malformed, Self::At),
        }
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

fn non_blank(text: Option<String>) -> Option<String> {
    text.filter(|text| !text.trim().is_empty())
}

/// The SHA-256 of the certificate's DER, as the header member `x5t#S256` has it.
fn thumbprint(pem: &str) -> Result<String, &'static str> {
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| "certificate is not a certificate in PEM")?;
    Ok(BASE64_URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, &der)))
}

#[cfg(test)]
pub(super) mod tests {
    use aws_lc_rs::{
        encoding::{AsDer, Pkcs8V1Der},
        rsa::{KeyPair, KeySize},
        signature::KeyPair as _,
    };
    use base64::prelude::BASE64_STANDARD;
    use serde_json::json;

    use super::*;

    /// A stand-in for a certificate. Only its bytes are hashed, so any will do.
    pub(crate) const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nAQIDBA==\n-----END CERTIFICATE-----\n";

    /// A new key pair: the private key as PKCS #8 in PEM, the public key in DER.
    pub(crate) fn key_pair() -> (String, Vec<u8>) {
        let key = KeyPair::generate(KeySize::Rsa2048).unwrap();
        let der: Pkcs8V1Der<'_> = key.as_der().unwrap();
        let pem = format!(
            "-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n",
            BASE64_STANDARD.encode(der.as_ref())
        );
        (pem, key.public_key().as_ref().to_vec())
    }

    pub(crate) fn credential(json: &Value) -> Result<AppCredential, &'static str> {
        AppCredential::parse(&Secret::new(json.to_string()), "v1".into())
    }

    #[test]
    fn members_of_the_secret_decide_the_kind() {
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
    fn no_kind_or_two_kinds_are_refused_without_values() {
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
            let problem = credential(&json).unwrap_err();
            assert!(problem.contains(words) && !problem.contains("canary"), "{json}: {problem}");
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
