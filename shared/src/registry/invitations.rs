//! The invitations: links that an operator hands to customers.
//!
//! A link holds an identifier and a secret. The table holds only the secret's SHA-256, so that whoever can read the table
//! cannot make a link. 256 random bits need no slow hash.

use std::{fmt, str::FromStr};

use aws_lc_rs::{constant_time, digest, rand::SecureRandom};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::{
    Page, Registry,
    listing::Order,
    table::{Item, Versioned, to_item},
};
use crate::{
    error::{Error, Result},
    random::{random_bytes, random_uuid},
    tenant::TenantId,
    text::hex,
};

const ID_LENGTH: usize = 16;
const SECRET_LENGTH: usize = 32;

/// The time for which an invitation stays in the listing after its expiry.
const EXPIRED_INVITATION_TTL: SignedDuration = SignedDuration::from_hours(90 * 24);

const LISTING: &str = "invitations";
const SORT_KEY: &str = "INVITATION";

/// The state of an invitation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum InvitationStatus {
    /// It can be used to onboard a tenant.
    Open,
    /// A tenant was onboarded by it.
    Used,
    /// The operator revoked it, or offboarded the only tenant that may use it.
    Revoked,
    /// It was not used before its expiry.
    Expired,
}

/// One invitation of one customer, as it is stored.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Invitation {
    /// The identifier, a random GUID. It is not secret.
    pub invitation_id: String,
    /// The customer's name, chosen by the operator.
    pub customer: String,
    /// The only tenant that may use it, if the operator named one.
    pub expected_tenant: Option<TenantId>,
    /// The time at which the operator made it. Microsecond resolution.
    pub created_at: Timestamp,
    /// The time from which it cannot be used. The attribute has another name because DynamoDB deletes items by
    /// `expires_at`.
    #[serde(rename = "valid_until")]
    pub expires_at: Timestamp,
    /// The time of the consent that used it.
    pub used_at: Option<Timestamp>,
    /// The tenant that the consent was for.
    pub used_by: Option<TenantId>,
    /// The time at which it was revoked.
    pub revoked_at: Option<Timestamp>,
    /// The SHA-256 of the link's secret, in lower-case hexadecimal.
    pub secret_hash: String,
    /// The number of writes. Each write has the condition that the stored number is the one that was read.
    pub revision: u64,
}

impl fmt::Debug for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invitation").field("invitation_id", &self.invitation_id).finish_non_exhaustive()
    }
}

impl Invitation {
    /// A new invitation whose link holds `token`. It can be used for `valid_for` from `now` on.
    pub fn new(
        token: &InvitationToken,
        customer: String,
        expected_tenant: Option<TenantId>,
        now: Timestamp,
        valid_for: SignedDuration,
    ) -> Self {
        let end = now.checked_add(valid_for).unwrap_or(Timestamp::MAX);
        Self {
            invitation_id: token.invitation_id(),
            customer,
            expected_tenant,
            created_at: Timestamp::from_microsecond(now.as_microsecond()).unwrap_or(now),
            expires_at: Timestamp::from_second(end.as_second()).unwrap_or(end),
            used_at: None,
            used_by: None,
            revoked_at: None,
            secret_hash: token.secret_hash(),
            revision: 0,
        }
    }

    /// The state at `now`. Use and revocation count before expiry.
    pub fn status(&self, now: Timestamp) -> InvitationStatus {
        if self.used_at.is_some() {
            InvitationStatus::Used
        } else if self.revoked_at.is_some() {
            InvitationStatus::Revoked
        } else if now >= self.expires_at {
            InvitationStatus::Expired
        } else {
            InvitationStatus::Open
        }
    }

    /// Revokes it at `now`, unless it is revoked or used already.
    pub fn revoke(&mut self, now: Timestamp) {
        if self.used_at.is_none() {
            self.revoked_at.get_or_insert(now);
        }
    }
}

/// The content of a link: the path segment `{invitation}`, base64url of 16 bytes of identifier and 32 of secret.
#[derive(Clone)]
pub struct InvitationToken {
    id: Uuid,
    secret: Zeroizing<[u8; SECRET_LENGTH]>,
}

/// The error for a text that is not the segment of an invitation's link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAnInvitationToken;

impl fmt::Debug for InvitationToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InvitationToken").field("id", &self.id).finish_non_exhaustive()
    }
}

impl FromStr for InvitationToken {
    type Err = NotAnInvitationToken;

