//! KMS and STS: an RSA key that signs, and web identity tokens that it signed.

use std::collections::BTreeMap;

use aws_lc_rs::{
    encoding::{AsDer, PublicKeyX509Der},
    rand::SystemRandom,
    rsa::{KeyPair, KeySize},
    signature::{self, KeyPair as _, RsaEncoding},
};
use axum::response::{IntoResponse, Response};
use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use serde_json::{Value, json};

use crate::{
    Aws,
    wire::{Refusal, Served, invalid, only, text},
};

/// The issuer of STS's web identity tokens.
pub const ISSUER: &str = "https://3f7d.tokens.sts.global.api.aws";
/// The subject of STS's web identity tokens.
pub const ROLE_ARN: &str = "arn:aws:iam::123456789012:role/mandate";
/// The only audience that STS makes tokens for: Entra's.
const AUDIENCE: &str = "api://AzureADTokenExchange";
const LIFETIME_SECONDS: i64 = 300;

impl Aws {
    /// The account's key in KMS, RSA with 2,048 bits. STS signs with the same key.
    pub fn kms_key(&self) -> Result<&KeyPair, aws_lc_rs::error::Unspecified> {
        // Whoever makes the key first wins.
        if self.shared.kms_key.get().is_none() {
            let _ = self.shared.kms_key.set(KeyPair::generate(KeySize::Rsa2048)?);
        }
        self.shared.kms_key.get().ok_or(aws_lc_rs::error::Unspecified)
    }

    /// The keys that verify STS's web identity tokens, as its issuer publishes them.
    pub fn jwks(&self) -> Result<Value, aws_lc_rs::error::Unspecified> {
        // PKCS #1 of 2,048 bits: nine bytes before the modulus, five before the exponent, which has three.
        let key = self.kms_key()?.public_key().as_ref().to_vec();
        let (n, e) = (BASE64_URL_SAFE_NO_PAD.encode(&key[9..265]), BASE64_URL_SAFE_NO_PAD.encode(&key[267..]));
        Ok(json!({"keys": [{"kty": "RSA", "kid": "aws", "n": n, "e": e}]}))
    }

    fn signed(&self, algorithm: &'static dyn RsaEncoding, message: &[u8]) -> Served<Vec<u8>> {
        let failed = |_| Refusal::new("KMSInternalException", "the key does not sign");
        let key = self.kms_key().map_err(failed)?;
        let mut bytes = vec![0; key.public_modulus_len()];
        key.sign(algorithm, &SystemRandom::new(), message, &mut bytes).map_err(failed)?;
        Ok(bytes)
    }

    pub(crate) fn kms(&self, operation: &str, request: &Value) -> Served {
        let key_id = text(request, "KeyId")?;
        if operation == "GetPublicKey" {
            only(request, &["KeyId"])?;
            let key = self.kms_key().map_err(|_| Refusal::new("KMSInternalException", "no key"))?.public_key();
            let der: PublicKeyX509Der = key.as_der().map_err(|_| Refusal::new("KMSInternalException", "no key"))?;
            return Ok(json!({"KeyId": key_id, "PublicKey": BASE64_STANDARD.encode(der.as_ref()),
                             "KeySpec": "RSA_2048", "KeyUsage": "SIGN_VERIFY"}));
        }
        only(request, &["KeyId", "Message", "MessageType", "SigningAlgorithm"])?;
        let algorithm: &'static dyn RsaEncoding =
            match (request["SigningAlgorithm"].as_str(), request["MessageType"].as_str()) {
                (Some("RSASSA_PSS_SHA_256"), Some("RAW")) => &signature::RSA_PSS_SHA256,
                (Some("RSASSA_PKCS1_V1_5_SHA_256"), Some("RAW")) => &signature::RSA_PKCS1_SHA256,
                _ => return Err(invalid(format!("the double does not sign {request}"))),
            };
        let message =
            BASE64_STANDARD.decode(text(request, "Message")?).map_err(|_| invalid("Message is not base64"))?;
        let signature = self.signed(algorithm, &message)?;
        Ok(json!({"KeyId": key_id, "Signature": BASE64_STANDARD.encode(signature),
                  "SigningAlgorithm": request["SigningAlgorithm"]}))
    }

    pub(crate) fn sts(&self, form: &BTreeMap<String, String>) -> Served<Response> {
        let expected = [
            ("Action", "GetWebIdentityToken"),
            ("Audience.member.1", AUDIENCE),
            ("DurationSeconds", "300"),
            ("SigningAlgorithm", "RS256"),
            ("Version", "2011-06-15"),
        ];
        let asked: Vec<(&str, &str)> = form.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        if asked != expected {
            return Err(invalid(format!("the double does not serve {asked:?}")));
        }
        let (now, id) = {
            let mut account = self.account();
            account.tokens += 1;
            (account.now().as_second(), account.tokens)
        };
        let encode = |part: Value| BASE64_URL_SAFE_NO_PAD.encode(part.to_string());
        let expires_at = now + LIFETIME_SECONDS;
        let claims = json!({"iss": ISSUER, "sub": ROLE_ARN, "aud": AUDIENCE, "iat": now, "exp": expires_at,
                            "jti": id.to_string()});
        let message = format!("{}.{}", encode(json!({"alg": "RS256", "kid": "aws"})), encode(claims));
        let signature = self.signed(&signature::RSA_PKCS1_SHA256, message.as_bytes())?;
        let token = format!("{message}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature));
        let expiration = jiff::Timestamp::from_second(expires_at).map_err(|_| invalid("the time is out of range"))?;
        let body = format!(
            "<GetWebIdentityTokenResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
             <GetWebIdentityTokenResult><WebIdentityToken>{token}</WebIdentityToken>\
             <Expiration>{expiration}</Expiration></GetWebIdentityTokenResult></GetWebIdentityTokenResponse>"
        );
        Ok(([("content-type", "text/xml")], body).into_response())
    }
}
