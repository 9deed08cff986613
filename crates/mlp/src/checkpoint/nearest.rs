//! Which prefixes there are, and which of them a wrong one may have meant.

use std::collections::BTreeSet;

use crate::text;

/// How many prefixes a message names.
const NAMED: usize = 3;
/// What the names of an MLP's matrices end with, before the name of the weight's part.
const MATRICES: [&str; 7] = [
    "w1",
    "w2",
    "w3",
    "gate_proj",
    "up_proj",
    "down_proj",
    "gate_up_proj",
];

/// What the names of MLPs' tensors begin with.
pub fn mlp_prefixes<'a>(names: impl Iterator<Item = &'a str>) -> BTreeSet<&'a str> {
    let prefix = |name: &'a str| {
        let (matrix, _) = name.rsplit_once('.')?;
        match matrix.rsplit_once('.') {
            Some((prefix, last)) => MATRICES.contains(&last).then_some(prefix),
            None => MATRICES.contains(&matrix).then_some(""),
        }
    };
    names.filter_map(prefix).collect()
}

/// Why there is no MLP under a prefix, and where there are some.
pub fn problem(prefix: &str, names: &[&str]) -> String {
    let mut near: Vec<_> = mlp_prefixes(names.iter().copied()).into_iter().collect();
    near.sort_by_key(|other| strsim::levenshtein(prefix, other));
    if near.is_empty() {
        let count = names.len();
        return format!("no gate, up or down weight there, nor elsewhere among {count} tensors");
    }
    let all = near.len();
    near.truncate(NAMED);
    let near: Vec<_> = near.into_iter().map(text::name).collect();
    let of = if all > NAMED {
        format!(", of {all} prefixes")
    } else {
        String::new()
    };
    format!(
        "no gate, up or down weight there; the nearest are under {}{of}",
        near.join(", ")
    )
}
