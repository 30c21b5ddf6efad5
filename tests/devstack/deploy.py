#!/usr/bin/env python3
"""Deploys the SAM template into a local moto server, or lints it.

    deploy.py --endpoint http://127.0.0.1:5000 --template infra/template.yaml --parameter PartnerName=Contoso
    deploy.py --lint --template infra/template.yaml

SAM's own translator expands the template, so what runs locally is what is deployed. One JSON document on standard
output says what came of it; an error is one line on standard error and exit code 1.
"""

import argparse
import copy
import io
import ipaddress
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from urllib.parse import urlsplit

REGION = "eu-central-1"
ACCOUNT = "123456789012"

# The SDK and the translator look for these; moto takes any.
os.environ["AWS_DEFAULT_REGION"] = REGION
os.environ.setdefault("AWS_ACCESS_KEY_ID", "local")
os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "local")
os.environ.pop("AWS_PROFILE", None)

import boto3  # noqa: E402
from botocore.exceptions import BotoCoreError, ClientError  # noqa: E402
from botocore.parsers import ResponseParserError  # noqa: E402
from samtranslator.model.exceptions import InvalidDocumentException  # noqa: E402
from samtranslator.translator.transform import transform  # noqa: E402
from samtranslator.yaml_helper import yaml_parse  # noqa: E402

# It says at every start which of Amazon's own feature switches are not there.
logging.getLogger("samtranslator").setLevel(logging.ERROR)

STACK = "mandate"
ARTIFACTS = ("mandate-artifacts", "bootstrap.zip")

# Every type that the expanded template may hold is in one of these four lists.
# moto's CloudFormation creates these.
CREATED = {
    "AWS::DynamoDB::Table",  # but for its TTL, which is switched on afterwards
    "AWS::Events::EventBus",
    "AWS::IAM::ManagedPolicy",
    "AWS::IAM::Role",
    "AWS::KMS::Alias",
    "AWS::KMS::Key",
    "AWS::Lambda::Function",
    "AWS::Logs::LogGroup",
    "AWS::S3::Bucket",
    "AWS::SQS::Queue",
}
# moto's CloudFormation skips these; they are made here.
MADE = {"AWS::SecretsManager::RotationSchedule", "AWS::SecretsManager::Secret"}
# These are read out for the local stack, which plays their part itself. moto could create the event source mapping,
# and would then take each message off the queue at once, to run the function in Docker.
READ_OUT = {
    "AWS::ApiGatewayV2::Api",
    "AWS::Lambda::Alias",
    "AWS::Lambda::EventSourceMapping",
    "AWS::Scheduler::Schedule",
}
# These have no part in a local run: only what they refer to is checked.
ONLY_CHECKED = {
    "AWS::ApiGatewayV2::Stage",
    "AWS::CloudWatch::Alarm",
    "AWS::CloudWatch::Dashboard",
    "AWS::CodeDeploy::Application",
    "AWS::CodeDeploy::DeploymentGroup",
    "AWS::Lambda::EventInvokeConfig",
    "AWS::Lambda::Permission",
    "AWS::Lambda::Version",
    "AWS::S3::BucketPolicy",
    "AWS::SQS::QueuePolicy",
}
# Types whose `Ref` moto resolves to something that is no text; this attribute has the same value.
REF_IS_ATTRIBUTE = {"AWS::Events::EventBus": "Name"}
# What the local stack needs to know by name: key in the answer, logical id in the template, attribute (None: Ref).
RESOURCES = {
    "table": ("Table", None),
    "queue_url": ("SyncQueue", None),
    "dead_letter_queue_url": ("SyncDeadLetterQueue", None),
    "bucket": ("IncidentBucket", None),
    "event_bus": ("EventBus", None),
}
SECRET_OUTPUT = "AppCredentialSecretArn"


class Fault(Exception):
    """Something that the person at the terminal has to mend; its text is all they see."""


class Policies:
    """The managed policies that the translator may add to a template, by name."""

    def load(self):
        names = ("AWSXrayWriteOnlyAccess", "AWSXRayDaemonWriteAccess", "service-role/AWSCodeDeployRoleForLambda")
        return {name.rsplit("/", 1)[-1]: f"arn:aws:iam::aws:policy/{name}" for name in names}


# ---- Expanding ----


