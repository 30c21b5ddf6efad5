//! Signing keys and JWTs, and the part of X.509 that they need.

use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::{
    digest,
    rand::SystemRandom,
    rsa::{KeyPair, KeySize},
    signature::{
        KeyPair as _, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, RSA_PSS_2048_8192_SHA256, RsaParameters,
        RsaPublicKeyComponents,
    },
};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use serde_json::{Map, Value, json};

/// A signing key with its own certificate.
#[derive(Debug)]
pub(crate) struct SigningKey {
    pair: KeyPair,
    numbers: RsaNumbers,
    certificate: Vec<u8>,
    /// `kid` and `x5t` are the same value, as at Entra.
    pub(crate) kid: String,
}

impl SigningKey {
    fn generate() -> std::io::Result<Self> {
        let pair = KeyPair::generate(KeySize::Rsa2048).map_err(std::io::Error::other)?;
        let public = pair.public_key().as_ref().to_vec();
        let numbers = RsaNumbers::parse(&public).ok_or_else(|| std::io::Error::other("an RSA key without numbers"))?;
        let certificate = self_signed(&pair, "accounts.accesscontrol.windows.net");
        let kid = URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &certificate));
        Ok(Self { pair, numbers, certificate, kid })
    }

    fn sign_bytes(&self, message: &[u8]) -> Vec<u8> {
        let mut signature = vec![0; self.pair.public_modulus_len()];
        if self.pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature).is_err() {
            // An invalid signature is noticed at once; a panic would stop the whole server.
            signature.fill(0);
        }
        signature
    }

    /// A JWT over these claims, signed RS256.
    pub(crate) fn sign(&self, header: &Value, claims: &Map<String, Value>) -> String {
        let header = URL_SAFE_NO_PAD.encode(header.to_string());
        let claims = URL_SAFE_NO_PAD.encode(Value::Object(claims.clone()).to_string());
        let message = format!("{header}.{claims}");
        let signature = URL_SAFE_NO_PAD.encode(self.sign_bytes(message.as_bytes()));
        format!("{message}.{signature}")
    }

    /// True if this key signed the JWT.
    pub(crate) fn has_signed(&self, jwt: &Jwt<'_>) -> bool {
        jwt.is_signed_by(&self.numbers, &RSA_PKCS1_2048_8192_SHA256)
    }

    #[cfg(test)]
    pub(crate) fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    fn jwk(&self, issuer: &str) -> Value {
        json!({
            "kty": "RSA", "use": "sig", "kid": self.kid, "x5t": self.kid,
            "n": URL_SAFE_NO_PAD.encode(&self.numbers.modulus), "e": URL_SAFE_NO_PAD.encode(&self.numbers.exponent),
            "x5c": [STANDARD.encode(&self.certificate)], "cloud_instance_name": "microsoftonline.com", "issuer": issuer,
        })
    }
}

/// Keys that all simulators of a process share: generating one is slow, and keys hold no state of a tenant.
static SHARED_KEYS: Mutex<Vec<Arc<SigningKey>>> = Mutex::new(Vec::new());

fn shared_key(index: usize) -> std::io::Result<Arc<SigningKey>> {
    let mut keys = SHARED_KEYS.lock().unwrap_or_else(PoisonError::into_inner);
    while keys.len() <= index {
        keys.push(Arc::new(SigningKey::generate()?));
    }
    Ok(Arc::clone(&keys[index]))
}

/// The fate of a signing key when a new one takes its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OldKey {
    /// It stays in the JWKS, so that older tokens remain valid.
    KeepPublished,
    /// It leaves the JWKS at once.
    Withdraw,
}

/// Entra's published keys. The last one signs.
#[derive(Debug)]
pub(crate) struct Keys {
    published: Vec<Arc<SigningKey>>,
    next_index: usize,
}

impl Keys {
    pub(crate) fn new() -> std::io::Result<Self> {
        Ok(Self { published: vec![shared_key(0)?], next_index: 1 })
    }

    /// Signs with a new key from now on.
    pub(crate) fn roll(&mut self, old_key: OldKey) -> std::io::Result<()> {
        let next = shared_key(self.next_index)?;
        self.next_index += 1;
        if old_key == OldKey::Withdraw {
            self.published.clear();
        }
        self.published.push(next);
        Ok(())
    }

    pub(crate) fn current(&self) -> &SigningKey {
        &self.published[self.published.len() - 1]
    }

    pub(crate) fn find(&self, kid: &str) -> Option<&SigningKey> {
        self.published.iter().map(Arc::as_ref).find(|key| key.kid == kid)
    }

