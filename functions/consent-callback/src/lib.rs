//! Consent: a customer's administrator on the way from an invitation to a verified tenant.
//!
//! The invitation's page changes nothing. Its form begins an attempt, tied to the browser by a cookie. Microsoft says
//! who it is, then what they grant; each return is compared with the cookie before anything else is done. What is
//! refused shows one of our own texts, chosen by a reason, never what came with the request.

pub mod browser;
mod pages;
mod texts;

use std::sync::Arc;

use aws_lc_rs::rand::SecureRandom;
use jiff::Timestamp;
use serde_json::Value;
use shared::{
    clients::Clients,
    clock::Clock,
    config::{PublicBaseUrl, Variables},
    entra::{
        consent::{AuthorizationError, Outcome, admin_consent_url, parse_callback},
        sign_in::{ANY_ORGANISATION, AuthorizationRequest, SignIn, SignInError, SignedInUser},
        token_cache::Tokens,
    },
    error::{Error, Result},
    http::Deadline,
    lambda::{
        event::{Event, HttpRequest, HttpResponse, Invocation, InvocationError},
        runtime::{Platform, catch_panic, tenant_span},
    },
    microsoft::{IncidentApiSetting, Microsoft},
    onboarding::{Consent, Onboarding, Recorded},
    registry::{
        Registry, Write,
        attempts::{ConsentAttempt, ConsentRejection, Stage},
        invitations::{Invitation, InvitationStatus, InvitationToken},
        tenants::{Status, Tenant},
    },
    telemetry::{self, RECORD},
    tenant::{Reason, TenantId},
    text::Secret,
};
use tracing::Instrument;

use crate::{
    browser::{BrowserSecret, Step},
    pages::{Beside, Pages, redirect},
    texts::Message,
};

/// The cookie that ties a browser to its attempt. The prefix makes the browser keep it to this host, and to https.
const COOKIE: &str = "__Host-mandate";

/// Segments that stand where an invitation could, and are none.
const RETURNS: [&str; 2] = ["callback", "result"];

const CALLBACK: &str = "/consent/callback";
const RESULT: &str = "/consent/result";

/// The function's configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The neighbours at Microsoft, and our credential there.
    pub microsoft: Microsoft,
    /// The surfaces that consent is asked for.
    pub incident_api: IncidentApiSetting,
    /// The DynamoDB table.
    pub table_name: String,
    /// The bus that hears of changes; none: nobody does.
    pub event_bus_name: Option<String>,
    /// Where the pages are reached; none: the host that the request came to.
    pub public_base_url: Option<PublicBaseUrl>,
    /// Who asks for consent, as the pages name them.
    pub partner_name: String,
}

impl Config {
    /// Reads it; `None` has been noted as a fault.
    pub fn read(variables: &mut Variables<'_>) -> Option<Self> {
        let microsoft = variables.microsoft();
        let incident_api = variables.incident_api();
        let table_name = variables.required("TABLE_NAME");
        let event_bus_name = variables.optional("EVENT_BUS_NAME");
        let public_base_url = variables.public_base_url();
        let partner_name = variables.required("PARTNER_NAME");
        Some(Self {
            microsoft: microsoft?,
            incident_api,
            table_name: table_name?,
            event_bus_name,
            public_base_url,
            partner_name: partner_name?,
        })
    }
}

/// The function: requests in, pages out.
pub struct App {
    config: Config,
    registry: Registry,
    tokens: Tokens,
    sign_in: SignIn,
    onboarding: Onboarding,
    clock: Clock,
    random: Arc<dyn SecureRandom + Send + Sync>,
}

/// One request with what answers it.
struct Call<'a> {
    app: &'a App,
    request: &'a HttpRequest,
    pages: &'a Pages<'a>,
    base: PublicBaseUrl,
    deadline: Deadline,
    now: Timestamp,
}

impl App {
    /// Wires the function up.
    pub fn new(config: Config, platform: &Platform) -> Self {
        let Platform { http, clock, random, .. } = platform.clone();
        let Microsoft { endpoints, cloud, .. } = config.microsoft.clone();
        let (table, bus) = (config.table_name.clone(), config.event_bus_name.clone());
        let clients = Clients::new(&config.microsoft, table, bus, platform);
        let onboarding = clients.onboarding(config.incident_api);
        let sign_in = SignIn::new(endpoints, cloud, http, clock.clone());
        Self { config, registry: clients.registry, tokens: clients.tokens, sign_in, onboarding, clock, random }
    }

