//! AWS for tests in one process: moto's DynamoDB, and in front of it stand-ins for what moto lacks or cannot be made to
//! fail: Secrets Manager, `kms:Sign` (PS256 with a salt of 32 bytes, as KMS does), `sts:GetWebIdentityToken`.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_lc_rs::{
    rand::SystemRandom,
    rsa::{KeyPair, KeySize},
    signature::{self, KeyPair as _},
};
use aws_sdk_dynamodb::{
    config::{Credentials, SharedCredentialsProvider},
    types::{AttributeDefinition, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType},
};
use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
};
use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use serde_json::{Value, json};
use shared::{
    clock::Clock,
    error::Call,
    http::{Deadline, HttpClient, send},
};
use sim::FederatedCredential;

/// Who says in AWS's tokens who it is.
const ISSUER: &str = "https://3f7d.tokens.sts.global.api.aws";
const ROLE: &str = "arn:aws:iam::123456789012:role/mandate";

/// One test's AWS.
#[derive(Clone)]
pub(crate) struct Aws {
    shared: Arc<Shared>,
    /// For the clients of the code under test.
    pub(crate) config: SdkConfig,
    /// The table, made and empty.
    pub(crate) table: String,
}

struct Shared {
    outbound: HttpClient,
    kms_key: KeyPair,
    state: Mutex<Values>,
}

#[derive(Default)]
struct Values {
    /// Stage to version and text.
    secret: BTreeMap<&'static str, (String, String)>,
    secrets_down: bool,
    calls: BTreeMap<String, usize>,
}

impl Aws {
    /// A table of its own; no secret yet.
    pub(crate) async fn start() -> Self {
        let shared = Arc::new(Shared {
            outbound: HttpClient::new().unwrap(),
            kms_key: KeyPair::generate(KeySize::Rsa2048).unwrap(),
            state: Mutex::new(Values::default()),
        });
        let router = Router::new().fallback(serve).with_state(shared.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        let config = SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("eu-central-1"))
            .credentials_provider(SharedCredentialsProvider::new(Credentials::new("k", "k", None, None, "test")))
            .endpoint_url(endpoint)
            .build();
        let table = format!("table-{}", unique());
        make_table(&config, &table).await;
        Self { shared, config, table }
    }

    /// Puts a value at a stage, as another version.
    pub(crate) fn put_secret(&self, stage: &'static str, value: &Value) {
        let version = format!("version-{}", unique());
        self.shared.state.lock().unwrap().secret.insert(stage, (version, value.to_string()));
    }

    /// What a rotation ends with: the current version becomes the previous one.
    pub(crate) fn rotate_secret(&self, value: &Value) {
        let current = self.shared.state.lock().unwrap().secret.remove("AWSCURRENT");
        if let Some(current) = current {
            self.shared.state.lock().unwrap().secret.insert("AWSPREVIOUS", current);
        }
        self.put_secret("AWSCURRENT", value);
    }

    /// Whether Secrets Manager fails.
    pub(crate) fn secrets_down(&self, down: bool) {
        self.shared.state.lock().unwrap().secrets_down = down;
    }

    /// How often an operation was called.
    pub(crate) fn calls(&self, operation: &str) -> usize {
        self.shared.state.lock().unwrap().calls.get(operation).copied().unwrap_or_default()
    }

    /// Where it is served.
    pub(crate) fn endpoint(&self) -> &str {
        self.config.endpoint_url().unwrap()
    }

    /// A certificate of the key in KMS, in DER.
    pub(crate) fn certificate(&self) -> Vec<u8> {
        sim::self_signed(&self.shared.kms_key, "Litware Security")
    }

    /// What an app registration knows of AWS's tokens.
    pub(crate) fn federated_credential(&self) -> FederatedCredential {
        // PKCS #1 of 2,048 bits: nine bytes before the modulus, five before the exponent, which has three.
        let key = self.kms_public_key();
        let (n, e) = (&key[9..265], &key[267..]);
        let (n, e) = (BASE64_URL_SAFE_NO_PAD.encode(n), BASE64_URL_SAFE_NO_PAD.encode(e));
        FederatedCredential {
            issuer: ISSUER.into(),
            subject: ROLE.into(),
            audience: "api://AzureADTokenExchange".into(),
            jwks: json!({"keys": [{"kty": "RSA", "kid": "aws", "n": n, "e": e}]}),
        }
    }

    /// The public part of the key in KMS, in DER (PKCS #1).
    pub(crate) fn kms_public_key(&self) -> Vec<u8> {
        self.shared.kms_key.public_key().as_ref().to_vec()
    }
}

