//! The texts of the pages. Each language is one file in `texts/`.

use std::{collections::BTreeMap, sync::LazyLock};

use serde::Deserialize;

/// All texts of one language. Names in braces are placeholders for [`interpolate`].
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Texts {
    pub(crate) invitation: InvitationTexts,
    pub(crate) labels: Labels,
    pub(crate) permissions: PermissionTexts,
    pub(crate) messages: BTreeMap<Message, MessageTexts>,
}

/// The texts of the page that shows an open invitation.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct InvitationTexts {
    pub(crate) title: String,
    pub(crate) intro: String,
    pub(crate) asked_title: String,
    pub(crate) asked_graph: String,
    pub(crate) asked_defender: String,
    pub(crate) asked_note: String,
    pub(crate) role_title: String,
    pub(crate) role_graph: String,
    pub(crate) role_defender: String,
    pub(crate) bound: String,
    pub(crate) data_title: String,
    pub(crate) data: Vec<String>,
    pub(crate) withdraw_title: String,
    pub(crate) withdraw: String,
    pub(crate) steps_title: String,
    pub(crate) steps: Vec<String>,
    pub(crate) button: String,
    pub(crate) valid_until: String,
}

/// The labels of the facts on a tenant's page, and its note about the refresh.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Labels {
    pub(crate) customer: String,
    pub(crate) tenant: String,
    pub(crate) consented_by: String,
    pub(crate) granted: String,
    pub(crate) not_granted: String,
    pub(crate) missing: String,
    /// The end of a page that refuses a callback without a consent.
    pub(crate) nothing_changed: String,
    /// The end of a page that refuses a consent.
    pub(crate) consent_stays: String,
    pub(crate) refresh: String,
}

/// The permissions in plain words.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PermissionTexts {
    pub(crate) read: String,
    pub(crate) write: String,
    pub(crate) hunt: String,
    pub(crate) other: String,
}

/// One page: what happened, what it means, and the one next step.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MessageTexts {
    pub(crate) title: String,
    /// The paragraphs, in their order.
    pub(crate) text: Vec<String>,
    /// The next step. On a page with a link, this is the link's text.
    pub(crate) next: String,
}

/// Every page but the invitation's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Message {
    Active,
    Pending,
    PendingRoleMissing,
    PendingResourceAbsent,
    PendingUnavailable,
    WaitingForPartner,
    Unfinished,
    StartAgain,
    ConsentOpen,
    Declined,
    WrongAccount,
    NotPermitted,
    BlockedByPolicy,
    ResourceAbsent,
    ResourceDisabled,
    AppDisabled,
    Misconfigured,
    Unavailable,
    Refused,
    WrongTenant,
    OtherCustomer,
    PersonalAccount,
    NotVerified,
    RoleNotProven,
    Expired,
    Used,
    UsedHere,
    Revoked,
    UnknownInvitation,
    NotFound,
    NotThisBrowser,
    CrossSite,
    Offboarded,
    Failed,
    PausedConsentMissing,
    PausedRoleMissing,
    PausedDisabledByCustomer,
    PausedTenantNotFound,
    PausedTenantInactive,
    PausedWrongCloud,
    PausedCredentialRejected,
    PausedUnavailable,
    PausedOperator,
}

/// The tag and the content of each file in `texts/`. The build script writes this list.
const FILES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/languages.rs"));

/// The language for a browser that prefers none of ours.
const DEFAULT: &str = "en";

static LANGUAGES: LazyLock<BTreeMap<&str, Texts>> = LazyLock::new(|| {
    FILES.iter().filter_map(|(language, file)| Some((*language, serde_json::from_str(file).ok()?))).collect()
});

/// The tag and the texts of the language that `Accept-Language` prefers. `None` only if no file could be parsed, which
/// a test rules out.
pub(crate) fn choose(accept_language: Option<&str>) -> Option<(&'static str, &'static Texts)> {
    let of = |tag: &str| LANGUAGES.get_key_value(tag).map(|(tag, texts)| (*tag, texts));
    preferred_languages(accept_language.unwrap_or_default()).iter().find_map(|tag| of(tag)).or_else(|| of(DEFAULT))
}

