//! What files bring into messages: escaped, and cut to a length that can be read.

use std::path::Path;

/// The most characters of a name.
const NAME: usize = 200;
/// The most characters of a sentence with names in it.
const SENTENCE: usize = 800;
/// The most sides of a shape.
const SIDES: usize = 8;

/// A name from a file.
pub fn name(text: &str) -> String {
    shown(text, NAME)
}

/// A sentence that may hold what a file brought.
pub fn sentence(text: &str) -> String {
    shown(text, SENTENCE)
}

/// A path, part of which may come from an index.
pub fn path(path: &Path) -> String {
    shown(&path.to_string_lossy(), SENTENCE)
}

/// A shape, as `[2048, 4096]`.
pub fn shape(sides: &[usize]) -> String {
    match sides.get(..SIDES) {
        Some(first) if sides.len() > SIDES => {
            let first = format!("{first:?}");
            format!("{}, … {} in all]", first.trim_end_matches(']'), sides.len())
        }
        _ => format!("{sides:?}"),
    }
}

/// Escapes what does not print, such as line ends and codes that steer a terminal, and leaves the
/// middle out of what is longer than `most`. What was shown once stays as it is.
fn shown(text: &str, most: usize) -> String {
    let mut out = String::new();
    let length = text.chars().count();
    let (head, tail) = if length > most {
        (most * 2 / 3, most / 4)
    } else {
        (length, 0)
    };
    let put = |out: &mut String, part: &mut dyn Iterator<Item = char>| {
        for c in part {
            match c {
                '"' | '\'' | '\\' => out.push(c),
                c => out.extend(c.escape_debug()),
            }
        }
    };
    put(&mut out, &mut text.chars().take(head));
    if head < length {
        out.push_str(" … ");
        put(&mut out, &mut text.chars().skip(length - tail));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_print_is_escaped_and_what_is_long_is_cut() {
        assert_eq!(name("layers.3.w1 \"é\" \\"), "layers.3.w1 \"é\" \\");
        assert_eq!(name("a\nb\u{1b}[31m\u{202e}"), "a\\nb\\u{1b}[31m\\u{202e}");
        let long = name(&"x".repeat(1 << 20));
        assert!(long.chars().count() <= NAME && long.contains('…'), "{long}");
        assert_eq!(name(&long), long);
        let worst = name(&"\u{1b}".repeat(1 << 20));
        assert!(worst.len() < 10 * NAME, "{worst}");
        assert_eq!(shape(&[2, 3]), "[2, 3]");
        assert_eq!(shape(&[1; 1000]), "[1, 1, 1, 1, 1, 1, 1, 1, … 1000 in all]");
    }
}
