//! One incident as a person reads it, whichever API it came from.

use serde_json::Value;

/// The members of an incident that lists and pages show. Texts are as Microsoft sent them: not safe for a terminal.
#[derive(Debug)]
pub(crate) struct IncidentView<'a>(&'a Value);

/// One comment of an incident.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct CommentView<'a> {
    /// The time as it was sent.
    pub(crate) at: &'a str,
    pub(crate) by: &'a str,
    pub(crate) text: &'a str,
}

/// One alert of an incident.
#[derive(Debug)]
pub(crate) struct AlertView<'a>(&'a Value);

impl<'a> IncidentView<'a> {
    /// The view of an Incident of the API.
    pub(crate) fn of(envelope: &'a Value) -> Self {
        Self(envelope)
    }

    fn first(&self, names: &[&str]) -> Option<&'a str> {
        first_text(&self.0["incident"], names)
    }

    pub(crate) fn title(&self) -> &'a str {
        self.first(&["displayName", "incidentName"]).unwrap_or("–")
    }

    pub(crate) fn severity(&self) -> String {
        snake(self.first(&["severity"]).unwrap_or("–"))
    }

    pub(crate) fn status(&self) -> String {
        snake(self.first(&["status"]).unwrap_or("–"))
    }

    pub(crate) fn assigned_to(&self) -> Option<&'a str> {
        self.first(&["assignedTo"]).filter(|name| !name.is_empty())
    }

    pub(crate) fn classification(&self) -> String {
        snake(self.first(&["classification"]).unwrap_or("–"))
    }

    pub(crate) fn determination(&self) -> String {
        snake(self.first(&["determination"]).unwrap_or("–"))
    }

    pub(crate) fn created(&self) -> Option<&'a str> {
        self.first(&["createdDateTime", "createdTime"])
    }

    pub(crate) fn url(&self) -> Option<&'a str> {
        self.first(&["incidentWebUrl", "incidentUri"])
    }

    pub(crate) fn description(&self) -> Option<&'a str> {
        self.first(&["description", "summary"]).filter(|text| !text.is_empty())
    }

    pub(crate) fn tags(&self) -> Vec<&'a str> {
        let incident = &self.0["incident"];
        let tags = ["customTags", "tags", "systemTags"].into_iter().filter_map(|name| incident[name].as_array());
        tags.flatten().filter_map(|tag| tag.as_str().or_else(|| tag["name"].as_str())).collect()
    }

    pub(crate) fn comments(&self) -> impl Iterator<Item = CommentView<'a>> {
        let comments = self.0["incident"]["comments"].as_array().into_iter().flatten();
        comments.filter_map(|comment| {
            Some(CommentView {
                at: first_text(comment, &["createdDateTime", "createdTime"]).unwrap_or("–"),
                by: first_text(comment, &["createdByDisplayName", "createdBy"]).unwrap_or("–"),
                text: first_text(comment, &["comment"])?,
            })
        })
    }

    /// The alerts; `None` if the incident was too large for a response and came without them.
    pub(crate) fn alerts(&self) -> Option<Vec<AlertView<'a>>> {
        Some(self.0["incident"]["alerts"].as_array()?.iter().map(AlertView).collect())
    }
}

impl<'a> AlertView<'a> {
    pub(crate) fn title(&self) -> &'a str {
        first_text(self.0, &["title"]).unwrap_or("–")
    }

    pub(crate) fn severity(&self) -> String {
        snake(first_text(self.0, &["severity"]).unwrap_or("–"))
    }

    pub(crate) fn status(&self) -> String {
        snake(first_text(self.0, &["status"]).unwrap_or("–"))
    }

    pub(crate) fn source(&self) -> String {
        snake(first_text(self.0, &["detectionSource", "serviceSource"]).unwrap_or("–"))
    }

    pub(crate) fn first_activity(&self) -> Option<&'a str> {
        first_text(self.0, &["firstActivityDateTime", "firstActivity", "createdDateTime", "creationTime"])
    }

    /// The evidence, each piece as a kind and a name: devices, accounts, files, addresses.
    pub(crate) fn evidence(&self) -> Vec<(String, String)> {
        let graph = self.0["evidence"].as_array().into_iter().flatten();
        let defender = ["devices", "entities"].into_iter().filter_map(|name| self.0[name].as_array()).flatten();
        graph.chain(defender).map(|piece| (kind_of(piece), name_of(piece))).collect()
    }
}

