//! Admin consent for a whole tenant.

use std::fmt::Write as _;

use super::{
    Aadsts, Authority, EndpointVersion,
    authorize::{RegisteredClient, check_account, expired_flow, parse_form, validate_client},
    flow::{ConsentRequest, PendingFlow, SignedInUser},
    missing,
    page::{self, account_picker, escape, page},
    parameters, with_query,
};
use crate::{
    clock::guid,
    http::{Request, Response},
    store::{CallbackErrors, Resource},
    world::{Tweaks, World},
};

fn parse_request(
    world: &World,
    request: &Request,
    segment: &str,
    version: EndpointVersion,
) -> Result<ConsentRequest, Aadsts> {
    let known: &[&str] = match version {
        EndpointVersion::V1 => &["client_id", "redirect_uri", "state", "prompt"],
        EndpointVersion::V2 => &["client_id", "redirect_uri", "state", "scope", "prompt"],
    };
    let query = parameters(&request.query)?;
    let authority = Authority::parse(world, segment)?;
    if version == EndpointVersion::V2 && authority == Authority::Common {
        let message = "The tenant 'common' is not supported by the v2.0 adminconsent endpoint.";
        return Err(Aadsts::new(400, "invalid_request", 90_009, message));
    }
    let RegisteredClient { client_id, redirect_uri } = validate_client(world, &authority, &query)?;
    if let Some(name) = query.keys().find(|name| !known.contains(&name.as_str())) {
        let message = format!("Invalid request. Request is malformed or invalid: '{name}'.");
        return Err(Aadsts::new(400, "invalid_request", 9_002_313, message));
    }
    let scope = query.get("scope").cloned();
    let resources = match &scope {
        None if version == EndpointVersion::V2 => return Err(missing("scope")),
        None => Resource::ALL.to_vec(),
        Some(scope) => vec![resource_of_scope(scope)?],
    };
    let record = world.apps.get(&client_id);
    let resources: Vec<Resource> = resources
        .into_iter()
        .filter(|resource| record.is_some_and(|record| !record.requested_roles(*resource).is_empty()))
        .collect();
    if resources.is_empty() {
        return Err(Aadsts::new(
            400,
            "invalid_client",
            650_056,
            "Misconfigured application. This could be due to one of the following: the client has not listed any \
             permissions for the resource in the requested permissions in the client's application registration.",
        ));
    }
    Ok(ConsentRequest { authority, client_id, redirect_uri, state: query.get("state").cloned(), scope, resources })
}

/// The resource of `{resource}/.default`.
pub(super) fn resource_of_scope(scope: &str) -> Result<Resource, Aadsts> {
    let invalid = |message: String| Aadsts::new(400, "invalid_scope", 70_011, message);
    let mut parts = scope.split(' ').filter(|part| !part.is_empty());
    let (Some(first), None) = (parts.next(), parts.next()) else {
        let message = format!("The provided value for scope {scope} contains more than one resource, or none.");
        return Err(Aadsts::new(400, "invalid_request", 700_022, message));
    };
    let Some(identifier) = first.strip_suffix("/.default") else {
        return Err(Aadsts::new(
            400,
            "invalid_scope",
            1_002_012,
            format!(
                "The provided value for scope {first} is not valid. Client credential flows must have a scope value \
                 with /.default suffixed to the resource identifier (application ID URI)."
            ),
        ));
    };
    if identifier.is_empty() {
        return Err(invalid(format!("The scope {first} is not valid.")));
    }
    Resource::of_identifier(identifier).ok_or_else(|| no_such_resource(identifier, ""))
}

pub(super) fn no_such_resource(identifier: &str, tenant: &str) -> Aadsts {
    Aadsts::new(
        400,
        "invalid_resource",
        500_011,
        format!(
            "The resource principal named {identifier} was not found in the tenant named {tenant}. This can happen if \
             the application has not been installed by the administrator of the tenant or consented to by any user in \
             the tenant. You might have sent your authentication request to the wrong tenant."
        ),
    )
}