    pub(crate) fn jwks(&self, issuer: &str) -> Value {
        json!({ "keys": self.published.iter().map(|key| key.jwk(issuer)).collect::<Vec<_>>() })
    }
}

/// A decoded JWT whose signature is not verified.
#[derive(Debug)]
pub(crate) struct Jwt<'a> {
    pub(crate) header: Map<String, Value>,
    pub(crate) claims: Map<String, Value>,
    message: &'a str,
    signature: Vec<u8>,
}

impl<'a> Jwt<'a> {
    pub(crate) fn parse(text: &'a str) -> Option<Self> {
        let (message, signature) = text.rsplit_once('.')?;
        let (header, claims) = message.split_once('.')?;
        let object = |part: &str| serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok();
        Some(Self {
            header: object(header)?,
            claims: object(claims)?,
            message,
            signature: URL_SAFE_NO_PAD.decode(signature).ok()?,
        })
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.header.get(name).and_then(Value::as_str)
    }

    pub(crate) fn claim(&self, name: &str) -> Option<&str> {
        self.claims.get(name).and_then(Value::as_str)
    }

    fn is_signed_by(&self, key: &RsaNumbers, algorithm: &'static RsaParameters) -> bool {
        RsaPublicKeyComponents { n: &key.modulus, e: &key.exponent }
            .verify(algorithm, self.message.as_bytes(), &self.signature)
            .is_ok()
    }

    /// True if the key of a certificate made the signature, with RS256 or PS256 as the header says.
    pub(crate) fn is_signed_by_certificate(&self, der: &[u8]) -> bool {
        let algorithm: &'static RsaParameters = match self.header("alg") {
            Some("PS256") => &RSA_PSS_2048_8192_SHA256,
            Some("RS256") => &RSA_PKCS1_2048_8192_SHA256,
            _ => return false,
        };
        certificate_key(der)
            .and_then(|key| RsaNumbers::parse(&key))
            .is_some_and(|key| self.is_signed_by(&key, algorithm))
    }

    /// True if the key of a JWKS that the header names made the signature with RS256.
    pub(crate) fn is_signed_by_jwks(&self, jwks: &Value) -> bool {
        let kid = self.header("kid");
        let keys = jwks["keys"].as_array().map(Vec::as_slice).unwrap_or_default();
        self.header("alg") == Some("RS256")
            && keys.iter().filter(|key| kid.is_some() && key["kid"].as_str() == kid).any(|key| {
                let part = |name: &str| key[name].as_str().and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
                match (part("n"), part("e")) {
                    (Some(modulus), Some(exponent)) => {
                        self.is_signed_by(&RsaNumbers { modulus, exponent }, &RSA_PKCS1_2048_8192_SHA256)
                    }
                    _ => false,
                }
            })
    }
}

/// The thumbprints of a certificate, base64url.
pub(crate) struct Thumbprints {
    /// The value of the header `x5t`.
    pub(crate) sha1: String,
    /// The value of the header `x5t#S256`.
    pub(crate) sha256: String,
}

impl Thumbprints {
    pub(crate) fn of(der: &[u8]) -> Self {
        let thumbprint = |algorithm| URL_SAFE_NO_PAD.encode(digest::digest(algorithm, der));
        Self { sha1: thumbprint(&digest::SHA1_FOR_LEGACY_USE_ONLY), sha256: thumbprint(&digest::SHA256) }
    }
}

/// SHA-256 in base64url, as PKCE's S256 defines it.
pub(crate) fn s256(text: &str) -> String {
    URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, text.as_bytes()))
}

const SEQUENCE: u8 = 0x30;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;

/// A DER element, and the bytes after it.
struct Element<'a> {
    tag: u8,
    content: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Element<'a> {
    fn read(input: &'a [u8]) -> Option<Self> {
        let (&tag, rest) = input.split_first()?;
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = if first < 0x80 {
            (usize::from(first), rest)
        } else {
            let digits = usize::from(first & 0x7f);
            if digits == 0 || digits > 4 || rest.len() < digits {
                return None;
            }
            let (digits, rest) = rest.split_at(digits);
            (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
        };
        (length <= rest.len()).then(|| Self { tag, content: &rest[..length], rest: &rest[length..] })
    }

    fn read_tagged(tag: u8, input: &'a [u8]) -> Option<Self> {
        Self::read(input).filter(|element| element.tag == tag)
    }
}

