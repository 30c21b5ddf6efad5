//! JSON, read in one pass over its text: no tree is built, and a part that nobody asks for costs no more than its bytes.
//!
//! It accepts what `serde_json` accepts. Each byte of a response passes here, and `serde_json` takes twice as long. That
//! the text is UTF-8 is left to the caller, who checks the whole of it at once.

use std::borrow::Cow;

use crate::text::{LossyText, plain_text_length};

/// A string, or `None` for a value of any other type.
pub(super) fn text(raw: &[u8]) -> Option<Cow<'_, str>> {
    let inner = raw.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    if plain_text_length(inner) == inner.len() {
        return str::from_utf8(inner).ok().map(Cow::Borrowed);
    }
    serde_json::from_slice(raw).ok().map(|LossyText(text)| text)
}

/// A place in a JSON text. Each method passes one part of the text, and returns `None` if something else is there.
pub(super) struct Reader<'a> {
    text: &'a [u8],
    at: usize,
    /// The brackets that are open around the place, within a value that is passed as a whole.
    open: Vec<u8>,
    has_whitespace: bool,
}

impl<'a> Reader<'a> {
    pub(super) fn new(text: &'a [u8]) -> Self {
        let mut reader = Self { text, at: 0, open: Vec::new(), has_whitespace: false };
        reader.skip_whitespace();
        reader
    }

    /// The byte at this place.
    pub(super) fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    /// Returns true if there is white space between the parts that were passed.
    pub(super) fn has_whitespace(&self) -> bool {
        self.has_whitespace
    }

    /// The number of bytes before this place.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// An object. `value` passes the value of each member.
    pub(super) fn object(&mut self, mut value: impl FnMut(&mut Self, Cow<'a, [u8]>) -> Option<()>) -> Option<()> {
        self.part(b'{')?;
        if self.part(b'}').is_some() {
            return Some(());
        }
        loop {
            let name = self.name()?;
            value(self, name)?;
            match self.next()? {
                b',' => self.skip_whitespace(),
                b'}' => break,
                _ => return None,
            }
        }
        self.skip_whitespace();
        Some(())
    }

    /// An array. `entry` passes each of its values.
    pub(super) fn array(&mut self, mut entry: impl FnMut(&mut Self) -> Option<()>) -> Option<()> {
        self.part(b'[')?;
        if self.part(b']').is_some() {
            return Some(());
        }
        loop {
            entry(self)?;
            match self.next()? {
                b',' => self.skip_whitespace(),
                b']' => break,
                _ => return None,
            }
        }
        self.skip_whitespace();
        Some(())
    }

    /// A value of any type, which is returned as it was sent.
    pub(super) fn value(&mut self) -> Option<&'a [u8]> {
        let from = self.at;
        loop {
            match self.next()? {
                b'"' => self.rest_of_string()?,
                bracket @ (b'{' | b'[') => {
                    self.skip_whitespace();
                    // The closing bracket of either kind comes two places after the opening one.
                    if self.peek()? == bracket + 2 {
                        self.at += 1;
                    } else {
                        self.open.push(bracket);
                        if bracket == b'{' {
                            self.skip_name()?;
                        }
                        continue;
                    }
                }
                b't' => self.rest_of_word("true")?,
                b'f' => self.rest_of_word("false")?,
                b'n' => self.rest_of_word("null")?,
                first @ (b'-' | b'0'..=b'9') => self.rest_of_number(first)?,
                _ => return None,
            }
            // The end of a value may be the end of those around it.
            loop {
                let to = self.at;
                self.skip_whitespace();
                let Some(&bracket) = self.open.last() else { return self.text.get(from..to) };
                match self.next()? {
                    b',' => {
                        self.skip_whitespace();
                        if bracket == b'{' {
                            self.skip_name()?;
                        }
                        break;
                    }
                    closing if closing == bracket + 2 => {
                        self.open.pop();
                    }
                    _ => return None,
                }
            }
        }
    }

