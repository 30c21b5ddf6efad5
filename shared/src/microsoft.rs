//! Microsoft as a deployment sees it: the incident APIs, the clouds, and the hosts and audiences that belong together.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{http::Endpoint, tenant::TenantId};

/// Where incidents are read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IncidentApi {
    /// Microsoft Graph security (`/v1.0/security/incidents`).
    Graph,
    /// The Defender API (`/api/incidents`), whose retirement is announced for 2027-02-01 at least in part.
    Defender,
}

impl IncidentApi {
    /// Both, the preferred one first.
    pub const ALL: [Self; 2] = [Self::Graph, Self::Defender];

    /// The most rows that one answer may hold: documented for Defender; in practice for Graph, whose documents name none.
    pub fn largest_page(self) -> u32 {
        match self {
            Self::Graph => 50,
            Self::Defender => 100,
        }
    }

    /// Where the collection of incidents lies.
    pub fn incidents_path(self) -> &'static str {
        match self {
            Self::Graph => "/v1.0/security/incidents",
            Self::Defender => "/api/incidents",
        }
    }

    /// The name of the member that holds the time of last update, for `$filter`.
    pub fn last_update_member(self) -> &'static str {
        match self {
            Self::Graph => "lastUpdateDateTime",
            Self::Defender => "lastUpdateTime",
        }
    }

    /// The name of the member that holds the time of creation, for `$filter`.
    pub fn created_member(self) -> &'static str {
        match self {
            Self::Graph => "createdDateTime",
            Self::Defender => "createdTime",
        }
    }

    /// The word of the interface.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Graph => "graph",
            Self::Defender => "defender",
        }
    }

    /// The app role that reads incidents here. A role that writes reads, too.
    pub fn read_role(self) -> &'static str {
        match self {
            Self::Graph => "SecurityIncident.Read.All",
            Self::Defender => "Incident.Read.All",
        }
    }

    /// The app role that changes incidents here.
    pub fn write_role(self) -> &'static str {
        match self {
            Self::Graph => "SecurityIncident.ReadWrite.All",
            Self::Defender => "Incident.ReadWrite.All",
        }
    }

    /// The app role that hunts here.
    pub fn hunting_role(self) -> &'static str {
        match self {
            Self::Graph => "ThreatHunting.Read.All",
            Self::Defender => "AdvancedHunting.Read.All",
        }
    }

    /// Whether these roles suffice to read incidents here.
    pub fn readable_with<R: AsRef<str>>(self, roles: &[R]) -> bool {
        roles.iter().any(|role| [self.read_role(), self.write_role()].contains(&role.as_ref()))
    }
}

impl fmt::Display for IncidentApi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The text names no incident API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAnIncidentApi;

impl FromStr for IncidentApi {
    type Err = NotAnIncidentApi;

    fn from_str(text: &str) -> Result<Self, NotAnIncidentApi> {
        match text {
            "graph" => Ok(Self::Graph),
            "defender" => Ok(Self::Defender),
            _ => Err(NotAnIncidentApi),
        }
    }
}

/// `INCIDENT_API`: which surface a deployment uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IncidentApiSetting {
    /// Graph by default; Defender where the tenant's roles allow only that.
    Auto,
    /// One surface for all tenants.
    Only(IncidentApi),
}

impl IncidentApiSetting {
    /// The surfaces to try, the preferred one first.
    pub fn candidates(self) -> &'static [IncidentApi] {
        match self {
            Self::Auto => &IncidentApi::ALL,
            Self::Only(IncidentApi::Graph) => &[IncidentApi::Graph],
            Self::Only(IncidentApi::Defender) => &[IncidentApi::Defender],
        }
    }

    /// The surface that consent is asked for.
    pub fn preferred(self) -> IncidentApi {
        match self {
            Self::Auto => IncidentApi::Graph,
            Self::Only(api) => api,
        }
    }
}

impl FromStr for IncidentApiSetting {
    type Err = NotAnIncidentApi;

    fn from_str(text: &str) -> Result<Self, NotAnIncidentApi> {
        if text == "auto" { Ok(Self::Auto) } else { text.parse().map(Self::Only) }
    }
}

/// One cloud. Hosts and audiences are only to be had from here, so that a mix cannot be expressed.
///
/// Sources: Microsoft Graph "national cloud deployments" and Defender XDR "usgov" for the hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cloud {
    /// The worldwide cloud.
    Commercial,
    /// US Government Community Cloud: signs in at the commercial login host.
    Gcc,
    /// GCC High.
    GccHigh,
    /// US Department of Defense.
    Dod,
}

