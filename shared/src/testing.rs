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
