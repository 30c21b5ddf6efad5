//! The client of Mandate's HTTP API. It signs each request with the caller's own AWS credentials.

use std::time::Duration;

use futures_util::StreamExt;
use http::{HeaderMap, Method, header};
use serde_json::Value;
use shared::http::HttpClient;
use url::Url;

use crate::{
    advice,
    aws::{Aws, Signer},
    problem::{Problem, innermost},
};

/// The longest wait for a response. API Gateway gives up after 30 seconds.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(32);

/// The limit of a response's body. Lambda sends 6 MB at most.
const MAX_BODY_BYTES: usize = 8 << 20;

/// The way to the API: its address, or the stack whose output names it.
#[derive(Clone, Debug, Default)]
pub struct Target {
    /// The base URL of the API.
    pub api: Option<String>,
    /// The name of the CloudFormation stack.
    pub stack: Option<String>,
}

/// A connection to one deployment. Clones share it.
#[derive(Clone, Debug)]
pub struct Api {
    base: Url,
    http: HttpClient,
    signer: Signer,
    stack: Option<String>,
}

impl Api {
    /// Finds the API and the caller's credentials. It sends no request to the API.
    ///
    /// # Errors
    /// `no_api`, `stack_not_readable`, `no_credentials`.
    pub async fn connect(target: &Target) -> Result<Self, Problem> {
        let http = HttpClient::with_read_timeout(RESPONSE_TIMEOUT);
        let (address, stack, aws) = match (&target.api, &target.stack) {
            (Some(api), _) => (api.clone(), None, None),
            (None, Some(stack)) => {
                let aws = Aws::load().await;
                (aws.stack_output(&http, stack, "ApiUrl").await?, Some(stack.clone()), Some(aws))
            }
            (None, None) => {
                return Err(Problem::new("no_api", "Neither an address nor a stack is named.").advise(
                    "Use --stack NAME (or MANDATE_STACK) for a deployment, or --api http://localhost:8400 for `cargo dev`.",
                ));
            }
        };
        let base = base_url(&address)?;
        let signer = match aws {
            // The local stack needs no account, and is shown none.
            _ if base.scheme() == "http" => Signer::local(),
            None => Aws::load().await.signer(&base)?,
            Some(aws) => aws.signer(&base)?,
        };
        Ok(Self { base, http, signer, stack })
    }

    /// The address of the API, for people.
    pub fn address(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    /// The port of a local stack.
    pub(crate) fn local_port(&self) -> Option<u16> {
        if self.signer.is_local() { self.base.port() } else { None }
    }

    /// GET of the route whose path has these segments. Segments and values may be any text.
    pub async fn get(&self, path: &[&str], query: &[(&str, &str)]) -> Result<Value, Problem> {
        self.send(Method::GET, path, query, None).await
    }

    /// POST of a JSON body; `None` for the routes that take no body.
    pub async fn post(&self, path: &[&str], body: Option<&Value>) -> Result<Value, Problem> {
        self.send(Method::POST, path, &[], body).await
    }

    /// PATCH with a JSON body.
    pub async fn patch(&self, path: &[&str], body: &Value) -> Result<Value, Problem> {
        self.send(Method::PATCH, path, &[], Some(body)).await
    }

    /// DELETE. The result is null where the API responds with 204.
    pub async fn delete(&self, path: &[&str]) -> Result<Value, Problem> {
        self.send(Method::DELETE, path, &[], None).await
    }

    /// Sends one request, once.
    ///
    /// # Errors
    /// The API's problem, or why no response arrived.
    pub async fn send(
        &self,
        method: Method,
        path: &[&str],
        query: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<Value, Problem> {
        let url = self.url(path, query);
        let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, header::HeaderValue::from_static("application/json"));
        if !body.is_empty() {
            headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
        }
        self.signer.sign(&method, &url, &mut headers, &body).await?;
        let request = self.http.request(method, url).headers(headers).body(body).timeout(RESPONSE_TIMEOUT);
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        let status = response.status().as_u16();
        let retry_after =
            response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        let bytes = self.read(response).await?;
        if !(200..300).contains(&status) {
            let problem = Problem::of_response(status, &bytes, retry_after);
            return Err(self.explain(problem).await);
        }
        if bytes.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(&bytes).map_err(|_| {
            Problem::new("unexpected_response", format!("{} did not respond with JSON.", self.address()))
                .advise("Is this the API of Mandate? The stack's output `ApiUrl` names its address.")
        })
    }

    fn url(&self, path: &[&str], query: &[(&str, &str)]) -> Url {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.clear().extend(path);
        }
        if !query.is_empty() {
            // SigV4 knows no `+` for a blank, so the signed text and the sent one have %20.
            let query = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(query).finish();
            url.set_query(Some(&query.replace('+', "%20")));
        }
        url
    }

    async fn read(&self, response: reqwest::Response) -> Result<Vec<u8>, Problem> {
        let mut body = response.bytes_stream();
        let mut bytes = Vec::new();
        while let Some(chunk) = body.next().await {
            bytes.extend_from_slice(&chunk.map_err(|error| self.unreachable(&error))?);
            if bytes.len() > MAX_BODY_BYTES {
                return Err(Problem::new("unexpected_response", "The response is larger than any of this API."));
            }
        }
        Ok(bytes)
    }

    fn unreachable(&self, error: &reqwest::Error) -> Problem {
        let (why, cause) = if error.is_timeout() {
            ("did not respond in time", String::new())
        } else if error.is_connect() {
            ("cannot be reached", format!(" The cause: {}.", innermost(error)))
        } else {
            ("closed the connection", String::new())
        };
        let advice = advice::for_connection(&cause, self.signer.is_local());
        Problem::new("unreachable", format!("{} {why}.{cause}", self.address())).advise(advice)
    }

    /// Adds what the person can do next. For a refused call, adds who called which deployment.
    async fn explain(&self, problem: Problem) -> Problem {
        if problem.code != "forbidden" && problem.code != "unauthorized_caller" {
            return problem;
        }
        let identity = self.signer.identity().await;
        let stack = self.stack.as_ref().map(|stack| format!(" of the stack {stack}")).unwrap_or_default();
        // The gateway's own refusals are words without a full stop.
        let said = problem.detail.trim_end().trim_end_matches('.');
        let detail = format!("{said}. The caller was {identity}, the API {}{stack}.", self.address());
        Problem { detail, ..problem }.advise(
            "The identity needs `execute-api:Invoke` for this route. AWS_PROFILE selects another one; infra/README.md has the policy.",
        )
    }
}

/// Parses the base URL of the API: https, or http on this machine, without a path.
fn base_url(text: &str) -> Result<Url, Problem> {
    let refused = || {
        Problem::new("usage", "The address of the API must be https://HOST, or http://localhost:PORT, without a path.")
    };
    text.trim_end_matches('/').parse::<shared::http::Endpoint>().map(|origin| origin.join("/")).map_err(|_| refused())
}
