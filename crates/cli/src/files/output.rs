//! Files that are written.
//!
//! 1. What the name stands for is settled before the work begins, so that a mistake need not wait
//!    for it: `-` and whatever standard output already is are standard output; what is no regular
//!    file (a device, a pipe) is written through; a link is followed; a file that is read is refused.
//! 2. A regular file is written beside its place under another name and then renamed, so that it is
//!    never seen half written. It has the permissions of the one that it replaces, or those that
//!    the umask leaves a new file.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::temporary::TemporaryFile;
use super::{Inputs, STANDARD};
use crate::failure::{Failure, Result};

/// Links that are followed before they are taken for a circle, as Linux does it.
const MOST_LINKS: usize = 40;

/// Where an output goes.
#[derive(Debug)]
pub struct OutputFile {
    /// The flag that names it.
    argument: &'static str,
    /// As the caller calls it.
    name: PathBuf,
    destination: Destination,
}

#[derive(Debug)]
enum Destination {
    StandardOutput,
    /// What is no regular file.
    Through,
    /// A regular file, there or to be made.
    Renamed {
        /// Its own path, all links followed.
        target: PathBuf,
        /// Those of the file that is replaced.
        permissions: Option<Permissions>,
    },
}

impl OutputFile {
    /// Settles where the output of this name goes.
    ///
    /// # Errors
    /// A file that is read, one that may not be written, a folder, or a folder that is not there.
    pub fn new(argument: &'static str, name: &Path, inputs: &Inputs) -> Result<Self> {
        let file = |destination| Self {
            argument,
            name: name.to_owned(),
            destination,
        };
        let read = |what: &str| {
            let name = name.display();
            Failure::Input(format!(
                "{argument}: expected a file that is not read, got {name}, which is {what}"
            ))
        };
        let fail = |error: io::Error| Failure::file(name, error);
        if name == Path::new(STANDARD) {
            return match stdout_is_read(inputs) {
                Some(what) => Err(read(what)),
                None => Ok(file(Destination::StandardOutput)),
            };
        }
        let metadata = match fs::metadata(name) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let target = new_file(name).map_err(fail)?;
                let permissions = None;
                return Ok(file(Destination::Renamed {
                    target,
                    permissions,
                }));
            }
            Err(error) => return Err(fail(error)),
        };
        if metadata.is_dir() {
            return Err(Failure::file(name, "expected a file, got a folder"));
        }
        if let Some(what) = inputs.find(name) {
            return Err(read(what));
        }
        if is_stdout(&metadata) {
            return Ok(file(Destination::StandardOutput));
        }
        if !metadata.is_file() {
            return Ok(file(Destination::Through));
        }
        // Renaming would replace a file that may not be written.
        OpenOptions::new().write(true).open(name).map_err(fail)?;
        Ok(file(Destination::Renamed {
            target: fs::canonicalize(name).map_err(fail)?,
            permissions: Some(metadata.permissions()),
        }))
    }

    /// Whether this is standard output, which then holds nothing else.
    pub const fn is_stdout(&self) -> bool {
        matches!(self.destination, Destination::StandardOutput)
    }

    /// The flag that names it.
    pub const fn argument(&self) -> &'static str {
        self.argument
    }

    /// The name, as the caller gave it.
    pub fn name(&self) -> &Path {
        &self.name
    }

    /// Writes the whole of it.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn write(&self, bytes: &[u8]) -> Result<()> {
        self.try_write(bytes)
            .map_err(|error| Failure::file(&self.name, error))
    }

    fn try_write(&self, bytes: &[u8]) -> io::Result<()> {
        match &self.destination {
            Destination::StandardOutput => {
                let mut out = io::stdout().lock();
                out.write_all(bytes)?;
                out.flush()
            }
            Destination::Through => {
                let mut file = OpenOptions::new().write(true).open(&self.name)?;
                file.write_all(bytes)?;
                file.flush()
            }
            Destination::Renamed {
                target,
                permissions,
            } => {
                let mut file = TemporaryFile::beside(target)?;
                file.write_all(bytes)?;
                file.rename(target, permissions.clone())
            }
        }
    }
}

/// Where a file that is not there is made: at the end of the links that lead to it, in a folder that
/// is there.
fn new_file(name: &Path) -> io::Result<PathBuf> {
    if name.as_os_str().is_empty() || name.to_string_lossy().ends_with(std::path::is_separator) {
        let message = "expected the name of a file";
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    let mut target = name.to_owned();
    for _ in 0..MOST_LINKS {
        let Ok(next) = fs::read_link(&target) else {
            fs::metadata(folder_of(&target))?;
            return Ok(target);
        };
        target = folder_of(&target).join(next);
    }
    let message = "too many links lead from one to the next";
    Err(io::Error::new(io::ErrorKind::InvalidInput, message))
}

/// The folder that a file is in.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Whether this is the file or the pipe that standard output goes to: prose must not come between.
/// A device takes both.
#[cfg(unix)]
fn is_stdout(metadata: &fs::Metadata) -> bool {
    use super::identity::Identity;
    use std::os::unix::fs::FileTypeExt;
    let kind = metadata.file_type();
    (kind.is_file() || kind.is_fifo())
        && super::metadata_of(&io::stdout())
            .is_ok_and(|stdout| Identity::from(&stdout) == Identity::from(metadata))
}

#[cfg(not(unix))]
fn is_stdout(_: &fs::Metadata) -> bool {
    false
}

/// What the file that standard output goes to is read as, if it is read.
#[cfg(unix)]
fn stdout_is_read(inputs: &Inputs) -> Option<&'static str> {
    let stdout = super::metadata_of(&io::stdout()).ok()?;
    let stdout = stdout.is_file().then_some(stdout)?;
    inputs.find_file(&super::identity::Identity::from(&stdout))
}

#[cfg(not(unix))]
fn stdout_is_read(_: &Inputs) -> Option<&'static str> {
    None
}
