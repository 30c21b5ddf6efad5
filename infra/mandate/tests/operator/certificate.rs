//! `mandate certificate`, against the double of KMS.

use aws_double::Aws;
use aws_lc_rs::{
    encoding::{AsDer, PublicKeyX509Der},
    signature::{KeyPair as _, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use jiff::Timestamp;

use crate::api::{Run, program};

/// The first DER element of `bytes`: its whole length, and where its content starts (X.690, section 8.1).
fn element(bytes: &[u8]) -> (usize, usize) {
    match bytes[1] {
        short @ 0..0x80 => (2 + usize::from(short), 2),
        long => {
            let octets = usize::from(long & 0x7f);
            let length = bytes[2..2 + octets].iter().fold(0, |length, octet| length << 8 | usize::from(*octet));
            (2 + octets + length, 2 + octets)
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificate_is_signed_by_its_own_key_in_kms() {
    let now: Timestamp = "2026-11-22T10:00:00Z".parse().unwrap();
    let aws = Aws::start(move || now).await.unwrap();
    let mut command =
        program(&["certificate", "--key-id", "alias/mandate-signing", "--name", "Northwind", "--days", "30"]);
    let keys = [
        ("AWS_ENDPOINT_URL", aws.endpoint()),
        ("AWS_REGION", "eu-central-1"),
        ("AWS_ACCESS_KEY_ID", "operator"),
        ("AWS_SECRET_ACCESS_KEY", "s"),
    ];
    let run = Run::of(command.envs(keys).output().await.unwrap());
    assert_eq!(run.status, Some(0), "{run:?}");
    let body = run.stdout.strip_prefix("-----BEGIN CERTIFICATE-----\n").unwrap();
    let body = body.strip_suffix("\n-----END CERTIFICATE-----\n").unwrap();
    assert!(body.lines().all(|line| line.len() <= 64));
    let der = BASE64_STANDARD.decode(body.replace('\n', "")).unwrap();

    // Certificate ::= SEQUENCE { tbsCertificate, signatureAlgorithm, signatureValue }
    let (whole, content) = element(&der);
    assert_eq!(whole, der.len());
    let (signed, _) = element(&der[content..]);
    let algorithm = content + signed;
    let bits = algorithm + element(&der[algorithm..]).0;
    let (length, start) = element(&der[bits..]);
    let signature = &der[bits + start + 1..bits + length];
    let key = aws.kms_key().unwrap().public_key();
    let message = &der[content..content + signed];
    UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key.as_ref()).verify(message, signature).unwrap();
    let spki: PublicKeyX509Der = key.as_der().unwrap();
    let holds = |part: &[u8]| message.windows(part.len()).any(|window| window == part);
    assert!(holds(spki.as_ref()) && holds(b"Northwind"));
    let thumbprint = shared::text::hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &der).as_ref());
    assert_eq!(run.stderr, format!("SHA-256 {thumbprint}\n"));
}

#[tokio::test]
async fn missing_credentials_say_what_to_do() {
    let mut command = program(&["certificate", "--key-id", "alias/x"]);
    command.envs([
        ("AWS_REGION", "eu-central-1"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9"),
    ]);
    let run = Run::of(command.output().await.unwrap());
    assert_eq!((run.status, run.stdout.as_str()), (Some(1), ""));
    assert!(run.stderr.contains("kms:GetPublicKey") && run.stderr.contains("AWS_PROFILE"), "{}", run.stderr);
    assert!(!run.stderr.contains(['{', '(']), "the cause is a sentence and no value of the program: {}", run.stderr);
}
