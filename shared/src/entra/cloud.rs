//! The clouds of Microsoft: login host, API hosts, audiences and issuers of each belong together.

use std::str::FromStr;

use crate::{entra::TenantId, http::Endpoint, incidents::Surface};

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
    pub fn of(&self, surface: Surface) -> &Endpoint {
        match surface {
            Surface::Graph => &self.graph,
            Surface::Defender => &self.defender,
        }
    }
}

impl FromStr for Cloud {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "commercial" => Ok(Self::Commercial),
            "gcc" => Ok(Self::Gcc),
            "gcc-high" => Ok(Self::GccHigh),
            "dod" => Ok(Self::Dod),
            _ => Err(()),
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
    pub fn resource(self, surface: Surface) -> &'static str {
        match (surface, self) {
            (Surface::Graph, Self::Commercial | Self::Gcc) => "https://graph.microsoft.com",
            (Surface::Graph, Self::GccHigh) => "https://graph.microsoft.us",
            (Surface::Graph, Self::Dod) => "https://dod-graph.microsoft.us",
            (Surface::Defender, Self::Commercial) => "https://api.security.microsoft.com",
            (Surface::Defender, Self::Gcc) => "https://api-gcc.security.microsoft.us",
            (Surface::Defender, Self::GccHigh | Self::Dod) => "https://api-gov.security.microsoft.us",
        }
    }

    /// The application id of a surface, which a token may carry as `aud` in the place of [`Cloud::resource`].
    pub fn resource_application_id(self, surface: Surface) -> &'static str {
        match surface {
            Surface::Graph => "00000003-0000-0000-c000-000000000000",
            Surface::Defender => "8ee8fdad-f234-4243-8f3b-15c294843740",
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
