//! Sign-in: the authorization code flow of a person.

use std::collections::BTreeMap;

use super::{
    Aadsts, Authority, consent,
    flow::{AuthorizationCode, PendingFlow, SESSION, SignInRequest, SignedInUser},
    missing,
    page::{self, account_picker, permissions_prompt},
    parameters, unknown_app, with_query,
};
use crate::{
    clock::{guid, random_token},
    http::{Request, Response},
    store::PERSONAL_ACCOUNTS,
    world::{Tweaks, World},
};

/// The error of an authorization request: a page if the redirect URI cannot be trusted, otherwise a redirect.
pub(super) enum AuthorizationError {
    Page(Aadsts),
    Redirect { redirect_uri: String, state: Option<String>, error: Aadsts },
}

impl AuthorizationError {
    fn response(self, world: &World) -> Response {
        match self {
            Self::Page(error) => page::error(400, &error, world.now()),
            Self::Redirect { redirect_uri, state, error } => {
                redirect_with_error(world, &redirect_uri, state.as_deref(), &error, None)
            }
        }
    }
}

fn redirect_with_error(
    world: &World,
    to: &str,
    state: Option<&str>,
    error: &Aadsts,
    subcode: Option<&str>,
) -> Response {
    let mut pairs = vec![("error", error.error.to_owned())];
    pairs.extend(subcode.map(|subcode| ("error_subcode", subcode.to_owned())));
    pairs.push(("error_description", error.description(&guid(), &guid(), world.now())));
    pairs.push(("error_uri", format!("https://login.microsoftonline.com/error?code={}", error.code)));
    pairs.extend(state.map(|state| ("state", state.to_owned())));
    Response::redirect(&with_query(to, &pairs))
}

/// An app with a redirect URI that it registered.
pub(super) struct RegisteredClient {
    pub(super) client_id: String,
    pub(super) redirect_uri: String,
}

/// Checks the app and its redirect URI, as every page does first.
pub(super) fn validate_client(
    world: &World,
    authority: &Authority,
    query: &BTreeMap<String, String>,
) -> Result<RegisteredClient, Aadsts> {
    let client_id = query.get("client_id").ok_or_else(|| missing("client_id"))?;
    let directory = match authority {
        Authority::Tenant(tid) => tid.clone(),
        Authority::Organizations | Authority::Common => "Microsoft".to_owned(),
    };
    let Some(record) = world.apps.get(client_id) else { return Err(unknown_app(client_id, &directory)) };
    if record.app.single_tenant {
        match authority {
            Authority::Tenant(tid) if *tid == record.app.home_tenant_id => {}
            Authority::Tenant(_) => return Err(unknown_app(client_id, &directory)),
            Authority::Organizations | Authority::Common => return Err(Aadsts::of_code(50_194)),
        }
    }
    let redirect_uri = query
        .get("redirect_uri")
        .ok_or_else(|| Aadsts::new(400, "invalid_request", 900_971, "No reply address provided."))?;
    if !record.app.redirect_uris.contains(redirect_uri) {
        return Err(Aadsts::new(
            400,
            "invalid_request",
            50_011,
            format!(
                "The redirect URI '{redirect_uri}' specified in the request does not match the redirect URIs configured \
                 for the application '{client_id}'. Make sure the redirect URI sent in the request matches one added to \
                 your application in the Azure portal."
            ),
        ));
    }
    Ok(RegisteredClient { client_id: client_id.clone(), redirect_uri: redirect_uri.clone() })
}

