//! An app-only access token and its lifetimes.

use aws_lc_rs::digest;
use http::HeaderValue;
use jiff::{SignedDuration, Timestamp};

use super::claims::{ClaimMismatch, Claims, ExpectedAccessToken};
use crate::text::{Secret, hex};

/// The least time between renewal and expiry.
const REFRESH_MARGIN: SignedDuration = SignedDuration::from_mins(5);

/// The remaining lifetime below which a token is no longer used, because it may expire on its way.
const EXPIRY_MARGIN: SignedDuration = SignedDuration::from_secs(60);

/// An app-only access token of one tenant for one incident API. Its claims, where they can be decoded, match the request.
#[derive(Debug)]
pub struct AccessToken {
    value: Secret,
    authorization: HeaderValue,
    claims: Option<Claims>,
    issued_at: Timestamp,
    refresh_at: Timestamp,
    unusable_from: Timestamp,
    expires_at: Timestamp,
}

/// The reason why a response holds no usable token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenError {
    ClaimMismatch(ClaimMismatch),
    /// The token is not a valid header value, is empty or has expired already.
    Malformed,
}

impl AccessToken {
    /// Validates a token that Entra issued. Lifetimes count from `requested_at`, the time of the request.
    pub(super) fn validate(
        value: Secret,
        lifetime: SignedDuration,
        refresh_in: Option<SignedDuration>,
        expected: &ExpectedAccessToken<'_>,
        requested_at: Timestamp,
    ) -> Result<Self, TokenError> {
        let claims = Claims::decode_unverified(value.expose());
        if let Some(claims) = &claims {
            claims.check(expected, requested_at).map_err(TokenError::ClaimMismatch)?;
        }
        let mut authorization =
            HeaderValue::from_str(&format!("Bearer {}", value.expose())).map_err(|_| TokenError::Malformed)?;
        authorization.set_sensitive(true);
        if value.expose().is_empty() || lifetime <= SignedDuration::ZERO {
            return Err(TokenError::Malformed);
        }
        let margin = REFRESH_MARGIN.max(lifetime / 10).min(lifetime / 2);
        let refresh_in = refresh_in.filter(|time| *time > SignedDuration::ZERO && *time < lifetime);
        Ok(Self {
            value,
            authorization,
            claims,
            issued_at: requested_at,
            refresh_at: requested_at + refresh_in.unwrap_or(lifetime - margin),
            unusable_from: requested_at + (lifetime - EXPIRY_MARGIN.min(lifetime / 10)),
            expires_at: requested_at + lifetime,
        })
    }

    /// The value of the `Authorization` header, marked as sensitive.
    pub fn authorization(&self) -> HeaderValue {
        self.authorization.clone()
    }

    /// The app roles of the token; `None` if they cannot be read.
    pub fn roles(&self) -> Option<&[String]> {
        self.claims.as_ref()?.roles.as_deref()
    }

    /// The end of the lifetime that Entra gave.
    pub fn expires_at(&self) -> Timestamp {
        self.expires_at
    }

    /// The token itself, for the one caller that it is issued to.
    pub fn expose(&self) -> &str {
        self.value.expose()
    }

    /// True if the token names our service principal in the tenant (`oid`); without one it does not prove a consent. A
    /// token that cannot be decoded counts as having one.
    pub fn has_object_id(&self) -> bool {
        self.claims.as_ref().is_none_or(Claims::has_object_id)
    }

    /// The SHA-256 of the token's identifier (`uti`, or else `jti`) in hexadecimal; `None` if it cannot be decoded.
    pub fn id_hash(&self) -> Option<String> {
        let id = self.claims.as_ref()?.token_id()?;
        Some(hex(digest::digest(&digest::SHA256, id.as_bytes()).as_ref()))
    }

    /// True if the token was requested at `time` or later.
    pub(crate) fn is_requested_since(&self, time: Timestamp) -> bool {
        self.issued_at >= time
    }

    /// True while the token may be sent to an API.
    pub(super) fn is_usable(&self, now: Timestamp) -> bool {
        now < self.unusable_from
    }

    /// True while the token need not be renewed.
    pub(super) fn is_fresh(&self, now: Timestamp) -> bool {
        now < self.refresh_at
    }

    /// True if Entra issued the token less than `age` ago.
    pub(super) fn is_younger_than(&self, age: SignedDuration, now: Timestamp) -> bool {
        now.duration_since(self.issued_at) < age
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::microsoft::{Cloud, IncidentApi};

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn validate(value: &str, seconds: i64, refresh_in: Option<i64>) -> Result<AccessToken, TokenError> {
        let tenant = "11111111-2222-4333-8444-abcdefabcdef".parse().unwrap();
        let expected =
            ExpectedAccessToken { tenant: &tenant, client_id: "c", cloud: Cloud::Commercial, api: IncidentApi::Graph };
        let refresh_in = refresh_in.map(SignedDuration::from_secs);
        AccessToken::validate(Secret::new(value.into()), SignedDuration::from_secs(seconds), refresh_in, &expected, NOW)
    }

    #[test]
    fn token_is_renewed_before_it_expires() {
        // lifetime, refresh_in → renewed from, unusable from
        let table = [
            (599, None, 599 - 299, 599 - 59),
            (3_599, None, 3_599 - 359, 3_599 - 60),
            (86_399, None, 86_399 - 8_639, 86_399 - 60),
            (86_399, Some(43_200), 43_200, 86_399 - 60),
            (3_599, Some(0), 3_599 - 359, 3_599 - 60),
            (3_599, Some(9_999), 3_599 - 359, 3_599 - 60),
            (10, None, 5, 9),
        ];
        for (lifetime, refresh_in, renewed, unusable) in table {
            let token = validate("opaque", lifetime, refresh_in).unwrap();
            let at = |second: i64| NOW + SignedDuration::from_secs(second);
            assert!(token.is_fresh(at(renewed - 1)) && !token.is_fresh(at(renewed + 1)), "{lifetime} {refresh_in:?}");
            assert!(token.is_usable(at(unusable - 1)) && !token.is_usable(at(unusable + 1)), "{lifetime}");
        }
    }

    #[test]
    fn opaque_token_is_accepted_and_malformed_is_not() {
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