/// The numbers of an RSA public key, big-endian, without leading zeros.
#[derive(Debug)]
struct RsaNumbers {
    modulus: Vec<u8>,
    exponent: Vec<u8>,
}

impl RsaNumbers {
    /// Parses a PKCS#1 `RSAPublicKey`.
    fn parse(der: &[u8]) -> Option<Self> {
        let key = Element::read_tagged(SEQUENCE, der)?;
        let modulus = Element::read_tagged(INTEGER, key.content)?;
        let exponent = Element::read_tagged(INTEGER, modulus.rest)?;
        let plain = |number: &[u8]| number.iter().copied().skip_while(|digit| *digit == 0).collect();
        Some(Self { modulus: plain(modulus.content), exponent: plain(exponent.content) })
    }
}

/// The `RSAPublicKey` in a certificate (RFC 5280, 4.1).
fn certificate_key(der: &[u8]) -> Option<Vec<u8>> {
    let certificate = Element::read_tagged(SEQUENCE, der)?;
    let mut fields = Element::read_tagged(SEQUENCE, certificate.content)?.content;
    let version = Element::read(fields)?;
    if version.tag == 0xa0 {
        fields = version.rest;
    }
    // serialNumber, signature, issuer, validity, subject
    for _ in 0..5 {
        fields = Element::read(fields)?.rest;
    }
    let public_key_info = Element::read_tagged(SEQUENCE, fields)?;
    let algorithm = Element::read_tagged(SEQUENCE, public_key_info.content)?;
    let bits = Element::read_tagged(BIT_STRING, algorithm.rest)?.content;
    bits.split_first().filter(|(unused, _)| **unused == 0).map(|(_, key)| key.to_vec())
}

fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let length = content.len().to_be_bytes();
    let digits = &length[length.iter().take_while(|digit| **digit == 0).count()..];
    let mut der = vec![tag];
    if content.len() >= 0x80 {
        der.push(0x80 | u8::try_from(digits.len()).unwrap_or(0));
        der.extend_from_slice(digits);
    } else {
        der.push(digits.first().copied().unwrap_or(0));
    }
    der.extend(content);
    der
}

/// Makes a self-signed certificate in DER for an RSA key of at least 2048 bits, as Entra's signing keys have and as
/// an
/// app may register. It is valid from 2020 to 2049.
pub fn self_signed(pair: &KeyPair, name: &str) -> Vec<u8> {
    const NULL: &[u8] = &[0x05, 0x00];
    let sha256_rsa = der(SEQUENCE, &[&[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b], NULL]);
    let rsa = der(SEQUENCE, &[&[0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01], NULL]);
    let common_name = der(0x0c, &[name.as_bytes()]);
    let attribute = der(SEQUENCE, &[&[0x06, 0x03, 0x55, 0x04, 0x03], &common_name]);
    let name = der(SEQUENCE, &[&der(0x31, &[&attribute])]);
    let validity = der(SEQUENCE, &[&der(0x17, &[b"200101000000Z"]), &der(0x17, &[b"491231235959Z"])]);
    let spki = der(SEQUENCE, &[&rsa, &der(BIT_STRING, &[&[0], pair.public_key().as_ref()])]);
    let version = der(0xa0, &[&der(INTEGER, &[&[2]])]);
    let serial = der(INTEGER, &[&[1]]);
    let body = der(SEQUENCE, &[&version, &serial, &sha256_rsa, &name, &validity, &name, &spki]);
    let mut signature = vec![0; pair.public_modulus_len()];
    if pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), &body, &mut signature).is_err() {
        signature.fill(0);
    }
    der(SEQUENCE, &[&body, &sha256_rsa, &der(BIT_STRING, &[&[0], &signature])])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signature_verifies_by_key_certificate_and_jwks() {
        let keys = Keys::new().unwrap();
        let key = keys.current();
        let claims = json!({"sub": "x"}).as_object().unwrap().clone();
        let text = key.sign(&json!({"alg": "RS256", "kid": key.kid}), &claims);
        let jwt = Jwt::parse(&text).unwrap();
        assert!(key.has_signed(&jwt));
        assert!(jwt.is_signed_by_certificate(&key.certificate));
        assert!(jwt.is_signed_by_jwks(&keys.jwks("i")));
        let other = URL_SAFE_NO_PAD.encode(r#"{"sub":"y"}"#);
        let parts: Vec<&str> = text.split('.').collect();
        let forged = format!("{}.{other}.{}", parts[0], parts[2]);
        assert!(!key.has_signed(&Jwt::parse(&forged).unwrap()));
    }
}