fn parse_request(world: &World, request: &Request, segment: &str) -> Result<SignInRequest, AuthorizationError> {
    const KNOWN: &[&str] = &[
        "client_id",
        "response_type",
        "redirect_uri",
        "response_mode",
        "scope",
        "state",
        "nonce",
        "code_challenge",
        "code_challenge_method",
        "prompt",
        "login_hint",
        "domain_hint",
        "claims",
        "client-request-id",
    ];
    let query = parameters(&request.query).map_err(AuthorizationError::Page)?;
    let authority = Authority::parse(world, segment).map_err(AuthorizationError::Page)?;
    let RegisteredClient { client_id, redirect_uri } =
        validate_client(world, &authority, &query).map_err(AuthorizationError::Page)?;
    let state = query.get("state").cloned();
    let refuse = |error: Aadsts| AuthorizationError::Redirect {
        redirect_uri: redirect_uri.clone(),
        state: state.clone(),
        error,
    };
    let invalid = |code, message: String| refuse(Aadsts::new(400, "invalid_request", code, message));
    if let Some(name) = query.keys().find(|name| !KNOWN.contains(&name.as_str())) {
        return Err(invalid(9_002_313, format!("Invalid request. Request is malformed or invalid: '{name}'.")));
    }
    match query.get("response_type").map(String::as_str) {
        None => return Err(refuse(missing("response_type"))),
        Some("code") => {}
        Some(other) => {
            let message = format!("The response_type '{other}' is not enabled for the application.");
            return Err(refuse(Aadsts::new(400, "unsupported_response_type", 700_054, message)));
        }
    }
    if query.get("response_mode").is_some_and(|mode| mode != "query") {
        let message = "The 'response_mode' of the request is not supported by the simulator.".to_owned();
        return Err(invalid(70_007, message));
    }
    let scope = query.get("scope").ok_or_else(|| refuse(missing("scope")))?;
    let known = ["openid", "profile", "email", "offline_access"];
    if let Some(other) = scope.split(' ').find(|scope| !known.contains(scope)) {
        let message = format!(
            "The provided request must include a 'scope' input parameter. The provided value for the input parameter \
             'scope' is not valid. The scope {other} is not valid."
        );
        return Err(refuse(Aadsts::new(400, "invalid_scope", 70_011, message)));
    }
    if !scope.split(' ').any(|scope| scope == "openid") {
        return Err(invalid(70_011, "The scope does not ask for 'openid'.".to_owned()));
    }
    let code_challenge = query.get("code_challenge").cloned();
    match (&code_challenge, query.get("code_challenge_method").map(String::as_str)) {
        (None, None) => {}
        (Some(challenge), Some("S256")) if challenge.len() == 43 => {}
        (Some(_), Some("S256")) => {
            return Err(invalid(501_491, "Invalid size of Code_Challenge parameter.".to_owned()));
        }
        _ => return Err(invalid(501_471, "The code_challenge_method has to be S256.".to_owned())),
    }
    let prompt = query.get("prompt").cloned();
    if prompt.as_deref().is_some_and(|prompt| !["select_account", "login", "consent", "none"].contains(&prompt)) {
        return Err(invalid(90_023, "Unsupported 'prompt' value.".to_owned()));
    }
    let nonce = query.get("nonce").cloned();
    Ok(SignInRequest {
        authority,
        client_id,
        redirect_uri,
        state,
        nonce,
        scope: scope.clone(),
        code_challenge,
        prompt,
        prompting: None,
    })
}

pub(super) fn start(world: &mut World, request: &Request, segment: &str) -> Response {
    let sign_in = match parse_request(world, request, segment) {
        Ok(sign_in) => sign_in,
        Err(error) => return error.response(world),
    };
    let signed_in = world.flows.signed_in_user(request);
    match (sign_in.prompt.as_deref(), signed_in) {
        (None, Some(signed_in)) if check_account(world, &sign_in.authority, &sign_in.client_id, &signed_in).is_ok() => {
            issue_code(world, sign_in, signed_in)
        }
        (Some("none"), None) => {
            let message = "Silent sign-in is not possible: no user is signed in.";
            let error = Aadsts::new(400, "login_required", 50_058, message);
            redirect_with_error(world, &sign_in.redirect_uri, sign_in.state.as_deref(), &error, None)
        }
        (Some("none"), Some(signed_in)) => issue_code(world, sign_in, signed_in),
        _ => {
            let name = world.apps.get(&sign_in.client_id).map(|record| record.app.display_name.clone());
            let id = world.flows.start(PendingFlow::SignIn(sign_in));
            account_picker(world, &id, &name.unwrap_or_default())
        }
    }
}

/// Refuses an account whose kind or tenant does not suit the authority.
pub(super) fn check_account(
    world: &World,
    authority: &Authority,
    client_id: &str,
    signed_in: &SignedInUser,
) -> Result<(), Aadsts> {
    let app = world.apps.get(client_id).map(|record| &record.app);
    let name =
        world.tenants.get(&signed_in.tenant_id).and_then(|tenant| tenant.user(&signed_in.oid)).map(|user| &user.name);
    let name = name.map_or("", String::as_str);
    let personal = signed_in.tenant_id == PERSONAL_ACCOUNTS;
    match authority {
        Authority::Common if !personal || app.is_some_and(|app| app.personal_accounts) => Ok(()),
        Authority::Organizations if !personal => Ok(()),
        Authority::Common | Authority::Organizations => Err(Aadsts::new(
            400,
            "invalid_request",
            500_200,
            format!(
                "User account '{name}' is a personal Microsoft account. Personal Microsoft accounts are not supported \
                 for this application unless explicitly invited to an organization. Try signing out and signing back in \
                 with an organizational account."
            ),
        )),
        Authority::Tenant(tid) if *tid == signed_in.tenant_id => Ok(()),
        Authority::Tenant(tid) => {
            let organisation = world.tenants.get(tid).map_or("", |tenant| tenant.seed.display_name.as_str());
            Err(Aadsts::new(
                400,
                "invalid_request",
                50_020,
                format!(
                    "User account '{name}' from identity provider 'https://sts.windows.net/{}/' does not exist in tenant \
                     '{organisation}' and cannot access the application '{client_id}' in that tenant. The account needs \
                     to be added as an external user in the tenant first. Sign out and sign in again with a different \
                     Azure Active Directory user account.",
                    signed_in.tenant_id
                ),
            ))
        }
    }
}

