"""Makes the self-signed certificate for an RSA key in KMS, whose private part never leaves it.

    python infra/entra/certificate.py --key-id alias/mandate-signing > certificate.pem

Upload the certificate to the app registration, and put it into the app credential as `certificate`, beside `kms_key_id`.
Needs boto3 and, of AWS, kms:GetPublicKey and kms:Sign on that key.
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


class Fault(Exception):
    """What the person at the terminal has to mend."""


def der(tag, *contents):
    """One DER element (X.690)."""
    content = b"".join(contents)
    length = len(content)
    if length < 0x80:
        size = bytes([length])
    else:
        octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
        size = bytes([0x80 | len(octets)]) + octets
    return bytes([tag]) + size + content


def number(value):
    return der(INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def time(moment):
    """As RFC 5280, 4.1.2.5 wants it: two digits for the year until 2049."""
    if moment.year < 2050:
        return der(UTC_TIME, moment.strftime("%y%m%d%H%M%SZ").encode())
    return der(GENERALIZED_TIME, moment.strftime("%Y%m%d%H%M%SZ").encode())


def certificate(kms, key_id, name, days, now, serial):
    """The certificate in DER, issued by itself (RFC 5280, 4.1)."""
    key = kms.get_public_key(KeyId=key_id)
    if key["KeyUsage"] != "SIGN_VERIFY" or "RSASSA_PSS_SHA_256" not in key["SigningAlgorithms"]:
        raise Fault(f"{key_id} is no RSA key for signing (KeySpec RSA_2048 or larger, KeyUsage SIGN_VERIFY)")
    algorithm = der(SEQUENCE, SHA256_WITH_RSA, NULL)
    subject = der(SEQUENCE, der(SET, der(SEQUENCE, COMMON_NAME, der(UTF8_STRING, name.encode()))))
    validity = der(SEQUENCE, time(now), time(now + timedelta(days=days)))
    signed = der(
        SEQUENCE,
        der(VERSION, number(2)),
        number(serial),
        algorithm,
        subject,
        validity,
        subject,
        key["PublicKey"],
    )
    answer = kms.sign(
        KeyId=key_id, Message=signed, MessageType="RAW", SigningAlgorithm="RSASSA_PKCS1_V1_5_SHA_256"
    )
    return der(SEQUENCE, signed, algorithm, der(BIT_STRING, b"\0", answer["Signature"]))


def pem(content):
    lines = textwrap.wrap(base64.b64encode(content).decode(), 64)
    return "\n".join(["-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----", ""])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--key-id", required=True, help="id, ARN or alias of the key in KMS")
    parser.add_argument("--name", default="Mandate", help="the certificate's common name")
    parser.add_argument("--days", type=int, default=730, help="how long it is good")
    arguments = parser.parse_args()

    import boto3  # not needed by those who only import this file

    try:
        content = certificate(
            boto3.client("kms"),
            arguments.key_id,
            arguments.name,
            arguments.days,
            datetime.now(timezone.utc),
            secrets.randbits(127),
        )
    except Fault as fault:
        print(fault, file=sys.stderr)
        return 1
    sys.stdout.write(pem(content))
    print(f"SHA-256 {hashlib.sha256(content).hexdigest()}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
