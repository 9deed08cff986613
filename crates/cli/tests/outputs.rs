//! What the program does with the files that it writes, on systems with Unix's kinds of files.
#![cfg(unix)]
#![allow(clippy::unwrap_used)] // A helper of a test fails by panicking.

mod common;

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use common::files::{PREFIX, act, checkpoint, input, is_output, make_fifo, names, shell, text};
use common::{expect, write};
use safetensors::{Dtype, SafeTensors};

#[test]
fn a_device_stays_a_device() {
    let folder = input();
    let before = fs::metadata("/dev/null").unwrap().rdev();
    // Root could replace it; so a link stands for it, and the folder of neither is written.
    let link = folder.path("null");
    symlink("/dev/null", &link).unwrap();
    for output in ["/dev/null", text(&link)] {
        let printed = expect(0, &act(text(&folder.path("x")), output));
        assert!(printed.contains("silu_and_mul("), "{printed}");
    }
    assert_eq!(fs::metadata("/dev/null").unwrap().rdev(), before);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    let full = expect(2, &act(text(&folder.path("x")), "/dev/full"));
    assert!(full.starts_with("swiglu: /dev/full: "), "{full}");
}

#[test]
fn a_pipe_is_written_through() {
    let folder = input();
    let fifo = make_fifo(&folder, "fifo");
    let reader = {
        let fifo = fifo.clone();
        std::thread::spawn(move || fs::read(fifo).unwrap())
    };
    expect(0, &act(text(&folder.path("x")), text(&fifo)));
    is_output(&reader.join().unwrap());
    assert!(!fs::metadata(&fifo).unwrap().is_file());
}

#[test]
fn a_link_is_followed_and_stays_a_link() {
    let folder = input();
    fs::create_dir(folder.path("far")).unwrap();
    let target = folder.path("far/y");
    let (link, second) = (folder.path("link"), folder.path("second"));
    symlink("far/y", &link).unwrap();
    symlink("link", &second).unwrap();
    // To a file that is not there yet, then over the one that is.
    for _ in 0..2 {
        expect(0, &act(text(&folder.path("x")), text(&second)));
        is_output(&fs::read(&target).unwrap());
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert!(fs::symlink_metadata(&second).unwrap().is_symlink());
    }
    let circle = folder.path("circle");
    symlink("circle", &circle).unwrap();
    let message = expect(2, &act(text(&folder.path("x")), text(&circle)));
    assert!(message.contains("circle: "), "{message}");
}

#[test]
fn a_name_under_which_no_file_can_be_is_refused() {
    let folder = input();
    let x = folder.path("x");
    let inside = format!("{}/new/", folder.path("").display());
    let nowhere = folder.path("nowhere/y");
    let below = folder.path("x/y");
    let here = folder.path("");
    for (name, problem) in [
        ("", "a value is required"),
        (&inside, "expected the name of a file"),
        (text(&nowhere), "No such file"),
        (text(&below), "Not a directory"),
        (text(&here), "got a folder"),
    ] {
        let message = expect(2, &act(text(&x), name));
        assert!(message.contains(problem), "{message}");
    }
    assert_eq!(names(&here), ["x"]);
}

#[test]
fn an_output_that_is_the_input_is_refused_under_every_name() {
    let folder = input();
    let x = folder.path("x");
    let before = fs::read(&x).unwrap();
    let (soft, hard) = (folder.path("soft"), folder.path("hard"));
    symlink(&x, &soft).unwrap();
    fs::hard_link(&x, &hard).unwrap();
    let roundabout = folder.path("./x");
    for output in [&x, &soft, &hard, &roundabout] {
        let message = expect(2, &act(text(&x), text(output)));
        let said = "output: expected a file that is not read";
        assert!(
            message.contains(said) && message.contains("which is the input"),
            "{message}"
        );
    }
    let message = expect(2, &act(text(&hard), text(&x)));
    assert!(message.contains("which is the input"), "{message}");
    // Standard input and output are files too.
    let script = "\"$0\" act --op silu_and_mul --input - --output x <x";
    let redirected = shell(script, &folder);
    assert_eq!(redirected.status.code(), Some(2));
    let script = "\"$0\" act --op silu_and_mul --input x --output - >>x";
    let redirected = shell(script, &folder);
    assert_eq!(redirected.status.code(), Some(2));
    assert_eq!(fs::read(&x).unwrap(), before);
}

