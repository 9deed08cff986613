//! Signals that end the program.
#![cfg(unix)]
#![allow(clippy::unwrap_used)] // A helper of a test fails by panicking.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::Folder;
use common::files::{names, shell};

/// What a file of the system's temporary folder is called that the program made.
fn left(folder: &Path) -> Vec<String> {
    let mut names = names(folder);
    names.retain(|name| name.contains("swiglu"));
    names
}

#[test]
fn a_signal_ends_the_program_and_leaves_nothing() {
    for (signal, number) in [("INT", 2), ("TERM", 15), ("HUP", 1)] {
        let folder = Folder::new();
        let temporary: PathBuf = folder.path("");
        let mut child = Command::new(assert_cmd::cargo::cargo_bin!("swiglu"))
            .args(["demo", "--platform", "cpu"])
            .env("TMPDIR", &temporary)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        while left(&temporary).is_empty() {
            assert!(child.try_wait().unwrap().is_none(), "it ended first");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let id = child.id().to_string();
        let kill = Command::new("kill").args(["-s", signal, &id]).status();
        assert!(kill.unwrap().success());
        let status = child.wait().unwrap();
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&status),
            Some(number)
        );
        assert_eq!(left(&temporary), [""; 0]);
    }
}

#[test]
fn a_signal_that_is_ignored_stays_ignored() {
    let folder = Folder::new();
    let script = "trap '' HUP INT; TMPDIR=. \"$0\" demo --platform cpu --tokens 1 >out & \
        while ! ls -d swiglu-* >/dev/null 2>&1; do kill -0 $! || exit 9; done; \
        kill -s HUP $!; kill -s INT $!; wait $!";
    let output = shell(script, &folder);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(left(&folder.path("")), [""; 0]);
}
