"""Records the calls that functions make to the local AWS.

A function's access key is the name of its binary. Each line of the record is `binary service:Action resource`, where
the resource is what a policy can tell apart: a table's partition or index, the folder of an object, the logical id of
a queue, a bus or a secret.
"""

import io
import json
import os
import re
from urllib.parse import unquote


# A resource that no policy names, so that such a call has no right.
UNKNOWN = "?"
# The rights of calls whose right has another name.
RIGHTS = {"SendMessageBatch": "SendMessage", "DeleteMessageBatch": "DeleteMessage"}


def function_of(environ):
    """Returns the access key and the service of a signed request, or None."""
    match = re.search(r"Credential=([a-z]+-[a-z]+)/\d{8}/[^/]+/([a-z0-9]+)/", environ.get("HTTP_AUTHORIZATION", ""))
    return match and match.groups()


def physical(name):
    """Returns the logical id in a name that CloudFormation made, or the name itself."""
    match = re.fullmatch(r"[A-Za-z0-9]+-([A-Za-z0-9]+)-[A-Za-z0-9]+", name)
    return match[1] if match else name


def partition(key):
    """Returns the kind of a partition: `TENANT#*` for a tenant's."""
    return key.split("#")[0] + "#*" if "#" in key else key


def rights_of(service, action, request):
    """Yields the rights that a call with a JSON body needs, as pairs of action and resource."""
    if (service, action) == ("dynamodb", "TransactWriteItems"):
        # A transaction has no right of its own: each of its writes needs the one of its kind.
        for item in request["TransactItems"]:
            for kind, write in item.items():
                yield from rights_of(service, "ConditionCheckItem" if kind == "ConditionCheck" else f"{kind}Item", write)
        return
    for resource in resources_of(service, action, request):
        yield RIGHTS.get(action, action), resource


def resources_of(service, action, request):
    """Yields the resources of a call whose body is JSON."""
    if service == "dynamodb":
        if action == "BatchGetItem":
            keys = [key for table in request["RequestItems"].values() for key in table["Keys"]]
            yield from {partition(key["pk"]["S"]) for key in keys}
        elif action == "Query" and "IndexName" in request:
            yield "index/" + request["IndexName"]
        elif action == "Query":
            yield partition(request["ExpressionAttributeValues"][":pk"]["S"])
        else:
            item = request.get("Key") or request.get("Item") or {}
            yield partition(item["pk"]["S"]) if "pk" in item else UNKNOWN
    elif service == "sqs":
        yield physical(request["QueueUrl"].rsplit("/", 1)[-1])
    elif service == "secretsmanager":
        name = request["SecretId"].rsplit(":", 1)[-1]
        yield "AppCredential" if "AppCredential" in name else re.sub(r"-[A-Za-z0-9]{6}$", "", name)
    elif service == "events":
        yield "EventBus"
    else:
        yield "*"


def of_storage(environ):
    """Returns the action and the resource of a request to S3. Its parts need the right of the whole object."""
    # Path style: /bucket/folder/…
    folder, query = unquote(environ["PATH_INFO"]).split("/")[2:3], environ.get("QUERY_STRING", "")
    action = {"PUT": "PutObject", "POST": "PutObject", "GET": "GetObject", "HEAD": "GetObject", "DELETE": "DeleteObject"}[
        environ["REQUEST_METHOD"]
    ]
    if action == "DeleteObject" and "uploadId=" in query:
        action = "AbortMultipartUpload"
    return action, f"{folder[0]}/*" if folder and folder[0] else UNKNOWN


class CallLog:
    """A WSGI application that records calls of functions and hands them on."""

    def __init__(self, application, directory):
        os.makedirs(directory, exist_ok=True)
        self.application = application
        self.seen = set()
        self.path = os.path.join(directory, f"{os.getpid()}.txt")

    def __call__(self, environ, start_response):
        caller = function_of(environ)
        if caller:
            body = b"{}"
            if "CONTENT_LENGTH" in environ and caller[1] != "s3":
                body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"] or 0)) or body
                environ["wsgi.input"] = io.BytesIO(body)
            self.record(*caller, environ, body)
        return self.application(environ, start_response)

    def record(self, binary, service, environ, body):
        if service == "s3":
            rights = [of_storage(environ)]
        else:
            action = environ.get("HTTP_X_AMZ_TARGET", "").rsplit(".", 1)[-1]
            rights = rights_of(service, action, json.loads(body)) if action else [("", "*")]
        new = {f"{binary} {service}:{action} {resource}" for action, resource in rights} - self.seen
        if new:
            self.seen |= new
            with open(self.path, "a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in sorted(new))
