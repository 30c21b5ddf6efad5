//! The browser's cookie secret, and the states that are derived from it.
//!
//! Both states that go to Microsoft are hashes of the secret under different prefixes, and so is the key of the stored
//! attempt. A callback is matched to its browser by these hashes, before any I/O.

use std::{fmt, str::FromStr};

use aws_lc_rs::{constant_time, digest, rand::SecureRandom};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jiff::SignedDuration;
use shared::{error::Result, lambda::event::HttpRequest, random::random_bytes};
use zeroize::Zeroizing;

/// The cookie that binds a browser to its attempt. Browsers keep a `__Host-` cookie to this host and to https.
const COOKIE: &str = "__Host-mandate";

const SECRET_LENGTH: usize = 32;

/// The value of the browser's cookie: 32 random bytes. Each secret has exactly one base64url text.
#[derive(Clone, PartialEq, Eq)]
pub struct BrowserSecret(Zeroizing<[u8; SECRET_LENGTH]>);

/// The error for a text that is not a value of our cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotABrowserSecret;

/// The step at Microsoft that a state belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The sign-in with an authorization code.
    SignIn,
    /// The admin consent for the whole tenant.
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
    /// A new random secret.
    ///
    /// # Errors
    /// [`Error::Internal`](shared::error::Error::Internal) if the source of randomness fails.
    pub fn generate(random: &dyn SecureRandom) -> Result<Self> {
        Ok(Self(random_bytes(random)?))
    }

    pub(crate) fn from_cookie(http: &HttpRequest) -> Option<Self> {
        http.cookie(COOKIE)?.parse().ok()
    }

    /// The `Set-Cookie` value that makes the browser keep the secret for `max_age`.
    pub(crate) fn set_cookie(&self, max_age: SignedDuration) -> String {
        let (value, seconds) = (self.expose(), max_age.as_secs());
        format!("{COOKIE}={value}; Path=/; Max-Age={seconds}; Secure; HttpOnly; SameSite=Lax")
    }

    /// The cookie's value. It identifies the browser and goes nowhere but into the cookie.
    pub fn expose(&self) -> String {
        BASE64_URL_SAFE_NO_PAD.encode(self.0.as_slice())
    }

    /// The key of this browser's attempt in the registry.
    pub fn attempt_id(&self) -> String {
        self.hash("attempt")
    }

    /// The `state` parameter of this browser's request to Microsoft for `step`.
    pub fn state(&self, step: Step) -> String {
        match step {
            Step::SignIn => self.hash("sign-in"),
            Step::Consent => self.hash("consent"),
        }
    }

    /// The step that `state` belongs to; `None` if it is not this browser's. Compares in constant time.
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

#[cfg(test)]
mod tests {
    use aws_lc_rs::rand::SystemRandom;
    use proptest::prelude::*;

    use super::*;

    fn browser() -> BrowserSecret {
        BrowserSecret::generate(&SystemRandom::new()).unwrap()
    }

    #[test]
    fn states_and_key_differ_from_the_secret_and_each_other() {
        let browser = browser();
        let all = [browser.expose(), browser.attempt_id(), browser.state(Step::SignIn), browser.state(Step::Consent)];
        for (at, one) in all.iter().enumerate() {
            assert_eq!(one.len(), 43);
            assert!(all[at + 1..].iter().all(|other| other != one));
        }
    }

    #[test]
    fn state_belongs_to_one_step_of_one_browser() {
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
        fn secret_has_one_text(text in "[A-Za-z0-9_=+/-]{40,46}") {
            if let Ok(secret) = text.parse::<BrowserSecret>() {
                prop_assert_eq!(secret.expose(), text);
            }
        }
    }
}
