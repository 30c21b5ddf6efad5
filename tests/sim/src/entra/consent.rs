//! Admin consent for a whole tenant.

use std::fmt::Write as _;

use super::{
    Aadsts, Authority,
    authorize::{admits, client, expired, form, picker},
    flow::{Consent, Flow, Person},
    missing,
    page::{self, escape, page},
    parameters, with_query,
};
use crate::{
    clock::guid,
    http::{Request, Response},
    store::{CallbackErrors, Resource},
    world::{Tweaks, World},
};

fn validate(world: &World, request: &Request, segment: &str, v2: bool) -> Result<Consent, Aadsts> {
    let known: &[&str] = if v2 {
        &["client_id", "redirect_uri", "state", "scope", "prompt"]
    } else {
        &["client_id", "redirect_uri", "state", "prompt"]
    };
    let query = parameters(&request.query)?;
    let authority = Authority::parse(world, segment)?;
    if v2 && authority == Authority::Common {
        let message = "The tenant 'common' is not supported by the v2.0 adminconsent endpoint.";
        return Err(Aadsts::new(400, "invalid_request", 90_009, message));
    }
    let (client_id, redirect_uri) = client(world, &authority, &query)?;
    if let Some(name) = query.keys().find(|name| !known.contains(&name.as_str())) {
        let message = format!("Invalid request. Request is malformed or invalid: '{name}'.");
        return Err(Aadsts::new(400, "invalid_request", 9_002_313, message));
    }
    let scope = query.get("scope").cloned();
    let resources = match &scope {
        None if v2 => return Err(missing("scope")),
        None => Resource::ALL.to_vec(),
        Some(scope) => vec![resource_of_scope(scope)?],
    };
    let record = world.apps.get(&client_id);
    let resources: Vec<Resource> = resources
        .into_iter()
        .filter(|resource| record.is_some_and(|record| !record.requested(*resource).is_empty()))
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
    Ok(Consent { authority, client_id, redirect_uri, state: query.get("state").cloned(), scope, resources })
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

pub(super) fn start(world: &mut World, request: &Request, segment: &str, v2: bool) -> Response {
    let consent = match validate(world, request, segment, v2) {
        Ok(consent) => consent,
        Err(error) => return page::error(400, &error, world.now()),
    };
    let person = world.flows.person(request);
    let asked_to_choose = request.decoded_query().contains("prompt=select_account");
    let id = world.flows.begin(Flow::Consent(consent.clone()));
    match person {
        Some(person) if !asked_to_choose && admits(world, &consent.authority, &consent.client_id, &person).is_ok() => {
            show(world, &id, &consent, &person)
        }
        _ => {
            let name = world.apps.get(&consent.client_id).map(|record| record.app.display_name.clone());
            picker(world, &id, &name.unwrap_or_default())
        }
    }
}

/// What is asked, and Accept and Cancel for those who may.
pub(super) fn show(world: &World, id: &str, consent: &Consent, person: &Person) -> Response {
    let Some(record) = world.apps.get(&consent.client_id) else { return expired(world) };
    let Some(tenant) = world.tenants.get(&person.tenant_id) else { return expired(world) };
    let (flow, app) = (escape(id), escape(&record.app.display_name));
    let organisation = escape(&tenant.seed.display_name);
    let name = escape(tenant.user(&person.oid).map_or("", |user| &user.name));
    let mut body = format!(r#"<p class="note">{name}</p><p><strong id="app">{app}</strong></p>"#);
    if !may_consent(world, consent, person) {
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
        for role in record.requested(*resource) {
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

fn may_consent(world: &World, consent: &Consent, person: &Person) -> bool {
    let user = world.tenants.get(&person.tenant_id).and_then(|tenant| tenant.user(&person.oid));
    user.is_some_and(|user| {
        consent
            .resources
            .iter()
            .all(|resource| user.wids.iter().any(|role| resource.consenting_roles().contains(&role.as_str())))
    })
}

/// The form of the consent page.
pub(super) fn post(world: &mut World, request: &Request, tweaks: &Tweaks) -> Response {
    let form = match form(request) {
        Ok(form) => form,
        Err(error) => return page::error(400, &error, world.now()),
    };
    let id = form.get("flow").cloned().unwrap_or_default();
    let Some(Flow::Consent(consent)) = world.flows.find(&id) else { return expired(world) };
    let Some(person) = world.flows.person(request) else { return expired(world) };
    if let Err(error) = admits(world, &consent.authority, &consent.client_id, &person) {
        return page::error(400, &error, world.now());
    }
    world.flows.end(&id);
    if let Some(code) = tweaks.aadsts {
        return refused(world, &consent, &person.tenant_id, &Aadsts::of_code(code));
    }
    if form.get("decision").map(String::as_str) != Some("accept") {
        return declined(world, &consent);
    }
    if !may_consent(world, &consent, &person) {
        return refused(world, &consent, &person.tenant_id, &Aadsts::of_code(90_094));
    }
    accept(world, &consent, &person)
}

fn accept(world: &mut World, consent: &Consent, person: &Person) -> Response {
    let Some(tenant) = world.tenants.get(&person.tenant_id) else { return expired(world) };
    if !consent.resources.iter().all(|resource| tenant.has_resource(*resource)) {
        return refused(world, consent, &person.tenant_id, &Aadsts::of_code(650_052));
    }
    let propagation = tenant.seed.propagation;
    let roles = world
        .apps
        .get(&consent.client_id)
        .map(|record| consent.resources.iter().flat_map(|resource| record.requested(*resource)).collect())
        .unwrap_or_default();
    world.grant(&person.tenant_id, &consent.client_id, &roles);
    if let Some(principal) = world.principal(&person.tenant_id, &consent.client_id) {
        principal.propagation = propagation;
    }
    let mut pairs = vec![("admin_consent", "True".to_owned()), ("tenant", person.tenant_id.clone())];
    pairs.extend(consent.state.clone().map(|state| ("state", state)));
    pairs.extend(consent.scope.clone().map(|scope| ("scope", scope)));
    Response::redirect(&with_query(&consent.redirect_uri, &pairs))
}

fn shape(world: &World, tenant_id: Option<&str>) -> CallbackErrors {
    tenant_id.and_then(|id| world.tenants.get(id)).map(|tenant| tenant.seed.callback_errors).unwrap_or_default()
}

fn refused(world: &World, consent: &Consent, tenant_id: &str, error: &Aadsts) -> Response {
    let mut pairs = Vec::new();
    if shape(world, Some(tenant_id)) == CallbackErrors::ConsentRequired {
        pairs.push(("admin_consent", "True".to_owned()));
    }
    pairs.push(("error", error.error.to_owned()));
    pairs.push(("error_description", error.description(&guid(), &guid(), world.now())));
    pairs.push(("error_uri", format!("https://login.microsoftonline.com/error?code={}", error.code)));
    pairs.extend(consent.state.clone().map(|state| ("state", state)));
    Response::redirect(&with_query(&consent.redirect_uri, &pairs))
}

/// Cancel, in the shape that the tenant is set to.
pub(super) fn declined(world: &World, consent: &Consent) -> Response {
    let tenant_id = match &consent.authority {
        Authority::Tenant(tid) => Some(tid.as_str()),
        Authority::Organizations | Authority::Common => None,
    };
    let error = Aadsts::new(400, "consent_required", 65_004, "User declined to consent to access the app.");
    let mut pairs = match shape(world, tenant_id) {
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
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use crate::{
        CallbackErrors, Decision, Host,
        entra::keys::{Jwt, s256},
        http::decode_pairs,
        testing::{CLIENT, CONTOSO, FABRIKAM, REDIRECT, Rig, SECRET, rig},
    };

    const ADMIN: &str = "admin@contoso.example";

    fn consent_url(rig: &Rig, place: &str, resource: &str) -> String {
        format!(
            "{}/{place}/v2.0/adminconsent?client_id={CLIENT}&redirect_uri={REDIRECT}&scope=https://{resource}/.default&state=s%26t",
            rig.sim.entra_url()
        )
    }

    fn callback(location: &str) -> BTreeMap<String, String> {
        let query = location.strip_prefix(REDIRECT).unwrap().strip_prefix('?').unwrap();
        decode_pairs(query).unwrap().into_iter().collect()
    }

    #[tokio::test]
    async fn accepting_grants_what_the_registration_asks_of_the_resource() {
        let rig = rig().await;
        let url = consent_url(&rig, CONTOSO, "graph.microsoft.com");
        let back = callback(&rig.sim.consent(&url, CONTOSO, ADMIN, Decision::Accept).unwrap());
        assert_eq!(back["admin_consent"], "True");
        assert_eq!((back["tenant"].as_str(), back["state"].as_str()), (CONTOSO, "s&t"));
        assert_eq!(back["scope"], "https://graph.microsoft.com/.default");
        assert_eq!(rig.sim.granted(CONTOSO, CLIENT), Some(vec!["SecurityIncident.Read.All".to_owned()]));
    }

    #[tokio::test]
    async fn declining_has_three_shapes_and_grants_nothing() {
        let rig = rig().await;
        let url = consent_url(&rig, CONTOSO, "graph.microsoft.com");
        for (shape, error) in [
            (CallbackErrors::ConsentRequired, "consent_required"),
            (CallbackErrors::PermissionDenied, "permission_denied"),
            (CallbackErrors::AccessDenied, "access_denied"),
        ] {
            rig.sim.update_tenant(CONTOSO, |tenant| tenant.callback_errors = shape);
            let back = callback(&rig.sim.consent(&url, CONTOSO, ADMIN, Decision::Cancel).unwrap());
            assert_eq!((back["error"].as_str(), back["state"].as_str()), (error, "s&t"));
            assert_eq!(back.contains_key("admin_consent"), shape == CallbackErrors::ConsentRequired);
        }
        assert_eq!(rig.sim.granted(CONTOSO, CLIENT), None);
    }

    #[tokio::test]
    async fn an_absent_resource_and_a_foreign_person_are_refused() {
        let rig = rig().await;
        rig.sim.update_tenant(CONTOSO, |tenant| tenant.defender_licensed = false);
        let url = consent_url(&rig, CONTOSO, "api.security.microsoft.com");
        let back = callback(&rig.sim.consent(&url, CONTOSO, ADMIN, Decision::Accept).unwrap());
        assert!(back["error_description"].starts_with("AADSTS650052"));
        let page = rig.sim.consent(&url, FABRIKAM, "admin@fabrikam.example", Decision::Accept).unwrap_err();
        assert!(page.contains("AADSTS50020"), "{page}");
        let page =
            rig.sim.consent(&consent_url(&rig, "common", "graph.microsoft.com"), CONTOSO, ADMIN, Decision::Accept);
        assert!(page.is_err());
        let foreign = url.replace("partner.example.com", "evil.example");
        assert!(rig.sim.consent(&foreign, CONTOSO, ADMIN, Decision::Accept).unwrap_err().contains("AADSTS50011"));
    }

    #[tokio::test]
    async fn a_person_without_a_role_can_only_go_back() {
        let rig = rig().await;
        let url = consent_url(&rig, "organizations", "graph.microsoft.com");
        let back = rig.sim.consent(&url, CONTOSO, "user@contoso.example", Decision::Accept).unwrap();
        assert_eq!(callback(&back)["error"], "consent_required");
        assert_eq!(rig.sim.granted(CONTOSO, CLIENT), None);
    }

    #[tokio::test]
    async fn the_pages_work_for_a_browser_with_cookies() {
        let rig = rig().await;
        let picker = rig.send(rig.http.get(consent_url(&rig, CONTOSO, "graph.microsoft.com"))).await;
        assert!(picker.text.contains(r#"data-user="admin@contoso.example""#));
        let value = |text: &str, before: &str| {
            let start = text.find(before).unwrap() + before.len();
            text[start..].split('"').next().unwrap().to_owned()
        };
        let flow = value(&picker.text, r#"name="flow" value=""#);
        let user = format!("{CONTOSO}/{}", value(&picker.text, &format!(r#"value="{CONTOSO}/"#)));
        let login = format!("{}/login", rig.sim.entra_url());
        let page = rig.send(rig.http.post(login).form(&[("flow", &flow), ("user", &user)])).await;
        assert!(page.text.contains(r#"id="accept""#) && page.text.contains(r#"id="cancel""#));
        assert!(page.text.contains("Partner &lt;b&gt;"));
        let cookie = page.header("set-cookie").split(';').next().unwrap().to_owned();
        let consent = format!("{}/consent", rig.sim.entra_url());
        let form = [("flow", flow.as_str()), ("decision", "accept")];
        let stranger = rig.send(rig.http.post(&consent).form(&form)).await;
        assert_eq!(stranger.status, 400);
        let back = rig.send(rig.http.post(&consent).header("cookie", &cookie).form(&form)).await;
        assert_eq!((back.status, callback(back.header("location"))["tenant"].as_str()), (302, CONTOSO));
        let again = rig.send(rig.http.post(&consent).header("cookie", &cookie).form(&form)).await;
        assert_eq!(again.status, 400);
        assert_eq!(rig.sim.count(Host::Entra, CONTOSO), 1);
    }

    #[tokio::test]
    async fn a_sign_in_gives_a_code_that_works_once() {
        let rig = rig().await;
        let verifier = "v".repeat(43);
        let url = format!(
            "{}/organizations/oauth2/v2.0/authorize?client_id={CLIENT}&response_type=code&redirect_uri={REDIRECT}\
             &response_mode=query&scope=openid%20profile&state=abc&nonce=n1&code_challenge={}&code_challenge_method=S256\
             &prompt=select_account",
            rig.sim.entra_url(),
            s256(&verifier)
        );
        let sign_in = || callback(&rig.sim.sign_in(&url, CONTOSO, ADMIN).unwrap());
        let redeem = async |code: &str, verifier: &str, redirect: &str, place: &str| {
            let form = [
                ("grant_type", "authorization_code"),
                ("client_id", CLIENT),
                ("client_secret", SECRET),
                ("code", code),
                ("redirect_uri", redirect),
                ("code_verifier", verifier),
            ];
            rig.token(place, &form).await.json()
        };
        let back = sign_in();
        assert_eq!(back["state"], "abc");
        let body = redeem(&back["code"], &verifier, REDIRECT, "organizations").await;
        let jwt = Jwt::parse(body["id_token"].as_str().unwrap()).unwrap();
        assert_eq!((jwt.claim("aud"), jwt.claim("nonce"), jwt.claim("tid")), (Some(CLIENT), Some("n1"), Some(CONTOSO)));
        assert_eq!(jwt.claim("iss"), Some(&*format!("https://login.microsoftonline.com/{CONTOSO}/v2.0")));
        assert_eq!(jwt.claims["wids"][0], crate::GLOBAL_ADMINISTRATOR);
        let codes = |body: serde_json::Value| body["error_codes"].clone();
        assert_eq!(codes(redeem(&back["code"], &verifier, REDIRECT, "organizations").await), json!([54_005]));
        assert_eq!(
            codes(redeem(&sign_in()["code"], &"w".repeat(43), REDIRECT, "organizations").await),
            json!([501_481])
        );
        assert_eq!(codes(redeem(&sign_in()["code"], &verifier, "https://x", "organizations").await), json!([500_112]));
        assert_eq!(codes(redeem(&sign_in()["code"], &verifier, REDIRECT, FABRIKAM).await), json!([700_005]));
        assert_eq!(
            rig.sim.granted(CONTOSO, CLIENT),
            Some(Vec::new()),
            "signing in makes a service principal without roles"
        );
    }
}
