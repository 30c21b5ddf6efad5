#!/usr/bin/env python3
"""Deploys the SAM template into a local moto server, lints it, or prints its expansion.

    deploy.py --endpoint http://127.0.0.1:5000 --template infra/template.yaml --parameter PartnerName=Contoso
    deploy.py --lint --template infra/template.yaml
    deploy.py --expand --template infra/template.yaml
    deploy.py --expand --unconditional

SAM's own translator expands the template, so that the same template runs locally and in AWS. A deployment prints one
JSON document to standard output: the resources that the local stack has to know. An error is one line on standard error
and exit code 1.
"""

import argparse
import graphlib
import io
import ipaddress
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from typing import NamedTuple
from urllib.parse import urlsplit

import boto3
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from sam_template import (
    ARTIFACTS,
    REGION,
    ToolError,
    aliases_of,
    by_type,
    condition_holds,
    expand,
    function_behind,
    load,
    parameters_of,
    references,
    replaced,
    routes_of,
    seconds_of,
)

DEFAULT_STACK = "mandate"

# Every resource type of the expanded template must be in one of these four lists.
# moto's CloudFormation creates these types.
CREATED = {
    "AWS::DynamoDB::Table",  # without the TTL, which is enabled afterwards
    "AWS::Events::EventBus",
    "AWS::Events::Rule",
    "AWS::IAM::ManagedPolicy",
    "AWS::IAM::Role",
    "AWS::KMS::Alias",
    "AWS::KMS::Key",
    "AWS::Lambda::Function",
    "AWS::Logs::LogGroup",
    "AWS::S3::Bucket",
    "AWS::SQS::Queue",
}
# moto's CloudFormation ignores these types. This tool creates them.
CREATED_HERE = {"AWS::SecretsManager::RotationSchedule", "AWS::SecretsManager::Secret"}
# The local stack emulates these types, so they are only reported to it. moto could create the event source mapping, but
# would then take each message off the queue at once, to run the function in Docker.
REPORTED = {
    "AWS::ApiGatewayV2::Api",
    "AWS::Lambda::Alias",
    "AWS::Lambda::EventSourceMapping",
    "AWS::Scheduler::Schedule",
}
# A local run does not need these types. Only their references are checked.
ONLY_CHECKED = {
    "AWS::ApiGatewayV2::ApiMapping",
    "AWS::ApiGatewayV2::DomainName",
    "AWS::ApiGatewayV2::Stage",
    "AWS::Athena::NamedQuery",
    "AWS::CloudWatch::Alarm",
    "AWS::CloudWatch::Dashboard",
    "AWS::CodeDeploy::Application",
    "AWS::CodeDeploy::DeploymentGroup",
    "AWS::Glue::Database",
    "AWS::Glue::Table",
    "AWS::Lambda::EventInvokeConfig",
    "AWS::Lambda::Permission",
    "AWS::Lambda::Version",
    "AWS::Logs::QueryDefinition",
    "AWS::Route53::RecordSet",
    "AWS::S3::BucketPolicy",
    "AWS::SQS::QueuePolicy",
    "AWS::SecretsManager::ResourcePolicy",
}
# Policies of callers, which refer to the HTTP API.
NOT_CREATED = {"OperatorPolicy", "ReaderPolicy", "TokenCallerPolicy"}
# Types whose `Ref` moto does not resolve to a text. This attribute has the same value.
REF_IS_ATTRIBUTE = {"AWS::Events::EventBus": "Name"}
# Resources whose `Ref` the local stack needs: key in the report, logical id in the template.
RESOURCES = {
    "table": "Table",
    "queue_url": "SyncQueue",
    "dead_letter_queue_url": "SyncDeadLetterQueue",
    "bucket": "IncidentBucket",
    "event_bus": "EventBus",
}
SECRET_OUTPUT = "AppCredentialSecretArn"
# What CloudFormation accepts at most in one template.
LIMITS = {"Resources": 500, "Outputs": 200, "Parameters": 200, "Mappings": 200}
MAX_TEMPLATE_BYTES = 1_000_000