/// Handles the form of the account picker and of the permissions prompt.
pub(super) fn submit(world: &mut World, request: &Request, tweaks: &Tweaks) -> Response {
    let form = match parse_form(request) {
        Ok(form) => form,
        Err(error) => return page::error(400, &error, world.now()),
    };
    let id = form.get("flow").cloned().unwrap_or_default();
    let Some(flow) = world.flows.get(&id) else { return expired_flow(world) };
    let choice = form.get("user").map_or("", String::as_str);
    let Some((tenant_id, user)) = choice.split_once('/') else { return cancel(world, &id, flow) };
    let known = world.tenants.get(tenant_id).and_then(|tenant| tenant.user(user));
    let Some(oid) = known.map(|user| user.oid.clone()) else {
        let error = Aadsts::new(400, "invalid_grant", 50_034, "The user account does not exist in the directory.");
        return page::error(400, &error, world.now());
    };
    let signed_in = SignedInUser { tenant_id: tenant_id.to_owned(), oid };
    let response = match flow {
        PendingFlow::SignIn(sign_in) => {
            if let Err(error) = check_account(world, &sign_in.authority, &sign_in.client_id, &signed_in) {
                return page::error(400, &error, world.now());
            }
            if let Some(code) = tweaks.aadsts {
                world.flows.remove(&id);
                let error = Aadsts::of_code(code);
                return redirect_with_error(world, &sign_in.redirect_uri, sign_in.state.as_deref(), &error, None);
            }
            if !form.contains_key("accept") && needs_prompt(world, &sign_in, &signed_in) {
                let app = world.apps.get(&sign_in.client_id).map(|record| record.app.display_name.clone());
                let prompting = SignInRequest { prompting: Some(signed_in.clone()), ..sign_in };
                world.flows.remove(&id);
                let id = world.flows.start(PendingFlow::SignIn(prompting));
                return permissions_prompt(&id, &signed_in, &app.unwrap_or_default());
            }
            world.flows.remove(&id);
            issue_code(world, sign_in, signed_in.clone())
        }
        PendingFlow::Consent(consent) => {
            if let Err(error) = check_account(world, &consent.authority, &consent.client_id, &signed_in) {
                return page::error(400, &error, world.now());
            }
            consent::consent_page(world, &id, &consent, &signed_in)
        }
    };
    let session = world.flows.open_session(signed_in);
    response.with("set-cookie", &format!("{SESSION}={session}; Path=/; HttpOnly; SameSite=Lax"))
}

pub(super) fn parse_form(request: &Request) -> Result<BTreeMap<String, String>, Aadsts> {
    if request.media_type() != "application/x-www-form-urlencoded" {
        return Err(missing("flow"));
    }
    parameters(std::str::from_utf8(&request.body).unwrap_or("%"))
}

pub(super) fn expired_flow(world: &World) -> Response {
    let message = "Due to inactivity, you've been signed out. Please sign in again: the flow token expired.";
    page::error(400, &Aadsts::new(400, "invalid_request", 50_089, message), world.now())
}

fn cancel(world: &mut World, id: &str, flow: PendingFlow) -> Response {
    world.flows.remove(id);
    match flow {
        PendingFlow::SignIn(sign_in) => {
            let message = "User declined to consent to access the app.";
            let error = Aadsts::new(400, "access_denied", 65_004, message);
            redirect_with_error(world, &sign_in.redirect_uri, sign_in.state.as_deref(), &error, Some("cancel"))
        }
        PendingFlow::Consent(request) => consent::consent_declined(world, &request),
    }
}

fn needs_prompt(world: &World, request: &SignInRequest, signed_in: &SignedInUser) -> bool {
    let Some(tenant) = world.tenants.get(&signed_in.tenant_id) else { return false };
    let prompted =
        tenant.principals.get(&request.client_id).is_some_and(|found| found.prompted.contains(&signed_in.oid));
    tenant.seed.sign_in_prompt && !prompted && request.prompting.is_none()
}

/// Completes a sign-in: a code for the app, and its service principal in the person's tenant.
fn issue_code(world: &mut World, request: SignInRequest, signed_in: SignedInUser) -> Response {
    let (now, code) = (world.now(), format!("1.{}{}", random_token(), random_token()));
    if let Some(principal) = world.ensure_service_principal(&signed_in.tenant_id, &request.client_id) {
        principal.prompted.insert(signed_in.oid.clone());
    }
    let mut pairs = vec![("code", code.clone())];
    pairs.extend(request.state.clone().map(|state| ("state", state)));
    pairs.push(("session_state", guid()));
    let location = with_query(&request.redirect_uri, &pairs);
    world.flows.codes.insert(code, AuthorizationCode { request, signed_in, issued: now, redeemed: false });
    Response::redirect(&location)
}
