//! Reading what callers send, and saying in our own words what is wrong with it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Map, Value};
use shared::{
    error::{Error, Result},
    lambda::{event::HttpRequest, route::page_limit},
    text::parse_utc,
};

const LONGEST_CUSTOMER: usize = 120;

pub(crate) fn invalid(what: impl Into<String>) -> Error {
    Error::InvalidRequest(what.into())
}

/// A body: a JSON object that holds known names only.
pub(crate) struct Body(Map<String, Value>);

impl Body {
    /// Reads it; other names than `known` are refused.
    pub(crate) fn read(request: &HttpRequest, known: &[&str]) -> Result<Self> {
        let Ok(Value::Object(fields)) = serde_json::from_slice(&request.body) else {
            return Err(invalid(format!("The body must be a JSON object. Known names are: {}.", known.join(", "))));
        };
        if fields.keys().any(|name| !known.contains(&name.as_str())) {
            return Err(invalid(format!("A name in the body is not known here. Known are: {}.", known.join(", "))));
        }
        Ok(Self(fields))
    }

    /// For what is created: null says no more than absence.
    pub(crate) fn without_nulls(mut self) -> Self {
        self.0.retain(|_, value| !value.is_null());
        self
    }

    /// A text, where the name is there.
    pub(crate) fn text(&self, name: &str) -> Result<Option<&str>> {
        self.0
            .get(name)
            .map(|value| value.as_str().ok_or_else(|| invalid(format!("`{name}` must be text."))))
            .transpose()
    }

    /// A whole number within bounds, where the name is there.
    pub(crate) fn whole(&self, name: &str, least: u32, most: u32) -> Result<Option<u32>> {
        let Some(value) = self.0.get(name) else { return Ok(None) };
        let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
        match number.filter(|number| (least..=most).contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(invalid(format!("`{name}` must be a whole number from {least} to {most}."))),
        }
    }

    /// A customer's name, where the name is there.
    pub(crate) fn customer(&self) -> Result<Option<String>> {
        let Some(customer) = self.text("customer")? else { return Ok(None) };
        let fits = (1..=LONGEST_CUSTOMER).contains(&customer.chars().count());
        if fits && !customer.trim().is_empty() && !customer.chars().any(char::is_control) {
            Ok(Some(customer.to_owned()))
        } else {
            Err(invalid(format!(
                "`customer` must be 1 to {LONGEST_CUSTOMER} characters, not only blanks, no control characters."
            )))
        }
    }

    /// An instant, where the name is there.
    pub(crate) fn instant(&self, name: &str) -> Result<Option<Timestamp>> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        match parse_utc(text) {
            Some(instant) => Ok(Some(instant)),
            None => Err(invalid(format!("`{name}` must be a time like 2026-11-22T10:00:00Z."))),
        }
    }
}

/// What a listing is asked for: how many, and from where on.
pub(crate) fn page<'a>(parameters: &BTreeMap<&'static str, &'a str>) -> Result<(u32, Option<&'a str>)> {
    let limit = page_limit(parameters.get("limit").copied())?;
    Ok((limit, parameters.get("next").copied()))
}

/// Refuses what a route would otherwise silently leave aside.
pub(crate) fn bare(request: &HttpRequest) -> Result<()> {
    if !request.query.is_empty() {
        return Err(invalid("This route takes no query parameters."));
    }
    let body = request.body.trim_ascii();
    if body.is_empty() || matches!(serde_json::from_slice(body), Ok(Value::Object(fields)) if fields.is_empty()) {
        Ok(())
    } else {
        Err(invalid("This route takes no body."))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn body(value: &Value) -> Result<Body> {
        let request = HttpRequest { body: value.to_string().into_bytes(), ..HttpRequest::default() };
        Body::read(&request, &["customer", "hours", "from"])
    }

    fn says<T>(result: Result<T>) -> String {
        match result {
            Err(Error::InvalidRequest(what)) => what,
            _ => panic!("not refused as invalid"),
        }
    }

    #[test]
    fn only_objects_with_known_names_are_bodies() {
        for wrong in [json!([]), json!("x"), json!(null), json!(1), json!({"customer": "x", "<b>": 1})] {
            let said = says(body(&wrong));
            assert!(said.contains("customer, hours, from") && !said.contains("<b>"), "{said}");
        }
        let not_json = HttpRequest { body: b"{\"customer\"".to_vec(), ..HttpRequest::default() };
        says(Body::read(&not_json, &["customer"]));
        says(Body::read(&HttpRequest::default(), &["customer"]));
    }

    #[test]
    fn wrong_types_and_values_are_named() {
        for (value, name) in [
            (json!({"hours": "24"}), "hours"),
            (json!({"hours": 0}), "hours"),
            (json!({"hours": 721}), "hours"),
            (json!({"hours": -1}), "hours"),
            (json!({"hours": 1.5}), "hours"),
            (json!({"hours": 4_294_967_297_u64}), "hours"),
            (json!({"hours": null}), "hours"),
        ] {
            assert!(says(body(&value).unwrap().whole("hours", 1, 720)).contains(name), "{value}");
        }
        for value in
            [json!(7), json!(null), json!(""), json!("  "), json!("a\nb"), json!("x".repeat(121)), json!(["x"])]
        {
            assert!(says(body(&json!({"customer": value})).unwrap().customer()).contains("customer"), "{value}");
        }
        let longest = "ü".repeat(120);
        assert_eq!(body(&json!({"customer": longest})).unwrap().customer().unwrap(), Some(longest));
        assert_eq!(body(&json!({"customer": null})).unwrap().without_nulls().customer().unwrap(), None);
    }

    #[test]
    fn times_are_utc_with_z() {
        for text in ["2026-11-22T10:00:00Z", "2026-11-22T10:00:00.1234567Z"] {
            let body = body(&json!({"from": text})).unwrap();
            assert_eq!(body.instant("from").unwrap().unwrap().to_string(), text);
        }
        for text in [
            "2026-11-22",
            "2026-11-22T10:00:00",
            "2026-11-22T10:00:00+00:00",
            "2026-11-22 10:00:00Z",
            "2026-11-22T10:00:00z",
            "2026-11-22T10:00Z",
            "2026-11-22T10:00:00.Z",
            "2026-13-22T10:00:00Z",
            "2026-11-22T25:00:00Z",
            "-26-11-22T10:00:00Z",
            "1763805600",
            "",
            "Z",
            "2026-11-22T10:00:00.1234567890Z",
            "ü026-11-22T10:00:0Z",
        ] {
            assert!(says(body(&json!({"from": text})).unwrap().instant("from")).contains("from"), "{text}");
        }
    }

    #[test]
    fn a_page_has_1_to_100_things() {
        let of = |limit| page(&BTreeMap::from([("limit", limit)]));
        assert_eq!(page(&BTreeMap::from([("next", "n")])).unwrap(), (50, Some("n")));
        assert_eq!((of("1").unwrap().0, of("100").unwrap().0), (1, 100));
        for wrong in ["0", "101", "-1", "+5", "x", "", "1.0", "99999999999"] {
            says(of(wrong));
        }
    }

    #[test]
    fn a_bare_route_takes_nothing_along() {
        let with = |body: &str| HttpRequest { body: body.into(), ..HttpRequest::default() };
        for body in ["", " ", "{}", " {} "] {
            bare(&with(body)).unwrap();
        }
        for body in ["x", "[]", "{\"a\":1}", "null"] {
            says(bare(&with(body)));
        }
        says(bare(&HttpRequest { query: vec![("dry_run".into(), "1".into())], ..HttpRequest::default() }));
    }
}
