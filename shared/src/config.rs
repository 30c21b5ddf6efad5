//! Configuration from the environment. It is read once at start. An error names every missing or malformed variable.

use std::{fmt, str::FromStr};

use jiff::SignedDuration;
use url::Url;

use crate::{
    http::Endpoint,
    microsoft::{Cloud, Endpoints, IncidentApiSetting, Microsoft},
};

/// Reads variables and collects their problems. An empty variable counts as unset.
pub struct Variables<'a> {
    lookup: &'a dyn Fn(&str) -> Option<String>,
    problems: Vec<String>,
}

/// The names of all missing or malformed variables. It never shows a value.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError {
    problems: Vec<String>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the configuration is not complete: {}", self.problems.join("; "))
    }
}

impl std::error::Error for ConfigError {}

/// Reads the configuration of a function from `lookup`.
///
/// # Errors
/// All missing or malformed variables at once.
pub fn load<T>(
    lookup: &dyn Fn(&str) -> Option<String>,
    read: impl FnOnce(&mut Variables<'_>) -> Option<T>,
) -> Result<T, ConfigError> {
    let mut variables = Variables { lookup, problems: Vec::new() };
    let config = read(&mut variables);
    match config {
        Some(config) if variables.problems.is_empty() => Ok(config),
        _ => Err(ConfigError { problems: variables.problems }),
    }
}

/// [`load`] from the environment of the process.
pub(crate) fn from_environment<T>(read: impl FnOnce(&mut Variables<'_>) -> Option<T>) -> Result<T, ConfigError> {
    load(&environment_variable, read)
}

#[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
fn environment_variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

impl Variables<'_> {
    fn value(&self, name: &str) -> Option<String> {
        (self.lookup)(name).filter(|value| !value.trim().is_empty())
    }

    /// A variable that must be set. `None` is already noted as a problem.
    pub fn required(&mut self, name: &str) -> Option<String> {
        let value = self.value(name);
        if value.is_none() {
            self.problems.push(format!("{name} is missing"));
        }
        value
    }

    /// A variable that must be set and valid. `rule` completes the sentence "NAME …" of the problem. `None` is already
    /// noted as a problem.
    pub fn required_parsed<T: FromStr>(&mut self, name: &str, rule: &str) -> Option<T> {
        let parsed = self.required(name)?.parse().ok();
        if parsed.is_none() {
            self.problems.push(format!("{name} {rule}"));
        }
        parsed
    }

    /// The URL of a queue.
    pub fn queue_url(&mut self, name: &str) -> Option<String> {
        self.required_parsed::<Url>(name, "must be a URL")?;
        self.value(name)
    }

    /// The URL of a queue that may be unset.
    pub fn optional_queue_url(&mut self, name: &str) -> Option<String> {
        self.optional_parsed::<Url>(name, "must be a URL")?;
        self.value(name)
    }

    /// A variable that may be unset, but not malformed. `rule` completes the sentence "NAME …" of the problem.
    fn optional_parsed<T: FromStr>(&mut self, name: &str, rule: &str) -> Option<T> {
        let parsed = self.value(name)?.parse().ok();
        if parsed.is_none() {
            self.problems.push(format!("{name} {rule}"));
        }
        parsed
    }

    /// A variable that may be unset.
    pub fn optional(&mut self, name: &str) -> Option<String> {
        self.value(name)
    }

    /// A variable with a default. `rule` completes the sentence "NAME …" of the problem.
    pub fn parsed<T: FromStr>(&mut self, name: &str, default: T, rule: &str) -> T {
        self.accepted(name, default, rule, |_| true)
    }

    /// A whole number with a default and a minimum.
    pub fn at_least(&mut self, name: &str, default: u32, min: u32) -> u32 {
        self.accepted(name, default, &format!("must be a whole number, {min} or more"), |value| *value >= min)
    }

    fn accepted<T: FromStr>(&mut self, name: &str, default: T, rule: &str, accept: impl Fn(&T) -> bool) -> T {
        let Some(value) = self.value(name) else { return default };
        match value.parse() {
            Ok(value) if accept(&value) => value,
            _ => {
                self.problems.push(format!("{name} {rule}"));
                default
            }
        }
    }

    fn endpoint(&mut self, name: &str, default: Endpoint) -> Endpoint {
        self.parsed(name, default, "must be an https URL without path or query (http only on loopback)")
    }

    /// `PUBLIC_BASE_URL`, if it is set.
    pub fn public_base_url(&mut self) -> Option<PublicBaseUrl> {
        self.optional_parsed("PUBLIC_BASE_URL", "must be an https URL without query (http only on loopback)")
    }

    /// The cloud, its hosts and the app credential, for functions that call Microsoft.
    pub fn microsoft(&mut self) -> Option<Microsoft> {
        self.microsoft_with("APP_CREDENTIAL_SECRET_ID")
    }

    /// As [`Self::microsoft`], with the credential in the secret that the variable `secret_id` names.
    pub fn microsoft_with(&mut self, secret_id: &str) -> Option<Microsoft> {
        let secret_id = self.required(secret_id);
        let cloud = self.parsed("MICROSOFT_CLOUD", Cloud::Commercial, "must be commercial, gcc, gcc-high or dod");
        let defaults = cloud.endpoints();
        let endpoints = Endpoints {
            authority: self.endpoint("ENTRA_AUTHORITY_HOST", defaults.authority),
            graph: self.endpoint("GRAPH_ENDPOINT", defaults.graph),
            defender: self.endpoint("DEFENDER_ENDPOINT", defaults.defender),
        };
        let home_tenant = self.optional_parsed("HOME_TENANT_ID", "must be a lower-case GUID");
        let function_name = self.value("AWS_LAMBDA_FUNCTION_NAME");
        Some(Microsoft { app_credential_secret_id: secret_id?, cloud, endpoints, home_tenant, function_name })
    }

    /// `INCIDENT_API`: `auto` without one.
    pub fn incident_api(&mut self) -> IncidentApiSetting {
        self.parsed("INCIDENT_API", IncidentApiSetting::Auto, "must be auto, graph or defender")
    }

    /// `JWT_AUDIENCE`: the audience of the JWT callers, if there may be any.
    pub fn jwt_audience(&mut self) -> Option<JwtAudience> {
        self.optional_parsed("JWT_AUDIENCE", "must be one audience, without spaces")
    }

    /// `SWEEP_DAYS`: the length of a sweep whose caller names no start. Three days without one.
    pub fn sweep(&mut self) -> SignedDuration {
        let days = self.at_least("SWEEP_DAYS", 3, 1);
        SignedDuration::from_hours(i64::from(days) * 24)
    }
}

/// The address of our own HTTP API: `https`, or `http` on loopback, without a trailing slash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicBaseUrl(String);

impl PublicBaseUrl {
    /// The configured URL, or else the host name of the gateway that took the request.
    pub fn or_domain(configured: Option<&Self>, domain_name: &str) -> Self {
        configured.cloned().unwrap_or_else(|| Self(format!("https://{domain_name}")))
    }

    /// The URL of `path`, which starts with a slash.
    pub fn join(&self, path: &str) -> String {
        format!("{}{path}", self.0)
    }
}

/// The text is not a [`PublicBaseUrl`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAPublicBaseUrl;

impl FromStr for PublicBaseUrl {
    type Err = NotAPublicBaseUrl;

    fn from_str(text: &str) -> Result<Self, NotAPublicBaseUrl> {
        let url = Url::parse(text).map_err(|_| NotAPublicBaseUrl)?;
        let safe = crate::http::is_https_or_loopback(&url);
        let plain = url.query().is_none() && url.fragment().is_none() && url.username().is_empty();
        if safe && plain { Ok(Self(text.trim_end_matches('/').to_owned())) } else { Err(NotAPublicBaseUrl) }
    }
}

/// The `aud` of tokens with which callers may come that API Gateway admitted by its JWT authoriser.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtAudience(String);

impl JwtAudience {
    /// Returns the `aud` that a caller's token must have.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The text is not a [`JwtAudience`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAJwtAudience;

impl FromStr for JwtAudience {
    type Err = NotAJwtAudience;

    fn from_str(text: &str) -> Result<Self, NotAJwtAudience> {
        let is_one = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        if is_one { Ok(Self(text.to_owned())) } else { Err(NotAJwtAudience) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(pairs: &'static [(&'static str, &'static str)]) -> impl Fn(&str) -> Option<String> {
        move |name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    }

    #[test]
    fn all_problems_are_named_and_no_value_is_shown() {
        let lookup =
            lookup(&[("MICROSOFT_CLOUD", "mars-secret"), ("GRAPH_ENDPOINT", "http://graph.example.com"), ("N", "0")]);
        let error = load(&lookup, |variables| {
            let table = variables.required("TABLE_NAME");
            let microsoft = variables.microsoft();
            let number = variables.at_least("N", 5, 1);
            Some((table?, microsoft?, number))
        })
        .unwrap_err()
        .to_string();
        for name in ["TABLE_NAME", "APP_CREDENTIAL_SECRET_ID", "MICROSOFT_CLOUD", "GRAPH_ENDPOINT", "N must be"] {
            assert!(error.contains(name), "{name} is not in: {error}");
        }
        assert!(!error.contains("mars-secret") && !error.contains("graph.example.com"));
    }

    #[test]
    fn endpoint_is_https_or_loopback() {
        let accepted = ["https://relay.example.com", "http://127.0.0.1:9000", "http://localhost:80/", "http://[::1]:1"];
        let refused = [
            "http://relay.example.com",
            "ftp://127.0.0.1",
            "https://u:p@host",
            "https://host/path",
            "https://h/?q",
            "x",
        ];
        for text in accepted {
            assert!(text.parse::<Endpoint>().is_ok(), "{text}");
        }
        for text in refused {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
    }

    #[test]
    fn empty_variable_is_unset() {
        let lookup = lookup(&[("PUBLIC_BASE_URL", ""), ("APP_CREDENTIAL_SECRET_ID", "s")]);
        let (base, microsoft) = load(&lookup, |v| Some((v.public_base_url(), v.microsoft()?))).unwrap();
        assert_eq!(base, None);
        assert_eq!(microsoft.cloud, Cloud::Commercial);
    }
}
