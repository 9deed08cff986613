//! What others wrote, such as the names in a file, shown so that it can neither steer a terminal nor
//! fill the screen.

use std::fmt::Write;

/// Characters of one name that are shown.
const LONGEST_WORD: usize = 200;
/// Characters of a message that are shown.
const LONGEST_LINE: usize = 4000;
/// Names or sizes of a list that are shown.
const MOST_LISTED: usize = 10;

/// A message on one line: what steers terminals is escaped, and what is too long is cut in its
/// middle, words first.
pub fn one_line(text: &str) -> String {
    let text = text.replace(['\n', '\r'], " ");
    let words: Vec<_> = text.split(' ').map(name).collect();
    cut(&words.join(" "), LONGEST_LINE)
}

/// A name, escaped and cut.
pub fn name(text: &str) -> String {
    let mut escaped = String::new();
    // A name of gigabytes is cut before it is escaped as well as after.
    for c in cut(text, 2 * LONGEST_WORD).chars() {
        if steers(c) {
            escaped.extend(c.escape_unicode());
        } else {
            escaped.push(c);
        }
    }
    cut(&escaped, LONGEST_WORD)
}

/// Names, separated by commas; of many the first.
pub fn list<S: AsRef<str>>(names: &[S]) -> String {
    let shown = names.iter().take(MOST_LISTED).map(|n| name(n.as_ref()));
    with_rest(shown.collect(), names.len())
}

/// A shape; of many sizes the first.
pub fn shape(sizes: &[usize]) -> String {
    let shown = sizes.iter().take(MOST_LISTED).map(ToString::to_string);
    format!("[{}]", with_rest(shown.collect(), sizes.len()))
}

fn with_rest(shown: Vec<String>, all: usize) -> String {
    let mut text = shown.join(", ");
    if all > shown.len() {
        // To a String nothing fails.
        let _ = write!(text, ", … {} more", all - shown.len());
    }
    text
}

/// Whether a character does something else than to stand there: controls, and what changes the
/// direction of writing or has no width.
fn steers(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e0fff}'
        )
}

/// The text, or its beginning and end where it has more than `most` characters.
fn cut(text: &str, most: usize) -> String {
    let length = text.chars().count();
    if length <= most {
        return text.to_owned();
    }
    let end = most / 4;
    let start = most - end;
    let beginning: String = text.chars().take(start).collect();
    let rest: String = text.chars().skip(length - end).collect();
    format!("{beginning}…({} characters)…{rest}", length - most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_a_terminal_is_escaped_and_letters_stay() {
        assert_eq!(name("a\u{1b}[2J\u{7f}"), "a\\u{1b}[2J\\u{7f}");
        assert_eq!(name("x\u{202e}y\u{9b}"), "x\\u{202e}y\\u{9b}");
        let plain = "Größe 'e\u{301}' \"数\" C:\\x";
        assert_eq!(one_line(plain), plain);
        assert_eq!(one_line("a\nb\tc"), "a b\\u{9}c");
    }

    #[test]
    fn what_is_long_is_cut_in_its_middle() {
        let long = format!("begin{}end", "x".repeat(100_000));
        let shown = one_line(&format!("tensor {long} in file: wrong"));
        assert!(shown.chars().count() < 300, "{shown}");
        assert!(shown.starts_with("tensor begin") && shown.ends_with("end in file: wrong"));
        let controls = "\u{1b}".repeat(100_000);
        assert!(name(&controls).chars().count() < 300);
        let words = "word ".repeat(100_000);
        assert!(one_line(&words).chars().count() < 4100);
        let at_most = "x".repeat(LONGEST_WORD);
        assert_eq!(name(&at_most), at_most);
    }

    #[test]
    fn of_a_long_list_the_first_are_shown() {
        assert_eq!(shape(&[1, 2]), "[1, 2]");
        assert_eq!(shape(&[]), "[]");
        let many = shape(&[7; 1000]);
        assert_eq!(many, "[7, 7, 7, 7, 7, 7, 7, 7, 7, 7, … 990 more]");
        assert_eq!(list(&["a\u{7}", "b"]), "a\\u{7}, b");
    }
}
