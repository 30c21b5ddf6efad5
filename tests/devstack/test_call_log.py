"""The record of calls, with requests of the SDKs against a real moto server."""

import os
import tempfile
import unittest

import sam_template
from aws_case import AwsCase


class Record(AwsCase):
    def test_calls_of_functions_are_recorded_by_resource(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.start("--calls", directory.name)
        self.create_table()

        def client(service, caller="incident-fetch"):
            return self.client(service, caller)

        own = client("sqs", "local")
        own.create_queue(QueueName="mandate-SyncQueue-ABC123")
        client("s3", "local").create_bucket(
            Bucket="bucket", CreateBucketConfiguration={"LocationConstraint": sam_template.REGION}
        )
        key = {"pk": {"S": "TENANT#1"}, "sk": {"S": "FEED"}}
        for _ in range(2):
            client("dynamodb").put_item(TableName="t", Item=key)
        client("dynamodb").get_item(TableName="t", Key={**key, "pk": {"S": "CREDENTIAL"}})
        client("dynamodb").query(
            TableName="t", KeyConditionExpression="pk = :pk", ExpressionAttributeValues={":pk": {"S": "TENANT#1"}}
        )
        client("dynamodb").batch_get_item(RequestItems={"t": {"Keys": [key]}})
        update = {"Key": key, "UpdateExpression": "SET a = :a", "ExpressionAttributeValues": {":a": {"S": "a"}}}
        check = {"Key": {**key, "pk": {"S": "CREDENTIAL"}}, "ConditionExpression": "attribute_not_exists(pk)"}
        client("dynamodb").transact_write_items(
            TransactItems=[{"Update": {"TableName": "t", **update}}, {"ConditionCheck": {"TableName": "t", **check}}]
        )
        queue = own.get_queue_url(QueueName="mandate-SyncQueue-ABC123")["QueueUrl"]
        client("sqs").send_message_batch(QueueUrl=queue, Entries=[{"Id": "1", "MessageBody": "{}"}])
        client("s3").put_object(Bucket="bucket", Key="incidents/tenant_id=1/a.gz", Body=b"line\n")
        self.assertEqual(client("s3").get_object(Bucket="bucket", Key="incidents/tenant_id=1/a.gz")["Body"].read(), b"line\n")
        upload = {"Bucket": "bucket", "Key": "hunts/hunt_id=1/rows.gz"}
        for finish in ("complete", "abort"):
            begun = client("s3").create_multipart_upload(**upload)["UploadId"]
            part = client("s3").upload_part(**upload, UploadId=begun, PartNumber=1, Body=b"rows")
            if finish == "abort":
                client("s3").abort_multipart_upload(**upload, UploadId=begun)
            else:
                parts = {"Parts": [{"ETag": part["ETag"], "PartNumber": 1}]}
                client("s3").complete_multipart_upload(**upload, UploadId=begun, MultipartUpload=parts)
        (name,) = os.listdir(directory.name)
        with open(os.path.join(directory.name, name), encoding="utf-8") as file:
            lines = file.read().splitlines()
        self.assertEqual(
            sorted(lines),
            [
                "incident-fetch dynamodb:BatchGetItem TENANT#*",
                "incident-fetch dynamodb:ConditionCheckItem CREDENTIAL",
                "incident-fetch dynamodb:GetItem CREDENTIAL",
                "incident-fetch dynamodb:PutItem TENANT#*",
                "incident-fetch dynamodb:Query TENANT#*",
                "incident-fetch dynamodb:UpdateItem TENANT#*",
                "incident-fetch s3:AbortMultipartUpload hunts/*",
                "incident-fetch s3:GetObject incidents/*",
                "incident-fetch s3:PutObject hunts/*",
                "incident-fetch s3:PutObject incidents/*",
                "incident-fetch sqs:SendMessage SyncQueue",
            ],
        )


if __name__ == "__main__":
    unittest.main()
