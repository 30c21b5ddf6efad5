"""The local AWS keeps what the functions rely on in DynamoDB."""

import json
import threading
import unittest
import urllib.request

from aws_case import TABLE, AwsCase

KEY = {"pk": {"S": "p"}, "sk": {"S": "s"}}


class Table(AwsCase):
    def setUp(self):
        self.start()
        self.create_table()

    def test_no_reader_sees_an_item_that_is_half_written(self):
        def write(first):
            own = self.client("dynamodb")
            for number in range(first, 200, 2):
                own.update_item(
                    TableName=TABLE,
                    Key={"pk": {"S": "p"}, "sk": {"S": f"{number:04}"}},
                    UpdateExpression="SET a = :a, b = :a",
                    ExpressionAttributeValues={":a": {"S": "a"}},
                )

        writers = [threading.Thread(target=write, args=(first,)) for first in (0, 1)]
        for writer in writers:
            writer.start()
        own, half_written = self.client("dynamodb"), 0
        while any(writer.is_alive() for writer in writers):
            items = own.query(
                TableName=TABLE,
                KeyConditionExpression="pk = :pk",
                ExpressionAttributeValues={":pk": {"S": "p"}},
                ScanIndexForward=False,
                Limit=4,
            )["Items"]
            half_written += sum(len(item) < 4 for item in items)
        self.assertEqual(half_written, 0)

    def later_release(self, is_later):
        body = str(is_later).lower().encode()
        request = urllib.request.Request(f"{self.url}/stack/later-release", body, method="PUT")
        with urllib.request.urlopen(request) as response:
            return json.load(response)

    def test_items_of_a_later_release_are_followed_and_a_write_that_drops_something_is_found(self):
        function = self.client("dynamodb", "incident-fetch")
        self.later_release(True)
        words = {"history": {"L": [{"M": {"status": {"S": "suspended"}}}]}}
        later = KEY | words | {"schema": {"N": "2"}, "of_a_later_release": {"N": "2"}}
        function.put_item(TableName=TABLE, Item=later)
        kind = {"stored": 1, "written": 0, "words": 1}
        self.assertEqual(self.later_release(False), {"kinds": {"p s": kind}, "lost": []})
        update = {"UpdateExpression": "SET a = :a", "ExpressionAttributeValues": {":a": {"S": "a"}}}
        function.update_item(TableName=TABLE, Key=KEY, **update)
        with urllib.request.urlopen(f"{self.url}/stack/later-release") as response:
            self.assertEqual(json.load(response), {"kinds": {"p s": kind | {"written": 1}}, "lost": []})
        for name in ("history", "schema", "of_a_later_release"):
            self.later_release(True)
            function.delete_item(TableName=TABLE, Key=KEY)
            function.put_item(TableName=TABLE, Item=later | {"sk": {"S": name}})
            less = {member: value for member, value in later.items() if member != name} | {"sk": {"S": name}}
            function.transact_write_items(TransactItems=[{"Put": {"TableName": TABLE, "Item": less}}])
            self.assertIn(f"p/{name}", self.later_release(False)["lost"])

    def test_item_of_a_later_release_may_be_deleted_and_made_anew(self):
        function = self.client("dynamodb", "incident-fetch")
        self.later_release(True)
        function.put_item(TableName=TABLE, Item=KEY | {"schema": {"N": "2"}})
        self.later_release(False)
        function.delete_item(TableName=TABLE, Key=KEY)
        function.put_item(TableName=TABLE, Item=KEY)
        self.assertEqual(self.later_release(False), {"kinds": {}, "lost": []})


if __name__ == "__main__":
    unittest.main()
