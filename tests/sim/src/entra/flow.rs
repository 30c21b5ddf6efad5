//! What Entra remembers between the pages: begun sign-ins and consents, sessions, codes.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::Authority;
use crate::{clock::opaque, http::Request, store::Resource};

/// Name of Entra's own cookie.
pub(crate) const SESSION: &str = "ESTSAUTH";

/// A person who signed in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Person {
    pub(crate) tenant_id: String,
    pub(crate) oid: String,
}

/// A validated authorization request.
#[derive(Clone, Debug)]
pub(crate) struct SignIn {
    pub(crate) authority: Authority,
    pub(crate) client_id: String,
    pub(crate) redirect_uri: String,
    pub(crate) state: Option<String>,
    pub(crate) nonce: Option<String>,
    pub(crate) scope: String,
    pub(crate) code_challenge: Option<String>,
    /// The person who still has to accept the permissions.
    pub(crate) prompting: Option<Person>,
}

/// A validated admin consent request.
#[derive(Clone, Debug)]
pub(crate) struct Consent {
    pub(crate) authority: Authority,
    pub(crate) client_id: String,
    pub(crate) redirect_uri: String,
    pub(crate) state: Option<String>,
    /// Absent at v1.
    pub(crate) scope: Option<String>,
    pub(crate) resources: Vec<Resource>,
}

#[derive(Clone, Debug)]
pub(crate) enum Flow {
    SignIn(SignIn),
    Consent(Consent),
}

/// An authorization code that was handed out.
#[derive(Clone, Debug)]
pub(crate) struct Code {
    pub(crate) request: SignIn,
    pub(crate) person: Person,
    pub(crate) issued: Timestamp,
    pub(crate) redeemed: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Flows {
    begun: BTreeMap<String, Flow>,
    sessions: BTreeMap<String, Person>,
    pub(crate) codes: BTreeMap<String, Code>,
}

impl Flows {
    pub(crate) fn begin(&mut self, flow: Flow) -> String {
        let id = opaque();
        self.begun.insert(id.clone(), flow);
        id
    }

    pub(crate) fn find(&self, id: &str) -> Option<Flow> {
        self.begun.get(id).cloned()
    }

    pub(crate) fn end(&mut self, id: &str) {
        self.begun.remove(id);
    }

    pub(crate) fn person(&self, request: &Request) -> Option<Person> {
        self.sessions.get(request.cookie(SESSION)?).cloned()
    }

    pub(crate) fn open_session(&mut self, person: Person) -> String {
        let id = opaque();
        self.sessions.insert(id.clone(), person);
        id
    }
}
