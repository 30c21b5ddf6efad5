"""Faults of the local AWS, for the calls that functions make.

`PUT /stack/faults` with a JSON list of `{"service", "kind", "times"}` replaces the plan. The kinds are `throttled` and
`failing`, which refuse a call, and `lost`, which does what is asked and then reports a failure.
"""

import io
import json
import threading

from call_log import function_of

PLAN = "/stack/faults"
THROTTLED = {
    "dynamodb": (400, "com.amazonaws.dynamodb.v20120810#ProvisionedThroughputExceededException"),
    "s3": (503, "SlowDown"),
    "sqs": (400, "com.amazonaws.sqs#RequestThrottled"),
    "events": (500, "InternalException"),
    "secretsmanager": (400, "ThrottlingException"),
}


def failure(service, kind):
    """Returns the status line, content type and body of a failed call."""
    status, code = THROTTLED[service] if kind == "throttled" else (500, "InternalServerError")
    if service == "s3":
        return status, "application/xml", f"<Error><Code>{code}</Code><Message>fault</Message></Error>"
    return status, "application/x-amz-json-1.1", json.dumps({"__type": code, "message": "fault"})


class Faults:
    """A WSGI application that fails planned calls and hands the others on."""

    def __init__(self, application):
        self.application = application
        self.plan = []
        self.lock = threading.Lock()

    def __call__(self, environ, start_response):
        if environ["PATH_INFO"] == PLAN and environ["REQUEST_METHOD"] == "PUT":
            plan = json.loads(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
            with self.lock:
                self.plan = plan
            start_response("204 No Content", [])
            return []
        caller = function_of(environ)
        kind = caller and self.take(caller[1])
        if not kind:
            return self.application(environ, start_response)
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        if kind == "lost":
            environ["wsgi.input"] = io.BytesIO(body)
            for _ in self.application(environ, lambda *_: None):
                pass
        status, content_type, body = failure(caller[1], kind)
        start_response(f"{status} Fault", [("Content-Type", content_type), ("Content-Length", str(len(body)))])
        return [body.encode()]

    def take(self, service):
        """Returns the kind of the fault that hits a call to this service, if one does."""
        with self.lock:
            for fault in self.plan:
                if fault["service"] == service and fault["times"] > 0:
                    fault["times"] -= 1
                    return fault["kind"]
        return None
