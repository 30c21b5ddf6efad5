//! Attempts: one browser's way through sign-in and consent, from the form's target to the result.
//!
//! The browser has a random secret in a cookie. Both states that go to Microsoft are hashes of it under different
//! prefixes, and so is the key of the item here: whether a return belongs to a browser is known before anything is asked.

use std::{fmt, str::FromStr};

use aws_lc_rs::{constant_time, digest, rand::SecureRandom};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize, Serializer};
use zeroize::Zeroizing;

use super::{Registry, invitations::Invitation, to_item};
use crate::{
    error::{Error, Result},
    random::random_bytes,
    tenant::TenantId,
    text::Secret,
};

/// How long an attempt may take at most.
const LONGEST: SignedDuration = SignedDuration::from_hours(24);

/// How long an attempt that was begun in time may go on after its invitation's expiry.
const GRACE: SignedDuration = SignedDuration::from_hours(1);

const SECRET_LENGTH: usize = 32;
const SORT_KEY: &str = "ATTEMPT";

/// What the browser keeps in its cookie: 32 random bytes, written as base64url in one way only.
#[derive(Clone, PartialEq, Eq)]
pub struct BrowserSecret(Zeroizing<[u8; SECRET_LENGTH]>);

/// The text is not what a cookie of ours holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotABrowserSecret;

/// Which of the two returns from Microsoft a state belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The sign-in.
    SignIn,
    /// The admin consent.
    Consent,
}

impl fmt::Debug for BrowserSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BrowserSecret(redacted)")
    }
}

impl FromStr for BrowserSecret {
    type Err = NotABrowserSecret;

    fn from_str(text: &str) -> Result<Self, NotABrowserSecret> {
        // The decoder refuses padding and stray bits, so that there is one text for each secret.
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).map(Zeroizing::new).map_err(|_| NotABrowserSecret)?;
        let bytes: [u8; SECRET_LENGTH] = bytes.as_slice().try_into().map_err(|_| NotABrowserSecret)?;
        Ok(Self(Zeroizing::new(bytes)))
    }
}

impl BrowserSecret {
    /// A new secret.
    ///
    /// # Errors
    /// [`Error::Internal`] when there is no randomness to be had.
    pub fn generate(random: &dyn SecureRandom) -> Result<Self> {
        Ok(Self(random_bytes(random)?))
    }

    /// The cookie's value.
    pub fn expose(&self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(self.0.as_slice())
    }

    /// What names the attempt in the table.
    pub fn attempt_id(&self) -> String {
        self.hash("attempt")
    }

    /// The state that goes to Microsoft with a step.
    pub fn state(&self, step: Step) -> String {
        match step {
            Step::SignIn => self.hash("sign-in"),
            Step::Consent => self.hash("consent"),
        }
    }

    /// Which step a state belongs to, if it is this browser's at all. Takes the same time for every wrong state.
    pub fn step_of(&self, state: &str) -> Option<Step> {
        let is = |step| constant_time::verify_slices_are_equal(self.state(step).as_bytes(), state.as_bytes()).is_ok();
        [Step::SignIn, Step::Consent].into_iter().find(|step| is(*step))
    }

    fn hash(&self, purpose: &str) -> String {
        let mut context = digest::Context::new(&digest::SHA256);
        context.update(b"mandate ");
        context.update(purpose.as_bytes());
        context.update(b"\0");
        context.update(self.0.as_slice());
        BASE64_URL_SAFE_NO_PAD.encode(context.finish())
    }
}

/// How far an attempt has come. Each step is taken once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "name", rename_all = "snake_case")]
pub enum Stage {
    /// The browser was sent to sign in.
    Begun,
    /// It came back, and the sign-in is being looked at.
    SigningIn,
    /// It is known who it is; the browser was sent to consent.
    SignedIn {
        /// The person's directory.
        tenant_id: TenantId,
        /// The person, as the directory names them.
        person: String,
        /// Whether the coming consent, or the person, is good for the tenant; else the operator has to decide.
        vouched_for: bool,
    },
    /// Consent came back; what follows from it may not be written yet.
    Consented {
        /// The tenant.
        tenant_id: TenantId,
        /// Who consented.
        person: String,
        /// As in [`Stage::SignedIn`].
        vouched_for: bool,
        /// When it came back. Microsecond resolution.
        at: Timestamp,
    },
    /// The tenant's own status tells how it stands.
    Settled {
        /// The tenant.
        tenant_id: TenantId,
    },
    /// It ended.
    Ended {
        /// Why.
        ending: ConsentRejection,
    },
}

