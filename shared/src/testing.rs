//! Damaged documents for property tests of parsers.

use proptest::prelude::*;

/// `whole` with a few bytes changed, perhaps cut short. `PROPTEST_CASES` says how many.
pub(crate) fn damaged(whole: &'static str) -> impl Strategy<Value = Vec<u8>> {
    let changes = prop::collection::vec((0..whole.len(), any::<u8>()), 0..6);
    let end = prop_oneof![Just(whole.len()), 0..=whole.len()];
    (changes, end).prop_map(move |(changes, end)| {
        let mut bytes = whole.as_bytes().to_vec();
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        bytes.truncate(end);
        bytes
    })
}

/// Values that no member of a record or token has.
const ODD_VALUES: [&str; 6] = ["null", "true", "[]", "{}", "[null,{}]", r#"{"a":[1]}"#];

/// `whole`, the text of a JSON object, with members around its own that are odd: repetitions of these `names` with values
/// that nobody expects, and members of the names in `second` with the values beside them. The own members stay. `nulls`
/// says after which texts of `whole` a null is put into a list.
pub(crate) fn with_odd_members(
    whole: &'static str,
    names: &'static [&'static str],
    second: &'static [(&'static str, &'static str)],
    nulls: &'static [&'static str],
) -> impl Strategy<Value = String> {
    let odd = (prop::sample::select(names), prop::sample::select(&ODD_VALUES[..]));
    let member = prop_oneof![odd, prop::sample::select(second)];
    let members = prop::collection::vec((member, any::<bool>()), 0..8);
    (members, prop::sample::subsequence(nulls, 0..=nulls.len())).prop_map(move |(members, nulls)| {
        let mut text = whole.strip_suffix('}').unwrap_or(whole).to_owned();
        for place in nulls {
            text = text.replacen(place, &format!("{place}null,"), 1);
        }
        for ((name, value), first) in members {
            let member = format!("\"{name}\":{value}");
            let (at, member) = if first { (1, member + ",") } else { (text.len(), ",".to_owned() + &member) };
            text.insert_str(at, &member);
        }
        text + "}"
    })
}
