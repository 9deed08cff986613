//! Which top-level modules of a crate use which others.
//!
//! ## Method
//! 1. A module is a file or folder beside `lib.rs`; what lies in its folder belongs to it. Tests
//!    are left out.
//! 2. Each path that begins with `crate::`, or with enough `super::` to reach the crate's root,
//!    uses the module whose name follows, or the one from which `lib.rs` takes that name.
//! 3. A circle is a shortest way along uses from a module back to itself.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};

/// For each module, those that it uses, each with a file in which it does.
pub type Uses = BTreeMap<String, BTreeMap<String, PathBuf>>;

/// A source file of a crate and the module that it is.
struct SourceFile {
    path: PathBuf,
    module: Vec<String>,
    text: String,
}

fn files(root: &Path, folder: &Path, found: &mut Vec<SourceFile>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(root, &path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let module = path.strip_prefix(root).unwrap().with_extension("");
            let module = module
                .iter()
                .map(|part| part.to_string_lossy().into_owned());
            found.push(SourceFile {
                module: module.filter(|part| part != "mod").collect(),
                text: without_comments(&fs::read_to_string(&path).unwrap()),
                path,
            });
        }
    }
}

fn without_comments(text: &str) -> String {
    let code = |line: &str| line.split("//").next().unwrap_or_default().to_owned();
    text.lines().map(code).collect::<Vec<_>>().join("\n")
}

const TESTS: &str = "#[cfg(test)]\nmod ";

/// The modules that a file declares for tests only.
fn test_modules(file: &SourceFile) -> Vec<Vec<String>> {
    let parent = match file.module[..] == ["lib"] {
        true => [].as_slice(),
        false => &file.module,
    };
    let declared = file.text.split(TESTS).skip(1);
    let names = declared.filter_map(|text| Some(text.split_once(';')?.0));
    let names = names.filter(|name| name.chars().all(|c| c.is_alphanumeric() || c == '_'));
    names.map(|n| [parent, &[n.to_owned()]].concat()).collect()
}

/// The text before the tests in it.
fn without_tests(text: &str) -> &str {
    let inline = |at: &usize| {
        let behind = &text[at + TESTS.len()..];
        behind.find('{') < behind.find(';')
    };
    let mut places = text.match_indices(TESTS).map(|(at, _)| at);
    places.find(inline).map_or(text, |at| &text[..at])
}

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The names that follow a path's start: one, or those between braces.
fn names(text: &str) -> Vec<&str> {
    let name = |text: &str| text.find(|c| !is_name(c)).unwrap_or(text.len());
    if !text.starts_with('{') {
        return vec![&text[..name(text)]];
    }
    let (mut found, mut depth, mut start) = (Vec::new(), 0, 1);
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if (c == ',' && depth == 1) || depth == 0 {
            let item = text[start..at].trim_start();
            found.push(&item[..name(item)]);
            start = at + 1;
        }
        if depth == 0 {
            break;
        }
    }
    found
}

/// What `lib.rs` takes from its modules, by name.
fn exports(lib: &str) -> BTreeMap<&str, &str> {
    let mut exports = BTreeMap::new();
    for (at, _) in lib.match_indices("use ") {
        let path = &lib[at + 4..];
        let Some((module, rest)) = path.split_once("::") else {
            continue;
        };
        if module.chars().all(is_name) {
            let last = &path[..path.find(';').unwrap_or(path.len())];
            // Of a longer path only the last part is a name of the crate's.
            let rest = match rest.starts_with('{') {
                true => rest,
                false => last.rsplit("::").next().unwrap_or(rest),
            };
            exports.extend(names(rest).into_iter().map(|name| (name, module)));
        }
    }
    exports
}

/// The names at the crate's root that a file refers to.
fn referred(file: &SourceFile) -> Vec<&str> {
    let text = without_tests(&file.text);
    let mut found = Vec::new();
    let begins = |at: usize| {
        let before = &text[..at];
        !before.ends_with(is_name) && !before.ends_with("::") && !before.ends_with("(in ")
    };
    for (at, start) in text.match_indices("crate::") {
        if begins(at) {
            found.extend(names(&text[at + start.len()..]));
        }
    }
    for (at, start) in text.match_indices("super::") {
        let mut rest = &text[at + start.len()..];
        let mut up = 1;
        while let Some(further) = rest.strip_prefix(start) {
            (rest, up) = (further, up + 1);
        }
        if begins(at) && up >= file.module.len() {
            found.extend(names(rest));
        }
    }
    found
}

