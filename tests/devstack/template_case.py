"""The template as data, for its tests: what is expected of it, and a test case that has it expanded."""

import functools
import os
import re
import unittest

import sam_template

TEMPLATE = os.path.join(os.path.dirname(__file__), "..", "..", "infra", "template.yaml")

# The routes of the HTTP API, by function.
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
        ("GET", "/hunting/{hunt_id}"),
        ("DELETE", "/hunting/{hunt_id}"),
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
# Functions that are called by their name and not by an alias.
WITHOUT_ALIAS = {"SecretRotation"}

# The environment of each function: the variables that it reads and no other.
CALLS_MICROSOFT = {"APP_CREDENTIAL_SECRET_ID", "HOME_TENANT_ID", "MICROSOFT_CLOUD"}
EVERYWHERE = {"TABLE_NAME", "LOG_LEVEL"}
ENVIRONMENT = {
    "ConsentCallback": EVERYWHERE
    | CALLS_MICROSOFT
    | {"APP_CLIENT_ID", "SIGN_IN_CREDENTIAL_SECRET_ID"}
    | {"EVENT_BUS_NAME", "INCIDENT_API", "PARTNER_NAME", "PUBLIC_BASE_URL"},
    "TokenIssuance": EVERYWHERE | CALLS_MICROSOFT | {"DIRECT_TOKEN_INVOCATION", "INCIDENT_API", "JWT_AUDIENCE"},
    "IncidentFetch": EVERYWHERE
    | CALLS_MICROSOFT
    | {
        "CONSENT_CHECK_SECONDS",
        "DELIVERY_FORMAT",
        "EVENT_BUS_NAME",
        "FIRST_LOOKBACK_HOURS",
        "HUNT_QUEUE_URL",
        "INCIDENT_API",
        "INCIDENT_BUCKET",
        "INCIDENT_EVENTS",
        "JWT_AUDIENCE",
        "MALLOC_MMAP_THRESHOLD_",
        "POLL_INTERVAL_SECONDS",
        "POLL_MAX_INTERVAL_SECONDS",
        "POLL_OVERLAP_SECONDS",
        "SWEEP_DAYS",
        "SYNC_QUEUE_URL",
    },
    "IncidentDispatch": EVERYWHERE | {"POLL_INTERVAL_SECONDS", "POLL_MAX_INTERVAL_SECONDS", "SYNC_QUEUE_URL"},
    "TenantAdmin": EVERYWHERE
    | CALLS_MICROSOFT
    | {"EVENT_BUS_NAME", "INCIDENT_BUCKET", "JWT_AUDIENCE", "PUBLIC_BASE_URL", "SWEEP_DAYS", "SYNC_QUEUE_URL"},
    "SecretRotation": EVERYWHERE | CALLS_MICROSOFT | {"ROTATION_CREDENTIAL_SECRET_ID"},
}

# A value of each parameter that cannot be derived from its declaration.
GUID = "0a1b2c3d-0000-4000-8000-000000000000"
SECRET_ARN = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:"
SAMPLES = {
    "AccessLogBucket": "access-logs",
    "AlarmTopicArn": "arn:aws:sns:eu-central-1:123456789012:alarms",
    "AppClientId": GUID,
    "AppCredentialSecretArn": SECRET_ARN + "app-AbCdEf",
    "CertificateArn": "arn:aws:acm:eu-central-1:123456789012:certificate/1",
    "DomainName": "mandate.example.com",
    "HomeTenantId": GUID,
    "HostedZoneId": "Z0123456789",
    "JwtAudience": GUID,
    "JwtIssuer": f"https://login.microsoftonline.com/{GUID}/v2.0",
    "KmsSigningKeyArn": "arn:aws:kms:eu-central-1:123456789012:key/1",
    "PartnerName": "Northwind SOC",
    "PermissionsBoundaryArn": "arn:aws:iam::123456789012:policy/boundary",
    "PublicBaseUrl": "https://mandate.example.com",
    "ReaderAccountIds": "111111111111,222222222222",
    "ReaderExternalId": "northwind-siem",
    "RotationCredentialSecretArn": SECRET_ARN + "rotator-AbCdEf",
    "RunbookUrl": "https://wiki.example.com/mandate",
    "SignInCredentialSecretArn": SECRET_ARN + "sign-in-AbCdEf",
    "Stage": "prod",
}