fn first_text<'a>(object: &'a Value, names: &[&str]) -> Option<&'a str> {
    names.iter().find_map(|name| object[name].as_str())
}

/// The kind of a piece of evidence: `device`, `user`, `file`, ….
fn kind_of(piece: &Value) -> String {
    let kind = first_text(piece, &["@odata.type", "entityType"]).unwrap_or("device");
    let kind = kind.rsplit('.').next().unwrap_or(kind);
    snake(kind.strip_suffix("Evidence").unwrap_or(kind))
}

/// The name of a piece of evidence: the first member that names such a thing.
fn name_of(piece: &Value) -> String {
    let nested = ["userAccount", "fileDetails", "imageFile", "parentProcessImageFile"].map(|name| &piece[name]);
    let names = [
        "userPrincipalName",
        "accountName",
        "deviceDnsName",
        "hostName",
        "fileName",
        "ipAddress",
        "url",
        "domainName",
        "primaryAddress",
        "mailboxPrimaryAddress",
        "subject",
        "registryKey",
        "displayName",
        "processCommandLine",
        "appId",
    ];
    let found = std::iter::once(piece).chain(nested).find_map(|object| first_text(object, &names));
    let path = std::iter::once(piece).chain(nested).find_map(|object| first_text(object, &["filePath"]));
    match (found, path) {
        (Some(name), Some(path)) if kind_of(piece) == "file" => format!("{path}\\{name}"),
        (Some(name), _) => name.to_owned(),
        (None, _) => "–".to_owned(),
    }
}

/// A word of either API in snake_case: `InProgress` and `inProgress` become `in_progress`.
fn snake(text: &str) -> String {
    let mut snake = String::with_capacity(text.len() + 4);
    let mut after_lower = false;
    for letter in text.chars() {
        if letter.is_uppercase() && after_lower {
            snake.push('_');
        }
        after_lower = letter.is_lowercase() || letter.is_ascii_digit();
        snake.extend(letter.to_lowercase());
    }
    snake
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn both_apis_read_alike() {
        let graph = json!({"incident": {
            "displayName": "T", "severity": "high", "status": "inProgress", "incidentWebUrl": "https://x/1",
            "customTags": ["a"], "alerts": [{"title": "A", "evidence": [
                {"@odata.type": "#microsoft.graph.security.deviceEvidence", "deviceDnsName": "host-0"},
                {"@odata.type": "#microsoft.graph.security.userEvidence", "userAccount": {"userPrincipalName": "adele@x"}},
                {"@odata.type": "#microsoft.graph.security.fileEvidence", "fileDetails": {"fileName": "s.ps1", "filePath": "C:\\Temp"}},
            ]}],
        }});
        let defender = json!({"incident": {
            "incidentName": "T", "severity": "High", "status": "InProgress", "incidentUri": "https://x/1", "tags": ["a"],
            "alerts": [{"title": "A", "devices": [{"deviceDnsName": "host-0"}], "entities": [
                {"entityType": "User", "userPrincipalName": "adele@x", "accountName": "adele"},
                {"entityType": "File", "fileName": "s.ps1", "filePath": "C:\\Temp"},
            ]}],
        }});
        for envelope in [graph, defender] {
            let view = IncidentView::of(&envelope);
            assert_eq!((view.title(), view.url(), view.tags()), ("T", Some("https://x/1"), vec!["a"]));
            assert_eq!((view.severity().as_str(), view.status().as_str()), ("high", "in_progress"));
            let evidence = view.alerts().unwrap()[0].evidence();
            let expected = [("device", "host-0"), ("user", "adele@x"), ("file", "C:\\Temp\\s.ps1")];
            assert_eq!(evidence, expected.map(|(kind, name)| (kind.to_owned(), name.to_owned())));
        }
        assert!(IncidentView::of(&json!({"incident": {}})).alerts().is_none());
    }
}
