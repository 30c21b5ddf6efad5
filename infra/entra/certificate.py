"""Creates a self-signed certificate for an RSA key in KMS. The private key never leaves KMS.

    python infra/entra/certificate.py --key-id alias/mandate-signing > certificate.pem

Upload the certificate to the app registration, and add it to the app credential as `certificate`, beside `kms_key_id`.
Requires boto3, and the permissions kms:GetPublicKey and kms:Sign for that key.
"""

import argparse
import base64
import hashlib
import secrets
import sys
import textwrap
from datetime import datetime, timedelta, timezone

COMMON_NAME = bytes.fromhex("0603550403")
SHA256_WITH_RSA = bytes.fromhex("06092a864886f70d01010b")
NULL = bytes.fromhex("0500")
SEQUENCE, SET, VERSION = 0x30, 0x31, 0xA0
INTEGER, BIT_STRING, UTF8_STRING, UTC_TIME, GENERALIZED_TIME = 0x02, 0x03, 0x0C, 0x17, 0x18


class CertificateError(Exception):
    """An error whose text says what the user has to change."""


def der(tag, *contents):
    """Encodes one DER element (X.690)."""
    content = b"".join(contents)
    length = len(content)
    if length < 0x80:
        size = bytes([length])
    else:
        octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
        size = bytes([0x80 | len(octets)]) + octets
    return bytes([tag]) + size + content


def integer(value):
    """Encodes a non-negative integer."""
    return der(INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def time(moment):
    """Encodes a time by RFC 5280, section 4.1.2.5: years before 2050 have two digits."""
    if moment.year < 2050:
        return der(UTC_TIME, moment.strftime("%y%m%d%H%M%SZ").encode())
    return der(GENERALIZED_TIME, moment.strftime("%Y%m%d%H%M%SZ").encode())


def certificate(kms, key_id, name, days, now, serial):
    """Returns the self-signed certificate in DER (RFC 5280, section 4.1)."""
    key = kms.get_public_key(KeyId=key_id)
    if key["KeyUsage"] != "SIGN_VERIFY" or "RSASSA_PSS_SHA_256" not in key["SigningAlgorithms"]:
        advice = "use one with KeySpec RSA_2048 or larger and KeyUsage SIGN_VERIFY"
        raise CertificateError(f"{key_id} is not an RSA key for signing; {advice}")
    algorithm = der(SEQUENCE, SHA256_WITH_RSA, NULL)
    subject = der(SEQUENCE, der(SET, der(SEQUENCE, COMMON_NAME, der(UTF8_STRING, name.encode()))))
    validity = der(SEQUENCE, time(now), time(now + timedelta(days=days)))
    signed = der(
        SEQUENCE,
        der(VERSION, integer(2)),
        integer(serial),
        algorithm,
        subject,
        validity,
        subject,
        key["PublicKey"],
    )
    response = kms.sign(
        KeyId=key_id, Message=signed, MessageType="RAW", SigningAlgorithm="RSASSA_PKCS1_V1_5_SHA_256"
    )
    return der(SEQUENCE, signed, algorithm, der(BIT_STRING, b"\0", response["Signature"]))


def pem(content):
    """Returns a DER certificate in PEM."""
    lines = textwrap.wrap(base64.b64encode(content).decode(), 64)
    return "\n".join(["-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----", ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--key-id", required=True, help="id, ARN or alias of the key in KMS")
    parser.add_argument("--name", default="Mandate", help="the certificate's common name")
    parser.add_argument("--days", type=int, default=730, help="days until the certificate expires")
    arguments = parser.parse_args()

    import boto3  # here, because the tests import this file without it

    try:
        content = certificate(
            boto3.client("kms"),
            arguments.key_id,
            arguments.name,
            arguments.days,
            datetime.now(timezone.utc),
            secrets.randbits(127),
        )
    except CertificateError as error:
        print(error, file=sys.stderr)
        return 1
    sys.stdout.write(pem(content))
    print(f"SHA-256 {hashlib.sha256(content).hexdigest()}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
