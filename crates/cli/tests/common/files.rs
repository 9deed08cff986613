//! Files to run the program on, and shells to run it in.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use safetensors::{Dtype, SafeTensors};
use swiglu::mlp::synthetic::{SyntheticConfig, synthetic_input, write_checkpoint};

use super::{Folder, write};

pub const PREFIX: &str = "layers.3.ffn.shared_experts";
pub const HIDDEN: usize = 64;

/// A folder with `x`, which `act` takes: [2, 4] of f32.
pub fn input() -> Folder {
    let folder = Folder::new();
    let data: Vec<u8> = (0..8_u8).flat_map(|i| f32::from(i).to_le_bytes()).collect();
    write(&folder.path("x"), &[("x", Dtype::F32, &[2, 4], &data)]);
    folder
}

/// A folder with a checkpoint and an input.
pub fn checkpoint() -> Folder {
    let folder = Folder::new();
    let config = SyntheticConfig {
        hidden: HIDDEN,
        intermediate: 32,
        ..SyntheticConfig::flash(7)
    };
    write_checkpoint(&folder.path(""), &config).unwrap();
    let x = synthetic_input(3, HIDDEN, 7);
    let data = bytemuck::cast_slice(&x);
    write(&folder.path("x"), &[("x", Dtype::BF16, &[3, HIDDEN], data)]);
    folder
}

/// `swiglu act` from one path to another.
pub fn act<'a>(from: &'a str, to: &'a str) -> Vec<&'a str> {
    let rest = ["--op", "silu_and_mul", "--platform", "cpu"];
    [&["act", "--input", from, "--output", to], &rest[..]].concat()
}

/// A named pipe of this name.
pub fn make_fifo(folder: &Folder, name: &str) -> PathBuf {
    let path = folder.path(name);
    let made = Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(made.success());
    path
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The commands that a shell would start: `swiglu` is `$0`.
pub fn shell(script: &str, folder: &Folder) -> std::process::Output {
    let program = assert_cmd::cargo::cargo_bin!("swiglu");
    let mut command = Command::new("sh");
    command.args(["-c", script]).arg(program);
    command.current_dir(folder.path("")).output().unwrap()
}

pub fn is_output(bytes: &[u8]) {
    let file = SafeTensors::deserialize(bytes).unwrap();
    assert_eq!(file.tensor("y").unwrap().shape(), [2, 2]);
}

pub fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name();
    entries
        .map(|entry| name(entry).into_string().unwrap())
        .collect()
}
