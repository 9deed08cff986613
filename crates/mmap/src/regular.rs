//! Regular files, so that opening one never waits and reading one ends.

use std::fs::{self, File, FileType};
use std::io::{self, Read};
use std::path::Path;

/// The most bytes of text that [`read_text`] takes: the bound on a safetensors header.
pub const MOST_TEXT: u64 = 100_000_000;

/// Opens a regular file for reading. What it is is asked before it is opened: to open a pipe without
/// a writer waits for one.
///
/// # Errors
/// A file that cannot be opened, or is no regular one (a folder, a device, a pipe).
pub fn open_regular(path: &Path) -> io::Result<File> {
    regular(&fs::metadata(path)?)?;
    let file = File::open(path)?;
    // Another may have taken its place.
    regular(&file.metadata()?)?;
    Ok(file)
}

fn regular(metadata: &fs::Metadata) -> io::Result<()> {
    let file_type = metadata.file_type();
    if file_type.is_file() {
        return Ok(());
    }
    let got = kind(file_type);
    Err(invalid(format!("expected a regular file, got {got}")))
}

/// Reads a regular file of text of at most [`MOST_TEXT`] bytes.
///
/// # Errors
/// As [`open_regular`], a longer file, and text that is not UTF-8.
pub fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    // One byte more tells a file that is too long, even if its length is not known.
    let read = open_regular(path)?
        .take(MOST_TEXT + 1)
        .read_to_string(&mut text)?;
    if read as u64 > MOST_TEXT {
        return Err(invalid(format!(
            "expected at most {MOST_TEXT} bytes of text, got more"
        )));
    }
    Ok(text)
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, message)
}

/// What a file is, in words.
fn kind(file: FileType) -> &'static str {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        let known = [
            (file.is_fifo(), "a pipe"),
            (file.is_char_device(), "a character device"),
            (file.is_block_device(), "a block device"),
            (file.is_socket(), "a socket"),
        ];
        if let Some((_, kind)) = known.into_iter().find(|(is, _)| *is) {
            return kind;
        }
    }
    if file.is_dir() {
        "a folder"
    } else {
        "another kind"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_the_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "größer").unwrap();
        assert_eq!(read_text(&path).unwrap(), "größer");
        fs::write(&path, [0xff]).unwrap();
        assert!(read_text(&path).is_err());
        let error = read_text(folder.path()).unwrap_err().to_string();
        assert_eq!(error, "expected a regular file, got a folder");
    }

    #[test]
    fn text_that_is_too_long_is_not_read_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sparse");
        let file = File::create(&path).unwrap();
        file.set_len(MOST_TEXT + 1).unwrap();
        let error = read_text(&path).unwrap_err().to_string();
        assert!(error.contains("at most 100000000 bytes"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn what_has_no_end_is_refused() {
        let error = open_regular(Path::new("/dev/zero")).unwrap_err();
        assert!(error.to_string().contains("a character device"), "{error}");
    }
}
