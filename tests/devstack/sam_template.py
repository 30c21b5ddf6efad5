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
        names = ("AWSXrayWriteOnlyAccess", "AWSXRayDaemonWriteAccess")
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


def expand(template, values, code=None):
    """Returns the template as CloudFormation receives it, after SAM's expansion.

    `code` has the place of each function's zip by logical id; without it, all have one that nobody runs.
    """
    template = copy.deepcopy(template)
    code_uri = "s3://{}/{}".format(*ARTIFACTS)
    template.get("Globals", {}).get("Function", {}).pop("CodeUri", None)
    for name, resource in template["Resources"].items():
        if resource.get("Type") == "AWS::Serverless::Function":
            resource.setdefault("Properties", {})["CodeUri"] = code[name] if code else code_uri
    try:
        return transform(template, dict(values), Policies())
    except InvalidDocumentException as error:
        raise ToolError("SAM refuses the template: " + " ".join(cause.message for cause in error.causes)) from error


class Missing(Exception):
    """The value of `AWS::NoValue`, which removes the member that has it."""


def condition_holds(name, template, values):
    """Evaluates a condition of the template."""
    if name not in template.get("Conditions", {}):
        raise ToolError(f"there is no condition {name}")
    return holds(template["Conditions"][name], template, values)


def holds(node, template, values):
    """Evaluates an expression of a condition."""
    (kind, argument), = node.items()
    if kind == "Condition":
        return condition_holds(argument, template, values)
    if kind == "Fn::Equals":
        first, second = (evaluated(one, template, values) for one in argument)
        return str(first) == str(second)
    if kind == "Fn::Not":
        return not holds(argument[0], template, values)
    if kind in ("Fn::And", "Fn::Or"):
        every = all if kind == "Fn::And" else any
        return every(holds(one, template, values) for one in argument)
    raise ToolError(f"a condition uses {kind}")


def evaluated(node, template, values):
    """Returns a part of the template as CloudFormation evaluates it with these parameter values.

    A reference to a resource or a pseudo parameter becomes a text that stands for it: what depends on nothing but the
    parameters is exact. The text has the form of a secret's ARN, so that its parts can be selected.
    """

    def stands_for(name):
        return values[name] if name in values else f"arn:aws:any:region:account:resource:{name}-random"

    def value(node):
        if isinstance(node, list):
            return [one for one in map(member, node) if one is not Missing]
        if not isinstance(node, dict):
            return node
        if len(node) == 1:
            (kind, argument), = node.items()
            if kind == "Ref":
                if argument == "AWS::NoValue":
                    raise Missing
                return stands_for(argument)
            if kind in functions:
                return functions[kind](argument)
        return {key: one for key, one in ((key, member(one)) for key, one in node.items()) if one is not Missing}

    def member(node):
        try:
            return value(node)
        except Missing:
            return Missing

    def substituted(argument):
        text, given = (argument, {}) if isinstance(argument, str) else argument

        def text_of(match):
            name = match[1]
            if name.startswith("!"):
                return "${" + name[1:] + "}"
            return str(value(given[name]) if name in given else stands_for(name))

        return re.sub(r"\$\{([^}]+)\}", text_of, text)

    functions = {
        "Fn::If": lambda one: value(one[1] if condition_holds(one[0], template, values) else one[2]),
        "Fn::Sub": substituted,
        "Fn::GetAtt": lambda one: stands_for(one if isinstance(one, str) else ".".join(one)),
        "Fn::Join": lambda one: one[0].join(value(one[1])),
        "Fn::Split": lambda one: str(value(one[1])).split(one[0]),
        "Fn::Select": lambda one: value(one[1])[int(one[0])],
        "Fn::FindInMap": lambda one: template["Mappings"][one[0]][value(one[1])][value(one[2])],
    }
    return value(node)


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


def routes_of(expanded, aliases, values):
    """Yields each route of the HTTP APIs that exist with these parameter values."""
    for api in by_type(expanded, "AWS::ApiGatewayV2::Api").values():
        if "Condition" in api and not condition_holds(api["Condition"], expanded, values):
            continue
        body = api["Properties"]["Body"]
        integrations = body.get("components", {}).get("x-amazon-apigateway-integrations", {})
        for path, methods in sorted(body["paths"].items()):
            if set(methods) == {"Fn::If"}:
                condition, there, absent = methods["Fn::If"]
                methods = there if condition_holds(condition, expanded, values) else absent
            for method, route in sorted(methods.items()):
                if method == "Ref":
                    continue  # AWS::NoValue
                schemes = [name for scheme in route.get("security", []) for name in scheme]
                if schemes not in (["AWS_IAM"], ["NONE"], ["jwt"]):
                    found = schemes or "none"
                    raise ToolError(f"{method.upper()} {path} has the authorization {found}; write AWS_IAM or NONE there")
                integration = route["x-amazon-apigateway-integration"]
                if "$ref" in integration:
                    integration = integrations[integration["$ref"].rsplit("/", 1)[-1]]
                yield Route(method.upper(), path, function_behind(integration["uri"], aliases), schemes[0])
