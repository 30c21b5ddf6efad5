//! Creates or updates the multi-tenant app registration that customers consent to.
//!
//! It compares the registration with the options and sends only the differences, so it can be run again for every change.
//! Every member of a tenant may register an app under any name. So a registration is updated only if the operator names
//! its client id, and never because its name is the expected one.

use std::{collections::BTreeMap, path::Path};

use aws_lc_rs::digest;
use base64::{Engine, prelude::BASE64_STANDARD};
use http::Method;
use serde_json::{Map, Value, json};
use shared::{
    http::{Endpoint, HttpClient},
    microsoft::{Cloud, IncidentApi},
    text::hex,
};
use url::Url;

use super::{graph::Graph, sign_in};
use crate::{args::Register, output::Output, problem::Problem};

/// The registration after a run, and the properties that the run changed.
struct Outcome {
    client_id: Option<String>,
    changed: Vec<String>,
}

/// Runs `mandate register`.
pub(crate) async fn run(args: &Register, out: &Output) -> Result<(), Problem> {
    let endpoint: Endpoint = args
        .graph
        .trim_end_matches('/')
        .parse()
        .map_err(|_| Problem::new("usage", "--graph must be https://HOST, or http on this machine."))?;
    let http = HttpClient::default();
    let token = sign_in::token(args, &http).await?;
    let registration = Registration { graph: Graph { endpoint, http, token, dry_run: args.dry_run }, args, out };
    let outcome = registration.apply().await?;
    if out.is_json() {
        return out.object(&json!({
            "client_id": outcome.client_id, "changed": outcome.changed, "dry_run": args.dry_run,
        }));
    }
    let done = match (args.dry_run, outcome.changed.is_empty()) {
        (_, true) => "Nothing differs.".to_owned(),
        (true, false) => format!("Not sent (--dry-run): {}.", outcome.changed.join(", ")),
        (false, false) => format!("Changed: {}.", outcome.changed.join(", ")),
    };
    out.say(done)?;
    match outcome.client_id {
        Some(client_id) => out.say(format_args!("client_id {}", crate::text::shown(&client_id))),
        None => Ok(()),
    }
}

struct Registration<'a> {
    graph: Graph,
    args: &'a Register,
    out: &'a Output,
}

