//! Validation of requests. Error details name what is wrong and never repeat what the caller sent.

use std::{collections::BTreeMap, ops::RangeInclusive};

use jiff::Timestamp;
use serde_json::{Map, Value};
use shared::{
    error::{Error, Result},
    lambda::{event::HttpRequest, route::page_limit},
    text::parse_utc,
};

const MAX_CUSTOMER_CHARACTERS: usize = 120;

pub(crate) fn invalid(detail: impl Into<String>) -> Error {
    Error::InvalidRequest(detail.into())
}

/// A request body: a JSON object with known names only.
pub(crate) struct Body(Map<String, Value>);

impl Body {
    /// Parses the body of `http`.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] for anything but an object, or for a name that is not in `known`.
    pub(crate) fn parse(http: &HttpRequest, known: &[&str]) -> Result<Self> {
        let Ok(Value::Object(fields)) = serde_json::from_slice(&http.body) else {
            return Err(invalid(format!("The body must be a JSON object. Known names are: {}.", known.join(", "))));
        };
        if fields.keys().any(|name| !known.contains(&name.as_str())) {
            return Err(invalid(format!("A name in the body is not known here. Known are: {}.", known.join(", "))));
        }
        Ok(Self(fields))
    }

    /// Removes members that are null. Where something is created, null and an absent member mean the same.
    pub(crate) fn without_nulls(mut self) -> Self {
        self.0.retain(|_, value| !value.is_null());
        self
    }

    /// The string under `name`, if there is one.
    pub(crate) fn text(&self, name: &str) -> Result<Option<&str>> {
        self.0
            .get(name)
            .map(|value| value.as_str().ok_or_else(|| invalid(format!("`{name}` must be text."))))
            .transpose()
    }

    /// The whole number under `name`, if there is one. It must be in `range`.
    pub(crate) fn integer(&self, name: &str, range: RangeInclusive<u32>) -> Result<Option<u32>> {
        let Some(value) = self.0.get(name) else { return Ok(None) };
        let number = value.as_u64().and_then(|number| u32::try_from(number).ok());
        let Some(number) = number.filter(|number| range.contains(number)) else {
            let (least, most) = range.into_inner();
            return Err(invalid(format!("`{name}` must be a whole number from {least} to {most}.")));
        };
        Ok(Some(number))
    }

    /// The customer's name, if the body has one.
    pub(crate) fn customer(&self) -> Result<Option<String>> {
        let Some(customer) = self.text("customer")? else { return Ok(None) };
        let fits = (1..=MAX_CUSTOMER_CHARACTERS).contains(&customer.chars().count());
        if fits && !customer.trim().is_empty() && !customer.chars().any(char::is_control) {
            Ok(Some(customer.to_owned()))
        } else {
            Err(invalid(format!(
                "`customer` must be 1 to {MAX_CUSTOMER_CHARACTERS} characters, not only blanks, no control characters."
            )))
        }
    }

    /// The time under `name`, if there is one.
    pub(crate) fn time(&self, name: &str) -> Result<Option<Timestamp>> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        match parse_utc(text) {
            Some(time) => Ok(Some(time)),
            None => Err(invalid(format!("`{name}` must be a time like 2026-11-22T10:00:00Z."))),
        }
    }
}

/// The page of a list that a caller requests.
pub(crate) struct PageRequest<'a> {
    /// The largest number of items, 1 to 100.
    pub(crate) limit: u32,
    /// The `next` of the page before.
    pub(crate) next: Option<&'a str>,
}

impl<'a> PageRequest<'a> {
    pub(crate) fn parse(parameters: &BTreeMap<&'static str, &'a str>) -> Result<Self> {
        let limit = page_limit(parameters.get("limit").copied())?;
        Ok(Self { limit, next: parameters.get("next").copied() })
    }
}

/// Refuses parameters and a body on a route that would ignore them.
pub(crate) fn expect_no_input(http: &HttpRequest) -> Result<()> {
    if !http.query.is_empty() {
        return Err(invalid("This route takes no query parameters."));
    }
    let body = http.body.trim_ascii();
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
        Body::parse(&request, &["customer", "hours", "from"])
    }

    fn detail<T>(result: Result<T>) -> String {
        match result {
            Err(Error::InvalidRequest(detail)) => detail,
            _ => panic!("not refused as invalid"),
        }
    }

    #[test]
    fn body_must_be_an_object_with_known_names() {
        for wrong in [json!([]), json!("x"), json!(null), json!(1), json!({"customer": "x", "<b>": 1})] {
            let detail = detail(body(&wrong));
            assert!(detail.contains("customer, hours, from") && !detail.contains("<b>"), "{detail}");
        }
        let not_json = HttpRequest { body: b"{\"customer\"".to_vec(), ..HttpRequest::default() };
        detail(Body::parse(&not_json, &["customer"]));
        detail(Body::parse(&HttpRequest::default(), &["customer"]));
    }

    #[test]
    fn invalid_values_are_reported_with_their_names() {
        for (value, name) in [
            (json!({"hours": "24"}), "hours"),
            (json!({"hours": 0}), "hours"),
            (json!({"hours": 721}), "hours"),
            (json!({"hours": -1}), "hours"),
            (json!({"hours": 1.5}), "hours"),
            (json!({"hours": 4_294_967_297_u64}), "hours"),
            (json!({"hours": null}), "hours"),
        ] {
            assert!(detail(body(&value).unwrap().integer("hours", 1..=720)).contains(name), "{value}");
        }
        for value in
            [json!(7), json!(null), json!(""), json!("  "), json!("a\nb"), json!("x".repeat(121)), json!(["x"])]
        {
            assert!(detail(body(&json!({"customer": value})).unwrap().customer()).contains("customer"), "{value}");
        }
        let longest = "ü".repeat(120);
        assert_eq!(body(&json!({"customer": longest})).unwrap().customer().unwrap(), Some(longest));
        assert_eq!(body(&json!({"customer": null})).unwrap().without_nulls().customer().unwrap(), None);
    }

    #[test]
    fn times_must_be_utc_with_z() {
        for text in ["2026-11-22T10:00:00Z", "2026-11-22T10:00:00.1234567Z"] {
            let body = body(&json!({"from": text})).unwrap();
            assert_eq!(body.time("from").unwrap().unwrap().to_string(), text);
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
            assert!(detail(body(&json!({"from": text})).unwrap().time("from")).contains("from"), "{text}");
        }
    }

    #[test]
    fn page_limit_is_1_to_100_and_defaults_to_50() {
        let parse =
            |name, value| PageRequest::parse(&BTreeMap::from([(name, value)])).map(|page| (page.limit, page.next));
        assert_eq!(parse("next", "n").unwrap(), (50, Some("n")));
        assert_eq!((parse("limit", "1").unwrap().0, parse("limit", "100").unwrap().0), (1, 100));
        for wrong in ["0", "101", "-1", "+5", "x", "", "1.0", "99999999999"] {
            detail(parse("limit", wrong));
        }
    }

    #[test]
    fn routes_without_input_refuse_a_body_and_parameters() {
        let with = |body: &str| HttpRequest { body: body.into(), ..HttpRequest::default() };
        for body in ["", " ", "{}", " {} "] {
            expect_no_input(&with(body)).unwrap();
        }
        for body in ["x", "[]", "{\"a\":1}", "null"] {
            detail(expect_no_input(&with(body)));
        }
        detail(expect_no_input(&HttpRequest { query: vec![("dry_run".into(), "1".into())], ..HttpRequest::default() }));
    }
}