def load(path):
    """The template as it is written."""
    try:
        with open(path, encoding="utf-8") as file:
            template = yaml_parse(file.read())
    except OSError as error:
        raise Fault(f"{path}: {error.strerror}") from error
    except Exception as error:  # the parser's own classes are not public
        raise Fault(f"{path} is not YAML: {error}") from error
    if not isinstance(template, dict) or not isinstance(template.get("Resources"), dict):
        raise Fault(f"{path} is not a template: it has no Resources")
    return template


def parameters_of(template, given, fill_in=False):
    """Every parameter's value as text: the given one or the default."""
    declared = template.get("Parameters", {})
    unknown = sorted(set(given) - set(declared))
    if unknown:
        raise Fault(f"the template has no parameter {', '.join(unknown)}")
    values = {}
    for name, declaration in declared.items():
        value = given.get(name, declaration.get("Default"))
        if value is None and fill_in:
            value = "placeholder"
        if value is None:
            raise Fault(f"the parameter {name} has no default: give --parameter {name}=...")
        value = str(value)
        pattern, allowed = declaration.get("AllowedPattern"), declaration.get("AllowedValues")
        length = declaration.get("MinLength", 0), declaration.get("MaxLength", len(value))
        if pattern and not re.fullmatch(pattern, value):
            raise Fault(f"the parameter {name} does not match {pattern}")
        if allowed and value not in [str(one) for one in allowed]:
            raise Fault(f"the parameter {name} must be one of {', '.join(map(str, allowed))}")
        if not int(length[0]) <= len(value) <= int(length[1]):
            raise Fault(f"the parameter {name} must have {length[0]} to {length[1]} characters")
        if declaration.get("Type") == "Number":
            if not re.fullmatch(r"-?[0-9]+", value):
                raise Fault(f"the parameter {name} must be a whole number")
            least, most = declaration.get("MinValue", int(value)), declaration.get("MaxValue", int(value))
            if not least <= int(value) <= most:
                raise Fault(f"the parameter {name} must be {least} to {most}")
        values[name] = value
    return values


def expand(template, values):
    """The template as CloudFormation gets it."""
    template = copy.deepcopy(template)
    pointer = "s3://{}/{}".format(*ARTIFACTS)
    template.get("Globals", {}).get("Function", {}).pop("CodeUri", None)
    for resource in template["Resources"].values():
        if resource.get("Type") == "AWS::Serverless::Function":
            resource.setdefault("Properties", {})["CodeUri"] = pointer
    try:
        return transform(template, dict(values), Policies())
    except InvalidDocumentException as error:
        raise Fault("SAM refuses the template: " + " ".join(cause.message for cause in error.causes)) from error


def condition(name, template, values):
    """Whether a condition of the template holds."""

    def value(node):
        if isinstance(node, dict) and set(node) == {"Ref"} and node["Ref"] in values:
            return values[node["Ref"]]
        if isinstance(node, (str, int, float)):
            return str(node)
        raise Fault(f"the condition {name} uses something that cannot be told here: {json.dumps(node)}")

    def holds(node):
        (kind, argument), = node.items()
        if kind == "Condition":
            return condition(argument, template, values)
        if kind == "Fn::Equals":
            return value(argument[0]) == value(argument[1])
        if kind == "Fn::Not":
            return not holds(argument[0])
        if kind == "Fn::And":
            return all(map(holds, argument))
        if kind == "Fn::Or":
            return any(map(holds, argument))
        raise Fault(f"the condition {name} uses {kind}")

    if name not in template.get("Conditions", {}):
        raise Fault(f"there is no condition {name}")
    return holds(template["Conditions"][name])


def references(node):
    """The logical ids that a part of the template refers to."""
    if isinstance(node, list):
        for one in node:
            yield from references(one)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key == "Ref":
                yield value
            elif key == "Fn::GetAtt":
                yield value.split(".")[0] if isinstance(value, str) else value[0]
            elif key == "Fn::Sub":
                text, given = (value, {}) if isinstance(value, str) else value
                yield from references(given)
                for name in re.findall(r"\$\{([^!}][^}]*)\}", text):
                    if name not in given:
                        yield name.split(".")[0]
            else:
                yield from references(value)


def replaced(node, values):
    """The same part of the template with `Ref`s to the keys of `values` replaced."""
    if isinstance(node, list):
        return [replaced(one, values) for one in node]
    if isinstance(node, dict):
        if set(node) == {"Ref"} and node["Ref"] in values:
            return values[node["Ref"]]
        return {key: replaced(value, values) for key, value in node.items()}
    return node


