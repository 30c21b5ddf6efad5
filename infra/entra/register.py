#!/usr/bin/env python3
"""Creates or updates the multi-tenant app registration that customers consent to.

Run it again whenever something is to change: it compares, and sends only what differs. Needs Python 3 and nothing else;
the token comes from the Azure CLI (`az login` first), or from a file.
"""

import argparse
import base64
import hashlib
import json
import re
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request

RESOURCES = {
    "graph": "00000003-0000-0000-c000-000000000000",
    "defender": "8ee8fdad-f234-4243-8f3b-15c294843740",
}
ROLES = {
    "graph": ("SecurityIncident.Read.All", "SecurityIncident.ReadWrite.All", "ThreatHunting.Read.All"),
    "defender": ("Incident.Read.All", "Incident.ReadWrite.All", "AdvancedHunting.Read.All"),
}
# What Entra wants as the audience of another provider's token, where it is not the worldwide one; by Graph's host.
AUDIENCES = {
    "graph.microsoft.us": "api://AzureADTokenExchangeUSGov",
    "dod-graph.microsoft.us": "api://AzureADTokenExchangeUSGov",
}


class Refused(Exception):
    """Something that a person has to change; the text says what."""


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """A token sent with a redirect would be a token given away."""

    def redirect_request(self, *_):
        return None


class Graph:
    """Microsoft Graph, or a dry run of it: reads are made, writes are only shown."""

    def __init__(self, endpoint, token, dry_run):
        self.endpoint = endpoint.rstrip("/")
        self.token = token
        self.dry_run = dry_run
        self.opener = urllib.request.build_opener(NoRedirects())

    def get(self, path, **query):
        query = {f"${name}": value for name, value in query.items()}
        return self._send("GET", f"{path}?{urllib.parse.urlencode(query)}" if query else path)

    def write(self, method, path, body):
        print(json.dumps({"method": method, "path": path, "body": body}, sort_keys=True), file=sys.stderr)
        return {} if self.dry_run else self._send(method, path, body)

    def _send(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self.token}", "Accept": "application/json"}
        if data is not None:
            headers["Content-Type"] = "application/json"
        request = urllib.request.Request(f"{self.endpoint}/v1.0{path}", data, headers, method=method)
        try:
            with self.opener.open(request, timeout=30) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise Refused(f"{method} {path}: {error.code} {_message(error.read())}") from None
        except urllib.error.URLError as error:
            raise Refused(f"{self.endpoint} cannot be reached: {error.reason}") from None
        return json.loads(text) if text else {}


def _message(body):
    try:
        return json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return ""


def required_access(graph, surface, with_write, with_hunting):
    """The permissions, looked up by name: names are what a person can check. Also all names of that resource, by id."""
    read, write, hunt = ROLES[surface]
    wanted = [read] + [write] * with_write + [hunt] * with_hunting
    app_id = RESOURCES[surface]
    found = graph.get("/servicePrincipals", filter=f"appId eq '{app_id}'", select="appId,displayName,appRoles")["value"]
    if not found:
        advice = "it needs Defender XDR, or use --surface graph"
        raise Refused(f"Your own tenant has no service principal of {surface}: {advice}.")
    known = {role["value"]: role["id"] for role in found[0]["appRoles"] if "Application" in role["allowedMemberTypes"]}
    missing = [name for name in wanted if name not in known]
    if missing:
        raise Refused(f"{found[0]['displayName']} offers no app role {', '.join(missing)}.")
    access = [{"resourceAppId": app_id, "resourceAccess": [{"id": known[name], "type": "Role"} for name in wanted]}]
    return access, {role: name for name, role in known.items()}


