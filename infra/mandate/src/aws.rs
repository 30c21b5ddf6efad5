//! AWS as the caller: credentials, signatures, the stack's outputs, and who the caller is.

use std::time::{Duration, SystemTime};

use aws_config::{BehaviorVersion, SdkConfig, timeout::TimeoutConfig};
use aws_credential_types::{
    Credentials,
    provider::{ProvideCredentials, SharedCredentialsProvider},
};
use aws_sigv4::{
    http_request::{SignableBody, SignableRequest, SigningSettings, sign},
    sign::v4::SigningParams,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use shared::{clock::Clock, http::HttpClient};
use url::Url;

use crate::problem::{Problem, innermost};

/// The time after which the SDK gives up an attempt of a call to AWS. It is longer than that of the functions, because a
/// person's sign-in (SSO) goes to a region of its own, over whatever network there is.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);

/// The caller's AWS configuration: the default chain of environment, profiles, SSO and roles.
pub(crate) struct Aws {
    config: SdkConfig,
}

/// Signs requests (Signature Version 4).
#[derive(Clone, Debug)]
pub(crate) struct Signer {
    /// `None` for the local stack.
    config: Option<SdkConfig>,
    credentials: SharedCredentialsProvider,
    region: String,
    service: &'static str,
    clock: Clock,
}

impl Aws {
    pub(crate) async fn load() -> Self {
        let timeouts = TimeoutConfig::builder().operation_attempt_timeout(ATTEMPT_TIMEOUT).build();
        let loader = aws_config::defaults(BehaviorVersion::latest()).timeout_config(timeouts);
        Self { config: loader.http_client(shared::aws::http_client()).load().await }
    }

    /// The configuration, for a client of the SDK.
    pub(crate) fn config(&self) -> &SdkConfig {
        &self.config
    }

    /// Makes the signer for the API at `base`. The region is the one in the API's host name, else the configured one.
    pub(crate) fn signer(&self, base: &Url) -> Result<Signer, Problem> {
        let host = base.host_str().unwrap_or_default();
        let named = host.split_once(".execute-api.").and_then(|(_, rest)| rest.split('.').next()).map(str::to_owned);
        self.signer_for("execute-api", named)
    }

    fn signer_for(&self, service: &'static str, region: Option<String>) -> Result<Signer, Problem> {
        let region = region.or_else(|| self.config.region().map(ToString::to_string)).ok_or_else(|| {
            Problem::new("no_credentials", "The AWS region is not known.").advise("Set AWS_REGION or AWS_PROFILE.")
        })?;
        let credentials = self.config.credentials_provider().ok_or_else(no_credentials)?;
        Ok(Signer { config: Some(self.config.clone()), credentials, region, service, clock: Clock::system() })
    }

    /// Reads one output of a CloudFormation stack.
    ///
    /// # Errors
    /// `stack_not_readable` with CloudFormation's own words, or `no_credentials`.
    pub(crate) async fn stack_output(&self, http: &HttpClient, stack: &str, output: &str) -> Result<String, Problem> {
        let signer = self.signer_for("cloudformation", None)?;
        let url = self.cloudformation_url(&signer.region)?;
        let body = url::form_urlencoded::Serializer::new(String::new())
            .extend_pairs([("Action", "DescribeStacks"), ("Version", "2010-05-15"), ("StackName", stack)])
            .finish();
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        signer.sign(&Method::POST, &url, &mut headers, body.as_bytes()).await?;
        let response = http.post(url).headers(headers).body(body).send().await;
        let response = response.map_err(|error| {
            Problem::new("stack_not_readable", format!("CloudFormation did not respond: {}.", innermost(&error)))
        })?;
        let succeeded = response.status().is_success();
        let text = response.text().await.unwrap_or_default();
        if !succeeded {
            let said = element(&text, "Message").unwrap_or_else(|| "CloudFormation refused the request".into());
            let identity = signer.identity().await;
            return Err(Problem::new(
                "stack_not_readable",
                format!("{said}. Looked for the stack {stack} in {} as {identity}.", signer.region),
            )
            .advise("Check the name, AWS_REGION and AWS_PROFILE, or name the address with --api."));
        }
        stack_output_in(&text, output).ok_or_else(|| {
            Problem::new("stack_not_readable", format!("The stack {stack} has no output {output}."))
                .advise("Is it a stack of infra/template.yaml, and is it complete?")
        })
    }

    fn cloudformation_url(&self, region: &str) -> Result<Url, Problem> {
        let domain = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
        let address = self
            .config
            .endpoint_url()
            .map_or_else(|| format!("https://cloudformation.{region}.{domain}/"), str::to_owned);
        address.parse().map_err(|_| Problem::new("usage", "AWS_ENDPOINT_URL is not a URL."))
    }
}

impl Signer {
    /// Signs for the local stack, which verifies no signature. The caller's own credentials stay here.
    pub(crate) fn local() -> Self {
        Self {
            config: None,
            credentials: SharedCredentialsProvider::new(Credentials::new(
                "AKIDLOCALOPERATOR",
                "local",
                None,
                None,
                "local",
            )),
            region: "local".to_owned(),
            service: "execute-api",
            clock: Clock::system(),
        }
    }

    /// Returns true for the signer of the local stack.
    pub(crate) fn is_local(&self) -> bool {
        self.config.is_none()
    }

    /// Adds the headers of the signature.
    ///
    /// # Errors
    /// `no_credentials` with the reasons of the whole chain.
    pub(crate) async fn sign(
        &self,
        method: &Method,
        url: &Url,
        headers: &mut HeaderMap,
        body: &[u8],
    ) -> Result<(), Problem> {
        let credentials = self.credentials.provide_credentials().await.map_err(|error| {
            let mut problem = no_credentials();
            if let Some(source) = std::error::Error::source(&error) {
                problem.detail = format!("{} ({source})", problem.detail);
            }
            problem
        })?;
        let failed =
            |error: &dyn std::fmt::Display| Problem::new("internal", format!("The request cannot be signed: {error}"));
        let identity = credentials.into();
        let params = SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name(self.service)
            .time(SystemTime::from(self.clock.now()))
            .settings(SigningSettings::default())
            .build()
            .map_err(|error| failed(&error))?
            .into();
        let signed = headers.iter().filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
        let request = SignableRequest::new(method.as_str(), url.as_str(), signed, SignableBody::Bytes(body))
            .map_err(|error| failed(&error))?;
        let (instructions, _) = sign(request, &params).map_err(|error| failed(&error))?.into_parts();
        for (name, value) in instructions.headers() {
            let name = HeaderName::try_from(name).map_err(|error| failed(&error))?;
            let mut value = HeaderValue::from_str(value).map_err(|error| failed(&error))?;
            value.set_sensitive(true);
            headers.insert(name, value);
        }
        Ok(())
    }

    /// The caller in AWS's words, for a person whose call was refused.
    pub(crate) async fn identity(&self) -> String {
        let Some(config) = &self.config else { return "the operator of the local stack".to_owned() };
        let client = aws_sdk_sts::Client::new(config);
        match client.get_caller_identity().send().await {
            Ok(identity) => identity.arn().unwrap_or("an identity without a name").to_owned(),
            Err(_) => "an identity that AWS does not confirm".to_owned(),
        }
    }
}

fn no_credentials() -> Problem {
    Problem::new("no_credentials", "The default chain of AWS gave no credentials.")
        .advise("Run `aws sso login`, set AWS_PROFILE, or use --api http://localhost:8400 for `cargo dev`.")
}

/// The text of the first element with this name in CloudFormation's XML.
fn element(xml: &str, name: &str) -> Option<String> {
    let rest = &xml[xml.find(&format!("<{name}>"))? + name.len() + 2..];
    let text = &rest[..rest.find(&format!("</{name}>"))?];
    Some(text.replace("&quot;", "\"").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
}

fn stack_output_in(xml: &str, output: &str) -> Option<String> {
    let outputs = element(xml, "Outputs")?;
    outputs
        .split("<member>")
        .find(|member| element(member, "OutputKey").as_deref() == Some(output))
        .and_then(|member| element(member, "OutputValue"))
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::{digest, hmac};
    use shared::text::hex;

    use super::*;

    /// The signature by the steps of AWS's documents, without the library.
    fn signature(canonical: &str, date: &str, region: &str) -> String {
        let sha256 = |text: &str| hex(digest::digest(&digest::SHA256, text.as_bytes()).as_ref());
        let day = &date[..8];
        let text = format!("AWS4-HMAC-SHA256\n{date}\n{day}/{region}/execute-api/aws4_request\n{}", sha256(canonical));
        let mut key = b"AWS4secret".to_vec();
        for part in [day, region, "execute-api", "aws4_request", &text] {
            key = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), part.as_bytes()).as_ref().to_vec();
        }
        hex(&key)
    }

    #[tokio::test]
    async fn signature_is_the_one_of_aws_documents() {
        let signer = Signer {
            config: None,
            credentials: SharedCredentialsProvider::new(Credentials::new(
                "AKIDX",
                "secret",
                Some("session".into()),
                None,
                "t",
            )),
            region: "eu-central-1".into(),
            service: "execute-api",
            clock: Clock::by_hand("2026-11-22T10:00:00Z".parse().unwrap()),
        };
        let url =
            "https://abc.execute-api.eu-central-1.amazonaws.com/tenants/a%20b%2Fc?assigned_to=J%C3%BCrgen%20M&limit=5";
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        signer.sign(&Method::POST, &url.parse().unwrap(), &mut headers, b"{}").await.unwrap();
        // The path is encoded twice, as for every service but S3.
        let canonical = "POST\n/tenants/a%2520b%252Fc\nassigned_to=J%C3%BCrgen%20M&limit=5\naccept:application/json\n\
                         host:abc.execute-api.eu-central-1.amazonaws.com\nx-amz-date:20261122T100000Z\n\
                         x-amz-security-token:session\n\naccept;host;x-amz-date;x-amz-security-token\n\
                         44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
        let expected = signature(canonical, "20261122T100000Z", "eu-central-1");
        let sent = headers["authorization"].to_str().unwrap();
        assert!(sent.ends_with(&format!("Signature={expected}")), "{sent}");
        assert!(headers["authorization"].is_sensitive() && headers["x-amz-security-token"].is_sensitive());
    }

    #[tokio::test]
    async fn attempts_of_calls_to_aws_have_a_time_limit() {
        let aws = Aws::load().await;
        let timeouts = aws.config().timeout_config().unwrap();
        assert_eq!(timeouts.operation_attempt_timeout(), Some(ATTEMPT_TIMEOUT));
    }

    #[test]
    fn outputs_are_found_in_the_response_of_cloudformation() {
        let xml = "<Outputs><member><OutputKey>A</OutputKey><OutputValue>1</OutputValue></member>\
                   <member><OutputValue>https://x/?a=1&amp;b=2</OutputValue><Description>d</Description>\
                   <OutputKey>ApiUrl</OutputKey></member></Outputs>";
        assert_eq!(stack_output_in(xml, "ApiUrl").as_deref(), Some("https://x/?a=1&b=2"));
        assert_eq!(stack_output_in(xml, "Other"), None);
        assert_eq!(stack_output_in("<Error/>", "ApiUrl"), None);
    }
}
