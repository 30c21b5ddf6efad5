//! The APIs that issue app roles, and the directory roles that may consent to them.

use serde::{Deserialize, Serialize};

/// The tenant that all personal Microsoft accounts belong to.
pub const PERSONAL_ACCOUNTS: &str = "9188040d-6c67-4c5b-b112-36a304b66dad";
/// Directory role template: may consent to anything.
pub const GLOBAL_ADMINISTRATOR: &str = "62e90394-69f5-4237-9190-012177145e10";
/// Directory role template: may consent to anything.
pub const PRIVILEGED_ROLE_ADMINISTRATOR: &str = "e8611ab8-c189-46e8-94e1-60213ab1f814";
/// Directory role template: may consent to application permissions of APIs other than Graph.
pub const APPLICATION_ADMINISTRATOR: &str = "9b895d92-2cd3-44c7-9d02-a6ac2d5ea5c3";
/// Directory role template: may consent to application permissions of APIs other than Graph.
pub const CLOUD_APPLICATION_ADMINISTRATOR: &str = "158c047a-c907-4556-b7ef-446551a6b5f7";

/// An application permission that a resource publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppRole {
    /// GUID by which registrations request it.
    pub id: &'static str,
    /// Name in the `roles` claim of tokens.
    pub value: &'static str,
}

/// An API that issues app roles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resource {
    /// Microsoft Graph, the API of `SecurityIncident.Read.All`.
    Graph,
    /// Microsoft Threat Protection: the Defender XDR API.
    Defender,
}

impl Resource {
    /// Both resources, Graph first.
    pub const ALL: [Self; 2] = [Self::Graph, Self::Defender];

    /// Application ID of the API.
    pub fn app_id(self) -> &'static str {
        match self {
            Self::Graph => "00000003-0000-0000-c000-000000000000",
            Self::Defender => "8ee8fdad-f234-4243-8f3b-15c294843740",
        }
    }

    /// The audience (`aud`) of its access tokens.
    pub fn audience(self) -> &'static str {
        match self {
            Self::Graph => "https://graph.microsoft.com",
            Self::Defender => "https://api.security.microsoft.com",
        }
    }

    /// Name of its service principal in the directory.
    pub fn display_name(self) -> &'static str {
        match self {
            Self::Graph => "Microsoft Graph",
            Self::Defender => "Microsoft Threat Protection",
        }
    }

    /// The app roles that it publishes.
    pub fn app_roles(self) -> &'static [AppRole] {
        match self {
            Self::Graph => &[
                AppRole { id: "45cc0394-e837-488b-a098-1918f48d186c", value: "SecurityIncident.Read.All" },
                AppRole { id: "34bf0e97-1971-4929-b999-9e2442d941d7", value: "SecurityIncident.ReadWrite.All" },
                AppRole { id: "472e4a4d-bb4a-4026-98d1-0b0d74cb74a5", value: "SecurityAlert.Read.All" },
                AppRole { id: "dd98c7f5-2d42-42d3-a0e4-633161547251", value: "ThreatHunting.Read.All" },
                AppRole { id: "18a4783c-866b-4cc7-a460-3d5e5662c884", value: "Application.ReadWrite.OwnedBy" },
                AppRole { id: "1bfefb4e-e0b5-418b-a88f-73c46d2cc8e9", value: "Application.ReadWrite.All" },
                AppRole { id: "06b708a9-e830-4db3-a914-8e69da51d44f", value: "AppRoleAssignment.ReadWrite.All" },
            ],
            Self::Defender => &[
                AppRole { id: "a9790345-4595-42e4-971a-ccdc79f19b7c", value: "Incident.Read.All" },
                AppRole { id: "8d90f441-09cf-4fdc-ab45-e874fa3a28e8", value: "Incident.ReadWrite.All" },
                AppRole { id: "7734e8e5-8dde-42fc-b5ae-6eafea078693", value: "AdvancedHunting.Read.All" },
                AppRole { id: "a7deff90-e2f5-4e4e-83a3-2c74e7002e28", value: "CustomDetections.ReadWrite.All" },
            ],
        }
    }

    /// The resource that publishes a role.
    pub fn of_role(role: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|resource| resource.app_roles().iter().any(|app_role| app_role.value == role))
    }

    /// The resource named by a resource identifier (URI or application ID), with at most one slash at its end.
    pub(crate) fn of_identifier(identifier: &str) -> Option<Self> {
        let identifier = identifier.strip_suffix('/').unwrap_or(identifier);
        Self::ALL.into_iter().find(|resource| identifier == resource.audience() || identifier == resource.app_id())
    }

    /// Directory roles that may grant this resource's application permissions.
    pub(crate) fn consenting_roles(self) -> &'static [&'static str] {
        match self {
            Self::Graph => &[GLOBAL_ADMINISTRATOR, PRIVILEGED_ROLE_ADMINISTRATOR],
            Self::Defender => &[
                GLOBAL_ADMINISTRATOR,
                PRIVILEGED_ROLE_ADMINISTRATOR,
                APPLICATION_ADMINISTRATOR,
                CLOUD_APPLICATION_ADMINISTRATOR,
            ],
        }
    }
}
