//! Running the program, and the small files that it reads and writes.
#![allow(dead_code, reason = "each test uses its part")]

pub mod engine;
#[cfg(unix)]
pub mod files;

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use tempfile::TempDir;

/// A folder that goes away with the test.
pub struct Folder(TempDir);

impl Folder {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

/// The program, without what the environment says about platforms.
pub fn swiglu(arguments: &[&str]) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("swiglu"));
    command
        .env_remove("SWIGLU_PLATFORM")
        .env_remove("SWIGLU_DEVICE")
        .env_remove("SWIGLU_OPS")
        .env_remove("SWIGLU_ACCUMULATION")
        // Else Mesa prints to standard error that there is no display.
        .env("NODEVICE_SELECT", "1")
        .args(arguments);
    command
}

/// Expects an exit code and returns what was printed, to stdout if it is 0 and to stderr if not.
/// A mistake takes one line.
pub fn expect(code: i32, arguments: &[&str]) -> String {
    let output = swiglu(arguments).assert().code(code).get_output().clone();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    if code == 0 {
        return text(output.stdout);
    }
    let message = text(output.stderr);
    assert_eq!(message.lines().count(), 1, "{message}");
    message
}

pub fn write(path: &Path, tensors: &[(&str, Dtype, &[usize], &[u8])]) {
    let views = tensors.iter().map(|&(name, dtype, shape, data)| {
        (name, TensorView::new(dtype, shape.to_vec(), data).unwrap())
    });
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// A tensor's type, shape and bytes.
pub fn read(path: &Path, name: &str) -> (Dtype, Vec<usize>, Vec<u8>) {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let t = file.tensor(name).unwrap();
    (t.dtype(), t.shape().to_vec(), t.data().to_vec())
}
