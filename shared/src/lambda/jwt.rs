//! Callers that API Gateway's JWT authoriser admitted: the claims that let one of them onto a route.
//!
//! The gateway has checked the signature, the issuer, the times and the audience. It hands each claim over as a text, and
//! an array as its members between brackets: `[mandate.read mandate.operate]`.
//! <https://docs.aws.amazon.com/apigateway/latest/developerguide/http-api-jwt-authorizer.html>

use serde_json::{Map, Value};

use super::event::Caller;
use crate::config::JwtAudience;

/// The longest part of a caller's name, in characters. The texts come from outside.
const MAX_CLAIM_CHARS: usize = 200;

/// The claims that name the caller, in the order of the name: the person or the service principal, then the app.
const NAMING_CLAIMS: [&str; 4] = ["oid", "sub", "azp", "appid"];

/// The scope that a route needs.
fn scope_of(route_key: &str) -> &'static str {
    match route_key {
        "POST /tenants/{tenant_id}/token" => "mandate.token",
        key if key.starts_with("GET ") => "mandate.read",
        _ => "mandate.operate",
    }
}

/// Returns the caller whose claims hold the audience and, in `roles` or `scp`, the scope of the route.
pub(super) fn caller(audience: &JwtAudience, route_key: &str, claims: &Map<String, Value>) -> Option<Caller> {
    let text = |name: &str| claims.get(name).and_then(Value::as_str).filter(|text| !text.trim().is_empty());
    if text("aud") != Some(audience.as_str()) {
        return None;
    }
    // An ID token of the same registration has the same audience, and may have roles. It is about a person who signed in to
    // an app, and passes through more hands than an access token.
    if claims.contains_key("nonce") {
        return None;
    }
    let scope = scope_of(route_key);
    if !["roles", "scp"].iter().any(|name| claims.get(*name).is_some_and(|claim| holds(claim, scope))) {
        return None;
    }
    let named = NAMING_CLAIMS.iter().filter_map(|name| Some(format!("{name}={}", shown(text(name)?))));
    let named: Vec<String> = named.collect();
    // Every call leaves the name of its caller in the audit.
    let issuer = text("iss").filter(|_| !named.is_empty())?;
    Some(Caller { name: format!("{} {}", shown(issuer), named.join(" ")) })
}

/// Returns true if one word of the claim is `scope`.
fn holds(claim: &Value, scope: &str) -> bool {
    match claim {
        Value::String(text) => {
            let inside = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
            inside.split(' ').any(|word| word == scope)
        }
        Value::Array(members) => members.iter().any(|member| member.as_str() == Some(scope)),
        _ => false,
    }
}

