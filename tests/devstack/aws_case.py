"""A test with an own local AWS."""

import os
import subprocess
import sys
import unittest

import boto3

import sam_template  # sets the region

SERVER = os.path.join(os.path.dirname(__file__), "aws_server.py")
TABLE = "t"
KEYS = (("pk", "HASH"), ("sk", "RANGE"))


class AwsCase(unittest.TestCase):
    """Starts the server that the stack starts, and ends it with the test."""

    def start(self, *arguments):
        pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        server = subprocess.Popen([sys.executable, SERVER, *arguments], **pipe)
        self.addCleanup(server.communicate)
        self.url = f"http://127.0.0.1:{server.stdout.readline().strip()}"

    def client(self, service, caller="local"):
        """Returns a client of a service. The access key of a function is its name."""
        keys = {"aws_access_key_id": caller, "aws_secret_access_key": "local"}
        # Sessions are not for several threads.
        session = boto3.session.Session()
        return session.client(service, endpoint_url=self.url, region_name=sam_template.REGION, **keys)

    def create_table(self):
        self.client("dynamodb").create_table(
            TableName=TABLE,
            BillingMode="PAY_PER_REQUEST",
            KeySchema=[{"AttributeName": name, "KeyType": kind} for name, kind in KEYS],
            AttributeDefinitions=[{"AttributeName": name, "AttributeType": "S"} for name, _ in KEYS],
        )
