//! Invitations: what an operator hands to a customer, and what comes back as a link.
//!
//! The link holds an identifier and a secret. The table holds only the secret's SHA-256, so that nobody who can read
//! the table can make a link. 256 random bits need no slow hash.

use std::{fmt, str::FromStr};

use aws_lc_rs::{constant_time, digest, rand::SecureRandom};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use zeroize::Zeroizing;

use super::{Item, Page, Registry, Versioned, to_item};
use crate::{
    error::{Error, Result},
    random::{random_bytes, random_uuid},
    tenant::TenantId,
    text::hex,
};

const ID_LENGTH: usize = 16;
const SECRET_LENGTH: usize = 32;

/// How long after its expiry an invitation can still be listed.
const LISTED_FOR: SignedDuration = SignedDuration::from_hours(90 * 24);

const LISTING: &str = "invitations";
const SORT_KEY: &str = "INVITATION";

/// How an invitation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum InvitationStatus {
    /// It can be used.
    Open,
    /// A tenant was onboarded by it.
    Used,
    /// An operator withdrew it, or offboarded the tenant that it was for.
    Revoked,
    /// Its time is over.
    Expired,
}

/// One invitation of one customer.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Invitation {
    /// A GUID of its own; not secret.
    pub invitation_id: String,
    /// The customer's name, as the operator calls it.
    pub customer: String,
    /// The only tenant that may use it, where the operator named one.
    pub expected_tenant: Option<TenantId>,
    /// When it was made. Microsecond resolution.
    pub created_at: Timestamp,
    /// From when on it cannot be used. The attribute has another name because `expires_at` is what DynamoDB deletes by.
    #[serde(rename = "valid_until")]
    pub expires_at: Timestamp,
    /// When a tenant was onboarded by it.
    pub used_at: Option<Timestamp>,
    /// That tenant.
    pub used_by: Option<TenantId>,
    /// When it was withdrawn.
    pub revoked_at: Option<Timestamp>,
    /// SHA-256 of the link's secret, in lower-case hexadecimal.
    pub secret_hash: String,
    /// Counts writes; each is on condition that nobody else wrote in between.
    pub revision: u64,
}

impl fmt::Debug for Invitation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Invitation").field("invitation_id", &self.invitation_id).finish_non_exhaustive()
    }
}

impl Invitation {
    /// A new invitation that `token` opens, for `valid_for` from `now` on.
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

    /// How it stands at `now`. What happened goes before the mere passing of time.
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

    /// Withdraws it at `now`, unless that was done before or it is used up.
    pub fn revoke(&mut self, now: Timestamp) {
        if self.used_at.is_none() {
            self.revoked_at.get_or_insert(now);
        }
    }
}

/// What the link holds: the path segment `{invitation}`, base64url of 16 bytes of identifier and 32 of secret.
#[derive(Clone)]
pub struct InvitationToken {
    id: Uuid,
    secret: Zeroizing<[u8; SECRET_LENGTH]>,
}

/// The text is not the segment of an invitation's link.
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
        // 48 bytes fill their 64 characters, so that there is one text for each token.
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
    /// A new token.
    ///
    /// # Errors
    /// [`Error::Internal`] when there is no randomness to be had.
    pub fn generate(random: &dyn SecureRandom) -> Result<Self> {
        Ok(Self { id: random_uuid(random)?, secret: random_bytes(random)? })
    }

    /// The identifier of the invitation that it claims to open.
    pub fn invitation_id(&self) -> String {
        self.id.to_string()
    }

    /// Whether it opens `invitation`; takes the same time for every wrong secret.
    pub fn matches(&self, invitation: &Invitation) -> bool {
        let hash = self.secret_hash();
        invitation.invitation_id == self.invitation_id()
            && constant_time::verify_slices_are_equal(hash.as_bytes(), invitation.secret_hash.as_bytes()).is_ok()
    }

    /// The path segment. Whoever has it can use the invitation: it belongs in the link and nowhere else.
    pub fn expose(&self) -> String {
        let bytes = Zeroizing::new([self.id.as_bytes().as_slice(), self.secret.as_slice()].concat());
        BASE64_URL_SAFE_NO_PAD.encode(bytes.as_slice())
    }

    fn secret_hash(&self) -> String {
        hex(digest::digest(&digest::SHA256, self.secret.as_slice()).as_ref())
    }
}

