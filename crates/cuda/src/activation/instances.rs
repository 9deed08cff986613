//! The text of `kernels/activation/instances.cuh`, which `cargo xtask kernels` writes.

use std::fmt::Write as _;

use super::family::Form;

/// `gelu_tanh` as `GeluTanh`: how functions.cuh names a function's type.
pub fn camel_case(name: &str) -> String {
    let mut text = String::new();
    for word in name.split('_') {
        let (first, rest) = word.split_at(word.len().min(1));
        text.push_str(&first.to_uppercase());
        text.push_str(rest);
    }
    text
}

fn list(text: &mut String, name: &str, forms: &[&Form]) {
    let _ = write!(text, "#define {name}(FORM)");
    for form in forms {
        let (name, function) = (form.name(), camel_case(form.function));
        let (clamp, interleaved) = (form.clamp, form.interleaved);
        let _ = write!(
            text,
            " \\\n    FORM({name}, {function}, {clamp:?}, {interleaved})"
        );
    }
    text.push('\n');
}

/// The whole file.
pub fn text(forms: &[Form]) -> String {
    let mut text = String::from(
        "// Written by `cargo xtask kernels` from the family's table in core: do not edit.\n\
         #pragma once\n\n\
         // FORM(name, type in functions.cuh, clamp, whether rows are interleaved)\n",
    );
    list(&mut text, "FORMS", &forms.iter().collect::<Vec<_>>());
    text.push_str(
        "\n// Of these there are kernels besides that are tuned for DeepSeek's models.\n",
    );
    let tuned: Vec<_> = forms.iter().filter(|f| f.is_tuned()).collect();
    list(&mut text, "TUNED_FORMS", &tuned);
    text
}
