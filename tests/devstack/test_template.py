"""The template's HTTP API, functions and rights.

    python -m unittest discover -s tests/devstack
"""

import json
import os
import re
import unittest

import sam_template
from template_case import (
    REPORTS_FAILURES_ITSELF,
    CALLS_MICROSOFT,
    CREDENTIAL_POLICIES,
    ENVIRONMENT,
    PUBLIC,
    READS,
    RIGHTS,
    ROUTES,
    TEMPLATE,
    WITHOUT_ALIAS,
    WRITES,
    TemplateCase,
    as_list,
    resource_name,
)


SIGN_IN = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:sign-in-AbCdEf"


class Template(TemplateCase):
    # ---- HTTP API ----

    def test_routes_are_those_of_the_interface(self):
        found = {name: set() for name in ROUTES}
        for route in sam_template.routes_of(self.expanded, sam_template.aliases_of(self.expanded)):
            found[route.function].add((route.method, route.path))
        self.assertEqual(found, ROUTES)

    def test_only_the_consent_routes_are_public(self):
        routes = sam_template.routes_of(self.expanded, sam_template.aliases_of(self.expanded))
        self.assertEqual({(route.method, route.path) for route in routes if route.auth != "AWS_IAM"}, PUBLIC)
        self.assertEqual(self.source["Resources"]["Api"]["Properties"]["Auth"]["DefaultAuthorizer"], "AWS_IAM")
        (api,) = self.properties_of("AWS::ApiGatewayV2::Api").values()
        schemes = api["Body"]["components"]["securitySchemes"]
        self.assertEqual(schemes["AWS_IAM"]["x-amazon-apigateway-authtype"], "awsSigv4")
        for path, methods in api["Body"]["paths"].items():
            for method, route in methods.items():
                self.assertEqual(route["x-amazon-apigateway-integration"]["payloadFormatVersion"], "2.0", path + method)

    def test_public_routes_have_lower_throttling_limits(self):
        (stage,) = self.properties_of("AWS::ApiGatewayV2::Stage").values()
        self.assertEqual(stage["StageName"], "$default")
        known = {f"{method} {path}" for routes in ROUTES.values() for method, path in routes}
        self.assertLessEqual(set(stage["RouteSettings"]), known)
        usual = stage["DefaultRouteSettings"]
        self.assertGreater(usual["ThrottlingRateLimit"], 0)
        for method, path in PUBLIC:
            setting = stage["RouteSettings"][f"{method} {path}"]
            self.assertLess(setting["ThrottlingRateLimit"], usual["ThrottlingRateLimit"])
            self.assertLess(setting["ThrottlingBurstLimit"], usual["ThrottlingBurstLimit"])

    def test_access_log_contains_neither_path_nor_query(self):
        (stage,) = self.properties_of("AWS::ApiGatewayV2::Stage").values()
        line = stage["AccessLogSettings"]["Format"]
        self.assertNotIn("\n", line)
        fields = json.loads(line)
        # `messageString` has quotes of its own, which would break the JSON.
        self.assertNotIn("messageString", line)
        for value in fields.values():
            self.assertNotRegex(value, r"\$context\.(path|customDomain|http)|querystring|\$request")

    def test_each_invoke_permission_is_for_one_route(self):
        scopes, aliases = [], sam_template.aliases_of(self.expanded)
        permissions = self.properties_of("AWS::Lambda::Permission")
        del permissions["SecretRotationPermission"]
        for name, permission in permissions.items():
            self.assertEqual(permission["Principal"], "apigateway.amazonaws.com", name)
            self.assertEqual(permission["Action"], "lambda:InvokeFunction", name)
            text, given = permission["SourceArn"]["Fn::Sub"]
            self.assertEqual(given, {"__ApiId__": {"Ref": "Api"}, "__Stage__": "*"}, name)
            method, path = text.split("${__Stage__}/")[1].split("/", 1)
            self.assertRegex(method, "^[A-Z]+$", name)
            scopes.append((aliases[permission["FunctionName"]["Ref"]], method, "/" + path))
        wanted = [
            (function, method, re.sub(r"\{\w+\}", "*", path))
            for function, routes in ROUTES.items()
            for method, path in routes
        ]
        self.assertEqual(sorted(scopes), sorted(wanted))

    # ---- Functions ----

    def test_environment_is_that_of_the_interface(self):
        functions = self.properties_of("AWS::Lambda::Function")
        found = {name: set(one["Environment"]["Variables"]) for name, one in functions.items()}
        self.assertEqual(found, ENVIRONMENT)

    def test_variables_have_the_right_values(self):
        secret = {"Fn::If": ["CreatesAppCredential", {"Ref": "AppCredential"}, {"Ref": "AppCredentialSecretArn"}]}
        intervals = [{"Ref": "PollIntervalSeconds"}, {"Ref": "PollMaxIntervalSeconds"}]
        longest_interval = {"Fn::If": ["HasOnePollInterval", *intervals]}
        wanted = {
            "APP_CLIENT_ID": {"Ref": "AppClientId"},
            "APP_CREDENTIAL_SECRET_ID": secret,
            "SIGN_IN_CREDENTIAL_SECRET_ID": {"Ref": "SignInCredentialSecretArn"},
            "TABLE_NAME": {"Ref": "Table"},
            "SYNC_QUEUE_URL": {"Ref": "SyncQueue"},
            "INCIDENT_BUCKET": {"Ref": "IncidentBucket"},
            "EVENT_BUS_NAME": {"Ref": "EventBus"},
            "PUBLIC_BASE_URL": {"Ref": "PublicBaseUrl"},
            "PARTNER_NAME": {"Ref": "PartnerName"},
            "MICROSOFT_CLOUD": {"Ref": "MicrosoftCloud"},
            "INCIDENT_API": {"Ref": "IncidentApi"},
            "POLL_INTERVAL_SECONDS": {"Ref": "PollIntervalSeconds"},
            "POLL_MAX_INTERVAL_SECONDS": longest_interval,
            "POLL_OVERLAP_SECONDS": {"Ref": "PollOverlapSeconds"},
            "FIRST_LOOKBACK_HOURS": {"Ref": "FirstLookbackHours"},
            "SWEEP_DAYS": {"Ref": "SweepDays"},
            "CONSENT_CHECK_SECONDS": {"Ref": "ConsentCheckSeconds"},
            "DELIVERY_FORMAT": {"Ref": "DeliveryFormat"},
            "INCIDENT_EVENTS": {"Ref": "IncidentEvents"},
            "LOG_LEVEL": {"Ref": "LogLevel"},
            "HOME_TENANT_ID": {"Ref": "HomeTenantId"},
            "ROTATION_CREDENTIAL_SECRET_ID": {"Ref": "RotationCredentialSecretArn"},
        }
        for name, function in self.properties_of("AWS::Lambda::Function").items():
            for variable, value in function["Environment"]["Variables"].items():
                if (name, variable) == ("ConsentCallback", "APP_CREDENTIAL_SECRET_ID"):
                    value = value["Fn::If"][2]
                self.assertEqual(value, wanted[variable], f"{name} {variable}")
        consent = self.resources["ConsentCallback"]["Properties"]["Environment"]["Variables"]
        self.assertEqual(consent["APP_CREDENTIAL_SECRET_ID"]["Fn::If"][:2], ["HasOwnSignIn", ""])

    def test_defaults_are_those_of_the_interface(self):
        defaults = {
            "MicrosoftCloud": "commercial",
            "IncidentApi": "auto",
            "PollIntervalSeconds": "60",
            "PollOverlapSeconds": "900",
            "FirstLookbackHours": "24",
            "SweepDays": "3",
            "ConsentCheckSeconds": "600",
            "DeliveryFormat": "envelope",
            "IncidentEvents": "none",
            "IncidentQueueSeverity": "none",
            "LogLevel": "info",
            "PublicBaseUrl": "",
            # A new account has too little concurrency to reserve any. It must still be able to deploy.
            "ReserveConcurrency": "false",
        }
        self.assertEqual({name: self.values[name] for name in defaults}, defaults)
        self.assertTrue(sam_template.condition_holds("HasOnePollInterval", self.expanded, self.values))

    def test_no_variable_holds_a_secret(self):
        for name, function in self.properties_of("AWS::Lambda::Function").items():
            for variable in function["Environment"]["Variables"]:
                if re.search("SECRET|TOKEN|KEY|PASSWORD", variable):
                    self.assertTrue(variable.endswith("_SECRET_ID"), f"{name} {variable}")
        text = json.dumps(self.expanded)
        self.assertNotIn("resolve:secretsmanager", text)
        self.assertNotIn("SecretString", text)

    def test_runtime_settings_of_the_functions(self):
        functions = self.properties_of("AWS::Lambda::Function")
        self.assertEqual(set(functions), set(ROUTES))
        for name, function in functions.items():
            self.assertEqual(function["TracingConfig"], {"Mode": "Active"}, name)
            self.assertEqual((function["Runtime"], function["Architectures"]), ("provided.al2023", ["arm64"]), name)
            self.assertEqual(function["MemorySize"], 512 if name == "IncidentFetch" else 256, name)
            slow = {"IncidentFetch": 60, "IncidentDispatch": 60, "SecretRotation": 300}
            self.assertEqual(function["Timeout"], slow.get(name, 29), name)
            self.assertEqual(function["LoggingConfig"]["LogFormat"], "JSON", name)
            self.assertEqual(function["LoggingConfig"]["LogGroup"], {"Ref": f"{name}Logs"}, name)
            self.assertEqual(function["KmsKeyArn"], {"Fn::GetAtt": ["DataKey", "Arn"]}, name)

    def test_each_binary_is_a_package_of_the_workspace(self):
        folder = os.path.join(os.path.dirname(TEMPLATE), "..", "functions")
        for name in ROUTES:
            source = self.source["Resources"][name]
            binary = source["Metadata"]["BuildProperties"]["Binary"]
            self.assertEqual(source["Metadata"]["BuildMethod"], "rust-cargolambda")
            self.assertTrue(os.path.isfile(os.path.join(folder, binary, "Cargo.toml")), binary)
            self.assertEqual(source["Properties"]["FunctionName"].get("Fn::Sub"), "mandate-${Stage}-" + binary)

    def test_triggers_call_the_alias_and_not_the_latest_version(self):
        aliases = sam_template.aliases_of(self.expanded)
        self.assertEqual(set(aliases.values()), set(ROUTES))
        for name, mapping in self.properties_of("AWS::Lambda::EventSourceMapping").items():
            self.assertIn(mapping["FunctionName"]["Ref"], aliases, name)
        for name, schedule in self.properties_of("AWS::Scheduler::Schedule").items():
            self.assertIn(schedule["Target"]["Arn"]["Ref"], aliases, name)
        for name in ROUTES:
            # Otherwise a changed parameter would not reach the alias.
            self.assertIs(self.source["Resources"][name]["Properties"]["AutoPublishAliasAllProperties"], True, name)

    def test_only_production_deploys_by_canary(self):
        groups = self.properties_of("AWS::CodeDeploy::DeploymentGroup")
        self.assertEqual(len(groups), len(set(ROUTES) - WITHOUT_ALIAS))
        for name, group in groups.items():
            condition, canary, at_once = group["DeploymentConfigName"]["Fn::If"]
            self.assertEqual(condition, "IsProd", name)
            self.assertIn("Canary10Percent5Minutes", json.dumps(canary), name)
            self.assertIn("AllAtOnce", json.dumps(at_once), name)
            function = name.replace("DeploymentGroup", "")
            alarms = [f"{function}Errors"] + [f"{function}Failures"] * (function in REPORTS_FAILURES_ITSELF)
            found = group["AlarmConfiguration"]["Alarms"]
            self.assertEqual(found, [{"Name": {"Ref": alarm}} for alarm in alarms], name)

    # ---- Rights ----

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
                deploys = name == "CodeDeployServiceRole" and policy.endswith("/AWSCodeDeployRoleForLambda")
                self.assertTrue(ours or deploys, f"{name} {policy}")


if __name__ == "__main__":
    unittest.main()
