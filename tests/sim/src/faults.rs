//! What can go wrong on Microsoft's side, and for whom.

use serde::{Deserialize, Serialize};

use crate::http::Request;

/// One of Microsoft's three hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Host {
    /// The login host.
    Entra,
    /// Microsoft Graph.
    Graph,
    /// The Defender XDR API.
    Defender,
}

/// A fault and the requests that it meets. A field that is not set matches everything.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// Only on this host.
    #[serde(default)]
    pub host: Option<Host>,
    /// Only for this tenant (by path on Entra, by token elsewhere).
    #[serde(default)]
    pub tenant_id: Option<String>,
    /// Only with this method.
    #[serde(default)]
    pub method: Option<String>,
    /// Only where the path begins so.
    #[serde(default)]
    pub path_prefix: Option<String>,
    /// Only where the decoded query contains this.
    #[serde(default)]
    pub query_contains: Option<String>,
    /// Only where the request is for this incident or the answer would contain it.
    #[serde(default)]
    pub incident_id: Option<String>,
    /// Only with (`true`) or without (`false`) `$expand`.
    #[serde(default)]
    pub expand: Option<bool>,
    /// This many matching requests go well first.
    #[serde(default)]
    pub after: u32,
    /// This many meet the fault; `None`: all.
    #[serde(default)]
    pub times: Option<u32>,
    /// What happens.
    pub kind: FaultKind,
}

impl Fault {
    /// A fault for every request of its kind, until cleared.
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

    /// Any answer that would contain the incident is a 500.
    pub fn poison(tenant_id: &str, incident_id: &str) -> Self {
        Self::new(FaultKind::status(500)).tenant(tenant_id).incident(incident_id)
    }

    /// Only on this host.
    #[must_use]
    pub fn on(mut self, host: Host) -> Self {
        self.host = Some(host);
        self
    }

    /// Only for this tenant.
    #[must_use]
    pub fn tenant(mut self, tenant_id: &str) -> Self {
        self.tenant_id = Some(tenant_id.to_owned());
        self
    }

    /// Only with this method.
    #[must_use]
    pub fn method(mut self, method: &str) -> Self {
        self.method = Some(method.to_owned());
        self
    }

    /// Only where the path begins so.
    #[must_use]
    pub fn path(mut self, prefix: &str) -> Self {
        self.path_prefix = Some(prefix.to_owned());
        self
    }

    /// Only where the decoded query contains this.
    #[must_use]
    pub fn query(mut self, part: &str) -> Self {
        self.query_contains = Some(part.to_owned());
        self
    }

    /// Only where the request is for this incident or the answer would contain it.
    #[must_use]
    pub fn incident(mut self, incident_id: &str) -> Self {
        self.incident_id = Some(incident_id.to_owned());
        self
    }

    /// Only with `$expand`.
    #[must_use]
    pub fn with_expand(mut self) -> Self {
        self.expand = Some(true);
        self
    }

    /// Only without `$expand`.
    #[must_use]
    pub fn without_expand(mut self) -> Self {
        self.expand = Some(false);
        self
    }

    /// This many matching requests go well first.
    #[must_use]
    pub fn after(mut self, requests: u32) -> Self {
        self.after = requests;
        self
    }

    /// At most this many requests meet the fault.
    #[must_use]
    pub fn times(mut self, requests: u32) -> Self {
        self.times = Some(requests);
        self
    }

    /// Whether the fault meets a request, the incident aside.
    fn matches(&self, request: &Request, tenant_id: Option<&str>) -> bool {
        self.host.is_none_or(|host| host == request.host)
            && self.tenant_id.as_deref().is_none_or(|tenant| Some(tenant) == tenant_id)
            && self.method.as_deref().is_none_or(|method| method.eq_ignore_ascii_case(&request.method))
            && self.path_prefix.as_deref().is_none_or(|prefix| request.path.starts_with(prefix))
            && self.query_contains.as_deref().is_none_or(|part| request.decoded_query().contains(part))
            && self.expand.is_none_or(|expand| request.decoded_query().contains("$expand") == expand)
            && self.kind.applies_to(request)
    }

    /// Counts a match down; whether the fault strikes.
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

/// How a 429 says when to come back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RetryAfter {
    /// `Retry-After` in seconds.
    Seconds(u64),
    /// `Retry-After` as an HTTP date, this many seconds from now.
    Date(u64),
    /// Only in the body's text.
    Body(u64),
    /// Not at all.
    #[default]
    Absent,
}

