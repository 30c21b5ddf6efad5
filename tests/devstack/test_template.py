"""The template's functions: environment, settings, triggers, names.

    python -m unittest discover -s tests/devstack
"""

import json
import os
import re
import unittest

import sam_template
from template_case import ENVIRONMENT, ROUTES, TEMPLATE, TemplateCase

# The properties that name a resource in the account and region, by type. Without one, CloudFormation makes a name.
NAMES_IN_THE_ACCOUNT = {
    "AWS::ApiGatewayV2::Api": {"Name"},
    "AWS::Athena::NamedQuery": {"Name"},
    "AWS::CloudWatch::Alarm": {"AlarmName"},
    "AWS::CloudWatch::Dashboard": {"DashboardName"},
    "AWS::DynamoDB::Table": {"TableName"},
    "AWS::Events::EventBus": {"Name"},
    "AWS::Events::Rule": {"Name"},
    "AWS::IAM::ManagedPolicy": {"ManagedPolicyName"},
    "AWS::IAM::Role": {"RoleName"},
    "AWS::KMS::Alias": {"AliasName"},
    "AWS::Lambda::Function": {"FunctionName"},
    "AWS::Logs::LogGroup": {"LogGroupName"},
    "AWS::Logs::QueryDefinition": {"Name"},
    "AWS::S3::Bucket": {"BucketName"},
    "AWS::SQS::Queue": {"QueueName"},
    "AWS::Scheduler::Schedule": {"Name"},
    "AWS::SecretsManager::Secret": {"Name"},
}


class Functions(TemplateCase):
    def test_environment_is_that_of_the_interface(self):
        functions = self.properties_of("AWS::Lambda::Function")
        found = {name: set(one["Environment"]["Variables"]) for name, one in functions.items()}
        self.assertEqual(found, ENVIRONMENT)

    def test_variables_have_the_right_values(self):
        secret = {"Fn::If": ["CreatesAppCredential", {"Ref": "AppCredential"}, {"Ref": "AppCredentialSecretArn"}]}
        intervals = [{"Ref": "PollIntervalSeconds"}, {"Ref": "PollMaxIntervalSeconds"}]
        longest_interval = {"Fn::If": ["HasOnePollInterval", *intervals]}
        domain = {"Fn::If": ["HasDomain", {"Fn::Sub": "https://${DomainName}"}, ""]}
        wanted = {
            "APP_CLIENT_ID": {"Ref": "AppClientId"},
            "APP_CREDENTIAL_SECRET_ID": secret,
            "SIGN_IN_CREDENTIAL_SECRET_ID": {"Ref": "SignInCredentialSecretArn"},
            "TABLE_NAME": {"Ref": "Table"},
            "SYNC_QUEUE_URL": {"Ref": "SyncQueue"},
            "HUNT_QUEUE_URL": {"Ref": "HuntQueue"},
            "INCIDENT_BUCKET": {"Ref": "IncidentBucket"},
            "EVENT_BUS_NAME": {"Ref": "EventBus"},
            "PUBLIC_BASE_URL": {"Fn::If": ["HasPublicBaseUrl", {"Ref": "PublicBaseUrl"}, domain]},
            "JWT_AUDIENCE": {"Ref": "JwtAudience"},
            "MALLOC_MMAP_THRESHOLD_": "1048576",
            "DIRECT_TOKEN_INVOCATION": {"Fn::If": ["AllowsDirectTokenInvocation", "enabled", "disabled"]},
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
            "EnableTokenRoute": "true",
            "EnableDirectTokenInvocation": "true",
            "JwtAudience": "",
        }
        self.assertEqual({name: self.values[name] for name in defaults}, defaults)
        self.assertTrue(sam_template.condition_holds("HasOnePollInterval", self.expanded, self.values))

    def test_no_variable_holds_a_secret(self):
        for name, function in self.properties_of("AWS::Lambda::Function").items():
            for variable in function["Environment"]["Variables"]:
                if re.search("SECRET|TOKEN|KEY|PASSWORD", variable) and variable != "DIRECT_TOKEN_INVOCATION":
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
            slow = {"IncidentFetch": 240, "IncidentDispatch": 60, "SecretRotation": 300}
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

    def test_triggers_call_the_alias_and_not_the_latest_version(self):
        aliases = sam_template.aliases_of(self.expanded)
        self.assertEqual(set(aliases.values()), set(ROUTES))
        for name, mapping in self.properties_of("AWS::Lambda::EventSourceMapping").items():
            self.assertIn(mapping["FunctionName"]["Ref"], aliases, name)
        for name, schedule in self.properties_of("AWS::Scheduler::Schedule").items():
            self.assertIn(schedule["Target"]["Arn"]["Ref"], aliases, name)

    def test_two_stacks_of_one_stage_fit_into_an_account(self):
        fixed = {}
        for name, resource in self.resources.items():
            for key, value in resource["Properties"].items():
                if key in NAMES_IN_THE_ACCOUNT.get(resource["Type"], set()):
                    fixed[name] = json.dumps(value)
        glue = self.resources["IncidentDatabase"]["Properties"]["DatabaseInput"]["Name"]
        fixed["IncidentDatabase"] = json.dumps(glue)
        self.assertGreater(len(fixed), 20)
        for name, text in fixed.items():
            self.assertIn("AWS::StackName", text, name)
        self.assertNotIn("${Stage}", json.dumps(self.expanded))

    def test_standby_stack_polls_nothing_and_wakes_nobody(self):
        _, values = self.expanded_with(Active="false")
        for schedule in self.properties_of("AWS::Scheduler::Schedule").values():
            self.assertEqual(sam_template.evaluated(schedule["State"], self.expanded, values), "DISABLED")
            self.assertEqual(sam_template.evaluated(schedule["State"], self.expanded, self.values), "ENABLED")
        for name, mapping in self.properties_of("AWS::Lambda::EventSourceMapping").items():
            self.assertEqual(mapping["Enabled"], {"Ref": "Active"}, name)
        for name in ("DispatchSilent", "NothingDue", "SyncStopped"):
            self.assertEqual(self.resources[name]["Properties"]["ActionsEnabled"], {"Ref": "Active"}, name)


if __name__ == "__main__":
    unittest.main()