def check(expanded):
    """Every type is known, and nothing refers to what is not there."""
    resources = expanded["Resources"]
    known = CREATED | MADE | READ_OUT | ONLY_CHECKED
    for logical_id, resource in resources.items():
        if resource["Type"] not in known:
            raise Fault(f"{logical_id}: {resource['Type']} is in no list of deploy.py, the local stack does not know it")
    names = set(resources) | set(expanded.get("Parameters", {}))
    for logical_id, resource in resources.items():
        depends = resource.get("DependsOn", [])
        targets = list(references(resource)) + ([depends] if isinstance(depends, str) else depends)
        for target in targets:
            if target not in names and not target.startswith("AWS::"):
                raise Fault(f"{logical_id} refers to {target}, which is not in the template")


# ---- Deploying ----


def clients(endpoint):
    host = urlsplit(endpoint).hostname or ""
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local:
        raise Fault(f"{endpoint} is not on this machine; this tool only speaks to a local moto server")
    return lambda service: boto3.client(service, endpoint_url=endpoint, region_name=REGION)


def upload_placeholder(s3):
    """The code that moto wants to see before it makes a function; nobody runs it."""
    bucket, key = ARTIFACTS
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("bootstrap", "")
    s3.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
    s3.put_object(Bucket=bucket, Key=key, Body=archive.getvalue())


def by_type(expanded, kind):
    return {name: one for name, one in sorted(expanded["Resources"].items()) if one["Type"] == kind}


def make_secrets(expanded, values, secretsmanager):
    """Makes the secrets, as empty as in the template, and gives their ARNs by logical id."""
    arns = {}
    for logical_id, resource in by_type(expanded, "AWS::SecretsManager::Secret").items():
        if "Condition" in resource and not condition(resource["Condition"], expanded, values):
            continue
        properties = resource["Properties"]
        if "SecretString" in properties or "GenerateSecretString" in properties:
            raise Fault(f"{logical_id}: the local stack only makes secrets without a value")
        arns[logical_id] = secretsmanager.create_secret(Name=f"{STACK}-{logical_id}")["ARN"]
    return arns


def make_rotations(expanded, values, secrets, secretsmanager):
    """Switches rotation on, and gives each rotated secret's ARN with the logical id of the function that does it.

    The stack takes the steps itself. Without a function's name, and while there is no value, moto takes none.
    """
    rotations = []
    for logical_id, resource in by_type(expanded, "AWS::SecretsManager::RotationSchedule").items():
        if "Condition" in resource and not condition(resource["Condition"], expanded, values):
            continue
        properties = resource["Properties"]
        rotated = [secrets[name] for name in references(properties["SecretId"]) if name in secrets]
        if len(rotated) != 1:
            raise Fault(f"{logical_id}: the local stack only rotates a secret of the template")
        days = int(replaced(properties["RotationRules"]["AutomaticallyAfterDays"], values))
        secretsmanager.rotate_secret(SecretId=rotated[0], RotationRules={"AutomaticallyAfterDays": days})
        (function,) = references(properties["RotationLambdaARN"])
        rotations.append((rotated[0], function))
    return rotations


def aliases_of(expanded):
    """Alias → function, by logical id."""
    aliases = by_type(expanded, "AWS::Lambda::Alias")
    return {name: alias["Properties"]["FunctionName"]["Ref"] for name, alias in aliases.items()}


def function_behind(node, aliases):
    """The logical id of the function that a part of the template names, by itself or by its alias."""
    found = {aliases.get(name, name) for name in references(node) if name in aliases or name in aliases.values()}
    if len(found) != 1:
        raise Fault(f"cannot tell which function is meant by {json.dumps(node)}")
    return found.pop()