impl Registration<'_> {
    async fn apply(&self) -> Result<Outcome, Problem> {
        let (access, names) = self.required_access().await?;
        let wanted = self.desired(&access);
        let (current, mut changed) = match self.find().await? {
            None => {
                let body = Value::Object(wanted);
                (self.graph.write(Method::POST, "/applications", &body).await?, vec!["created".to_owned()])
            }
            Some(current) => {
                self.note_holders(&current).await?;
                self.refuse_removal(&current, &access, &names)?;
                let differing: Map<_, _> =
                    wanted.into_iter().filter(|(name, value)| !contains(&current[name], value)).collect();
                let changed: Vec<_> = differing.keys().cloned().collect();
                if !differing.is_empty() {
                    let path = application(current["appId"].as_str());
                    self.graph.write(Method::PATCH, &path, &Value::Object(differing)).await?;
                }
                (current, changed)
            }
        };
        let client_id = current["appId"].as_str().map(str::to_owned);
        if let Some(file) = &self.args.certificate {
            changed.extend(self.add_certificate(client_id.as_deref(), file).await?);
        }
        if let Some(issuer) = &self.args.federated_issuer {
            changed.extend(self.add_federation(client_id.as_deref(), issuer).await?);
        }
        Ok(Outcome { client_id, changed })
    }

    /// The required permissions of the app, and the names of all app roles of that API by id.
    ///
    /// The ids are looked up by the roles' names, because a reader can check names.
    async fn required_access(&self) -> Result<(Value, BTreeMap<String, String>), Problem> {
        if self.args.sign_in_only {
            return Ok((json!([]), BTreeMap::new()));
        }
        let api = match self.args.incident_api {
            crate::args::IncidentApi::Graph => IncidentApi::Graph,
            crate::args::IncidentApi::Defender => IncidentApi::Defender,
        };
        let app_id = Cloud::Commercial.resource_application_id(api);
        let filter = format!("appId eq '{app_id}'");
        let options = [("filter", filter.as_str()), ("select", "appId,displayName,appRoles")];
        let found = self.graph.get("/servicePrincipals", &options).await?;
        let Some(resource) = found["value"].as_array().and_then(|found| found.first()) else {
            return Err(Problem::new("registration", format!("Your own tenant has no service principal of {api}."))
                .advise("Enable Defender XDR there, or use --incident-api graph."));
        };
        let is_application = |role: &&Value| {
            role["allowedMemberTypes"].as_array().is_some_and(|types| types.contains(&json!("Application")))
        };
        let ids: BTreeMap<&str, &str> = resource["appRoles"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(is_application)
            .filter_map(|role| Some((role["value"].as_str()?, role["id"].as_str()?)))
            .collect();
        let wanted = [
            (true, api.read_role()),
            (self.args.with_write, api.write_role()),
            (self.args.with_hunting, api.hunting_role()),
        ];
        let wanted: Vec<_> = wanted.into_iter().filter_map(|(wanted, role)| wanted.then_some(role)).collect();
        let missing: Vec<_> = wanted.iter().copied().filter(|role| !ids.contains_key(role)).collect();
        if !missing.is_empty() {
            let name = resource["displayName"].as_str().unwrap_or_default();
            return Err(Problem::new("registration", format!("{name} has no app role {}.", missing.join(", "))));
        }
        let roles: Vec<_> = wanted.iter().map(|role| json!({"id": ids[role], "type": "Role"})).collect();
        let names = ids.into_iter().map(|(name, id)| (id.to_owned(), name.to_owned())).collect();
        Ok((json!([{"resourceAppId": app_id, "resourceAccess": roles}]), names))
    }

    /// The registration that the options describe.
    fn desired(&self, access: &Value) -> Map<String, Value> {
        let desired = json!({
            "displayName": self.args.name,
            "signInAudience": "AzureADMultipleOrgs",
            "groupMembershipClaims": "DirectoryRole",
            "requiredResourceAccess": access,
            "web": {
                "redirectUris": self.args.redirect_uri,
                "implicitGrantSettings": {"enableAccessTokenIssuance": false, "enableIdTokenIssuance": false},
            },
            "servicePrincipalLockConfiguration": {
                "isEnabled": true,
                "allProperties": true,
                "credentialsWithUsageVerify": true,
                "credentialsWithUsageSign": true,
                "tokenEncryptionKeyId": true,
            },
        });
        match desired {
            Value::Object(desired) => desired,
            _ => Map::new(),
        }
    }

    /// The existing registration with the client id of the options; `None` if they name none, and the name is free.
    ///
    /// # Errors
    /// `registration` for an unknown client id, and for a name that a registration has already.
    async fn find(&self) -> Result<Option<Value>, Problem> {
        if let Some(client_id) = &self.args.client_id {
            let found = self.applications("appId", client_id).await?.into_iter().next();
            return found.map(Some).ok_or_else(|| {
                Problem::new("registration", format!("There is no registration {client_id} in this tenant."))
            });
        }
        let found = self.applications("displayName", &self.args.name).await?;
        let ids: Vec<_> = found.iter().filter_map(|one| one["appId"].as_str()).collect();
        if found.is_empty() {
            return Ok(None);
        }
        let detail = format!("The name {} is taken, by the client id {}.", self.args.name, ids.join(", "));
        Err(Problem::new("registration", detail).advise(
            "Look at its owners and credentials: whoever made it may hold one. If it is yours, --client-id ID updates it.",
        ))
    }

    async fn applications(&self, attribute: &str, value: &str) -> Result<Vec<Value>, Problem> {
        let filter = format!("{attribute} eq '{}'", value.replace('\'', "''"));
        let mut found = self.graph.get("/applications", &[("filter", &filter)]).await?;
        match found["value"].take() {
            Value::Array(found) => Ok(found),
            _ => Ok(Vec::new()),
        }
    }

    /// Says on standard error how many credentials and owners a registration has. Each of them can act as the app.
    async fn note_holders(&self, current: &Value) -> Result<(), Problem> {
        let client_id = current["appId"].as_str();
        let path = application(client_id);
        let federated = self.graph.get(&format!("{path}/federatedIdentityCredentials"), &[]).await?;
        let owners = self.graph.get(&format!("{path}/owners"), &[]).await?;
        let counts = [
            (&current["keyCredentials"], "certificate"),
            (&current["passwordCredentials"], "client secret"),
            (&federated["value"], "federated credential"),
            (&owners["value"], "owner"),
        ];
        let counts: Vec<_> = counts
            .into_iter()
            .map(|(list, noun)| (list.as_array().map_or(0, Vec::len), noun))
            .filter(|(count, _)| *count > 0)
            .map(|(count, noun)| format!("{count} {noun}{}", if count == 1 { "" } else { "s" }))
            .collect();
        if !counts.is_empty() {
            let client_id = crate::text::shown(client_id.unwrap_or_default());
            let counts = counts.join(", ");
            self.out.note(format_args!(
                "mandate: {client_id} has {counts}. Each of them can act as the app: know them all."
            ));
        }
        Ok(())
    }

    /// Refuses to remove a permission that customers have consented to, unless the person confirms it.
    fn refuse_removal(&self, current: &Value, access: &Value, names: &BTreeMap<String, String>) -> Result<(), Problem> {
        let after = permissions(access);
        let lost: Vec<_> = permissions(&current["requiredResourceAccess"])
            .into_iter()
            .filter(|permission| !after.contains(permission))
            .map(|(app_id, id)| names.get(&id).cloned().unwrap_or_else(|| format!("{id} of {app_id}")))
            .collect();
        if lost.is_empty() || self.args.remove_permissions {
            return Ok(());
        }
        let mut lost = lost;
        lost.sort_unstable();
        Err(Problem::new("registration", format!("This would remove the permissions {}.", lost.join(", ")))
            .advise("Keep them with --with-write or --with-hunting, or confirm with --remove-permissions."))
    }

    /// Adds a certificate and keeps the existing ones, so that both work during a rotation.
    async fn add_certificate(&self, client_id: Option<&str>, file: &Path) -> Result<Option<String>, Problem> {
        let unreadable = |why: &str| Problem::new("usage", format!("{}: {why}", file.display()));
        let text = std::fs::read_to_string(file).map_err(|error| unreadable(&format!("{error}.")))?;
        let der = pem_certificate(&text).ok_or_else(|| unreadable("it does not contain a PEM certificate."))?;
        let thumbprint = BASE64_STANDARD.encode(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &der));
        let mut known = Vec::new();
        if let Some(client_id) = client_id {
            let mut found = self.graph.get(&application(Some(client_id)), &[("select", "keyCredentials")]).await?;
            if let Value::Array(found) = found["keyCredentials"].take() {
                known = found;
            }
        }
        if known.iter().any(|credential| credential["customKeyIdentifier"] == *thumbprint) {
            return Ok(None);
        }
        known.push(json!({
            "type": "AsymmetricX509Cert",
            "usage": "Verify",
            "customKeyIdentifier": thumbprint,
            "key": BASE64_STANDARD.encode(&der),
        }));
        self.graph.write(Method::PATCH, &application(client_id), &json!({"keyCredentials": known})).await?;
        Ok(Some("keyCredentials".to_owned()))
    }

    /// Adds a federated identity credential for each subject and keeps the existing ones. With it, the app can sign in by
    /// a token of another identity provider.
    async fn add_federation(&self, client_id: Option<&str>, issuer: &str) -> Result<Option<String>, Problem> {
        let path = format!("{}/federatedIdentityCredentials", application(client_id));
        let known = if client_id.is_some() { self.graph.get(&path, &[]).await? } else { Value::Null };
        let known = known["value"].as_array().map(Vec::as_slice).unwrap_or_default();
        let audience = self.args.federated_audience.as_deref().unwrap_or_else(|| federation_audience(&self.args.graph));
        let mut missing: Vec<&str> = Vec::new();
        for subject in &self.args.federated_subject {
            match known.iter().find(|one| one["issuer"] == issuer && one["subject"] == subject.as_str()) {
                None if missing.contains(&subject.as_str()) => {}
                None => missing.push(subject),
                Some(one) if one["audiences"] == json!([audience]) => {}
                Some(one) => {
                    let detail =
                        format!("{subject} exists with the audience {} instead of {audience}.", one["audiences"]);
                    return Err(Problem::new("registration", detail).advise("Remove it first."));
                }
            }
        }
        for subject in &missing {
            let hash = hex(digest::digest(&digest::SHA256, format!("{issuer}\n{subject}").as_bytes()).as_ref());
            let name = format!("aws-{}", hash.get(..16).unwrap_or_default());
            let body = json!({"name": name, "issuer": issuer, "subject": subject, "audiences": [audience]});
            self.graph.write(Method::POST, &path, &body).await?;
        }
        Ok((!missing.is_empty()).then(|| "federatedIdentityCredentials".to_owned()))
    }
}