#[test]
fn no_file_of_the_checkpoint_is_an_output() {
    let folder = checkpoint();
    let path = |name: &str| folder.path(name);
    let run = |checkpoint: &Path, output: &Path, code| {
        let (checkpoint, x) = (text(checkpoint), path("x"));
        let arguments = [
            "run",
            "--checkpoint",
            checkpoint,
            "--prefix",
            PREFIX,
            "--input",
        ];
        expect(
            code,
            &[&arguments[..], &[text(&x), "--output", text(output)]].concat(),
        )
    };
    let refused = |checkpoint: &Path, output: &Path, as_what: &str| {
        let before = fs::read(output).unwrap();
        let message = run(checkpoint, output, 2);
        assert!(message.contains(as_what), "{message}");
        assert_eq!(fs::read(output).unwrap(), before);
    };
    let (single, config) = (path("model.safetensors"), path("config.json"));
    refused(&path(""), &single, "a file of the checkpoint");
    refused(&single, &single, "a file of the checkpoint");
    refused(&path(""), &config, "the configuration");
    refused(&path(""), &path("x"), "the input");
    fs::hard_link(&single, path("other")).unwrap();
    refused(&path(""), &path("other"), "a file of the checkpoint");

    // The same tensors in two shards, of which the second holds none of the expert.
    let bytes = fs::read(&single).unwrap();
    let names: Vec<String> = {
        let file = SafeTensors::deserialize(&bytes).unwrap();
        file.names().into_iter().map(str::to_owned).collect()
    };
    fs::remove_file(&single).unwrap();
    fs::write(path("a.safetensors"), &bytes).unwrap();
    write(
        &path("b.safetensors"),
        &[("elsewhere", Dtype::U8, &[1], &[0])],
    );
    let of_a = names.iter().map(|name| (name.as_str(), "a.safetensors"));
    let map: std::collections::BTreeMap<_, _> =
        of_a.chain([("elsewhere", "b.safetensors")]).collect();
    let index = path("model.safetensors.index.json");
    let json = serde_json::json!({ "metadata": {}, "weight_map": map });
    fs::write(&index, json.to_string()).unwrap();
    for output in [
        "a.safetensors",
        "b.safetensors",
        "model.safetensors.index.json",
    ] {
        for checkpoint in [path(""), index.clone()] {
            refused(&checkpoint, &path(output), "a file of the checkpoint");
        }
    }
    // A file beside them is nobody's input.
    run(&path(""), &path("y.safetensors"), 0);
    run(&path(""), &path("y.safetensors"), 0);
}

#[test]
fn permissions_are_those_that_the_umask_leaves_or_that_were_there() {
    let folder = input();
    let mode = |name: &str| fs::metadata(folder.path(name)).unwrap().mode() & 0o777;
    let script = "umask 027; \"$0\" act --op silu_and_mul --input x --output y >/dev/null";
    assert!(shell(script, &folder).status.success());
    assert_eq!(mode("y"), 0o640);
    let script = script.replace("027", "002");
    let all = Permissions::from_mode(0o604);
    fs::set_permissions(folder.path("y"), all).unwrap();
    assert!(shell(&script, &folder).status.success());
    assert_eq!(mode("y"), 0o604);
    let script = script.replace("output y", "output z");
    assert!(shell(&script, &folder).status.success());
    assert_eq!(mode("z"), 0o664);
}
/// A failure leaves what was there, and nothing beside it.
#[test]
fn an_output_is_whole_or_as_it_was() {
    let folder = input();
    fs::write(folder.path("y"), b"before").unwrap();
    let (x, y) = (folder.path("x"), folder.path("y"));
    let mut arguments = act(text(&x), text(&y));
    arguments.extend(["--limit", "3"]);
    expect(2, &arguments);
    assert_eq!(fs::read(&y).unwrap(), b"before");
    // Too large for what the shell allows, in blocks of 512 bytes.
    let script =
        "trap '' XFSZ; ulimit -f 0; \"$0\" act --op silu_and_mul --input x --output y 2>&1 | cat";
    let output = shell(script, &folder);
    let message = String::from_utf8_lossy(&output.stdout);
    assert!(message.contains("swiglu: y: "), "{message}");
    assert_eq!(fs::read(&y).unwrap(), b"before");
    let mut names = names(&folder.path(""));
    names.sort();
    assert_eq!(names, ["x", "y"]);
}

#[test]
fn a_reader_that_has_seen_enough_makes_no_error() {
    let folder = input();
    let commands = [
        "probe",
        "probe --json",
        "--help",
        "man",
        "completions bash",
        "act --op silu_and_mul --input x --output y",
    ];
    for command in commands {
        // The reader is gone before anything is written.
        let script = format!(
            "mkfifo p; {{ exec <p; exec <&-; }} & exec 3>p; wait $!; \"$0\" {command} >&3; \
             code=$?; rm p; exit $code"
        );
        let output = shell(&script, &folder);
        let message = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            (output.status.code(), &*message),
            (Some(0), ""),
            "{command}"
        );
    }
    // A check that fails is told all the same, and a disk that is full.
    let full = shell("\"$0\" probe >/dev/full", &folder);
    assert_eq!(full.status.code(), Some(2));
    let message = String::from_utf8_lossy(&full.stderr);
    assert!(message.contains("cannot write the output"), "{message}");
}