def check(expanded):
    """Checks the types, the references, CloudFormation's limits, and that no resource waits for itself."""
    for part, limit in LIMITS.items():
        if len(expanded.get(part, {})) > limit:
            raise ToolError(f"the template has {len(expanded[part])} {part}; CloudFormation accepts {limit}")
    if len(json.dumps(expanded)) > MAX_TEMPLATE_BYTES:
        raise ToolError(f"the template has more than {MAX_TEMPLATE_BYTES} bytes")
    resources = expanded["Resources"]
    known = CREATED | CREATED_HERE | REPORTED | ONLY_CHECKED
    for logical_id, resource in resources.items():
        if resource["Type"] not in known:
            raise ToolError(f"{logical_id}: {resource['Type']} is not in a list of deploy.py; add it to one")
    names = set(resources) | set(expanded.get("Parameters", {}))
    waits_for = {}
    for logical_id, resource in resources.items():
        depends = resource.get("DependsOn", [])
        targets = list(references(resource)) + ([depends] if isinstance(depends, str) else depends)
        for target in targets:
            if target not in names and not target.startswith("AWS::"):
                raise ToolError(f"{logical_id} refers to {target}, which is not in the template")
        waits_for[logical_id] = set(targets) & set(resources)
    try:
        list(graphlib.TopologicalSorter(waits_for).static_order())
    except graphlib.CycleError as error:
        raise ToolError(f"these resources wait for each other: {' -> '.join(error.args[1])}") from error


class Rotation(NamedTuple):
    """The ARN of a rotated secret and the logical id of the function that rotates it."""

    secret: str
    function: str


# ---- Deploying ----


def clients(endpoint):
    """Returns a function that creates clients for a local moto server."""
    host = urlsplit(endpoint).hostname or ""
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local:
        raise ToolError(f"{endpoint} is not on this machine; this tool only deploys to a local moto server")
    return lambda service: boto3.client(service, endpoint_url=endpoint, region_name=REGION)


def upload_placeholder(s3):
    """Uploads an empty code archive, which moto requires before it creates a function."""
    bucket, key = ARTIFACTS
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("bootstrap", "")
    if bucket not in [one["Name"] for one in s3.list_buckets()["Buckets"]]:
        s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
    s3.put_object(Bucket=bucket, Key=key, Body=archive.getvalue())


def create_secrets(stack, expanded, values, secretsmanager):
    """Creates the secrets, without a value as in the template, and returns their ARNs by logical id."""
    arns = {}
    for logical_id, resource in by_type(expanded, "AWS::SecretsManager::Secret").items():
        if "Condition" in resource and not condition_holds(resource["Condition"], expanded, values):
            continue
        properties = resource["Properties"]
        if "SecretString" in properties or "GenerateSecretString" in properties:
            raise ToolError(f"{logical_id}: the local stack only creates secrets without a value")
        arns[logical_id] = secretsmanager.create_secret(Name=f"{stack}-{logical_id}")["ARN"]
    return arns


def create_rotations(expanded, values, secrets, secretsmanager):
    """Enables the rotations and returns them.

    The local stack calls the steps itself. moto calls none, because the request names no function and the secret has no
    value yet.
    """
    rotations = []
    for logical_id, resource in by_type(expanded, "AWS::SecretsManager::RotationSchedule").items():
        if "Condition" in resource and not condition_holds(resource["Condition"], expanded, values):
            continue
        properties = resource["Properties"]
        rotated = [secrets[name] for name in references(properties["SecretId"]) if name in secrets]
        if len(rotated) != 1:
            raise ToolError(f"{logical_id}: the local stack only rotates a secret of the template")
        days = int(replaced(properties["RotationRules"]["AutomaticallyAfterDays"], values))
        secretsmanager.rotate_secret(SecretId=rotated[0], RotationRules={"AutomaticallyAfterDays": days})
        (function,) = references(properties["RotationLambdaARN"])
        rotations.append(Rotation(rotated[0], function))
    return rotations