def desired(options, access):
    """The registration as it should be."""
    return {
        "displayName": options.name,
        "signInAudience": "AzureADMultipleOrgs",
        "groupMembershipClaims": "DirectoryRole",
        "requiredResourceAccess": access,
        "web": {
            "redirectUris": options.redirect_uri,
            "implicitGrantSettings": {"enableAccessTokenIssuance": False, "enableIdTokenIssuance": False},
        },
        "servicePrincipalLockConfiguration": {
            "isEnabled": True,
            "allProperties": True,
            "credentialsWithUsageVerify": True,
            "credentialsWithUsageSign": True,
            "tokenEncryptionKeyId": True,
        },
    }


def holds(current, wanted):
    """Whether what is there has all that is wanted; the order of a list does not matter."""
    if isinstance(wanted, dict):
        return isinstance(current, dict) and all(holds(current.get(name), value) for name, value in wanted.items())
    if isinstance(wanted, list):
        same_length = isinstance(current, list) and len(current) == len(wanted)
        return same_length and all(any(holds(one, value) for one in current) for value in wanted)
    return current == wanted


def removed(current, wanted, names):
    """The permissions that are asked for now and would not be any more, by name where it is known."""
    asked = [
        {(one["resourceAppId"], access["id"]) for one in several for access in one.get("resourceAccess", [])}
        for several in (current.get("requiredResourceAccess") or [], wanted["requiredResourceAccess"])
    ]
    return sorted(names.get(permission, f"{permission} of {app_id}") for app_id, permission in asked[0] - asked[1])


def find(graph, options):
    """The registration that is there, by its client id or its name."""
    by = ("appId", options.client_id) if options.client_id else ("displayName", options.name)
    value = by[1].replace("'", "''")
    found = graph.get("/applications", filter=f"{by[0]} eq '{value}'")["value"]
    if len(found) > 1:
        raise Refused(f"{len(found)} registrations are called {options.name}. Say which one with --client-id.")
    if options.client_id and not found:
        raise Refused(f"There is no registration {options.client_id} in this tenant.")
    return found[0] if found else None


def add_certificate(graph, client_id, path):
    """Adds a certificate beside those that are there, so that a rotation has an overlap."""
    with open(path, encoding="ascii") as file:
        block = re.search(r"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", file.read(), re.DOTALL)
    if not block:
        raise Refused(f"{path} holds no PEM certificate.")
    der = base64.b64decode(block[1])
    thumbprint = base64.b64encode(hashlib.sha1(der).digest()).decode()
    known = []
    if client_id:
        known = graph.get(f"/applications(appId='{client_id}')", select="keyCredentials").get("keyCredentials") or []
    if any(credential.get("customKeyIdentifier") == thumbprint for credential in known):
        return []
    added = {
        "type": "AsymmetricX509Cert",
        "usage": "Verify",
        "customKeyIdentifier": thumbprint,
        "key": base64.b64encode(der).decode(),
    }
    graph.write("PATCH", f"/applications(appId='{client_id}')", {"keyCredentials": [*known, added]})
    return ["keyCredentials"]


def add_federation(graph, client_id, options):
    """Lets tokens of another identity provider stand for the app: one credential for each subject, beside those there."""
    path = f"/applications(appId='{client_id}')/federatedIdentityCredentials"
    known = graph.get(path).get("value", []) if client_id else []
    audiences = {(credential["issuer"], credential["subject"]): credential["audiences"] for credential in known}
    host = urllib.parse.urlsplit(options.graph).hostname
    audience = options.federated_audience or AUDIENCES.get(host, "api://AzureADTokenExchange")
    missing = []
    for subject in dict.fromkeys(options.federated_subject):
        wanted = (options.federated_issuer, subject)
        if wanted not in audiences:
            missing.append(wanted)
        elif audiences[wanted] != [audience]:
            there = ", ".join(audiences[wanted])
            raise Refused(f"{subject} is there with the audience {there} instead of {audience}. Remove it first.")
    for wanted in missing:
        name = "aws-" + hashlib.sha256("\n".join(wanted).encode()).hexdigest()[:16]
        graph.write("POST", path, {"name": name, "issuer": wanted[0], "subject": wanted[1], "audiences": [audience]})
    return ["federatedIdentityCredentials"] if missing else []


