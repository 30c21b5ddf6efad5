"""The template's alarms and dashboard, compared with the code and the runbook."""

import json
import os
import re
import unittest

import sam_template
from template_case import REPORTS_FAILURES_ITSELF, ROUTES, SAMPLES, TEMPLATE, TemplateCase

BACKOFF = os.path.join(os.path.dirname(TEMPLATE), "..", "functions", "incident-fetch", "src", "sync", "follow_up.rs")
RUNBOOK = os.path.join(os.path.dirname(TEMPLATE), "runbook.md")


def backoff_ticks(minutes):
    """Returns the minutes in which the only tenant is queued if each poll fails, as `backoff` of incident-fetch has it."""
    with open(BACKOFF, encoding="utf-8") as file:
        code = file.read()
    longest = int(re.search(r"const MAX_BACKOFF: SignedDuration = SignedDuration::from_mins\((\d+)\);", code)[1])
    assert "let factor = 1_i32 << failures.saturating_sub(1).min(10);" in code
    assert "self.context.settings.poll_interval.saturating_mul(factor).min(longest)" in code
    ticks, failures = [0], 0
    while ticks[-1] < minutes:
        # It is due some seconds after a tick, and the next tick takes it. The interval is a minute.
        ticks.append(ticks[-1] + min(2**failures, longest) + 1)
        failures += 1
    return ticks[:-1]