    /// Answers one invocation.
    ///
    /// # Errors
    /// Whatever is not a request of the HTTP API is refused as a whole.
    pub async fn handle(&self, event: Value, invocation: Invocation) -> Result<Value, InvocationError> {
        Box::pin(invocation.in_request_span(self.answer(event, &invocation))).await
    }

    async fn answer(&self, event: Value, invocation: &Invocation) -> Result<Value, InvocationError> {
        let Event::Http(request) = Event::parse(event) else {
            tracing::warn!("an event that is no HTTP request was refused");
            return Err(Error::InvalidRequest("This function answers requests of the HTTP API only.".into()).into());
        };
        let accept_language = request.headers.get("accept-language").map(String::as_str);
        let api = self.config.incident_api.preferred();
        let pages = Pages::new(accept_language, &self.config.partner_name, api, &invocation.request_id)
            .ok_or_else(|| Error::Internal("there are no texts".into()))?;
        let begun = self.clock.now();
        let call = Call {
            app: self,
            request: &request,
            pages: &pages,
            base: PublicBaseUrl::or_domain(self.config.public_base_url.as_ref(), &request.domain_name),
            deadline: invocation.deadline,
            now: begun,
        };
        let response = match invocation.deadline.run(catch_panic(call.route())).await {
            Ok(response) => response,
            Err(error) => {
                let (code, status) = error.code();
                let status = status.max(500);
                if status == 500 {
                    telemetry::internal_failure(self.clock.now());
                }
                tracing::error!(code, status, cause = %error, "page failed");
                pages.plain(status, Message::Failed)
            }
        };
        let duration_ms = self.clock.milliseconds_since(begun);
        tracing::info!(method = request.method, status = response.status, duration_ms, "request answered");
        Ok(response.into_value())
    }
}

