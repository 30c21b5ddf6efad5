"""The template as data: who may do what, and what must not get lost.

    python -m unittest discover -s tests/devstack
"""

import json
import os
import re
import unittest

import deploy

TEMPLATE = os.path.join(os.path.dirname(__file__), "..", "..", "infra", "template.yaml")

# The HTTP API: function → routes.
PUBLIC = {
    ("GET", "/consent/{invitation}"),
    ("POST", "/consent/{invitation}"),
    ("GET", "/consent/callback"),
    ("GET", "/consent/result"),
}
ROUTES = {
    "ConsentCallback": PUBLIC,
    "TokenIssuance": {("POST", "/tenants/{tenant_id}/token")},
    "IncidentFetch": {
        ("GET", "/tenants/{tenant_id}/incidents"),
        ("GET", "/tenants/{tenant_id}/incidents/{incident_id}"),
        ("PATCH", "/tenants/{tenant_id}/incidents/{incident_id}"),
        ("GET", "/incidents"),
        ("POST", "/hunting"),
    },
    "IncidentDispatch": set(),
    "TenantAdmin": {
        ("POST", "/invitations"),
        ("GET", "/invitations"),
        ("DELETE", "/invitations/{invitation_id}"),
        ("GET", "/tenants"),
        ("GET", "/tenants/{tenant_id}"),
        ("PATCH", "/tenants/{tenant_id}"),
        ("DELETE", "/tenants/{tenant_id}"),
        ("POST", "/tenants/{tenant_id}/sync"),
        ("GET", "/tenants/{tenant_id}/sync/{job_id}"),
        ("DELETE", "/tenants/{tenant_id}/sync/{job_id}"),
        ("POST", "/tenants/{tenant_id}/pause"),
        ("POST", "/tenants/{tenant_id}/resume"),
    },
    "SecretRotation": set(),
}
# Called by name and not by alias.
WITHOUT_ALIAS = {"SecretRotation"}

# The configuration that each function reads, and no more.
CALLS_MICROSOFT = {"APP_CREDENTIAL_SECRET_ID", "MICROSOFT_CLOUD"}
EVERYWHERE = {"TABLE_NAME", "LOG_LEVEL"}
ENVIRONMENT = {
    "ConsentCallback": EVERYWHERE
    | CALLS_MICROSOFT
    | {"EVENT_BUS_NAME", "INCIDENT_API", "PARTNER_NAME", "PUBLIC_BASE_URL"},
    "TokenIssuance": EVERYWHERE | CALLS_MICROSOFT | {"INCIDENT_API"},
    "IncidentFetch": EVERYWHERE
    | CALLS_MICROSOFT
    | {
        "DELIVERY_FORMAT",
        "EVENT_BUS_NAME",
        "FIRST_LOOKBACK_HOURS",
        "INCIDENT_API",
        "INCIDENT_BUCKET",
        "POLL_INTERVAL_SECONDS",
        "POLL_MAX_INTERVAL_SECONDS",
        "POLL_OVERLAP_SECONDS",
        "SWEEP_DAYS",
        "SYNC_QUEUE_URL",
    },
    "IncidentDispatch": EVERYWHERE | {"POLL_INTERVAL_SECONDS", "POLL_MAX_INTERVAL_SECONDS", "SYNC_QUEUE_URL"},
    "TenantAdmin": EVERYWHERE
    | CALLS_MICROSOFT
    | {"EVENT_BUS_NAME", "INCIDENT_BUCKET", "PUBLIC_BASE_URL", "SWEEP_DAYS", "SYNC_QUEUE_URL"},
    "SecretRotation": EVERYWHERE | CALLS_MICROSOFT | {"HOME_TENANT_ID", "ROTATION_CREDENTIAL_SECRET_ID"},
}

