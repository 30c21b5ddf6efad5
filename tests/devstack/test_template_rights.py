"""The template's rights: of the functions, of callers and readers, and over the credential.

    python -m unittest discover -s tests/devstack
"""

import fnmatch
import json
import os
import re
import unittest

import sam_template
from template_case import (
    CALLS_MICROSOFT,
    CREDENTIAL_POLICIES,
    ENVIRONMENT,
    PUBLIC,
    READS,
    RIGHTS,
    ROUTES,
    SAMPLES,
    TEMPLATE,
    WRITES,
    TemplateCase,
    as_list,
    resource_name,
)

SIGN_IN = SAMPLES["SignInCredentialSecretArn"]
ALL_ROUTES = {route for routes in ROUTES.values() for route in routes}


class Rights(TemplateCase):
    def test_functions_have_the_least_rights(self):
        for function in ROUTES:
            rights, read, written = set(), set(), set()
            role = self.resources[f"{function}Role"]["Properties"]
            for policy in role["Policies"]:
                for statement in policy["PolicyDocument"]["Statement"]:
                    self.assertEqual(statement["Effect"], "Allow")
                    for resource in as_list(statement["Resource"]):
                        rights |= {(action, resource_name(resource)) for action in as_list(statement["Action"])}
                        if resource_name(resource) == "Table":
                            keys = set(statement["Condition"]["ForAllValues:StringLike"]["dynamodb:LeadingKeys"])
                            # The condition above holds where a request names no key.
                            self.assertEqual(statement["Condition"]["Null"], {"dynamodb:LeadingKeys": "false"})
                            actions = {action.removeprefix("dynamodb:") for action in as_list(statement["Action"])}
                            read |= keys if actions & {"GetItem", "BatchGetItem", "Query"} else set()
                            written |= keys if actions & {"PutItem", "UpdateItem", "DeleteItem"} else set()
            logs = {(f"logs:{one}", f"{function}Logs") for one in ("CreateLogStream", "PutLogEvents")}
            self.assertEqual(rights, RIGHTS[function] | logs, function)
            self.assertEqual((read, written), (READS[function], WRITES[function]), function)
            self.assertEqual(role["ManagedPolicyArns"], [{"Ref": "FunctionPolicy"}], function)

    def test_only_callers_of_microsoft_read_the_credential(self):
        # The rotation's rights are in its own role.
        callers = [f"{name}Role" for name, names in ENVIRONMENT.items() if CALLS_MICROSOFT <= names]
        callers.remove("SecretRotationRole")
        policies = self.properties_of("AWS::IAM::ManagedPolicy")
        attached = {name for name, policy in policies.items() if policy.get("Roles")}
        self.assertEqual(attached, CREDENTIAL_POLICIES | {"SignInCredentialPolicy"})
        # A federated token is the role's own. It makes the role the app only where the registration names the role.
        own = [role for role in callers if role != "ConsentCallbackRole"]
        for name in CREDENTIAL_POLICIES:
            for sign_in, wanted in (("", callers), (SIGN_IN, callers if name == "AppFederationPolicy" else own)):
                values = {**self.values, "SignInCredentialSecretArn": sign_in}
                self.assertCountEqual(self.roles_of(policies[name], values), wanted, f"{name} {sign_in}")
        for mode, wanted in {
            "secret": set(),
            "certificate": set(),
            "kms": {"AppSigningPolicy"},
            "federated": {"AppFederationPolicy"},
        }.items():
            key = "arn:aws:kms:eu-central-1:123456789012:key/1"
            values = {**self.values, "CredentialMode": mode, "KmsSigningKeyArn": key}
            there = {
                name
                for name in CREDENTIAL_POLICIES
                if (needs := self.resources[name].get("Condition"))
                and sam_template.condition_holds(needs, self.expanded, values)
            }
            self.assertEqual(there, wanted, mode)

    def roles_of(self, policy, values):
        """Returns the logical ids of the roles that a policy is attached to."""
        roles = policy["Roles"]
        if "Fn::If" in roles:
            condition, yes, no = roles["Fn::If"]
            roles = yes if sam_template.condition_holds(condition, self.expanded, values) else no
        return [role["Ref"] for role in roles]

    def test_own_sign_in_has_a_right_to_its_credential_alone(self):
        policy = self.resources["SignInCredentialPolicy"]
        self.assertEqual(policy["Condition"], "HasOwnSignIn")
        self.assertEqual(policy["Properties"]["Roles"], [{"Ref": "ConsentCallbackRole"}])
        (statement,) = policy["Properties"]["PolicyDocument"]["Statement"]
        self.assertEqual(statement["Action"], "secretsmanager:GetSecretValue")
        self.assertEqual(statement["Resource"], {"Ref": "SignInCredentialSecretArn"})
        self.assertFalse(sam_template.condition_holds("HasOwnSignIn", self.expanded, self.values))
        (needs,) = self.source["Rules"]["SignInNeedsTheClientId"]["Assertions"]
        self.assertIn("AppClientId", json.dumps(needs["Assert"]))

    def test_secrets_manager_rotates_only_the_app_credential(self):
        secret = {"Fn::If": ["CreatesAppCredential", {"Ref": "AppCredential"}, {"Ref": "AppCredentialSecretArn"}]}
        permission = self.resources["SecretRotationPermission"]["Properties"]
        self.assertEqual(permission["Principal"], "secretsmanager.amazonaws.com")
        self.assertEqual((permission["SourceArn"], permission["SourceAccount"]), (secret, {"Ref": "AWS::AccountId"}))
        schedule = self.resources["SecretRotationSchedule"]["Properties"]
        self.assertEqual(schedule["SecretId"], secret)
        self.assertEqual(schedule["RotationLambdaARN"], {"Fn::GetAtt": ["SecretRotation", "Arn"]})
        self.assertIs(schedule["RotateImmediatelyOnUpdate"], False)
        function = self.source["Resources"]["SecretRotation"]["Properties"]
        policy = self.resources["SecretRotationRole"]["Properties"]["Policies"][0]
        (change, _, _) = policy["PolicyDocument"]["Statement"]
        (allowed,) = change["Condition"]["StringEquals"].values()
        self.assertTrue(allowed["Fn::Sub"].endswith(":function:" + function["FunctionName"]["Fn::Sub"]))

    def test_rotation_exists_only_with_its_own_credential(self):
        parts = {name for name in self.expanded["Resources"] if name.startswith("SecretRotation")}
        # The log group always exists, because it outlives the rotation; see the template.
        parts.remove("SecretRotationLogs")
        self.assertGreater(len(parts), 8)
        for name in parts:
            self.assertEqual(self.resources[name].get("Condition"), "RotatesSecret", name)
        self.assertFalse(sam_template.condition_holds("RotatesSecret", self.expanded, self.values))

    def test_federated_token_is_for_entra_only(self):
        policy = self.properties_of("AWS::IAM::ManagedPolicy")["AppFederationPolicy"]
        (statement,) = policy["PolicyDocument"]["Statement"]
        audience = {"Fn::FindInMap": ["FederationAudience", {"Ref": "MicrosoftCloud"}, "Value"]}
        self.assertEqual(
            statement["Condition"],
            {
                "ForAnyValue:StringEquals": {"sts:IdentityTokenAudience": audience},
                "ForAllValues:StringEquals": {"sts:IdentityTokenAudience": audience},
                "StringEquals": {"sts:SigningAlgorithm": "RS256"},
                "NumericLessThanEquals": {"sts:DurationSeconds": "300"},
            },
        )
        clouds = self.source["Parameters"]["MicrosoftCloud"]["AllowedValues"]
        self.assertCountEqual(self.source["Mappings"]["FederationAudience"], clouds)

    def test_no_statement_has_an_open_ended_right(self):
        without_resources = {"xray:PutTraceSegments", "xray:PutTelemetryRecords", "sts:GetWebIdentityToken"}
        for name, statement in self.statements():
            self.assertNotIn("NotAction", statement, name)
            self.assertNotIn("NotResource", statement, name)
            for action in as_list(statement["Action"]):
                self.assertNotIn("*", action, name)
                if "*" in as_list(statement["Resource"]):
                    self.assertIn(action, without_resources, name)
                if action.startswith("sts:"):
                    self.assertTrue(statement["Condition"], name)

    def test_no_role_has_a_managed_policy_of_amazon(self):
        for name, role in self.properties_of("AWS::IAM::Role").items():
            for policy in role.get("ManagedPolicyArns", []):
                ours = isinstance(policy, dict) and policy.get("Ref") in self.resources
                deploys = name == "DeploymentRole" and "/AWSCodeDeployRoleForLambdaLimited" in json.dumps(policy)
                self.assertTrue(ours or deploys, f"{name} {policy}")

    def test_every_role_has_the_permissions_boundary(self):
        roles = self.properties_of("AWS::IAM::Role")
        self.assertEqual(len(roles), 9)
        wanted = {"Fn::If": ["HasPermissionsBoundary", {"Ref": "PermissionsBoundaryArn"}, {"Ref": "AWS::NoValue"}]}
        for name, role in roles.items():
            self.assertEqual(role["PermissionsBoundary"], wanted, name)

    def test_only_our_roles_read_the_app_credential(self):
        policy = self.resources["AppCredentialReaders"]
        self.assertEqual(policy["Condition"], "CreatesAppCredential")
        self.assertIs(policy["Properties"]["BlockPublicPolicy"], True)
        (statement,) = policy["Properties"]["ResourcePolicy"]["Statement"]
        self.assertEqual((statement["Effect"], statement["Principal"]), ("Deny", "*"))
        self.assertEqual(statement["Action"], "secretsmanager:GetSecretValue")
        always = {f"{name}Role" for name in ("TokenIssuance", "IncidentFetch", "TenantAdmin")}
        rotates = {"RotationCredentialSecretArn": SAMPLES["RotationCredentialSecretArn"]}
        for given, wanted in (
            ({}, always | {"ConsentCallbackRole"}),
            ({"SignInCredentialSecretArn": SIGN_IN}, always),
            (rotates, always | {"ConsentCallbackRole", "SecretRotationRole"}),
        ):
            condition = sam_template.evaluated(statement["Condition"], self.expanded, {**self.values, **given})
            found = {arn.split(":")[6].split(".")[0] for arn in condition["ArnNotEquals"]["aws:PrincipalArn"]}
            self.assertEqual(found, wanted, given)

    def test_scheduler_acts_for_this_account_only(self):
        trust = self.resources["SchedulerRole"]["Properties"]["AssumeRolePolicyDocument"]["Statement"][0]
        self.assertEqual(trust["Condition"], {"StringEquals": {"aws:SourceAccount": {"Ref": "AWS::AccountId"}}})
        for name, schedule in self.properties_of("AWS::Scheduler::Schedule").items():
            self.assertEqual(schedule["Target"]["RoleArn"], {"Fn::GetAtt": ["SchedulerRole", "Arn"]}, name)

    def test_policies_for_callers_reach_the_routes_they_name(self):
        policies = ("ReaderPolicy", "OperatorPolicy", "TokenCallerPolicy")
        found = {name: {route for route in ALL_ROUTES if self.allows(name, route)} for name in policies}
        token = {("POST", "/tenants/{tenant_id}/token")}
        signed = ALL_ROUTES - PUBLIC
        self.assertEqual(found["ReaderPolicy"], {(method, path) for method, path in signed if method == "GET"})
        self.assertEqual(found["OperatorPolicy"], signed - token)
        self.assertEqual(found["TokenCallerPolicy"], token)

    def allows(self, policy, route):
        """Returns true if a managed policy allows the call of a route."""
        method, path = route
        path = re.sub(r"\{\w+\}", "11111111-2222-4333-8444-555555555555", path)
        for statement in self.resources[policy]["Properties"]["PolicyDocument"]["Statement"]:
            if statement["Action"] == "execute-api:Invoke":
                for resource in as_list(statement["Resource"]):
                    pattern = resource["Fn::Sub"].split("${Api}/*/", 1)[1]
                    if fnmatch.fnmatchcase(method + path, pattern):
                        return True
        return False

    def test_one_tenant_sample_reaches_that_tenant_only(self):
        with open(os.path.join(os.path.dirname(TEMPLATE), "README.md"), encoding="utf-8") as file:
            (sample,) = re.findall(r'"(arn:aws:execute-api:[^"]*/POST/tenants/[^"*]*/token)"', file.read())
        # No wildcard but that of the stage.
        self.assertEqual(sample.count("*"), 1)
        self.assertEqual(sample.split("/")[1], "*")

    def test_readers_of_other_accounts_name_an_external_id(self):
        role = self.resources["ReaderRole"]
        self.assertEqual(role["Condition"], "HasReaderAccounts")
        (trust,) = role["Properties"]["AssumeRolePolicyDocument"]["Statement"]
        self.assertEqual(trust["Condition"], {"StringEquals": {"sts:ExternalId": {"Ref": "ReaderExternalId"}}})
        _, values = self.expanded_with(ReaderAccountIds=SAMPLES["ReaderAccountIds"], ReaderExternalId="northwind-siem")
        accounts = sam_template.evaluated(trust["Principal"], self.expanded, values)
        self.assertEqual(accounts, {"AWS": ["111111111111", "222222222222"]})
        actions = {
            action
            for policy in role["Properties"]["Policies"]
            for statement in policy["PolicyDocument"]["Statement"]
            for action in as_list(statement["Action"])
        }
        self.assertEqual(actions, {"s3:GetObject", "s3:ListBucket", "kms:Decrypt"})
        self.assertIn("ReadersNeedTheExternalId", self.source["Rules"])


if __name__ == "__main__":
    unittest.main()