pub(super) fn start(world: &mut World, request: &Request, segment: &str, version: EndpointVersion) -> Response {
    let consent = match parse_request(world, request, segment, version) {
        Ok(consent) => consent,
        Err(error) => return page::error(400, &error, world.now()),
    };
    let signed_in = world.flows.signed_in_user(request);
    let asked_to_choose = request.decoded_query().contains("prompt=select_account");
    let id = world.flows.start(PendingFlow::Consent(consent.clone()));
    match signed_in {
        Some(signed_in)
            if !asked_to_choose && check_account(world, &consent.authority, &consent.client_id, &signed_in).is_ok() =>
        {
            consent_page(world, &id, &consent, &signed_in)
        }
        _ => {
            let name = world.apps.get(&consent.client_id).map(|record| record.app.display_name.clone());
            account_picker(world, &id, &name.unwrap_or_default())
        }
    }
}

/// The consent page: the requested roles, with Accept for a person who may consent and Cancel.
pub(super) fn consent_page(world: &World, id: &str, consent: &ConsentRequest, signed_in: &SignedInUser) -> Response {
    let Some(record) = world.apps.get(&consent.client_id) else { return expired_flow(world) };
    let Some(tenant) = world.tenants.get(&signed_in.tenant_id) else { return expired_flow(world) };
    let (flow, app) = (escape(id), escape(&record.app.display_name));
    let organisation = escape(&tenant.seed.display_name);
    let name = escape(tenant.user(&signed_in.oid).map_or("", |user| &user.name));
    let mut body = format!(r#"<p class="note">{name}</p><p><strong id="app">{app}</strong></p>"#);
    if !may_consent(world, consent, signed_in) {
        let _ = write!(
            body,
            r#"<p id="need-admin">{app} needs permission to access resources in your organization that only an admin can grant. Please ask an admin to grant permission to this app before you can use it.</p>
<form method="post" action="/consent">
<input type="hidden" name="flow" value="{flow}">
<button id="cancel" name="decision" value="cancel">Return to the application without granting consent</button>
</form>"#
        );
        return page(200, "Need admin approval", &body);
    }
    let _ = write!(body, r#"<p>Review for {organisation}. This app would like to:</p><ul id="permissions">"#);
    for resource in &consent.resources {
        for role in record.requested_roles(*resource) {
            let _ = write!(body, "<li>{} ({})</li>", escape(&role), escape(resource.display_name()));
        }
    }
    let _ = write!(
        body,
        r#"</ul>
<p>If you accept, this app will get access to the specified resources for all users in your organization.</p>
<form method="post" action="/consent">
<input type="hidden" name="flow" value="{flow}">
<button id="cancel" name="decision" value="cancel">Cancel</button>
<button id="accept" class="primary" name="decision" value="accept">Accept</button>
</form>"#
    );
    page(200, "Permissions requested", &body)
}

fn may_consent(world: &World, consent: &ConsentRequest, signed_in: &SignedInUser) -> bool {
    let user = world.tenants.get(&signed_in.tenant_id).and_then(|tenant| tenant.user(&signed_in.oid));
    user.is_some_and(|user| {
        consent
            .resources
            .iter()
            .all(|resource| user.wids.iter().any(|role| resource.consenting_roles().contains(&role.as_str())))
    })
}

/// Handles the form of the consent page.
pub(super) fn submit(world: &mut World, request: &Request, tweaks: &Tweaks) -> Response {
    let form = match parse_form(request) {
        Ok(form) => form,
        Err(error) => return page::error(400, &error, world.now()),
    };
    let id = form.get("flow").cloned().unwrap_or_default();
    let Some(PendingFlow::Consent(consent)) = world.flows.get(&id) else { return expired_flow(world) };
    let Some(signed_in) = world.flows.signed_in_user(request) else { return expired_flow(world) };
    if let Err(error) = check_account(world, &consent.authority, &consent.client_id, &signed_in) {
        return page::error(400, &error, world.now());
    }
    world.flows.remove(&id);
    if let Some(code) = tweaks.aadsts {
        return consent_refused(world, &consent, &signed_in.tenant_id, &Aadsts::of_code(code));
    }
    if form.get("decision").map(String::as_str) != Some("accept") {
        return consent_declined(world, &consent);
    }
    if !may_consent(world, &consent, &signed_in) {
        return consent_refused(world, &consent, &signed_in.tenant_id, &Aadsts::of_code(90_094));
    }
    accept(world, &consent, &signed_in)
}

fn accept(world: &mut World, consent: &ConsentRequest, signed_in: &SignedInUser) -> Response {
    let Some(tenant) = world.tenants.get(&signed_in.tenant_id) else { return expired_flow(world) };
    if !consent.resources.iter().all(|resource| tenant.has_resource(*resource)) {
        return consent_refused(world, consent, &signed_in.tenant_id, &Aadsts::of_code(650_052));
    }
    let propagation = tenant.seed.propagation;
    let roles = world
        .apps
        .get(&consent.client_id)
        .map(|record| consent.resources.iter().flat_map(|resource| record.requested_roles(*resource)).collect())
        .unwrap_or_default();
    world.grant(&signed_in.tenant_id, &consent.client_id, &roles);
    if let Some(principal) = world.ensure_service_principal(&signed_in.tenant_id, &consent.client_id) {
        principal.propagation = propagation;
    }
    let mut pairs = vec![("admin_consent", "True".to_owned()), ("tenant", signed_in.tenant_id.clone())];
    pairs.extend(consent.state.clone().map(|state| ("state", state)));
    pairs.extend(consent.scope.clone().map(|scope| ("scope", scope)));
    Response::redirect(&with_query(&consent.redirect_uri, &pairs))
}

fn callback_errors(world: &World, tenant_id: Option<&str>) -> CallbackErrors {
    tenant_id.and_then(|id| world.tenants.get(id)).map(|tenant| tenant.seed.callback_errors).unwrap_or_default()
}

fn consent_refused(world: &World, consent: &ConsentRequest, tenant_id: &str, error: &Aadsts) -> Response {
    let mut pairs = Vec::new();
    if callback_errors(world, Some(tenant_id)) == CallbackErrors::ConsentRequired {
        pairs.push(("admin_consent", "True".to_owned()));
    }
    pairs.push(("error", error.error.to_owned()));
    pairs.push(("error_description", error.description(&guid(), &guid(), world.now())));
    pairs.push(("error_uri", format!("https://login.microsoftonline.com/error?code={}", error.code)));
    pairs.extend(consent.state.clone().map(|state| ("state", state)));
    Response::redirect(&with_query(&consent.redirect_uri, &pairs))
}

/// Redirects after Cancel, with the parameters that the tenant is set to.
pub(super) fn consent_declined(world: &World, consent: &ConsentRequest) -> Response {
    let tenant_id = match &consent.authority {
        Authority::Tenant(tid) => Some(tid.as_str()),
        Authority::Organizations | Authority::Common => None,
    };
    let error = Aadsts::new(400, "consent_required", 65_004, "User declined to consent to access the app.");
    let mut pairs = match callback_errors(world, tenant_id) {
        CallbackErrors::ConsentRequired => vec![
            ("admin_consent", "True".to_owned()),
            ("error", "consent_required".to_owned()),
            ("error_description", error.description(&guid(), &guid(), world.now())),
        ],
        CallbackErrors::PermissionDenied => vec![
            ("error", "permission_denied".to_owned()),
            ("error_description", "The admin canceled the request".to_owned()),
        ],
        CallbackErrors::AccessDenied => vec![
            ("error", "access_denied".to_owned()),
            ("error_subcode", "cancel".to_owned()),
            ("error_description", error.description(&guid(), &guid(), world.now())),
        ],
    };
    pairs.extend(consent.state.clone().map(|state| ("state", state)));
    Response::redirect(&with_query(&consent.redirect_uri, &pairs))
}

#[cfg(test)]
mod tests;
