"""A changed parameter reaches the running code, and a failing version goes back.

    python -m unittest discover -s tests/devstack
"""

import json
import unittest

import sam_template
from template_case import REPORTS_FAILURES_ITSELF, ROUTES, SAMPLES, WITHOUT_ALIAS, TemplateCase, another_value

# The properties of a function that are not part of its versions.
NOT_IN_A_VERSION = {"FunctionName", "RecursiveLoop", "ReservedConcurrentExecutions", "Role", "Tags"}
MAX_DESCRIPTION = 256
# The number of parameters that reach each function's configuration.
REACHED_BY = {
    "ConsentCallback": 10,
    "TokenIssuance": 7,
    "IncidentFetch": 14,
    "IncidentDispatch": 3,
    "TenantAdmin": 8,
    "SecretRotation": 5,
}


class Versions(TemplateCase):
    def versions(self, expanded, values):
        """Returns each function's version and the configuration that it freezes, with these parameters."""
        found = {}
        for logical_id, version in sam_template.by_type(expanded, "AWS::Lambda::Version").items():
            function = version["Properties"]["FunctionName"]["Ref"]
            description = sam_template.evaluated(version["Properties"]["Description"], expanded, values)
            properties = expanded["Resources"][function]["Properties"]
            frozen = {key: one for key, one in properties.items() if key not in NOT_IN_A_VERSION}
            found[function] = (logical_id, description), sam_template.evaluated(frozen, expanded, values)
        self.assertEqual(set(found), set(ROUTES))
        return found

    def changes(self, before, after):
        """Returns the functions whose version changes, and those whose configuration does."""
        return tuple({name for name in ROUTES if before[name][part] != after[name][part]} for part in (0, 1))

    def test_parameter_publishes_versions_where_it_is_used(self):
        # Parameters decide whether others are used: the defaults, and all of those.
        deciding = ("RotationCredentialSecretArn", "SignInCredentialSecretArn", "DomainName", "PublicBaseUrl")
        bases = [self.values, {**self.values, **{name: SAMPLES[name] for name in deciding}, "PollMaxIntervalSeconds": "300"}]
        reached = {name: set() for name in ROUTES}
        for name, declaration in self.source["Parameters"].items():
            for base in bases:
                other = {**base, name: another_value(name, declaration, base[name])}
                versions, configurations = self.changes(
                    self.versions(self.expanded, base), self.versions(self.expanded, other)
                )
                self.assertEqual(versions, configurations, f"{name} {base[name]} -> {other[name]}")
                for function in configurations:
                    reached[function].add(name)
        self.assertEqual({name: len(parameters) for name, parameters in reached.items()}, REACHED_BY)

    def test_expansion_is_the_same_for_all_values(self):
        # The test above evaluates one expansion. SAM hashes references and not what they refer to.
        parameters = self.source["Parameters"].items()
        other, _ = self.expanded_with(**{name: another_value(name, one, self.values[name]) for name, one in parameters})
        self.assertEqual(other["Resources"], self.resources)

    def test_value_that_changes_nothing_publishes_no_version(self):
        # Lambda refuses a version without a change, and the deployment would fail.
        same = {**self.values, "PollMaxIntervalSeconds": self.values["PollIntervalSeconds"]}
        before, after = self.versions(self.expanded, self.values), self.versions(self.expanded, same)
        self.assertEqual(self.changes(before, after), (set(), set()))

    def test_description_of_a_version_fits(self):
        longest = {}
        for name, declaration in self.source["Parameters"].items():
            if "AllowedValues" in declaration:
                longest[name] = max(map(str, declaration["AllowedValues"]), key=len)
            elif "MaxValue" in declaration:
                longest[name] = str(declaration["MaxValue"])
            elif "MaxLength" in declaration:
                longest[name] = "x" * declaration["MaxLength"]
            elif name.endswith("SecretArn"):
                # The pattern bounds the name of the secret.
                self.assertIn("{1,64}-[A-Za-z0-9]{6}", declaration["AllowedPattern"], name)
                longest[name] = "arn:aws-us-gov:secretsmanager:us-gov-east-1:123456789012:secret:" + "x" * 71
            else:
                longest[name] = SAMPLES.get(name, self.values[name])
        for secrets in ({}, {"SignInCredentialSecretArn": ""}, {"PublicBaseUrl": ""}):
            values = {**longest, **secrets}
            for version in self.properties_of("AWS::Lambda::Version").values():
                text = sam_template.evaluated(version["Description"], self.expanded, values)
                self.assertLessEqual(len(text), MAX_DESCRIPTION, f"{version['FunctionName']}: {text}")

    def test_old_versions_remain(self):
        for name, version in sam_template.by_type(self.expanded, "AWS::Lambda::Version").items():
            self.assertEqual((version["DeletionPolicy"], version["UpdateReplacePolicy"]), ("Retain", "Retain"), name)