/// What happens to a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum FaultKind {
    /// Answered with a status, before anything is done.
    Status {
        /// Status code.
        status: u16,
        /// Body; the host's own error body if not given.
        #[serde(default)]
        body: Option<String>,
        /// Further headers, which win.
        #[serde(default)]
        headers: Vec<(String, String)>,
    },
    /// 429.
    Throttle {
        /// How it says when to come back.
        retry_after: RetryAfter,
    },
    /// 502 with HTML.
    BadGateway,
    /// The connection is reset, before anything is done.
    Reset,
    /// The answer comes late. Nothing is said meanwhile.
    Hang {
        /// How late.
        millis: u64,
    },
    /// The answer takes its time, as answers do: evenly spread between two durations, and the same in each run.
    Latency {
        /// The shortest.
        least_millis: u64,
        /// The longest.
        most_millis: u64,
    },
    /// The body ends early, in a well-formed HTTP message.
    Truncate {
        /// After this many bytes; half of it if not given.
        #[serde(default)]
        at: Option<usize>,
    },
    /// The connection closes in the middle of the body.
    Cut,
    /// The body trickles.
    SlowBody {
        /// Bytes at a time.
        chunk: usize,
        /// Pause before each.
        millis: u64,
    },
    /// Status and headers are changed, the body stays (e.g. 206 with `Warning`).
    Rewrite {
        /// Status code.
        status: u16,
        /// Further headers, which win.
        #[serde(default)]
        headers: Vec<(String, String)>,
    },
    /// The `Date` header is off.
    DateSkew {
        /// Seconds ahead; negative: behind.
        seconds: i64,
    },
    /// A list answer's next link leads elsewhere.
    ForeignNextLink {
        /// Where.
        url: String,
    },
    /// A list answer's next link leads to the same answer.
    LoopingNextLink,
    /// A request with `$skip` or `$skiptoken` is refused: the token has expired.
    ExpiredSkiptoken,
    /// A list answer holds fewer rows than there are and does not say so.
    SilentCap {
        /// At most so many.
        rows: usize,
    },
    /// A list or single answer shows each incident as it was some versions ago.
    Stale {
        /// How many versions ago; younger incidents are missing.
        versions: usize,
    },
    /// A token (access or ID) names another tenant.
    WrongTid {
        /// Which.
        tid: String,
    },
    /// The access token is not a JWT. It works.
    OpaqueToken,
    /// `expires_in` and its like are strings, as the v1 endpoint has them.
    ExpiresInString,
    /// Lifetime of the access token.
    ExpiresIn {
        /// Seconds.
        seconds: i64,
    },
    /// The token has no `roles` although there are some.
    MissingRoles,
    /// Claims of a token (access or ID) are replaced; `null` removes one.
    Claims {
        /// Replacements.
        claims: serde_json::Map<String, serde_json::Value>,
    },
    /// The token endpoint, the sign-in or the consent ends with this AADSTS error.
    Aadsts {
        /// Number.
        code: u32,
    },
}

impl FaultKind {
    /// A status with the host's own error body.
    pub fn status(status: u16) -> Self {
        Self::Status { status, body: None, headers: Vec::new() }
    }

    /// Faults that only make sense for some requests do not count others.
    fn applies_to(&self, request: &Request) -> bool {
        match self {
            Self::WrongTid { .. }
            | Self::OpaqueToken
            | Self::ExpiresInString
            | Self::ExpiresIn { .. }
            | Self::MissingRoles
            | Self::Claims { .. } => request.is_token_request(),
            Self::Aadsts { .. } => request.host == Host::Entra && request.method == "POST",
            Self::ForeignNextLink { .. } | Self::LoopingNextLink | Self::SilentCap { .. } => request.is_incident_list(),
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
            | Self::DateSkew { .. } => true,
        }
    }

    /// Whether it stands in place of the answer.
    fn replaces_response(&self) -> bool {
        matches!(
            self,
            Self::Status { .. } | Self::Throttle { .. } | Self::BadGateway | Self::Reset | Self::ExpiredSkiptoken
        )
    }
}

/// All faults that are set.
#[derive(Debug, Default)]
pub(crate) struct Faults(pub(crate) Vec<Fault>);

impl Faults {
    /// What a request meets before it is answered: one that stands in place of the answer ends the list.
    pub(crate) fn before_handling(&mut self, request: &Request, tenant_id: Option<&str>) -> Vec<FaultKind> {
        let in_path = request.incident_in_path();
        self.take_matching(|fault| {
            fault.matches(request, tenant_id) && fault.incident_id.as_deref().is_none_or(|id| Some(id) == in_path)
        })
    }

    /// What an answer meets that contains these incidents.
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
