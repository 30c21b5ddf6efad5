//! The configuration of the AWS SDK, and the one connector of all its clients.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use aws_config::{
    BehaviorVersion, ConfigLoader, SdkConfig,
    environment::{EnvironmentVariableCredentialsProvider, EnvironmentVariableRegionProvider},
};
use aws_runtime::env_config::file::{EnvConfigFileKind, EnvConfigFiles};
use aws_sdk_sts::config::ProvideCredentials;
use aws_smithy_runtime_api::client::{
    http::{HttpConnector, HttpConnectorFuture, SharedHttpClient, SharedHttpConnector, http_client_fn},
    orchestrator::{HttpRequest, HttpResponse},
    result::ConnectorError,
};
use aws_smithy_types::{body::SdkBody, timeout::TimeoutConfig};

use crate::http::HttpClient;

/// The time after which the SDK gives up an attempt of a call. A connection of a sandbox that was frozen may be dead
/// without either side having closed it.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);

/// A client of one AWS service, made at its first call.
pub type LazyClient<C> = Arc<LazyLock<C, Box<dyn FnOnce() -> C + Send>>>;

/// The client that `new` makes from `config` once a call needs it.
pub fn lazy_client<C>(config: &SdkConfig, new: impl FnOnce(&SdkConfig) -> C + Send + 'static) -> LazyClient<C> {
    let config = config.clone();
    Arc::new(LazyLock::new(Box::new(move || new(&config))))
}

/// The configuration from the environment. Where the environment has credentials, as in Lambda, it has the region, too,
/// and no file is looked for.
pub(crate) async fn config() -> SdkConfig {
    let loader = aws_config::defaults(BehaviorVersion::latest()).timeout_config(timeouts()).http_client(http_client());
    let credentials = EnvironmentVariableCredentialsProvider::new();
    if credentials.provide_credentials().await.is_err() {
        return loader.load().await;
    }
    without_files(loader)
        .credentials_provider(credentials)
        .region(EnvironmentVariableRegionProvider::new())
        .load()
        .await
}

fn without_files(loader: ConfigLoader) -> ConfigLoader {
    loader.profile_files(EnvConfigFiles::builder().with_contents(EnvConfigFileKind::Config, "").build())
}

/// The time-outs of all calls to AWS.
pub fn timeouts() -> TimeoutConfig {
    TimeoutConfig::builder().operation_attempt_timeout(ATTEMPT_TIMEOUT).build()
}

/// The connector of the SDK's clients. All clients of one configuration share its connections.
///
/// The SDK's own connector would read and parse each file of the system's certificate directory at start.
pub fn http_client() -> SharedHttpClient {
    let connector = SharedHttpConnector::new(Connector { client: HttpClient::for_aws() });
    http_client_fn(move |_, _| connector.clone())
}

#[derive(Debug)]
struct Connector {
    client: HttpClient,
}

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        match request.try_into_http1x() {
            Ok(request) => HttpConnectorFuture::new(send(self.client.clone(), request)),
            Err(error) => HttpConnectorFuture::ready(Err(ConnectorError::user(error.into()))),
        }
    }
}

async fn send(client: HttpClient, request: http::Request<SdkBody>) -> Result<HttpResponse, ConnectorError> {
    match client.execute(request.map(reqwest::Body::wrap)).await {
        Ok(response) => HttpResponse::try_from(response.map(SdkBody::from_body_1_x))
            .map_err(|error| ConnectorError::other(error.into(), None)),
        Err(error) if error.is_timeout() => Err(ConnectorError::timeout(error.into())),
        Err(error) if error.is_builder() => Err(ConnectorError::user(error.into())),
        // The SDK repeats the request, on another connection.
        Err(error) => Err(ConnectorError::io(error.into())),
    }
}