/// The uses between the modules of the crate whose sources lie in this folder.
pub fn uses(source: &Path) -> Uses {
    let mut all = Vec::new();
    files(source, source, &mut all);
    assert!(all.len() > 1, "no sources in {}", source.display());
    let tests: Vec<_> = all.iter().flat_map(test_modules).collect();
    all.retain(|file| !tests.iter().any(|t| file.module.starts_with(t)));
    let lib = all.iter().position(|file| file.module == ["lib"]).unwrap();
    let lib = all.swap_remove(lib).text;
    let exports = exports(&lib);
    let modules: BTreeSet<_> = all.iter().map(|file| file.module[0].clone()).collect();
    let mut uses = Uses::new();
    for file in &all {
        let of_module = uses.entry(file.module[0].clone()).or_default();
        for name in referred(file) {
            let used = exports.get(name).copied().unwrap_or(name);
            if modules.contains(used) && used != file.module[0] {
                of_module.insert(used.to_owned(), file.path.clone());
            }
        }
    }
    uses
}

/// The shortest way from a module back to itself.
fn circle<'a>(uses: &'a Uses, start: &'a str) -> Option<Vec<&'a str>> {
    let mut ways = VecDeque::from([vec![start]]);
    let mut seen = BTreeSet::new();
    while let Some(way) = ways.pop_front() {
        for next in uses.get(*way.last()?).into_iter().flat_map(BTreeMap::keys) {
            if next == start {
                return Some(way);
            }
            if seen.insert(next.as_str()) {
                ways.push_back([&way[..], &[next.as_str()]].concat());
            }
        }
    }
    None
}

/// Every circle, named by its modules and the files in which each uses the next.
pub fn circles(uses: &Uses) -> Vec<String> {
    let mut found = BTreeMap::new();
    for module in uses.keys() {
        if let Some(way) = circle(uses, module) {
            let mut members = way.clone();
            members.sort_unstable();
            found.entry(members).or_insert(way);
        }
    }
    let step = |(from, to): (&str, &str)| {
        let file = uses[from][to].file_name().unwrap().to_string_lossy();
        format!("{from} -> {to} ({file})")
    };
    let tell = |way: &Vec<&str>| {
        let next = way.iter().cycle().skip(1);
        let steps: Vec<_> = way.iter().zip(next).map(|(a, b)| step((a, b))).collect();
        steps.join(", ")
    };
    found.values().map(tell).collect()
}

#[test]
fn circles_are_found_through_every_kind_of_path() {
    let folder = std::env::temp_dir().join(format!("modules-{}", std::process::id()));
    let write = |path: &str, text: &str| {
        let path = folder.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write(
        "lib.rs",
        "mod a; mod b; mod c; mod d;\npub use d::{Deep, Other};\n",
    );
    write(
        "a.rs",
        "use crate::{\n    b::{x, c},\n    Unknown,\n};\npub(crate) fn f() {}\n",
    );
    write(
        "b.rs",
        "// use crate::a;\n#[cfg(test)]\nmod tests {\n    use crate::a;\n}\n",
    );
    write("b/inner.rs", "use super::y;\npub(in crate::b) fn f() {}\n");
    write(
        "c/inner.rs",
        "use super::super::b;\nfn f() { crate::Deep::new(); }\n",
    );
    write("d.rs", "use super::a;\n#[cfg(test)]\nmod checks;\n");
    write("d/checks.rs", "use crate::c;\n");
    let found = uses(&folder);
    let of = |module: &str| found[module].keys().cloned().collect::<Vec<_>>();
    assert_eq!((of("a"), of("b")), (vec!["b".to_owned()], vec![]));
    assert_eq!(of("c"), ["b", "d"]);
    assert_eq!(of("d"), ["a"]);
    assert_eq!(circles(&found), [""; 0]);
    write("b/inner.rs", "use super::super::c::z;\n");
    let expected = [
        "a -> b (a.rs), b -> c (inner.rs), c -> d (inner.rs), d -> a (d.rs)",
        "b -> c (inner.rs), c -> b (inner.rs)",
    ];
    assert_eq!(circles(&uses(&folder)), expected);
    fs::remove_dir_all(folder).unwrap();
}