/// The item: the invitation with its keys.
#[derive(Serialize)]
struct Stored<'a> {
    pk: String,
    sk: &'static str,
    listing: &'static str,
    listed_at: String,
    /// Epoch seconds after which DynamoDB deletes the item.
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
        let kept_until = self.expires_at.checked_add(LISTED_FOR).unwrap_or(Timestamp::MAX);
        to_item(&Stored {
            pk: invitation_pk(&self.invitation_id),
            sk: SORT_KEY,
            listing: LISTING,
            // A fraction of fixed length: only then is the order of texts the order of times.
            listed_at: format!("{:.6}#{}", self.created_at, self.invitation_id),
            expires_at: kept_until.as_second(),
            invitation: self,
        })
    }
}

fn invitation_pk(invitation_id: &str) -> String {
    format!("INVITATION#{invitation_id}")
}

/// Whether this can be an identifier that [`InvitationToken::generate`] made.
fn is_canonical(invitation_id: &str) -> bool {
    Uuid::try_parse(invitation_id).is_ok_and(|id| id.to_string() == invitation_id)
}

impl Registry {
    /// Writes a new invitation.
    ///
    /// # Errors
    /// [`Error::Conflict`] when its identifier is taken.
    pub async fn create_invitation(&self, invitation: &Invitation) -> Result<()> {
        self.create(invitation).await
    }

    /// An invitation, read consistently. A malformed identifier is that of none, and nothing is asked then.
    pub async fn invitation(&self, invitation_id: &str) -> Result<Option<Invitation>> {
        if !is_canonical(invitation_id) {
            return Ok(None);
        }
        self.get(&invitation_pk(invitation_id), SORT_KEY).await
    }

    /// Reads an invitation, changes it and writes it, again and again until nobody else wrote in between. Returns it
    /// before and after. `change` may refuse with an error; nothing is written then, nor when it changes nothing.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such invitation.
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

    /// Invitations, the newest first.
    pub async fn invitations(&self, limit: u32, next: Option<&str>) -> Result<Page<Invitation>> {
        self.list(LISTING, true, limit, next, |_: &Invitation| true).await
    }

    /// Withdraws the open invitations that only this tenant may use; tells which. The index that they are found by may
    /// lag behind by moments: whoever brings an offboarded tenant back compares the times, too.
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
    fn a_link_opens_its_own_invitation_and_no_other() {
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
    fn what_is_written_anywhere_else_does_not_tell_the_secret() {
        let (token, invitation) = invitation();
        let secret = crate::text::hex(token.secret.as_ref());
        let shown = format!("{token:?} {invitation:?} {}", serde_json::to_string(&invitation).unwrap());
        assert!(!shown.contains(&secret) && !shown.contains(&token.expose()));
        assert!(!shown.contains(&token.expose()[22..]));
    }

    #[test]
    fn what_happened_goes_before_the_passing_of_time() {
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
    fn an_invitation_outlives_its_expiry_in_the_listing_and_comes_back_whole() {
        let (_, invitation) = invitation();
        let item = invitation.item().unwrap();
        let deleted_at: i64 = item["expires_at"].as_n().unwrap().parse().unwrap();
        assert_eq!(deleted_at - invitation.expires_at.as_second(), 90 * 24 * 3600);
        assert!(item["listed_at"].as_s().unwrap().starts_with("2026-11-22T10:00:00.500000Z#"));
        assert_eq!(super::super::from_item::<Invitation>(item).unwrap(), invitation);
    }

    #[test]
    fn malformed_identifiers_are_told_without_a_look() {
        let id = invitation().1.invitation_id;
        assert!(is_canonical(&id));
        let upper = id.to_uppercase();
        for wrong in ["", "x", &upper, &format!("{{{id}}}"), &id.replace('-', "")] {
            assert!(!is_canonical(wrong), "{wrong}");
        }
    }
}