    fn from_str(text: &str) -> Result<Self, NotAnInvitationToken> {
        let mut bytes = Zeroizing::new([0; ID_LENGTH + SECRET_LENGTH]);
        // 48 bytes fill 64 characters exactly, so that each token has one text.
        let length =
            BASE64_URL_SAFE_NO_PAD.decode_slice(text, bytes.as_mut_slice()).map_err(|_| NotAnInvitationToken)?;
        if length != bytes.len() {
            return Err(NotAnInvitationToken);
        }
        let (id, secret) = bytes.split_at(ID_LENGTH);
        let id = Uuid::from_slice(id).map_err(|_| NotAnInvitationToken)?;
        let secret = secret.try_into().map_err(|_| NotAnInvitationToken)?;
        Ok(Self { id, secret: Zeroizing::new(secret) })
    }
}

impl InvitationToken {
    /// A new random token.
    ///
    /// # Errors
    /// [`Error::Internal`] if the source of randomness fails.
    pub fn generate(random: &dyn SecureRandom) -> Result<Self> {
        Ok(Self { id: random_uuid(random)?, secret: random_bytes(random)? })
    }

    /// The identifier of the invitation that the link claims to belong to.
    pub fn invitation_id(&self) -> String {
        self.id.to_string()
    }

    /// Returns true if the link is that of `invitation`. Compares in constant time.
    pub fn matches(&self, invitation: &Invitation) -> bool {
        let hash = self.secret_hash();
        invitation.invitation_id == self.invitation_id()
            && constant_time::verify_slices_are_equal(hash.as_bytes(), invitation.secret_hash.as_bytes()).is_ok()
    }

    /// The path segment. Whoever has it can use the invitation, so it must appear only in the link.
    pub fn expose(&self) -> String {
        let bytes = Zeroizing::new([self.id.as_bytes().as_slice(), self.secret.as_slice()].concat());
        BASE64_URL_SAFE_NO_PAD.encode(bytes.as_slice())
    }

    fn secret_hash(&self) -> String {
        hex(digest::digest(&digest::SHA256, self.secret.as_slice()).as_ref())
    }
}

/// The stored form of an invitation, with its keys.
#[derive(Serialize)]
struct Stored<'a> {
    pk: String,
    sk: &'static str,
    listing: &'static str,
    listed_at: String,
    /// The epoch seconds after which DynamoDB deletes the item.
    expires_at: i64,
    #[serde(flatten)]
    invitation: &'a Invitation,
}

impl Versioned for Invitation {
    const NAME: &'static str = "invitation";

    fn revision(&mut self) -> &mut u64 {
        &mut self.revision
    }

    fn item(&self) -> Result<Item> {
        let kept_until = self.expires_at.checked_add(EXPIRED_INVITATION_TTL).unwrap_or(Timestamp::MAX);
        to_item(&Stored {
            pk: invitation_pk(&self.invitation_id),
            sk: SORT_KEY,
            listing: LISTING,
            // The fraction has a fixed length, so that the order of texts is the order of times.
            listed_at: format!("{:.6}#{}", self.created_at, self.invitation_id),
            expires_at: kept_until.as_second(),
            invitation: self,
        })
    }
}

fn invitation_pk(invitation_id: &str) -> String {
    format!("INVITATION#{invitation_id}")
}

/// Returns true for a text in the form of [`InvitationToken::invitation_id`].
fn is_canonical(invitation_id: &str) -> bool {
    Uuid::try_parse(invitation_id).is_ok_and(|id| id.to_string() == invitation_id)
}

impl Registry {
    /// Writes a new invitation.
    ///
    /// # Errors
    /// [`Error::Conflict`] when its identifier exists.
    pub async fn create_invitation(&self, invitation: &Invitation) -> Result<()> {
        self.create(invitation).await
    }

    /// Reads an invitation with a consistent read. For a malformed identifier it returns `None` without a read.
    pub async fn invitation(&self, invitation_id: &str) -> Result<Option<Invitation>> {
        if !is_canonical(invitation_id) {
            return Ok(None);
        }
        self.get(&invitation_pk(invitation_id), SORT_KEY).await
    }

    /// Reads an invitation, changes it and writes it, again if another writer came in between. Returns it before and
    /// after. Nothing is written if `change` fails or changes nothing.
    ///
    /// # Errors
    /// [`Error::NotFound`] for an unknown invitation, [`Error::Conflict`] when other writers were faster eight times, and
    /// the errors of `change`.
    pub async fn change_invitation(
        &self,
        invitation_id: &str,
        change: impl FnMut(&mut Invitation) -> Result<()>,
    ) -> Result<(Invitation, Invitation)> {
        if !is_canonical(invitation_id) {
            return Err(Error::NotFound);
        }
        self.change(&invitation_pk(invitation_id), SORT_KEY, change).await
    }

    /// Reads a page of invitations, the newest first.
    pub async fn invitations(&self, limit: u32, next: Option<&str>) -> Result<Page<Invitation>> {
        self.list(LISTING, Order::Descending, limit, next, |_: &Invitation| true).await
    }

