//! Faults on Microsoft's side, and the requests that they affect.

use serde::{Deserialize, Serialize};

use crate::http::Request;

/// One of Microsoft's three hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Host {
    /// Entra's login host, `login.microsoftonline.com`.
    Entra,
    /// Microsoft Graph, `graph.microsoft.com`.
    Graph,
    /// The Defender XDR API, `api.security.microsoft.com`.
    Defender,
}

/// A fault and the requests that it affects. A field that is not set matches every request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// Only on this host.
    #[serde(default)]
    pub host: Option<Host>,
    /// Only for this tenant (by path on Entra, by token elsewhere).
    #[serde(default)]
    pub tenant_id: Option<String>,
    /// Only with this method, in upper or lower case.
    #[serde(default)]
    pub method: Option<String>,
    /// Only for paths that start with this.
    #[serde(default)]
    pub path_prefix: Option<String>,
    /// Only if the decoded query contains this.
    #[serde(default)]
    pub query_contains: Option<String>,
    /// Only if the request names this incident or the response would contain it.
    #[serde(default)]
    pub incident_id: Option<String>,
    /// Only with (`true`) or without (`false`) `$expand`.
    #[serde(default)]
    pub expand: Option<bool>,
    /// Number of matching requests that succeed first.
    #[serde(default)]
    pub after: u32,
    /// Number of requests that the fault affects after that; `None` for all.
    #[serde(default)]
    pub times: Option<u32>,
    /// The effect on a matching request.
    pub kind: FaultKind,
}

impl Fault {
    /// A fault for every request that its kind applies to, until it is cleared.
    pub fn new(kind: FaultKind) -> Self {
        Self {
            host: None,
            tenant_id: None,
            method: None,
            path_prefix: None,
            query_contains: None,
            incident_id: None,
            expand: None,
            after: 0,
            times: None,
            kind,
        }
    }

    /// A 500 for every response that would contain the incident.
    pub fn poison(tenant_id: &str, incident_id: &str) -> Self {
        Self::new(FaultKind::status(500)).tenant(tenant_id).incident(incident_id)
    }

    /// Limits the fault to one host.
    #[must_use]
    pub fn on(mut self, host: Host) -> Self {
        self.host = Some(host);
        self
    }

    /// Limits the fault to one tenant.
    #[must_use]
    pub fn tenant(mut self, tenant_id: &str) -> Self {
        self.tenant_id = Some(tenant_id.to_owned());
        self
    }

    /// Limits the fault to one method.
    #[must_use]
    pub fn method(mut self, method: &str) -> Self {
        self.method = Some(method.to_owned());
        self
    }

    /// Limits the fault to paths that start with this.
    #[must_use]
    pub fn path(mut self, prefix: &str) -> Self {
        self.path_prefix = Some(prefix.to_owned());
        self
    }

    /// Limits the fault to requests whose decoded query contains this.
    #[must_use]
    pub fn query(mut self, part: &str) -> Self {
        self.query_contains = Some(part.to_owned());
        self
    }

    /// Limits the fault to requests that name this incident and responses that would contain it.
    #[must_use]
    pub fn incident(mut self, incident_id: &str) -> Self {
        self.incident_id = Some(incident_id.to_owned());
        self
    }

    /// Limits the fault to requests with `$expand`.
    #[must_use]
    pub fn with_expand(mut self) -> Self {
        self.expand = Some(true);
        self
    }

    /// Limits the fault to requests without `$expand`.
    #[must_use]
    pub fn without_expand(mut self) -> Self {
        self.expand = Some(false);
        self
    }

    /// Lets this many matching requests succeed first.
    #[must_use]
    pub fn after(mut self, requests: u32) -> Self {
        self.after = requests;
        self
    }

    /// Ends the fault after this many affected requests.
    #[must_use]
    pub fn times(mut self, requests: u32) -> Self {
        self.times = Some(requests);
        self
    }

