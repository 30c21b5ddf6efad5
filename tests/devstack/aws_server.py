"""Runs moto, the local AWS, on a free loopback port and prints that port when it is ready.

It exits at the end of its standard input, so that it never outlives the stack that started it. With the argument
`--calls DIRECTORY` it writes there which function called which action on what, each once.
"""

import argparse
import os
import sys
import threading

from aws_faults import Faults
from call_log import CallLog
from later_release import LaterRelease
from moto import backends
from moto.core.config import default_user_config
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.sqs.models import Queue
from werkzeug.serving import WSGIRequestHandler, make_server


class RequestHandler(WSGIRequestHandler):
    """Logs no requests, because a log line takes longer than most of them."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass


class AtomicTable:
    """A WSGI application that hands requests to DynamoDB on one at a time.

    moto first makes a new item with its keys alone and then sets the rest, so that others could read the half of it.
    """

    def __init__(self, application):
        self.application = application
        self.lock = threading.Lock()

    def __call__(self, environ, start_response):
        if not environ.get("HTTP_X_AMZ_TARGET", "").startswith("DynamoDB_"):
            return self.application(environ, start_response)
        with self.lock:
            return self.application(environ, start_response)


def exit_with_standard_input() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", metavar="DIRECTORY")
    arguments = parser.parse_args()
    # The functions run in the stack. Without Docker, moto treats its own invocations as successful.
    default_user_config["lambda"]["use_docker"] = False
    # moto lists its own directory for each request. The list never changes.
    modules = tuple(backends.list_of_moto_modules())
    backends.list_of_moto_modules = lambda: modules
    # moto counts all messages of a queue whenever one is sent or received. Nothing here reads these counts.
    Queue.BASE_ATTRIBUTES = [name for name in Queue.BASE_ATTRIBUTES if not name.startswith("ApproximateNumber")]
    application = Faults(AtomicTable(LaterRelease(DomainDispatcherApplication(create_backend_app))))
    if arguments.calls:
        application = CallLog(application, arguments.calls)
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=RequestHandler)
    os.environ["MOTO_PORT"] = str(server.server_port)
    threading.Thread(target=exit_with_standard_input, daemon=True).start()
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
