//! AWS on this machine: moto's server, the template that is deployed to it, and a copy of every event on the bus.

use std::{
    collections::BTreeMap,
    io::Read as _,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Mutex,
    time::Duration,
};

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_eventbridge::types::Target;
use aws_sdk_sqs::{config::Credentials, error::DisplayErrorContext};
use serde::Deserialize;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

use crate::{ACCOUNT_ID, REGION, error::StackError, event_source, functions::tail, gateway, paths, rotation, schedule};

const READY_TIMEOUT: Duration = Duration::from_mins(1);
/// The name of the queue that gets a copy of every event, and of the rule that sends it there.
const TAP: &str = "devstack-events";
/// The access key and the secret key. moto accepts any.
const ACCESS_KEY: &str = "local";
/// The stage of the secret version that functions use.
const CURRENT_STAGE: &str = "AWSCURRENT";
/// A stage that no function reads.
const UNUSED_STAGE: &str = "DEVSTACK";

/// The report of `deploy.py`: the resources of the deployed template that the stack needs.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Deployment {
    pub(crate) functions: Vec<DeployedFunction>,
    pub(crate) event_sources: Vec<event_source::EventSourceConfig>,
    pub(crate) routes: Vec<gateway::Route>,
    pub(crate) schedules: Vec<schedule::ScheduleConfig>,
    pub(crate) rotations: Vec<rotation::RotationConfig>,
    pub(crate) resources: Resources,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct DeployedFunction {
    pub(crate) name: String,
    pub(crate) binary: String,
    pub(crate) timeout_seconds: u64,
    pub(crate) memory_mb: u32,
    pub(crate) environment: BTreeMap<String, String>,
}

/// The physical names of the resources that the template creates.
#[derive(Clone, Debug, Deserialize)]
pub struct Resources {
    /// The name of the DynamoDB table.
    pub table: String,
    /// The URL of the queue of sync jobs.
    pub queue_url: String,
    /// The URL of the queue that receives a message after its last failed delivery.
    pub dead_letter_queue_url: String,
    /// The name of the bucket that incidents are delivered to.
    pub bucket: String,
    /// The name of the EventBridge bus.
    pub event_bus: String,
    /// The ARN of the secret that holds the app credential.
    pub secret: String,
}

/// The local AWS. Its server process ends when this is dropped.
#[derive(Debug)]
pub struct Aws {
    endpoint: String,
    config: SdkConfig,
    server: Mutex<Option<Child>>,
    sqs: aws_sdk_sqs::Client,
    s3: aws_sdk_s3::Client,
    tap_url: String,
}

impl Aws {
    /// Starts the server and waits until it listens.
    pub(crate) async fn start(python: &Path, log: &Path) -> Result<Self, StackError> {
        let (server, port) = start_server(python, log).await?;
        let endpoint = format!("http://127.0.0.1:{port}");
        let config = aws_config::defaults(BehaviorVersion::latest())
            .region(Region::new(REGION))
            .credentials_provider(Credentials::new(ACCESS_KEY, ACCESS_KEY, None, None, "devstack"))
            .endpoint_url(&endpoint)
            .http_client(shared::aws::http_client())
            .load()
            .await;
        let (sqs, s3) = (aws_sdk_sqs::Client::new(&config), aws_sdk_s3::Client::new(&config));
        Ok(Self { endpoint, config, server: Mutex::new(Some(server)), sqs, s3, tap_url: String::new() })
    }

    /// The URL of all its services: the value of `AWS_ENDPOINT_URL`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The SDK configuration for clients of its services.
    pub fn config(&self) -> &SdkConfig {
        &self.config
    }

    pub(crate) fn sqs(&self) -> &aws_sdk_sqs::Client {
        &self.sqs
    }

