//! The calls to Microsoft, and the steps at which they fail.

use std::fmt;

/// The calls to Microsoft. `Display` is the plain name that callers and logs read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Reads a list of incidents.
    ListIncidents,
    /// Reads one incident by its id.
    GetIncident,
    /// Changes members of an incident.
    UpdateIncident,
    /// Adds a comment to an incident.
    AddComment,
    /// Runs an advanced hunting query.
    Hunt,
    /// Requests a token at Entra's token endpoint.
    RequestToken,
    /// Reads an OpenID Connect discovery document.
    ReadDiscovery,
    /// Reads the directory's signing keys (JWKS).
    ReadKeys,
    /// Reads our app registration.
    GetApplication,
    /// Adds a client secret to our app registration.
    AddPassword,
    /// Removes a client secret from our app registration.
    RemovePassword,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ListIncidents => "the request for the list of incidents",
            Self::GetIncident => "the request for an incident",
            Self::UpdateIncident => "the change of an incident",
            Self::AddComment => "the comment on an incident",
            Self::Hunt => "the hunting query",
            Self::RequestToken => "the token request",
            Self::ReadDiscovery => "the request for the discovery document",
            Self::ReadKeys => "the request for the signing keys",
            Self::GetApplication => "the request for the app registration",
            Self::AddPassword => "the request for a new client secret",
            Self::RemovePassword => "the removal of a client secret",
        })
    }
}

/// The step at which a call failed without a complete response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// No connection was opened: DNS, routing, a closed port, or no reaction in time.
    Connect,
    /// The TLS handshake failed, for example because of the certificate.
    Tls,
    /// The time ran out. The connection may not have been open yet.
    Timeout,
    /// The connection closed before the head of the response.
    Closed,
    /// The connection broke inside the body of the response.
    Body,
}
