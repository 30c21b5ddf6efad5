//! What a surface is asked: the URL of a list, in OData.

use jiff::Timestamp;
use url::{Url, form_urlencoded};

use super::Surface;
use crate::http::Endpoint;

/// A span of time in whole seconds, its beginning included and its end not. Without an end it goes on for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// Begins with this second.
    pub from: Timestamp,
    /// Ends before this second.
    pub to: Option<Timestamp>,
}

impl Span {
    /// Whether an instant lies in it.
    pub fn contains(&self, instant: Timestamp) -> bool {
        self.from <= instant && self.to.is_none_or(|to| instant < to)
    }

    /// Its length in whole seconds; `None` without an end.
    pub fn seconds(&self) -> Option<i64> {
        self.to.map(|to| to.as_second() - self.from.as_second())
    }
}

/// The most rows that may be left out at the beginning of a list: what Graph refuses beyond.
pub const LARGEST_SKIP: u32 = 500;

/// A list of incidents.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// Time of last update.
    pub updated: Span,
    /// Time of creation, where that is asked for, too.
    pub created: Option<Span>,
    /// Further conditions, as member and value; text is quoted here.
    pub equal: Vec<(&'static str, String)>,
    /// The most rows of the answer.
    pub top: u32,
    /// Rows to leave out at the beginning.
    pub skip: u32,
    /// Whether alerts should come along. Where they always do (Defender), nothing is asked.
    pub alerts: bool,
}

impl Question {
    /// All incidents last updated in a span, with their alerts, as many as one answer may hold.
    pub fn of(updated: Span, surface: Surface) -> Self {
        Self { updated, created: None, equal: Vec::new(), top: surface.largest_page(), skip: 0, alerts: true }
    }

    /// The URL to ask.
    pub fn url(&self, endpoint: &Endpoint, surface: Surface) -> Url {
        let mut conditions = conditions(surface.last_update_member(), self.updated);
        if let Some(created) = self.created {
            conditions.extend(self::conditions(surface.created_member(), created));
        }
        // A quote within text is doubled.
        conditions
            .extend(self.equal.iter().map(|(member, value)| format!("{member} eq '{}'", value.replace('\'', "''"))));
        let mut parameters = vec![("$filter", conditions.join(" and ")), ("$top", self.top.to_string())];
        if self.skip > 0 {
            parameters.push(("$skip", self.skip.to_string()));
        }
        if self.alerts && surface == Surface::Graph {
            parameters.push(("$expand", "alerts".into()));
        }
        let query: Vec<String> =
            parameters.into_iter().map(|(name, value)| format!("{name}={}", escape(&value))).collect();
        let mut url = endpoint.join(surface.incidents_path());
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
    // A plus is a space only to forms; %20 is one to everybody.
    form_urlencoded::byte_serialize(value.as_bytes()).collect::<String>().replace('+', "%20")
}

impl Surface {
    /// The most rows that one answer may hold: documented for Defender; in practice for Graph, whose documents name none.
    pub fn largest_page(self) -> u32 {
        match self {
            Self::Graph => 50,
            Self::Defender => 100,
        }
    }

    /// Where the collection of incidents lies.
    pub fn incidents_path(self) -> &'static str {
        match self {
            Self::Graph => "/v1.0/security/incidents",
            Self::Defender => "/api/incidents",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_asked_for_in_odata() {
        let span =
            Span { from: "2026-11-22T09:00:00Z".parse().unwrap(), to: Some("2026-11-22T10:00:00Z".parse().unwrap()) };
        let mut question = Question::of(span, Surface::Graph);
        question.equal.push(("assignedTo", "o'neil+x@contoso.example".into()));
        question.skip = 7;
        let url = question.url(&"https://graph.microsoft.com".parse().unwrap(), Surface::Graph);
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