    /// The variables that connect a function to the local AWS, in addition to the template's.
    pub(crate) fn function_environment(&self) -> [(&'static str, &str); 5] {
        [
            ("AWS_ENDPOINT_URL", &self.endpoint),
            ("AWS_REGION", REGION),
            ("AWS_DEFAULT_REGION", REGION),
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
            ("AWS_SECRET_ACCESS_KEY", ACCESS_KEY),
        ]
    }

    /// Expands the template with SAM's translator and deploys it.
    pub(crate) async fn deploy(
        &self,
        python: &Path,
        parameters: &BTreeMap<String, String>,
    ) -> Result<Deployment, StackError> {
        let mut deploy = Command::new(python);
        deploy.arg(script("deploy.py")).args(["--endpoint", &self.endpoint, "--template"]);
        deploy.arg(paths::workspace().join("infra").join("template.yaml"));
        for (name, value) in parameters {
            deploy.arg("--parameter").arg(format!("{name}={value}"));
        }
        let output = deploy
            .envs(self.function_environment())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .map_err(StackError::io("running deploy.py"))?;
        if !output.status.success() {
            return Err(StackError::DeployFailed { detail: tail(&output.stderr, 1) });
        }
        serde_json::from_slice(&output.stdout)
            .map_err(|error| StackError::DeployFailed { detail: format!("its report cannot be parsed: {error}") })
    }

    /// Adds a rule that copies every event of the bus to a queue of the stack.
    pub(crate) async fn tap_event_bus(&mut self, bus: &str) -> Result<(), StackError> {
        let doing = "tapping the event bus";
        let queue = self.sqs.create_queue().queue_name(TAP).send().await.map_err(|error| failed(doing, &error))?;
        self.tap_url = queue.queue_url.unwrap_or_default();
        let events = aws_sdk_eventbridge::Client::new(&self.config);
        let rule = events.put_rule().name(TAP).event_bus_name(bus);
        let pattern = serde_json::json!({ "account": [ACCOUNT_ID] }).to_string();
        rule.event_pattern(pattern).send().await.map_err(|error| failed(doing, &error))?;
        let arn = format!("arn:aws:sqs:{REGION}:{ACCOUNT_ID}:{TAP}");
        let target = Target::builder().id(TAP).arn(arn).build().map_err(|error| failed(doing, &error))?;
        let targets = events.put_targets().rule(TAP).event_bus_name(bus).targets(target);
        targets.send().await.map_err(|error| failed(doing, &error))?;
        Ok(())
    }

    /// Returns the events that arrived since the last call.
    pub(crate) async fn new_events(&self) -> Result<Vec<Value>, StackError> {
        let doing = "reading the event bus";
        let mut events = Vec::new();
        loop {
            let receive = self.sqs.receive_message().queue_url(&self.tap_url).max_number_of_messages(10);
            let received = receive.send().await.map_err(|error| failed(doing, &error))?.messages.unwrap_or_default();
            if received.is_empty() {
                return Ok(events);
            }
            for message in received {
                let body = message.body().unwrap_or_default();
                events.push(serde_json::from_str(body).map_err(|error| failed(doing, &error))?);
                let receipt = message.receipt_handle().unwrap_or_default();
                let delete = self.sqs.delete_message().queue_url(&self.tap_url).receipt_handle(receipt);
                delete.send().await.map_err(|error| failed(doing, &error))?;
            }
        }
    }

    /// Returns the bodies of all messages of a queue. The messages stay there.
    pub(crate) async fn message_bodies(&self, queue_url: &str) -> Result<Vec<String>, StackError> {
        let doing = "reading a queue";
        let (mut bodies, mut receipts) = (Vec::new(), Vec::new());
        loop {
            let receive = self.sqs.receive_message().queue_url(queue_url).max_number_of_messages(10);
            let received = receive.visibility_timeout(30).send().await.map_err(|error| failed(doing, &error))?;
            let messages = received.messages.unwrap_or_default();
            if messages.is_empty() {
                break;
            }
            for message in messages {
                bodies.push(message.body.unwrap_or_default());
                receipts.push(message.receipt_handle.unwrap_or_default());
            }
        }
        for receipt in receipts {
            let make_visible = self.sqs.change_message_visibility().queue_url(queue_url).receipt_handle(receipt);
            make_visible.visibility_timeout(0).send().await.map_err(|error| failed(doing, &error))?;
        }
        Ok(bodies)
    }

    /// Returns the keys of the objects under a prefix, in order.
    pub(crate) async fn object_keys(&self, bucket: &str, prefix: &str) -> Result<Vec<String>, StackError> {
        let mut pages = self.s3.list_objects_v2().bucket(bucket).prefix(prefix).into_paginator().send();
        let mut keys = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| failed("listing the bucket", &error))?;
            keys.extend(page.contents.unwrap_or_default().into_iter().filter_map(|object| object.key));
        }
        Ok(keys)
    }

    /// Returns an object's text, decompressed if its key ends in `.gz`.
    pub(crate) async fn object_text(&self, bucket: &str, key: &str) -> Result<String, StackError> {
        let doing = "reading an object";
        let object =
            self.s3.get_object().bucket(bucket).key(key).send().await.map_err(|error| failed(doing, &error))?;
        let bytes = object.body.collect().await.map_err(|error| failed(doing, &error))?.into_bytes();
        let mut text = String::new();
        if Path::new(key).extension().is_some_and(|extension| extension == "gz") {
            let mut decoder = flate2::read::MultiGzDecoder::new(bytes.as_ref());
            decoder.read_to_string(&mut text).map_err(|error| failed(doing, &error))?;
        } else {
            text = String::from_utf8(bytes.to_vec()).map_err(|error| failed(doing, &error))?;
        }
        Ok(text)
    }

    pub(crate) fn secrets(&self) -> aws_sdk_secretsmanager::Client {
        aws_sdk_secretsmanager::Client::new(&self.config)
    }

    /// Creates a secret and returns its ARN.
    pub(crate) async fn create_secret(&self, name: &str, value: &Value) -> Result<String, StackError> {
        let create = self.secrets().create_secret().name(name).secret_string(value.to_string());
        let created = create.send().await.map_err(|error| failed("creating a secret", &error))?;
        Ok(created.arn.unwrap_or_default())
    }

    /// Sets a secret's current value. The old one becomes its previous value.
    pub(crate) async fn put_secret(&self, secret: &str, value: &Value) -> Result<(), StackError> {
        let doing = "writing a secret";
        let secrets = self.secrets();
        let described = secrets.describe_secret().secret_id(secret).send().await;
        let versions = described.map_err(|error| failed(doing, &error))?.version_ids_to_stages.unwrap_or_default();
        let mut versions = versions.into_iter();
        let current =
            versions.find(|(_, stages)| stages.iter().any(|stage| stage == CURRENT_STAGE)).map(|(version, _)| version);
        let put = secrets.put_secret_value().secret_id(secret).secret_string(value.to_string());
        let Some(current) = current else {
            put.send().await.map_err(|error| failed(doing, &error))?;
            return Ok(());
        };
        // After a rotation, moto's PutSecretValue removes the stages of the wrong version. Moving the stage explicitly
        // removes them of the right one.
        let put = put.version_stages(UNUSED_STAGE).send().await.map_err(|error| failed(doing, &error))?;
        let update = secrets.update_secret_version_stage().secret_id(secret).version_stage(CURRENT_STAGE);
        let update = update.remove_from_version_id(current).set_move_to_version_id(put.version_id);
        update.send().await.map_err(|error| failed(doing, &error))?;
        Ok(())
    }

    /// Kills the server and waits until it has exited.
    pub(crate) async fn stop(&self) {
        let server = self.server.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(mut server) = server {
            // The server may have exited already.
            let _ = server.kill().await;
        }
    }
}

