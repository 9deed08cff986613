//! What the program says of itself: help, version, completions, manual pages.
#![allow(clippy::unwrap_used)] // A helper of a test fails by panicking.

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{expect, swiglu};

const COMMANDS: [&str; 6] = ["probe", "run", "act", "bench", "demo", "verify"];

/// Variables that only tests read, through a crate that the program is built with.
const OF_TESTS: [&str; 2] = ["SWIGLU_REQUIRE", "SWIGLU_SUITE"];

/// Every Rust file below a folder.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// A new variable stands in a string of its own in the code that reads it, and so must be in help.
#[test]
fn every_environment_variable_is_in_help() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut files = Vec::new();
    sources(&root.join("src"), &mut files);
    for member in std::fs::read_dir(root.join("crates")).unwrap() {
        let member = member.unwrap().path();
        // What is not published is no part of the program.
        if member.join("src").is_dir() && !member.ends_with("bench") {
            sources(&member.join("src"), &mut files);
        }
    }
    let mut read = BTreeSet::new();
    for file in files {
        let text = std::fs::read_to_string(file).unwrap();
        let strings = text.split('"');
        let names = strings.filter(|s| {
            let rest = s.strip_prefix("SWIGLU_").unwrap_or_default();
            !rest.is_empty() && rest.chars().all(|c| c.is_ascii_uppercase() || c == '_')
        });
        read.extend(names.map(str::to_owned));
    }
    assert!(
        read.contains("SWIGLU_PLATFORM") && read.len() >= 6,
        "{read:?}"
    );
    let help = expect(0, &["--help"]);
    let engines = ["WGPU_ADAPTER_NAME", "WGPU_BACKEND", "RAYON_NUM_THREADS"];
    let of_program = read
        .iter()
        .map(String::as_str)
        .filter(|name| !OF_TESTS.contains(name));
    for name in of_program.chain(engines) {
        let listed = |line: &str| line.split_whitespace().next() == Some(name);
        assert!(help.lines().any(listed), "{name} is not in --help: {help}");
    }
}

#[test]
fn lists_are_shown_as_they_are_typed() {
    for (command, default) in [("bench", "1,4,16,64,256"), ("demo", "1,16,256")] {
        let help = expect(0, &[command, "--help"]);
        assert!(help.contains(&format!("[default: {default}]")), "{help}");
        assert!(help.contains("--tokens <T,T,..>"), "{help}");
    }
}

#[test]
fn the_version_names_the_features() {
    for flag in ["--version", "-V"] {
        let version = expect(0, &[flag]);
        let start = format!("swiglu {} (features: ", env!("CARGO_PKG_VERSION"));
        assert!(version.starts_with(&start), "{version}");
        for (feature, built_in) in [
            ("cpu", cfg!(feature = "cpu")),
            ("cuda", cfg!(feature = "cuda")),
            ("wgpu", cfg!(feature = "wgpu")),
            ("mpi", cfg!(feature = "mpi")),
        ] {
            assert_eq!(version.contains(feature), built_in, "{version}");
        }
    }
}

#[test]
fn every_command_with_a_platform_takes_the_devices_number() {
    for command in COMMANDS {
        let help = expect(0, &[command, "--help"]);
        assert_eq!(
            help.contains("--device <N>"),
            help.contains("--platform <"),
            "{help}"
        );
    }
    let folder = common::Folder::new();
    let (x, y) = (folder.path("x"), folder.path("y"));
    common::write(&x, &[("x", safetensors::Dtype::F32, &[1, 2], &[0; 8])]);
    let (x, y) = (x.to_str().unwrap(), y.to_str().unwrap());
    let act = ["act", "--op", "silu_and_mul", "--input", x, "--output", y];
    let commands: [&[&str]; 4] = [
        &act,
        &["verify", "--op", "silu_and_mul"],
        &["bench", "--op", "silu_and_mul"],
        &["demo"],
    ];
    for command in commands {
        let reference = [command, &["--platform", "reference", "--device", "1"]].concat();
        let message = expect(2, &reference);
        assert!(
            message.contains("device: expected 0, the only one"),
            "{message}"
        );
        let message = expect(2, &[command, &["--device", "x"]].concat());
        assert!(message.contains("--device"), "{message}");
    }
    // The flag wins over the environment.
    let act = [&act[..], &["--platform", "reference"]].concat();
    let environment = |arguments: &[&str]| swiglu(arguments).env("SWIGLU_DEVICE", "7").assert();
    environment(&act).code(2);
    environment(&[&act[..], &["--device", "0"]].concat()).success();
}

#[test]
fn completions_know_every_command_and_flag() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = expect(0, &["completions", shell]);
        let words = COMMANDS
            .iter()
            .chain(&["completions", "man", "no-mmap", "device", "json"]);
        for word in words {
            assert!(script.contains(word), "{word} in {shell}");
        }
    }
    assert!(expect(2, &["completions", "cmd"]).contains("cmd"));
    checked_by("bash", &["-n"], &expect(0, &["completions", "bash"]));
}

#[test]
fn manual_pages_are_pages_of_roff() {
    let all = expect(0, &["man"]);
    assert!(all.contains(".TH swiglu 1"), "{all}");
    for command in COMMANDS {
        assert!(all.contains(&format!("swiglu\\-{command}(1)")), "{all}");
        let page = expect(0, &["man", command]);
        assert!(page.contains(&format!(".TH swiglu-{command} 1")), "{page}");
        let help = expect(0, &[command, "--help"]);
        let flags = help
            .split_whitespace()
            .filter(|w| w.starts_with("--") && w.len() > 2);
        for flag in flags.map(|f| f.trim_end_matches([',', '.', ':', '='])) {
            let flag = flag.split('=').next().unwrap().replace('-', "\\-");
            assert!(page.contains(&flag), "{flag} of {command}: {page}");
        }
        checked_by("groff", &["-man", "-Tutf8", "-ww"], &page);
    }
    assert!(all.contains("SWIGLU_PLATFORM"), "{all}");
    assert!(expect(2, &["man", "act2"]).contains("expected one of probe, inspect, run, act"));
}

/// Gives a text to a program that checks it, where that is here.
#[allow(clippy::print_stderr)] // To say that nothing was checked.
fn checked_by(program: &str, arguments: &[&str], text: &str) {
    use std::io::Write;
    let started = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = started else {
        eprintln!("not checked: {program} is not here");
        return;
    };
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(text.as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && complaint.is_empty(),
        "{program}: {complaint}"
    );
}

#[test]
fn nothing_moves_where_there_is_no_terminal() {
    let verify = swiglu(&["verify", "--platform", "reference", "--op", "silu_and_mul"]);
    let output = { verify }.assert().success().get_output().clone();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    assert!(!output.stdout.contains(&b'\r') && !output.stdout.contains(&0x1b));
}
