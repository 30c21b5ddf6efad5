//! AWS on this machine: moto's server, the template deployed to it, and a tap on the event bus.

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

const READY_LIMIT: Duration = Duration::from_mins(1);
const TAP: &str = "devstack-events";
/// The stand-in takes any key.
const KEY: &str = "local";
/// The stage of the version that functions use.
const CURRENT: &str = "AWSCURRENT";
/// A stage that nobody asks for.
const UNUSED: &str = "DEVSTACK";

/// What the template made, as its deployment reports it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Deployment {
    pub(crate) functions: Vec<DeployedFunction>,
    pub(crate) event_sources: Vec<event_source::Declared>,
    pub(crate) routes: Vec<gateway::Route>,
    pub(crate) schedules: Vec<schedule::Declared>,
    pub(crate) rotations: Vec<rotation::Declared>,
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

/// Names of what the template made.
#[derive(Clone, Debug, Deserialize)]
pub struct Resources {
    /// The DynamoDB table.
    pub table: String,
    /// The queue of sync jobs.
    pub queue_url: String,
    /// Where messages go that failed too often.
    pub dead_letter_queue_url: String,
    /// The bucket that incidents are delivered to.
    pub bucket: String,
    /// The event bus.
    pub event_bus: String,
    /// The app credential's secret.
    pub secret: String,
}