/// A number that no other test of this process has.
fn unique() -> usize {
    static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(1);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

async fn make_table(config: &SdkConfig, table: &str) {
    let attribute = |name: &str| {
        let attribute = AttributeDefinition::builder().attribute_name(name).attribute_type(ScalarAttributeType::S);
        attribute.build().unwrap()
    };
    let key = |name: &str, kind| KeySchemaElement::builder().attribute_name(name).key_type(kind).build().unwrap();
    let create = aws_sdk_dynamodb::Client::new(config)
        .create_table()
        .table_name(table)
        .billing_mode(BillingMode::PayPerRequest)
        .attribute_definitions(attribute("pk"))
        .attribute_definitions(attribute("sk"))
        .key_schema(key("pk", KeyType::Hash))
        .key_schema(key("sk", KeyType::Range));
    create.send().await.unwrap();
}

async fn serve(State(shared): State<Arc<Shared>>, headers: HeaderMap, body: Bytes) -> Response {
    let target = headers.get("x-amz-target").and_then(|target| target.to_str().ok()).unwrap_or("sts").to_owned();
    let operation = target.rsplit('.').next().unwrap_or_default().to_owned();
    *shared.state.lock().unwrap().calls.entry(operation.clone()).or_default() += 1;
    match operation.as_str() {
        "GetSecretValue" => secret_value(&shared, &body),
        "Sign" => sign(&shared, &body),
        "sts" => web_identity_token(&shared, &body),
        _ => forward(&shared, &headers, body).await,
    }
}

fn secret_value(shared: &Shared, body: &[u8]) -> Response {
    let request: Value = serde_json::from_slice(body).unwrap();
    let held = shared.state.lock().unwrap();
    if held.secrets_down {
        return (StatusCode::BAD_REQUEST, json!({"__type": "AccessDeniedException"}).to_string()).into_response();
    }
    let stage = request["VersionStage"].as_str().expect("the stage is always asked for");
    match held.secret.get(stage) {
        Some((version, text)) => {
            json!({"VersionId": version, "SecretString": text, "VersionStages": [stage]}).to_string().into_response()
        }
        None => (StatusCode::BAD_REQUEST, json!({"__type": "ResourceNotFoundException"}).to_string()).into_response(),
    }
}

fn sign(shared: &Shared, body: &[u8]) -> Response {
    let request: Value = serde_json::from_slice(body).unwrap();
    assert_eq!(request["SigningAlgorithm"], "RSASSA_PSS_SHA_256");
    assert_eq!(request["MessageType"], "RAW");
    let message = BASE64_STANDARD.decode(request["Message"].as_str().unwrap()).unwrap();
    let key = &shared.kms_key;
    let mut bytes = vec![0; key.public_modulus_len()];
    key.sign(&signature::RSA_PSS_SHA256, &SystemRandom::new(), &message, &mut bytes).unwrap();
    json!({"KeyId": request["KeyId"], "Signature": BASE64_STANDARD.encode(bytes)}).to_string().into_response()
}

/// Signed with the same key as what KMS signs, RS256.
fn web_identity_token(shared: &Shared, body: &[u8]) -> Response {
    let form: BTreeMap<String, String> = url::form_urlencoded::parse(body).into_owned().collect();
    assert_eq!(form["Action"], "GetWebIdentityToken");
    assert_eq!(form["Audience.member.1"], "api://AzureADTokenExchange");
    assert_eq!((form["SigningAlgorithm"].as_str(), form["DurationSeconds"].as_str()), ("RS256", "300"));
    let encode = |part: Value| BASE64_URL_SAFE_NO_PAD.encode(part.to_string());
    let now = Clock::system().now().as_second();
    let claims = json!({"iss": ISSUER, "sub": ROLE, "aud": form["Audience.member.1"], "iat": now, "exp": now + 300,
                        "jti": unique().to_string()});
    let message = format!("{}.{}", encode(json!({"alg": "RS256", "kid": "aws"})), encode(claims));
    let mut signed = vec![0; shared.kms_key.public_modulus_len()];
    shared.kms_key.sign(&signature::RSA_PKCS1_SHA256, &SystemRandom::new(), message.as_bytes(), &mut signed).unwrap();
    let token = format!("{message}.{}", BASE64_URL_SAFE_NO_PAD.encode(signed));
    let body = format!(
        "<GetWebIdentityTokenResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><GetWebIdentityTokenResult>\
         <WebIdentityToken>{token}</WebIdentityToken><Expiration>2099-01-01T00:00:00Z</Expiration>\
         </GetWebIdentityTokenResult></GetWebIdentityTokenResponse>"
    );
    ([("content-type", "text/xml")], body).into_response()
}

async fn forward(shared: &Shared, headers: &HeaderMap, body: Bytes) -> Response {
    let mut request =
        shared.outbound.post(format!("http://127.0.0.1:{}/", crate::local::server().await).parse().unwrap());
    for name in ["x-amz-target", "content-type", "authorization", "x-amz-date"] {
        if let Some(value) = headers.get(name) {
            request = request.header(name, value);
        }
    }
    let deadline = Deadline::within(std::time::Duration::from_secs(30), &Clock::system());
    let answer = send(request.body(body), Call::ListIncidents, deadline).await.unwrap();
    let status = answer.status();
    (status, [("content-type", "application/x-amz-json-1.0")], answer.bytes().await.unwrap()).into_response()
}