/// The primary subtags in the order of their weights (RFC 9110, section 12.5.4), without those of weight 0.
fn preferred_languages(accept_language: &str) -> Vec<String> {
    let mut ranges: Vec<(f32, String)> = accept_language
        .split(',')
        .take(20)
        .filter_map(|range| {
            let (tag, parameters) = range.split_once(';').unwrap_or((range, ""));
            let weight = parameters.trim().strip_prefix("q=").map_or(Some(1.0), |weight| weight.parse().ok())?;
            let tag = match tag.trim() {
                "*" => DEFAULT,
                tag => tag.split('-').next().unwrap_or_default(),
            };
            (weight > 0.0).then(|| (weight, tag.to_ascii_lowercase()))
        })
        .collect();
    ranges.sort_by(|(left, _), (right, _)| right.total_cmp(left));
    ranges.into_iter().map(|(_, tag)| tag).collect()
}

/// Replaces each `{name}` by its value. Braces in a value, and names without a value, stay as they are.
pub(crate) fn interpolate(text: &str, values: &[(&str, &str)]) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        result.push_str(before);
        let replacement = after.split_once('}').and_then(|(name, after)| {
            let (_, value) = values.iter().find(|(known, _)| *known == name)?;
            Some((value, after))
        });
        if let Some((value, after)) = replacement {
            result.push_str(value);
            rest = after;
        } else {
            result.push('{');
            rest = after;
        }
    }
    result.push_str(rest);
    result
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    /// Collects the path of each text, and the path with each placeholder in it.
    fn collect(value: &Value, path: &str, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                fields.iter().for_each(|(name, value)| collect(value, &format!("{path}/{name}"), found));
            }
            Value::Array(items) => {
                items.iter().enumerate().for_each(|(at, item)| collect(item, &format!("{path}/{at}"), found));
            }
            Value::String(text) => {
                assert!(!text.trim().is_empty(), "{path} is empty");
                let names = text.split('{').skip(1).filter_map(|rest| rest.split_once('}'));
                found.insert(path.into());
                found.extend(names.map(|(name, _)| format!("{path}: {name}")));
            }
            _ => panic!("{path} is not a text"),
        }
    }

    #[test]
    fn languages_have_the_same_texts_and_placeholders() {
        let all = |file: &str| {
            let mut found = BTreeSet::new();
            collect(&serde_json::from_str(file).unwrap(), "", &mut found);
            found
        };
        let (_, english) = FILES.iter().find(|(language, _)| *language == DEFAULT).unwrap();
        for (language, file) in FILES {
            serde_json::from_str::<Texts>(file).unwrap_or_else(|error| panic!("{language}: {error}"));
            assert_eq!(all(file), all(english), "{language}");
        }
        assert!(FILES.iter().any(|(language, _)| *language == "de"));
    }

    #[test]
    fn language_is_chosen_by_weight_with_english_as_default() {
        let chosen = |header: Option<&str>| choose(header).unwrap().0;
        assert_eq!(chosen(None), "en");
        assert_eq!(chosen(Some("de-AT,de;q=0.9,en;q=0.8")), "de");
        assert_eq!(chosen(Some("en;q=0.5, DE;q=0.7")), "de");
        assert_eq!(chosen(Some("fr,de;q=0.1")), "de");
        assert_eq!(chosen(Some("de;q=0,en;q=0.1")), "en");
        assert_eq!(chosen(Some("fr;q=x,;;,*;q=0.5,\u{0}")), "en");
    }

    #[test]
    fn values_are_not_interpolated_again() {
        let values = [("partner", "{customer}<b>"), ("customer", "C")];
        assert_eq!(interpolate("{partner} asks {customer}, {unknown} {", &values), "{customer}<b> asks C, {unknown} {");
    }
}