# What each function may do with our data: (action, where).
READ_WRITE = {"GetItem", "PutItem", "UpdateItem", "DeleteItem", "Query"}
RIGHTS = {
    "ConsentCallback": {("dynamodb:" + one, "Table") for one in ("GetItem", "PutItem", "UpdateItem")}
    | {("events:PutEvents", "EventBus")},
    "TokenIssuance": {("dynamodb:GetItem", "Table"), ("dynamodb:UpdateItem", "Table")},
    "IncidentFetch": {("dynamodb:" + one, "Table") for one in READ_WRITE}
    | {
        ("dynamodb:Query", "Table/index/listing"),
        ("s3:PutObject", "IncidentBucket/incidents/*"),
        ("s3:PutObject", "IncidentBucket/ocsf/*"),
        ("s3:PutObject", "IncidentBucket/quarantine/*"),
        ("events:PutEvents", "EventBus"),
    }
    | {
        ("sqs:" + one, "SyncQueue")
        for one in ("ReceiveMessage", "DeleteMessage", "GetQueueAttributes", "ChangeMessageVisibility", "SendMessage")
    },
    "IncidentDispatch": {
        ("dynamodb:Query", "Table/index/due"),
        ("dynamodb:UpdateItem", "Table"),
        ("sqs:SendMessage", "SyncQueue"),
        ("sqs:SendMessage", "TickDeadLetterQueue"),
    },
    "TenantAdmin": {("dynamodb:" + one, "Table") for one in READ_WRITE | {"BatchGetItem"}}
    | {
        ("dynamodb:Query", "Table/index/listing"),
        ("sqs:SendMessage", "SyncQueue"),
        ("events:PutEvents", "EventBus"),
        ("s3:PutObject", "IncidentBucket/receipts/*"),
    },
    "SecretRotation": {
        ("secretsmanager:" + one, "AppCredential")
        for one in ("DescribeSecret", "GetSecretValue", "PutSecretValue", "UpdateSecretVersionStage")
    }
    | {("secretsmanager:GetSecretValue", "RotationCredentialSecretArn")},
}
LEADING_KEYS = {
    "ConsentCallback": {"INVITATION#*", "ATTEMPT#*", "TENANT#*", "CREDENTIAL"},
    "TokenIssuance": {"TENANT#*", "CREDENTIAL"},
    "IncidentFetch": {"TENANT#*", "CREDENTIAL"},
    "IncidentDispatch": {"TENANT#*"},
    "TenantAdmin": {"TENANT#*", "INVITATION#*", "CREDENTIAL"},
    "SecretRotation": None,
}
# These answer requests or take messages, and so can fail without Lambda's knowing.
ANSWERING = {"ConsentCallback", "TokenIssuance", "IncidentFetch", "TenantAdmin"}
CREDENTIAL_POLICIES = {"AppCredentialPolicy", "AppSigningPolicy", "AppFederationPolicy"}
DATA = {"Table": "AWS::DynamoDB::Table", "IncidentBucket": "AWS::S3::Bucket", "DataKey": "AWS::KMS::Key"}


def many(value):
    return value if isinstance(value, list) else [value]


def where(resource):
    """`Table` for its ARN, `Table/index/due` for something below it."""
    if "Fn::If" in resource:
        resource = resource["Fn::If"][1]
    if "Ref" in resource:
        return resource["Ref"]
    if "Fn::Sub" in resource:
        return re.sub(r"\$\{(\w+)\.Arn\}", r"\1", resource["Fn::Sub"])
    return resource["Fn::GetAtt"][0]


