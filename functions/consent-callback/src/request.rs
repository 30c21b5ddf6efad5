//! One request: its route, the pages before and after Microsoft, and the start of an attempt.

use jiff::Timestamp;
use shared::{
    config::PublicBaseUrl,
    entra::{
        consent::{AdminConsentRequest, admin_consent_url},
        sign_in::{ANY_ORGANISATION, AuthorizationRequest},
    },
    error::Result,
    http::Deadline,
    lambda::{
        event::{HttpRequest, HttpResponse},
        runtime::tenant_span,
    },
    microsoft::Microsoft,
    registry::{
        attempts::{ConsentAttempt, ConsentRejection, SignedIn, Stage},
        invitations::{Invitation, InvitationStatus, InvitationToken},
        tenants::{Status, Tenant},
    },
    telemetry::{self, Metric, RECORD},
    tenant::TenantId,
};
use tracing::Instrument;

use crate::{
    App,
    browser::{BrowserSecret, Step},
    pages::{ConsentNote, PageExtras, Pages, redirect},
    texts::Message,
};

const CALLBACK_PATH: &str = "/consent/callback";
const RESULT_PATH: &str = "/consent/result";

/// One request with what its response is made from.
pub(crate) struct ConsentRequest<'a> {
    pub(crate) app: &'a App,
    pub(crate) http: &'a HttpRequest,
    pub(crate) pages: &'a Pages<'a>,
    pub(crate) base_url: PublicBaseUrl,
    pub(crate) deadline: Deadline,
    pub(crate) now: Timestamp,
}

