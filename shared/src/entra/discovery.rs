//! The discovery documents of the login host (OpenID Connect Discovery 1.0), and the tenant that a name stands for.

use http::StatusCode;
use serde::Deserialize;
use url::Host;

use crate::{
    error::{Call, Result},
    http::{Deadline, Endpoint, HttpClient, Response, send},
    microsoft::{Cloud, Endpoints},
    tenant::TenantId,
    text::if_readable,
};

/// The members of a discovery document that are used here.
#[derive(Deserialize)]
pub(super) struct DiscoveryDocument {
    #[serde(default, deserialize_with = "if_readable")]
    pub(super) issuer: Option<String>,
    #[serde(default, deserialize_with = "if_readable")]
    pub(super) jwks_uri: Option<String>,
}

/// Requests the discovery document of `tenant`: a GUID, a domain or an alias such as `organizations`.
pub(super) async fn request_document(
    http: &HttpClient,
    login_host: &Endpoint,
    tenant: &str,
    deadline: Deadline,
) -> Result<Response> {
    let url = login_host.join(&format!("/{tenant}/v2.0/.well-known/openid-configuration"));
    send(http.get(url), Call::ReadDiscovery, deadline).await
}

/// The tenant that a domain or a GUID stands for in `cloud`, as the directory's discovery document has it. `None` if the
/// directory knows no such tenant in this cloud.
///
/// # Errors
/// [`Error::Unreachable`], [`Error::Upstream`] and [`Error::Malformed`] when Microsoft gives no usable response.
///
/// [`Error::Unreachable`]: crate::error::Error::Unreachable
/// [`Error::Upstream`]: crate::error::Error::Upstream
/// [`Error::Malformed`]: crate::error::Error::Malformed
pub async fn resolve_tenant(
    http: &HttpClient,
    endpoints: &Endpoints,
    cloud: Cloud,
    name: &str,
    deadline: Deadline,
) -> Result<Option<TenantId>> {
    let Some(name) = tenant_name(name) else { return Ok(None) };
    let response = request_document(http, &endpoints.authority, &name, deadline).await?;
    match response.status() {
        StatusCode::OK => {}
        StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND => return Ok(None),
        _ => return Err(response.unexpected_status()),
    }
    let malformed = response.malformed();
    let issuer = response.json::<DiscoveryDocument>().await?.issuer.ok_or(malformed)?;
    // The issuer of a tenant of another cloud names that cloud's login host.
    let tenant = issuer.split('/').find_map(|segment| TenantId::from_guid(segment).ok());
    Ok(tenant.filter(|tenant| cloud.id_token_issuer(tenant) == issuer))
}

/// A GUID or a domain, in the form that goes into a path. Aliases such as `common` are refused: they stand for no tenant.
fn tenant_name(name: &str) -> Option<String> {
    let name = name.trim();
    if let Ok(tenant) = TenantId::from_guid(name) {
        return Some(tenant.to_string());
    }
    let Ok(Host::Domain(domain)) = Host::parse(name) else { return None };
    let plain = domain.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.');
    let dotted = domain.split('.').count() > 1 && domain.split('.').all(|label| !label.is_empty());
    (plain && dotted && domain.len() <= 253).then_some(domain)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TENANT: &str = "11111111-2222-4333-8444-abcdefabcdef";

    #[test]
    fn only_guids_and_domains_name_a_tenant() {
        for (name, in_path) in [
            (TENANT.to_uppercase().as_str(), Some(TENANT)),
            (" Contoso.Example ", Some("contoso.example")),
            ("münchen.example", Some("xn--mnchen-3ya.example")),
            ("common", None),
            ("organizations", None),
            ("contoso.example/../x", None),
            ("contoso.example?x", None),
            ("a..b", None),
            ("127.0.0.1", None),
            ("", None),
        ] {
            assert_eq!(tenant_name(name).as_deref(), in_path, "{name}");
        }
    }
}
