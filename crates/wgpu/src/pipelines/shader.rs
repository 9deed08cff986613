//! The shaders' text that several kernels share.

use swiglu_core::Float;

use crate::launch::float_code;

pub(super) const NUMERIC: &str = include_str!("../shaders/numeric.wgsl");
pub(super) const ELEMENT: &str = include_str!("../shaders/element.wgsl");
pub(super) const OP: &str = include_str!("../shaders/op.wgsl");
pub(super) const FUNCTIONS_TEXT: &str = include_str!("../shaders/functions.wgsl");
pub(super) const OPERATION: &str = include_str!("../shaders/operation.wgsl");
pub(super) const ACTIVATION_QUICK: &str = include_str!("../shaders/activation_quick.wgsl");
pub(super) const ACTIVATION_NATIVE: &str = include_str!("../shaders/activation_native.wgsl");
pub(super) const WORKGROUP_TEXT: &str = include_str!("../shaders/workgroup.wgsl");

/// The functions that functions.wgsl knows, numbered from 0, as it says itself.
pub(crate) const FUNCTIONS: u32 = number_after(FUNCTIONS_TEXT, "const FUNCTIONS: u32 = ");

/// The number that follows `name` in a text; 0 where there is none.
const fn number_after(text: &str, name: &str) -> u32 {
    let (text, name) = (text.as_bytes(), name.as_bytes());
    let (mut at, mut matched) = (0, 0);
    while at < text.len() && matched < name.len() {
        matched = match (text[at] == name[matched], text[at] == name[0]) {
            (true, _) => matched + 1,
            (false, true) => 1,
            (false, false) => 0,
        };
        at += 1;
    }
    let mut number = 0;
    while at < text.len() && matched == name.len() && text[at].is_ascii_digit() {
        number = 10 * number + (text[at] - b'0') as u32;
        at += 1;
    }
    number
}

/// One pipeline's text and constants.
#[derive(Clone, Debug)]
pub(crate) struct Shader {
    pub(crate) source: String,
    pub(crate) entry: &'static str,
    pub(crate) constants: Vec<(&'static str, f64)>,
    /// Whether indices are compared with bounds, and divisors with 0, at run time.
    pub(crate) checked: bool,
}

pub(super) fn flag(on: bool) -> f64 {
    f64::from(u8::from(on))
}

/// What kernels that activate are made for.
pub(super) fn activation_constants(float: Float, only_silu: bool) -> Vec<(&'static str, f64)> {
    vec![
        ("FLOAT", f64::from(float_code(float))),
        ("ONLY_SILU", flag(only_silu)),
    ]
}

/// The text with its lines that contain `marker` so many times, numbered there.
pub(super) fn repeated(marker: &str, count: u32, text: &str) -> String {
    let mut all = String::new();
    for line in text.split_inclusive('\n') {
        let times = if line.contains(marker) { count } else { 1 };
        all.extend((0..times).map(|t| line.replace(marker, &t.to_string())));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use swiglu_core::GatedActivation;

    #[test]
    fn a_number_is_found_behind_its_name() {
        assert_eq!(number_after("a: 1; bb: 23;", "b: "), 23);
        assert_eq!(number_after("ab", "abc"), 0);
        assert_eq!(number_after("aab = 7", "ab = "), 7);
    }

    #[test]
    fn lines_are_repeated() {
        let text = "a\nb#t = #tu;\nc\n";
        assert_eq!(repeated("#t", 2, text), "a\nb0 = 0u;\nb1 = 1u;\nc\n");
    }

    #[test]
    fn the_shaders_know_every_function_of_the_family() {
        for op in GatedActivation::ALL {
            assert!(op.function().id() < FUNCTIONS, "{op}");
        }
    }
}
