"""Serves AWS's stand-in (moto) on a free port of loopback and prints that port once it answers.

It ends when its standard input does, so that it never outlives the stack that started it, however that ended.
"""

import os
import sys
import threading

from moto import backends
from moto.core.config import default_user_config
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.sqs.models import Queue
from werkzeug.serving import WSGIRequestHandler, make_server


class RequestHandler(WSGIRequestHandler):
    """A line for each request would take longer than most requests."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass


def end_with_standard_input() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


def main() -> None:
    # The functions run in the stack. What moto would invoke itself, in Docker, it takes for done.
    default_user_config["lambda"]["use_docker"] = False
    # moto lists its own folder at each request.
    modules = tuple(backends.list_of_moto_modules())
    backends.list_of_moto_modules = lambda: modules
    # And it counts all messages of a queue anew for each one that is sent or received. Nobody asks here.
    Queue.BASE_ATTRIBUTES = [name for name in Queue.BASE_ATTRIBUTES if not name.startswith("ApproximateNumber")]
    application = DomainDispatcherApplication(create_backend_app)
    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=RequestHandler)
    os.environ["MOTO_PORT"] = str(server.server_port)
    threading.Thread(target=end_with_standard_input, daemon=True).start()
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
