"""Reads the SAM template: parameters, expansion by SAM's own translator, conditions, references and routes."""

import copy
import json
import logging
import os
import re
from typing import NamedTuple

REGION = "eu-central-1"

# The SDK and the translator require these variables. moto accepts any value.
os.environ["AWS_DEFAULT_REGION"] = REGION
os.environ.setdefault("AWS_ACCESS_KEY_ID", "local")
os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "local")
os.environ.pop("AWS_PROFILE", None)

from samtranslator.model.exceptions import InvalidDocumentException  # noqa: E402
from samtranslator.translator.transform import transform  # noqa: E402
from samtranslator.yaml_helper import yaml_parse  # noqa: E402

# At every start the translator logs which of Amazon's internal feature switches are missing.
logging.getLogger("samtranslator").setLevel(logging.ERROR)

# Bucket and key of the code of all functions. Nobody runs it.
ARTIFACTS = ("mandate-artifacts", "bootstrap.zip")


class ToolError(Exception):
    """An error that ends the tool. Its text is all that the user sees, so it says what to change."""


class Policies:
    """The managed policies that the translator may add to a template, by name."""

    def load(self):
        names = ("AWSXrayWriteOnlyAccess", "AWSXRayDaemonWriteAccess", "service-role/AWSCodeDeployRoleForLambda")
        return {name.rsplit("/", 1)[-1]: f"arn:aws:iam::aws:policy/{name}" for name in names}


def load(path):
    """Returns the template before its expansion."""
    try:
        with open(path, encoding="utf-8") as file:
            template = yaml_parse(file.read())
    except OSError as error:
        raise ToolError(f"{path}: {error.strerror}") from error
    except Exception as error:  # the parser's own classes are not public
        raise ToolError(f"{path} is not YAML: {error}") from error
    if not isinstance(template, dict) or not isinstance(template.get("Resources"), dict):
        raise ToolError(f"{path} is not a template: it has no Resources")
    return template


def parameters_of(template, given, *, fill_in=False):
    """Returns every parameter's value as text: the given one or the default.

    With `fill_in`, a parameter without a value gets a placeholder instead of an error.
    """
    declared = template.get("Parameters", {})
    unknown = sorted(set(given) - set(declared))
    if unknown:
        raise ToolError(f"the template has no parameter {', '.join(unknown)}")
    values = {}
    for name, declaration in declared.items():
        value = given.get(name, declaration.get("Default"))
        if value is None and fill_in:
            value = "placeholder"
        if value is None:
            raise ToolError(f"the parameter {name} has no default: give --parameter {name}=...")
        value = str(value)
        pattern, allowed = declaration.get("AllowedPattern"), declaration.get("AllowedValues")
        length = declaration.get("MinLength", 0), declaration.get("MaxLength", len(value))
        if pattern and not re.fullmatch(pattern, value):
            raise ToolError(f"the parameter {name} does not match {pattern}")
        if allowed and value not in [str(one) for one in allowed]:
            raise ToolError(f"the parameter {name} must be one of {', '.join(map(str, allowed))}")
        if not int(length[0]) <= len(value) <= int(length[1]):
            raise ToolError(f"the parameter {name} must have {length[0]} to {length[1]} characters")
        if declaration.get("Type") == "Number":
            if not re.fullmatch(r"-?[0-9]+", value):
                raise ToolError(f"the parameter {name} must be a whole number")
            minimum, maximum = declaration.get("MinValue", int(value)), declaration.get("MaxValue", int(value))
            if not minimum <= int(value) <= maximum:
                raise ToolError(f"the parameter {name} must be {minimum} to {maximum}")
        values[name] = value
    return values


