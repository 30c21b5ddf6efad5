#!/usr/bin/env python3
"""A function for the tests of the emulated Lambda. The member `do` of the event selects its action."""

import json
import os
import sys
import time
import urllib.request

BASE = os.environ["AWS_LAMBDA_RUNTIME_API"] + "/2018-06-01/runtime"
NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def post(path, body, headers=None):
    request = urllib.request.Request(BASE + path, json.dumps(body).encode(), headers or {}, method="POST")
    return NO_PROXY.open(request).status


if os.environ.get("FAIL_INIT"):
    print("no configuration", file=sys.stderr)
    post("/init/error", {"errorType": "Test.Init", "errorMessage": "no configuration"})
    sys.exit(1)

while True:
    with NO_PROXY.open(BASE + "/invocation/next") as response:
        headers = {name.lower(): value for name, value in response.headers.items()}
        event = json.load(response)
    invocation = "/invocation/" + headers["lambda-runtime-aws-request-id"]
    response_body = {"pid": os.getpid(), "headers": headers, "environment": dict(os.environ)}
    action = event.get("do", "batch")
    print(json.dumps({"message": action}), flush=True)
    if action == "exit":
        os._exit(3)
    elif action == "hang":
        time.sleep(3600)
    elif action == "error":
        header = {"lambda-runtime-function-error-type": "Test.Error"}
        post(invocation + "/error", {"errorType": "not_found", "errorMessage": "no such thing"}, header)
    elif action == "batch":
        failing = [record["messageId"] for record in event["Records"] if record["body"] == "bad"]
        post(invocation + "/response", {"batchItemFailures": [{"itemIdentifier": one} for one in failing]})
    elif action == "wrong id":
        try:
            post("/invocation/0/response", response_body)
        except urllib.error.HTTPError as error:
            post(invocation + "/response", error.code)
    else:
        time.sleep(event.get("seconds", 0))
        post(invocation + "/response", response_body)
    if action == "respond and exit":
        os._exit(0)
