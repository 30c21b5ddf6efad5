//! A self-signed certificate for an RSA key in KMS. The private key never leaves KMS.

use std::{error::Error, time::Duration};

use aws_lc_rs::{
    digest,
    rand::{SecureRandom, SystemRandom},
};
use aws_sdk_kms::{
    primitives::Blob,
    types::{KeyUsageType, MessageType, SigningAlgorithmSpec},
};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, PKCS_RSA_SHA256, PublicKeyData, SerialNumber, SignatureAlgorithm,
};
use serde_json::json;
use shared::{clock::Clock, text::hex};
use tokio::runtime::Handle;

use crate::{args::Certificate, aws::Aws, output::Output, problem::Problem};

/// The start of the public key of an RSA key of 2,048 bits or more in DER (RFC 8017), with lengths as `None`.
const RSA_HEAD: [Option<u8>; 24] = [
    Some(0x30),
    Some(0x82),
    None,
    None,
    Some(0x30),
    Some(0x0d),
    Some(0x06),
    Some(0x09),
    Some(0x2a),
    Some(0x86),
    Some(0x48),
    Some(0x86),
    Some(0xf7),
    Some(0x0d),
    Some(0x01),
    Some(0x01),
    Some(0x01),
    Some(0x05),
    Some(0x00),
    Some(0x03),
    Some(0x82),
    None,
    None,
    Some(0x00),
];

/// A key in KMS.
struct KmsKey {
    client: aws_sdk_kms::Client,
    key_id: String,
    /// The public key as RFC 8017 encodes it (`RSAPublicKey`).
    public_key: Vec<u8>,
}

/// Runs `mandate certificate`: prints the certificate in PEM, and its thumbprint on standard error.
pub(crate) async fn run(args: &Certificate, out: &Output) -> Result<(), Problem> {
    let aws = Aws::load().await;
    let key = KmsKey::load(aws_sdk_kms::Client::new(aws.config()), &args.key_id).await?;
    let mut serial = [0; 16];
    SystemRandom::new().fill(&mut serial).map_err(|_| Problem::new("internal", "The source of randomness failed."))?;
    // A serial number is positive (RFC 5280, section 4.1.2.2).
    serial[0] &= 0x7f;
    let not_before = Clock::system().now().as_second();
    let der = key.self_signed(&args.name, args.days, not_before, &serial)?;
    let thumbprint = hex(digest::digest(&digest::SHA256, &der).as_ref());
    let pem = pem(&der);
    if out.is_json() && out.wants_json_problems() {
        out.object(&json!({"certificate": pem, "sha256": thumbprint}))?;
    } else {
        out.say(pem.trim_end())?;
    }
    out.note(format_args!("SHA-256 {thumbprint}"));
    Ok(())
}

impl KmsKey {
    async fn load(client: aws_sdk_kms::Client, key_id: &str) -> Result<Self, Problem> {
        let key = client.get_public_key().key_id(key_id).send().await.map_err(|error| {
            let detail = format!("The public key of {key_id} cannot be read: {}.", causes(&error));
            Problem::new("kms_refused", detail).advise(
                "The caller needs kms:GetPublicKey and kms:Sign for this key. AWS_PROFILE selects another caller.",
            )
        })?;
        let spki = key.public_key().map(Blob::as_ref).unwrap_or_default();
        let is_rsa = spki.len() > RSA_HEAD.len()
            && RSA_HEAD.iter().zip(spki).all(|(expected, byte)| expected.is_none_or(|expected| expected == *byte));
        let signs = key.key_usage() == Some(&KeyUsageType::SignVerify);
        if !is_rsa || !signs {
            return Err(Problem::new("kms_refused", format!("{key_id} is not an RSA key for signing."))
                .advise("Use one with KeySpec RSA_2048 or larger and KeyUsage SIGN_VERIFY."));
        }
        let public_key = spki.get(RSA_HEAD.len()..).unwrap_or_default().to_vec();
        Ok(Self { client, key_id: key_id.to_owned(), public_key })
    }

    fn self_signed(&self, name: &str, days: u32, not_before: i64, serial: &[u8]) -> Result<Vec<u8>, Problem> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.serial_number = Some(SerialNumber::from_slice(serial));
        let start = Duration::from_secs(not_before.try_into().unwrap_or_default());
        params.not_before = rcgen::date_time_ymd(1970, 1, 1) + start;
        params.not_after = params.not_before + Duration::from_hours(24 * u64::from(days));
        let certificate = params.self_signed(self).map_err(|error| {
            Problem::new("kms_refused", format!("{} did not sign the certificate: {error}.", self.key_id))
                .advise("The caller needs kms:Sign for this key.")
        })?;
        Ok(certificate.der().to_vec())
    }

    async fn sign_in_kms(&self, message: &[u8]) -> Option<Vec<u8>> {
        let request = self.client.sign().key_id(&self.key_id).message(Blob::new(message));
        let request =
            request.message_type(MessageType::Raw).signing_algorithm(SigningAlgorithmSpec::RsassaPkcs1V15Sha256);
        Some(request.send().await.ok()?.signature()?.as_ref().to_vec())
    }
}

impl PublicKeyData for KmsKey {
    fn der_bytes(&self) -> &[u8] {
        &self.public_key
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_RSA_SHA256
    }
}

impl rcgen::SigningKey for KmsKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        // The trait is synchronous, and KMS is a call over the network.
        tokio::task::block_in_place(|| Handle::current().block_on(self.sign_in_kms(message)))
            .ok_or(rcgen::Error::RemoteKeyError)
    }
}

/// An error of the SDK with its causes, in their own words. What a cause repeats of the next one is said once.
fn causes(error: &dyn Error) -> String {
    let mut said = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let cause = error.to_string();
        if !said.contains(&cause) {
            said.push_str(if said.is_empty() { "" } else { ": " });
            said.push_str(&cause);
        }
        next = error.source();
    }
    said
}

/// A DER certificate in PEM (RFC 7468).
fn pem(der: &[u8]) -> String {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let text = BASE64_STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}