    /// True if the fault matches a request, whatever incident it names.
    fn matches(&self, request: &Request, tenant_id: Option<&str>) -> bool {
        self.host.is_none_or(|host| host == request.host)
            && self.tenant_id.as_deref().is_none_or(|tenant| Some(tenant) == tenant_id)
            && self.method.as_deref().is_none_or(|method| method.eq_ignore_ascii_case(&request.method))
            && self.path_prefix.as_deref().is_none_or(|prefix| request.path.starts_with(prefix))
            && self.query_contains.as_deref().is_none_or(|part| request.decoded_query().contains(part))
            && self.expand.is_none_or(|expand| request.decoded_query().contains("$expand") == expand)
            && self.kind.applies_to(request)
    }

    /// Counts a matching request. Returns true if the fault affects it.
    fn applies_now(&mut self) -> bool {
        if self.after > 0 {
            self.after -= 1;
            return false;
        }
        match &mut self.times {
            Some(0) => false,
            Some(left) => {
                *left -= 1;
                true
            }
            None => true,
        }
    }
}

/// The place and form of the wait in a 429.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RetryAfter {
    /// `Retry-After` as this number of seconds.
    Seconds(u64),
    /// `Retry-After` as an HTTP date, this many seconds from now.
    Date(u64),
    /// No header; the message in the body names this number of seconds.
    Body(u64),
    /// Neither header nor body names a wait.
    #[default]
    Absent,
    /// As captured of this family of APIs: the code is `429`, the message names the limit, and nothing names the wait.
    Quota {
        /// Calls that the limit allows.
        calls: usize,
        /// Seconds in which it allows them.
        seconds: u64,
    },
}

/// The effect of a fault.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum FaultKind {
    /// A response with this status, before the host handles the request.
    Status {
        /// Status code of the response.
        status: u16,
        /// Body; the host's own error body if not given.
        #[serde(default)]
        body: Option<String>,
        /// Further headers, which win.
        #[serde(default)]
        headers: Vec<(String, String)>,
    },
    /// A 429, before the host handles the request.
    Throttle {
        /// The place and form of the wait.
        retry_after: RetryAfter,
    },
    /// A 502 with an HTML body, as gateways send it.
    BadGateway,
    /// A connection reset, before the host handles the request.
    Reset,
    /// A late response. The connection stays silent until then.
    Hang {
        /// Delay in milliseconds.
        millis: u64,
    },
    /// Ordinary response time: evenly spread between two durations, in the same way in each run.
    Latency {
        /// Shortest delay in milliseconds.
        least_millis: u64,
        /// Longest delay in milliseconds.
        most_millis: u64,
    },
    /// A body that ends early, in a well-formed HTTP message.
    Truncate {
        /// Length of the body in bytes; half of it if not given.
        #[serde(default)]
        at: Option<usize>,
    },
    /// A connection that closes in the middle of the body.
    Cut,
    /// A body that is sent in chunks with a pause before each.
    SlowBody {
        /// Bytes of each chunk.
        chunk: usize,
        /// Pause before each chunk in milliseconds.
        millis: u64,
    },
    /// Another status and further headers for an unchanged body (e.g. 206 with `Warning`).
    Rewrite {
        /// Status code in place of the host's own.
        status: u16,
        /// Further headers, which win.
        #[serde(default)]
        headers: Vec<(String, String)>,
    },
    /// A wrong `Date` header.
    DateSkew {
        /// Seconds ahead of the simulator's clock; negative for behind.
        seconds: i64,
    },
    /// A response whose `Date` header is no date.
    UnreadableDate,
    /// A list of all incidents, whatever its `$filter` says.
    IgnoredFilter,
    /// A list whose next link leads to another URL.
    ForeignNextLink {
        /// The URL of the next link.
        url: String,
    },
    /// A list whose next link leads to the same page.
    LoopingNextLink,
    /// A list without rows whose next link leads to them, for requests that name no page.
    EmptyPage,
    /// A 400 for a request with `$skip` or `$skiptoken`: the skip token has expired.
    ExpiredSkiptoken,
    /// A list that omits rows and has no next link.
    SilentCap {
        /// The largest number of rows in a page.
        rows: usize,
    },
    /// A list or single read that shows each incident in an earlier version.
    Stale {
        /// Number of versions back. Incidents with fewer versions are missing.
        versions: usize,
    },
    /// A token (access or ID) that names another tenant.
    WrongTid {
        /// The tenant in `tid` and `iss`.
        tid: String,
    },
    /// An access token that is not a JWT. The APIs accept it.
    OpaqueToken,
    /// `expires_in` and similar numbers as strings, as the v1 endpoint sends them.
    ExpiresInString,
    /// Another lifetime of the access token or ID token.
    ExpiresIn {
        /// Lifetime in seconds.
        seconds: i64,
    },
    /// An access token without `roles`, although the app has some.
    MissingRoles,
    /// Replaced claims of a token (access or ID).
    Claims {
        /// New values by claim; `null` removes the claim.
        claims: serde_json::Map<String, serde_json::Value>,
    },
    /// An AADSTS error as the outcome of the token endpoint, the sign-in or the consent.
    Aadsts {
        /// The number after `AADSTS`.
        code: u32,
    },
}