/// Why an attempt ended without a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConsentRejection {
    /// Who signed in, or what consented, is not the tenant that was expected.
    WrongTenant,
    /// The tenant belongs to another customer.
    OtherCustomer,
    /// A personal account signed in.
    PersonalAccount,
    /// The sign-in could not be verified.
    NotVerified,
    /// The person's roles are not known to allow consent, and the tenant had consented before.
    NotVouchedFor,
    /// The invitation was used, revoked, or made before the tenant was offboarded.
    Closed,
}

impl ConsentRejection {
    /// The word of it, for the audit.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::WrongTenant => "wrong_tenant",
            Self::OtherCustomer => "other_customer",
            Self::PersonalAccount => "personal_account",
            Self::NotVerified => "not_verified",
            Self::NotVouchedFor => "not_vouched_for",
            Self::Closed => "invitation_closed",
        }
    }
}

/// One browser's way.
#[derive(Debug, Serialize, Deserialize)]
pub struct ConsentAttempt {
    /// [`BrowserSecret::attempt_id`].
    pub attempt_id: String,
    /// The invitation that was opened.
    pub invitation_id: String,
    /// The tenant that the invitation names.
    pub expected_tenant: Option<TenantId>,
    /// From when on it is over. The attribute has another name because `expires_at` is what DynamoDB deletes by.
    #[serde(rename = "valid_until")]
    pub expires_at: Timestamp,
    /// PKCE: what the authorization code is redeemed with.
    #[serde(serialize_with = "exposed")]
    pub code_verifier: Secret,
    /// What the ID token has to carry.
    #[serde(serialize_with = "exposed")]
    pub nonce: Secret,
    /// How far it has come.
    pub stage: Stage,
    /// Counts writes; each is on condition that nobody else wrote in between.
    pub revision: u64,
}

/// The table is the one place where these two secrets are written down.
fn exposed<S: Serializer>(secret: &Secret, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.serialize_str(secret.expose())
}

#[derive(Serialize)]
struct Stored<'a> {
    pk: String,
    sk: &'static str,
    /// Epoch seconds after which DynamoDB deletes the item.
    expires_at: i64,
    #[serde(flatten)]
    attempt: &'a ConsentAttempt,
}

impl ConsentAttempt {
    /// A new attempt of `browser` with this invitation, begun at `now`.
    ///
    /// # Errors
    /// [`Error::Internal`] when there is no randomness to be had.
    pub fn begin(
        browser: &BrowserSecret,
        invitation: &Invitation,
        random: &dyn SecureRandom,
        now: Timestamp,
    ) -> Result<Self> {
        let secret = || {
            let bytes = random_bytes::<SECRET_LENGTH>(random)?;
            Ok::<_, Error>(Secret::new(BASE64_URL_SAFE_NO_PAD.encode(bytes.as_slice())))
        };
        let after = |time: Timestamp, span| time.checked_add(span).unwrap_or(Timestamp::MAX);
        Ok(Self {
            attempt_id: browser.attempt_id(),
            invitation_id: invitation.invitation_id.clone(),
            expected_tenant: invitation.expected_tenant,
            expires_at: after(now, LONGEST).min(after(invitation.expires_at, GRACE)),
            code_verifier: secret()?,
            nonce: secret()?,
            stage: Stage::Begun,
            revision: 0,
        })
    }

    /// Whether its time is over. DynamoDB may take days to delete it.
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
    /// [`Error::Internal`] when its key is taken: the secret was not random then.
    pub async fn create_attempt(&self, attempt: &ConsentAttempt) -> Result<()> {
        let written = self.put_revised(to_item(&stored(attempt))?, None).await?;
        if written { Ok(()) } else { Err(Error::Internal("an attempt's key was taken".into())) }
    }

