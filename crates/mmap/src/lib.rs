//! A file mapped for reading, and files that are no trap to open.
//!
//! This crate exists to hold one `unsafe` call, so that `swiglu-mlp` holds none.

use std::io;
use std::ops::Deref;
use std::path::Path;

mod regular;

pub use regular::{MOST_TEXT, open_regular, read_text};

/// A file mapped into memory, read-only. Pages are read from the file as they are touched.
///
/// # Files that change
/// Nobody may write to the file or shorten it while it is mapped: its bytes would change under a
/// shared reference, and reading past a new end kills the process. No operating system lets this
/// be checked; it is the contract of everyone who opens a file through this crate. Replacing a file
/// by renaming another over it is harmless.
#[derive(Debug)]
pub struct MappedFile(memmap2::Mmap);

impl MappedFile {
    /// Maps the whole of a file.
    ///
    /// # Errors
    /// As [`open_regular`], or a file that cannot be mapped.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = open_regular(path)?;
        // SAFETY: the mapping is private to this value, read-only and unmapped by its drop, and
        // memmap2 checks its length. That the file does not change meanwhile cannot be checked: the
        // type's documentation makes it the contract of whoever opens a file.
        let map = unsafe { memmap2::Mmap::map(&file) }?;
        Ok(Self(map))
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_the_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, b"abc").unwrap();
        assert_eq!(&*MappedFile::open(&path).unwrap(), b"abc");
        std::fs::write(folder.path().join("empty"), b"").unwrap();
        assert!(
            MappedFile::open(&folder.path().join("empty"))
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn what_is_no_file_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        assert!(MappedFile::open(folder.path()).is_err());
        assert!(MappedFile::open(&folder.path().join("absent")).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn a_pipe_or_a_device_is_refused_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        // Opening the pipe would wait for ever, as nobody writes to it.
        for path in [&pipe, Path::new("/dev/zero")] {
            let error = open_regular(path).unwrap_err().to_string();
            assert!(
                error.starts_with("expected a regular file, got a "),
                "{error}"
            );
            assert!(MappedFile::open(path).is_err());
        }
    }
}
