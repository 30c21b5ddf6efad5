"""The five calls through Mandate. Requires botocore (it comes with boto3).

    MANDATE_API=https://… AWS_REGION=… python infra/five-calls/mandate.py TENANT_ID [INCIDENT_ID]

AWS credentials come from where the AWS SDK finds them: a role, SSO, the environment.
"""

import json
import os
import sys
import urllib.error
import urllib.parse
import urllib.request

import botocore.session
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest

API = os.environ["MANDATE_API"].rstrip("/")
CREDENTIALS = botocore.session.get_session().get_credentials()


def signed(method, path, body=None, **query):
    """The JSON of a response. A problem ends the program with its code and detail."""
    url = f"{API}{path}" + (f"?{urllib.parse.urlencode(query)}" if query else "")
    headers = {"content-type": "application/json"} if body is not None else {}
    request = AWSRequest(method, url, headers=headers, data=json.dumps(body) if body is not None else None)
    SigV4Auth(CREDENTIALS, "execute-api", os.environ["AWS_REGION"]).add_auth(request)
    sent = urllib.request.Request(
        url, method=method, headers=dict(request.headers), data=request.data.encode() if request.data else None
    )
    try:
        with urllib.request.urlopen(sent, timeout=35) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        sys.exit(f"{error.code}: {error.read().decode(errors='replace')}")


def main(tenant, incident=None):
    # 1. Get a token, for calls to Microsoft that Mandate has no route for.
    token = signed("POST", f"/tenants/{tenant}/token", {})
    print("token for", token["resource"], "until", token["expires_at"])

    # 2. Read the roles in it. Mandate has checked tenant, application, audience and roles already.
    print("roles:", *token["roles"])

    # 3. List incidents, the newest first.
    page = signed("GET", f"/tenants/{tenant}/incidents", limit=2)
    print("incidents:", *(one["incident_id"] for one in page["incidents"]))

    # 4. Follow the next page. `next` is opaque, and null at the end.
    if page["next"]:
        page = signed("GET", f"/tenants/{tenant}/incidents", limit=2, next=page["next"])
        print("next page:", *(one["incident_id"] for one in page["incidents"]))

    # 5. Change one, if it was named.
    if incident:
        change = {"status": "in_progress", "comment": "looked at"}
        changed = signed("PATCH", f"/tenants/{tenant}/incidents/{incident}", change)
        print("changed:", changed["incident_id"], changed["incident"]["status"])


if __name__ == "__main__":
    main(*sys.argv[1:])
