"""The local AWS keeps what the functions rely on in DynamoDB."""

import os
import subprocess
import sys
import threading
import unittest

import boto3

import sam_template  # sets the region

SERVER = os.path.join(os.path.dirname(__file__), "aws_server.py")


class Table(unittest.TestCase):
    def test_no_reader_sees_an_item_that_is_half_written(self):
        pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        server = subprocess.Popen([sys.executable, SERVER], **pipe)
        self.addCleanup(server.communicate)
        url = f"http://127.0.0.1:{server.stdout.readline().strip()}"

        def client():
            keys = {"aws_access_key_id": "local", "aws_secret_access_key": "local"}
            return boto3.session.Session().client("dynamodb", endpoint_url=url, region_name=sam_template.REGION, **keys)

        keys = [("pk", "HASH"), ("sk", "RANGE")]
        client().create_table(
            TableName="t",
            BillingMode="PAY_PER_REQUEST",
            KeySchema=[{"AttributeName": name, "KeyType": kind} for name, kind in keys],
            AttributeDefinitions=[{"AttributeName": name, "AttributeType": "S"} for name, _ in keys],
        )

        def write(first):
            own = client()
            for number in range(first, 200, 2):
                own.update_item(
                    TableName="t",
                    Key={"pk": {"S": "p"}, "sk": {"S": f"{number:04}"}},
                    UpdateExpression="SET a = :a, b = :a",
                    ExpressionAttributeValues={":a": {"S": "a"}},
                )

        writers = [threading.Thread(target=write, args=(first,)) for first in (0, 1)]
        for writer in writers:
            writer.start()
        own, half_written = client(), 0
        while any(writer.is_alive() for writer in writers):
            items = own.query(
                TableName="t",
                KeyConditionExpression="pk = :pk",
                ExpressionAttributeValues={":pk": {"S": "p"}},
                ScanIndexForward=False,
                Limit=4,
            )["Items"]
            half_written += sum(len(item) < 4 for item in items)
        self.assertEqual(half_written, 0)


if __name__ == "__main__":
    unittest.main()
