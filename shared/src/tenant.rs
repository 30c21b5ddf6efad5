//! The identifier of a tenant, and the reasons why a tenant is not usable.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::text::UnknownWord;

/// The directory of personal Microsoft accounts, which is never a customer.
pub const PERSONAL_ACCOUNTS: TenantId = TenantId(Uuid::from_u128(0x9188_040d_6c67_4c5b_b112_36a3_04b6_6dad));

/// The identifier of an Entra tenant: a GUID in lower case with hyphens. Aliases, domains, upper case and braces do not
/// parse.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TenantId(Uuid);

/// The text is not a canonical tenant identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotATenantId;

impl fmt::Display for NotATenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a lower-case GUID")
    }
}

impl std::error::Error for NotATenantId {}

impl TenantId {
    /// Parses a GUID in any letter case, as Microsoft may send it.
    pub fn from_guid(text: &str) -> Result<Self, NotATenantId> {
        text.to_ascii_lowercase().parse()
    }
}

impl FromStr for TenantId {
    type Err = NotATenantId;

    fn from_str(text: &str) -> Result<Self, NotATenantId> {
        let parsed = Uuid::try_parse(text).map_err(|_| NotATenantId)?;
        let mut buffer = Uuid::encode_buffer();
        let canonical: &str = parsed.hyphenated().encode_lower(&mut buffer);
        if canonical == text && !parsed.is_nil() { Ok(Self(parsed)) } else { Err(NotATenantId) }
    }
}

impl TryFrom<String> for TenantId {
    type Error = NotATenantId;

    fn try_from(text: String) -> Result<Self, NotATenantId> {
        text.parse()
    }
}

impl From<TenantId> for String {
    fn from(tenant: TenantId) -> Self {
        tenant.to_string()
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.hyphenated())
    }
}

impl fmt::Debug for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The reason why a tenant is not usable, as operators read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "&'static str")]
pub enum Reason {
    /// Our service principal or its consent is missing in the tenant.
    ConsentMissing,
    /// The customer consented, but not to the app role that is needed.
    RoleMissing,
    /// An administrator of the customer disabled our service principal.
    DisabledByCustomer,
    /// The tenant has no service principal of the API, which means no licence or no Defender.
    ResourceAbsent,
    /// A policy of the customer refuses us (Conditional Access, tenant restrictions).
    BlockedByPolicy,
    /// Entra knows no such tenant.
    TenantNotFound,
    /// Entra has blocked the tenant because nobody used it for long.
    TenantInactive,
    /// The tenant belongs to another cloud.
    WrongCloud,
    /// Entra refuses our own credential.
    CredentialRejected,
    /// Microsoft throttles our calls.
    Throttled,
    /// Microsoft is not reachable or gives no usable response.
    Unavailable,
    /// The operator of this deployment paused the tenant or has to approve it.
    Operator,
    /// A reason of a newer release. Only that release and the operator end it.
    Unknown(UnknownWord),
}

impl Reason {
    /// All reasons that this release knows.
    pub const ALL: [Self; 12] = [
        Self::ConsentMissing,
        Self::RoleMissing,
        Self::DisabledByCustomer,
        Self::ResourceAbsent,
        Self::BlockedByPolicy,
        Self::TenantNotFound,
        Self::TenantInactive,
        Self::WrongCloud,
        Self::CredentialRejected,
        Self::Throttled,
        Self::Unavailable,
        Self::Operator,
    ];

    /// Returns true for a reason that calls to Microsoft do not end, whatever it responds.
    pub fn outlasts_success(self) -> bool {
        matches!(self, Self::Operator | Self::Unknown(_))
    }

    /// The reason's name in responses, log lines and the registry.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ConsentMissing => "consent_missing",
            Self::RoleMissing => "role_missing",
            Self::DisabledByCustomer => "disabled_by_customer",
            Self::ResourceAbsent => "resource_absent",
            Self::BlockedByPolicy => "blocked_by_policy",
            Self::TenantNotFound => "tenant_not_found",
            Self::TenantInactive => "tenant_inactive",
            Self::WrongCloud => "wrong_cloud",
            Self::CredentialRejected => "credential_rejected",
            Self::Throttled => "throttled",
            Self::Unavailable => "unavailable",
            Self::Operator => "operator",
            Self::Unknown(word) => word.as_str(),
        }
    }
}

impl From<String> for Reason {
    fn from(text: String) -> Self {
        Self::ALL.into_iter().find(|known| known.as_str() == text).unwrap_or(Self::Unknown(UnknownWord::of(&text)))
    }
}

impl From<Reason> for &'static str {
    fn from(reason: Reason) -> Self {
        reason.as_str()
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn word_of_a_newer_release_is_kept_and_shown() {
        let read = |word: &str| serde_json::from_value::<Reason>(json!(word)).unwrap();
        for known in Reason::ALL {
            assert_eq!(read(known.as_str()), known);
        }
        let unknown = read("licence_expired");
        assert_eq!((unknown.as_str(), json!(unknown)), ("licence_expired", json!("licence_expired")));
        assert!(unknown == read("licence_expired") && unknown != read("other") && unknown.outlasts_success());
        for odd in ["", "Consent Missing", "<b>", &"a".repeat(41)] {
            assert_eq!(read(odd).as_str(), "unknown", "{odd}");
        }
    }

    #[test]
    fn only_the_canonical_form_is_a_tenant() {
        let canonical = "11111111-2222-4333-8444-abcdefabcdef";
        assert_eq!(canonical.parse::<TenantId>().unwrap().to_string(), canonical);
        for other in [
            "11111111-2222-4333-8444-ABCDEFABCDEF",
            "{11111111-2222-4333-8444-abcdefabcdef}",
            "11111111222243338444abcdefabcdef",
            "urn:uuid:11111111-2222-4333-8444-abcdefabcdef",
            "00000000-0000-0000-0000-000000000000",
            "organizations",
            "common",
            "contoso.example",
            "",
        ] {
            assert_eq!(other.parse::<TenantId>(), Err(NotATenantId), "{other}");
        }
    }
}
