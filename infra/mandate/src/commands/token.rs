//! An access token of one tenant, or what is in it.

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::{Session, text};
use crate::{args::Token, output::Field, problem::Problem, time::local};

impl Session {
    pub(crate) async fn token(&self, args: &Token) -> Result<(), Problem> {
        let resource = args.resource.map(crate::args::IncidentApi::word);
        let mut issued = issue(&self.api, &args.one.tenant_id.to_string(), resource).await?;
        if args.claims {
            let claims = claims_of(&mut issued);
            return if self.out.is_json() { self.out.object(&claims) } else { self.show_claims(&claims) };
        }
        if self.out.is_json() {
            return self.out.object(&issued);
        }
        self.out.say(crate::text::shown(text(&issued, "access_token")))?;
        let expires = local(text(&issued, "expires_at"), &self.out.zone);
        self.out.note(format_args!("It lives until {expires}. Whoever has it acts as the app in this tenant."));
        Ok(())
    }

    fn show_claims(&self, claims: &Value) -> Result<(), Problem> {
        let pairs = claims.as_object().into_iter().flatten().map(|(name, value)| {
            let text = match value {
                Value::Number(seconds) if matches!(name.as_str(), "iat" | "nbf" | "exp") => {
                    let at = seconds.as_i64().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
                    at.map_or_else(|| seconds.to_string(), |at| local(&at.to_string(), &self.out.zone))
                }
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            (name.as_str(), Field::from(text))
        });
        // A claim's name is outside text, too.
        let pairs: Vec<_> = pairs.map(|(name, field)| (crate::text::shown(name), field)).collect();
        self.out.pairs(pairs.iter().map(|(name, field)| (name.as_str(), field.clone())).collect())
    }
}

/// Asks for an access token of the tenant. The route writes an audit line.
pub(crate) async fn issue(api: &crate::api::Api, tenant: &str, resource: Option<&str>) -> Result<Value, Problem> {
    let body = resource.map(|resource| json!({"resource": resource}));
    api.post(&["tenants", tenant, "token"], body.as_ref()).await
}

/// Takes the token out of the response and returns its claims. An opaque token has none: then the other members count.
pub(crate) fn claims_of(issued: &mut Value) -> Value {
    let token = issued["access_token"].take();
    let parts: Vec<_> = token.as_str().unwrap_or_default().split('.').collect();
    let claims = match parts[..] {
        [_, claims, _] => BASE64_URL_SAFE_NO_PAD.decode(claims.trim_end_matches('=')).ok(),
        _ => None,
    };
    if let Some(claims) =
        claims.and_then(|claims| serde_json::from_slice::<Value>(&claims).ok()).filter(Value::is_object)
    {
        return claims;
    }
    let mut rest = json!({"opaque": true});
    for (name, value) in issued.as_object().into_iter().flatten().filter(|(name, _)| *name != "access_token") {
        rest[name] = value.clone();
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_never_hold_the_token() {
        let payload = BASE64_URL_SAFE_NO_PAD.encode(r#"{"aud":"https://graph.microsoft.com","roles":["A"]}"#);
        let mut jwt = json!({"access_token": format!("e30.{payload}.c2ln"), "resource": "graph"});
        assert_eq!(claims_of(&mut jwt), json!({"aud": "https://graph.microsoft.com", "roles": ["A"]}));
        for opaque in ["EwBgA8l6BAAUkj…", "a.b.c", "a.!!.c"] {
            let mut issued = json!({"access_token": opaque, "resource": "graph", "roles": null});
            assert_eq!(claims_of(&mut issued), json!({"opaque": true, "resource": "graph", "roles": null}), "{opaque}");
        }
    }
}