    /// The name of a member, and the colon behind it.
    fn name(&mut self) -> Option<Cow<'a, [u8]>> {
        let from = self.at;
        self.byte(b'"')?;
        let plain = self.at;
        self.at += plain_text_length(&self.text[plain..]);
        let name = if self.peek()? == b'"' {
            let name = self.text.get(plain..self.at)?;
            self.at += 1;
            Cow::Borrowed(name)
        } else {
            self.rest_of_string()?;
            Cow::Owned(text(self.text.get(from..self.at)?)?.into_owned().into_bytes())
        };
        self.colon()?;
        Some(name)
    }

    fn skip_name(&mut self) -> Option<()> {
        self.byte(b'"')?;
        self.rest_of_string()?;
        self.colon()
    }

    fn colon(&mut self) -> Option<()> {
        self.skip_whitespace();
        self.part(b':')
    }

    /// A byte, and the white space behind it.
    fn part(&mut self, byte: u8) -> Option<()> {
        self.byte(byte)?;
        self.skip_whitespace();
        Some(())
    }

    fn byte(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.at += 1)
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn skip_whitespace(&mut self) {
        while let Some(b' ' | b'\t' | b'\r' | b'\n') = self.peek() {
            self.at += 1;
            self.has_whitespace = true;
        }
    }

    fn rest_of_string(&mut self) -> Option<()> {
        loop {
            self.at += plain_text_length(&self.text[self.at..]);
            match self.next()? {
                b'"' => return Some(()),
                b'\\' => match self.next()? {
                    b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => {}
                    b'u' => {
                        let digits = self.text.get(self.at..self.at + 4)?;
                        digits.iter().all(u8::is_ascii_hexdigit).then(|| self.at += 4)?;
                    }
                    _ => return None,
                },
                // A control character.
                _ => return None,
            }
        }
    }

    /// What is left of `word` after its first letter.
    fn rest_of_word(&mut self, word: &str) -> Option<()> {
        let rest = &word.as_bytes()[1..];
        self.text[self.at..].starts_with(rest).then(|| self.at += rest.len())
    }

    fn rest_of_number(&mut self, first: u8) -> Option<()> {
        let first = if first == b'-' { self.next()? } else { first };
        match first {
            b'0' => {}
            b'1'..=b'9' => self.skip_digits(),
            _ => return None,
        }
        if self.byte(b'.').is_some() {
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        Some(())
    }

    fn digits(&mut self) -> Option<()> {
        self.peek()?.is_ascii_digit().then(|| self.skip_digits())
    }

    fn skip_digits(&mut self) {
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::value::RawValue;

    use super::*;
    use crate::testing::damaged;

    fn passes(text: &str) -> bool {
        let mut reader = Reader::new(text.as_bytes());
        reader.value().is_some() && reader.position() == text.len()
    }

    #[test]
    fn numbers_words_and_texts_are_those_of_json() {
        let accepted = r#"0|-0|10|1.5|-1.50e+400|1E9|1e-0|true|false|null|[]|{}|[[],{}]|""|"ä\u00aF\"\\\/\b\f\n\r\t"|"\ud83d"
            |{"a":[{"b":{"c":[]}}],"d":{}}| [ 1 , { "a" : 2 } ] "#;
        for text in accepted.split('|') {
            assert!(passes(text), "{text}");
        }
        let refused = r#"|-|00|01|1.|.5|1e|1e+|+1|t|nullx|True|[|]|[1|[1,]|[,1]|[1 2]|[1}|{|{]|{"a"}|{"a":}|{"a":1,}|{"a":1 "b":2}
            |{1:2}|{"a":1]|"|"\|"\x"|"\u12g4"|"\u123"|1 2|[] []|'a'"#;
        for text in refused.split('|') {
            assert!(!passes(text), "{text}");
        }
        assert!(!passes("\"a\tb\""), "a control character in a text");
    }

    #[test]
    fn deep_nesting_is_read_without_recursion() {
        let deep = "[".repeat(200_000) + &"]".repeat(200_000);
        assert!(passes(&deep));
    }

    proptest! {
        #[test]
        fn damaged_json_is_accepted_as_by_serde_json(
            raw in damaged(r#" {"a":[null,true,false,-1.5e+3,0,"b\u00e9\\\"\n",[],{}, [[1],{"c":{"d":""}}]],"e":{"f":[]} , "g":12}"#),
        ) {
            if let Ok(sent) = str::from_utf8(&raw) {
                let theirs = serde_json::from_str::<&RawValue>(sent).ok().map(|value| value.get().as_bytes());
                let mut reader = Reader::new(&raw);
                let ours = reader.value().filter(|_| reader.position() == raw.len());
                prop_assert!(ours == theirs, "{sent}: {ours:?} {theirs:?}");
            }
        }
    }
}
