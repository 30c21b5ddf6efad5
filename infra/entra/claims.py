"""Prints the claims of a tenant's access token, never the token.

    python infra/entra/claims.py --function "$(output TokenIssuanceFunction)" 11111111-2222-4333-8444-555555555555

Invokes `token-issuance` directly, which writes an audit line. Requires boto3, and the permission lambda:InvokeFunction
for that function.
"""

import argparse
import base64
import json
import sys


class InvocationError(Exception):
    """The error that the function returned."""


def claims(client, function, tenant_id, resource):
    """Returns the claims of the token. For an opaque token, returns the other members of the function's response."""
    request = {"tenant_id": tenant_id, **({"resource": resource} if resource else {})}
    invoked = client.invoke(FunctionName=function, Payload=json.dumps(request).encode())
    response = json.loads(invoked["Payload"].read())
    if "FunctionError" in invoked:
        raise InvocationError(f"{response.get('errorType')}: {response.get('errorMessage')}")
    parts = response.pop("access_token").split(".")
    if len(parts) == 3:
        try:
            return json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        except ValueError:
            pass
    return {"opaque": True, **response}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tenant_id")
    parser.add_argument("--function", required=True, help="name or ARN of the function token-issuance")
    parser.add_argument("--resource", choices=["graph", "defender"], help="default: the tenant's `api`")
    arguments = parser.parse_args()

    import boto3  # here, because the tests import this file without it

    try:
        found = claims(boto3.client("lambda"), arguments.function, arguments.tenant_id, arguments.resource)
    except InvocationError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
