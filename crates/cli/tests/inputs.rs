//! What the program does with the files that it reads, on systems with Unix's kinds of files.
#![cfg(unix)]
#![allow(clippy::unwrap_used)] // A helper of a test fails by panicking.

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use common::files::{HIDDEN, PREFIX, act, checkpoint, input, is_output, make_fifo, shell, text};
use common::{expect, read, swiglu, write};
use safetensors::Dtype;
use swiglu::mlp::synthetic::synthetic_input;

#[test]
fn a_hyphen_is_standard_input_and_output() {
    let folder = input();
    let bytes = fs::read(folder.path("x")).unwrap();
    for from in ["-", "-:x"] {
        let output = swiglu(&act(from, "-"))
            .write_stdin(bytes.clone())
            .assert()
            .success();
        let output = output.get_output();
        is_output(&output.stdout);
        let prose = String::from_utf8_lossy(&output.stderr);
        assert!(prose.contains("silu_and_mul("), "{prose}");
    }
    assert!(!Path::new("-").exists());
    // Whatever standard output is called.
    let script = "\"$0\" act --op silu_and_mul --input x --output /dev/stdout >y; cat y";
    is_output(&shell(script, &folder).stdout);
    let script = "\"$0\" act --op silu_and_mul --input x --output /dev/stdout | cat";
    is_output(&shell(script, &folder).stdout);
    let x = folder.path("x");
    let both = [act(text(&x), "-"), vec!["--json"]].concat();
    assert!(expect(2, &both).contains("output: expected a file with --json"));
}

#[test]
fn a_stream_is_read_to_its_end_and_no_further_than_it_says() {
    let folder = input();
    let bytes = fs::read(folder.path("x")).unwrap();
    let fails = |bytes: Vec<u8>, problem: &str| {
        let output = swiglu(&act("-", "/dev/null"))
            .write_stdin(bytes)
            .assert()
            .code(2);
        let message = String::from_utf8_lossy(&output.get_output().stderr).into_owned();
        assert!(message.contains("standard input: "), "{message}");
        assert!(message.contains(problem), "{message}");
    };
    fails(Vec::new(), "got 0 bytes");
    fails(bytes[..30].to_vec(), "header: expected");
    fails(
        bytes[..bytes.len() - 1].to_vec(),
        "tensors: expected 32 bytes, got 31",
    );
    fails(
        [bytes.clone(), vec![0]].concat(),
        "tensors: expected 32 bytes, got more",
    );
    fails(vec![0xff; 100], "header: expected at most 100000000 bytes");
    // Terabytes that never come take no memory.
    let header =
        r#"{"x":{"dtype":"F32","shape":[1099511627776,2],"data_offsets":[0,8796093022208]}}"#;
    let claim = [
        &(header.len() as u64).to_le_bytes(),
        header.as_bytes(),
        &[0; 99],
    ]
    .concat();
    fails(claim, "tensors: expected 8796093022208 bytes, got 99");
}

/// Each would wait for ever, or fill the memory, if it were opened or read as a file is.
#[test]
fn what_is_no_regular_file_is_refused_as_an_input() {
    let folder = checkpoint();
    let fifo = make_fifo(&folder, "fifo");
    let inputs = [
        (text(&fifo), "got a pipe"),
        ("/dev/zero", "got a character device"),
        (text(&folder.path("")), "got a folder"),
    ]
    .map(|(path, kind)| (path.to_owned(), kind));
    let (whole, x) = (folder.path(""), folder.path("x"));
    for (path, kind) in &inputs {
        let message = expect(2, &act(path, "/dev/null"));
        assert!(message.contains(kind), "{message}");
        let run = |checkpoint: &str, more: &[&str]| {
            let always = ["run", "--prefix", PREFIX, "--output", "/dev/null"];
            let rest = ["--checkpoint", checkpoint, "--input", text(&x)];
            expect(2, &[&always[..], &rest, more].concat())
        };
        let message = run(text(&whole), &["--config", path]);
        assert!(message.contains(kind), "{message}");
        if *kind != "got a folder" {
            let config = folder.path("config.json");
            for more in [&[][..], &["--no-mmap"]] {
                let message = run(path, &[&["--config", text(&config)], more].concat());
                assert!(message.contains(kind), "{message}");
            }
        }
        let verify = ["verify", "--op", "silu_and_mul", "--against", path];
        assert!(expect(2, &verify).contains(kind));
    }
    // An index that is one, and shards that are.
    fs::remove_file(folder.path("model.safetensors")).unwrap();
    let run = || {
        let always = ["run", "--prefix", PREFIX, "--output", "/dev/null"];
        expect(
            2,
            &[
                &always[..],
                &["--checkpoint", text(&whole), "--input", text(&x)],
            ]
            .concat(),
        )
    };
    let index = make_fifo(&folder, "model.safetensors.index.json");
    assert!(run().contains("got a pipe"));
    fs::remove_file(&index).unwrap();
    let map = format!(r#"{{"weight_map": {{"{PREFIX}.w1.weight": "fifo"}}}}"#);
    fs::write(&index, map).unwrap();
    assert!(run().contains("got a pipe"));
}

#[test]
fn weights_that_are_read_are_those_that_are_mapped() {
    let folder = checkpoint();
    let (whole, x, y) = (folder.path(""), folder.path("x"), folder.path("y"));
    let run = |more: &[&str]| {
        let always = ["run", "--prefix", PREFIX, "--checkpoint", text(&whole)];
        let files = ["--input", text(&x), "--output", text(&y)];
        expect(0, &[&always[..], &files, more].concat());
        read(&y, "y")
    };
    assert_eq!(run(&[]), run(&["--no-mmap"]));
}

/// The program waits in the middle of its output, which is more than a pipe holds, so that the
/// system can be asked what it has mapped.
#[cfg(target_os = "linux")]
#[test]
fn without_mapping_nothing_is_mapped() {
    use std::io::Read;

    let folder = checkpoint();
    let (whole, x) = (folder.path(""), folder.path("x"));
    let tokens = 1024;
    let data = synthetic_input(tokens, HIDDEN, 7);
    let data = bytemuck::cast_slice(&data);
    write(&x, &[("x", Dtype::BF16, &[tokens, HIDDEN], data)]);
    let fifo = make_fifo(&folder, "fifo");
    for (more, mapped) in [(None, true), (Some("--no-mmap"), false)] {
        let mut child = Command::new(assert_cmd::cargo::cargo_bin!("swiglu"))
            .args(["run", "--prefix", PREFIX, "--checkpoint", text(&whole)])
            .args(["--input", text(&x), "--output", text(&fifo)])
            .args(more)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut reader = fs::File::open(&fifo).unwrap();
        reader.read_exact(&mut [0]).unwrap();
        let maps = fs::read_to_string(format!("/proc/{}/maps", child.id())).unwrap();
        assert_eq!(maps.contains("model.safetensors"), mapped, "{maps}");
        reader.read_to_end(&mut Vec::new()).unwrap();
        assert!(child.wait().unwrap().success());
    }
}
