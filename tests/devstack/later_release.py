"""Follows the items that a later release stores: each must keep what this release does not know.

The functions of `cargo dev --chaos` that stand for a later release write a higher `schema`, an attribute and words that
the others do not know (`shared/src/registry/later_release.rs`). `GET /stack/later-release` returns what became of these
items: their number by kind, how many of them this release has written since, the number of their words, and the keys of
those that lost something. `PUT` with `true` or `false` first says that writes from now on are the later release's, or
this one's again.
"""

import io
import json
from collections import defaultdict

from call_log import function_of
from moto.core import DEFAULT_ACCOUNT_ID
from moto.dynamodb.models import dynamodb_backends

PATH = "/stack/later-release"
ATTRIBUTE = "of_a_later_release"
SCHEMA = 2
# Other words, of severities, go with the versions that they belong to.
WORDS = {"suspended", "licence_expired", "reindex", "reviewed"}
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


def texts(value):
    """Yields the texts in a stored value, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)


def traces(item):
    """Returns what only a later release writes of an item's attributes, in DynamoDB's JSON."""
    found = WORDS & set(texts(item))
    if ATTRIBUTE in item:
        found.add(ATTRIBUTE)
    if int(item.get("schema", {}).get("N", 0)) >= SCHEMA:
        found.add("schema")
    return found


def kind_of(key):
    """Returns the kind of an item: the first parts of its key, or one where they are the same."""
    _, pk, sk = key
    kinds = (pk.split("#")[0], sk.split("#")[0])
    return kinds[0] if kinds[0] == kinds[1] else " ".join(kinds)


class LaterRelease:
    """A WSGI application that looks at what functions write. Calls must come one at a time."""

    def __init__(self, application):
        self.application = application
        self.is_later = False
        # What a later release left in each item.
        self.items = {}
        self.written = set()
        self.lost = set()

    def __call__(self, environ, start_response):
        if environ["PATH_INFO"] == PATH:
            return self.report(environ, start_response)
        operation = environ.get("HTTP_X_AMZ_TARGET", "").partition("DynamoDB_20120810.")[2]
        if operation not in (*ITEM_OF, "TransactWriteItems") or not function_of(environ):
            return self.application(environ, start_response)
        body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        environ["wsgi.input"] = io.BytesIO(body)
        response = list(self.application(environ, start_response))
        region = environ["HTTP_AUTHORIZATION"].split("/")[2]
        for key in written_keys(operation, json.loads(body)):
            self.look(key, dynamodb_backends[DEFAULT_ACCOUNT_ID][region])
        return response

    def report(self, environ, start_response):
        if environ["REQUEST_METHOD"] == "PUT":
            self.is_later = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
            self.written.clear()
        kinds = defaultdict(lambda: {"stored": 0, "written": 0, "words": 0})
        for key, found in self.items.copy().items():
            kind = kinds[kind_of(key)]
            kind["stored"] += 1
            kind["written"] += key in self.written
            kind["words"] += len(found & WORDS)
        lost = sorted("/".join(key[1:]) for key in self.lost.copy())
        body = json.dumps({"kinds": kinds, "lost": lost}).encode()
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]

    def look(self, key, backend):
        """Looks at an item after a write, which may have been refused."""
        table, pk, sk = key
        item = backend.get_item(table, {"pk": {"S": pk}, "sk": {"S": sk}})
        if item is None:
            self.items.pop(key, None)
            return
        found = traces(item.to_json()["Attributes"])
        if not self.items.get(key, set()) <= found:
            self.lost.add(key)
        if found:
            self.items[key] = self.items.get(key, set()) | found
            if not self.is_later:
                self.written.add(key)
