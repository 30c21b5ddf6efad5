//! Consent attempts: each is one browser's way through sign-in and consent, from the form's target to the result.
//!
//! Its key is derived from a secret in the browser's cookie.

use std::fmt;

use aws_lc_rs::rand::SecureRandom;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize, Serializer};

use super::{
    Registry, Write,
    carry_over::carry_over,
    invitations::Invitation,
    table::{Item, from_item, to_item},
};
use crate::{
    error::{Error, Result},
    random::random_bytes,
    tenant::TenantId,
    text::Secret,
};

/// The longest time from an attempt's start to its end.
const ATTEMPT_LIFETIME: SignedDuration = SignedDuration::from_hours(24);

/// The time for which an attempt that started in time may continue after its invitation's expiry.
const GRACE_AFTER_EXPIRY: SignedDuration = SignedDuration::from_hours(1);

const SECRET_LENGTH: usize = 32;
const SORT_KEY: &str = "ATTEMPT";

/// The progress of an attempt. Each stage is entered once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum Stage {
    /// The browser was sent to the sign-in.
    Begun,
    /// The browser returned from the sign-in, whose authorization code is being redeemed.
    SigningIn,
    /// The ID token is valid, and the browser was sent to the admin consent.
    SignedIn {
        /// The person who signed in.
        signed_in: SignedIn,
    },
    /// Microsoft reported the consent, which may not be applied to the tenant yet.
    Consented {
        /// The person who signed in before.
        signed_in: SignedIn,
        /// The time of the consent. Microsecond resolution.
        at: Timestamp,
    },
    /// The consent is applied. The tenant's own status has the rest.
    Settled {
        /// The tenant that the consent is applied to.
        tenant_id: TenantId,
        /// The record of the tenant that it is applied to, by [`Tenant::bound_by`](super::tenants::Tenant::bound_by). A
        /// later record may be another customer's.
        bound_by: Option<String>,
    },
    /// The attempt ended without a tenant.
    Ended {
        /// The reason for the end.
        rejection: ConsentRejection,
        /// True if Microsoft had reported a consent before. It stays at Microsoft.
        #[serde(default)]
        consented: bool,
    },
    /// A stage of a newer release, which alone goes on with it.
    #[serde(other)]
    Unknown,
}

/// The person whom the ID token of an attempt names, with what the token proves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedIn {
    /// The directory that the person belongs to.
    pub tenant_id: TenantId,
    /// The identifier of the person's object in that directory.
    pub object_id: String,
    /// The name that the directory shows. It is not unique.
    pub name: Option<String>,
    /// True if the signed `wids` hold a role that may consent for the API asked for. `false` may only mean that the token
    /// has no `wids`.
    pub role_proven: bool,
}

impl SignedIn {
    /// The name in the directory, or else the object id.
    pub fn person(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.object_id)
    }
}

/// The reason for which an attempt ended without a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConsentRejection {
    /// The tenant of the sign-in, or of the consent, is not the expected one.
    WrongTenant,
    /// The tenant belongs to another customer.
    OtherCustomer,
    /// The sign-in was made with a personal account.
    PersonalAccount,
    /// The authorization code or the ID token is not valid.
    NotVerified,
    /// The tenant is paused, the operator did not name it, and the ID token proves no role that may consent.
    RoleNotProven,
    /// The invitation was used, revoked, or made before the tenant was offboarded or paused by the operator.
    Closed,
    /// A reason of a newer release.
    #[serde(other)]
    Unknown,
}

impl ConsentRejection {
    /// The word in audit records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WrongTenant => "wrong_tenant",
            Self::OtherCustomer => "other_customer",
            Self::PersonalAccount => "personal_account",
            Self::NotVerified => "not_verified",
            Self::RoleNotProven => "role_not_proven",
            Self::Closed => "invitation_closed",
            Self::Unknown => "unknown",
        }
    }
}

/// One browser's way through sign-in and consent, as it is stored.
#[derive(Debug, Serialize, Deserialize)]
pub struct ConsentAttempt {
    /// The key, derived from the secret in the browser's cookie.
    pub attempt_id: String,
    /// The invitation that was opened.
    pub invitation_id: String,
    /// The only tenant that may use the invitation, if the operator named one.
    pub expected_tenant: Option<TenantId>,
    /// The end of the attempt. The attribute has another name because DynamoDB deletes items by `expires_at`.
    #[serde(rename = "valid_until")]
    pub expires_at: Timestamp,
    /// The PKCE code verifier that the authorization code is redeemed with.
    #[serde(serialize_with = "exposed")]
    pub code_verifier: Secret,
    /// The `nonce` that the ID token must carry.
    #[serde(serialize_with = "exposed")]
    pub nonce: Secret,
    /// The progress so far.
    pub stage: Stage,
    /// The number of writes. Each write has the condition that the stored number is the one that was read.
    pub revision: u64,
    /// The item as it was read. Empty in a new attempt.
    #[serde(skip)]
    stored: StoredItem,
}

/// The attributes of a stored attempt, which hold its secrets.
#[derive(Default)]
struct StoredItem(Item);

impl fmt::Debug for StoredItem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StoredItem(redacted)")
    }
}

/// Serialises a secret. The table is the only place where these two are stored.
fn exposed<S: Serializer>(secret: &Secret, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str(secret.expose())
}

#[derive(Serialize)]
struct Stored<'a> {
    pk: String,
    sk: &'static str,
    /// The epoch seconds after which DynamoDB deletes the item.
    expires_at: i64,
    #[serde(flatten)]
    attempt: &'a ConsentAttempt,
}

