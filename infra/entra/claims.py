"""Prints the claims of a tenant's access token, never the token.

    python infra/entra/claims.py --function mandate-prod-token-issuance 11111111-2222-4333-8444-555555555555

Asks `token-issuance` directly, which leaves a line in the audit. Needs boto3 and, of AWS, lambda:InvokeFunction on it.
"""

import argparse
import base64
import json
import sys


class Fault(Exception):
    """What the person at the terminal has to mend."""


def claims(client, function, tenant_id, resource):
    """What can be read in the token, or else what the answer says of it."""
    call = {"tenant_id": tenant_id, **({"resource": resource} if resource else {})}
    invoked = client.invoke(FunctionName=function, Payload=json.dumps(call).encode())
    answer = json.loads(invoked["Payload"].read())
    if "FunctionError" in invoked:
        raise Fault(f"{answer.get('errorType')}: {answer.get('errorMessage')}")
    parts = answer.pop("access_token").split(".")
    if len(parts) == 3:
        try:
            return json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        except ValueError:
            pass
    return {"opaque": True, **answer}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tenant_id")
    parser.add_argument("--function", required=True, help="name or ARN of the function token-issuance")
    parser.add_argument("--resource", choices=["graph", "defender"], help="default: the tenant's `api`")
    arguments = parser.parse_args()

    import boto3  # not needed by those who only import this file

    try:
        found = claims(boto3.client("lambda"), arguments.function, arguments.tenant_id, arguments.resource)
    except Fault as fault:
        print(fault, file=sys.stderr)
        return 1
    print(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