class Template(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.source = deploy.load(TEMPLATE)
        cls.values = deploy.parameters_of(cls.source, {}, fill_in=True)
        cls.expanded = deploy.expand(cls.source, cls.values)
        cls.resources = cls.expanded["Resources"]

    def of(self, kind):
        return {name: one["Properties"] for name, one in deploy.by_type(self.expanded, kind).items()}

    def statements(self):
        """Every statement that gives a role a right, with the resource that holds it."""
        for name, role in self.of("AWS::IAM::Role").items():
            for policy in role.get("Policies", []):
                for statement in many(policy["PolicyDocument"]["Statement"]):
                    yield name, statement
        for kind in ("AWS::IAM::ManagedPolicy", "AWS::IAM::Policy"):
            for name, policy in self.of(kind).items():
                for statement in many(policy["PolicyDocument"]["Statement"]):
                    yield name, statement

    # ---- HTTP API ----

    def test_the_routes_are_those_of_the_interface(self):
        found = {name: set() for name in ROUTES}
        for method, path, function, _ in deploy.routes_of(self.expanded, deploy.aliases_of(self.expanded)):
            found[function].add((method, path))
        self.assertEqual(found, ROUTES)

    def test_exactly_the_consent_routes_are_public(self):
        routes = deploy.routes_of(self.expanded, deploy.aliases_of(self.expanded))
        self.assertEqual({(method, path) for method, path, _, auth in routes if auth != "AWS_IAM"}, PUBLIC)
        self.assertEqual(self.source["Resources"]["Api"]["Properties"]["Auth"]["DefaultAuthorizer"], "AWS_IAM")
        (api,) = self.of("AWS::ApiGatewayV2::Api").values()
        schemes = api["Body"]["components"]["securitySchemes"]
        self.assertEqual(schemes["AWS_IAM"]["x-amazon-apigateway-authtype"], "awsSigv4")
        for path, methods in api["Body"]["paths"].items():
            for method, route in methods.items():
                self.assertEqual(route["x-amazon-apigateway-integration"]["payloadFormatVersion"], "2.0", path + method)

    def test_public_routes_are_throttled_more_than_the_rest(self):
        (stage,) = self.of("AWS::ApiGatewayV2::Stage").values()
        self.assertEqual(stage["StageName"], "$default")
        known = {f"{method} {path}" for routes in ROUTES.values() for method, path in routes}
        self.assertLessEqual(set(stage["RouteSettings"]), known)
        usual = stage["DefaultRouteSettings"]
        self.assertGreater(usual["ThrottlingRateLimit"], 0)
        for method, path in PUBLIC:
            setting = stage["RouteSettings"][f"{method} {path}"]
            self.assertLess(setting["ThrottlingRateLimit"], usual["ThrottlingRateLimit"])
            self.assertLess(setting["ThrottlingBurstLimit"], usual["ThrottlingBurstLimit"])

    def test_the_access_log_holds_neither_path_nor_query(self):
        (stage,) = self.of("AWS::ApiGatewayV2::Stage").values()
        line = stage["AccessLogSettings"]["Format"]
        self.assertNotIn("\n", line)
        fields = json.loads(line)
        # The quoted kind would break the quotes around it.
        self.assertNotIn("messageString", line)
        for value in fields.values():
            self.assertNotRegex(value, r"\$context\.(path|customDomain|http)|querystring|\$request")

    def test_the_permission_to_invoke_is_for_one_route_each(self):
        scopes, aliases = [], deploy.aliases_of(self.expanded)
        permissions = self.of("AWS::Lambda::Permission")
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

    def test_the_environment_is_that_of_the_interface(self):
        found = {
            name: set(one["Environment"]["Variables"]) for name, one in self.of("AWS::Lambda::Function").items()
        }
        self.assertEqual(found, ENVIRONMENT)

    def test_variables_name_what_they_should(self):
        secret = {"Fn::If": ["CreatesAppCredential", {"Ref": "AppCredential"}, {"Ref": "AppCredentialSecretArn"}]}
        slowest = {"Fn::If": ["HasOnePollInterval", {"Ref": "PollIntervalSeconds"}, {"Ref": "PollMaxIntervalSeconds"}]}
        wanted = {
            "APP_CREDENTIAL_SECRET_ID": secret,
            "TABLE_NAME": {"Ref": "Table"},
            "SYNC_QUEUE_URL": {"Ref": "SyncQueue"},
            "INCIDENT_BUCKET": {"Ref": "IncidentBucket"},
            "EVENT_BUS_NAME": {"Ref": "EventBus"},
            "PUBLIC_BASE_URL": {"Ref": "PublicBaseUrl"},
            "PARTNER_NAME": {"Ref": "PartnerName"},
            "MICROSOFT_CLOUD": {"Ref": "MicrosoftCloud"},
            "INCIDENT_API": {"Ref": "IncidentApi"},
            "POLL_INTERVAL_SECONDS": {"Ref": "PollIntervalSeconds"},
            "POLL_MAX_INTERVAL_SECONDS": slowest,
            "POLL_OVERLAP_SECONDS": {"Ref": "PollOverlapSeconds"},
            "FIRST_LOOKBACK_HOURS": {"Ref": "FirstLookbackHours"},
            "SWEEP_DAYS": {"Ref": "SweepDays"},
            "DELIVERY_FORMAT": {"Ref": "DeliveryFormat"},
            "LOG_LEVEL": {"Ref": "LogLevel"},
            "HOME_TENANT_ID": {"Ref": "HomeTenantId"},
            "ROTATION_CREDENTIAL_SECRET_ID": {"Ref": "RotationCredentialSecretArn"},
        }
        for name, function in self.of("AWS::Lambda::Function").items():
            for variable, value in function["Environment"]["Variables"].items():
                self.assertEqual(value, wanted[variable], f"{name} {variable}")

    def test_defaults_are_those_of_the_interface(self):
        defaults = {
            "MicrosoftCloud": "commercial",
            "IncidentApi": "auto",
            "PollIntervalSeconds": "60",
            "PollOverlapSeconds": "900",
            "FirstLookbackHours": "24",
            "SweepDays": "3",
            "DeliveryFormat": "envelope",
            "LogLevel": "info",
            "PublicBaseUrl": "",
            # A new account has too little concurrency to reserve any, and must be able to deploy.
            "ReserveConcurrency": "false",
        }
        self.assertEqual({name: self.values[name] for name in defaults}, defaults)
        self.assertTrue(deploy.condition("HasOnePollInterval", self.expanded, self.values))

    def test_no_variable_holds_a_secret(self):
        for name, function in self.of("AWS::Lambda::Function").items():
            for variable in function["Environment"]["Variables"]:
                if re.search("SECRET|TOKEN|KEY|PASSWORD", variable):
                    self.assertTrue(variable.endswith("_SECRET_ID"), f"{name} {variable}")
        text = json.dumps(self.expanded)
        self.assertNotIn("resolve:secretsmanager", text)
        self.assertNotIn("SecretString", text)

    def test_functions_run_as_they_should(self):
        functions = self.of("AWS::Lambda::Function")
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

    def test_the_binary_is_a_package_of_the_workspace(self):
        folder = os.path.join(os.path.dirname(TEMPLATE), "..", "functions")
        for name in ROUTES:
            source = self.source["Resources"][name]
            binary = source["Metadata"]["BuildProperties"]["Binary"]
            self.assertEqual(source["Metadata"]["BuildMethod"], "rust-cargolambda")
            self.assertTrue(os.path.isfile(os.path.join(folder, binary, "Cargo.toml")), binary)
            self.assertEqual(source["Properties"]["FunctionName"].get("Fn::Sub"), "mandate-${Stage}-" + binary)

    def test_everything_calls_the_alias_and_never_the_newest_code(self):
        aliases = deploy.aliases_of(self.expanded)
        self.assertEqual(set(aliases.values()), set(ROUTES))
        for name, mapping in self.of("AWS::Lambda::EventSourceMapping").items():
            self.assertIn(mapping["FunctionName"]["Ref"], aliases, name)
        for name, schedule in self.of("AWS::Scheduler::Schedule").items():
            self.assertIn(schedule["Target"]["Arn"]["Ref"], aliases, name)
        for name in ROUTES:
            # Without it a new value of a parameter would not reach the alias.
            self.assertIs(self.source["Resources"][name]["Properties"]["AutoPublishAliasAllProperties"], True, name)

    def test_only_production_deploys_by_canary_and_rolls_back_on_errors(self):
        groups = self.of("AWS::CodeDeploy::DeploymentGroup")
        self.assertEqual(len(groups), len(set(ROUTES) - WITHOUT_ALIAS))
        for name, group in groups.items():
            condition, canary, at_once = group["DeploymentConfigName"]["Fn::If"]
            self.assertEqual(condition, "IsProd", name)
            self.assertIn("Canary10Percent5Minutes", json.dumps(canary), name)
            self.assertIn("AllAtOnce", json.dumps(at_once), name)
            function = name.replace("DeploymentGroup", "")
            alarms = [f"{function}Errors"] + [f"{function}Failures"] * (function in ANSWERING)
            found = group["AlarmConfiguration"]["Alarms"]
            self.assertEqual(found, [{"Name": {"Ref": alarm}} for alarm in alarms], name)

    # ---- Rights ----

    def test_rights_are_the_least(self):
        for function in ROUTES:
            rights, keys = set(), None
            role = self.resources[f"{function}Role"]["Properties"]
            for policy in role["Policies"]:
                for statement in policy["PolicyDocument"]["Statement"]:
                    self.assertEqual(statement["Effect"], "Allow")
                    for resource in many(statement["Resource"]):
                        rights |= {(action, where(resource)) for action in many(statement["Action"])}
                        if where(resource) == "Table":
                            keys = set(statement["Condition"]["ForAllValues:StringLike"]["dynamodb:LeadingKeys"])
            logs = {(f"logs:{one}", f"{function}Logs") for one in ("CreateLogStream", "PutLogEvents")}
            self.assertEqual(rights, RIGHTS[function] | logs, function)
            self.assertEqual(keys, LEADING_KEYS[function], function)
            self.assertEqual(role["ManagedPolicyArns"], [{"Ref": "FunctionPolicy"}], function)

    def test_the_credential_is_for_those_that_call_microsoft(self):
        # The rotation has rights of its own.
        callers = [f"{name}Role" for name, names in ENVIRONMENT.items() if CALLS_MICROSOFT <= names]
        callers.remove("SecretRotationRole")
        policies = self.of("AWS::IAM::ManagedPolicy")
        self.assertEqual({name for name, policy in policies.items() if policy.get("Roles")}, CREDENTIAL_POLICIES)
        for name in CREDENTIAL_POLICIES:
            self.assertCountEqual([role["Ref"] for role in policies[name]["Roles"]], callers, name)
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
                if (needs := self.resources[name].get("Condition")) and deploy.condition(needs, self.expanded, values)
            }
            self.assertEqual(there, wanted, mode)

    def test_only_secrets_manager_rotates_and_only_the_app_credential(self):
        secret = {"Fn::If": ["CreatesAppCredential", {"Ref": "AppCredential"}, {"Ref": "AppCredentialSecretArn"}]}
        permission = self.resources["SecretRotationPermission"]["Properties"]
        self.assertEqual(permission["Principal"], "secretsmanager.amazonaws.com")
        self.assertEqual((permission["SourceArn"], permission["SourceAccount"]), (secret, {"Ref": "AWS::AccountId"}))
        schedule = self.resources["SecretRotationSchedule"]["Properties"]
        self.assertEqual(schedule["SecretId"], secret)
        self.assertEqual(schedule["RotationLambdaARN"], {"Fn::GetAtt": ["SecretRotation", "Arn"]})
        self.assertIs(schedule["RotateImmediatelyOnUpdate"], False)
        function = self.source["Resources"]["SecretRotation"]["Properties"]
        self.assertEqual(function["ReservedConcurrentExecutions"]["Fn::If"][:2], ["ReservesConcurrency", 1])
        (change, _, _) = self.resources["SecretRotationRole"]["Properties"]["Policies"][0]["PolicyDocument"]["Statement"]
        (allowed,) = change["Condition"]["StringEquals"].values()
        self.assertTrue(allowed["Fn::Sub"].endswith(":function:" + function["FunctionName"]["Fn::Sub"]))

    def test_without_a_credential_of_its_own_there_is_no_rotation(self):
        parts = {name for name in self.expanded["Resources"] if name.startswith("SecretRotation")}
        # Always there, because it would be kept: see the template.
        parts.remove("SecretRotationLogs")
        self.assertGreater(len(parts), 8)
        for name in parts:
            self.assertEqual(self.resources[name].get("Condition"), "RotatesSecret", name)
        self.assertFalse(deploy.condition("RotatesSecret", self.expanded, self.values))

    def test_the_federated_token_is_for_entra_only(self):
        (statement,) = self.of("AWS::IAM::ManagedPolicy")["AppFederationPolicy"]["PolicyDocument"]["Statement"]
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

    def test_no_right_is_open_ended(self):
        may_be_everywhere = {"xray:PutTraceSegments", "xray:PutTelemetryRecords", "sts:GetWebIdentityToken"}
        for name, statement in self.statements():
            self.assertNotIn("NotAction", statement, name)
            self.assertNotIn("NotResource", statement, name)
            for action in many(statement["Action"]):
                self.assertNotIn("*", action, name)
                if "*" in many(statement["Resource"]):
                    self.assertIn(action, may_be_everywhere, name)
                if action.startswith("sts:"):
                    self.assertTrue(statement["Condition"], name)

    def test_no_managed_policy_of_amazon_widens_a_role(self):
        for name, role in self.of("AWS::IAM::Role").items():
            for policy in role.get("ManagedPolicyArns", []):
                ours = isinstance(policy, dict) and policy.get("Ref") in self.resources
                deploys = name == "CodeDeployServiceRole" and policy.endswith("/AWSCodeDeployRoleForLambda")
                self.assertTrue(ours or deploys, f"{name} {policy}")

    # ---- Data ----

    def test_data_outlives_the_stack(self):
        for name, kind in {**DATA, "AppCredential": "AWS::SecretsManager::Secret"}.items():
            resource = self.resources[name]
            self.assertEqual(resource["Type"], kind)
            self.assertEqual((resource["DeletionPolicy"], resource["UpdateReplacePolicy"]), ("Retain", "Retain"), name)

    def test_the_audit_outlives_the_stack(self):
        for name in self.of("AWS::Logs::LogGroup"):
            resource = self.resources[name]
            # Of a fixed name: what a first deployment that failed left behind would be in the way of the second.
            self.assertEqual(resource["DeletionPolicy"], "RetainExceptOnCreate", name)
            self.assertEqual(resource["UpdateReplacePolicy"], "Retain", name)
            self.assertNotIn("Condition", resource, name)

    def test_who_reads_and_repairs_finds_what_they_need_in_the_outputs(self):
        outputs = self.expanded["Outputs"]
        for name, value in {
            "DataKeyArn": {"Fn::GetAtt": ["DataKey", "Arn"]},
            "IncidentBucketName": {"Ref": "IncidentBucket"},
            "SyncDeadLetterQueueArn": {"Fn::GetAtt": ["SyncDeadLetterQueue", "Arn"]},
            "SyncDeadLetterQueueUrl": {"Ref": "SyncDeadLetterQueue"},
            "TableName": {"Ref": "Table"},
            "TickDeadLetterQueueUrl": {"Ref": "TickDeadLetterQueue"},
        }.items():
            self.assertEqual(outputs[name]["Value"], value, name)

    def test_the_table(self):
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

    def test_the_bucket(self):
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
        self.assertEqual(kept, {prefix: {"Ref": "RetentionDays"} for prefix in prefixes})

    def test_bucket_and_queues_refuse_plain_http(self):
        policies = {**self.of("AWS::S3::BucketPolicy"), **self.of("AWS::SQS::QueuePolicy")}
        covered = set()
        for policy in policies.values():
            (statement,) = policy["PolicyDocument"]["Statement"]
            self.assertEqual((statement["Effect"], statement["Principal"]), ("Deny", "*"))
            self.assertEqual(statement["Condition"], {"Bool": {"aws:SecureTransport": "false"}})
            covered |= {where(resource) for resource in statement["Resource"]}
        queues = set(self.of("AWS::SQS::Queue"))
        self.assertEqual(covered, {"IncidentBucket", "IncidentBucket/*"} | queues)

    def test_log_groups_end_and_are_encrypted(self):
        groups = self.of("AWS::Logs::LogGroup")
        self.assertEqual(set(groups), {f"{name}Logs" for name in ROUTES} | {"ApiLogs"})
        key = json.dumps(self.resources["DataKey"]["Properties"]["KeyPolicy"])
        for name, group in groups.items():
            self.assertEqual(group["RetentionInDays"], {"Ref": "LogRetentionDays"}, name)
            self.assertEqual(group["KmsKeyId"], {"Fn::GetAtt": ["DataKey", "Arn"]}, name)
            prefix = group["LogGroupName"]["Fn::Sub"].split("${Stage}")[0]
            self.assertIn(f"log-group:{prefix}${{Stage}}-*", key, name)

    # ---- Queue and schedules ----

    def test_the_queue_waits_for_the_slowest_fetch(self):
        queue = self.resources["SyncQueue"]["Properties"]
        timeout = self.resources["IncidentFetch"]["Properties"]["Timeout"]
        self.assertGreaterEqual(queue["VisibilityTimeout"], 6 * timeout)
        self.assertNotIn("FifoQueue", queue)
        self.assertEqual(queue["RedrivePolicy"]["maxReceiveCount"], 5)
        self.assertEqual(queue["RedrivePolicy"]["deadLetterTargetArn"], {"Fn::GetAtt": ["SyncDeadLetterQueue", "Arn"]})
        for name in ("SyncDeadLetterQueue", "TickDeadLetterQueue"):
            self.assertEqual(self.resources[name]["Properties"]["MessageRetentionPeriod"], 14 * 86400)

    def test_a_batch_fails_message_by_message_and_nothing_is_filtered(self):
        (mapping,) = self.of("AWS::Lambda::EventSourceMapping").values()
        self.assertEqual(mapping["FunctionResponseTypes"], ["ReportBatchItemFailures"])
        self.assertEqual(mapping["BatchSize"], 10)
        self.assertNotIn("FilterCriteria", mapping)
        self.assertEqual(mapping["ScalingConfig"]["MaximumConcurrency"], {"Ref": "FetchMaximumConcurrency"})

    def test_the_schedules(self):
        found = {}
        for name, schedule in self.of("AWS::Scheduler::Schedule").items():
            target = schedule["Target"]
            self.assertEqual(deploy.aliases_of(self.expanded)[target["Arn"]["Ref"]], "IncidentDispatch", name)
            self.assertEqual(target["DeadLetterConfig"]["Arn"], {"Fn::GetAtt": ["TickDeadLetterQueue", "Arn"]}, name)
            found[json.loads(target["Input"])["kind"]] = deploy.seconds_of(schedule["ScheduleExpression"])
            self.assertEqual(set(json.loads(target["Input"])), {"kind"})
        self.assertEqual(found, {"poll": 60, "sweep": None})

    # ---- Alarms ----

    def test_alarms(self):
        alarms = self.of("AWS::CloudWatch::Alarm")
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
            "CredentialRejected": "CredentialRejected",
            "ForeignRecord": "ForeignRecord",
            "ForeignToken": "ForeignToken",
            "Lag": "LagSeconds",
            "Quarantined": "Quarantined",
            "SweepMissing": "SweepMissing",
            "TenantPaused": "TenantPaused",
        }
        self.assertEqual(set(ours), set(of_the_deployment) | {f"{function}Failures" for function in ANSWERING})
        for name, metric in of_the_deployment.items():
            # Otherwise two stages of one account would share their alarms.
            self.assertEqual(ours[name]["Dimensions"], [{"Name": "TableName", "Value": {"Ref": "Table"}}], name)
            self.assertEqual(ours[name]["MetricName"], metric)
        for function in ANSWERING:
            alarm = ours[f"{function}Failures"]
            self.assertEqual(alarm["Dimensions"], [{"Name": "FunctionName", "Value": {"Ref": function}}], function)
            self.assertEqual((alarm["MetricName"], alarm["Threshold"]), ("InternalFailure", 1), function)
        queues = {
            (alarm["Dimensions"][0]["Value"]["Fn::GetAtt"][0], alarm["MetricName"])
            for alarm in alarms.values()
            if alarm["Namespace"] == "AWS/SQS"
        }
        visible, age = "ApproximateNumberOfMessagesVisible", "ApproximateAgeOfOldestMessage"
        wanted = {("SyncDeadLetterQueue", visible), ("TickDeadLetterQueue", visible), ("SyncQueue", age)}
        self.assertEqual(queues, wanted)

    def test_alarms_last_as_long_as_what_they_tell_of(self):
        alarms = self.of("AWS::CloudWatch::Alarm")

        def window(name):
            alarm = alarms[name]
            self.assertEqual(alarm["DatapointsToAlarm"], 1, name)
            self.assertEqual(alarm["TreatMissingData"], "notBreaching", name)
            return alarm["Period"] * alarm["EvaluationPeriods"]

        # One probe a minute; one may find nobody.
        self.assertGreaterEqual(window("CredentialRejected"), 180)
        # The longest pause after failures, the tick that ends it, and the run that tells.
        self.assertGreaterEqual(window("Lag"), 900 + 60 + 60)
        # A worker stops by itself a second and a half before its time-out.
        timeout = self.resources["IncidentFetch"]["Properties"]["Timeout"]
        self.assertGreater(alarms["IncidentFetchDuration"]["Threshold"], timeout * 1000 - 1500)
        # A rotation is one burst of calls.
        self.assertEqual(alarms["SecretRotationDuration"]["EvaluationPeriods"], 1)

    def test_the_code_writes_every_metric_of_ours_that_is_watched(self):
        root = os.path.join(os.path.dirname(TEMPLATE), "..")
        written = set()
        for folder in ("shared", "functions"):
            for place, _, files in os.walk(os.path.join(root, folder)):
                for name in files:
                    if name.endswith(".rs"):
                        with open(os.path.join(place, name), encoding="utf-8") as file:
                            written |= set(re.findall(r'\("(\w+)", "(?:Count|Seconds)", ', file.read()))
        watched = {one["MetricName"] for one in self.of("AWS::CloudWatch::Alarm").values() if one["Namespace"] == "Mandate"}
        (dashboard,) = self.of("AWS::CloudWatch::Dashboard").values()
        for widget in json.loads(dashboard["DashboardBody"]["Fn::Sub"])["widgets"]:
            for namespace, metric, dimension, value in widget["properties"]["metrics"]:
                if namespace == "Mandate":
                    watched.add(metric)
                    self.assertEqual((dimension, value) == ("TableName", "${Table}"), metric != "InternalFailure", metric)
        self.assertLessEqual(watched, written)

    def test_the_runbook_knows_every_alarm(self):
        with open(os.path.join(os.path.dirname(TEMPLATE), "runbook.md"), encoding="utf-8") as file:
            runbook = file.read()
        for name in self.of("AWS::CloudWatch::Alarm"):
            per_function = re.fullmatch(f"({'|'.join(ROUTES)})(Errors|Failures|Throttles|Duration)", name)
            self.assertIn(f"`…{per_function[2]}`" if per_function else f"`{name}`", runbook)

    def test_the_dashboard_is_json(self):
        (dashboard,) = self.of("AWS::CloudWatch::Dashboard").values()
        widgets = json.loads(dashboard["DashboardBody"]["Fn::Sub"])["widgets"]
        self.assertGreater(len(widgets), 5)


