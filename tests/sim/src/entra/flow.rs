//! Entra's state between pages: pending sign-ins and consents, sessions, authorization codes.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::Authority;
use crate::{clock::random_token, http::Request, store::Resource};

/// Name of Entra's session cookie.
pub(crate) const SESSION: &str = "ESTSAUTH";

/// A person who signed in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SignedInUser {
    pub(crate) tenant_id: String,
    pub(crate) oid: String,
}

/// A validated authorization request.
#[derive(Clone, Debug)]
pub(crate) struct SignInRequest {
    pub(crate) authority: Authority,
    pub(crate) client_id: String,
    pub(crate) redirect_uri: String,
    pub(crate) state: Option<String>,
    pub(crate) nonce: Option<String>,
    pub(crate) scope: String,
    pub(crate) code_challenge: Option<String>,
    pub(crate) prompt: Option<String>,
    /// The person who has seen the permissions prompt.
    pub(crate) prompting: Option<SignedInUser>,
}

/// A validated admin consent request.
#[derive(Clone, Debug)]
pub(crate) struct ConsentRequest {
    pub(crate) authority: Authority,
    pub(crate) client_id: String,
    pub(crate) redirect_uri: String,
    pub(crate) state: Option<String>,
    /// Requested scope; the v1 page has none.
    pub(crate) scope: Option<String>,
    pub(crate) resources: Vec<Resource>,
}

#[derive(Clone, Debug)]
pub(crate) enum PendingFlow {
    SignIn(SignInRequest),
    Consent(ConsentRequest),
}

/// An issued authorization code.
#[derive(Clone, Debug)]
pub(crate) struct AuthorizationCode {
    pub(crate) request: SignInRequest,
    pub(crate) signed_in: SignedInUser,
    pub(crate) issued: Timestamp,
    pub(crate) redeemed: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Flows {
    pending: BTreeMap<String, PendingFlow>,
    sessions: BTreeMap<String, SignedInUser>,
    pub(crate) codes: BTreeMap<String, AuthorizationCode>,
}

impl Flows {
    pub(crate) fn start(&mut self, flow: PendingFlow) -> String {
        let id = random_token();
        self.pending.insert(id.clone(), flow);
        id
    }

    pub(crate) fn get(&self, id: &str) -> Option<PendingFlow> {
        self.pending.get(id).cloned()
    }

    pub(crate) fn remove(&mut self, id: &str) {
        self.pending.remove(id);
    }

    pub(crate) fn signed_in_user(&self, request: &Request) -> Option<SignedInUser> {
        self.sessions.get(request.cookie(SESSION)?).cloned()
    }

    pub(crate) fn open_session(&mut self, signed_in: SignedInUser) -> String {
        let id = random_token();
        self.sessions.insert(id.clone(), signed_in);
        id
    }
}
