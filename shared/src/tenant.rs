//! A tenant: its identifier, and why it may not be usable.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The directory of personal Microsoft accounts: never a customer.
pub const PERSONAL_ACCOUNTS: TenantId = TenantId(Uuid::from_u128(0x9188_040d_6c67_4c5b_b112_36a3_04b6_6dad));

/// The identifier of an Entra tenant: a GUID, written in lower case with hyphens. Nothing else parses: no alias, no
/// domain, no other letter case, no braces.
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
    /// From a GUID as Microsoft may send it, in any letter case.
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

/// Why a tenant is not usable, as operators read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Our service principal or its consent is missing in the tenant.
    ConsentMissing,
    /// Consent was given, but not to the app role that is needed.
    RoleMissing,
    /// An administrator of the customer switched our service principal off.
    DisabledByCustomer,
    /// The tenant has no service principal of the API: no licence, or no Defender.
    ResourceAbsent,
    /// A policy of the customer (Conditional Access, tenant restrictions) refuses us.
    BlockedByPolicy,
    /// Entra knows no such tenant.
    TenantNotFound,
    /// The tenant lives in another cloud.
    WrongCloud,
    /// Our own credential is refused.
    CredentialRejected,
    /// Microsoft asks for a pause.
    Throttled,
    /// Microsoft does not answer as it should.
    Unavailable,
    /// The operator of this deployment decided so, or has to decide.
    Operator,
}

impl Reason {
    /// The word of the interface.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ConsentMissing => "consent_missing",
            Self::RoleMissing => "role_missing",
            Self::DisabledByCustomer => "disabled_by_customer",
            Self::ResourceAbsent => "resource_absent",
            Self::BlockedByPolicy => "blocked_by_policy",
            Self::TenantNotFound => "tenant_not_found",
            Self::WrongCloud => "wrong_cloud",
            Self::CredentialRejected => "credential_rejected",
            Self::Throttled => "throttled",
            Self::Unavailable => "unavailable",
            Self::Operator => "operator",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
