//! The routes of the HTTP API, and the choice of the route for a request.

use std::collections::BTreeMap;

use serde::Deserialize;

/// A route of the HTTP API as `deploy.py` reports it.
#[derive(Clone, Debug, Deserialize)]
pub struct Route {
    /// An HTTP method, or `ANY` for all methods.
    pub method: String,
    /// A path such as `/tenants/{tenant_id}`. A last segment `{name+}` matches the rest of the path.
    pub path: String,
    /// The name of the function in AWS, not of its binary.
    pub function: String,
    /// The authorization that the route requires.
    pub auth: Auth,
}

/// The authorization that a route requires.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Auth {
    /// A signature of an AWS identity.
    #[serde(rename = "AWS_IAM")]
    AwsIam,
    /// Nothing: the route is public.
    #[serde(rename = "NONE")]
    None,
}

impl Route {
    /// The `routeKey` of the events of this route.
    pub fn key(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    fn segments(&self) -> impl Iterator<Item = Segment<'_>> {
        self.path.trim_start_matches('/').split('/').map(Segment::parse)
    }

    /// The sort key of a route. A more specific route has a smaller one: segment by segment, a literal comes before a
    /// parameter and a parameter before a greedy one; then a method comes before `ANY`.
    fn rank(&self) -> (Vec<u8>, bool) {
        let ranks = self.segments().map(|segment| match segment {
            Segment::Literal(_) => 0,
            Segment::Parameter(_) => 1,
            Segment::Greedy(_) => 2,
        });
        (ranks.collect(), self.method == "ANY")
    }

    fn parameters(&self, path: &str) -> Option<BTreeMap<String, String>> {
        let mut parameters = BTreeMap::new();
        let mut rest = Some(path.strip_prefix('/')?);
        for segment in self.segments() {
            let given = rest?;
            let (word, after) = given.split_once('/').map_or((given, None), |(word, after)| (word, Some(after)));
            match segment {
                Segment::Literal(literal) if percent_decode(word) == literal => {}
                Segment::Literal(_) => return None,
                Segment::Parameter(_) if word.is_empty() => return None,
                Segment::Parameter(name) => {
                    parameters.insert(name.to_owned(), percent_decode(word));
                }
                Segment::Greedy(_) if given.is_empty() => return None,
                Segment::Greedy(name) => {
                    parameters.insert(name.to_owned(), percent_decode(given));
                    return Some(parameters);
                }
            }
            rest = after;
        }
        rest.is_none().then_some(parameters)
    }
}

enum Segment<'a> {
    Literal(&'a str),
    Parameter(&'a str),
    Greedy(&'a str),
}

impl<'a> Segment<'a> {
    fn parse(text: &'a str) -> Self {
        match text.strip_prefix('{').and_then(|text| text.strip_suffix('}')) {
            Some(name) => name.strip_suffix('+').map_or(Self::Parameter(name), Self::Greedy),
            None => Self::Literal(text),
        }
    }
}

/// The route of a request, with the values of its path parameters.
#[derive(Debug)]
pub struct RouteMatch<'a> {
    /// The route.
    pub route: &'a Route,
    /// The values of the path parameters by their names, percent-decoded once.
    pub parameters: BTreeMap<String, String>,
}

/// All routes in the order of their specificity.
#[derive(Debug)]
pub struct Routes(Vec<Route>);

impl Routes {
    /// Orders the routes.
    pub fn new(mut routes: Vec<Route>) -> Self {
        routes.sort_by_key(Route::rank);
        Self(routes)
    }

    /// Returns the most specific route for a request. `path` is not decoded.
    pub fn find(&self, method: &str, path: &str) -> Option<RouteMatch<'_>> {
        self.0
            .iter()
            .filter(|route| route.method == "ANY" || route.method == method)
            .find_map(|route| route.parameters(path).map(|parameters| RouteMatch { route, parameters }))
    }
}