/// The local AWS. Its server ends when this is dropped.
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
    /// Starts the server and waits until it answers.
    pub(crate) async fn start(python: &Path, log: &Path) -> Result<Self, StackError> {
        let (server, port) = start_server(python, log).await?;
        let endpoint = format!("http://127.0.0.1:{port}");
        let config = aws_config::defaults(BehaviorVersion::latest())
            .region(Region::new(REGION))
            .credentials_provider(Credentials::new(KEY, KEY, None, None, "devstack"))
            .endpoint_url(&endpoint)
            .load()
            .await;
        let (sqs, s3) = (aws_sdk_sqs::Client::new(&config), aws_sdk_s3::Client::new(&config));
        Ok(Self { endpoint, config, server: Mutex::new(Some(server)), sqs, s3, tap_url: String::new() })
    }

    /// Where it is served: the value of `AWS_ENDPOINT_URL`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// A configuration for clients of its services.
    pub fn config(&self) -> &SdkConfig {
        &self.config
    }

    pub(crate) fn sqs(&self) -> &aws_sdk_sqs::Client {
        &self.sqs
    }

    /// What a function's environment holds of AWS, beside what the template sets.
    pub(crate) fn function_environment(&self) -> [(&'static str, &str); 5] {
        [
            ("AWS_ENDPOINT_URL", &self.endpoint),
            ("AWS_REGION", REGION),
            ("AWS_DEFAULT_REGION", REGION),
            ("AWS_ACCESS_KEY_ID", KEY),
            ("AWS_SECRET_ACCESS_KEY", KEY),
        ]
    }

    /// Expands and deploys the template.
    pub(crate) async fn deploy(
        &self,
        python: &Path,
        parameters: &BTreeMap<String, String>,
    ) -> Result<Deployment, StackError> {
        let mut deploy = Command::new(python);
        deploy.arg(script("deploy.py")).args(["--endpoint", &self.endpoint, "--template"]);
        deploy.arg(paths::root().join("infra").join("template.yaml"));
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
            .map_err(|error| StackError::DeployFailed { detail: format!("its report is not understood: {error}") })
    }

    /// Copies every event of the bus to a queue of the stack's own.
    pub(crate) async fn tap(&mut self, bus: &str) -> Result<(), StackError> {
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

    /// The events that came since the last call.
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

    /// The bodies of all messages of a queue, which stay there.
    pub(crate) async fn bodies(&self, queue_url: &str) -> Result<Vec<String>, StackError> {
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
            let show = self.sqs.change_message_visibility().queue_url(queue_url).receipt_handle(receipt);
            show.visibility_timeout(0).send().await.map_err(|error| failed(doing, &error))?;
        }
        Ok(bodies)
    }

    /// The keys under a prefix, in order.
    pub(crate) async fn keys(&self, bucket: &str, prefix: &str) -> Result<Vec<String>, StackError> {
        let mut pages = self.s3.list_objects_v2().bucket(bucket).prefix(prefix).into_paginator().send();
        let mut keys = Vec::new();
        while let Some(page) = pages.next().await {
            let page = page.map_err(|error| failed("listing the bucket", &error))?;
            keys.extend(page.contents.unwrap_or_default().into_iter().filter_map(|object| object.key));
        }
        Ok(keys)
    }

    /// An object's text, unpacked if its name ends in `.gz`.
    pub(crate) async fn text(&self, bucket: &str, key: &str) -> Result<String, StackError> {
        let doing = "reading an object";
        let object =
            self.s3.get_object().bucket(bucket).key(key).send().await.map_err(|error| failed(doing, &error))?;
        let bytes = object.body.collect().await.map_err(|error| failed(doing, &error))?.into_bytes();
        let mut text = String::new();
        if Path::new(key).extension().is_some_and(|extension| extension == "gz") {
            let mut unpacked = flate2::read::MultiGzDecoder::new(bytes.as_ref());
            unpacked.read_to_string(&mut text).map_err(|error| failed(doing, &error))?;
        } else {
            text = String::from_utf8(bytes.to_vec()).map_err(|error| failed(doing, &error))?;
        }
        Ok(text)
    }

    pub(crate) fn secrets(&self) -> aws_sdk_secretsmanager::Client {
        aws_sdk_secretsmanager::Client::new(&self.config)
    }

    /// Makes a secret; answers with its ARN.
    pub(crate) async fn create_secret(&self, name: &str, value: &Value) -> Result<String, StackError> {
        let create = self.secrets().create_secret().name(name).secret_string(value.to_string());
        let created = create.send().await.map_err(|error| failed("making a secret", &error))?;
        Ok(created.arn.unwrap_or_default())
    }

    /// Gives a secret a new current value; the one that was becomes the previous one.
    pub(crate) async fn put_secret(&self, secret: &str, value: &Value) -> Result<(), StackError> {
        let doing = "writing a secret";
        let secrets = self.secrets();
        let described = secrets.describe_secret().secret_id(secret).send().await;
        let versions = described.map_err(|error| failed(doing, &error))?.version_ids_to_stages.unwrap_or_default();
        let mut versions = versions.into_iter();
        let current =
            versions.find(|(_, stages)| stages.iter().any(|stage| stage == CURRENT)).map(|(version, _)| version);
        let put = secrets.put_secret_value().secret_id(secret).secret_string(value.to_string());
        let Some(current) = current else {
            put.send().await.map_err(|error| failed(doing, &error))?;
            return Ok(());
        };
        // After a rotation, moto takes the stages off the wrong version here, and off the right one when they are moved.
        let put = put.version_stages(UNUSED).send().await.map_err(|error| failed(doing, &error))?;
        let update = secrets.update_secret_version_stage().secret_id(secret).version_stage(CURRENT);
        let update = update.remove_from_version_id(current).set_move_to_version_id(put.version_id);
        update.send().await.map_err(|error| failed(doing, &error))?;
        Ok(())
    }

    /// Ends the server and waits until it has gone.
    pub(crate) async fn stop(&self) {
        let server = self.server.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(mut server) = server {
            // It may have ended already.
            let _ = server.kill().await;
        }
    }
}

/// An error of the local AWS, with all its causes.
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
    let read = tokio::time::timeout(READY_LIMIT, BufReader::new(stdout).read_line(&mut line)).await;
    match (read, line.trim().parse()) {
        (Ok(Ok(_)), Ok(port)) => Ok((server, port)),
        (Err(_), _) => Err(StackError::AwsNotReady { detail: format!("no answer in {} s", READY_LIMIT.as_secs()) }),
        _ => {
            let said = std::fs::read(log).unwrap_or_default();
            Err(StackError::AwsNotReady { detail: tail(&said, 1) })
        }
    }
}