def create_stack(expanded, values, stand_ins, questions, cloudformation):
    """Creates what moto knows; gives physical ids by logical id and the answers to `questions`, which are outputs."""
    kept = {name: replaced(one, stand_ins) for name, one in expanded["Resources"].items() if one["Type"] in CREATED}
    # Where a resource has a condition, an Fn::If stands around what refers to it.
    absent = {name for name, one in expanded["Resources"].items() if name not in kept and "Condition" not in one}
    for name, resource in kept.items():
        lost = sorted(set(references(resource)) & absent)
        if lost:
            raise Fault(f"{name} needs {lost[0]}, which the local stack does not create")
    body = {
        "Parameters": expanded.get("Parameters", {}),
        "Mappings": expanded.get("Mappings", {}),
        "Conditions": expanded.get("Conditions", {}),
        "Resources": kept,
        "Outputs": {
            name: {"Value": replaced(node, stand_ins) if isinstance(node, dict) else str(node)}
            for name, node in questions.items()
        },
    }
    cloudformation.create_stack(
        StackName=STACK,
        TemplateBody=json.dumps(body),
        Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in values.items()],
        Capabilities=["CAPABILITY_IAM", "CAPABILITY_NAMED_IAM"],
    )
    stack = cloudformation.describe_stacks(StackName=STACK)["Stacks"][0]
    if stack["StackStatus"] != "CREATE_COMPLETE":
        raise Fault(f"moto could not create the stack: {stack.get('StackStatusReason') or stack['StackStatus']}")
    pages = cloudformation.get_paginator("list_stack_resources").paginate(StackName=STACK)
    summaries = [one for page in pages for one in page["StackResourceSummaries"]]
    made = {one["LogicalResourceId"]: one["PhysicalResourceId"] for one in summaries}
    missing = sorted(set(kept) - set(made) - {name for name, one in kept.items() if "Condition" in one})
    if missing:
        raise Fault(f"moto skipped {missing[0]} ({kept[missing[0]]['Type']})")
    return made, {one["OutputKey"]: one["OutputValue"] for one in stack.get("Outputs", [])}


def seconds_of(expression):
    """The period of a rate expression; None of a cron expression."""
    match = re.fullmatch(r"rate\((\d+) (minute|hour|day)s?\)", expression)
    if match:
        return int(match[1]) * {"minute": 60, "hour": 3600, "day": 86400}[match[2]]
    if re.fullmatch(r"cron\(\S+( \S+){5}\)", expression):
        return None
    raise Fault(f"{expression} is no schedule: rate(n minutes) or cron(six fields) is wanted")


def routes_of(expanded, aliases):
    """(method, path, the function's logical id, auth) of each route of the HTTP APIs."""
    for api in by_type(expanded, "AWS::ApiGatewayV2::Api").values():
        for path, methods in sorted(api["Properties"]["Body"]["paths"].items()):
            for method, route in sorted(methods.items()):
                schemes = [name for scheme in route.get("security", []) for name in scheme]
                if schemes not in (["AWS_IAM"], ["NONE"]):
                    raise Fault(f"{method.upper()} {path} has the authorization {schemes or 'none at all'}")
                target = function_behind(route["x-amazon-apigateway-integration"]["uri"], aliases)
                yield method.upper(), path, target, schemes[0]


