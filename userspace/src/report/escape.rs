//! Text from the watched programs, made safe to show.
//!
//! A method or a tool's name is the agent's to choose: it can hold escape sequences that repaint the terminal, or marks
//! that turn the reading direction around. Nothing of that reaches a screen.

/// Whether a terminal or a reader's eye could be misled by the character.
pub fn misleads(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e0fff}')
}

/// `text` in at most `columns` columns of a terminal: misleading characters escaped, cut with `…` where it is longer.
///
/// Characters outside ASCII count for two columns, the most that one takes.
pub fn shown(text: &str, columns: usize) -> String {
    let mut shown = String::new();
    let mut used = 0;
    let mut cut = (0, 0);
    for character in text.chars() {
        let start = shown.len();
        if misleads(character) || character == '\\' {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
        let width = match shown.get(start..) {
            Some(piece) if piece.is_ascii() => piece.len(),
            _ => 2,
        };
        if used + width > columns {
            shown.truncate(cut.0);
            if columns > cut.1 {
                shown.push('…');
            }
            return shown;
        }
        used += width;
        if used < columns {
            cut = (shown.len(), used);
        }
    }
    shown
}

/// Appends `text` as a JSON string that is safe to show: what misleads is escaped as `\uXXXX`.
pub fn push_json_string(out: &mut String, text: &str) {
    use std::fmt::Write as _;
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            _ if misleads(character) => {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    // Writing into a string cannot fail.
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            _ => out.push(character),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests panic on purpose")]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_escape_sequence_does_not_reach_the_terminal() {
        assert_eq!(shown("\u{1b}[2Jok", 40), "\\u{1b}[2Jok");
        assert_eq!(shown("a\u{9b}31m", 40), "a\\u{9b}31m");
        assert_eq!(shown("read\u{202e}txt", 40), "read\\u{202e}txt");
        assert_eq!(shown("line\r\n", 40), "line\\r\\n");
    }

    #[test]
    fn an_escaped_text_and_a_text_that_looks_like_it_differ() {
        assert_ne!(shown("\u{1b}", 40), shown("\\u{1b}", 40));
    }

    #[test]
    fn a_long_text_is_cut_and_says_so() {
        assert_eq!(shown("tools/call", 10), "tools/call");
        assert_eq!(shown("tools/call!", 10), "tools/cal…");
        assert_eq!(shown("日本語", 4), "日…");
        assert_eq!(shown("", 0), "");
    }

    proptest! {
        #[test]
        fn what_is_shown_is_harmless_and_fits(text in any::<String>(), columns in 0_usize..60) {
            let shown = shown(&text, columns);
            prop_assert!(!shown.chars().any(misleads));
            prop_assert!(shown.chars().count() <= columns);
        }

        #[test]
        fn json_strings_read_back_as_they_were(text in any::<String>()) {
            let mut json = String::new();
            push_json_string(&mut json, &text);
            prop_assert!(!json.chars().any(misleads));
            prop_assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
        }
    }
}
