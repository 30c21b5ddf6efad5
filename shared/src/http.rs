//! The one way out to the network.

use std::{
    str::FromStr,
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream::BoxStream};
use http::{HeaderMap, StatusCode, header};
use jiff::{SignedDuration, Timestamp};
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use url::{Host, Url};

use crate::{
    clock::{Clock, MonotonicClock},
    error::{Call, Cause, Error, Result, Source},
    text::from_json_object,
};

/// The longest wait that a response can ask for. A longer one is a mistake, and nothing else would end it.
pub const MAX_RETRY_AFTER: SignedDuration = SignedDuration::from_hours(24);

/// The headers by which Microsoft's services name a request: Graph's, then those of Defender's gateways.
const REQUEST_ID_HEADERS: [&str; 4] = ["request-id", "x-ms-request-id", "x-ms-correlation-id", "x-request-id"];

/// The longest identifier of a request that is believed.
const MAX_REQUEST_ID_LENGTH: usize = 128;

/// The limit of a body that is read as a whole: tokens, keys, errors, single objects of Entra.
const MAX_BODY_BYTES: usize = 1 << 20;

/// The longest time to open a connection, with its TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// The longest silence before the head of a response, and inside its body.
const READ_TIMEOUT: Duration = Duration::from_secs(15);

/// The longest silence before the response to a hunting query, which may run for three minutes.
/// <https://learn.microsoft.com/graph/api/security-security-runhuntingquery>
const HUNTING_TIMEOUT: Duration = Duration::from_secs(200);

/// The origin of a service: `https`, or `http` on loopback, and never with a path, a query or credentials.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint(Url);

/// The text is not an [`Endpoint`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAnEndpoint;

/// Returns whether a URL is `https`, or `http` to this machine.
pub(crate) fn is_https_or_loopback(url: &Url) -> bool {
    let loopback = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    url.has_host() && (url.scheme() == "https" || (url.scheme() == "http" && loopback))
}

impl FromStr for Endpoint {
    type Err = NotAnEndpoint;

    fn from_str(text: &str) -> Result<Self, NotAnEndpoint> {
        let url = Url::parse(text).map_err(|_| NotAnEndpoint)?;
        let origin_only = url.path() == "/"
            && url.query().is_none()
            && url.fragment().is_none()
            && url.username().is_empty()
            && url.password().is_none();
        if origin_only && is_https_or_loopback(&url) { Ok(Self(url)) } else { Err(NotAnEndpoint) }
    }
}

impl Endpoint {
    /// The origin `https://host` of a host name that stands in this source.
    pub(crate) fn https(host: &'static str) -> Self {
        #[expect(clippy::expect_used, reason = "the hosts are literals of this crate, and a test builds every one")]
        Self(Url::parse(&format!("https://{host}/")).expect("a literal host makes a URL"))
    }

    /// The URL of `path`, which starts with a slash. Characters that a path may not hold are escaped.
    pub fn join(&self, path: &str) -> Url {
        let mut url = self.0.clone();
        url.set_path(path);
        url
    }
}

/// The trust in the pinned public roots. Clients share it, and so the TLS sessions that they resume.
#[expect(clippy::expect_used, reason = "the versions are those of the provider, and every test of a call builds it")]
static TLS: LazyLock<rustls::ClientConfig> = LazyLock::new(|| {
    let roots = rustls::RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has the default versions of TLS")
        .with_root_certificates(roots)
        .with_no_client_auth()
});

/// A client, for Microsoft or for AWS. It checks certificates against the pinned public roots.
///
/// It follows no redirect and uses no proxy, because either would give a token away. It is built for its first request.
#[derive(Clone, Debug)]
pub struct HttpClient {
    servers: Servers,
    client: Arc<Mutex<Option<reqwest::Client>>>,
}

#[derive(Clone, Copy, Debug)]
enum Servers {
    Aws,
    Others { read_timeout: Duration },
}

impl Default for HttpClient {
    /// The client for all hosts but AWS's. A process needs one, whose connections all callers share.
    ///
    /// A server may be silent for as long as a hunting query runs. [`send`] allows any other call less.
    fn default() -> Self {
        Self::with_read_timeout(HUNTING_TIMEOUT)
    }
}

impl HttpClient {
    /// The default client for a server that may be silent for `read_timeout` before it responds.
    pub fn with_read_timeout(read_timeout: Duration) -> Self {
        Self::of(Servers::Others { read_timeout })
    }

    /// The client for the connector of the AWS SDK, which has its own time-outs, retries and user agent. It speaks HTTP/1.1
    /// alone: an attempt that the SDK gives up then closes its connection.
    pub(crate) fn for_aws() -> Self {
        Self::of(Servers::Aws)
    }

    fn of(servers: Servers) -> Self {
        Self { servers, client: Arc::default() }
    }