/// The hosts that are spoken to: a cloud's own, or what the configuration puts in their place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoints {
    /// The login host.
    pub authority: Endpoint,
    /// Microsoft Graph.
    pub graph: Endpoint,
    /// The Defender API.
    pub defender: Endpoint,
}

impl Endpoints {
    /// The host of a surface.
    pub fn of(&self, api: IncidentApi) -> &Endpoint {
        match api {
            IncidentApi::Graph => &self.graph,
            IncidentApi::Defender => &self.defender,
        }
    }
}

/// The text names no cloud.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotACloud;

impl FromStr for Cloud {
    type Err = NotACloud;

    fn from_str(text: &str) -> Result<Self, NotACloud> {
        match text {
            "commercial" => Ok(Self::Commercial),
            "gcc" => Ok(Self::Gcc),
            "gcc-high" => Ok(Self::GccHigh),
            "dod" => Ok(Self::Dod),
            _ => Err(NotACloud),
        }
    }
}

impl Cloud {
    /// The cloud's own hosts.
    pub fn endpoints(self) -> Endpoints {
        let (graph, defender) = match self {
            Self::Commercial => ("graph.microsoft.com", "api.security.microsoft.com"),
            Self::Gcc => ("graph.microsoft.com", "api-gcc.security.microsoft.us"),
            Self::GccHigh => ("graph.microsoft.us", "api-gov.security.microsoft.us"),
            Self::Dod => ("dod-graph.microsoft.us", "api-gov.security.microsoft.us"),
        };
        Endpoints {
            authority: Endpoint::https(self.login_host()),
            graph: Endpoint::https(graph),
            defender: Endpoint::https(defender),
        }
    }

    fn login_host(self) -> &'static str {
        match self {
            Self::Commercial | Self::Gcc => "login.microsoftonline.com",
            Self::GccHigh | Self::Dod => "login.microsoftonline.us",
        }
    }

    /// The identifier of a surface as a resource: what tokens are asked for (`{resource}/.default`) and carry as `aud`.
    ///
    /// Unverified: Microsoft documents no resource for the Defender hosts of the government clouds; the host itself is
    /// the likely one.
    pub fn resource(self, api: IncidentApi) -> &'static str {
        match (api, self) {
            (IncidentApi::Graph, Self::Commercial | Self::Gcc) => "https://graph.microsoft.com",
            (IncidentApi::Graph, Self::GccHigh) => "https://graph.microsoft.us",
            (IncidentApi::Graph, Self::Dod) => "https://dod-graph.microsoft.us",
            (IncidentApi::Defender, Self::Commercial) => "https://api.security.microsoft.com",
            (IncidentApi::Defender, Self::Gcc) => "https://api-gcc.security.microsoft.us",
            (IncidentApi::Defender, Self::GccHigh | Self::Dod) => "https://api-gov.security.microsoft.us",
        }
    }

    /// The application id of a surface, which a token may carry as `aud` in the place of [`Cloud::resource`].
    pub fn resource_application_id(self, api: IncidentApi) -> &'static str {
        match api {
            IncidentApi::Graph => "00000003-0000-0000-c000-000000000000",
            IncidentApi::Defender => "8ee8fdad-f234-4243-8f3b-15c294843740",
        }
    }

    /// The audience of tokens of another issuer that are exchanged here (workload identity federation).
    pub fn federation_audience(self) -> &'static str {
        match self {
            Self::Commercial | Self::Gcc => "api://AzureADTokenExchange",
            Self::GccHigh | Self::Dod => "api://AzureADTokenExchangeUSGov",
        }
    }

    /// The issuer of a tenant's ID tokens (v2.0).
    pub fn id_token_issuer(self, tenant: &TenantId) -> String {
        format!("https://{}/{tenant}/v2.0", self.login_host())
    }

    /// The token endpoint as assertions name it (`aud`), whatever host is really spoken to.
    pub fn token_endpoint(self, authority_path: &str) -> String {
        format!("https://{}/{authority_path}/oauth2/v2.0/token", self.login_host())
    }

    /// The portal where an administrator of the customer removes our service principal.
    pub fn portal(self) -> &'static str {
        match self {
            Self::Commercial | Self::Gcc => "https://entra.microsoft.com",
            Self::GccHigh | Self::Dod => "https://entra.microsoft.us",
        }
    }
}

/// What all functions need that call Microsoft.
#[derive(Clone, Debug)]
pub struct Microsoft {
    /// Name or ARN of the app credential in Secrets Manager.
    pub app_credential_secret_id: String,
    /// The cloud: decides audiences and issuers, whatever hosts are used.
    pub cloud: Cloud,
    /// The hosts that are spoken to.
    pub endpoints: Endpoints,
}
