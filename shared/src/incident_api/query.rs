//! The query for a list of incidents and its URL, in OData.

use jiff::Timestamp;
use url::{Url, form_urlencoded};

use crate::{
    http::Endpoint,
    incident::{record::Alerts, span::Span},
    microsoft::IncidentApi,
    registry::position::NextPage,
};

/// The largest `$skip`. Graph refuses more.
pub const MAX_SKIP: u32 = 500;

/// A query for a list of incidents.
#[derive(Clone, Debug, PartialEq)]
pub struct IncidentQuery {
    /// The span of last update.
    pub updated: Span,
    /// The span of creation; `None`: any time.
    pub created: Option<Span>,
    /// Further members that must equal a text. The values are not quoted yet.
    pub equal: Vec<(&'static str, String)>,
    /// The maximum number of rows in the response (`$top`).
    pub top: u32,
    /// The number of rows to leave out at the beginning (`$skip`).
    pub skip: u32,
    /// The page that a next link names; it takes the place of `skip`.
    pub next_page: Option<NextPage>,
    /// The alerts of each incident.
    pub alerts: Alerts,
}

/// The page that `link` names, if the link leads to the list at `list` and names one.
pub(super) fn next_page_of(link: &str, list: &Url) -> Option<NextPage> {
    let link = Url::parse(link).ok()?;
    if (link.origin(), link.path()) != (list.origin(), list.path()) {
        return None;
    }
    link.query_pairs().find_map(|(name, value)| match &*name {
        "$skip" => value.parse().ok().map(NextPage::Skip),
        "$skiptoken" => Some(NextPage::SkipToken(value.into_owned())),
        _ => None,
    })
}

impl IncidentQuery {
    /// A query for all incidents last updated in a span, with their alerts, as many as one response may hold.
    pub fn of(updated: Span, api: IncidentApi) -> Self {
        Self {
            updated,
            created: None,
            equal: Vec::new(),
            top: api.largest_page(),
            skip: 0,
            next_page: None,
            alerts: Alerts::Included,
        }
    }

    /// The URL of the query at an API's host.
    pub(super) fn url(&self, endpoint: &Endpoint, api: IncidentApi) -> Url {
        let mut conditions = conditions(api.last_update_member(), self.updated);
        if let Some(created) = self.created {
            conditions.extend(self::conditions(api.created_member(), created));
        }
        // A quote within text is doubled.
        conditions
            .extend(self.equal.iter().map(|(member, value)| format!("{member} eq '{}'", value.replace('\'', "''"))));
        let mut parameters = vec![("$filter", conditions.join(" and ")), ("$top", self.top.to_string())];
        match &self.next_page {
            Some(NextPage::Skip(rows)) => parameters.push(("$skip", rows.to_string())),
            Some(NextPage::SkipToken(token)) => parameters.push(("$skiptoken", token.clone())),
            None if self.skip > 0 => parameters.push(("$skip", self.skip.to_string())),
            None => {}
        }
        if self.alerts == Alerts::Included && api == IncidentApi::Graph {
            parameters.push(("$expand", "alerts".into()));
        }
        let query: Vec<String> =
            parameters.into_iter().map(|(name, value)| format!("{name}={}", escape(&value))).collect();
        let mut url = endpoint.join(api.incidents_path());
        url.set_query(Some(&query.join("&")));
        url
    }
}

fn conditions(member: &str, span: Span) -> Vec<String> {
    let mut conditions = vec![format!("{member} ge {}", whole_second(span.from))];
    conditions.extend(span.to.map(|to| format!("{member} lt {}", whole_second(to))));
    conditions
}

fn whole_second(instant: Timestamp) -> String {
    format!("{instant:.0}")
}

fn escape(value: &str) -> String {
    // Only forms read a plus as a space.
    form_urlencoded::byte_serialize(value.as_bytes()).collect::<String>().replace('+', "%20")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_link_counts_only_where_it_leads_to_the_list() {
        let list: Url = "https://graph.microsoft.com/v1.0/security/incidents?$top=50".parse().unwrap();
        let named = |link: &str| next_page_of(link, &list);
        let path = "https://graph.microsoft.com/v1.0/security/incidents";
        assert_eq!(named(&format!("{path}?$top=50&$skip=0")), Some(NextPage::Skip(0)));
        assert_eq!(named(&format!("{path}?%24skiptoken=a%26b")), Some(NextPage::SkipToken("a&b".into())));
        for elsewhere in [
            "https://graph.microsoft.com.example/v1.0/security/incidents?$skip=1",
            "http://graph.microsoft.com/v1.0/security/incidents?$skip=1",
            "https://graph.microsoft.com/v1.0/security/alerts?$skip=1",
            "https://graph.microsoft.com/v1.0/security/incidents?$skip=-1",
            "https://graph.microsoft.com/v1.0/security/incidents",
            "?$skip=1",
            "",
        ] {
            assert_eq!(named(elsewhere), None, "{elsewhere}");
        }
    }

    #[test]
    fn query_is_written_in_odata() {
        let span =
            Span { from: "2026-11-22T09:00:00Z".parse().unwrap(), to: Some("2026-11-22T10:00:00Z".parse().unwrap()) };
        let mut query = IncidentQuery::of(span, IncidentApi::Graph);
        query.equal.push(("assignedTo", "o'neil+x@contoso.example".into()));
        query.skip = 7;
        let url = query.url(&"https://graph.microsoft.com".parse().unwrap(), IncidentApi::Graph);
        let pairs: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        assert_eq!(url.path(), "/v1.0/security/incidents");
        assert!(!url.as_str().contains('+'));
        assert_eq!(
            pairs,
            [
                (
                    "$filter".into(),
                    "lastUpdateDateTime ge 2026-11-22T09:00:00Z and lastUpdateDateTime lt 2026-11-22T10:00:00Z and assignedTo eq 'o''neil+x@contoso.example'".into()
                ),
                ("$top".into(), "50".into()),
                ("$skip".into(), "7".into()),
                ("$expand".into(), "alerts".into())
            ]
        );
    }
}