def expand(template, values):
    """Returns the template as CloudFormation receives it, after SAM's expansion."""
    template = copy.deepcopy(template)
    code_uri = "s3://{}/{}".format(*ARTIFACTS)
    template.get("Globals", {}).get("Function", {}).pop("CodeUri", None)
    for resource in template["Resources"].values():
        if resource.get("Type") == "AWS::Serverless::Function":
            resource.setdefault("Properties", {})["CodeUri"] = code_uri
    try:
        return transform(template, dict(values), Policies())
    except InvalidDocumentException as error:
        raise ToolError("SAM refuses the template: " + " ".join(cause.message for cause in error.causes)) from error


def condition_holds(name, template, values):
    """Evaluates a condition of the template."""

    def value(node):
        if isinstance(node, dict) and set(node) == {"Ref"} and node["Ref"] in values:
            return values[node["Ref"]]
        if isinstance(node, (str, int, float)):
            return str(node)
        raise ToolError(f"the condition {name} uses an expression that this tool cannot evaluate: {json.dumps(node)}")

    def holds(node):
        (kind, argument), = node.items()
        if kind == "Condition":
            return condition_holds(argument, template, values)
        if kind == "Fn::Equals":
            return value(argument[0]) == value(argument[1])
        if kind == "Fn::Not":
            return not holds(argument[0])
        if kind == "Fn::And":
            return all(map(holds, argument))
        if kind == "Fn::Or":
            return any(map(holds, argument))
        raise ToolError(f"the condition {name} uses {kind}")

    if name not in template.get("Conditions", {}):
        raise ToolError(f"there is no condition {name}")
    return holds(template["Conditions"][name])


def references(node):
    """Yields the logical ids that a part of the template refers to."""
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
    """Returns a part of the template in which every `Ref` to a key of `values` is replaced by its value."""
    if isinstance(node, list):
        return [replaced(one, values) for one in node]
    if isinstance(node, dict):
        if set(node) == {"Ref"} and node["Ref"] in values:
            return values[node["Ref"]]
        return {key: replaced(value, values) for key, value in node.items()}
    return node


def by_type(expanded, kind):
    """Returns the resources of one type by logical id."""
    return {name: one for name, one in sorted(expanded["Resources"].items()) if one["Type"] == kind}


def aliases_of(expanded):
    """Returns the logical id of each alias with that of its function."""
    aliases = by_type(expanded, "AWS::Lambda::Alias")
    return {name: alias["Properties"]["FunctionName"]["Ref"] for name, alias in aliases.items()}


def function_behind(node, aliases):
    """Returns the logical id of the function that a part of the template refers to, directly or by its alias."""
    found = {aliases.get(name, name) for name in references(node) if name in aliases or name in aliases.values()}
    if len(found) != 1:
        raise ToolError(f"there is not exactly one function in {json.dumps(node)}")
    return found.pop()


class Route(NamedTuple):
    """A route of the HTTP API; `function` is a logical id."""

    method: str
    path: str
    function: str
    auth: str


def seconds_of(expression):
    """Returns the period of a rate expression, or None for a cron expression."""
    match = re.fullmatch(r"rate\((\d+) (minute|hour|day)s?\)", expression)
    if match:
        return int(match[1]) * {"minute": 60, "hour": 3600, "day": 86400}[match[2]]
    if re.fullmatch(r"cron\(\S+( \S+){5}\)", expression):
        return None
    raise ToolError(f"{expression} is not a schedule; write rate(n minutes) or cron(six fields)")


def routes_of(expanded, aliases):
    """Yields each route of the HTTP APIs."""
    for api in by_type(expanded, "AWS::ApiGatewayV2::Api").values():
        for path, methods in sorted(api["Properties"]["Body"]["paths"].items()):
            for method, route in sorted(methods.items()):
                schemes = [name for scheme in route.get("security", []) for name in scheme]
                if schemes not in (["AWS_IAM"], ["NONE"]):
                    found = schemes or "none"
                    raise ToolError(f"{method.upper()} {path} has the authorization {found}; write AWS_IAM or NONE there")
                target = function_behind(route["x-amazon-apigateway-integration"]["uri"], aliases)
                yield Route(method.upper(), path, target, schemes[0])
