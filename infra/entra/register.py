#!/usr/bin/env python3
"""Creates or updates the multi-tenant app registration that customers consent to.

Run it again for every change. It compares the registration with its options and sends only the differences. It requires
only Python 3. The access token comes from the Azure CLI (run `az login` first) or from a file.
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
# The audience that Entra requires in another provider's token, by Graph's host, where it is not the worldwide one.
AUDIENCES = {
    "graph.microsoft.us": "api://AzureADTokenExchangeUSGov",
    "dod-graph.microsoft.us": "api://AzureADTokenExchangeUSGov",
}


class RegistrationError(Exception):
    """An error whose text says what the user has to change."""


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follows no redirect, because that would send the token to another host."""

    def redirect_request(self, *_):
        return None


class Graph:
    """A client of Microsoft Graph. A dry run prints its writes and sends only its reads."""

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
            with self.opener.open(request, timeout=30) as response:
                text = response.read()
        except urllib.error.HTTPError as error:
            raise RegistrationError(f"{method} {path}: {error.code} {_message(error.read())}") from None
        except urllib.error.URLError as error:
            raise RegistrationError(f"{self.endpoint} cannot be reached: {error.reason}") from None
        return json.loads(text) if text else {}


def _message(body):
    """Returns the error message in Graph's response; empty if there is none."""
    try:
        return json.loads(body)["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return ""


def required_access(graph, options):
    """Returns the required permissions of the app, and the names of all app roles of that API by id.

    The ids are looked up by the roles' names, because a reader can check names.
    """
    if options.sign_in_only:
        return [], {}
    api = options.surface
    read, write, hunt = ROLES[api]
    wanted = [read] + [write] * options.with_write + [hunt] * options.with_hunting
    app_id = RESOURCES[api]
    found = graph.get("/servicePrincipals", filter=f"appId eq '{app_id}'", select="appId,displayName,appRoles")["value"]
    if not found:
        advice = "Enable Defender XDR there, or use --surface graph"
        raise RegistrationError(f"Your own tenant has no service principal of {api}. {advice}.")
    known = {role["value"]: role["id"] for role in found[0]["appRoles"] if "Application" in role["allowedMemberTypes"]}
    missing = [name for name in wanted if name not in known]
    if missing:
        raise RegistrationError(f"{found[0]['displayName']} has no app role {', '.join(missing)}.")
    access = [{"resourceAppId": app_id, "resourceAccess": [{"id": known[name], "type": "Role"} for name in wanted]}]
    return access, {role: name for name, role in known.items()}


def desired(options, access):
    """Returns the registration that the options describe."""
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


def contains(current, wanted):
    """Returns True if the current value has everything that is wanted. The order of a list does not matter."""
    if isinstance(wanted, dict):
        return isinstance(current, dict) and all(contains(current.get(name), value) for name, value in wanted.items())
    if isinstance(wanted, list):
        same_length = isinstance(current, list) and len(current) == len(wanted)
        return same_length and all(any(contains(one, value) for one in current) for value in wanted)
    return current == wanted


def removed(current, wanted, names):
    """Returns the permissions that an update would remove, by name if it is known."""
    before, after = [
        {(one["resourceAppId"], access["id"]) for one in several for access in one.get("resourceAccess", [])}
        for several in (current.get("requiredResourceAccess") or [], wanted["requiredResourceAccess"])
    ]
    return sorted(names.get(permission, f"{permission} of {app_id}") for app_id, permission in before - after)


def find(graph, options):
    """Returns the existing registration with the client id or the name of the options, or None."""
    attribute, value = ("appId", options.client_id) if options.client_id else ("displayName", options.name)
    value = value.replace("'", "''")
    found = graph.get("/applications", filter=f"{attribute} eq '{value}'")["value"]
    if len(found) > 1:
        raise RegistrationError(f"{len(found)} registrations are called {options.name}. Select one with --client-id.")
    if options.client_id and not found:
        raise RegistrationError(f"There is no registration {options.client_id} in this tenant.")
    return found[0] if found else None


def add_certificate(graph, client_id, path):
    """Adds a certificate and keeps the existing ones, so that both work during a rotation."""
    with open(path, encoding="ascii") as file:
        block = re.search(r"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", file.read(), re.DOTALL)
    if not block:
        raise RegistrationError(f"{path} does not contain a PEM certificate.")
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
    """Adds a federated identity credential for each subject and keeps the existing ones.

    With it, the app can sign in by a token of another identity provider.
    """
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
            existing = ", ".join(audiences[wanted])
            found = f"{subject} exists with the audience {existing} instead of {audience}"
            raise RegistrationError(f"{found}. Remove it first.")
    for wanted in missing:
        name = "aws-" + hashlib.sha256("\n".join(wanted).encode()).hexdigest()[:16]
        graph.write("POST", path, {"name": name, "issuer": wanted[0], "subject": wanted[1], "audiences": [audience]})
    return ["federatedIdentityCredentials"] if missing else []


def register(graph, options):
    """Creates or updates the registration and returns its client id and the names of the changed attributes."""
    access, names = required_access(graph, options)
    current, wanted = find(graph, options), desired(options, access)
    if current is None:
        current = graph.write("POST", "/applications", wanted)
        changed = ["created"]
    else:
        lost = removed(current, wanted, names)
        if lost and not options.remove_permissions:
            advice = "Keep them with --with-write or --with-hunting, or confirm with --remove-permissions"
            raise RegistrationError(f"This would remove the permissions {', '.join(lost)}. {advice}.")
        differing = {name: value for name, value in wanted.items() if not contains(current.get(name), value)}
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
    """Validates the URL of our callback: https, or http on this machine; no wildcard and no query."""
    url = urllib.parse.urlsplit(text)
    local = url.scheme == "http" and url.hostname in ("localhost", "127.0.0.1")
    plain = not (url.query or url.fragment or url.username) and "*" not in text
    if not (url.scheme == "https" or local) or not plain or not url.path.endswith("/consent/callback"):
        raise argparse.ArgumentTypeError("must be https://…/consent/callback, without a wildcard")
    return text


def token(options):
    """Returns an access token for Graph, from the named file or from the Azure CLI."""
    if options.token_file:
        with open(options.token_file, encoding="ascii") as file:
            return file.read().strip()
    command = ["az", "account", "get-access-token", "--resource", options.graph, "--query", "accessToken", "-o", "tsv"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:
        raise RegistrationError("The Azure CLI (`az`) is not installed. Install it, or use --token-file.") from None
    except subprocess.CalledProcessError as error:
        raise RegistrationError(f"The Azure CLI returned no token: {error.stderr.strip()}") from None


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", required=True, help="the name that a customer's administrator sees when consenting")
    replaces = "URL of our callback; repeatable, replaces the existing ones"
    parser.add_argument("--redirect-uri", required=True, action="append", type=redirect_uri, help=replaces)
    api = "the API whose permissions the app requests"
    parser.add_argument("--surface", choices=sorted(RESOURCES), default="graph", help=api)
    parser.add_argument("--with-write", action="store_true", help="request the permission to change incidents, too")
    parser.add_argument("--with-hunting", action="store_true", help="request the permission for hunting, too")
    signs_in = "request no permission: a registration for the administrator's sign-in alone"
    parser.add_argument("--sign-in-only", action="store_true", help=signs_in)
    removes = "remove permissions that these options do not request"
    parser.add_argument("--remove-permissions", action="store_true", help=removes)
    parser.add_argument("--client-id", help="client id of the registration to update, if its name is not unique")
    parser.add_argument("--certificate", help="PEM file to add as a credential")
    parser.add_argument("--federated-issuer", help="issuer of AWS tokens, e.g. https://….tokens.sts.global.api.aws")
    subject = "ARN of a role whose tokens the app can sign in with; repeatable, adds to the existing ones"
    parser.add_argument("--federated-subject", action="append", default=[], help=subject)
    parser.add_argument("--federated-audience", help="audience of these tokens, if it is not that of --graph's cloud")
    host = "URL of Microsoft Graph in another cloud, or of a simulator"
    parser.add_argument("--graph", default="https://graph.microsoft.com", help=host)
    parser.add_argument("--token-file", help="file with an access token for Graph, instead of the Azure CLI")
    parser.add_argument("--dry-run", action="store_true", help="print the writes and do not send them")
    options = parser.parse_args(arguments)
    if options.sign_in_only and (options.with_write or options.with_hunting):
        parser.error("--sign-in-only requests no permission, so neither --with-write nor --with-hunting")
    if bool(options.federated_issuer) != bool(options.federated_subject):
        parser.error("--federated-issuer and --federated-subject must be given together")
    return options


def main(arguments):
    options = parse(arguments)
    try:
        outcome = register(Graph(options.graph, token(options), options.dry_run), options)
    except (RegistrationError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(outcome))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
