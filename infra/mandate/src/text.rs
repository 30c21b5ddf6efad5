//! Text from outside, made safe for a terminal: control characters are shown, never sent.

use std::fmt::Write as _;

use serde_json::Value;

/// Returns true for a character that can move the cursor, colour the terminal, hide text or change its direction: controls
/// and Unicode's property `Default_Ignorable_Code_Point`, as the console's page has it.
fn is_hazard(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
            // Zero-width characters, direction marks, and the separators of lines and paragraphs.
            | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            // Fillers that look like nothing, variation selectors, interlinear marks, marks of shorthand and music, tags.
            | '\u{115f}' | '\u{1160}' | '\u{3164}' | '\u{ffa0}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
            | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}')
}

/// The text on one line, as a terminal may show it. Each hazard becomes its number in braces, like `\u{1b}`.
pub(crate) fn shown(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' => safe.push_str("\\n"),
            '\t' => safe.push_str("\\t"),
            '\r' => safe.push_str("\\r"),
            hazard if is_hazard(hazard) => safe.extend(hazard.escape_unicode()),
            other => safe.push(other),
        }
    }
    safe
}

/// The same for a text of several lines, which stay lines.
pub(crate) fn shown_lines(text: &str) -> Vec<String> {
    text.lines().map(shown).collect()
}

/// JSON on one line, in which each hazard is an escape, so that it can be printed on a terminal. It means the same.
pub(crate) fn safe_json(value: &Value) -> String {
    let json = value.to_string();
    if !json.chars().any(is_hazard) {
        return json;
    }
    let mut safe = String::with_capacity(json.len() + 16);
    for character in json.chars() {
        if is_hazard(character) {
            // Outside of strings serde_json writes ASCII alone, so this is inside of one.
            let mut units = [0; 2];
            for unit in character.encode_utf16(&mut units) {
                let _ = write!(safe, "\\u{unit:04x}");
            }
        } else {
            safe.push(character);
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Clears the screen, sets the title (OSC, also by C1), overrides the direction, hides text.
    const ATTACK: &str =
        "a\u{1b}[2J\u{1b}]0;x\u{7}b\u{9b}31m\u{9d}0;y\u{9c}\u{202e}c\u{2066}\u{200b}\u{e0041}\u{7f}\r\n\u{85}";

    #[test]
    fn control_characters_are_shown_and_not_sent() {
        let safe = shown(ATTACK);
        assert!(!safe.chars().any(|character| character.is_control() || is_hazard(character)), "{safe}");
        assert!(safe.starts_with("a\\u{1b}[2J\\u{1b}]0;x\\u{7}b\\u{9b}31m"), "{safe}");
        assert!(safe.contains("\\u{202e}c\\u{2066}\\u{200b}\\u{e0041}\\u{7f}\\r\\n\\u{85}"), "{safe}");
        assert_eq!(shown("Zürich – 東京 🛡 e\u{301}"), "Zürich – 東京 🛡 e\u{301}");
        assert_eq!(shown_lines("one\n\u{1b}two"), ["one", "\\u{1b}two"]);
    }

    /// The first and the last character of each range of `Default_Ignorable_Code_Point` (Unicode 16,
    /// `DerivedCoreProperties.txt`).
    #[test]
    fn characters_that_show_nothing_are_shown() {
        for bounds in [
            "\u{ad}\u{ad}",
            "\u{34f}\u{34f}",
            "\u{61c}\u{61c}",
            "\u{115f}\u{1160}",
            "\u{17b4}\u{17b5}",
            "\u{180b}\u{180f}",
            "\u{200b}\u{200f}",
            "\u{202a}\u{202e}",
            "\u{2060}\u{206f}",
            "\u{3164}\u{3164}",
            "\u{fe00}\u{fe0f}",
            "\u{feff}\u{feff}",
            "\u{ffa0}\u{ffa0}",
            "\u{fff0}\u{fff8}",
            "\u{1bca0}\u{1bca3}",
            "\u{1d173}\u{1d17a}",
            "\u{e0000}\u{e0fff}",
        ] {
            let ends: Vec<char> = bounds.chars().collect();
            for character in ends[0]..=ends[1] {
                assert!(is_hazard(character), "{}", character.escape_unicode());
            }
        }
    }

    #[test]
    fn json_with_escapes_means_the_same() {
        let value = json!({"title": ATTACK, ATTACK: [1, "Zürich"]});
        let safe = safe_json(&value);
        assert!(!safe.chars().any(is_hazard), "{safe}");
        assert_eq!(serde_json::from_str::<Value>(&safe).unwrap(), value);
        assert_eq!(safe_json(&json!({"a": "é"})), r#"{"a":"é"}"#);
    }
}