class Canary(TemplateCase):
    def test_only_production_deploys_by_canary(self):
        groups = self.properties_of("AWS::CodeDeploy::DeploymentGroup")
        self.assertEqual(len(groups), len(set(ROUTES) - WITHOUT_ALIAS))
        for name, group in groups.items():
            condition, canary, at_once = group["DeploymentConfigName"]["Fn::If"]
            self.assertEqual(condition, "IsProd", name)
            self.assertIn("Canary10Percent5Minutes", json.dumps(canary), name)
            self.assertIn("AllAtOnce", json.dumps(at_once), name)
            self.assertEqual(group["ServiceRoleArn"], {"Fn::GetAtt": ["DeploymentRole", "Arn"]}, name)

    def test_new_version_alone_decides_about_its_deployment(self):
        versions = {
            version["FunctionName"]["Ref"]: name for name, version in self.properties_of("AWS::Lambda::Version").items()
        }
        for name, group in self.properties_of("AWS::CodeDeploy::DeploymentGroup").items():
            function = name.replace("DeploymentGroup", "")
            alarms = [f"{function}CanaryErrors"]
            alarms += [f"{function}CanaryFailures"] * (function in REPORTS_FAILURES_ITSELF)
            condition, watched, unwatched = group["AlarmConfiguration"]["Fn::If"]
            self.assertEqual((condition, unwatched), ("RollsBackOnAlarms", {}), name)
            wanted = {"Enabled": True, "Alarms": [{"Name": {"Ref": alarm}} for alarm in alarms]}
            self.assertEqual(watched, wanted, name)
            new = {"Fn::GetAtt": [versions[function], "Version"]}
            for alarm in alarms:
                properties = self.resources[alarm]["Properties"]
                dimensions = {one["Name"]: one["Value"] for one in properties["Dimensions"]}
                self.assertEqual(dimensions["FunctionName"], {"Ref": function}, alarm)
                if properties["Namespace"] == "AWS/Lambda":
                    self.assertEqual(dimensions["ExecutedVersion"], new, alarm)
                    self.assertEqual(dimensions["Resource"], {"Fn::Sub": f"${{{function}}}:live"}, alarm)
                else:
                    self.assertEqual(dimensions["FunctionVersion"], new, alarm)
                # An alarm of the same name keeps the state that the version before left.
                self.assertIn(f"${{{versions[function]}.Version}}", properties["AlarmName"]["Fn::Sub"], alarm)
                self.assertNotIn("AlarmActions", properties, alarm)

    def test_operators_alarms_keep_no_deployment_out(self):
        groups = self.properties_of("AWS::CodeDeploy::DeploymentGroup").values()
        named = set(json.dumps([group["AlarmConfiguration"] for group in groups]).split('"'))
        watching = {name for name in self.properties_of("AWS::CloudWatch::Alarm") if name in named}
        self.assertEqual({name for name in watching if "Canary" not in name}, set())
        self.assertEqual(self.values["RollBackOnAlarms"], "true")


if __name__ == "__main__":
    unittest.main()