    /// Closes the connections, each as soon as no response arrives on it. The next request opens a new one.
    pub(crate) fn close_connections(&self) {
        self.client.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Returns whether there may be connections.
    #[cfg(test)]
    pub(crate) fn has_connections(&self) -> bool {
        self.client.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn client(&self) -> reqwest::Client {
        let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        client.get_or_insert_with(|| self.build()).clone()
    }

    #[expect(
        clippy::expect_used,
        reason = "nothing of it depends on the environment, and every test of a call builds it"
    )]
    fn build(&self) -> reqwest::Client {
        #[expect(clippy::disallowed_methods, reason = "the one place that builds a client")]
        let client = reqwest::Client::builder();
        let client = client
            .tls_backend_preconfigured(TLS.clone())
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .referer(false)
            .connect_timeout(CONNECT_TIMEOUT);
        let client = match self.servers {
            Servers::Aws => client.http1_only(),
            Servers::Others { read_timeout } => client
                .user_agent(concat!("Mandate/", env!("CARGO_PKG_VERSION")))
                .read_timeout(read_timeout)
                // A frozen function wakes up to connections that the other side has closed.
                .pool_idle_timeout(Duration::from_secs(20)),
        };
        client.build().expect("the HTTP client could not be built")
    }

    /// Sends a request of the AWS SDK. The error does not name the URL.
    pub(crate) async fn execute(
        &self,
        request: http::Request<reqwest::Body>,
    ) -> reqwest::Result<http::Response<reqwest::Body>> {
        let response = self.client().execute(request.try_into()?).await;
        response.map(Into::into).map_err(reqwest::Error::without_url)
    }

    /// A GET request to `url`, to be sent with [`send`].
    pub fn get(&self, url: Url) -> reqwest::RequestBuilder {
        self.client().get(url)
    }

    /// A POST request to `url`, to be sent with [`send`].
    pub fn post(&self, url: Url) -> reqwest::RequestBuilder {
        self.client().post(url)
    }

    /// A PATCH request to `url`, to be sent with [`send`].
    pub fn patch(&self, url: Url) -> reqwest::RequestBuilder {
        self.client().patch(url)
    }

    /// A request to `url` with any method.
    pub fn request(&self, method: http::Method, url: Url) -> reqwest::RequestBuilder {
        self.client().request(method, url)
    }
}

/// The instant before which a piece of work must end, with all its waits and calls.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    at: Instant,
    clock: MonotonicClock,
}

impl Deadline {
    /// A deadline `left` from now.
    pub fn within(left: Duration, clock: &Clock) -> Self {
        let clock = clock.monotonic();
        Self { at: clock.now() + left, clock }
    }

    /// The time that is left. Zero after the deadline.
    pub fn left(&self) -> Duration {
        self.at.saturating_duration_since(self.clock.now())
    }

    /// An earlier deadline, which keeps `reserve` for later work.
    #[must_use]
    pub fn reserving(&self, reserve: Duration) -> Self {
        Self { at: self.at.checked_sub(reserve).unwrap_or(self.at), ..*self }
    }

    /// The earlier of this deadline and `most` from now.
    #[must_use]
    pub fn at_most(&self, most: Duration) -> Self {
        Self { at: self.at.min(self.clock.now() + most), ..*self }
    }

    /// Runs `work` until the deadline.
    ///
    /// # Errors
    /// The error of `work`, or [`Error::DeadlineExceeded`].
    pub fn run<T>(self, work: impl Future<Output = Result<T>>) -> impl Future<Output = Result<T>> {
        self.bound(work).map(|outcome| outcome.unwrap_or(Err(Error::DeadlineExceeded)))
    }

    /// The outcome of `work`, or `None` if the deadline comes first. An `async fn` would hold `work` twice, as its
    /// argument and inside the time-out.
    fn bound<T>(self, work: impl Future<Output = T>) -> impl Future<Output = Option<T>> {
        tokio::time::timeout(self.left(), work).map(Result::ok)
    }
}

/// A response whose head has arrived.
pub struct Response {
    call: Call,
    status: StatusCode,
    headers: HeaderMap,
    body: BoxStream<'static, reqwest::Result<Bytes>>,
    deadline: Deadline,
}

/// Sends a request; `call` names it in errors. The head must arrive before the deadline, and so must the body.
///
/// # Errors
/// [`Error::Unreachable`] with its cause.
pub async fn send(request: reqwest::RequestBuilder, call: Call, deadline: Deadline) -> Result<Response> {
    match deadline.at_most(longest_silence(call)).bound(request.send()).await {
        Some(Ok(response)) => Ok(Response {
            call,
            status: response.status(),
            headers: response.headers().clone(),
            body: response.bytes_stream().boxed(),
            deadline,
        }),
        Some(Err(error)) => Err(unreachable(call, Cause::Closed, error)),
        None => Err(timed_out(call)),
    }
}

