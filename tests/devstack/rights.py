#!/usr/bin/env python3
"""Compares the calls that functions made to the local AWS with what the template's policies allow, both ways.

    rights.py target/devstack/calls

`aws_server.py --calls` records the calls. AWS would refuse a call without a right: exit code 1. A right without a call is
too much, or only tests reach it that run in one process and record nothing; these are printed.
"""

import glob
import os
import sys

import sam_template
from template_case import ROUTES, SAMPLES, TEMPLATE, as_list, resource_name

# Rights that no function uses itself, with who does.
USED_BY_AWS = {
    "sqs:ReceiveMessage": "the event source mapping",
    "sqs:DeleteMessage": "the event source mapping",
    "sqs:GetQueueAttributes": "the event source mapping",
    "sqs:ChangeMessageVisibility": "the event source mapping",
    "logs:CreateLogStream": "Lambda",
    "logs:PutLogEvents": "Lambda",
    "xray:PutTraceSegments": "Lambda",
    "xray:PutTelemetryRecords": "Lambda",
    "kms:Decrypt": "the services that store our data",
    "kms:GenerateDataKey": "the services that store our data",
}
# The names of secrets that the local stack creates, by the parameter that has their ARN.
SECRETS = {"mandate-rotation": "RotationCredentialSecretArn", "mandate-sign-in": "SignInCredentialSecretArn"}
# Lambda sends what an asynchronous invocation could not process.
USED_BY_AWS_THERE = {("incident-dispatch", "sqs:SendMessage", "TickDeadLetterQueue")}
# A journey hands the rotation secrets that are not the app's. In AWS the policy refuses these, as here the function does.
REFUSED_ON_PURPOSE = {
    ("secret-rotation", "secretsmanager:DescribeSecret", "RotationCredentialSecretArn"),
    ("secret-rotation", "secretsmanager:DescribeSecret", "canary-from-outside"),
}


def rights_of(statement):
    """Yields (action, resource) of a statement in the words of the record."""
    keys = statement.get("Condition", {}).get("ForAllValues:StringLike", {}).get("dynamodb:LeadingKeys", [])
    for action in as_list(statement["Action"]):
        for resource in as_list(statement["Resource"]):
            name = "*" if resource == "*" else resource_name(resource)
            if name == "Table":
                for key in keys:
                    yield action, key
            else:
                yield action, name.removeprefix("Table/").removeprefix("IncidentBucket/")


def granted(expanded):
    """Returns the rights of all functions, with and without a registration for the sign-in: (binary, action, resource)."""
    own_sign_in = {name: SAMPLES[name] for name in ("SignInCredentialSecretArn", "AppClientId")}
    return granted_with(expanded, {}) | granted_with(expanded, own_sign_in)


def granted_with(expanded, given):
    """Returns the rights of all functions with these parameters."""
    values = {name: str(one.get("Default", "")) for name, one in expanded["Parameters"].items()} | given
    resources, rights = expanded["Resources"], set()
    for function in ROUTES:
        role = resources[f"{function}Role"]["Properties"]
        documents = [policy["PolicyDocument"] for policy in role["Policies"]]
        referred = {policy["Ref"] for policy in role["ManagedPolicyArns"]}
        for name, policy in sam_template.by_type(expanded, "AWS::IAM::ManagedPolicy").items():
            exists = "Condition" not in policy or sam_template.condition_holds(policy["Condition"], expanded, values)
            roles = sam_template.evaluated(policy["Properties"].get("Roles", []), expanded, values)
            if exists and (name in referred or any(f":{function}Role-" in one for one in roles)):
                documents.append(policy["Properties"]["PolicyDocument"])
        binary = resources[function]["Metadata"]["BuildProperties"]["Binary"]
        for document in documents:
            for statement in as_list(document["Statement"]):
                rights |= {(binary, *right) for right in rights_of(statement)}
    return rights


def called(directory):
    """Returns the recorded calls of all functions: (binary, action, resource)."""
    calls = set()
    for path in glob.glob(os.path.join(directory, "*.txt")):
        with open(path, encoding="utf-8") as file:
            for binary, action, resource in map(str.split, file):
                calls.add((binary, action, SECRETS.get(resource, resource)))
    return calls


def refused(calls, rights):
    """Yields the calls that AWS would refuse."""
    for binary, action, resource in sorted(calls - rights - REFUSED_ON_PURPOSE):
        yield f"{binary} calls {action} on {resource}, which its policies do not allow"


def unused(calls, rights):
    """Yields the rights that no call needed."""
    for binary, action, resource in sorted(rights - calls - USED_BY_AWS_THERE):
        if action not in USED_BY_AWS:
            yield f"{binary} may call {action} on {resource}; no journey did"


def main():
    (directory,) = sys.argv[1:]
    template = sam_template.load(TEMPLATE)
    expanded = sam_template.expand(template, sam_template.parameters_of(template, {}, fill_in=True))
    calls = called(directory)
    if not calls:
        print(f"rights.py: {directory} has no record; run the journeys or `cargo dev --once` first", file=sys.stderr)
        return 1
    rights = granted(expanded)
    found = list(refused(calls, rights))
    print(f"{len(calls)} different calls, {len(found)} without a right")
    for line in [*unused(calls, rights), *found]:
        print(line)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