/// The path of an application by its client id. A dry run that would create it has none.
fn application(client_id: Option<&str>) -> String {
    format!("/applications(appId='{}')", client_id.unwrap_or_default())
}

/// The audience that Entra requires in another provider's token, by Graph's host.
fn federation_audience(graph: &str) -> &'static str {
    let cloud = match Url::parse(graph).ok().and_then(|url| url.host_str().map(str::to_owned)).as_deref() {
        Some("graph.microsoft.us") => Cloud::GccHigh,
        Some("dod-graph.microsoft.us") => Cloud::Dod,
        _ => Cloud::Commercial,
    };
    cloud.federation_audience()
}

/// The permissions of a `requiredResourceAccess`, as pairs of resource and role.
fn permissions(access: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let resources = access.as_array().into_iter().flatten();
    resources
        .flat_map(|resource| {
            let roles = resource["resourceAccess"].as_array().into_iter().flatten();
            roles.map(|role| (text(&resource["resourceAppId"]), text(&role["id"])))
        })
        .collect()
}

/// Returns true if the current value has everything that is wanted. The order of a list does not matter.
fn contains(current: &Value, wanted: &Value) -> bool {
    match (current, wanted) {
        (Value::Object(current), Value::Object(wanted)) => {
            wanted.iter().all(|(name, value)| current.get(name).is_some_and(|current| contains(current, value)))
        }
        (Value::Array(current), Value::Array(wanted)) => {
            current.len() == wanted.len() && wanted.iter().all(|value| current.iter().any(|one| contains(one, value)))
        }
        _ => current == wanted,
    }
}