def deploy(template, values, client):
    """Deploys, and gives what the local stack has to know."""
    expanded = expand(template, values)
    check(expanded)
    aliases = aliases_of(expanded)
    secrets = make_secrets(expanded, values, client("secretsmanager"))
    rotations = make_rotations(expanded, values, secrets, client("secretsmanager"))
    upload_placeholder(client("s3"))

    questions = {"secret": template["Outputs"][SECRET_OUTPUT]["Value"]}
    for key, (logical_id, attribute) in RESOURCES.items():
        if logical_id not in expanded["Resources"]:
            raise Fault(f"the template has no {logical_id}")
        node = {"Ref": logical_id} if attribute is None else {"Fn::GetAtt": [logical_id, attribute]}
        questions[f"resource{key.replace('_', '')}"] = node
    mappings = by_type(expanded, "AWS::Lambda::EventSourceMapping")
    queues = {}
    for name, mapping in mappings.items():
        (queues[name],) = references(mapping["Properties"]["EventSourceArn"])
        questions[f"{name}queue"] = {"Ref": queues[name]}
        questions[f"{name}batch"] = mapping["Properties"]["BatchSize"]
        questions[f"{name}most"] = mapping["Properties"].get("ScalingConfig", {}).get("MaximumConcurrency", 0)
    schedules = by_type(expanded, "AWS::Scheduler::Schedule")
    for name, schedule in schedules.items():
        properties = schedule["Properties"]
        questions[f"{name}name"] = properties.get("Name", name)
        questions[f"{name}expression"] = properties["ScheduleExpression"]
        questions[f"{name}input"] = properties["Target"].get("Input", "{}")

    functions = {
        name: one
        for name, one in by_type(expanded, "AWS::Lambda::Function").items()
        if "Condition" not in one or condition(one["Condition"], expanded, values)
    }
    stand_ins = dict(secrets)
    for alias, function in aliases.items():
        stand_ins[alias] = {"Fn::Sub": f"${{{function}.Arn}}:{expanded['Resources'][alias]['Properties']['Name']}"}
    for kind, attribute in REF_IS_ATTRIBUTE.items():
        stand_ins.update({name: {"Fn::GetAtt": [name, attribute]} for name in by_type(expanded, kind)})
    made, answers = create_stack(expanded, values, stand_ins, questions, client("cloudformation"))

    for name, table in by_type(expanded, "AWS::DynamoDB::Table").items():
        if "TimeToLiveSpecification" in table["Properties"]:
            client("dynamodb").update_time_to_live(
                TableName=made[name], TimeToLiveSpecification=table["Properties"]["TimeToLiveSpecification"]
            )

    lambdas = client("lambda")
    described = []
    for name in functions:
        configuration = lambdas.get_function_configuration(FunctionName=made[name])
        variables = configuration.get("Environment", {}).get("Variables", {})
        metadata = template["Resources"][name].get("Metadata", {})
        binary = metadata.get("BuildProperties", {}).get("Binary")
        if not binary:
            raise Fault(f"{name} does not say its binary: Metadata, BuildProperties, Binary")
        described.append(
            {
                "logical_id": name,
                "name": made[name],
                "binary": binary,
                "timeout_seconds": configuration["Timeout"],
                "memory_mb": configuration["MemorySize"],
                # moto leaves numbers what they are; in an environment they are text.
                "environment": {key: str(value) for key, value in sorted(variables.items())},
            }
        )
    return {
        "functions": described,
        "event_sources": [
            {
                "function": made[function_behind(mapping["Properties"]["FunctionName"], aliases)],
                "queue_url": answers[f"{name}queue"],
                "batch_size": int(answers[f"{name}batch"]),
                "report_batch_item_failures": "ReportBatchItemFailures"
                in mapping["Properties"].get("FunctionResponseTypes", []),
                "max_concurrency": int(answers[f"{name}most"]) or None,
            }
            for name, mapping in mappings.items()
        ],
        "routes": [
            {"method": method, "path": path, "function": made[target], "auth": auth}
            for method, path, target, auth in routes_of(expanded, aliases)
        ],
        "schedules": [
            {
                "name": answers[f"{name}name"],
                "function": made[function_behind(schedule["Properties"]["Target"]["Arn"], aliases)],
                "every_seconds": seconds_of(answers[f"{name}expression"]),
                "expression": answers[f"{name}expression"],
                "input": json.loads(answers[f"{name}input"]),
            }
            for name, schedule in schedules.items()
        ],
        "rotations": [{"secret": secret, "function": made[function]} for secret, function in rotations],
        "resources": {
            **{key: answers[f"resource{key.replace('_', '')}"] for key in RESOURCES},
            "secret": answers["secret"],
        },
        "only_checked": sorted({one["Type"] for one in expanded["Resources"].values()} & ONLY_CHECKED),
    }


# ---- Linting ----


def lint(path, template, values):
    """cfn-lint on the source and on the expansion. It stops early on a SAM template, so neither does for the other."""
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
        raise Fault("cfn-lint found something")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--template", default="infra/template.yaml")
    parser.add_argument("--endpoint", help="the moto server, on this machine")
    parser.add_argument("--parameter", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--lint", action="store_true", help="check the template and create nothing")
    arguments = parser.parse_args()
    try:
        given = {}
        for parameter in arguments.parameter:
            name, equals, value = parameter.partition("=")
            if not equals:
                raise Fault(f"--parameter {parameter}: NAME=VALUE is wanted")
            given[name] = value
        template = load(arguments.template)
        values = parameters_of(template, given, fill_in=arguments.lint)
        if arguments.lint:
            lint(arguments.template, template, values)
        elif not arguments.endpoint:
            raise Fault("--endpoint is missing")
        else:
            json.dump(deploy(template, values, clients(arguments.endpoint)), sys.stdout, indent=2)
            print()
    except (Fault, ClientError, BotoCoreError, ResponseParserError) as error:
        print("deploy.py: " + " ".join(str(error).split()), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
