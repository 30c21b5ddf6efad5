//! What the pages say, one file a language in `texts/`.

use std::{collections::BTreeMap, sync::LazyLock};

use serde::Deserialize;

/// All texts of one language. Words in braces are filled in.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Texts {
    /// The invitation's page.
    pub(crate) invitation: Invitation,
    /// Headings of facts.
    pub(crate) labels: Labels,
    /// Permissions in plain words.
    pub(crate) permissions: Permissions,
    /// Every other page.
    pub(crate) messages: BTreeMap<Message, MessageTexts>,
}

/// The invitation's page.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Invitation {
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

/// Headings of facts.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Labels {
    pub(crate) customer: String,
    pub(crate) tenant: String,
    pub(crate) consented_by: String,
    pub(crate) granted: String,
    pub(crate) not_granted: String,
    pub(crate) missing: String,
    pub(crate) refresh: String,
}

/// Permissions in plain words.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Permissions {
    pub(crate) read: String,
    pub(crate) write: String,
    pub(crate) hunt: String,
    pub(crate) other: String,
}

/// A page: what happened, what it means, and the one next step.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MessageTexts {
    /// Heading.
    pub(crate) title: String,
    /// Paragraphs.
    pub(crate) text: Vec<String>,
    /// The next step: the link's text where there is a link.
    pub(crate) next: String,
}

/// Every page beside the invitation's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Message {
    Active,
    Pending,
    WaitingForPartner,
    Unfinished,
    BeginAgain,
    ConsentOpen,
    Declined,
    NotPermitted,
    BlockedByPolicy,
    ResourceAbsent,
    Misconfigured,
    Unavailable,
    Refused,
    WrongTenant,
    OtherCustomer,
    PersonalAccount,
    NotVerified,
    NotVouchedFor,
    Expired,
    Used,
    UsedHere,
    Revoked,
    UnknownInvitation,
    NotFound,
    MethodNotAllowed,
    NotThisBrowser,
    CrossSite,
    Offboarded,
    Failed,
    PausedConsentMissing,
    PausedRoleMissing,
    PausedDisabledByCustomer,
    PausedTenantNotFound,
    PausedWrongCloud,
    PausedCredentialRejected,
    PausedUnavailable,
    PausedOperator,
}

/// Every language's file as it stands in `texts/`.
const FILES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/languages.rs"));

/// The language that is spoken to whoever asks for none that is known.
const DEFAULT: &str = "en";

static LANGUAGES: LazyLock<BTreeMap<&str, Texts>> = LazyLock::new(|| {
    FILES.iter().filter_map(|(language, file)| Some((*language, serde_json::from_str(file).ok()?))).collect()
});

/// The texts in the language that `Accept-Language` likes best, and its tag. `None` only when no file could be read,
/// which a test rules out.
pub(crate) fn choose(accept_language: Option<&str>) -> Option<(&'static str, &'static Texts)> {
    let of = |tag: &str| LANGUAGES.get_key_value(tag).map(|(tag, texts)| (*tag, texts));
    preferred(accept_language.unwrap_or_default()).iter().find_map(|tag| of(tag)).or_else(|| of(DEFAULT))
}

/// Primary subtags in the order of their weights (RFC 9110, section 12.5.4); those with weight 0 are not wanted.
fn preferred(accept_language: &str) -> Vec<String> {
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
    ranges.sort_by(|one, other| other.0.total_cmp(&one.0));
    ranges.into_iter().map(|(_, tag)| tag).collect()
}

/// Fills the words in braces in. What is filled in is not looked at again.
pub(crate) fn fill(text: &str, words: &[(&str, &str)]) -> String {
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        filled.push_str(before);
        let word = after.split_once('}').and_then(|(name, after)| {
            let (_, value) = words.iter().find(|(known, _)| *known == name)?;
            Some((value, after))
        });
        if let Some((value, after)) = word {
            filled.push_str(value);
            rest = after;
        } else {
            filled.push('{');
            rest = after;
        }
    }
    filled.push_str(rest);
    filled
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    fn words(value: &Value, path: &str, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                fields.iter().for_each(|(name, value)| words(value, &format!("{path}/{name}"), found));
            }
            Value::Array(items) => {
                items.iter().enumerate().for_each(|(at, item)| words(item, &format!("{path}/{at}"), found));
            }
            Value::String(text) => {
                assert!(!text.trim().is_empty(), "{path} is empty");
                let names = text.split('{').skip(1).filter_map(|rest| rest.split_once('}'));
                found.insert(path.into());
                found.extend(names.map(|(name, _)| format!("{path}: {name}")));
            }
            _ => panic!("{path} is no text"),
        }
    }

    #[test]
    fn every_language_has_every_text_with_the_same_words_to_fill_in() {
        let all = |file: &str| {
            let mut found = BTreeSet::new();
            words(&serde_json::from_str(file).unwrap(), "", &mut found);
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
    fn the_language_is_chosen_by_weight_and_english_is_the_rest() {
        let chosen = |header: Option<&str>| choose(header).unwrap().0;
        assert_eq!(chosen(None), "en");
        assert_eq!(chosen(Some("de-AT,de;q=0.9,en;q=0.8")), "de");
        assert_eq!(chosen(Some("en;q=0.5, DE;q=0.7")), "de");
        assert_eq!(chosen(Some("fr,de;q=0.1")), "de");
        assert_eq!(chosen(Some("de;q=0,en;q=0.1")), "en");
        assert_eq!(chosen(Some("fr;q=x,;;,*;q=0.5,\u{0}")), "en");
    }

    #[test]
    fn words_are_filled_in_once() {
        let words = [("partner", "{customer}<b>"), ("customer", "C")];
        assert_eq!(fill("{partner} asks {customer}, {unknown} {", &words), "{customer}<b> asks C, {unknown} {");
    }
}
