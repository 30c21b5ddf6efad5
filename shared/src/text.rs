//! Secret texts, hexadecimal digits, and parsing of JSON objects, texts and times.

use std::{
    borrow::Cow,
    collections::BTreeSet,
    fmt::{self, Write as _},
    sync::{Mutex, PoisonError},
};

use jiff::Timestamp;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Visitor},
};
use serde_json::Value;
use zeroize::Zeroizing;

/// A secret text: a client secret, a client assertion, a token or an authorization code. It is wiped from memory when it
/// is dropped, and can be neither printed nor serialised.
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Takes ownership of the text, which is then wiped when it is dropped.
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text itself, for the one request that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(redacted)")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

/// A word of an open enumeration that this release does not know, as the release that stored it wrote it. A process keeps
/// each such word for good, so that the enumerations stay `Copy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnknownWord(&'static str);

/// The most unknown words of a process. All enumerations together have fewer.
const MAX_UNKNOWN_WORDS: usize = 64;

/// The longest unknown word, in bytes.
const MAX_UNKNOWN_WORD_LENGTH: usize = 40;

impl UnknownWord {
    /// Keeps a word. A text that cannot be one of ours, and one too many, becomes `unknown`.
    pub fn of(text: &str) -> Self {
        static WORDS: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
        let is_word = (1..=MAX_UNKNOWN_WORD_LENGTH).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
        let mut words = WORDS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(word) = words.get(text) {
            return Self(word);
        }
        if !is_word || words.len() >= MAX_UNKNOWN_WORDS {
            return Self("unknown");
        }
        let word: &'static str = Box::leak(text.into());
        words.insert(word);
        Self(word)
    }

    /// Returns the word: what was read, or `unknown`.
    pub fn as_str(self) -> &'static str {
        self.0
    }
}

/// The bytes in lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        text.extend([byte >> 4, byte & 15].map(|digit| char::from(DIGITS[usize::from(digit)])));
    }
    text
}

/// The text of `format_args!`, in a `String` that begins with this capacity. `format!` begins with none, and allocates again
/// and again while the text grows.
pub fn format_with_capacity(capacity: usize, text: fmt::Arguments<'_>) -> String {
    let mut formatted = String::with_capacity(capacity);
    // A String takes everything.
    let _ = formatted.write_fmt(text);
    formatted
}

/// A JSON text that may hold half a surrogate pair, like a title that a system of UTF-16 has cut. U+FFFD stands for it.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub struct LossyText<'a>(pub Cow<'a, str>);

impl<'de> Deserialize<'de> for LossyText<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Lossy;

        impl<'de> Visitor<'de> for Lossy {
            type Value = LossyText<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("text")
            }

            fn visit_borrowed_bytes<E>(self, bytes: &'de [u8]) -> Result<LossyText<'de>, E> {
                // Almost every text is whole, and then this is faster.
                Ok(LossyText(str::from_utf8(bytes).map_or_else(|_| String::from_utf8_lossy(bytes), Cow::Borrowed)))
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<LossyText<'de>, E> {
                Ok(LossyText(String::from_utf8_lossy(bytes).into_owned().into()))
            }
        }

        deserializer.deserialize_bytes(Lossy)
    }
}

/// The number of bytes before the first quote, backslash or control character, or else of all bytes. Within a string of JSON
/// nothing else has a meaning.
pub(crate) fn plain_text_length(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::MAX / 255;
    // Eight bytes are compared at a time. The highest bit of a byte is set if the byte is found; a borrow may set it in later
    // bytes, too, so only the first one counts. The flip of one bit puts the quote right behind the control characters, and
    // the space behind the quote.
    let (chunks, rest) = bytes.as_chunks();
    for (chunk, eight) in chunks.iter().enumerate() {
        let eight = u64::from_le_bytes(*eight);
        let controls_and_quotes = (eight ^ (ONES * 2)).wrapping_sub(ONES * 0x21);
        let backslashes = (eight ^ (ONES * u64::from(b'\\'))).wrapping_sub(ONES);
        let found = (controls_and_quotes | backslashes) & !eight & (ONES << 7);
        if found != 0 {
            return chunk * 8 + found.trailing_zeros() as usize / 8;
        }
    }
    let in_rest = rest.iter().position(|byte| matches!(byte, b'"' | b'\\' | 0..b' ')).unwrap_or(rest.len());
    chunks.len() * 8 + in_rest
}

/// Parses a JSON object. An array is refused, though a derived `Deserialize` would take its elements as the members of a
/// struct.
pub fn from_json_object<T: DeserializeOwned>(value: Value) -> Option<T> {
    if value.is_object() { serde_json::from_value(value).ok() } else { None }
}

/// Deserializes a member that may be odd in form. `None`: it is not a `T`. An odd member of a response then costs only
/// itself.
pub fn if_readable<'de, T: DeserializeOwned, D: Deserializer<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    Ok(serde_json::from_value(Value::deserialize(deserializer)?).ok())
}

/// Parses a time in the format of this API: RFC 3339, in UTC with `Z`.
pub fn parse_utc(text: &str) -> Option<Timestamp> {
    let (whole, rest) = text.split_at_checked("2026-11-22T10:00:00".len())?;
    let marks = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    let in_form = whole.bytes().enumerate().all(|(at, byte)| match marks.iter().find(|(place, _)| *place == at) {
        Some((_, mark)) => byte == *mark,
        None => byte.is_ascii_digit(),
    });
    let fraction = rest.strip_suffix('Z')?;
    let fraction_in_form = fraction.is_empty()
        || fraction
            .strip_prefix('.')
            .is_some_and(|digits| (1..=9).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit()));
    if in_form && fraction_in_form { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_text_ends_at_a_quote_backslash_or_control_character() {
        let bytes = [(b'"', true), (b'\\', true), (0, true), (31, true), (b' ', false), (127, false), (200, false)];
        for (length, (byte, ends)) in (1..40_usize).flat_map(|length| bytes.map(|byte| (length, byte))) {
            for place in 0..length {
                let mut text = vec![b'!'; length];
                text[place] = byte;
                assert_eq!(
                    plain_text_length(&text),
                    if ends { place } else { length },
                    "{byte} at {place} of {length}"
                );
            }
        }
    }

    #[test]
    fn secret_is_redacted_in_debug_output() {
        let secret = Secret::new("canary".into());
        assert_eq!(format!("{secret:?} {:#?}", Some(&secret)).matches("canary").count(), 0);
        assert_eq!(secret.expose(), "canary");
    }
}
