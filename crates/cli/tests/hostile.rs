//! Names and numbers that others chose, in what the program says.
#![allow(clippy::unwrap_used)] // A helper of a test fails by panicking.

mod common;

use std::path::Path;

use common::{Folder, expect};

/// Writes a safetensors file by hand: names that no library would write.
fn put(path: &Path, header: &serde_json::Value, data: &[u8]) {
    let header = header.to_string();
    let length = (header.len() as u64).to_le_bytes();
    std::fs::write(path, [&length, header.as_bytes(), data].concat()).unwrap();
}

fn act(input: &str) -> String {
    let rest = ["--op", "silu_and_mul", "--output", "never-written"];
    expect(2, &[&["act", "--input", input], &rest[..]].concat())
}

/// One line that cannot steer a terminal, and that a person can read.
fn is_tame(message: &str) {
    let line = message.strip_suffix('\n').unwrap();
    assert!(!line.contains(char::is_control), "{line:?}");
    assert!(!line.contains('\u{202e}'), "{line:?}");
    assert!(
        line.chars().count() < 5000,
        "{} characters",
        line.chars().count()
    );
}

#[test]
fn names_in_a_file_are_escaped_and_cut() {
    let folder = Folder::new();
    let path = folder.path("in");
    let file = path.to_str().unwrap();
    let wild = "\u{1b}[2J\u{202e}\u{7}\r\n";
    let long = "x".repeat(1_000_000);
    let spaced = "x ".repeat(500_000);
    for name in [wild, &long, &spaced] {
        let tensor = |dtype: &str, from: usize, to: usize| serde_json::json!({ "dtype": dtype, "shape": [1], "data_offsets": [from, to] });
        put(
            &path,
            &serde_json::json!({ name: tensor("U8", 0, 1) }),
            &[0],
        );
        is_tame(&act(file));
        let two = serde_json::json!({ name: tensor("U8", 0, 1), "b": tensor("U8", 1, 2) });
        put(&path, &two, &[0; 2]);
        is_tame(&act(file));
        is_tame(&act(&format!("{file}:other")));
        put(
            &path,
            &serde_json::json!({ name: tensor("X9", 0, 1) }),
            &[0],
        );
        is_tame(&act(file));
        put(
            &path,
            &serde_json::json!({ name: tensor("U8", 7, 9) }),
            &[0],
        );
        is_tame(&act(file));
        // The checkpoint's reader shows them too.
        let config = folder.path("config.json");
        let sizes = swiglu::mlp::synthetic::SyntheticConfig::flash(1);
        std::fs::write(&config, sizes.config_json()).unwrap();
        let x = folder.path("x");
        let shape = [1, 4096];
        let zeros = vec![0; 2 * 4096];
        common::write(&x, &[("x", safetensors::Dtype::BF16, &shape, &zeros)]);
        let x = x.to_str().unwrap();
        let run = [
            "run",
            "--checkpoint",
            file,
            "--input",
            x,
            "--output",
            "/dev/null",
        ];
        is_tame(&expect(
            2,
            &[&run[..], &["--prefix", "layers.3.a"]].concat(),
        ));
    }
}

#[test]
fn names_on_the_command_line_are_escaped_too() {
    let wild = "\u{1b}]0;title\u{7}\u{202e}";
    is_tame(&act(wild));
    is_tame(&expect(2, &[wild]));
    is_tame(&expect(2, &["probe", wild]));
    is_tame(&expect(2, &["man", wild]));
    let long = "x".repeat(100_000);
    is_tame(&expect(
        2,
        &["act", "--op", &long, "--input", "x", "--output", "y"],
    ));
    is_tame(&expect(
        2,
        &[
            "act",
            "--op",
            "gpt_oss",
            "--platform",
            &long,
            "--input",
            "x",
        ],
    ));
}

#[test]
fn a_shape_of_many_sizes_is_cut() {
    let folder = Folder::new();
    let path = folder.path("in");
    let shape = vec![1; 100_000];
    let tensor = serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [0, 4] });
    put(&path, &serde_json::json!({ "x": tensor }), &[0; 4]);
    let message = act(path.to_str().unwrap());
    assert!(message.contains("… 99990 more]"), "{message}");
    is_tame(&message);
}

#[cfg(feature = "cpu")]
#[test]
fn a_number_of_threads_that_cannot_be_is_told() {
    let probe = |threads: &str| {
        common::swiglu(&["probe"])
            .env("RAYON_NUM_THREADS", threads)
            .assert()
    };
    for threads in ["20000", "4097", "many", "-1", "99999999999999999999"] {
        let output = probe(threads).code(2).get_output().clone();
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(message.lines().count(), 1, "{message}");
        let said = "RAYON_NUM_THREADS: expected from 1 to 4096 threads, got";
        assert!(
            message.contains(said) && message.contains(threads),
            "{message}"
        );
    }
    for (threads, shown) in [("3", "3 threads"), ("0", "threads"), ("", "threads")] {
        let output = probe(threads).success().get_output().clone();
        let printed = String::from_utf8(output.stdout).unwrap();
        assert!(printed.contains(shown), "{printed}");
    }
}
