"""The operator's tools under infra/entra that call AWS."""

import base64
import io
import json
import os
import sys
import unittest
from datetime import datetime, timezone

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "..", "infra", "entra"))

import certificate  # noqa: E402
import claims  # noqa: E402


class Kms:
    """A KMS client with one RSA key."""

    def __init__(self, algorithms=("RSASSA_PSS_SHA_256", "RSASSA_PKCS1_V1_5_SHA_256")):
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.algorithms = list(algorithms)

    def get_public_key(self, KeyId):
        spki = self.key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return {"KeyUsage": "SIGN_VERIFY", "SigningAlgorithms": self.algorithms, "PublicKey": spki}

    def sign(self, KeyId, Message, MessageType, SigningAlgorithm):
        assert (MessageType, SigningAlgorithm) == ("RAW", "RSASSA_PKCS1_V1_5_SHA_256")
        assert len(Message) <= 4096
        return {"Signature": self.key.sign(Message, padding.PKCS1v15(), hashes.SHA256())}


class Certificate(unittest.TestCase):
    def test_certificate_is_self_signed_by_the_key_in_kms(self):
        kms, now = Kms(), datetime(2026, 11, 22, 10, tzinfo=timezone.utc)
        for days in (730, 36500):
            content = certificate.certificate(kms, "alias/x", "Mandate", days, now, 2**127 - 1)
            found = x509.load_pem_x509_certificate(certificate.pem(content).encode())
            found.verify_directly_issued_by(found)
            self.assertEqual(found.public_key(), kms.key.public_key())
            self.assertEqual(found.subject.rfc4514_string(), "CN=Mandate")
            self.assertEqual(found.not_valid_before_utc, now)
            self.assertEqual((found.not_valid_after_utc - now).days, days)
            self.assertEqual(found.serial_number, 2**127 - 1)

    def test_key_of_another_type_is_refused(self):
        now = datetime(2026, 11, 22, tzinfo=timezone.utc)
        with self.assertRaisesRegex(certificate.CertificateError, "alias/x is not an RSA key"):
            certificate.certificate(Kms(["ECDSA_SHA_256"]), "alias/x", "Mandate", 1, now, 1)


class Claims(unittest.TestCase):
    def claims_for(self, response, **more):
        class Client:
            @staticmethod
            def invoke(FunctionName, Payload):
                self.assertEqual(json.loads(Payload), {"tenant_id": "t", "resource": "graph"})
                return {"Payload": io.BytesIO(json.dumps(response).encode()), **more}

        return claims.claims(Client, "f", "t", "graph")

    def test_claims_are_returned_without_the_token(self):
        payload = base64.urlsafe_b64encode(json.dumps({"tid": "t", "roles": ["R"]}).encode()).decode().rstrip("=")
        response = {"access_token": f"head.{payload}.canary", "expires_in": 1}
        self.assertEqual(self.claims_for(response), {"tid": "t", "roles": ["R"]})
        for opaque in ("canary", "a.canary!.b"):
            response = {"access_token": opaque, "expires_in": 1}
            self.assertEqual(self.claims_for(response), {"opaque": True, "expires_in": 1})

    def test_error_of_the_function_is_reported(self):
        response = {"errorType": "not_found", "errorMessage": "There is no such thing."}
        with self.assertRaisesRegex(claims.InvocationError, "not_found: There is no such thing."):
            self.claims_for(response, FunctionError="Unhandled")


if __name__ == "__main__":
    unittest.main()