class Alarms(TemplateCase):
    def metrics_of(self, name):
        """Returns the metrics that an alarm reads: (namespace, metric, dimensions)."""
        alarm = self.resources[name]["Properties"]
        if "Metrics" not in alarm:
            parts = [alarm]
        else:
            parts = [one["MetricStat"]["Metric"] for one in alarm["Metrics"] if "MetricStat" in one]
        return [
            (one["Namespace"], one["MetricName"], {each["Name"]: each["Value"] for each in one["Dimensions"]})
            for one in parts
        ]

    def test_every_function_has_its_alarms(self):
        for function in ROUTES:
            of_function = {"FunctionName": {"Ref": function}}
            for suffix, metric in {"Errors": "Errors", "Throttles": "Throttles", "Duration": "Duration"}.items():
                self.assertIn(("AWS/Lambda", metric, of_function), self.metrics_of(function + suffix))
            duration = self.resources[function + "Duration"]["Properties"]
            timeout = self.resources[function]["Properties"]["Timeout"]
            self.assertEqual(duration["ExtendedStatistic"], "p99")
            self.assertLess(duration["Threshold"], timeout * 1000)
            if function in REPORTS_FAILURES_ITSELF:
                self.assertIn(("Mandate", "InternalFailure", of_function), self.metrics_of(function + "Failures"))
            else:
                self.assertNotIn(function + "Failures", self.resources)

    def test_every_metric_of_the_deployment_that_alarms_is_known(self):
        alarms = self.properties_of("AWS::CloudWatch::Alarm")
        found = {}
        for name in alarms:
            for namespace, metric, dimensions in self.metrics_of(name):
                if namespace == "Mandate" and metric != "InternalFailure":
                    # Without the dimension, two stacks of one account would share their alarms.
                    self.assertEqual(dimensions, {"TableName": {"Ref": "Table"}}, name)
                    found.setdefault(name, set()).add(metric)
        self.assertEqual(
            found,
            {
                "ConsentRejections": {"ConsentRejected"},
                "CredentialEndsInAMonth": {"CredentialDaysLeft"},
                "CredentialEndsInAWeek": {"CredentialDaysLeft"},
                "CredentialRejected": {"CredentialRejected"},
                "CredentialUnusable": {"CredentialUnusable"},
                "ForeignRecord": {"ForeignRecord"},
                "ForeignToken": {"ForeignToken"},
                "Lag": {"LagSeconds"},
                "LagOfOneTenant": {"LagSeconds"},
                "NothingDue": {"Queued"},
                "Quarantined": {"Quarantined"},
                "SweepAge": {"SweepAgeSeconds"},
                "SweepMissing": {"SweepMissing"},
                "SyncStopped": {"Queued", "Polled"},
                "TenantPaused": {"TenantPaused"},
                "Throttled": {"Throttled", "Queued"},
            },
        )

    def test_every_queue_has_an_alarm(self):
        found = set()
        for name in self.properties_of("AWS::CloudWatch::Alarm"):
            for namespace, metric, dimensions in self.metrics_of(name):
                if namespace == "AWS/SQS" and metric.startswith("Approximate"):
                    found.add((dimensions["QueueName"]["Fn::GetAtt"][0], metric))
        visible, age = "ApproximateNumberOfMessagesVisible", "ApproximateAgeOfOldestMessage"
        queues = set(self.properties_of("AWS::SQS::Queue"))
        worked_on = {"SyncQueue", "HuntQueue"}
        wanted = {(queue, visible) for queue in queues - worked_on - {"IncidentQueue"}} | {(queue, age) for queue in worked_on}
        self.assertEqual(found, wanted)

    def test_every_api_has_its_alarms(self):
        for api in self.properties_of("AWS::ApiGatewayV2::Api"):
            of_api = {"ApiId": {"Ref": api}}
            for alarm, metrics in {"ServerErrors": ("5xx", "Count"), "Refusals": ("4xx",)}.items():
                self.assertEqual(self.metrics_of(api + alarm), [("AWS/ApiGateway", one, of_api) for one in metrics])
                condition = self.resources[api].get("Condition")
                self.assertEqual(self.resources[api + alarm].get("Condition"), condition)

    def test_description_says_urgency_section_and_query(self):
        with open(RUNBOOK, encoding="utf-8") as file:
            headings = re.findall(r"^#+ (.+)$", file.read(), re.MULTILINE)
        anchors = {re.sub(r"[^a-z0-9_ -]", "", heading.lower()).replace(" ", "-") for heading in headings}
        topic = {"Fn::If": ["HasAlarmTopic", [{"Ref": "AlarmTopicArn"}], {"Ref": "AWS::NoValue"}]}
        paging = set()
        for name, alarm in self.properties_of("AWS::CloudWatch::Alarm").items():
            text = alarm["AlarmDescription"]["Fn::Sub"]
            form = r"\[(page|low|deploy)\] [^.]+[.] Runbook: \$\{RunbookUrl\}#([a-z0-9-]+)[.] Logs Insights: (filter .+)"
            match = re.fullmatch(form, text)
            self.assertTrue(match, f"{name}: {text}")
            urgency, anchor, query = match.groups()
            self.assertIn(anchor, anchors, name)
            self.assertLess(len(text), 1024 - 200, name)
            self.assertNotIn("$", query, name)
            self.assertEqual(urgency == "deploy", "Canary" in name, name)
            self.assertIn("TreatMissingData", alarm, name)
            for actions in ("AlarmActions", "OKActions"):
                self.assertEqual(alarm.get(actions), None if urgency == "deploy" else topic, name)
            if urgency == "page":
                paging.add(name)
        self.assertEqual(
            paging,
            {
                "CredentialEndsInAWeek",
                "CredentialRejected",
                "CredentialUnusable",
                "DispatchSilent",
                "ForeignRecord",
                "ForeignToken",
                "IncidentDispatchErrors",
                "Lag",
                "NothingDue",
                "SyncStopped",
            },
        )

    def test_single_failure_wakes_nobody(self):
        for function in ROUTES:
            for suffix in ("Errors", "Failures"):
                alarm = self.resources.get(function + suffix, {}).get("Properties")
                if alarm is None or function == "SecretRotation":
                    continue  # A rotation is one call in weeks.
                (rate,) = (one["Expression"] for one in alarm["Metrics"] if "Expression" in one)
                self.assertEqual(rate, "IF(FILL(failures, 0) > 0, 100 * FILL(failures, 0) / calls, 0)", function)
                self.assertGreaterEqual(alarm["DatapointsToAlarm"], 2, function)

    def test_outage_pages_within_minutes_until_it_ends(self):
        for ticks in (backoff_ticks(180), list(range(180)), list(range(0, 180, 15))):
            for start in range(3):
                queued = {minute: 4 for minute in range(-5, 0)} | {start + tick: 4 for tick in ticks}
                # An outage has polls that count 0, a function that does not run has no polls.
                for failed in ({minute: 0 for minute in queued}, {}):
                    polled = {**failed, **{minute: 4 for minute in range(-5, 0)}}
                    alarm = self.minutes_in_alarm(queued, polled, 180)
                    self.assertEqual(alarm, list(range(start + 6, 180)), (ticks, start))
                    # One answered poll ends it.
                    queued[180] = polled[180] = 4
                    self.assertNotIn(180, self.minutes_in_alarm(queued, polled, 185))
                    del queued[180]

    def test_answered_polls_raise_no_alarm(self):
        every = {minute: 1 for minute in range(90)}
        self.assertEqual(self.minutes_in_alarm(every, every, 90), [])
        self.assertEqual(self.minutes_in_alarm({minute: 0 for minute in range(90)}, {}, 90), [], "no tenant")
        for interval in (1, 2, 5, 15):
            queued = dict.fromkeys(range(0, 90, interval), 1)
            # Each poll is answered in the minute after its tick.
            polled = {minute + 1: 1 for minute in queued}
            self.assertEqual(self.minutes_in_alarm({**dict.fromkeys(range(90), 0), **queued}, polled, 90), [], interval)
        # One of many tenants fails for good.
        self.assertEqual(self.minutes_in_alarm(dict.fromkeys(range(90), 50), dict.fromkeys(range(90), 49), 90), [])
        # The only tenant fails twice, and its third poll is late by a minute.
        first, second, third, *_ = backoff_ticks(90)
        queued = {first: 1, second: 1, **dict.fromkeys(range(third, 90), 1)}
        polled = {first: 0, second: 0, **dict.fromkeys(range(third + 1, 90), 1)}
        self.assertEqual(self.minutes_in_alarm(queued, polled, 90), [])

    def minutes_in_alarm(self, queued, polled, minutes):
        """Returns the minutes after which `SyncStopped` is in alarm, with these sums by minute.

        CloudWatch evaluates at least `EvaluationPeriods` minutes; here it is no more.
        """
        alarm = self.resources["SyncStopped"]["Properties"]
        result, last, *metrics = alarm["Metrics"]
        self.assertEqual(last["Expression"], "IF(queued > 0 OR FILL(polled, 0) > 0, FILL(polled, 0) == 0)")
        self.assertEqual((result["Expression"], result["ReturnData"]), ("FILL(last, REPEAT)", True))
        self.assertEqual({(one["Id"], one["MetricStat"]["Stat"], one["MetricStat"]["Period"]) for one in metrics},
                         {("queued", "Sum", 60), ("polled", "Sum", 60)})  # fmt: skip
        self.assertEqual((alarm["TreatMissingData"], alarm["Threshold"]), ("ignore", 1))
        self.assertNotIn("DatapointsToAlarm", alarm)
        found, is_red = [], False
        for now in range(-5, minutes):
            values, repeated = [], None
            for minute in range(now - alarm["EvaluationPeriods"] + 1, now + 1):
                if queued.get(minute, 0) > 0 or polled.get(minute, 0) > 0:
                    repeated = int(polled.get(minute, 0) == 0)
                values.append(repeated)
            if 0 in values:
                is_red = False
            elif None not in values:
                is_red = True
            if is_red:
                found.append(now)
        return found

    def test_loss_of_all_due_tenants_pages(self):
        alarm = self.resources["NothingDue"]["Properties"]
        result, queued = alarm["Metrics"]
        # The hour of the loss is below the one before, the next one is 0, and without tenants all are 0.
        self.assertEqual(result["Expression"], "IF(DIFF(queued) < 0 AND queued == 0, 1, 0)")
        self.assertEqual((queued["MetricStat"]["Stat"], queued["MetricStat"]["Period"]), ("Sum", 3600))
        # One datapoint of the two has a predecessor within the window.
        self.assertEqual((alarm["EvaluationPeriods"], alarm["DatapointsToAlarm"]), (2, 1))

    def test_silent_dispatch_pages_within_five_minutes(self):
        silent = self.resources["DispatchSilent"]["Properties"]
        self.assertEqual((silent["TreatMissingData"], silent["Period"] * silent["EvaluationPeriods"]), ("breaching", 300))

    def test_alarm_windows_cover_the_interval_of_their_metrics(self):
        alarms = self.properties_of("AWS::CloudWatch::Alarm")

        def window(name):
            alarm = alarms[name]
            self.assertEqual(alarm["DatapointsToAlarm"], 1, name)
            self.assertEqual(alarm["TreatMissingData"], "notBreaching", name)
            periods = [one["MetricStat"]["Period"] for one in alarm.get("Metrics", []) if "MetricStat" in one]
            return alarm.get("Period", max(periods, default=0)) * alarm["EvaluationPeriods"]

        # The breaker probes once a minute, and one probe may not reach Entra.
        self.assertGreaterEqual(window("CredentialRejected"), 180)
        # The longest backoff, one tick, and one run that reports the lag.
        self.assertGreaterEqual(window("Lag"), 900 + 60 + 60)
        self.assertGreaterEqual(window("LagOfOneTenant"), 900 + 60 + 60)
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
            self.assertTrue(alarm["AlarmDescription"]["Fn::Sub"].startswith(urgency), name)
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
                            written |= set(re.findall(r'\b(?:count|seconds|gauge)\(\s*"(\w+)"', file.read()))
        watched = {
            metric
            for name in self.properties_of("AWS::CloudWatch::Alarm")
            for namespace, metric, _ in self.metrics_of(name)
            if namespace == "Mandate"
        }
        for widget in self.widgets():
            for namespace, metric, dimension, value, *_ in widget["properties"].get("metrics", []):
                if namespace == "Mandate":
                    watched.add(metric)
                    is_of_the_deployment = (dimension, value) == ("TableName", "${Table}")
                    self.assertEqual(is_of_the_deployment, metric not in ("InternalFailure", "ColdStarts"), metric)
        self.assertEqual(watched - written, set())

    def test_queries_read_fields_that_the_code_writes(self):
        root = os.path.join(os.path.dirname(TEMPLATE), "..")
        code = ""
        for folder in ("shared", "functions"):
            for place, _, files in os.walk(os.path.join(root, folder)):
                for name in files:
                    if name.endswith(".rs"):
                        with open(os.path.join(place, name), encoding="utf-8") as file:
                            code += file.read()
        queries = [query["QueryString"] for query in self.properties_of("AWS::Logs::QueryDefinition").values()]
        queries += [
            alarm["AlarmDescription"]["Fn::Sub"].split("Logs Insights: ")[1]
            for alarm in self.properties_of("AWS::CloudWatch::Alarm").values()
        ]
        (stage, *_) = self.properties_of("AWS::ApiGatewayV2::Stage").values()
        # The fields of Lambda's own lines, and of the access log.
        known = {"type", "record", "bin"} | set(json.loads(stage["AccessLogSettings"]["Format"]))
        named = 0
        for query in queries:
            messages = re.findall(r'message = "([^"]+)"', query)
            for message in messages + re.findall(r'"([a-z ]{8,})"', query):
                self.assertIn(message, code, query)
            for field in re.findall(r"(?:ispresent\(|by |display |, )([a-z_A-Z]+)\b(?! as|\()", query):
                named += 1
                self.assertTrue(field in known or re.search(rf"\b{field}\b", code), f"{field} in {query}")
        self.assertGreater(named, 20)

    def widgets(self):
        """Returns the widgets of the dashboard, with those of all conditions."""
        (dashboard,) = self.properties_of("AWS::CloudWatch::Dashboard").values()
        body, parts = dashboard["DashboardBody"]["Fn::Sub"]
        for name, part in parts.items():
            _, there, absent = part["Fn::If"]
            self.assertEqual(absent, "")
            body = body.replace("${" + name + "}", there["Fn::Sub"])
        return json.loads(body)["widgets"]

    def test_dashboard_is_json_with_any_conditions(self):
        (dashboard,) = self.properties_of("AWS::CloudWatch::Dashboard").values()
        for given, count in (({}, 3), ({"JwtIssuer": SAMPLES["JwtIssuer"], "JwtAudience": SAMPLES["JwtAudience"]}, 6)):
            expanded, values = self.expanded_with(**given)
            text = sam_template.evaluated(dashboard["DashboardBody"], expanded, values)
            widgets = {one["properties"]["title"]: one["properties"] for one in json.loads(text)["widgets"]}
            self.assertEqual(len(widgets["HTTP API"]["metrics"]), count)

    def test_dashboard_has_every_queue_and_api(self):
        shown = {(one[1], one[3]) for widget in self.widgets() for one in widget["properties"].get("metrics", [])}
        for queue in self.properties_of("AWS::SQS::Queue"):
            self.assertIn(("ApproximateNumberOfMessagesVisible", "${" + queue + ".QueueName}"), shown)
        for queue in ("SyncQueue", "HuntQueue"):
            self.assertIn(("ApproximateAgeOfOldestMessage", "${" + queue + ".QueueName}"), shown)
        for api in self.properties_of("AWS::ApiGatewayV2::Api"):
            self.assertLessEqual({(metric, "${" + api + "}") for metric in ("Count", "4xx", "5xx")}, shown)

    def test_dashboard_shows_lag_completeness_reasons_and_cost(self):
        widgets = self.widgets()
        titles = " ".join(widget["properties"]["title"] for widget in widgets)
        for word in ("Lag", "Completeness", "Failures by reason", "Cost", "Consent", "Tokens", "Polls"):
            self.assertIn(word, titles)
        lag = widgets[0]["properties"]["metrics"]
        self.assertEqual([one[4]["stat"] for one in lag], ["p50", "p90", "Maximum"])
        places = [(widget["x"], widget["y"]) for widget in widgets]
        self.assertEqual(len(set(places)), len(places))

    def test_saved_queries_read_all_logs(self):
        groups = {name for name in self.properties_of("AWS::Logs::LogGroup") if name != "ApiLogs"}
        queries = self.properties_of("AWS::Logs::QueryDefinition")
        self.assertGreater(len(queries), 5)
        for name, query in queries.items():
            self.assertEqual({group["Ref"] for group in query["LogGroupNames"]}, groups, name)


if __name__ == "__main__":
    unittest.main()
