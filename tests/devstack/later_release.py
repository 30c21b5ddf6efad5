"""Items as a later release writes them.

While it is on (`PUT /stack/later-release` with `true`), each item that a function writes also gets a mark and a higher
`schema`. `GET /stack/later-release` returns the number of items that have been marked so far, and the keys of those that a
function wrote again without the mark.
"""

import io
import json

from call_log import function_of
from moto.core import DEFAULT_ACCOUNT_ID
from moto.dynamodb.models import dynamodb_backends
from moto.dynamodb.models.dynamo_type import DynamoType

PATH = "/stack/later-release"
MARK = "of_a_later_release"
SCHEMA = "2"
# The member of a request with the key of its item.
ITEM_OF = {"PutItem": "Item", "UpdateItem": "Key", "DeleteItem": "Key"}


def written_keys(operation, request):
    """Yields the table and the key of each item that a call puts, updates or deletes."""
    if operation == "TransactWriteItems":
        for write in request["TransactItems"]:
            for kind, part in write.items():
                yield from written_keys(f"{kind}Item", part)
    elif operation in ITEM_OF:
        item = request[ITEM_OF[operation]]
        yield request["TableName"], item["pk"]["S"], item["sk"]["S"]


class LaterRelease:
    """A WSGI application that marks what functions write. Calls must come one at a time."""

    def __init__(self, application):
        self.application = application
        self.is_on = False
        self.marked = set()
        self.lost = set()

    def __call__(self, environ, start_response):
        if environ["PATH_INFO"] == PATH:
            return self.control(environ, start_response)
        operation = environ.get("HTTP_X_AMZ_TARGET", "").partition("DynamoDB_20120810.")[2]
        if operation not in (*ITEM_OF, "TransactWriteItems") or not function_of(environ):
            return self.application(environ, start_response)
        body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        environ["wsgi.input"] = io.BytesIO(body)
        response = list(self.application(environ, start_response))
        region = environ["HTTP_AUTHORIZATION"].split("/")[2]
        for key in written_keys(operation, json.loads(body)):
            self.written(key, dynamodb_backends[DEFAULT_ACCOUNT_ID][region])
        return response

    def control(self, environ, start_response):
        if environ["REQUEST_METHOD"] == "PUT":
            self.is_on = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
        body = json.dumps({"marked": len(self.marked), "lost": sorted("/".join(key[1:]) for key in self.lost)}).encode()
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]

    def written(self, key, backend):
        """Looks at an item after a write, which may have been refused."""
        table, pk, sk = key
        item = backend.get_item(table, {"pk": {"S": pk}, "sk": {"S": sk}})
        if item is None:
            self.marked.discard(key)
        elif self.is_on:
            item.attrs[MARK] = DynamoType({"S": "kept"})
            item.attrs["schema"] = DynamoType({"N": SCHEMA})
            self.marked.add(key)
        elif key in self.marked and (MARK not in item.attrs or item.attrs["schema"].value != SCHEMA):
            self.lost.add(key)
