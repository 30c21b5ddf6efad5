"""Checks infra/openapi.json against the local stack, as a stranger to this project would use it.

A client that openapi-python-client generates from the description does the journey of an operator. Then schemathesis
sends what the description allows, and what it does not, to every JSON route, and validates each response.
"""

import argparse
import importlib
import pathlib
import re
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
DESCRIPTION = ROOT / "infra" / "openapi.json"
# The local gateway checks the form of a signature only.
AUTHORIZATION = (
    "AWS4-HMAC-SHA256 Credential=local/20260101/eu-central-1/execute-api/aws4_request, SignedHeaders=host, Signature=0"
)


def free_port():
    """Returns the first of four ports in a row that are free."""
    for port in range(20000, 30000, 4):
        sockets = [socket.socket() for _ in range(4)]
        try:
            for offset, one in enumerate(sockets):
                one.bind(("127.0.0.1", port + offset))
            return port
        except OSError:
            continue
        finally:
            for one in sockets:
                one.close()
    raise SystemExit("no four free ports in a row")


def start_stack(port):
    """Starts `cargo dev` and returns once it has printed its consent link."""
    stack = subprocess.Popen(
        ["cargo", "dev", "--port", str(port)], cwd=ROOT, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )
    for line in stack.stdout:
        if "/consent/" in line:
            return stack
    raise SystemExit(f"cargo dev ended with {stack.wait()}")


def generate(out):
    """Generates a client from the description and makes it importable."""
    subprocess.run(
        [pathlib.Path(sys.executable).with_name("openapi-python-client"), "generate"]
        + ["--path", DESCRIPTION, "--output-path", out / "client", "--overwrite"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    sys.path.insert(0, str(out / "client"))


class Operator:
    """Calls operations through the generated client. A response that the description does not have fails."""

    def __init__(self, url):
        client = importlib.import_module("mandate_client").Client
        self.models = importlib.import_module("mandate_client.models")
        self.client = client(base_url=url, headers={"authorization": AUTHORIZATION}, raise_on_unexpected_status=True)

    def __call__(self, status, operation, *path, **arguments):
        """Returns the parsed response of `tag.operation`, which must have this status."""
        module = importlib.import_module(f"mandate_client.api.{operation}")
        response = module.sync_detailed(*path, client=self.client, **arguments)
        assert response.status_code == status, f"{operation} gave {response.status_code}: {response.content}"
        return response.parsed


def until(what, holds):
    """Returns the first true result of `holds`."""
    for _ in range(120):
        found = holds()
        if found:
            return found
        time.sleep(0.5)
    raise SystemExit(f"not within a minute: {what}")


def journey(url):
    """The journey of an operator: customers, invitations, incidents, a change, a hunt, a token, jobs, the end."""
    call = Operator(url)
    models = call.models
    invitation = call(201, "invitations.create_invitation", body=models.InvitationRequest(customer="Tailspin Toys"))
    assert invitation.consent_url.startswith(url)
    assert invitation.invitation_id in [one.invitation_id for one in call(200, "invitations.list_invitations").invitations]
    call(204, "invitations.revoke_invitation", invitation.invitation_id)

    def active():
        tenants = call(200, "tenants.list_tenants", sort=models.ListTenantsSort.LAG).tenants
        found = [one for one in tenants if one.status == "active" and one.incidents_total > 0]
        return found if len(found) >= 2 else None

    tenant = until("two customers are active and have incidents", active)[0].tenant_id
    page = call(200, "incidents.list_incidents", tenant, limit=1)
    assert len(page.incidents) == 1
    call(200, "incidents.list_incidents", tenant, next_=page.next_) if page.next_ else None
    incident = page.incidents[0]
    assert call(200, "incidents.get_incident", tenant, incident.incident_id).incident_id == incident.incident_id
    everywhere = call(200, "incidents.list_all_incidents")
    assert {one.tenant_id for one in everywhere.incidents} >= {tenant} and everywhere.failures == []
    change = models.IncidentChange(comment="Looked at.")
    assert call(200, "incidents.update_incident", tenant, incident.incident_id, body=change).incident_id == incident.incident_id
    token = call(200, "tokens.issue_token", tenant, body=models.TokenRequest())
    assert token.tenant_id == tenant and token.expires_in > 0

    hunt = call(200, "hunting.start_hunt", body=models.HuntRequest(query="DeviceInfo | take 3", tenants=[tenant]))
    assert call(200, "hunting.get_hunt", hunt.hunt_id).tenants_done == 1

    job = call(202, "tenants.start_sync", tenant, body=models.SyncRequest(kind=models.SyncRequestKind.SWEEP)).job_id
    until("the sweep is done", lambda: call(200, "tenants.get_sync_job", tenant, job).status == "done")
    call(200, "tenants.cancel_sync_job", tenant, job)
    assert call(200, "tenants.pause_tenant", tenant).reason == "operator"
    assert call(409, "incidents.list_incidents", tenant).code == "tenant_not_active"
    assert call(200, "tenants.resume_tenant", tenant).status in ("active", "pending")
    assert call(404, "tenants.get_tenant", "99999999-9999-4999-8999-999999999999").code == "not_found"


def schemathesis(url, examples, *chosen):
    """Runs schemathesis on the chosen operations, with schemathesis.toml."""
    return subprocess.run(
        [pathlib.Path(sys.executable).with_name("schemathesis"), "run", DESCRIPTION, "--url", url]
        + ["--header", f"Authorization: {AUTHORIZATION}", "--max-examples", str(examples), "--generation-deterministic"]
        # The pages for browsers are no API; journeys in a browser look at them.
        + ["--phases", "examples,coverage,fuzzing,stateful", "--exclude-tag", "consent", *chosen],
        cwd=ROOT / "tests" / "openapi",
    ).returncode


def main():
    """Exits with 0 if the journey and schemathesis found nothing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder for the generated client")
    parser.add_argument("--port", type=int, help="use a stack that is up on this port")
    parser.add_argument("--examples", type=int, default=25, help="cases of schemathesis for each operation")
    options = parser.parse_args()
    port = options.port or free_port()
    url = f"http://localhost:{port}"
    generate(options.out.resolve())
    stack = None if options.port else start_stack(port)
    try:
        journey(url)
        print("the generated client did the journey")
        # Offboarding comes last, because it leaves no tenant to the others.
        last = "offboardTenant"
        status = schemathesis(url, options.examples, "--exclude-operation-id", last)
        status = schemathesis(url, options.examples, "--include-operation-id", last) or status
    finally:
        if stack:
            stack.terminate()
            stack.wait()
    sys.exit(status)


if __name__ == "__main__":
    main()