def create_stack(stack, expanded, values, replacements, outputs, cloudformation):
    """Creates the resources that moto supports. Returns physical ids by logical id, and the values of `outputs`."""
    resources = expanded["Resources"]
    created = {
        name: replaced(one, replacements)
        for name, one in resources.items()
        if one["Type"] in CREATED and name not in NOT_CREATED
    }
    # A reference to a resource with a condition is inside an Fn::If.
    absent = {name for name, one in resources.items() if name not in created and "Condition" not in one}
    for name, resource in created.items():
        missing = sorted(set(references(resource)) & absent)
        if missing:
            raise ToolError(f"{name} needs {missing[0]}, which the local stack does not create")
    body = {
        "Parameters": expanded.get("Parameters", {}),
        "Mappings": expanded.get("Mappings", {}),
        "Conditions": expanded.get("Conditions", {}),
        "Resources": created,
        "Outputs": {
            name: {"Value": replaced(node, replacements) if isinstance(node, dict) else str(node)}
            for name, node in outputs.items()
        },
    }
    cloudformation.create_stack(
        StackName=stack,
        TemplateBody=json.dumps(body),
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in values.items()],
        Capabilities=["CAPABILITY_IAM", "CAPABILITY_NAMED_IAM"],
    )
    created_stack = cloudformation.describe_stacks(StackName=stack)["Stacks"][0]
    status = created_stack["StackStatus"]
    if status != "CREATE_COMPLETE":
        raise ToolError(f"moto could not create the stack: {created_stack.get('StackStatusReason') or status}")
    pages = cloudformation.get_paginator("list_stack_resources").paginate(StackName=stack)
    summaries = [one for page in pages for one in page["StackResourceSummaries"]]
    physical_ids = {one["LogicalResourceId"]: one["PhysicalResourceId"] for one in summaries}
    missing = sorted(set(created) - set(physical_ids) - {name for name, one in created.items() if "Condition" in one})
    if missing:
        raise ToolError(f"moto did not create {missing[0]} ({created[missing[0]]['Type']})")
    return physical_ids, {one["OutputKey"]: one["OutputValue"] for one in created_stack.get("Outputs", [])}


def deploy(stack, template, values, client):
    """Deploys the template and returns the report for the local stack."""
    expanded = expand(template, values)
    check(expanded)
    aliases = aliases_of(expanded)
    secrets = create_secrets(stack, expanded, values, client("secretsmanager"))
    rotations = create_rotations(expanded, values, secrets, client("secretsmanager"))
    upload_placeholder(client("s3"))

    replacements = dict(secrets)
    for alias, function in aliases.items():
        replacements[alias] = {"Fn::Sub": f"${{{function}.Arn}}:{expanded['Resources'][alias]['Properties']['Name']}"}
    for kind, attribute in REF_IS_ATTRIBUTE.items():
        replacements.update({name: {"Fn::GetAtt": [name, attribute]} for name in by_type(expanded, kind)})
    outputs = wanted_outputs(template, expanded)
    physical_ids, outputs = create_stack(stack, expanded, values, replacements, outputs, client("cloudformation"))
    enable_ttl(expanded, physical_ids, client("dynamodb"))

    functions = [
        name
        for name, one in by_type(expanded, "AWS::Lambda::Function").items()
        if "Condition" not in one or condition_holds(one["Condition"], expanded, values)
    ]
    return {
        "functions": [describe_function(name, template, physical_ids, client("lambda")) for name in functions],
        "event_sources": [
            {
                "function": physical_ids[function_behind(mapping["Properties"]["FunctionName"], aliases)],
                "queue_url": outputs[f"{name}queue"],
                "batch_size": int(outputs[f"{name}batch"]),
                "report_batch_item_failures": "ReportBatchItemFailures"
                in mapping["Properties"].get("FunctionResponseTypes", []),
                "max_concurrency": int(outputs[f"{name}concurrency"]) or None,
            }
            for name, mapping in by_type(expanded, "AWS::Lambda::EventSourceMapping").items()
        ],
        "routes": [
            {"method": route.method, "path": route.path, "function": physical_ids[route.function], "auth": route.auth}
            for route in routes_of(expanded, aliases, values)
            if route.auth != "jwt"
        ],
        "schedules": [
            {
                "name": outputs[f"{name}name"],
                "function": physical_ids[function_behind(schedule["Properties"]["Target"]["Arn"], aliases)],
                "every_seconds": seconds_of(outputs[f"{name}expression"]),
                "expression": outputs[f"{name}expression"],
                "input": json.loads(outputs[f"{name}input"]),
            }
            for name, schedule in by_type(expanded, "AWS::Scheduler::Schedule").items()
        ],
        "rotations": [
            {"secret": rotation.secret, "function": physical_ids[rotation.function]} for rotation in rotations
        ],
        "resources": {
            **{key: outputs[f"resource{key.replace('_', '')}"] for key in RESOURCES},
            "secret": outputs["secret"],
        },
        "only_checked": sorted({one["Type"] for one in expanded["Resources"].values()} & ONLY_CHECKED),
    }