/// Returns the `rawPath` of a request's path: decoded, cut at a question mark, and decoded once more. Returns `None` for a
/// path that API Gateway refuses, because it cannot be decoded twice.
///
/// Seen by live captures of July 2026:
/// <https://github.com/hotsock/voker/blob/a1c00bf491e026f81917cc2edfdaca03eabc7518/vokerhttp/testdata/ingress-paths.json>
pub fn raw_path(path: &str) -> Option<String> {
    let decoded = percent_decode(path);
    let cut = decoded.split('?').next().unwrap_or_default();
    let mut escapes = cut.split('%').skip(1);
    let is_escape =
        |text: &str| text.get(..2).is_some_and(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    escapes.all(is_escape).then(|| percent_decode(cut))
}

/// Decodes percent-encoding. Invalid sequences are kept, and bytes that are not UTF-8 are replaced.
fn percent_decode(text: &str) -> String {
    let hex = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let encoded = match (first, after) {
            (b'%', [high, low, ..]) => hex(*high).zip(hex(*low)),
            _ => None,
        };
        if let Some((high, low)) = encoded {
            bytes.push(high << 4 | low);
            rest = &after[2..];
        } else {
            bytes.push(first);
            rest = after;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes(keys: &[&str]) -> Routes {
        let route = |key: &&str| {
            let (method, path) = key.split_once(' ').unwrap();
            Route { method: method.into(), path: path.into(), function: (*key).into(), auth: Auth::None }
        };
        Routes::new(keys.iter().map(route).collect())
    }

    #[test]
    fn most_specific_route_wins() {
        let routes = routes(&[
            "ANY /{proxy+}",
            "GET /consent/{invitation}",
            "GET /consent/callback",
            "POST /consent/{invitation}",
            "GET /tenants/{tenant_id}/incidents/{incident_id}",
        ]);
        let found = |method, path| routes.find(method, path).map(|found| found.route.key());
        assert_eq!(found("GET", "/consent/callback").unwrap(), "GET /consent/callback");
        assert_eq!(found("GET", "/consent/abc").unwrap(), "GET /consent/{invitation}");
        assert_eq!(found("POST", "/consent/callback").unwrap(), "POST /consent/{invitation}");
        assert_eq!(found("GET", "/tenants/a/incidents/7").unwrap(), "GET /tenants/{tenant_id}/incidents/{incident_id}");
        assert_eq!(found("GET", "/tenants/a").unwrap(), "ANY /{proxy+}");
        assert_eq!(found("GET", "/"), None);
    }

    #[test]
    fn route_matches_neither_more_nor_fewer_segments() {
        let routes = routes(&["GET /tenants/{tenant_id}"]);
        assert!(routes.find("GET", "/tenants").is_none());
        assert!(routes.find("GET", "/tenants/").is_none());
        assert!(routes.find("GET", "/tenants/a/").is_none());
        assert!(routes.find("DELETE", "/tenants/a").is_none());
    }

    #[test]
    fn raw_path_is_decoded_and_cut_as_in_captures() {
        for (sent, raw) in [
            ("/capture/plain", Some("/capture/plain")),
            ("/capture/space%20value", Some("/capture/space value")),
            ("/capture/question%3Fvalue", Some("/capture/question")),
            ("/capture/percent%25done", None),
            ("/capture/hash%23value", Some("/capture/hash#value")),
            ("/capture/slash%2Fvalue", Some("/capture/slash/value")),
            ("/capture/unicode-%CE%BB-%E4%B8%96%E7%95%8C", Some("/capture/unicode-λ-世界")),
            ("/capture/literal%252Fvalue", Some("/capture/literal/value")),
            ("/capture/literal%253Fvalue", Some("/capture/literal?value")),
            ("/capture/literal%2525value", Some("/capture/literal%value")),
        ] {
            assert_eq!(raw_path(sent).as_deref(), raw, "{sent}");
        }
    }

    #[test]
    fn path_parameters_are_decoded_once() {
        let routes = routes(&["GET /tenants/{tenant_id}"]);
        let found = routes.find("GET", "/tenants/a%2Fb%20%c3%a9%zz").unwrap();
        assert_eq!(found.parameters["tenant_id"], "a/b é%zz");
        assert_eq!(routes.find("GET", "/tenants/a%252Fb%3Fc").unwrap().parameters["tenant_id"], "a%2Fb?c");
    }
}