def register(graph, options):
    access, names = required_access(graph, options.surface, options.with_write, options.with_hunting)
    current, wanted = find(graph, options), desired(options, access)
    if current is None:
        current = graph.write("POST", "/applications", wanted)
        changed = ["created"]
    else:
        lost = removed(current, wanted, names)
        if lost and not options.remove_permissions:
            advice = "Ask for them too (--with-write, --with-hunting), or say --remove-permissions"
            raise Refused(f"This would remove the permissions {', '.join(lost)}. {advice}.")
        differing = {name: value for name, value in wanted.items() if not holds(current.get(name), value)}
        changed = sorted(differing)
        if differing:
            graph.write("PATCH", f"/applications(appId='{current['appId']}')", differing)
    client_id = current.get("appId", "")
    if options.certificate:
        changed += add_certificate(graph, client_id, options.certificate)
    if options.federated_issuer:
        changed += add_federation(graph, client_id, options)
    return {"client_id": client_id or None, "changed": changed, "dry_run": graph.dry_run}


def redirect_uri(text):
    """Where our callback is reached: https and exact; http on this machine only."""
    url = urllib.parse.urlsplit(text)
    local = url.scheme == "http" and url.hostname in ("localhost", "127.0.0.1")
    plain = not (url.query or url.fragment or url.username) and "*" not in text
    if not (url.scheme == "https" or local) or not plain or not url.path.endswith("/consent/callback"):
        raise argparse.ArgumentTypeError("must be https://…/consent/callback, without a wildcard")
    return text


def token(options):
    """An access token for Graph; the Azure CLI's if no file is named."""
    if options.token_file:
        with open(options.token_file, encoding="ascii") as file:
            return file.read().strip()
    command = ["az", "account", "get-access-token", "--resource", options.graph, "--query", "accessToken", "-o", "tsv"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        raise Refused("The Azure CLI (`az`) is not here. Install it, or give --token-file.") from None
    except subprocess.CalledProcessError as error:
        raise Refused(f"The Azure CLI gave no token: {error.stderr.strip()}") from None


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", required=True, help="what a customer's administrator reads when consenting")
    replaces = "repeatable; replaces what is there"
    parser.add_argument("--redirect-uri", required=True, action="append", type=redirect_uri, help=replaces)
    parser.add_argument("--surface", choices=sorted(RESOURCES), default="graph", help="whose permissions are asked for")
    parser.add_argument("--with-write", action="store_true", help="ask for changing incidents, too")
    parser.add_argument("--with-hunting", action="store_true", help="ask for hunting, too")
    parser.add_argument("--remove-permissions", action="store_true", help="take away those that are not asked for here")
    parser.add_argument("--client-id", help="the registration to update, where its name does not tell")
    parser.add_argument("--certificate", help="PEM file to add as a credential")
    parser.add_argument("--federated-issuer", help="issuer of AWS tokens, e.g. https://….tokens.sts.global.api.aws")
    subject = "ARN of a role whose tokens stand for the app; repeatable, adds to what is there"
    parser.add_argument("--federated-subject", action="append", default=[], help=subject)
    parser.add_argument("--federated-audience", help="where it is not the one of --graph's cloud")
    parser.add_argument("--graph", default="https://graph.microsoft.com", help="another cloud's host, or a simulator")
    parser.add_argument("--token-file", help="an access token for Graph, instead of the Azure CLI's")
    parser.add_argument("--dry-run", action="store_true", help="show what would be sent, and send nothing")
    options = parser.parse_args(arguments)
    if bool(options.federated_issuer) != bool(options.federated_subject):
        parser.error("--federated-issuer and --federated-subject go together")
    return options


def main(arguments):
    options = parse(arguments)
    try:
        outcome = register(Graph(options.graph, token(options), options.dry_run), options)
    except (Refused, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(outcome))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