class Checks(unittest.TestCase):
    """What deploy.py refuses before it creates anything."""

    def setUp(self):
        self.source = deploy.load(TEMPLATE)

    def expanded(self):
        return deploy.expand(self.source, deploy.parameters_of(self.source, {}, fill_in=True))

    def test_a_type_in_no_list_is_named(self):
        self.source["Resources"]["Waf"] = {"Type": "AWS::WAFv2::WebACL", "Properties": {}}
        with self.assertRaisesRegex(deploy.Fault, "AWS::WAFv2::WebACL"):
            deploy.check(self.expanded())

    def test_a_dangling_reference_is_named(self):
        self.source["Resources"]["ApiServerErrors"]["Properties"]["Dimensions"][0]["Value"] = {"Ref": "Gone"}
        with self.assertRaisesRegex(deploy.Fault, "ApiServerErrors refers to Gone"):
            deploy.check(self.expanded())

    def test_a_route_without_authorization_is_named(self):
        expanded = self.expanded()
        del expanded["Resources"]["Api"]["Properties"]["Body"]["paths"]["/hunting"]["post"]["security"]
        with self.assertRaisesRegex(deploy.Fault, "POST /hunting"):
            list(deploy.routes_of(expanded, deploy.aliases_of(expanded)))

    def test_parameters_are_held_to_their_rules(self):
        for given, fault in {
            ("PartnerName", None): "PartnerName has no default",
            ("Nothing", "1"): "no parameter Nothing",
            ("Stage", "Prod"): "Stage does not match",
            ("IncidentApi", "rest"): "IncidentApi must be one of",
            ("PollIntervalSeconds", "0"): "PollIntervalSeconds must be",
            ("PublicBaseUrl", "http://a.example"): "PublicBaseUrl does not match",
            ("PublicBaseUrl", "https://a.example/"): "PublicBaseUrl does not match",
            ("PublicBaseUrl", "https://a.example/mandate"): "PublicBaseUrl does not match",
            ("PublicBaseUrl", "https://user@a.example"): "PublicBaseUrl does not match",
            ("PartnerName", ""): "PartnerName must have",
        }.items():
            name, value = given
            values = {"PartnerName": "Contoso", name: value}
            with self.subTest(given), self.assertRaisesRegex(deploy.Fault, fault):
                deploy.parameters_of(self.source, {key: one for key, one in values.items() if one is not None})

    def test_a_schedule_is_a_rate_or_a_cron(self):
        self.assertEqual(deploy.seconds_of("rate(2 hours)"), 7200)
        self.assertIsNone(deploy.seconds_of("cron(0 3 * * ? *)"))
        for expression in ("rate(1 minutes ago)", "cron(0 3 * * ?)", "every minute"):
            with self.subTest(expression), self.assertRaises(deploy.Fault):
                deploy.seconds_of(expression)

    def test_only_this_machine_is_spoken_to(self):
        for endpoint in ("https://sqs.eu-central-1.amazonaws.com", "http://10.0.0.1:5000", "nonsense"):
            with self.subTest(endpoint), self.assertRaises(deploy.Fault):
                deploy.clients(endpoint)


if __name__ == "__main__":
    unittest.main()
