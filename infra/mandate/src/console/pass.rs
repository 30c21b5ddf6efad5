//! The secrets that let one browser in: the token of the address, the cookie of the session, the key of the page.

use std::sync::atomic::{AtomicBool, Ordering};

use aws_lc_rs::{constant_time, rand::SecureRandom};
use axum::http::{HeaderMap, header};
use shared::{
    random::random_bytes,
    text::{Secret, hex},
};

use crate::problem::Problem;

/// The secrets of one console. Each is handed out once.
///
/// A cookie does not distinguish ports: the browser sends it to every server on this host that it visits. So the cookie
/// alone opens no data. The page also sends a key, which it keeps where only pages of this very port can read it.
#[derive(Debug)]
pub(super) struct Pass {
    token: Secret,
    token_used: AtomicBool,
    session: Secret,
    key: Secret,
    key_given: AtomicBool,
    cookie_name: String,
}

/// The outcome of presenting the token.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Exchange {
    /// The browser gets this `Set-Cookie`.
    Admitted(String),
    /// The token is right, and somebody has used it before.
    UsedBefore,
    /// Another text.
    Wrong,
}

impl Pass {
    pub(super) fn generate(random: &dyn SecureRandom, port: u16) -> Result<Self, Problem> {
        let secret = || match random_bytes::<32>(random) {
            Ok(bytes) => Ok(Secret::new(hex(bytes.as_slice()))),
            Err(error) => Err(Problem::new("internal", error.to_string())),
        };
        Ok(Self {
            token: secret()?,
            token_used: AtomicBool::new(false),
            session: secret()?,
            key: secret()?,
            key_given: AtomicBool::new(false),
            // Two consoles on one machine must not replace each other's cookie.
            cookie_name: format!("mandate-console-{port}"),
        })
    }

    /// The token, for the address that is printed.
    pub(super) fn token(&self) -> &str {
        self.token.expose()
    }

    /// Exchanges the token for the session, once.
    pub(super) fn exchange(&self, token: &str) -> Exchange {
        if !same(token, &self.token) {
            return Exchange::Wrong;
        }
        if self.token_used.swap(true, Ordering::SeqCst) {
            return Exchange::UsedBefore;
        }
        let session = self.session.expose();
        Exchange::Admitted(format!("{}={session}; HttpOnly; SameSite=Strict; Path=/", self.cookie_name))
    }

    /// Returns true if the request has the cookie of the session.
    pub(super) fn has_session(&self, headers: &HeaderMap) -> bool {
        let cookies = headers.get_all(header::COOKIE).into_iter().filter_map(|value| value.to_str().ok());
        cookies
            .flat_map(|cookies| cookies.split(';'))
            .filter_map(|cookie| cookie.trim().split_once('='))
            .any(|(name, value)| name == self.cookie_name && same(value, &self.session))
    }

    /// The key of the page, once.
    pub(super) fn give_key(&self) -> Option<&str> {
        (!self.key_given.swap(true, Ordering::SeqCst)).then(|| self.key.expose())
    }

    /// Returns true if this is the key of the page.
    pub(super) fn is_key(&self, key: &[u8]) -> bool {
        constant_time::verify_slices_are_equal(key, self.key.expose().as_bytes()).is_ok()
    }
}

fn same(text: &str, secret: &Secret) -> bool {
    constant_time::verify_slices_are_equal(text.as_bytes(), secret.expose().as_bytes()).is_ok()
}
