//! App registrations, in their home tenant.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::resource::Resource;
use crate::clock::guid;

/// An app registration in its home tenant.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct App {
    /// Application (client) ID, a lower-case GUID.
    pub client_id: String,
    /// Name that the consent page shows.
    pub display_name: String,
    /// The tenant that holds the registration.
    pub home_tenant_id: String,
    /// Valid client secrets, for two years from registration.
    pub client_secrets: Vec<String>,
    /// Registered redirect URIs, compared exactly.
    pub redirect_uris: Vec<String>,
    /// Registered certificates in DER (in JSON: base64).
    #[serde(with = "base64_list")]
    pub certificates: Vec<Vec<u8>>,
    /// Federated identity credentials: identity providers whose tokens authenticate the app.
    pub federated_credentials: Vec<FederatedCredential>,
    /// App roles that the registration requests; the resource follows from the role's name.
    pub requested_roles: Vec<String>,
    /// ID tokens contain `wids` (`groupMembershipClaims` is `DirectoryRole`).
    pub wids: bool,
    /// Only the home tenant may use the app (`AzureADMyOrg`).
    pub single_tenant: bool,
    /// Personal Microsoft accounts may sign in at `common`.
    pub personal_accounts: bool,
    /// Client IDs of the apps that own this one, for `Application.ReadWrite.OwnedBy`.
    pub owners: Vec<String>,
}

/// Another identity provider whose tokens authenticate the app.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FederatedCredential {
    /// The token's `iss`, compared exactly.
    pub issuer: String,
    /// The token's `sub`, compared exactly.
    pub subject: String,
    /// The token's `aud`, compared exactly.
    pub audience: String,
    /// The issuer's JWKS. The simulator does not fetch it.
    pub jwks: Value,
}

/// One client secret of an app.
#[derive(Clone, Debug)]
pub(crate) struct Password {
    pub(crate) key_id: String,
    pub(crate) secret: String,
    pub(crate) display_name: Option<String>,
    pub(crate) start: Timestamp,
    pub(crate) end: Timestamp,
    /// Time from which Entra accepts the secret: a new one takes a while to spread.
    pub(crate) usable_from: Timestamp,
}

/// An app registration with the properties that the directory adds.
#[derive(Clone, Debug)]
pub(crate) struct AppRecord {
    pub(crate) app: App,
    pub(crate) object_id: String,
    pub(crate) created: Timestamp,
    pub(crate) passwords: Vec<Password>,
    /// Properties set through Graph that have no meaning here.
    pub(crate) other_properties: Map<String, Value>,
}

impl AppRecord {
    pub(crate) fn new(app: App, now: Timestamp) -> Self {
        let end = years_after(now, 2);
        let passwords = app
            .client_secrets
            .iter()
            .map(|secret| Password {
                key_id: guid(),
                secret: secret.clone(),
                display_name: None,
                start: now,
                end,
                usable_from: now,
            })
            .collect();
        Self { app, object_id: guid(), created: now, passwords, other_properties: Map::new() }
    }

    /// The roles of one resource that the registration requests.
    pub(crate) fn requested_roles(&self, resource: Resource) -> BTreeSet<String> {
        self.app.requested_roles.iter().filter(|role| Resource::of_role(role) == Some(resource)).cloned().collect()
    }
}

pub(crate) fn years_after(at: Timestamp, years: i64) -> Timestamp {
    at.checked_add(SignedDuration::from_hours(years * 8766)).unwrap_or(at)
}

mod base64_list {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(items: &[Vec<u8>], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(items.iter().map(|item| STANDARD.encode(item)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Vec<u8>>, D::Error> {
        let items = Vec::<String>::deserialize(deserializer)?;
        items.iter().map(|item| STANDARD.decode(item).map_err(D::Error::custom)).collect()
    }
}
