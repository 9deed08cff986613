//! The records are data: every file parses, and has what `records/README.md` says of it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const COLUMNS: [&str; 5] = ["section", "case", "figure", "unit", "value"];

/// The records, and the page about them.
fn records() -> (Vec<PathBuf>, String) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("records");
    let paths = std::fs::read_dir(&folder).unwrap();
    let mut paths: Vec<_> = paths.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.file_name().unwrap() != "README.md");
    paths.sort();
    assert!(!paths.is_empty(), "no records in {}", folder.display());
    (
        paths,
        std::fs::read_to_string(folder.join("README.md")).unwrap(),
    )
}

/// The name without `.csv`: `<date>-<machine>-<what>`.
fn name(path: &Path) -> &str {
    let name = path.file_name().unwrap().to_str().unwrap();
    name.strip_suffix(".csv")
        .unwrap_or_else(|| panic!("{name} is no CSV file"))
}

#[test]
fn a_name_has_a_date_a_machine_and_a_subject_and_the_page_knows_it() {
    let (paths, page) = records();
    let names: BTreeSet<&str> = paths.iter().map(|path| name(path)).collect();
    for name in &names {
        let parts: Vec<&str> = name.split('-').collect();
        let [year, month, day, rest @ ..] = parts.as_slice() else {
            panic!("{name} has no date");
        };
        let number = |part: &str, digits: usize| -> u32 {
            assert_eq!(part.len(), digits, "the date of {name}");
            part.parse().unwrap()
        };
        assert!(number(year, 4) >= 2026, "{name}");
        assert!((1..=12).contains(&number(month, 2)), "{name}");
        assert!((1..=31).contains(&number(day, 2)), "{name}");
        assert!(
            rest.len() == 2 && rest.iter().all(|r| !r.is_empty()),
            "{name} is not <date>-<machine>-<what>"
        );
    }
    let headings = page.lines().filter_map(|line| line.strip_prefix("## "));
    assert_eq!(headings.collect::<BTreeSet<_>>(), names);
}

#[test]
fn every_row_is_whole_and_said_once() {
    for path in records().0 {
        let name = name(&path);
        let mut reader = csv::Reader::from_path(&path).unwrap();
        assert_eq!(reader.headers().unwrap(), COLUMNS.as_slice(), "{name}");
        let mut seen = BTreeSet::new();
        for row in reader.records() {
            let row = row.unwrap_or_else(|error| panic!("{name}: {error}"));
            for (field, column) in row.iter().zip(COLUMNS) {
                assert!(!field.is_empty(), "{name}: no {column} in {row:?}");
                assert_eq!(field, field.trim(), "{name}: {row:?}");
            }
            let is_number = row[4].parse::<f64>().is_ok_and(f64::is_finite);
            let is_word = row[4].chars().any(char::is_alphabetic);
            assert!(is_number || is_word, "{name}: the value of {row:?}");
            let of: Vec<String> = row.iter().take(4).map(String::from).collect();
            assert!(seen.insert(of), "{name} has two values for {row:?}");
        }
        assert!(!seen.is_empty(), "{name} is empty");
    }
}