/// The first certificate of a PEM text in DER.
fn pem_certificate(text: &str) -> Option<Vec<u8>> {
    let (_, rest) = text.split_once("-----BEGIN CERTIFICATE-----")?;
    let (body, _) = rest.split_once("-----END CERTIFICATE-----")?;
    let body: String = body.split_ascii_whitespace().collect();
    BASE64_STANDARD.decode(body).ok()
}

/// Validates the URL of our callback: https, or http on this machine; no wildcard and no query.
pub(crate) fn redirect_uri(text: &str) -> Result<String, String> {
    let refused = || "must be https://…/consent/callback, without a wildcard".to_owned();
    let url = Url::parse(text).map_err(|_| refused())?;
    let local = url.scheme() == "http" && matches!(url.host_str(), Some("localhost" | "127.0.0.1"));
    let plain = url.query().is_none() && url.fragment().is_none() && url.username().is_empty() && !text.contains('*');
    let right = (url.scheme() == "https" || local) && plain && url.path().ends_with("/consent/callback");
    if right { Ok(text.to_owned()) } else { Err(refused()) }
}

impl Register {
    /// The login host of the cloud that `--graph` is in, or the one that was named.
    pub(super) fn login_host(&self) -> String {
        self.login.clone().unwrap_or_else(|| {
            let host = self.graph.trim_end_matches('/');
            let government = host.rsplit_once('.').is_some_and(|(_, domain)| domain == "us");
            format!("https://login.microsoftonline.{}", if government { "us" } else { "com" })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wanted_is_contained_in_any_order() {
        let current = json!({"a": [{"id": "1", "more": true}, {"id": "2"}], "b": null});
        assert!(contains(&current, &json!({"a": [{"id": "2"}, {"id": "1"}]})));
        for wanted in [json!({"a": [{"id": "1"}]}), json!({"b": {}}), json!({"c": 1})] {
            assert!(!contains(&current, &wanted), "{wanted}");
        }
    }

    #[test]
    fn federation_audience_follows_the_cloud() {
        for (graph, audience) in [
            ("https://graph.microsoft.com", "api://AzureADTokenExchange"),
            ("https://graph.microsoft.us/", "api://AzureADTokenExchangeUSGov"),
            ("https://dod-graph.microsoft.us", "api://AzureADTokenExchangeUSGov"),
            ("http://127.0.0.1:8402", "api://AzureADTokenExchange"),
        ] {
            assert_eq!(federation_audience(graph), audience);
        }
    }
}
