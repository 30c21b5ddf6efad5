//! An access token in our hands.

use aws_lc_rs::digest;
use http::HeaderValue;
use jiff::{SignedDuration, Timestamp};

use super::claims::{ClaimMismatch, Claims, Expected};
use crate::text::Secret;

/// The least time before its end that a token is renewed.
const AHEAD: SignedDuration = SignedDuration::from_mins(5);

/// A token with less time left than this is no longer used: it may be over before it arrives.
const LAST_MOMENTS: SignedDuration = SignedDuration::from_secs(60);

/// An app-only access token of one tenant for one surface, as checked as it can be.
#[derive(Debug)]
pub struct AccessToken {
    value: Secret,
    authorization: HeaderValue,
    claims: Option<Claims>,
    issued_at: Timestamp,
    refresh_at: Timestamp,
    dead_at: Timestamp,
    expires_at: Timestamp,
}

/// Why an answer is no token for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenError {
    /// It is not what was asked for.
    ClaimMismatch(ClaimMismatch),
    /// It cannot be put into a header, or is over already.
    Malformed,
}

impl AccessToken {
    /// Checks and keeps what Entra sent. `asked_at` is when the request went out, from which lifetimes count.
    pub(super) fn validate(
        value: Secret,
        lifetime: SignedDuration,
        refresh_in: Option<SignedDuration>,
        expected: &Expected<'_>,
        asked_at: Timestamp,
    ) -> Result<Self, TokenError> {
        let claims = Claims::decode_unverified(value.expose());
        if let Some(claims) = &claims {
            claims.check(expected, asked_at).map_err(TokenError::ClaimMismatch)?;
        }
        let mut authorization =
            HeaderValue::from_str(&format!("Bearer {}", value.expose())).map_err(|_| TokenError::Malformed)?;
        authorization.set_sensitive(true);
        if value.expose().is_empty() || lifetime <= SignedDuration::ZERO {
            return Err(TokenError::Malformed);
        }
        let ahead = AHEAD.max(lifetime / 10).min(lifetime / 2);
        let refresh_in = refresh_in.filter(|time| *time > SignedDuration::ZERO && *time < lifetime);
        Ok(Self {
            value,
            authorization,
            claims,
            issued_at: asked_at,
            refresh_at: asked_at + refresh_in.unwrap_or(lifetime - ahead),
            dead_at: asked_at + (lifetime - LAST_MOMENTS.min(lifetime / 10)),
            expires_at: asked_at + lifetime,
        })
    }

    /// The value of the `Authorization` header, marked as sensitive.
    pub fn authorization(&self) -> HeaderValue {
        self.authorization.clone()
    }

    /// The app roles in it; `None` for a token that cannot be looked into.
    pub fn roles(&self) -> Option<&[String]> {
        self.claims.as_ref().map(|claims| claims.roles.as_slice())
    }

    /// When it ends.
    pub fn expires_at(&self) -> Timestamp {
        self.expires_at
    }

    /// The token itself, for whoever it is handed out to.
    pub fn expose(&self) -> &str {
        self.value.expose()
    }

    /// Whether it names a service principal in the tenant (`oid`). One that does not is no proof of consent. A token that
    /// cannot be looked into counts as having one.
    pub fn has_object_id(&self) -> bool {
        self.claims.as_ref().is_none_or(|claims| claims.oid.is_some())
    }

    /// The SHA-256 of what identifies the token (`uti`, or else `jti`) in hex; `None` where it cannot be read.
    pub fn id_hash(&self) -> Option<String> {
        let id = self.claims.as_ref()?.token_id()?;
        let hash = digest::digest(&digest::SHA256, id.as_bytes());
        Some(hash.as_ref().iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}")))
    }

    /// What can be read in it.
    pub fn claims(&self) -> Option<&Claims> {
        self.claims.as_ref()
    }

    /// Whether it may still be used.
    pub(super) fn is_usable(&self, now: Timestamp) -> bool {
        now < self.dead_at
    }

    /// Whether it need not be renewed yet.
    pub(super) fn is_fresh(&self, now: Timestamp) -> bool {
        now < self.refresh_at
    }

    /// Whether Entra issued it at most `age` ago.
    pub(super) fn is_younger_than(&self, age: SignedDuration, now: Timestamp) -> bool {
        now.duration_since(self.issued_at) <= age
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::microsoft::{Cloud, IncidentApi};

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn validate(value: &str, seconds: i64, refresh_in: Option<i64>) -> Result<AccessToken, TokenError> {
        let tenant = "11111111-2222-4333-8444-abcdefabcdef".parse().unwrap();
        let expected = Expected { tenant: &tenant, client_id: "c", cloud: Cloud::Commercial, api: IncidentApi::Graph };
        let refresh_in = refresh_in.map(SignedDuration::from_secs);
        AccessToken::validate(Secret::new(value.into()), SignedDuration::from_secs(seconds), refresh_in, &expected, NOW)
    }

    #[test]
    fn a_token_is_renewed_ahead_of_its_end_whatever_its_lifetime() {
        // lifetime, refresh_in → renewed from, dead from
        let table = [
            (599, None, 599 - 299, 599 - 59),
            (3_599, None, 3_599 - 359, 3_599 - 60),
            (86_399, None, 86_399 - 8_639, 86_399 - 60),
            (86_399, Some(43_200), 43_200, 86_399 - 60),
            (3_599, Some(0), 3_599 - 359, 3_599 - 60),
            (3_599, Some(9_999), 3_599 - 359, 3_599 - 60),
            (10, None, 5, 9),
        ];
        for (lifetime, refresh_in, renewed, dead) in table {
            let token = validate("opaque", lifetime, refresh_in).unwrap();
            let at = |second: i64| NOW + SignedDuration::from_secs(second);
            assert!(token.is_fresh(at(renewed - 1)) && !token.is_fresh(at(renewed + 1)), "{lifetime} {refresh_in:?}");
            assert!(token.is_usable(at(dead - 1)) && !token.is_usable(at(dead + 1)), "{lifetime}");
        }
    }

    #[test]
    fn an_opaque_token_is_accepted_and_one_that_is_no_header_is_not() {
        let token = validate("opaque", 60, None).unwrap();
        assert_eq!((token.roles(), token.has_object_id(), token.id_hash()), (None, true, None));
        assert!(token.authorization().is_sensitive());
        assert_eq!(validate("two\nlines", 60, None).unwrap_err(), TokenError::Malformed);
        assert_eq!(validate("", 60, None).unwrap_err(), TokenError::Malformed);
        assert_eq!(validate("opaque", 0, None).unwrap_err(), TokenError::Malformed);
    }

    #[test]
    fn debug_output_shows_no_token() {
        let shown = format!("{:?}", validate("canary", 60, None).unwrap());
        assert!(!shown.contains("canary"), "{shown}");
    }
}