impl ConsentRequest<'_> {
    pub(crate) async fn route(&self) -> Result<HttpResponse> {
        let token = self.http.path_parameter("invitation");
        match self.http.route_key.as_str() {
            "GET /consent/callback" => self.callback().await,
            "GET /consent/result" => self.result().await,
            "GET /consent/{invitation}" => self.invitation(token).await,
            "POST /consent/{invitation}" => self.start(token).await,
            _ => Ok(self.pages.plain(404, Message::NotFound)),
        }
    }

    /// The open invitation of a link, or the page that says why the link cannot be used.
    async fn open_invitation(&self, token: &str) -> Result<Result<Invitation, HttpResponse>> {
        let unknown = || Err(self.pages.plain(404, Message::UnknownInvitation));
        let Ok(token) = token.parse::<InvitationToken>() else { return Ok(unknown()) };
        let invitation = self.app.registry.invitation(&token.invitation_id()).await?;
        let Some(invitation) = invitation.filter(|invitation| token.matches(invitation)) else { return Ok(unknown()) };
        let message = match invitation.status(self.now) {
            InvitationStatus::Open => return Ok(Ok(invitation)),
            InvitationStatus::Expired => Message::Expired,
            InvitationStatus::Revoked => Message::Revoked,
            InvitationStatus::Used if self.browser().is_some() => {
                return Ok(Err(self.pages.message(410, Message::UsedHere, PageExtras::link(self.result_url()))));
            }
            InvitationStatus::Used => Message::Used,
        };
        Ok(Err(self.pages.plain(410, message)))
    }

    async fn invitation(&self, token: &str) -> Result<HttpResponse> {
        let opened = self.open_invitation(token).await?;
        Ok(opened.map_or_else(|page| page, |invitation| self.pages.invitation(&invitation)))
    }

    /// The form's target: starts an attempt and redirects the browser to the sign-in.
    async fn start(&self, token: &str) -> Result<HttpResponse> {
        // Our referrer policy makes `Origin` null. Browsers name the relation of the sites in this header.
        if self.http.headers.get("sec-fetch-site").is_some_and(|site| site == "cross-site") {
            return Ok(self.pages.plain(403, Message::CrossSite));
        }
        let invitation = match self.open_invitation(token).await? {
            Ok(invitation) => invitation,
            Err(page) => return Ok(page),
        };
        let browser = BrowserSecret::generate(&*self.app.random)?;
        let attempt = ConsentAttempt::new(browser.attempt_id(), &invitation, &*self.app.random, self.now)?;
        let location = self.sign_in_url(&browser, &attempt).await?;
        self.app.registry.create_attempt(&attempt).await?;
        tracing::info!(target: RECORD, audit = true, invitation_id = attempt.invitation_id, "consent attempt started");
        let mut response = redirect(location);
        response.cookies.push(browser.set_cookie(attempt.expires_at.duration_since(self.now)));
        Ok(response)
    }

    pub(crate) fn browser(&self) -> Option<BrowserSecret> {
        BrowserSecret::from_cookie(self.http)
    }

    pub(crate) fn redirect_uri(&self) -> String {
        self.base_url.join(CALLBACK_PATH)
    }

    pub(crate) fn result_url(&self) -> String {
        self.base_url.join(RESULT_PATH)
    }

    pub(crate) async fn sign_in_url(&self, browser: &BrowserSecret, attempt: &ConsentAttempt) -> Result<String> {
        let client_id = self.app.tokens.client_id(self.deadline).await?;
        let url = self.app.sign_in.authorization_url(&AuthorizationRequest {
            authority: &authority(attempt),
            client_id: &client_id,
            redirect_uri: &self.redirect_uri(),
            state: &browser.state(Step::SignIn),
            nonce: attempt.nonce.expose(),
            code_verifier: &attempt.code_verifier,
        });
        Ok(url.into())
    }

    pub(crate) async fn consent_url(&self, browser: &BrowserSecret, tenant: &TenantId) -> Result<String> {
        let client_id = match &self.app.config.app_client_id {
            Some(client_id) => client_id.clone(),
            None => self.app.tokens.client_id(self.deadline).await?,
        };
        let Microsoft { endpoints, cloud, .. } = &self.app.config.microsoft;
        let request = AdminConsentRequest {
            tenant,
            api: self.app.config.incident_api.preferred(),
            client_id: &client_id,
            redirect_uri: &self.redirect_uri(),
            state: &browser.state(Step::Consent),
        };
        Ok(admin_consent_url(endpoints, *cloud, &request).into())
    }

    /// Makes one try to move a pending tenant on, if the next try is due. Without the app credential, polls make the tries.
    pub(crate) async fn advance_tenant(&self, tenant: &TenantId) -> Result<Tenant> {
        if self.app.config.app_client_id.is_some() {
            return self.app.registry.known_tenant(tenant).await;
        }
        self.app.onboarding.advance(tenant, self.deadline).instrument(tenant_span(tenant)).await
    }

    /// Ends an attempt for good. Later requests of the same browser get the same page.
    pub(crate) async fn reject(
        &self,
        attempt: &mut ConsentAttempt,
        rejection: ConsentRejection,
        tenant_id: Option<TenantId>,
    ) -> Result<HttpResponse> {
        telemetry::metrics(None, &[Metric::count("ConsentRejected", 1)]);
        tracing::warn!(target: RECORD, audit = true,
            tenant_id = tenant_id.map(tracing::field::display),
            invitation_id = attempt.invitation_id,
            ending = rejection.as_str(),
            "consent attempt rejected"
        );
        // After a conflict, the stage of the other request stays. For this request the page is right all the same.
        let consented = !matches!(attempt.stage, Stage::Begun | Stage::SigningIn);
        let _ = self.app.registry.advance_attempt(attempt, Stage::Ended { rejection, consented }).await?;
        Ok(self.pages.rejection(rejection, ConsentNote::of(consented)))
    }

    /// The state of the browser's own attempt.
    async fn result(&self) -> Result<HttpResponse> {
        let not_this_browser = || self.pages.plain(400, Message::NotThisBrowser);
        let Some(browser) = self.browser() else { return Ok(not_this_browser()) };
        let attempt = self.app.registry.attempt(&browser.attempt_id()).await?;
        let Some(mut attempt) = attempt else { return Ok(not_this_browser()) };
        if attempt.is_expired(self.now) {
            return Ok(self.pages.plain(410, Message::Expired));
        }
        if let Some(page) = self.record_consent(&mut attempt).await? {
            return Ok(page);
        }
        match &attempt.stage {
            Stage::Begun => {
                let next = PageExtras::link(self.sign_in_url(&browser, &attempt).await?);
                Ok(self.pages.message(200, Message::Unfinished, next))
            }
            Stage::SigningIn | Stage::Unknown => Ok(self.pages.plain(200, Message::StartAgain)),
            Stage::SignedIn { signed_in } => {
                let next = PageExtras::link(self.consent_url(&browser, &signed_in.tenant_id).await?);
                Ok(self.pages.message(200, Message::ConsentOpen, next))
            }
            Stage::Consented { signed_in: SignedIn { tenant_id, .. }, .. } | Stage::Settled { tenant_id, .. } => {
                let mut tenant = self.app.registry.known_tenant(tenant_id).await?;
                if let Stage::Settled { bound_by, .. } = &attempt.stage
                    && *bound_by != tenant.bound_by
                {
                    // The record that this browser came for is replaced, and the present one is not for its eyes.
                    return Ok(self.pages.rejection(ConsentRejection::OtherCustomer, ConsentNote::ConsentStays));
                }
                if tenant.status == Status::Pending {
                    tenant = self.advance_tenant(tenant_id).await?;
                }
                Ok(self.pages.tenant(&tenant, self.result_url(), self.app.clock.now()))
            }
            Stage::Ended { rejection, consented } => Ok(self.pages.rejection(*rejection, ConsentNote::of(*consented))),
        }
    }
}

/// The authority at which an attempt signs in: the expected tenant, or any organisation.
pub(crate) fn authority(attempt: &ConsentAttempt) -> String {
    attempt.expected_tenant.map_or_else(|| ANY_ORGANISATION.into(), |tenant| tenant.to_string())
}