/// The longest time until the head of the response to a call.
fn longest_silence(call: Call) -> Duration {
    if call == Call::Hunt { HUNTING_TIMEOUT } else { READ_TIMEOUT }
}

/// The error for a failed connection. `otherwise` is the cause if the connection was open and no time ran out.
fn unreachable(call: Call, otherwise: Cause, error: reqwest::Error) -> Error {
    let cause = match &error {
        error if is_tls(error) => Cause::Tls,
        error if error.is_connect() => Cause::Connect,
        error if error.is_timeout() => Cause::Timeout,
        _ => otherwise,
    };
    // The URL may hold a code or an identifier.
    Error::Unreachable { call, cause, source: Some(Source::new(error.without_url())) }
}

fn timed_out(call: Call) -> Error {
    Error::Unreachable { call, cause: Cause::Timeout, source: None }
}

/// Looks for an error of rustls among the causes. The HTTP client wraps it in I/O errors, which hide it from `source()`.
fn is_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
    error.is::<rustls::Error>() || wrapped.is_some_and(|error| is_tls(error)) || error.source().is_some_and(is_tls)
}

impl Response {
    /// A successful response whose body arrives in these pieces.
    #[cfg(test)]
    pub(crate) fn of_pieces(pieces: Vec<Bytes>) -> Self {
        Self {
            call: Call::ListIncidents,
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            body: futures_util::stream::iter(pieces.into_iter().map(Ok)).boxed(),
            deadline: Deadline::within(Duration::from_mins(1), &crate::clock::Clock::system()),
        }
    }

    /// The status as it was sent, successful or not.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The time by which the whole body must have arrived.
    pub fn deadline(&self) -> Deadline {
        self.deadline
    }

    /// The value of a header, if it is visible ASCII.
    pub fn header(&self, name: header::HeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The sender's own identifier of the request, which Microsoft asks for in a support case. Text from outside: it is left
    /// out where it is longer than such an identifier or has other characters.
    pub fn request_id(&self) -> Option<&str> {
        let mut ids = REQUEST_ID_HEADERS.iter().filter_map(|name| self.headers.get(*name)?.to_str().ok());
        ids.find(|id| is_request_id(id))
    }

    /// The sender's own time, from the `Date` header.
    pub fn date(&self) -> Option<Timestamp> {
        parse_http_date(self.header(header::DATE)?)
    }

    /// The wait that the sender asks for, at most [`MAX_RETRY_AFTER`]: `Retry-After` as seconds or as a date.
    pub fn retry_after(&self, now: Timestamp) -> Option<SignedDuration> {
        parse_retry_after(self.header(header::RETRY_AFTER)?.trim(), now)
    }

    /// The next piece of the body; `None` at its proper end.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>> {
        match self.deadline.at_most(READ_TIMEOUT).bound(self.body.next()).await {
            Some(None) => Ok(None),
            Some(Some(Ok(bytes))) => Ok(Some(bytes)),
            Some(Some(Err(error))) => Err(unreachable(self.call, Cause::Body, error)),
            None => Err(timed_out(self.call)),
        }
    }

    /// The whole body, at most 1 MiB of it: [`Error::Malformed`] beyond that.
    pub async fn bytes(mut self) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        while let Some(bytes) = self.chunk().await? {
            if all.len() + bytes.len() > MAX_BODY_BYTES {
                return Err(self.malformed());
            }
            all.extend_from_slice(&bytes);
        }
        Ok(all)
    }

    /// The whole body as a JSON object. [`Error::Malformed`] if it is not a `T`. Of a member that is there twice, the last
    /// one counts.
    pub async fn json<T: DeserializeOwned>(self) -> Result<T> {
        let malformed = self.malformed();
        let body = serde_json::from_slice(&self.bytes().await?).ok();
        body.and_then(from_json_object).ok_or(malformed)
    }

    /// The error for a status that the call does not expect.
    pub fn unexpected_status(&self) -> Error {
        Error::Upstream { status: self.status.as_u16(), call: self.call }
    }

    /// The error for a body that is not what the call promises.
    pub fn malformed(&self) -> Error {
        Error::Malformed { call: self.call }
    }
}

fn is_request_id(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:|".contains(&byte);
    (1..=MAX_REQUEST_ID_LENGTH).contains(&text.len()) && text.bytes().all(is_allowed)
}

fn parse_retry_after(text: &str, now: Timestamp) -> Option<SignedDuration> {
    let wait = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse::<u32>().map_or(MAX_RETRY_AFTER, |seconds| SignedDuration::from_secs(seconds.into()))
    } else {
        parse_http_date(text)?.duration_since(now)
    };
    Some(wait.clamp(SignedDuration::ZERO, MAX_RETRY_AFTER))
}

fn parse_http_date(text: &str) -> Option<Timestamp> {
    Timestamp::try_from(httpdate::parse_http_date(text).ok()?).ok()
}

#[cfg(test)]
mod tests;