impl ConsentAttempt {
    /// A new attempt with `invitation`, started at `now` by the browser whose secret `attempt_id` is derived from.
    ///
    /// # Errors
    /// [`Error::Internal`] if the source of randomness fails.
    pub fn new(attempt_id: String, invitation: &Invitation, random: &dyn SecureRandom, now: Timestamp) -> Result<Self> {
        let secret = || {
            let bytes = random_bytes::<SECRET_LENGTH>(random)?;
            Ok::<_, Error>(Secret::new(BASE64_URL_SAFE_NO_PAD.encode(bytes.as_slice())))
        };
        let after = |time: Timestamp, span| time.checked_add(span).unwrap_or(Timestamp::MAX);
        Ok(Self {
            attempt_id,
            invitation_id: invitation.invitation_id.clone(),
            expected_tenant: invitation.expected_tenant,
            expires_at: after(now, ATTEMPT_LIFETIME).min(after(invitation.expires_at, GRACE_AFTER_EXPIRY)),
            code_verifier: secret()?,
            nonce: secret()?,
            stage: Stage::Begun,
            revision: 0,
            stored: StoredItem::default(),
        })
    }

    /// Returns true from the end of the attempt on. DynamoDB may take days to delete the item.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        now >= self.expires_at
    }
}

fn attempt_pk(attempt_id: &str) -> String {
    format!("ATTEMPT#{attempt_id}")
}

fn stored(attempt: &ConsentAttempt) -> Stored<'_> {
    Stored { pk: attempt_pk(&attempt.attempt_id), sk: SORT_KEY, expires_at: attempt.expires_at.as_second(), attempt }
}

impl Registry {
    /// Writes a new attempt.
    ///
    /// # Errors
    /// [`Error::Internal`] when its key exists: then the browser's secret was not random.
    pub async fn create_attempt(&self, attempt: &ConsentAttempt) -> Result<()> {
        match self.put_revision(to_item(&stored(attempt))?, None).await? {
            Write::Done => Ok(()),
            Write::Conflict => Err(Error::Internal("the key of an attempt exists already".into())),
        }
    }

    /// Reads an attempt with a consistent read. It may be expired.
    pub async fn attempt(&self, attempt_id: &str) -> Result<Option<ConsentAttempt>> {
        let Some(item) = self.get_item(&attempt_pk(attempt_id), SORT_KEY).await? else { return Ok(None) };
        Ok(Some(ConsentAttempt { stored: StoredItem(item.clone()), ..from_item(item)? }))
    }

    /// Moves an attempt to `stage`. [`Write::Conflict`]: another request has moved it since it was read, and `attempt` is
    /// unchanged.
    pub async fn advance_attempt(&self, attempt: &mut ConsentAttempt, stage: Stage) -> Result<Write> {
        let read = to_item(&stored(attempt))?;
        let (before, previous) = (attempt.revision, std::mem::replace(&mut attempt.stage, stage));
        attempt.revision = before + 1;
        let base = if attempt.stored.0.is_empty() { read.clone() } else { attempt.stored.0.clone() };
        let item = carry_over(base, &read, to_item(&stored(attempt))?);
        let write = self.put_revision(item.clone(), Some(before)).await?;
        if write == Write::Conflict {
            attempt.revision = before;
            attempt.stage = previous;
        } else {
            attempt.stored = StoredItem(item);
        }
        Ok(write)
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::rand::SystemRandom;

    use super::*;
    use crate::registry::{invitations::InvitationToken, table::from_item};

    fn attempt(valid_for: SignedDuration) -> ConsentAttempt {
        let random = SystemRandom::new();
        let token = InvitationToken::generate(&random).unwrap();
        let invitation = Invitation::new(&token, "Contoso".into(), None, now(), valid_for);
        ConsentAttempt::new("attempt".into(), &invitation, &random, now()).unwrap()
    }

    fn now() -> Timestamp {
        "2026-11-22T10:00:00Z".parse().unwrap()
    }

    #[test]
    fn attempt_ends_after_a_day_or_an_hour_after_its_invitation() {
        let soon = attempt(SignedDuration::from_mins(10));
        assert_eq!(soon.expires_at.to_string(), "2026-11-22T11:10:00Z");
        assert!(!soon.is_expired("2026-11-22T11:09:59Z".parse().unwrap()) && soon.is_expired(soon.expires_at));
        assert_eq!(attempt(SignedDuration::from_hours(168)).expires_at.to_string(), "2026-11-23T10:00:00Z");
    }

    #[test]
    fn stored_attempt_reads_back_and_debug_shows_no_secret() {
        let mut attempt = attempt(SignedDuration::from_hours(1));
        attempt.stage = Stage::Consented {
            signed_in: SignedIn {
                tenant_id: "11111111-2222-4333-8444-abcdefabcdef".parse().unwrap(),
                object_id: "o".into(),
                name: Some("a@b.example".into()),
                role_proven: true,
            },
            at: now(),
        };
        let item = to_item(&stored(&attempt)).unwrap();
        assert_eq!(item["expires_at"].as_n().unwrap(), &attempt.expires_at.as_second().to_string());
        let read = ConsentAttempt { stored: StoredItem(item.clone()), ..from_item(item).unwrap() };
        assert_eq!(read.stage, attempt.stage);
        assert_eq!(read.code_verifier.expose(), attempt.code_verifier.expose());
        assert_eq!(read.expires_at, attempt.expires_at);
        let shown = format!("{attempt:?} {read:?}");
        assert!(!shown.contains(attempt.code_verifier.expose()) && !shown.contains(attempt.nonce.expose()));
    }
}
