//! The incident APIs and clouds of Microsoft, with the hosts and audiences that belong together.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{http::Endpoint, tenant::TenantId};

/// An API of Microsoft that lists incidents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IncidentApi {
    /// Microsoft Graph security (`/v1.0/security/incidents`).
    Graph,
    /// The Defender API (`/api/incidents`), of which at least a part retires on 2027-02-01.
    Defender,
}

impl IncidentApi {
    /// Both APIs, the preferred one first.
    pub const ALL: [Self; 2] = [Self::Graph, Self::Defender];

    /// The most incidents in one response. Documented for Defender; observed for Graph, whose documents name no limit.
    pub fn largest_page(self) -> u32 {
        match self {
            Self::Graph => 50,
            Self::Defender => 100,
        }
    }

    /// The path of the collection of incidents.
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

    /// The API's name in requests, configuration and log lines.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Graph => "graph",
            Self::Defender => "defender",
        }
    }

    /// The app role that allows reading incidents. [`Self::write_role`] allows it, too.
    pub fn read_role(self) -> &'static str {
        match self {
            Self::Graph => "SecurityIncident.Read.All",
            Self::Defender => "Incident.Read.All",
        }
    }

    /// The app role that allows changing incidents.
    pub fn write_role(self) -> &'static str {
        match self {
            Self::Graph => "SecurityIncident.ReadWrite.All",
            Self::Defender => "Incident.ReadWrite.All",
        }
    }

    /// The app role that allows advanced hunting.
    pub fn hunting_role(self) -> &'static str {
        match self {
            Self::Graph => "ThreatHunting.Read.All",
            Self::Defender => "AdvancedHunting.Read.All",
        }
    }

    /// True if these app roles allow reading incidents.
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

/// The setting `INCIDENT_API` of a deployment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IncidentApiSetting {
    /// Graph, or Defender for a tenant whose roles allow only that.
    Auto,
    /// One API for all tenants.
    Only(IncidentApi),
}

impl IncidentApiSetting {
    /// The APIs to try, the preferred one first.
    pub fn candidates(self) -> &'static [IncidentApi] {
        match self {
            Self::Auto => &IncidentApi::ALL,
            Self::Only(IncidentApi::Graph) => &[IncidentApi::Graph],
            Self::Only(IncidentApi::Defender) => &[IncidentApi::Defender],
        }
    }

    /// The API that admin consent is requested for.
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

/// A cloud of Microsoft. Hosts and audiences come only from here, so that those of two clouds cannot be mixed.
///
/// Sources: Microsoft Graph "national cloud deployments" and Defender XDR "usgov" for the hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cloud {
    /// The worldwide commercial cloud.
    Commercial,
    /// US Government Community Cloud, which uses the commercial login host.
    Gcc,
    /// US Government Community Cloud High.
    GccHigh,
    /// The cloud of the US Department of Defense.
    Dod,
}

/// The hosts that requests go to: a cloud's own, or the ones that the configuration puts in their place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoints {
    /// The login host, for tokens, sign-in and consent.
    pub authority: Endpoint,
    /// The host of Microsoft Graph.
    pub graph: Endpoint,
    /// The host of the Defender API.
    pub defender: Endpoint,
}

impl Endpoints {
    /// The host of an incident API.
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
    /// The hosts that Microsoft documents for this cloud.
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

    /// The resource identifier of an API. Token requests name it in `scope` (`{resource}/.default`), tokens in `aud`.
    ///
    /// Unverified: Microsoft documents no resource for the Defender hosts of the government clouds. The host itself is
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

    /// The application id of an API. A token may have it as `aud` in place of [`Cloud::resource`].
    pub fn resource_application_id(self, api: IncidentApi) -> &'static str {
        match api {
            IncidentApi::Graph => "00000003-0000-0000-c000-000000000000",
            IncidentApi::Defender => "8ee8fdad-f234-4243-8f3b-15c294843740",
        }
    }

    /// The audience that Entra expects in a web identity token (workload identity federation).
    pub fn federation_audience(self) -> &'static str {
        match self {
            Self::Commercial | Self::Gcc => "api://AzureADTokenExchange",
            Self::GccHigh | Self::Dod => "api://AzureADTokenExchangeUSGov",
        }
    }

    /// The issuer (`iss`) of a tenant's v2.0 ID tokens.
    pub fn id_token_issuer(self, tenant: &TenantId) -> String {
        format!("https://{}/{tenant}/v2.0", self.login_host())
    }

    /// The token endpoint as client assertions name it (`aud`), even if requests go to another host.
    pub fn token_endpoint(self, authority_path: &str) -> String {
        format!("https://{}/{authority_path}/oauth2/v2.0/token", self.login_host())
    }

    /// The portal in which an administrator of the customer can remove our service principal.
    pub fn portal(self) -> &'static str {
        match self {
            Self::Commercial | Self::Gcc => "https://entra.microsoft.com",
            Self::GccHigh | Self::Dod => "https://entra.microsoft.us",
        }
    }
}

/// The configuration that all functions share that call Microsoft.
#[derive(Clone, Debug)]
pub struct Microsoft {
    /// Name or ARN of the app credential's secret in Secrets Manager.
    pub app_credential_secret_id: String,
    /// The cloud, which decides audiences and issuers.
    pub cloud: Cloud,
    /// The hosts that requests go to.
    pub endpoints: Endpoints,
    /// The partner's own tenant, where Entra's response to the app credential is evidence about the credential.
    pub home_tenant: Option<TenantId>,
    /// The name of this function, which stands for its role where the role is the credential.
    pub function_name: Option<String>,
}