/// The text of a claim as a log line may hold it. A space would look like the end of the claim.
fn shown(text: &str) -> String {
    let safe = |letter: char| if letter.is_ascii_graphic() { letter } else { '?' };
    text.chars().take(MAX_CLAIM_CHARS).map(safe).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const AUDIENCE: &str = "api://mandate";
    const READ: &str = "GET /tenants/{tenant_id}/incidents";
    const OPERATE: &str = "POST /hunting";
    const TOKEN: &str = "POST /tenants/{tenant_id}/token";

    fn admitted(route_key: &str, claims: &Value) -> Option<String> {
        let claims = claims.as_object().unwrap();
        caller(&AUDIENCE.parse().unwrap(), route_key, claims).map(|caller| caller.name)
    }

    fn claims(name: &str, value: &Value) -> Value {
        json!({"iss": "https://login.example/v2.0", "aud": AUDIENCE, "sub": "s", name: value})
    }

    #[test]
    fn each_route_needs_its_scope() {
        let all = [READ, OPERATE, TOKEN, "DELETE /tenants/{tenant_id}", "PATCH /tenants/{tenant_id}", "$default", ""];
        let table: [(Value, &[&str]); 16] = [
            (json!("mandate.read"), &[READ]),
            (json!("[mandate.read]"), &[READ]),
            (json!("openid mandate.read profile"), &[READ]),
            (json!("[mandate.token mandate.read]"), &[READ, TOKEN]),
            (json!(["mandate.token"]), &[TOKEN]),
            (json!("mandate.operate"), &[OPERATE, all[3], all[4], all[5], all[6]]),
            (json!("[mandate.read mandate.operate mandate.token]"), &all),
            (json!("mandate.readwrite"), &[]),
            (json!("Mandate.Read"), &[]),
            (json!("mandate"), &[]),
            (json!("mandate.read,mandate.operate"), &[]),
            (json!("[[mandate.read]]"), &[]),
            (json!(["mandate.read mandate.operate"]), &[]),
            (json!({"mandate.read": true}), &[]),
            (json!(""), &[]),
            (json!(null), &[]),
        ];
        for (claim, routes) in table {
            for name in ["roles", "scp"] {
                for route in all {
                    let is_admitted = admitted(route, &claims(name, &claim)).is_some();
                    assert_eq!(is_admitted, routes.contains(&route), "{name} {claim} {route:?}");
                }
            }
            assert_eq!(admitted(READ, &claims("scope", &claim)), None, "{claim}: no other claim counts");
        }
    }

    #[test]
    fn audience_must_be_the_configured_one() {
        for audience in [
            json!("api://mandate/"),
            json!("[api://mandate]"),
            json!("api://mandate x"),
            json!(["api://mandate"]),
            json!(""),
            json!(null),
        ] {
            let mut claims = claims("roles", &json!("mandate.read"));
            claims["aud"] = audience;
            assert_eq!(admitted(READ, &claims), None, "{claims}");
        }
    }

    #[test]
    fn id_token_is_no_access_token() {
        let mut claims = claims("roles", &json!("[mandate.token]"));
        assert!(admitted(TOKEN, &claims).is_some());
        claims["nonce"] = json!("n");
        assert_eq!(admitted(TOKEN, &claims), None);
    }

    #[test]
    fn caller_is_named_by_issuer_person_and_app() {
        let mut claims = claims("roles", &json!("mandate.read"));
        assert_eq!(admitted(READ, &claims).unwrap(), "https://login.example/v2.0 sub=s");
        (claims["oid"], claims["azp"]) = (json!("o\n x"), json!("a".repeat(500)));
        let app = "a".repeat(200);
        assert_eq!(admitted(READ, &claims).unwrap(), format!("https://login.example/v2.0 oid=o??x sub=s azp={app}"));
        for name in ["oid", "sub", "azp"] {
            claims[name] = json!("");
        }
        assert_eq!(admitted(READ, &claims), None, "nobody");
        (claims["sub"], claims["iss"]) = (json!("s"), json!(7));
        assert_eq!(admitted(READ, &claims), None, "no issuer");
    }

    fn value() -> impl Strategy<Value = Value> {
        let word = prop::sample::select(vec![
            "mandate.read",
            "mandate.operate",
            "mandate.token",
            "mandate.",
            "read",
            "[",
            "]",
            " ",
            "  ",
            "\t",
            ",",
            "\"",
            "MANDATE.READ",
            "mandate.read\u{0}",
            "",
        ]);
        let text = prop::collection::vec(word, 0..5).prop_map(|words| Value::String(words.concat()));
        let leaf = prop_oneof![text, any::<bool>().prop_map(Value::from), any::<i64>().prop_map(Value::from)];
        leaf.prop_recursive(2, 12, 4, |inner| {
            let list = prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from);
            let names = prop::sample::select(vec!["mandate.read", "scp", "roles", "x"]);
            let object = prop::collection::vec((names, inner), 0..3)
                .prop_map(|members| members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect());
            prop_oneof![list, object]
        })
    }

    proptest! {
        #[test]
        fn no_shape_of_claims_admits_without_the_scope(
            roles in value(), scp in value(), other in value(), aud in value(), is_audience in any::<bool>(),
        ) {
            let aud = if is_audience { json!(AUDIENCE) } else { aud };
            let claims = json!({"iss": "i", "sub": "s", "aud": aud, "roles": roles, "scp": scp, "scopes": other});
            for route in [READ, OPERATE, TOKEN] {
                if admitted(route, &claims).is_some() {
                    let scope = scope_of(route);
                    // The scope stands in one of the two claims, with nothing beside it but brackets and spaces.
                    let stands_alone = |text: &str| text.split([' ', '[', ']']).any(|word| word == scope);
                    let is_in = |claim: &Value| match claim {
                        Value::String(text) => stands_alone(text),
                        Value::Array(members) => members.contains(&json!(scope)),
                        _ => false,
                    };
                    prop_assert!(is_audience && (is_in(&roles) || is_in(&scp)), "{claims}");
                }
            }
        }
    }
}