    /// An attempt, read consistently; its time may be over.
    pub async fn attempt(&self, attempt_id: &str) -> Result<Option<ConsentAttempt>> {
        self.get(&attempt_pk(attempt_id), SORT_KEY).await
    }

    /// Moves an attempt to a stage, on condition that nobody moved it since it was read. `false`: somebody did.
    pub async fn advance_attempt(&self, attempt: &mut ConsentAttempt, stage: Stage) -> Result<bool> {
        let (before, previous) = (attempt.revision, std::mem::replace(&mut attempt.stage, stage));
        attempt.revision = before + 1;
        let written = self.put_revised(to_item(&stored(attempt))?, Some(before)).await?;
        if !written {
            attempt.revision = before;
            attempt.stage = previous;
        }
        Ok(written)
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::rand::SystemRandom;
    use proptest::prelude::*;

    use super::*;
    use crate::registry::{from_item, invitations::InvitationToken};

    fn browser() -> BrowserSecret {
        BrowserSecret::generate(&SystemRandom::new()).unwrap()
    }

    fn attempt(valid_for: SignedDuration) -> ConsentAttempt {
        let random = SystemRandom::new();
        let token = InvitationToken::generate(&random).unwrap();
        let invitation = Invitation::new(&token, "Contoso".into(), None, now(), valid_for);
        ConsentAttempt::begin(&browser(), &invitation, &random, now()).unwrap()
    }

    fn now() -> Timestamp {
        "2026-11-22T10:00:00Z".parse().unwrap()
    }

    #[test]
    fn the_states_and_the_key_tell_nothing_of_each_other() {
        let browser = browser();
        let all = [browser.expose(), browser.attempt_id(), browser.state(Step::SignIn), browser.state(Step::Consent)];
        for (at, one) in all.iter().enumerate() {
            assert_eq!(one.len(), 43);
            assert!(all[at + 1..].iter().all(|other| other != one));
        }
    }

    #[test]
    fn a_state_belongs_to_one_step_of_one_browser() {
        let (browser, other) = (browser(), browser());
        for step in [Step::SignIn, Step::Consent] {
            assert_eq!(browser.step_of(&browser.state(step)), Some(step));
            assert_eq!(other.step_of(&browser.state(step)), None);
        }
        for wrong in ["", "x", &browser.attempt_id(), &browser.expose(), &format!("{}x", browser.state(Step::SignIn))] {
            assert_eq!(browser.step_of(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn a_cookie_is_read_in_one_form_only(text in "[A-Za-z0-9_=+/-]{40,46}") {
            if let Ok(secret) = text.parse::<BrowserSecret>() {
                prop_assert_eq!(secret.expose(), text);
            }
        }
    }

    #[test]
    fn an_attempt_ends_an_hour_after_its_invitation_or_after_a_day() {
        let soon = attempt(SignedDuration::from_mins(10));
        assert_eq!(soon.expires_at.to_string(), "2026-11-22T11:10:00Z");
        assert!(!soon.is_expired("2026-11-22T11:09:59Z".parse().unwrap()) && soon.is_expired(soon.expires_at));
        assert_eq!(attempt(SignedDuration::from_hours(168)).expires_at.to_string(), "2026-11-23T10:00:00Z");
    }

    #[test]
    fn an_attempt_comes_back_from_its_item_whole_and_shows_no_secret() {
        let mut attempt = attempt(SignedDuration::from_hours(1));
        attempt.stage = Stage::Consented {
            tenant_id: "11111111-2222-4333-8444-abcdefabcdef".parse().unwrap(),
            person: "a@b.example".into(),
            vouched_for: true,
            at: now(),
        };
        let item = to_item(&stored(&attempt)).unwrap();
        assert_eq!(item["expires_at"].as_n().unwrap(), &attempt.expires_at.as_second().to_string());
        let read: ConsentAttempt = from_item(item).unwrap();
        assert_eq!(read.stage, attempt.stage);
        assert_eq!(read.code_verifier.expose(), attempt.code_verifier.expose());
        assert_eq!(read.expires_at, attempt.expires_at);
        let shown = format!("{attempt:?}");
        assert!(!shown.contains(attempt.code_verifier.expose()) && !shown.contains(attempt.nonce.expose()));
    }
}
