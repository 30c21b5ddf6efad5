"""The template's alarms and dashboard, compared with the code and the runbook."""

import json
import os
import re
import unittest

from template_case import REPORTS_FAILURES_ITSELF, ROUTES, TEMPLATE, TemplateCase


class Alarms(TemplateCase):
    def test_every_function_and_queue_has_its_alarms(self):
        alarms = self.properties_of("AWS::CloudWatch::Alarm")
        for name, alarm in alarms.items():
            for actions in ("AlarmActions", "OKActions"):
                wanted = {"Fn::If": ["HasAlarmTopic", [{"Ref": "AlarmTopicArn"}], {"Ref": "AWS::NoValue"}]}
                self.assertEqual(alarm[actions], wanted, name)
            self.assertIn("TreatMissingData", alarm, name)
        for function in ROUTES:
            dimensions = [{"Name": "FunctionName", "Value": {"Ref": function}}]
            for suffix, metric in {"Errors": "Errors", "Throttles": "Throttles", "Duration": "Duration"}.items():
                alarm = alarms[function + suffix]
                self.assertEqual((alarm["Namespace"], alarm["MetricName"]), ("AWS/Lambda", metric))
                self.assertEqual(alarm["Dimensions"], dimensions)
            timeout = self.resources[function]["Properties"]["Timeout"]
            self.assertEqual(alarms[function + "Duration"]["ExtendedStatistic"], "p99")
            self.assertLess(alarms[function + "Duration"]["Threshold"], timeout * 1000)
        ours = {name: alarm for name, alarm in alarms.items() if alarm["Namespace"] == "Mandate"}
        of_the_deployment = {
            "CredentialEndsInAMonth": "CredentialDaysLeft",
            "CredentialEndsInAWeek": "CredentialDaysLeft",
            "CredentialRejected": "CredentialRejected",
            "ForeignRecord": "ForeignRecord",
            "ForeignToken": "ForeignToken",
            "Lag": "LagSeconds",
            "Quarantined": "Quarantined",
            "SweepAge": "SweepAgeSeconds",
            "SweepMissing": "SweepMissing",
            "TenantPaused": "TenantPaused",
        }
        failures = {f"{function}Failures" for function in REPORTS_FAILURES_ITSELF}
        self.assertEqual(set(ours), set(of_the_deployment) | failures)
        for name, metric in of_the_deployment.items():
            # Without the dimension, two stages of one account would share their alarms.
            self.assertEqual(ours[name]["Dimensions"], [{"Name": "TableName", "Value": {"Ref": "Table"}}], name)
            self.assertEqual(ours[name]["MetricName"], metric)
        for function in REPORTS_FAILURES_ITSELF:
            alarm = ours[f"{function}Failures"]
            self.assertEqual(alarm["Dimensions"], [{"Name": "FunctionName", "Value": {"Ref": function}}], function)
            self.assertEqual((alarm["MetricName"], alarm["Threshold"]), ("InternalFailure", 1), function)
        queues = {
            (alarm["Dimensions"][0]["Value"]["Fn::GetAtt"][0], alarm["MetricName"])
            for alarm in alarms.values()
            if alarm["Namespace"] == "AWS/SQS"
        }
        visible, age = "ApproximateNumberOfMessagesVisible", "ApproximateAgeOfOldestMessage"
        wanted = {(f"{name}DeadLetterQueue", visible) for name in ("Incident", "Sync", "Tick")} | {("SyncQueue", age)}
        self.assertEqual(queues, wanted)

    def test_alarm_windows_cover_the_interval_of_their_metrics(self):
        alarms = self.properties_of("AWS::CloudWatch::Alarm")

        def window(name):
            alarm = alarms[name]
            self.assertEqual(alarm["DatapointsToAlarm"], 1, name)
            self.assertEqual(alarm["TreatMissingData"], "notBreaching", name)
            return alarm["Period"] * alarm["EvaluationPeriods"]

        # The breaker probes once a minute, and one probe may not reach Entra.
        self.assertGreaterEqual(window("CredentialRejected"), 180)
        # The longest backoff, one tick, and one run that reports the lag.
        self.assertGreaterEqual(window("Lag"), 900 + 60 + 60)
        # A worker stops a second and a half before its time-out.
        timeout = self.resources["IncidentFetch"]["Properties"]["Timeout"]
        self.assertGreater(alarms["IncidentFetchDuration"]["Threshold"], timeout * 1000 - 1500)
        # A rotation is one burst of calls, without a second period.
        self.assertEqual(alarms["SecretRotationDuration"]["EvaluationPeriods"], 1)

    def test_end_of_the_credential_is_announced_twice(self):
        alarms = self.properties_of("AWS::CloudWatch::Alarm")
        for name, days, urgency in (("CredentialEndsInAMonth", 30, "[low]"), ("CredentialEndsInAWeek", 7, "[page]")):
            alarm = alarms[name]
            self.assertEqual((alarm["Statistic"], alarm["Threshold"]), ("Minimum", days), name)
            self.assertEqual(alarm["ComparisonOperator"], "LessThanThreshold", name)
            # The functions that still cache a replaced credential report for five minutes more.
            self.assertGreater(alarm["Period"], 300, name)
            self.assertTrue(alarm["AlarmDescription"].startswith(urgency), name)
        # A rotation that works must not raise the alarm: a secret lives for 100 days.
        longest = int(self.source["Parameters"]["RotationDays"]["MaxValue"])
        self.assertGreater(100 - longest, alarms["CredentialEndsInAMonth"]["Threshold"])

    def test_code_writes_every_watched_metric(self):
        root = os.path.join(os.path.dirname(TEMPLATE), "..")
        written = set()
        for folder in ("shared", "functions"):
            for place, _, files in os.walk(os.path.join(root, folder)):
                for name in files:
                    if name.endswith(".rs"):
                        with open(os.path.join(place, name), encoding="utf-8") as file:
                            written |= set(re.findall(r'\("(\w+)", "(?:Count|Seconds)", ', file.read()))
        alarms = self.properties_of("AWS::CloudWatch::Alarm").values()
        watched = {alarm["MetricName"] for alarm in alarms if alarm["Namespace"] == "Mandate"}
        (dashboard,) = self.properties_of("AWS::CloudWatch::Dashboard").values()
        for widget in json.loads(dashboard["DashboardBody"]["Fn::Sub"])["widgets"]:
            for namespace, metric, dimension, value in widget["properties"]["metrics"]:
                if namespace == "Mandate":
                    watched.add(metric)
                    is_of_the_deployment = (dimension, value) == ("TableName", "${Table}")
                    self.assertEqual(is_of_the_deployment, metric != "InternalFailure", metric)
        self.assertLessEqual(watched, written)

    def test_runbook_describes_every_alarm(self):
        with open(os.path.join(os.path.dirname(TEMPLATE), "runbook.md"), encoding="utf-8") as file:
            runbook = file.read()
        for name in self.properties_of("AWS::CloudWatch::Alarm"):
            per_function = re.fullmatch(f"({'|'.join(ROUTES)})(Errors|Failures|Throttles|Duration)", name)
            self.assertIn(f"`…{per_function[2]}`" if per_function else f"`{name}`", runbook)

    def test_dashboard_body_is_json_with_widgets(self):
        (dashboard,) = self.properties_of("AWS::CloudWatch::Dashboard").values()
        widgets = json.loads(dashboard["DashboardBody"]["Fn::Sub"])["widgets"]
        self.assertGreater(len(widgets), 5)


if __name__ == "__main__":
    unittest.main()
