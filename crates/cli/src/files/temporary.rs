//! Files and folders that must not outlive the program, even where a signal ends it.
//!
//! 1. Each is listed from before it can be seen until after it is gone.
//! 2. A thread waits for the signals that end programs (Ctrl-C, SIGTERM, SIGHUP). It removes what is
//!    listed and ends the program as that signal would have.
//! 3. It never gives the list back: whoever makes a file meanwhile waits for the list, and with it
//!    for the end.

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tempfile::{NamedTempFile, TempDir};

use super::output::folder_of;

static LISTED: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn listed() -> MutexGuard<'static, Vec<PathBuf>> {
    LISTED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An entry of the list, which goes with it.
#[derive(Debug)]
struct Entry(PathBuf);

impl Entry {
    /// Makes something and lists it in one step, as the signals' thread sees it.
    fn of<T>(make: impl FnOnce() -> io::Result<(T, PathBuf)>) -> io::Result<(T, Self)> {
        catch_signals()?;
        let mut listed = listed();
        let (made, path) = make()?;
        listed.push(path.clone());
        Ok((made, Self(path)))
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        listed().retain(|path| *path != self.0);
    }
}

/// A folder among the system's temporary ones.
#[derive(Debug)]
pub struct TemporaryFolder {
    // Removed first, then taken off the list.
    folder: TempDir,
    _entry: Entry,
}

impl TemporaryFolder {
    /// Makes it.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn new() -> io::Result<Self> {
        let (folder, entry) = Entry::of(|| {
            let folder = tempfile::Builder::new().prefix("swiglu-").tempdir()?;
            let path = folder.path().to_owned();
            Ok((folder, path))
        })?;
        Ok(Self {
            folder,
            _entry: entry,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// A file that gets its name when it is whole.
#[derive(Debug)]
pub struct TemporaryFile {
    file: NamedTempFile,
    _entry: Entry,
}

impl TemporaryFile {
    /// Makes a file in the folder of `target`, with the permissions that the umask leaves.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn beside(target: &Path) -> io::Result<Self> {
        let (file, entry) = Entry::of(|| {
            let mut builder = tempfile::Builder::new();
            builder.prefix(".swiglu-");
            #[cfg(unix)]
            builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
            let file = builder.tempfile_in(folder_of(target)).map_err(|e| {
                // Without the random name that would have been.
                e.raw_os_error().map_or(e, io::Error::from_raw_os_error)
            })?;
            let path = file.path().to_owned();
            Ok((file, path))
        })?;
        Ok(Self {
            file,
            _entry: entry,
        })
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.as_file_mut().write_all(bytes)
    }

    /// Gives the file its name, and the permissions of the one that it replaces.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn rename(self, target: &Path, permissions: Option<Permissions>) -> io::Result<()> {
        if let Some(permissions) = permissions {
            self.file.as_file().set_permissions(permissions)?;
        }
        self.file.persist(target).map_err(|e| e.error)?;
        Ok(())
    }
}

/// Removes all that is listed. What comes back holds the list until the program ends.
fn remove_all() -> MutexGuard<'static, Vec<PathBuf>> {
    let listed = listed();
    for path in listed.iter() {
        // Whoever fills a folder meanwhile has a file or two more to make.
        for _ in 0..100 {
            let removed = fs::remove_file(path).or_else(|_| fs::remove_dir_all(path));
            if removed.is_ok() || !path.exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    listed
}

/// Starts the thread that waits for signals, at the first call.
fn catch_signals() -> io::Result<()> {
    static STARTED: OnceLock<Result<(), io::ErrorKind>> = OnceLock::new();
    let started = STARTED.get_or_init(|| start().map_err(|e| e.kind()));
    started.map_err(io::Error::from)
}

#[cfg(unix)]
fn start() -> io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    use signal_hook::iterator::Signals;
    use signal_hook::low_level::emulate_default_handler;

    // What is to be ignored (nohup, or a job in a script's background) stays ignored.
    let ignored = ignored_signals();
    let caught = [SIGHUP, SIGINT, SIGTERM].into_iter();
    let mut signals = Signals::new(caught.filter(|s| ignored >> (s - 1) & 1 == 0))?;
    let wait = move || {
        for signal in signals.forever() {
            let _held = remove_all();
            // Where even that fails the signal has no default, and the program goes on.
            let _ = emulate_default_handler(signal);
        }
    };
    let thread = std::thread::Builder::new().name("signals".to_owned());
    thread.spawn(wait).map(drop)
}

/// A bit for each signal that this process was started to ignore. Only Linux says so without unsafe
/// calls.
#[cfg(unix)]
fn ignored_signals() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0)
}

#[cfg(not(unix))]
fn start() -> io::Result<()> {
    let end = || {
        let _held = remove_all();
        std::process::exit(130);
    };
    ctrlc::set_handler(end).map_err(io::Error::other)
}
