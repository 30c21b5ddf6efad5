"""Errors that are found in a template before anything is created."""

import unittest

import deploy
import sam_template
from template_case import TEMPLATE


class Checks(unittest.TestCase):
    def setUp(self):
        self.source = sam_template.load(TEMPLATE)

    def expanded(self):
        return sam_template.expand(self.source, sam_template.parameters_of(self.source, {}, fill_in=True))

    def test_unlisted_type_is_named(self):
        self.source["Resources"]["Waf"] = {"Type": "AWS::WAFv2::WebACL", "Properties": {}}
        with self.assertRaisesRegex(sam_template.ToolError, "AWS::WAFv2::WebACL"):
            deploy.check(self.expanded())

    def test_dangling_reference_is_named(self):
        self.source["Resources"]["ApiRefusals"]["Properties"]["Dimensions"][0]["Value"] = {"Ref": "Gone"}
        with self.assertRaisesRegex(sam_template.ToolError, "ApiRefusals refers to Gone"):
            deploy.check(self.expanded())

    def test_route_without_authorization_is_named(self):
        expanded = self.expanded()
        del expanded["Resources"]["Api"]["Properties"]["Body"]["paths"]["/hunting"]["post"]["security"]
        with self.assertRaisesRegex(sam_template.ToolError, "POST /hunting"):
            values = sam_template.parameters_of(self.source, {}, fill_in=True)
            list(sam_template.routes_of(expanded, sam_template.aliases_of(expanded), values))

    def test_resources_that_wait_for_each_other_are_named(self):
        self.source["Resources"]["Table"]["DependsOn"] = "IncidentFetch"
        with self.assertRaisesRegex(sam_template.ToolError, "wait for each other: .*Table"):
            deploy.check(self.expanded())

    def test_limits_of_cloudformation_are_checked(self):
        for part, limit in deploy.LIMITS.items():
            expanded = self.expanded()
            expanded[part] = {f"Name{number}": {"Type": "AWS::SQS::Queue"} for number in range(limit + 1)}
            with self.subTest(part), self.assertRaisesRegex(sam_template.ToolError, f"{limit + 1} {part}"):
                deploy.check(expanded)

    def test_expressions_are_evaluated_like_cloudformation(self):
        template = {"Conditions": {"Has": {"Fn::Not": [{"Fn::Equals": [{"Ref": "Name"}, ""]}]}}, "Mappings": {"M": {"a": {"Value": 1}}}}
        for node, wanted in (
            ({"Fn::If": ["Has", [{"Ref": "Name"}, {"Ref": "AWS::NoValue"}], "no"]}, ["a"]),
            ({"x": {"Ref": "AWS::NoValue"}, "y": {"Fn::Sub": "${Name}-${!Name}"}}, {"y": "a-${Name}"}),
            ({"Fn::Sub": ["${Part}", {"Part": {"Fn::Select": [1, {"Fn::Split": ["-", "b-c"]}]}}]}, "c"),
            ({"Fn::Join": ["_", {"Fn::Split": ["-", "b-c"]}]}, "b_c"),
            ({"Fn::FindInMap": ["M", {"Ref": "Name"}, "Value"]}, 1),
        ):
            self.assertEqual(sam_template.evaluated(node, template, {"Name": "a"}), wanted)

    def test_parameters_must_match_their_declaration(self):
        for given, message in {
            ("PartnerName", None): "PartnerName has no default",
            ("Nothing", "1"): "no parameter Nothing",
            ("Stage", "Prod"): "Stage does not match",
            ("IncidentApi", "rest"): "IncidentApi must be one of",
            ("PollIntervalSeconds", "0"): "PollIntervalSeconds must be",
            ("PublicBaseUrl", "http://a.example"): "PublicBaseUrl does not match",
            ("PublicBaseUrl", "https://a.example/"): "PublicBaseUrl does not match",
            ("PublicBaseUrl", "https://a.example/mandate"): "PublicBaseUrl does not match",
            ("PublicBaseUrl", "https://user@a.example"): "PublicBaseUrl does not match",
            ("AppCredentialSecretArn", "arn:aws:secretsmanager:a:1:secret:app"): "AppCredentialSecretArn does not match",
            ("ReaderAccountIds", "1,2"): "ReaderAccountIds does not match",
            ("PartnerName", ""): "PartnerName must have",
        }.items():
            name, value = given
            values = {"PartnerName": "Contoso", name: value}
            with self.subTest(given), self.assertRaisesRegex(sam_template.ToolError, message):
                sam_template.parameters_of(self.source, {key: one for key, one in values.items() if one is not None})

    def test_schedule_is_a_rate_or_a_cron_expression(self):
        self.assertEqual(sam_template.seconds_of("rate(2 hours)"), 7200)
        self.assertIsNone(sam_template.seconds_of("cron(0 3 * * ? *)"))
        for expression in ("rate(1 minutes ago)", "cron(0 3 * * ?)", "every minute"):
            with self.subTest(expression), self.assertRaises(sam_template.ToolError):
                sam_template.seconds_of(expression)

    def test_only_endpoints_on_this_machine_are_accepted(self):
        for endpoint in ("https://sqs.eu-central-1.amazonaws.com", "http://10.0.0.1:5000", "nonsense"):
            with self.subTest(endpoint), self.assertRaises(sam_template.ToolError):
                deploy.clients(endpoint)


if __name__ == "__main__":
    unittest.main()
