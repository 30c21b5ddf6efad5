"""The comparison of recorded calls with the policies."""

import unittest

import rights
from template_case import TemplateCase


class Comparison(TemplateCase):
    def test_rights_are_read_in_the_words_of_the_record(self):
        granted = rights.granted(self.expanded)
        self.assertTrue(
            {
                ("incident-fetch", "dynamodb:UpdateItem", "TENANT#*"),
                ("incident-fetch", "dynamodb:Query", "index/listing"),
                ("incident-fetch", "s3:PutObject", "incidents/*"),
                ("incident-fetch", "secretsmanager:GetSecretValue", "AppCredential"),
                ("incident-dispatch", "sqs:SendMessage", "SyncQueue"),
                ("secret-rotation", "secretsmanager:PutSecretValue", "AppCredential"),
                ("tenant-admin", "events:PutEvents", "EventBus"),
            }
            <= granted
        )
        self.assertNotIn(("incident-dispatch", "secretsmanager:GetSecretValue", "AppCredential"), granted)

    def test_both_kinds_of_difference_are_named(self):
        granted = {("a-b", "s3:PutObject", "x/*"), ("a-b", "logs:PutLogEvents", "Logs"), ("a-b", "sqs:SendMessage", "Q")}
        calls = {("a-b", "s3:PutObject", "x/*"), ("a-b", "s3:GetObject", "x/*")}
        refused = ["a-b calls s3:GetObject on x/*, which its policies do not allow"]
        self.assertEqual(list(rights.refused(calls, granted)), refused)
        unused = ["a-b may call sqs:SendMessage on Q; no journey did"]
        self.assertEqual(list(rights.unused(calls, granted)), unused)


if __name__ == "__main__":
    unittest.main()
