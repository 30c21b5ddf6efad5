//! Sign-in at Microsoft: authorization code with PKCE and a nonce (OpenID Connect Core 1.0, RFC 7636).

use aws_lc_rs::digest;
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jsonwebtoken::Algorithm;
use url::Url;

use super::{
    id_token::{self, ExpectedIdToken, SignInError, SignedInUser},
    jwks::Jwks,
};
use crate::{
    clock::Clock,
    http::{Deadline, Endpoint, HttpClient},
    microsoft::{Cloud, Endpoints},
    text::Secret,
};

/// The authority of a sign-in for which no tenant is expected: any organisation, but no personal account.
pub const ANY_ORGANISATION: &str = "organizations";

/// The parameters of an authorization request.
pub struct AuthorizationRequest<'a> {
    /// [`ANY_ORGANISATION`], or the expected tenant.
    pub authority: &'a str,
    /// The client id of our application.
    pub client_id: &'a str,
    /// Our callback, to which Microsoft redirects the browser.
    pub redirect_uri: &'a str,
    /// The value that binds the callback to the browser.
    pub state: &'a str,
    /// The value that binds the ID token to this consent attempt.
    pub nonce: &'a str,
    /// The PKCE verifier. Only its hash goes into the request.
    pub code_verifier: &'a Secret,
}

/// Sign-in at one cloud's login host.
pub struct SignIn {
    login_host: Endpoint,
    cloud: Cloud,
    clock: Clock,
    jwks: Jwks,
}

impl SignIn {
    /// Sign-in at the login host of `endpoints`. ID tokens must have an issuer of `cloud`.
    pub fn new(endpoints: &Endpoints, cloud: Cloud, http: HttpClient, clock: Clock) -> Self {
        let login_host = endpoints.authority.clone();
        let jwks = Jwks::new(login_host.clone(), http, clock.clone());
        Self { login_host, cloud, clock, jwks }
    }

    /// The URL at which the browser signs in.
    pub fn authorization_url(&self, request: &AuthorizationRequest<'_>) -> Url {
        let mut url = self.login_host.join(&format!("/{}/oauth2/v2.0/authorize", request.authority));
        url.query_pairs_mut()
            .append_pair("client_id", request.client_id)
            .append_pair("response_type", "code")
            .append_pair("redirect_uri", request.redirect_uri)
            .append_pair("response_mode", "query")
            .append_pair("scope", "openid profile")
            .append_pair("state", request.state)
            .append_pair("nonce", request.nonce)
            .append_pair("code_challenge", &code_challenge(request.code_verifier))
            .append_pair("code_challenge_method", "S256")
            .append_pair("prompt", "select_account");
        url
    }

    /// The user whom a valid ID token names.
    ///
    /// # Errors
    /// [`SignInError::NotValid`] for a token that the directory did not issue as `expected`, and
    /// [`SignInError::Failed`] when the directory's keys cannot be read.
    pub async fn validate_id_token(
        &self,
        id_token: &Secret,
        expected: &ExpectedIdToken<'_>,
        deadline: Deadline,
    ) -> Result<SignedInUser, SignInError> {
        let header = jsonwebtoken::decode_header(id_token.expose()).map_err(|_| SignInError::NotValid)?;
        let kid = header.kid.filter(|_| header.alg == Algorithm::RS256).ok_or(SignInError::NotValid)?;
        let key = self.jwks.key(&kid, deadline).await?.ok_or(SignInError::NotValid)?;
        id_token::validate(id_token.expose(), &key, self.cloud, expected, self.clock.now())
    }
}

/// The PKCE challenge of a verifier (S256).
fn code_challenge(verifier: &Secret) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(digest::digest(&digest::SHA256, verifier.expose().as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorization_request_has_pkce_state_and_nonce() {
        let cloud = Cloud::Commercial;
        let sign_in = SignIn::new(&cloud.endpoints(), cloud, HttpClient::default(), Clock::system());
        // The example of RFC 7636, appendix B.
        let verifier = Secret::new("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk".into());
        let url = sign_in.authorization_url(&AuthorizationRequest {
            authority: ANY_ORGANISATION,
            client_id: "app",
            redirect_uri: "https://h.example/consent/callback",
            state: "s",
            nonce: "n",
            code_verifier: &verifier,
        });
        assert_eq!(
            url.as_str(),
            "https://login.microsoftonline.com/organizations/oauth2/v2.0/authorize?client_id=app&response_type=code\
             &redirect_uri=https%3A%2F%2Fh.example%2Fconsent%2Fcallback&response_mode=query&scope=openid+profile&state=s&nonce=n\
             &code_challenge=E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM&code_challenge_method=S256&prompt=select_account"
        );
    }
}