    /// Revokes the open invitations that only this tenant may use, and returns their identifiers. It finds them by an
    /// index that is eventually consistent and may miss the newest. A consent by one that is missed is refused all the
    /// same, because the times are compared.
    pub async fn revoke_open_invitations_of(&self, tenant: &TenantId, now: Timestamp) -> Result<Vec<String>> {
        let mut revoked = Vec::new();
        let mut next = None;
        loop {
            let page = self.invitations(100, next.as_deref()).await?;
            let bound = page.items.iter().filter(|invitation| invitation.expected_tenant.as_ref() == Some(tenant));
            for invitation in bound.filter(|invitation| invitation.status(now) == InvitationStatus::Open) {
                let revoke = |invitation: &mut Invitation| {
                    invitation.revoke(now);
                    Ok(())
                };
                let (_, after) = self.change_invitation(&invitation.invitation_id, revoke).await?;
                if after.status(now) == InvitationStatus::Revoked {
                    revoked.push(after.invitation_id);
                }
            }
            next = page.next;
            if next.is_none() {
                return Ok(revoked);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::rand::SystemRandom;

    use super::*;

    const HOUR: SignedDuration = SignedDuration::from_hours(1);

    fn now() -> Timestamp {
        "2026-11-22T10:00:00.5Z".parse().unwrap()
    }

    fn invitation() -> (InvitationToken, Invitation) {
        let token = InvitationToken::generate(&SystemRandom::new()).unwrap();
        let invitation = Invitation::new(&token, "Contoso".into(), None, now(), HOUR);
        (token, invitation)
    }

    #[test]
    fn link_matches_its_own_invitation_only() {
        let (token, ours) = invitation();
        let (other_token, other) = invitation();
        let read: InvitationToken = token.expose().parse().unwrap();
        assert!(read.matches(&ours));
        assert!(!read.matches(&other) && !other_token.matches(&ours));
        let forged = Invitation { invitation_id: ours.invitation_id.clone(), ..other };
        assert!(!read.matches(&forged), "the same identifier with another secret");
    }

    #[test]
    fn only_64_characters_of_base64url_are_a_token() {
        let text = invitation().0.expose();
        assert_eq!(text.len(), 64);
        let padded = format!("{text}====");
        let spaced = format!("{}\n", &text[..63]);
        let plus = format!("+{}", &text[1..]);
        for wrong in ["", &text[..63], &text[..60], &padded, &spaced, &plus, &format!("{text}AAAA")] {
            assert!(wrong.parse::<InvitationToken>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn stored_and_debug_forms_do_not_show_the_secret() {
        let (token, invitation) = invitation();
        let secret = crate::text::hex(token.secret.as_ref());
        let shown = format!("{token:?} {invitation:?} {}", serde_json::to_string(&invitation).unwrap());
        assert!(!shown.contains(&secret) && !shown.contains(&token.expose()));
        assert!(!shown.contains(&token.expose()[22..]));
    }

    #[test]
    fn use_and_revocation_count_before_expiry() {
        let (_, mut invitation) = invitation();
        let later = now() + HOUR;
        assert_eq!(invitation.expires_at.to_string(), "2026-11-22T11:00:00Z");
        assert_eq!(invitation.status(now()), InvitationStatus::Open);
        assert_eq!(invitation.status(invitation.expires_at), InvitationStatus::Expired);
        invitation.revoke(now());
        invitation.revoke(later);
        assert_eq!((invitation.status(later), invitation.revoked_at), (InvitationStatus::Revoked, Some(now())));
        invitation.used_at = Some(now());
        assert_eq!(invitation.status(later), InvitationStatus::Used);
    }

    #[test]
    fn expired_invitation_stays_listed_and_reads_back() {
        let (_, invitation) = invitation();
        let item = invitation.item().unwrap();
        let deleted_at: i64 = item["expires_at"].as_n().unwrap().parse().unwrap();
        assert_eq!(deleted_at - invitation.expires_at.as_second(), 90 * 24 * 3600);
        assert!(item["listed_at"].as_s().unwrap().starts_with("2026-11-22T10:00:00.500000Z#"));
        assert_eq!(crate::registry::table::from_item::<Invitation>(item).unwrap(), invitation);
    }

    #[test]
    fn malformed_identifiers_are_recognised() {
        let id = invitation().1.invitation_id;
        assert!(is_canonical(&id));
        let upper = id.to_uppercase();
        for wrong in ["", "x", &upper, &format!("{{{id}}}"), &id.replace('-', "")] {
            assert!(!is_canonical(wrong), "{wrong}");
        }
    }
}