impl Call<'_> {
    async fn route(&self) -> Result<HttpResponse> {
        let segments = self.request.segments();
        let (allowed, known) = match (self.request.method.as_str(), segments.as_slice()) {
            ("GET", ["consent", "callback"]) => return self.callback().await,
            ("GET", ["consent", "result"]) => return self.result().await,
            ("GET", ["consent", token]) if !RETURNS.contains(token) => return self.invitation(token).await,
            ("POST", ["consent", token]) if !RETURNS.contains(token) => return self.begin(token).await,
            (_, ["consent", "callback" | "result"]) => ("GET", true),
            (_, ["consent", _]) => ("GET, POST", true),
            _ => ("", false),
        };
        if !known {
            return Ok(self.pages.plain(404, Message::NotFound));
        }
        let mut response = self.pages.plain(405, Message::MethodNotAllowed);
        response.headers.insert("allow", allowed.into());
        Ok(response)
    }

    /// The invitation of a link, or the page that says why it cannot be used.
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
                let beside = Beside { link: Some(self.base.join(RESULT)), ..Beside::default() };
                return Ok(Err(self.pages.message(410, Message::UsedHere, beside)));
            }
            InvitationStatus::Used => Message::Used,
        };
        Ok(Err(self.pages.plain(410, message)))
    }

    async fn invitation(&self, token: &str) -> Result<HttpResponse> {
        let opened = self.open_invitation(token).await?;
        Ok(opened.map_or_else(|refusal| refusal, |invitation| self.pages.invitation(&invitation)))
    }

    /// The form's target: an attempt begins, and the browser goes to sign in.
    async fn begin(&self, token: &str) -> Result<HttpResponse> {
        // `Origin` is `null` here because of our own referrer policy; browsers say themselves where a request is from.
        if self.request.headers.get("sec-fetch-site").is_some_and(|site| site == "cross-site") {
            return Ok(self.pages.plain(403, Message::CrossSite));
        }
        let invitation = match self.open_invitation(token).await? {
            Ok(invitation) => invitation,
            Err(refusal) => return Ok(refusal),
        };
        let browser = BrowserSecret::generate(&*self.app.random)?;
        let attempt = ConsentAttempt::begin(browser.attempt_id(), &invitation, &*self.app.random, self.now)?;
        let location = self.sign_in_url(&browser, &attempt).await?;
        self.app.registry.create_attempt(&attempt).await?;
        tracing::info!(target: RECORD, audit = true, invitation_id = attempt.invitation_id, "consent attempt begun");
        let mut response = redirect(location);
        let age = attempt.expires_at.duration_since(self.now).as_secs();
        let value = browser.expose();
        response.cookies.push(format!("{COOKIE}={value}; Path=/; Max-Age={age}; Secure; HttpOnly; SameSite=Lax"));
        Ok(response)
    }

    fn browser(&self) -> Option<BrowserSecret> {
        self.request.cookie(COOKIE)?.parse().ok()
    }

    fn redirect_uri(&self) -> String {
        self.base.join(CALLBACK)
    }

    async fn sign_in_url(&self, browser: &BrowserSecret, attempt: &ConsentAttempt) -> Result<String> {
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

    async fn consent_url(&self, browser: &BrowserSecret, tenant: &TenantId) -> Result<String> {
        let client_id = self.app.tokens.client_id(self.deadline).await?;
        let Microsoft { endpoints, cloud, .. } = &self.app.config.microsoft;
        let state = browser.state(Step::Consent);
        let ours = (client_id.as_str(), self.redirect_uri(), state.as_str());
        let api = self.app.config.incident_api.preferred();
        Ok(admin_consent_url(endpoints, *cloud, tenant, api, (ours.0, &ours.1, ours.2)).into())
    }

    /// Both returns from Microsoft. Until the state is known to be this browser's, nothing is asked of anybody.
    async fn callback(&self) -> Result<HttpResponse> {
        let refused = || self.pages.plain(400, Message::NotThisBrowser);
        let (Some(browser), Some(back)) = (self.browser(), parse_callback(&self.request.query)) else {
            return Ok(refused());
        };
        let Some(step) = browser.step_of(&back.state) else { return Ok(refused()) };
        let Some(mut attempt) = self.app.registry.attempt(&browser.attempt_id()).await? else { return Ok(refused()) };
        if attempt.is_expired(self.now) {
            return Ok(self.pages.plain(410, Message::Expired));
        }
        match (step, back.outcome, attempt.stage.clone()) {
            (Step::SignIn, Outcome::Consented(_), _) | (Step::Consent, Outcome::Code(_), _) => Ok(refused()),
            (Step::SignIn, Outcome::Code(code), Stage::Begun) => {
                self.signed_in(&browser, &mut attempt, Secret::new(code)).await
            }
            (Step::Consent, Outcome::Consented(tenant), Stage::SignedIn { .. }) => {
                self.consented(&mut attempt, tenant).await
            }
            (Step::SignIn, Outcome::Refused(refusal), Stage::Begun) => {
                Ok(self.refused(&attempt, refusal, self.sign_in_url(&browser, &attempt).await?))
            }
            (Step::Consent, Outcome::Refused(refusal), Stage::SignedIn { tenant_id, .. }) => {
                Ok(self.refused(&attempt, refusal, self.consent_url(&browser, &tenant_id).await?))
            }
            // Repeated, or out of turn.
            _ => Ok(redirect(self.base.join(RESULT))),
        }
    }

    /// Microsoft sent the browser back without what it was sent for. Nothing is used up: `again` is the same step.
    fn refused(&self, attempt: &ConsentAttempt, refusal: AuthorizationError, again: String) -> HttpResponse {
        tracing::info!(target: RECORD, audit = true, invitation_id = attempt.invitation_id, refusal = ?refusal, "consent refused");
        let (status, message, link) = match refusal {
            AuthorizationError::Declined => (403, Message::Declined, Some(again)),
            AuthorizationError::NotPermitted => (403, Message::NotPermitted, None),
            AuthorizationError::BlockedByPolicy => (403, Message::BlockedByPolicy, None),
            AuthorizationError::ResourceAbsent => (403, Message::ResourceAbsent, None),
            AuthorizationError::Misconfigured => (500, Message::Misconfigured, None),
            AuthorizationError::Unavailable => (502, Message::Unavailable, None),
            AuthorizationError::Other => (403, Message::Refused, Some(again)),
        };
        self.pages.message(status, message, Beside { link, ..Beside::default() })
    }

    /// The sign-in came back: who is it, and may they go on?
    async fn signed_in(
        &self,
        browser: &BrowserSecret,
        attempt: &mut ConsentAttempt,
        code: Secret,
    ) -> Result<HttpResponse> {
        if self.app.registry.advance_attempt(attempt, Stage::SigningIn).await? == Write::Conflict {
            return Ok(redirect(self.base.join(RESULT)));
        }
        let person = match self.identify(attempt, &code).await {
            Ok(person) => person,
            Err(SignInError::NotValid) => return self.end(attempt, ConsentRejection::NotVerified, None).await,
            Err(SignInError::PersonalAccount) => {
                return self.end(attempt, ConsentRejection::PersonalAccount, None).await;
            }
            Err(SignInError::Failed(Error::Refused(Reason::BlockedByPolicy))) => {
                return Ok(self.refused(attempt, AuthorizationError::BlockedByPolicy, self.base.join(RESULT)));
            }
            // The code is not one that Microsoft gave for this attempt, or it was redeemed before.
            Err(SignInError::Failed(Error::Refused(_) | Error::Upstream { status: 400..=499, .. })) => {
                return self.end(attempt, ConsentRejection::NotVerified, None).await;
            }
            Err(SignInError::Failed(error)) => return Err(error),
        };
        let tenant_id = person.tenant_id;
        let invitation = self.app.registry.invitation(&attempt.invitation_id).await?;
        // Its expiry does not matter: the attempt was begun in time, and has an end of its own.
        let usable = |invitation: &Invitation| {
            matches!(invitation.status(self.now), InvitationStatus::Open | InvitationStatus::Expired)
        };
        let Some(invitation) = invitation.filter(usable) else {
            return self.end(attempt, ConsentRejection::Closed, Some(tenant_id)).await;
        };
        let tenant = self.app.registry.tenant(&tenant_id).await?;
        if let Err(ending) = invitation.may_be_used_for(&tenant_id, tenant.as_ref()) {
            return self.end(attempt, ending, Some(tenant_id)).await;
        }
        let api = self.app.config.incident_api.preferred();
        let trusted =
            invitation.expected_tenant.is_some() || person.may_consent_to(api) || !self.had_consent(&tenant_id).await?;
        let location = self.consent_url(browser, &tenant_id).await?;
        let name = person.name.unwrap_or(person.object_id);
        tracing::info!(
            target: RECORD, audit = true, tenant_id = %tenant_id, invitation_id = attempt.invitation_id, person = name, trusted,
            "signed in for consent"
        );
        let stage = Stage::SignedIn { tenant_id, person: name, trusted };
        Ok(redirect(match self.app.registry.advance_attempt(attempt, stage).await? {
            Write::Done => location,
            Write::Conflict => self.base.join(RESULT),
        }))
    }

    async fn identify(&self, attempt: &ConsentAttempt, code: &Secret) -> Result<SignedInUser, SignInError> {
        let tokens = &self.app.tokens;
        let client_id = tokens.client_id(self.deadline).await?;
        let (authority, redirect_uri) = (authority(attempt), self.redirect_uri());
        let id_token =
            tokens.redeem_code(&authority, code, &redirect_uri, &attempt.code_verifier, self.deadline).await?;
        self.app.sign_in.validate_id_token(&id_token, &client_id, attempt.nonce.expose(), self.deadline).await
    }

    /// The consent came back, if what the query string says is the tenant that the person signed in from.
    async fn consented(&self, attempt: &mut ConsentAttempt, tenant: TenantId) -> Result<HttpResponse> {
        let Stage::SignedIn { tenant_id, person, trusted } = attempt.stage.clone() else {
            return Ok(redirect(self.base.join(RESULT)));
        };
        if tenant != tenant_id {
            return self.end(attempt, ConsentRejection::WrongTenant, Some(tenant_id)).await;
        }
        let stage = Stage::Consented { tenant_id, person, trusted, at: self.now };
        if self.app.registry.advance_attempt(attempt, stage).await? == Write::Done
            && let Some(refusal) = self.finish(attempt).await?
        {
            return Ok(refusal);
        }
        Ok(redirect(self.base.join(RESULT)))
    }

    /// Writes down what follows from a consent, and makes a first try. The page of a refusal, if it is one.
    async fn finish(&self, attempt: &mut ConsentAttempt) -> Result<Option<HttpResponse>> {
        let Stage::Consented { tenant_id, person, trusted, at } = attempt.stage.clone() else { return Ok(None) };
        let invitation_id = attempt.invitation_id.clone();
        let consent = Consent { invitation_id, tenant_id, person, at, trusted };
        let record = self.app.onboarding.record(&consent).instrument(tenant_span(&tenant_id));
        match record.await? {
            Recorded::Refused(ending) => self.end(attempt, ending, Some(tenant_id)).await.map(Some),
            Recorded::Accepted(tenant) => {
                // Another request may have settled it meanwhile, with the same outcome.
                let _ = self.app.registry.advance_attempt(attempt, Stage::Settled { tenant_id }).await?;
                tracing::info!(
                    target: RECORD, audit = true, tenant_id = %tenant_id, invitation_id = consent.invitation_id, person = consent.person,
                    status = tenant.status.as_str(), "consent recorded"
                );
                if tenant.status == Status::Active {
                    let refresh = self.app.onboarding.refresh_roles(&tenant, self.deadline);
                    refresh.instrument(tenant_span(&tenant_id)).await?;
                } else {
                    self.advance(&tenant_id).await?;
                }
                Ok(None)
            }
        }
    }

    async fn had_consent(&self, tenant: &TenantId) -> Result<bool> {
        self.app.onboarding.had_consent(tenant, self.deadline).instrument(tenant_span(tenant)).await
    }

    async fn advance(&self, tenant: &TenantId) -> Result<Tenant> {
        self.app.onboarding.advance(tenant, self.deadline).instrument(tenant_span(tenant)).await
    }

    /// Ends an attempt for good; the same page again for whoever asks again.
    async fn end(
        &self,
        attempt: &mut ConsentAttempt,
        ending: ConsentRejection,
        tenant: Option<TenantId>,
    ) -> Result<HttpResponse> {
        let tenant_id = tenant.map(|tenant| tenant.to_string());
        let invitation_id = attempt.invitation_id.as_str();
        tracing::warn!(target: RECORD, audit = true, tenant_id, invitation_id, ending = ending.as_str(), "consent attempt ended");
        // Where another request was faster, its stage stays. This page is right for this request all the same.
        let _ = self.app.registry.advance_attempt(attempt, Stage::Ended { ending }).await?;
        Ok(self.pages.ending(ending))
    }

    /// How it stands, for the browser that came through.
    async fn result(&self) -> Result<HttpResponse> {
        let refused = || self.pages.plain(400, Message::NotThisBrowser);
        let Some(browser) = self.browser() else { return Ok(refused()) };
        let Some(mut attempt) = self.app.registry.attempt(&browser.attempt_id()).await? else { return Ok(refused()) };
        if attempt.is_expired(self.now) {
            return Ok(self.pages.plain(410, Message::Expired));
        }
        if let Some(refusal) = self.finish(&mut attempt).await? {
            return Ok(refusal);
        }
        let next = |link| Beside { link: Some(link), ..Beside::default() };
        match &attempt.stage {
            Stage::Begun => {
                let beside = next(self.sign_in_url(&browser, &attempt).await?);
                Ok(self.pages.message(200, Message::Unfinished, beside))
            }
            Stage::SigningIn => Ok(self.pages.plain(200, Message::BeginAgain)),
            Stage::SignedIn { tenant_id, .. } => {
                let beside = next(self.consent_url(&browser, tenant_id).await?);
                Ok(self.pages.message(200, Message::ConsentOpen, beside))
            }
            Stage::Consented { tenant_id, .. } | Stage::Settled { tenant_id } => {
                let mut tenant = self.app.registry.known_tenant(tenant_id).await?;
                if tenant.status == Status::Pending {
                    tenant = self.advance(tenant_id).await?;
                }
                Ok(self.pages.tenant(&tenant, self.base.join(RESULT), self.app.clock.now()))
            }
            Stage::Ended { ending } => Ok(self.pages.ending(*ending)),
        }
    }
}

/// Where an attempt's sign-in takes place.
fn authority(attempt: &ConsentAttempt) -> String {
    attempt.expected_tenant.map_or_else(|| ANY_ORGANISATION.into(), |tenant| tenant.to_string())
}
