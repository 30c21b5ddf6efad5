//! Both callbacks from Microsoft: the sign-in, and then the admin consent.

use shared::{
    entra::{
        consent::{AuthorizationError, AuthorizationOutcome, claims_consent, parse_callback},
        id_token::{ExpectedIdToken, SignInError, SignedInUser},
        token_endpoint::AuthorizationCode,
    },
    error::{Error, Result},
    lambda::{event::HttpResponse, runtime::tenant_span},
    onboarding::{Binding, Consent, Recorded, may_bind},
    registry::{
        Write,
        attempts::{ConsentAttempt, ConsentRejection, SignedIn, Stage},
        invitations::{Invitation, InvitationStatus},
        tenants::Status,
    },
    telemetry::{self, Metric, RECORD},
    tenant::{Reason, TenantId},
    text::Secret,
};
use tracing::Instrument;

use crate::{
    browser::{BrowserSecret, Step},
    pages::{ConsentNote, PageExtras, redirect},
    request::{ConsentRequest, authority},
    texts::Message,
};

impl ConsentRequest<'_> {
    /// Takes the next step of an attempt. Before the state has matched the browser's cookie, nothing is called.
    pub(crate) async fn callback(&self) -> Result<HttpResponse> {
        let note = ConsentNote::of(claims_consent(&self.http.query));
        let not_this_browser = || self.pages.with_note(400, Message::NotThisBrowser, note);
        let (Some(browser), Some(response)) = (self.browser(), parse_callback(&self.http.query)) else {
            return Ok(not_this_browser());
        };
        let Some(step) = browser.step_of(&response.state) else { return Ok(not_this_browser()) };
        let attempt = self.app.registry.attempt(&browser.attempt_id()).await?;
        let Some(mut attempt) = attempt else { return Ok(not_this_browser()) };
        if attempt.is_expired(self.now) {
            return Ok(self.pages.with_note(410, Message::Expired, note));
        }
        match (step, response.outcome, attempt.stage.clone()) {
            (Step::SignIn, AuthorizationOutcome::Consented(_), _)
            | (Step::Consent, AuthorizationOutcome::Code(_), _) => Ok(not_this_browser()),
            (Step::SignIn, AuthorizationOutcome::Code(code), Stage::Begun) => {
                self.signed_in(&browser, &mut attempt, Secret::new(code)).await
            }
            (Step::Consent, AuthorizationOutcome::Consented(tenant), Stage::SignedIn { .. }) => {
                self.consented(&mut attempt, tenant).await
            }
            (Step::SignIn, AuthorizationOutcome::Refused(error), Stage::Begun) => {
                Ok(self.authorization_failed(&attempt, error, self.sign_in_url(&browser, &attempt).await?))
            }
            (Step::Consent, AuthorizationOutcome::Refused(error), Stage::SignedIn { signed_in }) => {
                Ok(self.authorization_failed(&attempt, error, self.consent_url(&browser, &signed_in.tenant_id).await?))
            }
            // A repeated callback, or one whose step is over.
            _ => Ok(redirect(self.result_url())),
        }
    }

    /// The page for an error that Microsoft returned. The attempt stays where it is, and `retry_url` repeats the step.
    fn authorization_failed(
        &self,
        attempt: &ConsentAttempt,
        error: AuthorizationError,
        retry_url: String,
    ) -> HttpResponse {
        telemetry::metrics(None, &[Metric::count("ConsentRefused", 1)]);
        tracing::info!(target: RECORD, audit = true,
            invitation_id = attempt.invitation_id,
            reason = ?error,
            "authorization refused"
        );
        let (message, link) = match error {
            AuthorizationError::Declined => (Message::Declined, Some(retry_url)),
            AuthorizationError::WrongAccount => (Message::WrongAccount, None),
            AuthorizationError::NotPermitted => (Message::NotPermitted, None),
            AuthorizationError::BlockedByPolicy => (Message::BlockedByPolicy, None),
            AuthorizationError::ResourceAbsent => (Message::ResourceAbsent, None),
            AuthorizationError::ResourceDisabled => (Message::ResourceDisabled, None),
            AuthorizationError::AppDisabled => (Message::AppDisabled, None),
            AuthorizationError::Misconfigured => (Message::Misconfigured, None),
            AuthorizationError::Unavailable => (Message::Unavailable, None),
            AuthorizationError::Other => (Message::Refused, Some(retry_url)),
        };
        // Anybody can write a query string. A status of 500 or more would let it raise the alarm for server errors.
        self.pages.message(403, message, PageExtras { link, ..PageExtras::default() })
    }

    /// After the sign-in: validates the ID token, checks the invitation, and redirects the browser to the consent.
    async fn signed_in(
        &self,
        browser: &BrowserSecret,
        attempt: &mut ConsentAttempt,
        code: Secret,
    ) -> Result<HttpResponse> {
        if self.app.registry.advance_attempt(attempt, Stage::SigningIn).await? == Write::Conflict {
            return Ok(redirect(self.result_url()));
        }
        let user = match self.identify(attempt, &code).await {
            Ok(user) => user,
            Err(SignInError::NotValid) => return self.reject(attempt, ConsentRejection::NotVerified, None).await,
            Err(SignInError::PersonalAccount) => {
                return self.reject(attempt, ConsentRejection::PersonalAccount, None).await;
            }
            Err(SignInError::Failed(Error::Refused(Reason::BlockedByPolicy))) => {
                let error = AuthorizationError::BlockedByPolicy;
                return Ok(self.authorization_failed(attempt, error, self.result_url()));
            }
            Err(SignInError::Failed(Error::Refused(Reason::DisabledByCustomer))) => {
                let error = AuthorizationError::AppDisabled;
                return Ok(self.authorization_failed(attempt, error, self.result_url()));
            }
            // Microsoft did not issue the code for this attempt, or the code was redeemed before.
            Err(SignInError::Failed(Error::Refused(_) | Error::Upstream { status: 400..=499, .. })) => {
                return self.reject(attempt, ConsentRejection::NotVerified, None).await;
            }
            Err(SignInError::Failed(error)) => return Err(error),
        };
        let tenant_id = user.tenant_id;
        let invitation = self.app.registry.invitation(&attempt.invitation_id).await?;
        // An expired invitation is still good: the attempt started in time and has an expiry of its own.
        let usable = |invitation: &Invitation| {
            matches!(invitation.status(self.now), InvitationStatus::Open | InvitationStatus::Expired)
        };
        let Some(invitation) = invitation.filter(usable) else {
            return self.reject(attempt, ConsentRejection::Closed, Some(tenant_id)).await;
        };
        let tenant = self.app.registry.tenant(&tenant_id).await?;
        let role_proven = user.may_consent_to(self.app.config.incident_api.preferred());
        let signed_in = SignedIn { tenant_id, object_id: user.object_id, name: user.name, role_proven };
        // The rule is applied again to the consent. Here it spares a person a consent that cannot count.
        if let Binding::Refused(rejection) = may_bind(&invitation, &signed_in, tenant.as_ref()) {
            return self.reject(attempt, rejection, Some(tenant_id)).await;
        }
        let location = self.consent_url(browser, &tenant_id).await?;
        tracing::info!(target: RECORD, audit = true,
            tenant_id = %tenant_id,
            invitation_id = attempt.invitation_id,
            person = signed_in.person(),
            object_id = signed_in.object_id,
            role_proven,
            "signed in for consent"
        );
        let stage = Stage::SignedIn { signed_in };
        Ok(redirect(match self.app.registry.advance_attempt(attempt, stage).await? {
            Write::Done => location,
            Write::Conflict => self.result_url(),
        }))
    }

    /// Redeems the authorization code and validates the ID token.
    async fn identify(&self, attempt: &ConsentAttempt, code: &Secret) -> Result<SignedInUser, SignInError> {
        let tokens = &self.app.tokens;
        let client_id = tokens.client_id(self.deadline).await?;
        let (authority, redirect_uri) = (authority(attempt), self.redirect_uri());
        let code = AuthorizationCode {
            authority: &authority,
            code,
            redirect_uri: &redirect_uri,
            code_verifier: &attempt.code_verifier,
        };
        let id_token = tokens.redeem_code(code, self.deadline).await?;
        let expected = ExpectedIdToken { client_id: &client_id, nonce: attempt.nonce.expose() };
        self.app.sign_in.validate_id_token(&id_token, &expected, self.deadline).await
    }

    /// After the admin consent: records it if `tenant`, from the query string, is the tenant of the signed-in user.
    async fn consented(&self, attempt: &mut ConsentAttempt, tenant: TenantId) -> Result<HttpResponse> {
        let Stage::SignedIn { signed_in } = attempt.stage.clone() else {
            return Ok(redirect(self.result_url()));
        };
        if tenant != signed_in.tenant_id {
            return self.reject(attempt, ConsentRejection::WrongTenant, Some(signed_in.tenant_id)).await;
        }
        let stage = Stage::Consented { signed_in, at: self.now };
        if self.app.registry.advance_attempt(attempt, stage).await? == Write::Done
            && let Some(page) = self.record_consent(attempt).await?
        {
            return Ok(page);
        }
        Ok(redirect(self.result_url()))
    }

    /// Records the consent of an attempt in [`Stage::Consented`] and makes a first try to verify the tenant. Returns a
    /// page only if the consent is rejected.
    pub(crate) async fn record_consent(&self, attempt: &mut ConsentAttempt) -> Result<Option<HttpResponse>> {
        let Stage::Consented { signed_in, at } = attempt.stage.clone() else { return Ok(None) };
        let tenant_id = signed_in.tenant_id;
        let consent = Consent { invitation_id: attempt.invitation_id.clone(), signed_in, at };
        let record = self.app.onboarding.record(&consent).instrument(tenant_span(&tenant_id));
        match record.await? {
            Recorded::Refused(rejection) => self.reject(attempt, rejection, Some(tenant_id)).await.map(Some),
            Recorded::Accepted(tenant) => {
                let settled = Stage::Settled { tenant_id, bound_by: tenant.bound_by.clone() };
                // After a conflict, another request has settled the attempt with the same outcome.
                let _ = self.app.registry.advance_attempt(attempt, settled).await?;
                telemetry::metrics(None, &[Metric::count("ConsentRecorded", 1)]);
                tracing::info!(target: RECORD, audit = true,
                    tenant_id = %tenant_id,
                    invitation_id = consent.invitation_id,
                    person = consent.signed_in.person(),
                    object_id = consent.signed_in.object_id,
                    role_proven = consent.signed_in.role_proven,
                    status = tenant.status.as_str(),
                    reason = tenant.reason.map(Reason::as_str),
                    "consent recorded"
                );
                // Without the app credential, the next poll reads the new roles.
                if tenant.status == Status::Active && self.app.config.app_client_id.is_none() {
                    let refresh = self.app.onboarding.refresh_roles(&tenant, self.deadline);
                    refresh.instrument(tenant_span(&tenant_id)).await?;
                } else {
                    self.advance_tenant(&tenant_id).await?;
                }
                Ok(None)
            }
        }
    }
}