def wanted_outputs(template, expanded):
    """Returns the outputs of the stack whose values the report needs. CloudFormation resolves their references."""
    outputs = {"secret": template["Outputs"][SECRET_OUTPUT]["Value"]}
    for key, logical_id in RESOURCES.items():
        if logical_id not in expanded["Resources"]:
            raise ToolError(f"the template has no {logical_id}")
        outputs[f"resource{key.replace('_', '')}"] = {"Ref": logical_id}
    for name, mapping in by_type(expanded, "AWS::Lambda::EventSourceMapping").items():
        properties = mapping["Properties"]
        (queue,) = references(properties["EventSourceArn"])
        outputs[f"{name}queue"] = {"Ref": queue}
        outputs[f"{name}batch"] = properties["BatchSize"]
        outputs[f"{name}concurrency"] = properties.get("ScalingConfig", {}).get("MaximumConcurrency", 0)
    for name, schedule in by_type(expanded, "AWS::Scheduler::Schedule").items():
        properties = schedule["Properties"]
        outputs[f"{name}name"] = properties.get("Name", name)
        outputs[f"{name}expression"] = properties["ScheduleExpression"]
        outputs[f"{name}input"] = properties["Target"].get("Input", "{}")
    return outputs


def enable_ttl(expanded, physical_ids, dynamodb):
    """Enables the time to live of the tables, which moto's CloudFormation does not."""
    for name, table in by_type(expanded, "AWS::DynamoDB::Table").items():
        if "TimeToLiveSpecification" in table["Properties"]:
            dynamodb.update_time_to_live(
                TableName=physical_ids[name], TimeToLiveSpecification=table["Properties"]["TimeToLiveSpecification"]
            )


def describe_function(name, template, physical_ids, lambdas):
    """Returns a function's part of the report."""
    configuration = lambdas.get_function_configuration(FunctionName=physical_ids[name])
    variables = configuration.get("Environment", {}).get("Variables", {})
    metadata = template["Resources"][name].get("Metadata", {})
    binary = metadata.get("BuildProperties", {}).get("Binary")
    if not binary:
        raise ToolError(f"{name} has no binary; add it under Metadata, BuildProperties, Binary")
    return {
        "logical_id": name,
        "name": physical_ids[name],
        "binary": binary,
        "timeout_seconds": configuration["Timeout"],
        "memory_mb": configuration["MemorySize"],
        # moto keeps numbers as numbers, but environment variables are text.
        "environment": {key: str(value) for key, value in sorted(variables.items())},
    }


# ---- Linting ----


def unconditional(expanded):
    """Returns the expansion without the conditions of its resources."""
    resources = {
        name: {key: value for key, value in resource.items() if key != "Condition"}
        for name, resource in expanded["Resources"].items()
    }
    return {**expanded, "Resources": resources}


def lint(path, template, values):
    """Runs cfn-lint on the source and on the expansion. It checks a SAM template only in part, so both are needed."""
    expanded = expand(template, values)
    check(expanded)
    with tempfile.TemporaryDirectory() as folder:
        translated = os.path.join(folder, "expanded.json")
        with open(translated, "w", encoding="utf-8") as file:
            json.dump(expanded, file, indent=1)
        clean = True
        for one in (path, translated):
            start = "import sys; from cfnlint.runner import main; sys.exit(main())"
            run = subprocess.run([sys.executable, "-c", start, "--regions", REGION, "--", one], check=False)
            clean = clean and run.returncode == 0
    if not clean:
        raise ToolError("cfn-lint found errors; see above")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--template", default="infra/template.yaml")
    parser.add_argument("--endpoint", help="URL of a moto server on this machine")
    parser.add_argument("--stack-name", default=DEFAULT_STACK)
    parser.add_argument("--parameter", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--lint", action="store_true", help="check the template and create nothing")
    parser.add_argument("--expand", action="store_true", help="print the template as CloudFormation receives it")
    parser.add_argument(
        "--unconditional",
        action="store_true",
        help="with --expand: also the resources whose conditions do not hold, for scanners, which leave them out",
    )
    arguments = parser.parse_args()
    try:
        given = {}
        for parameter in arguments.parameter:
            name, equals, value = parameter.partition("=")
            if not equals:
                raise ToolError(f"--parameter {parameter}: write NAME=VALUE")
            given[name] = value
        template = load(arguments.template)
        values = parameters_of(template, given, fill_in=arguments.lint or arguments.expand)
        if arguments.expand:
            expanded = expand(template, values)
            json.dump(unconditional(expanded) if arguments.unconditional else expanded, sys.stdout, indent=1)
        elif arguments.lint:
            lint(arguments.template, template, values)
        elif not arguments.endpoint:
            raise ToolError("--endpoint is missing; give the URL of a moto server, or --lint")
        else:
            json.dump(deploy(arguments.stack_name, template, values, clients(arguments.endpoint)), sys.stdout, indent=2)
            print()
    except (ToolError, ClientError, BotoCoreError, ResponseParserError) as error:
        print("deploy.py: " + " ".join(str(error).split()), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