# The rights of each function to our resources: (action, resource).
READ_WRITE = {"GetItem", "PutItem", "UpdateItem", "DeleteItem", "Query"}
RIGHTS = {
    "ConsentCallback": {("dynamodb:" + one, "Table") for one in ("GetItem", "PutItem", "UpdateItem")}
    | {("events:PutEvents", "EventBus")},
    "TokenIssuance": {("dynamodb:GetItem", "Table"), ("dynamodb:UpdateItem", "Table")},
    "IncidentFetch": {("dynamodb:" + one, "Table") for one in READ_WRITE | {"BatchGetItem"}}
    | {
        ("dynamodb:Query", "Table/index/listing"),
        ("s3:PutObject", "IncidentBucket/incidents/*"),
        ("s3:PutObject", "IncidentBucket/ocsf/*"),
        ("s3:PutObject", "IncidentBucket/quarantine/*"),
        ("s3:PutObject", "IncidentBucket/hunts/*"),
        ("s3:GetObject", "IncidentBucket/hunts/*"),
        ("s3:AbortMultipartUpload", "IncidentBucket/hunts/*"),
        ("events:PutEvents", "EventBus"),
    }
    | {
        ("sqs:" + one, queue)
        for queue in ("SyncQueue", "HuntQueue")
        for one in ("ReceiveMessage", "DeleteMessage", "GetQueueAttributes", "ChangeMessageVisibility", "SendMessage")
    },
    "IncidentDispatch": {
        ("dynamodb:Query", "Table/index/due"),
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
# The partitions that each function reads and writes.
OF_ONE_TENANT = {"TENANT#*", "THROTTLING#*", "CREDENTIAL"}
READS = {
    "ConsentCallback": OF_ONE_TENANT | {"INVITATION#*", "ATTEMPT#*"},
    "TokenIssuance": OF_ONE_TENANT,
    "IncidentFetch": OF_ONE_TENANT | {"HUNT#*"},
    "IncidentDispatch": set(),
    "TenantAdmin": OF_ONE_TENANT | {"INVITATION#*", "RANKING#*"},
    "SecretRotation": set(),
}
WRITES = {
    **READS,
    # A function that issues tokens changes no tenant.
    "TokenIssuance": {"THROTTLING#*", "CREDENTIAL"},
    "IncidentDispatch": set(),
}
# These functions return their failures in a response or in a batch response, which Lambda counts as a success.
REPORTS_FAILURES_ITSELF = {"ConsentCallback", "TokenIssuance", "IncidentFetch", "TenantAdmin"}
CREDENTIAL_POLICIES = {"AppCredentialPolicy", "AppSigningPolicy", "AppFederationPolicy"}
DATA = {"Table": "AWS::DynamoDB::Table", "IncidentBucket": "AWS::S3::Bucket", "DataKey": "AWS::KMS::Key"}


def as_list(value):
    """Returns a value of a policy as a list."""
    return value if isinstance(value, list) else [value]


def resource_name(resource):
    """Returns a short name of a resource in a policy: `Table` for its ARN, `Table/index/due` for its index."""
    if "Fn::If" in resource:
        resource = resource["Fn::If"][1]
    if "Ref" in resource:
        return resource["Ref"]
    if "Fn::Sub" in resource:
        return re.sub(r"\$\{(\w+)\.Arn\}", r"\1", resource["Fn::Sub"])
    return resource["Fn::GetAtt"][0]


def another_value(name, declaration, value):
    """Returns an allowed value of a parameter that is not this one."""
    if "AllowedValues" in declaration:
        return next(str(one) for one in declaration["AllowedValues"] if str(one) != value)
    if declaration["Type"] == "Number":
        return str(int(value) + 1 if int(value) < int(declaration.get("MaxValue", int(value) + 1)) else int(value) - 1)
    return SAMPLES[name]


@functools.cache
def the_template():
    """Returns the template before and after its expansion, and the values that it was expanded with."""
    source = sam_template.load(TEMPLATE)
    values = sam_template.parameters_of(source, {}, fill_in=True)
    return source, values, sam_template.expand(source, values)


class TemplateCase(unittest.TestCase):
    """A test with the template in `source`, expanded in `expanded`."""

    @classmethod
    def setUpClass(cls):
        cls.source, cls.values, cls.expanded = the_template()
        cls.resources = cls.expanded["Resources"]

    def expanded_with(self, **given):
        """Returns the template that is expanded with these parameters, and all values."""
        values = sam_template.parameters_of(self.source, {**self.values, **given})
        return sam_template.expand(self.source, values), values

    def properties_of(self, kind):
        """Returns the properties of all resources of one type by logical id."""
        return {name: one["Properties"] for name, one in sam_template.by_type(self.expanded, kind).items()}

    def statements(self):
        """Yields every policy statement of a role or a managed policy, with the logical id of that resource."""
        for name, role in self.properties_of("AWS::IAM::Role").items():
            for policy in role.get("Policies", []):
                for statement in as_list(policy["PolicyDocument"]["Statement"]):
                    yield name, statement
        for kind in ("AWS::IAM::ManagedPolicy", "AWS::IAM::Policy"):
            for name, policy in self.properties_of(kind).items():
                for statement in as_list(policy["PolicyDocument"]["Statement"]):
                    yield name, statement
