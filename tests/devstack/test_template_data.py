"""The template's stores, queues and schedules."""

import json
import os
import re
import unittest

from moto.events.models import EventPattern

import deploy
import sam_template
from template_case import DATA, ROUTES, TEMPLATE, TemplateCase, as_list, resource_name


class Data(TemplateCase):
    def test_data_outlives_the_stack(self):
        for name, kind in {**DATA, "AppCredential": "AWS::SecretsManager::Secret"}.items():
            resource = self.resources[name]
            self.assertEqual(resource["Type"], kind)
            # A failed first deployment removes what it can: the next one would leave another one behind. A table with
            # deletion protection and a key that the table uses it cannot.
            deletion = "Retain" if name in ("Table", "DataKey") else "RetainExceptOnCreate"
            self.assertEqual((resource["DeletionPolicy"], resource["UpdateReplacePolicy"]), (deletion, "Retain"), name)

    def test_audit_logs_outlive_the_stack(self):
        for name in self.properties_of("AWS::Logs::LogGroup"):
            resource = self.resources[name]
            self.assertEqual(resource["DeletionPolicy"], "RetainExceptOnCreate", name)
            self.assertEqual(resource["UpdateReplacePolicy"], "Retain", name)
            self.assertNotIn("Condition", resource, name)

    def test_outputs_name_the_resources_that_operators_need(self):
        outputs = self.expanded["Outputs"]
        for name, value in {
            "ApiLogGroup": {"Ref": "ApiLogs"},
            "IncidentFetchFunction": {"Ref": "IncidentFetch"},
            "IncidentFetchLogGroup": {"Ref": "IncidentFetchLogs"},
            "DataKeyArn": {"Fn::GetAtt": ["DataKey", "Arn"]},
            "IncidentBucketName": {"Ref": "IncidentBucket"},
            "SyncDeadLetterQueueArn": {"Fn::GetAtt": ["SyncDeadLetterQueue", "Arn"]},
            "SyncDeadLetterQueueUrl": {"Ref": "SyncDeadLetterQueue"},
            "TableName": {"Ref": "Table"},
            "TickDeadLetterQueueUrl": {"Ref": "TickDeadLetterQueue"},
        }.items():
            self.assertEqual(outputs[name]["Value"], value, name)

    def test_table_keys_indexes_and_protection(self):
        table = self.resources["Table"]["Properties"]
        keys = [(one["AttributeName"], one["KeyType"]) for one in table["KeySchema"]]
        self.assertEqual(keys, [("pk", "HASH"), ("sk", "RANGE")])
        indexes = {
            one["IndexName"]: ([key["AttributeName"] for key in one["KeySchema"]], one["Projection"]["ProjectionType"])
            for one in table["GlobalSecondaryIndexes"]
        }
        self.assertEqual(
            indexes, {"due": (["due_shard", "due_at"], "KEYS_ONLY"), "listing": (["listing", "listed_at"], "ALL")}
        )
        kinds = {one["AttributeName"]: one["AttributeType"] for one in table["AttributeDefinitions"]}
        self.assertEqual(
            kinds, {"pk": "S", "sk": "S", "due_shard": "S", "due_at": "N", "listing": "S", "listed_at": "S"}
        )
        self.assertEqual(table["TimeToLiveSpecification"], {"AttributeName": "expires_at", "Enabled": True})
        recovery = {"PointInTimeRecoveryEnabled": True, "RecoveryPeriodInDays": 35}
        self.assertEqual(table["PointInTimeRecoverySpecification"], recovery)
        self.assertIs(table["DeletionProtectionEnabled"], True)
        self.assertEqual(table["BillingMode"], "PAY_PER_REQUEST")
        self.assertEqual(table["SSESpecification"]["KMSMasterKeyId"], {"Fn::GetAtt": ["DataKey", "Arn"]})

    def test_bucket_is_private_encrypted_and_versioned(self):
        bucket = self.resources["IncidentBucket"]["Properties"]
        self.assertEqual(set(bucket["PublicAccessBlockConfiguration"].values()), {True})
        self.assertEqual(len(bucket["PublicAccessBlockConfiguration"]), 4)
        self.assertEqual(bucket["OwnershipControls"]["Rules"], [{"ObjectOwnership": "BucketOwnerEnforced"}])
        self.assertEqual(bucket["VersioningConfiguration"], {"Status": "Enabled"})
        (rule,) = bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"]
        self.assertIs(rule["BucketKeyEnabled"], True)
        self.assertEqual(rule["ServerSideEncryptionByDefault"]["SSEAlgorithm"], "aws:kms")
        rules = bucket["LifecycleConfiguration"]["Rules"]
        kept = {one["Prefix"]: one["ExpirationInDays"] for one in rules if "Prefix" in one}
        prefixes = ["incidents/", "ocsf/", "quarantine/"]
        self.assertEqual(kept, {**{prefix: {"Ref": "RetentionDays"} for prefix in prefixes}, "hunts/": 30})

    def test_bucket_and_queues_refuse_plain_http(self):
        policies = {**self.properties_of("AWS::S3::BucketPolicy"), **self.properties_of("AWS::SQS::QueuePolicy")}
        covered = set()
        for name, policy in policies.items():
            if "Queues" in policy:
                self.assertEqual(policy["Queues"], [{"Ref": name.removesuffix("Policy")}], "one document for each queue")
            statement = policy["PolicyDocument"]["Statement"][0]
            self.assertEqual((statement["Effect"], statement["Principal"]), ("Deny", "*"))
            self.assertEqual(statement["Condition"], {"Bool": {"aws:SecureTransport": "false"}})
            covered |= {resource_name(resource) for resource in as_list(statement["Resource"])}
        queues = set(self.properties_of("AWS::SQS::Queue"))
        self.assertEqual(covered, {"IncidentBucket", "IncidentBucket/*"} | queues)

    def test_only_its_own_rule_sends_to_the_incident_queue(self):
        names = ("IncidentQueue", "IncidentDeadLetterQueue")
        queues = [{"Fn::GetAtt": [name, "Arn"]} for name in names]
        rule = {"Fn::GetAtt": ["IncidentRule", "Arn"]}
        for name, queue in zip(names, queues, strict=True):
            _, allowed = self.resources[name + "Policy"]["Properties"]["PolicyDocument"]["Statement"]
            self.assertEqual(allowed["Principal"], {"Service": "events.amazonaws.com"})
            self.assertEqual((allowed["Action"], allowed["Resource"]), ("sqs:SendMessage", queue))
            self.assertEqual(allowed["Condition"], {"ArnEquals": {"aws:SourceArn": rule}})
        (target,) = self.resources["IncidentRule"]["Properties"]["Targets"]
        self.assertEqual([target["Arn"], target["DeadLetterConfig"]["Arn"]], queues)

    def test_incident_queue_exists_only_with_a_severity(self):
        names = [name for name, one in self.resources.items() if one.get("Condition") == "HasIncidentQueue"]
        queues = ["IncidentDeadLetterQueue", "IncidentDeadLetterQueuePolicy", "IncidentQueue", "IncidentQueuePolicy"]
        self.assertEqual(sorted(names), sorted([*queues, "IncidentDeadLetters", "IncidentRule"]))
        for severity, there in (("none", False), ("high", True)):
            values = {**self.values, "IncidentQueueSeverity": severity}
            self.assertIs(sam_template.condition_holds("HasIncidentQueue", self.expanded, values), there)

    def test_sample_rules_match_the_events_that_they_are_for(self):
        with open(os.path.join(os.path.dirname(TEMPLATE), "README.md"), encoding="utf-8") as file:
            rules = re.findall(r"put-rule --name mandate-(\w+) [^']*'(\{[^']*\})'", file.read())
        one, other = "11111111-2222-4333-8444-555555555555", "99999999-2222-4333-8444-555555555555"
        detail = {"tenant_id": other, "change": "updated", "severity": "low", "status": "active"}
        events = {
            "new and high": {"severity": "high", "change": "created"},
            "high": {"severity": "high"},
            "medium and resolved": {"severity": "medium", "status": "resolved"},
            "medium": {"severity": "medium"},
            "low": {},
            "without a severity": {"severity": None},
            "of the customer": {"tenant_id": one},
        }
        wanted = {
            "delivered": [],
            "high": ["new and high"],
            "contoso": ["of the customer"],
            "tickets": ["new and high", "high", "medium"],
        }
        found = {}
        for name, pattern in rules:
            matches = EventPattern.load(pattern).matches_event
            event = {"source": "partner.incidents", "detail-type": "Incident Changed"}
            found[name] = [case for case, parts in events.items() if matches({**event, "detail": {**detail, **parts}})]
        self.assertEqual(found, wanted)

    def test_log_groups_expire_and_are_encrypted(self):
        groups = self.properties_of("AWS::Logs::LogGroup")
        self.assertEqual(set(groups), {f"{name}Logs" for name in ROUTES} | {"ApiLogs"})
        key = json.dumps(self.resources["DataKey"]["Properties"]["KeyPolicy"])
        for name, group in groups.items():
            self.assertEqual(group["RetentionInDays"], {"Ref": "LogRetentionDays"}, name)
            self.assertEqual(group["KmsKeyId"], {"Fn::GetAtt": ["DataKey", "Arn"]}, name)
            # Without a name, CloudFormation makes one that begins with the stack's.
            prefix = group["LogGroupName"]["Fn::Sub"][0].split("${AWS::StackName}")[0] if name == "ApiLogs" else ""
            self.assertEqual("LogGroupName" in group, name == "ApiLogs")
            self.assertIn(f"log-group:{prefix}${{AWS::StackName}}-*", key, name)

    def test_events_are_encrypted_and_the_bus_loses_none(self):
        bus = self.resources["EventBus"]["Properties"]
        self.assertEqual(bus["KmsKeyIdentifier"], {"Fn::GetAtt": ["DataKey", "Arn"]})
        self.assertEqual(bus["DeadLetterConfig"]["Arn"], {"Fn::GetAtt": ["EventDeadLetterQueue", "Arn"]})
        statements = {one["Sid"]: one for one in self.resources["DataKey"]["Properties"]["KeyPolicy"]["Statement"]}
        context = statements["OurBus"]["Condition"]["StringEquals"]
        # The key policy cannot refer to the bus, which needs the key.
        name = context["kms:EncryptionContext:aws:events:event-bus:arn"]["Fn::Sub"].rsplit("/", 1)[-1]
        self.assertEqual((bus["Name"], name), ({"Ref": "AWS::StackName"}, "${AWS::StackName}"))
        sends = self.resources["EventDeadLetterQueuePolicy"]["Properties"]["PolicyDocument"]["Statement"][1]
        self.assertEqual(sends["Principal"], {"Service": "events.amazonaws.com"})
        self.assertIn("aws:SourceArn", sends["Condition"]["ArnLike"])

    def test_scanners_see_the_resources_of_all_conditions(self):
        scanned = deploy.unconditional(self.expanded)["Resources"]
        self.assertEqual(set(scanned), set(self.resources))
        self.assertFalse([name for name, resource in scanned.items() if "Condition" in resource])
        self.assertIn("Condition", self.resources["IncidentQueue"], "the expansion itself stays as it is")

    def test_each_skipped_check_says_why(self):
        skipped = [
            (name, skip)
            for name, resource in self.resources.items()
            for skip in resource.get("Metadata", {}).get("checkov", {}).get("skip", [])
        ]
        self.assertGreater(len(skipped), 10)
        for name, skip in skipped:
            self.assertRegex(skip["id"], "^CKV_AWS_[0-9]+$", name)
            self.assertGreaterEqual(len(skip["comment"].split()), 5, name)

    def test_athena_reads_the_folders_of_deliveries(self):
        parts = ("IncidentDatabase", "IncidentTable", "LatestQuery", "OpenQuery", "TimeToCloseQuery")
        self.assertEqual({self.resources[name]["Condition"] for name in parts}, {"HasAthenaTable"})
        table = self.resources["IncidentTable"]["Properties"]["TableInput"]
        keys = [one["Name"] for one in table["PartitionKeys"]]
        columns = [one["Name"] for one in table["StorageDescriptor"]["Columns"]]
        # The members of a delivered line (functions/interface.md), whose tenant is a partition.
        line = ["schema", "key", "incident_id", "change", "api", "last_updated", "fetched_at", "incident"]
        self.assertEqual((keys, columns), (["tenant_id", "date"], line))
        template = table["Parameters"]["storage.location.template"]["Fn::Sub"]
        self.assertTrue(template.endswith("/incidents/tenant_id=${!tenant_id}/date=${!date}/"), template)
        for name in parts[2:]:
            query = self.resources[name]["Properties"]["QueryString"]
            # A projected partition that is injected must be named by each query.
            self.assertRegex(query, "tenant_id (=|IN)", name)
            self.assertIn('"date" >=', query, name)

    def test_visibility_timeout_covers_the_slowest_fetch(self):
        timeout = self.resources["IncidentFetch"]["Properties"]["Timeout"]
        # A hunting query may take three minutes.
        self.assertGreater(timeout, 180 + 15)
        # The function ends a sync after a minute.
        self.assertGreaterEqual(self.resources["SyncQueue"]["Properties"]["VisibilityTimeout"], 6 * 60)
        for name in ("SyncQueue", "HuntQueue"):
            queue = self.resources[name]["Properties"]
            self.assertGreater(queue["VisibilityTimeout"], timeout)
            self.assertNotIn("FifoQueue", queue)
            self.assertEqual(queue["RedrivePolicy"]["maxReceiveCount"], 5)
            dead_letters = queue["RedrivePolicy"]["deadLetterTargetArn"]
            self.assertEqual(dead_letters, {"Fn::GetAtt": ["SyncDeadLetterQueue", "Arn"]})
        for name in ("SyncDeadLetterQueue", "TickDeadLetterQueue"):
            self.assertEqual(self.resources[name]["Properties"]["MessageRetentionPeriod"], 14 * 86400)

    def test_batches_fail_by_message_and_are_not_filtered(self):
        mappings = self.properties_of("AWS::Lambda::EventSourceMapping")
        for name, mapping in mappings.items():
            self.assertEqual(mapping["FunctionResponseTypes"], ["ReportBatchItemFailures"], name)
            self.assertNotIn("FilterCriteria", mapping, name)
            self.assertEqual(mapping["ScalingConfig"]["MaximumConcurrency"], {"Ref": "FetchMaximumConcurrency"}, name)
        by_queue = {resource_name(mapping["EventSourceArn"]): mapping for mapping in mappings.values()}
        self.assertEqual(set(by_queue), {"SyncQueue", "HuntQueue"})
        self.assertEqual(by_queue["SyncQueue"]["BatchSize"], 50)
        # Lambda waits for a batch of more than ten messages only with a window.
        self.assertGreaterEqual(by_queue["SyncQueue"]["MaximumBatchingWindowInSeconds"], 1)
        self.assertLessEqual(by_queue["HuntQueue"]["BatchSize"], 10)
        self.assertNotIn("MaximumBatchingWindowInSeconds", by_queue["HuntQueue"])

    def test_schedules_invoke_the_dispatch(self):
        found = {}
        for name, schedule in self.properties_of("AWS::Scheduler::Schedule").items():
            target = schedule["Target"]
            self.assertEqual(sam_template.aliases_of(self.expanded)[target["Arn"]["Ref"]], "IncidentDispatch", name)
            self.assertEqual(target["DeadLetterConfig"]["Arn"], {"Fn::GetAtt": ["TickDeadLetterQueue", "Arn"]}, name)
            found[json.loads(target["Input"])["kind"]] = sam_template.seconds_of(schedule["ScheduleExpression"])
            self.assertLessEqual(set(json.loads(target["Input"])), {"kind", "spread_hours"})
        self.assertEqual(found, {"poll": 60, "sweep": None})

    def test_each_tenant_is_swept_once_a_day(self):
        (sweep,) = (
            schedule
            for schedule in self.properties_of("AWS::Scheduler::Schedule").values()
            if json.loads(schedule["Target"]["Input"])["kind"] == "sweep"
        )
        self.assertEqual(json.loads(sweep["Target"]["Input"])["spread_hours"], 24)
        minute, hours, *_ = sweep["ScheduleExpression"].removeprefix("cron(").split()
        self.assertEqual(hours, "*")
        # A later try must stay in its hour, because the hour chooses the tenants.
        latest = int(minute) * 60 + sweep["Target"]["RetryPolicy"]["MaximumEventAgeInSeconds"]
        self.assertLess(latest, 3600)


if __name__ == "__main__":
    unittest.main()
