//! One incident, two surfaces, and the sync that loses none.

pub mod question;
pub mod read;
pub mod record;
pub mod rows;
pub mod sync;
pub mod version;

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Where incidents are read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Surface {
    /// Microsoft Graph security (`/v1.0/security/incidents`).
    Graph,
    /// The Defender API (`/api/incidents`), whose retirement is announced for 2027-02-01 at least in part.
    Defender,
}

impl Surface {
    /// Both, the preferred one first.
    pub const ALL: [Self; 2] = [Self::Graph, Self::Defender];

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

impl fmt::Display for Surface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Surface {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "graph" => Ok(Self::Graph),
            "defender" => Ok(Self::Defender),
            _ => Err(()),
        }
    }
}

/// `INCIDENT_API`: which surface a deployment uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SurfaceChoice {
    /// Graph by default; Defender where the tenant's roles allow only that.
    Auto,
    /// One surface for all tenants.
    Only(Surface),
}

impl SurfaceChoice {
    /// The surfaces to try, the preferred one first.
    pub fn candidates(self) -> &'static [Surface] {
        match self {
            Self::Auto => &Surface::ALL,
            Self::Only(Surface::Graph) => &[Surface::Graph],
            Self::Only(Surface::Defender) => &[Surface::Defender],
        }
    }

    /// The surface that consent is asked for.
    pub fn preferred(self) -> Surface {
        match self {
            Self::Auto => Surface::Graph,
            Self::Only(surface) => surface,
        }
    }
}

impl FromStr for SurfaceChoice {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if text == "auto" { Ok(Self::Auto) } else { text.parse().map(Self::Only) }
    }
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(|digit| char::from_digit(digit.into(), 16))
        .collect()
}
