"""The five calls straight at Microsoft Graph. Requires msal, boto3 and requests (it comes with msal).

    CLIENT_ID=… CREDENTIAL_SECRET_ID=… python infra/five-calls/direct.py TENANT_ID [INCIDENT_ID]

The credential is in AWS Secrets Manager, in the form that Mandate uses (infra/README.md, section 4): a client secret, or a
certificate with its private key. It stays in memory.
"""

import base64
import json
import os
import sys

import boto3
import msal
import requests

LOGIN = os.environ.get("LOGIN_HOST", "https://login.microsoftonline.com")
GRAPH = os.environ.get("GRAPH_HOST", "https://graph.microsoft.com")


def credential():
    """The client credential as MSAL takes it."""
    secret = boto3.client("secretsmanager").get_secret_value(SecretId=os.environ["CREDENTIAL_SECRET_ID"])
    stored = json.loads(secret["SecretString"])
    if "client_secret" in stored:
        return stored["client_secret"]
    # MSAL computes the SHA-256 thumbprint from the public certificate.
    return {"private_key": stored["private_key"], "public_certificate": stored["certificate"]}


def access_token(tenant):
    # A client for each tenant: its tokens are in its own cache. The login host is ours to choose, so nobody need be asked
    # whether it is one of Microsoft's.
    client = msal.ConfidentialClientApplication(
        os.environ["CLIENT_ID"],
        client_credential=credential(),
        authority=f"{LOGIN}/{tenant}",
        instance_discovery=False,
    )
    found = client.acquire_token_for_client(["https://graph.microsoft.com/.default"])
    if "access_token" not in found:
        sys.exit(f"{found['error']}: {found.get('error_codes')}")
    return found["access_token"]


def claims(token):
    part = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))


def main(tenant, incident=None):
    # 1. Get a token: the v2 endpoint of the customer's tenant, and the scope of the API that is called.
    token = access_token(tenant)
    session = requests.Session()
    session.headers.update({"authorization": f"Bearer {token}", "prefer": "include-unknown-enum-members"})

    def call(method, url, **arguments):
        # Redirects would carry the token elsewhere.
        response = session.request(method, url, timeout=35, allow_redirects=False, **arguments)
        if response.status_code == 429:
            sys.exit(f"ask again in {response.headers.get('retry-after', '60')} s")
        response.raise_for_status()
        return response.json()

    # 2. Read the roles in it. This shows what the customer consented to; only Microsoft verifies the token.
    found = claims(token)
    assert found["tid"] == tenant, "a token of another tenant"
    print("roles:", *found.get("roles", []))

    # 3. List incidents. `$top` is at most 50, and alerts come only with `$expand=alerts`.
    page = call("GET", f"{GRAPH}/v1.0/security/incidents", params={"$top": 2})
    print("incidents:", *(one["id"] for one in page["value"]))

    # 4. Follow the next link as it is, as long as there is one: a page without rows may have one, too.
    following = page.get("@odata.nextLink")
    if following:
        if not following.startswith(f"{GRAPH}/"):
            sys.exit("the next link leads to another host")
        page = call("GET", following)
        print("next page:", *(one["id"] for one in page["value"]))

    # 5. Change one, if it was named.
    if incident:
        changed = call("PATCH", f"{GRAPH}/v1.0/security/incidents/{incident}", json={"status": "inProgress"})
        print("changed:", changed["id"], changed["status"])


if __name__ == "__main__":
    main(*sys.argv[1:])