/// Wraps an error of the local AWS, with all its causes.
pub(crate) fn failed(doing: &'static str, error: &(impl std::error::Error + 'static)) -> StackError {
    StackError::Aws { doing, detail: DisplayErrorContext(error).to_string() }
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

async fn start_server(python: &Path, log: &Path) -> Result<(Child, u16), StackError> {
    let doing = "starting the local AWS";
    let stderr = std::fs::File::create(log).map_err(StackError::io(doing))?;
    let mut server = Command::new(python)
        .arg(script("aws_server.py"))
        .arg("--calls")
        .arg(paths::state().join("calls"))
        .env("MOTO_ACCOUNT_ID", ACCOUNT_ID)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(stderr)
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(StackError::io(doing))?;
    let Some(stdout) = server.stdout.take() else {
        return Err(StackError::AwsNotReady { detail: "it has no standard output".to_owned() });
    };
    let mut line = String::new();
    let read = tokio::time::timeout(READY_TIMEOUT, BufReader::new(stdout).read_line(&mut line)).await;
    match (read, line.trim().parse()) {
        (Ok(Ok(_)), Ok(port)) => Ok((server, port)),
        (Err(_), _) => {
            Err(StackError::AwsNotReady { detail: format!("it did not listen within {} s", READY_TIMEOUT.as_secs()) })
        }
        _ => {
            let printed = std::fs::read(log).unwrap_or_default();
            Err(StackError::AwsNotReady { detail: tail(&printed, 1) })
        }
    }
}
