"""deploy.py against a real moto server.

    python -m unittest discover -s tests/devstack
"""

import json
import logging
import os
import subprocess
import sys
import unittest

from moto.server import ThreadedMotoServer

import deploy
from template_case import ENVIRONMENT, ROUTES, TEMPLATE

logging.getLogger("werkzeug").setLevel(logging.ERROR)

DEPLOY = os.path.join(os.path.dirname(__file__), "deploy.py")
SERVER = os.path.join(os.path.dirname(__file__), "aws_server.py")


def run(*arguments):
    command = [sys.executable, DEPLOY, "--template", TEMPLATE, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


class Deployment(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        cls.server.start()
        cls.addClassCleanup(cls.server.stop)
        host, port = cls.server.get_host_and_port()
        cls.endpoint = f"http://{host}:{port}"
        cls.deployed = run("--endpoint", cls.endpoint, "--parameter", "PartnerName=Contoso & Söhne")
        assert cls.deployed.returncode == 0, cls.deployed.stderr
        cls.report = json.loads(cls.deployed.stdout)
        cls.client = staticmethod(deploy.clients(cls.endpoint))

    def test_report_has_all_parts(self):
        parts = ["functions", "event_sources", "routes", "schedules", "rotations", "resources", "only_checked"]
        self.assertEqual(list(self.report), parts)
        self.assertEqual(self.deployed.stderr, "")

    def test_functions_have_their_complete_environment_as_text(self):
        # The rotation exists only with a credential of its own.
        expected = {name: names for name, names in ENVIRONMENT.items() if name != "SecretRotation"}
        self.assertEqual({one["logical_id"]: set(one["environment"]) for one in self.report["functions"]}, expected)
        for function in self.report["functions"]:
            self.assertTrue(function["name"].startswith(f"mandate-{function['logical_id']}-"), function["name"])
            for name, value in function["environment"].items():
                self.assertIsInstance(value, str, name)
        by_id = {one["logical_id"]: one["environment"] for one in self.report["functions"]}
        resources = self.report["resources"]
        self.assertEqual(by_id["IncidentFetch"]["TABLE_NAME"], resources["table"])
        self.assertEqual(by_id["IncidentFetch"]["SYNC_QUEUE_URL"], resources["queue_url"])
        self.assertEqual(by_id["IncidentFetch"]["INCIDENT_BUCKET"], resources["bucket"])
        self.assertEqual(by_id["IncidentFetch"]["EVENT_BUS_NAME"], resources["event_bus"])
        self.assertEqual(by_id["IncidentFetch"]["APP_CREDENTIAL_SECRET_ID"], resources["secret"])
        self.assertEqual(by_id["IncidentFetch"]["POLL_MAX_INTERVAL_SECONDS"], "60")
        self.assertEqual(by_id["ConsentCallback"]["PARTNER_NAME"], "Contoso & Söhne")
        self.assertEqual(by_id["ConsentCallback"]["PUBLIC_BASE_URL"], "")

    def test_routes_sources_and_schedules_name_functions(self):
        names = {one["name"]: one["logical_id"] for one in self.report["functions"]}
        by_id = {logical_id: name for name, logical_id in names.items()}
        found = {name: set() for name in ROUTES}
        for route in self.report["routes"]:
            found[names[route["function"]]].add((route["method"], route["path"]))
        self.assertEqual(found, ROUTES)
        (source,) = self.report["event_sources"]
        self.assertEqual(
            source,
            {
                "function": by_id["IncidentFetch"],
                "queue_url": self.report["resources"]["queue_url"],
                "batch_size": 50,
                "report_batch_item_failures": True,
                "max_concurrency": 10,
            },
        )
        schedules = {one["name"]: one for one in self.report["schedules"]}
        self.assertEqual(schedules["mandate-poll"]["every_seconds"], 60)
        self.assertEqual(schedules["mandate-poll"]["input"], {"kind": "poll"})
        self.assertIsNone(schedules["mandate-sweep"]["every_seconds"])
        self.assertEqual({one["function"] for one in schedules.values()}, {by_id["IncidentDispatch"]})

    def test_created_resources_exist(self):
        resources = self.report["resources"]
        table = self.client("dynamodb").describe_table(TableName=resources["table"])["Table"]
        self.assertEqual({one["IndexName"] for one in table["GlobalSecondaryIndexes"]}, {"due", "listing"})
        ttl = self.client("dynamodb").describe_time_to_live(TableName=resources["table"])["TimeToLiveDescription"]
        self.assertEqual(ttl, {"TimeToLiveStatus": "ENABLED", "AttributeName": "expires_at"})
        queue = self.client("sqs").get_queue_attributes(QueueUrl=resources["queue_url"], AttributeNames=["All"])
        self.assertEqual(queue["Attributes"]["VisibilityTimeout"], "360")
        target = json.loads(queue["Attributes"]["RedrivePolicy"])["deadLetterTargetArn"]
        self.assertTrue(target.endswith(resources["dead_letter_queue_url"].rsplit("/", 1)[-1]))
        self.client("s3").head_bucket(Bucket=resources["bucket"])
        self.client("events").describe_event_bus(Name=resources["event_bus"])
        secret = self.client("secretsmanager").describe_secret(SecretId=resources["secret"])
        self.assertFalse(secret.get("VersionIdsToStages"))

    def test_message_stays_on_the_queue_until_it_is_received(self):
        sqs, queue = self.client("sqs"), self.report["resources"]["queue_url"]
        sqs.send_message(QueueUrl=queue, MessageBody="{}", MessageGroupId="tenant")
        (message,) = sqs.receive_message(QueueUrl=queue)["Messages"]
        sqs.delete_message(QueueUrl=queue, ReceiptHandle=message["ReceiptHandle"])

    def test_rotation_is_enabled_and_no_step_is_called(self):
        self.assertEqual(self.report["rotations"], [])
        # A process of its own, because all moto servers of one process share their state.
        pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        server = subprocess.Popen([sys.executable, SERVER], **pipe)
        self.addCleanup(server.communicate)
        endpoint = f"http://127.0.0.1:{server.stdout.readline().strip()}"
        values = {
            "PartnerName": "Contoso",
            "RotationCredentialSecretArn": "arn:aws:secretsmanager:eu-central-1:123456789012:secret:rotator-AbCdEf",
            "HomeTenantId": "11733a9e-0000-4000-8000-000000000000",
        }
        given = [word for name, value in values.items() for word in ("--parameter", f"{name}={value}")]
        deployed = run("--endpoint", endpoint, *given)
        self.assertEqual(deployed.returncode, 0, deployed.stderr)
        report = json.loads(deployed.stdout)
        secret = report["resources"]["secret"]
        self.assertEqual(report["rotations"], [{"secret": secret, "function": "mandate-secret-rotation"}])
        described = deploy.clients(endpoint)("secretsmanager").describe_secret(SecretId=secret)
        self.assertIs(described["RotationEnabled"], True)
        self.assertEqual(described["RotationRules"], {"AutomaticallyAfterDays": 30})
        self.assertFalse(described.get("VersionIdsToStages"))

    def test_second_stack_fits_beside_the_first(self):
        second = run("--endpoint", self.endpoint, "--stack-name", "second", "--parameter", "PartnerName=Contoso")
        self.assertEqual(second.returncode, 0, second.stderr)
        report = json.loads(second.stdout)
        for key, name in report["resources"].items():
            self.assertNotEqual(name, self.report["resources"][key], key)
        functions = [{one["name"] for one in one["functions"]} for one in (report, self.report)]
        self.assertFalse(functions[0] & functions[1])

    def test_error_is_one_line(self):
        for arguments in (
            ("--endpoint", self.endpoint, "--parameter", "PartnerName=Contoso"),  # exists already
            ("--endpoint", self.endpoint),
            ("--endpoint", "http://127.0.0.1:1", "--parameter", "PartnerName=Contoso"),
            ("--parameter", "PartnerName=Contoso"),
        ):
            with self.subTest(arguments):
                failed = run(*arguments)
                self.assertEqual((failed.returncode, failed.stdout), (1, ""))
                self.assertEqual(len(failed.stderr.splitlines()), 1, failed.stderr)


if __name__ == "__main__":
    unittest.main()