impl FaultKind {
    /// A status with the host's own error body.
    pub fn status(status: u16) -> Self {
        Self::Status { status, body: None, headers: Vec::new() }
    }

    /// True if this kind of fault makes sense for a request. A fault does not count other requests.
    fn applies_to(&self, request: &Request) -> bool {
        match self {
            Self::WrongTid { .. }
            | Self::OpaqueToken
            | Self::ExpiresInString
            | Self::ExpiresIn { .. }
            | Self::MissingRoles
            | Self::Claims { .. } => request.is_token_request(),
            Self::Aadsts { .. } => request.host == Host::Entra && request.method == "POST",
            Self::ForeignNextLink { .. }
            | Self::LoopingNextLink
            | Self::EmptyPage
            | Self::SilentCap { .. }
            | Self::IgnoredFilter => request.is_incident_list(),
            Self::Stale { .. } => request.host != Host::Entra && request.method == "GET",
            Self::ExpiredSkiptoken => {
                request.is_incident_list() && request.decoded_query().split('&').any(|pair| pair.starts_with("$skip"))
            }
            Self::Status { .. }
            | Self::Throttle { .. }
            | Self::BadGateway
            | Self::Reset
            | Self::Hang { .. }
            | Self::Latency { .. }
            | Self::Truncate { .. }
            | Self::Cut
            | Self::SlowBody { .. }
            | Self::Rewrite { .. }
            | Self::DateSkew { .. }
            | Self::UnreadableDate => true,
        }
    }

    /// True if the fault replaces the host's response.
    fn replaces_response(&self) -> bool {
        matches!(
            self,
            Self::Status { .. } | Self::Throttle { .. } | Self::BadGateway | Self::Reset | Self::ExpiredSkiptoken
        )
    }
}

/// All faults that were added, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Faults(pub(crate) Vec<Fault>);

impl Faults {
    /// The faults that affect a request before the host handles it. One that replaces the response ends the list.
    pub(crate) fn before_handling(&mut self, request: &Request, tenant_id: Option<&str>) -> Vec<FaultKind> {
        let in_path = request.incident_in_path();
        self.take_matching(|fault| {
            fault.matches(request, tenant_id) && fault.incident_id.as_deref().is_none_or(|id| Some(id) == in_path)
        })
    }

    /// The faults that affect a list with these incidents.
    pub(crate) fn after_handling(
        &mut self,
        request: &Request,
        tenant_id: Option<&str>,
        incidents: &[u64],
    ) -> Vec<FaultKind> {
        if request.incident_in_path().is_some() || incidents.is_empty() {
            return Vec::new();
        }
        self.take_matching(|fault| {
            fault.matches(request, tenant_id)
                && fault
                    .incident_id
                    .as_deref()
                    .is_some_and(|id| incidents.iter().any(|incident| incident.to_string() == id))
        })
    }

    fn take_matching(&mut self, matches: impl Fn(&Fault) -> bool) -> Vec<FaultKind> {
        let mut taken = Vec::new();
        for fault in self.0.iter_mut().filter(|fault| matches(fault)) {
            if fault.applies_now() {
                taken.push(fault.kind.clone());
                if fault.kind.replaces_response() {
                    break;
                }
            }
        }
        self.0.retain(|fault| fault.times != Some(0));
        taken
    }
}
