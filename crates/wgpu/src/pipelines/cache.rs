//! What a driver made of pipelines, kept between processes.
//!
//! ## Method
//! 1. A device has a file of its own, named by its adapter and driver, in the folder that
//!    `SWIGLU_CACHE_DIR` names, or the user's folder for caches. An empty variable turns it off.
//! 2. A file begins with a mark, a sum of all that follows, and the adapter and driver. What does not fit
//!    is not used, and the backend's description says why.
//! 3. It is written beside its place and renamed, so that no process reads half of one.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, process};

use crate::Result;
use crate::device::Device;

/// The environment variable that names the folder in which pipelines are kept.
pub const CACHE_VARIABLE: &str = "SWIGLU_CACHE_DIR";

const MARK: [u8; 8] = *b"swiglu-1";

/// Nothing larger is read, in bytes.
const LARGEST: u64 = 256 << 20;

/// A driver's cache, where the device has one, and the file that it is kept in.
#[derive(Debug, Default)]
pub(crate) struct PipelineCache {
    raw: Option<wgpu::PipelineCache>,
    file: Option<PathBuf>,
    key: String,
    /// The sum of what the file holds.
    kept: Mutex<Option<u64>>,
    /// Why the file is not used, or not written.
    note: Mutex<Option<String>>,
}

impl PipelineCache {
    /// That of a device, with what its file holds.
    pub(crate) fn open(device: &Device) -> Result<Self> {
        let raw = device.raw();
        if !raw.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return Ok(Self::default());
        }
        let info = device.info();
        let key = format!("{} {} {}", device.description(), info.vendor, info.device);
        let folder = folder(|name| env::var_os(name));
        let file =
            folder.map(|folder| folder.join(format!("{:016x}.pipelines", sum(key.as_bytes()))));
        let (data, note) = match file.as_deref().map(|file| read(file, &key)) {
            None => (None, None),
            Some(Ok(data)) => (data, None),
            Some(Err(reason)) => (None, Some(reason)),
        };
        let made = device.scoped("making a pipeline cache", || {
            let descriptor = wgpu::PipelineCacheDescriptor {
                label: Some("swiglu"),
                data: data.as_deref(),
                fallback: true,
            };
            // SAFETY: the data is what `get_data` gave for this adapter and driver: its sum and their
            // names were compared. wgpu looks at its own header besides.
            unsafe { raw.create_pipeline_cache(&descriptor) }
        })?;
        Ok(Self {
            raw: Some(made),
            file,
            key,
            kept: Mutex::new(data.as_deref().map(sum)),
            note: Mutex::new(note),
        })
    }

    pub(crate) const fn raw(&self) -> Option<&wgpu::PipelineCache> {
        self.raw.as_ref()
    }

    /// Why the file is not used, or not written; none where all is well.
    pub(crate) fn note(&self) -> Option<String> {
        let note = self.note.lock().ok()?;
        let reason = note.as_ref()?;
        Some(format!("no pipelines kept: {reason}"))
    }

    /// Writes what the driver has, if the file does not hold it. A failure is noted: pipelines work
    /// without.
    pub(crate) fn keep(&self) -> Result<()> {
        let (Some(raw), Some(file)) = (&self.raw, &self.file) else {
            return Ok(());
        };
        let Some(data) = raw.get_data() else {
            return Ok(());
        };
        let mut kept = self.kept.lock()?;
        let new = Some(sum(&data));
        if *kept != new {
            match write(file, &self.key, &data) {
                Ok(()) => *kept = new,
                Err(error) => {
                    let reason = format!("{}: {error}", file.display());
                    *self.note.lock()? = Some(reason);
                }
            }
        }
        Ok(())
    }
}

/// The folder for files of this crate's, by what the environment says.
fn folder(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    if let Some(named) = variable(CACHE_VARIABLE) {
        return (!named.is_empty()).then(|| PathBuf::from(named));
    }
    let absolute = |name: &str| {
        let path = PathBuf::from(variable(name)?);
        path.is_absolute().then_some(path)
    };
    let of_user = if cfg!(windows) {
        absolute("LOCALAPPDATA")
    } else if cfg!(target_os = "macos") {
        absolute("HOME").map(|home| home.join("Library/Caches"))
    } else {
        absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")))
    };
    of_user.map(|folder| folder.join("swiglu"))
}

/// FNV-1a.
fn sum(data: &[u8]) -> u64 {
    data.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// What follows the mark and the sum.
fn content(key: &str, data: &[u8]) -> Vec<u8> {
    let length = (key.len() as u64).to_le_bytes();
    [&length, key.as_bytes(), data].concat()
}

/// The data in a file, if there is one.
///
/// # Errors
/// Why it is not used.
fn read(file: &Path, key: &str) -> Result<Option<Vec<u8>>, String> {
    let told = |error: std::io::Error| format!("{}: {error}", file.display());
    let opened = match File::open(file) {
        Ok(opened) => opened,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(told(error)),
    };
    let mut bytes = Vec::new();
    opened
        .take(LARGEST + 1)
        .read_to_end(&mut bytes)
        .map_err(told)?;
    match parsed(&bytes, key) {
        Ok(data) => Ok(Some(data.to_vec())),
        Err(reason) => Err(format!("{}: {reason}", file.display())),
    }
}

fn parsed<'a>(bytes: &'a [u8], key: &str) -> Result<&'a [u8], &'static str> {
    const DAMAGED: &str = "a damaged file, which the next one takes the place of";
    if bytes.len() as u64 > LARGEST {
        return Err("the file is too large");
    }
    let rest = bytes
        .strip_prefix(&MARK)
        .ok_or("no file of this version's")?;
    let (stored, content) = rest.split_first_chunk().ok_or(DAMAGED)?;
    if u64::from_le_bytes(*stored) != sum(content) {
        return Err(DAMAGED);
    }
    let (length, rest) = content.split_first_chunk().ok_or(DAMAGED)?;
    let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| DAMAGED)?;
    let (found, data) = rest.split_at_checked(length).ok_or(DAMAGED)?;
    if found != key.as_bytes() {
        return Err("another adapter's or driver's file");
    }
    Ok(data)
}

fn write(file: &Path, key: &str, data: &[u8]) -> std::io::Result<()> {
    static WRITTEN: AtomicU32 = AtomicU32::new(0);
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    let count = WRITTEN.fetch_add(1, Ordering::Relaxed);
    let beside = file.with_extension(format!("{}-{count}", process::id()));
    let content = content(key, data);
    let written = File::create_new(&beside).and_then(|mut out| {
        out.write_all(&MARK)?;
        out.write_all(&sum(&content).to_le_bytes())?;
        out.write_all(&content)
    });
    let done = written.and_then(|()| fs::rename(&beside, file));
    if done.is_err() {
        // What failed is told; that its rest may stay, is not.
        drop(fs::remove_file(&beside));
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_of(key: &str, data: &[u8]) -> Vec<u8> {
        let content = content(key, data);
        [&MARK[..], &sum(&content).to_le_bytes(), &content].concat()
    }

    #[test]
    fn a_file_that_does_not_fit_is_not_used() {
        let whole = file_of("adapter", b"pipelines");
        assert_eq!(parsed(&whole, "adapter"), Ok(&b"pipelines"[..]));
        let reason = parsed(&whole, "another").unwrap_err();
        assert!(reason.starts_with("another adapter's"), "{reason}");
        for length in 0..whole.len() {
            assert!(parsed(&whole[..length], "adapter").is_err(), "{length}");
        }
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 4;
            assert!(parsed(&damaged, "adapter").is_err(), "{at}");
        }
        let huge_key = [&u64::MAX.to_le_bytes()[..], b"adapter"].concat();
        let huge = [&MARK[..], &sum(&huge_key).to_le_bytes(), &huge_key].concat();
        assert!(parsed(&huge, "adapter").is_err());
    }

    #[test]
    fn what_was_written_is_read_and_nothing_stays_beside_it() {
        let folder = env::temp_dir().join(format!("swiglu-cache-{}", process::id()));
        let file = folder.join("below").join("a.pipelines");
        assert_eq!(read(&file, "key"), Ok(None));
        for data in [&b"first"[..], b"second"] {
            write(&file, "key", data).unwrap();
            assert_eq!(read(&file, "key"), Ok(Some(data.to_vec())));
        }
        assert!(read(&file, "other").unwrap_err().contains("a.pipelines"));
        assert_eq!(fs::read_dir(folder.join("below")).unwrap().count(), 1);
        // A folder in its place cannot be written over.
        let taken = folder.join("taken");
        fs::create_dir_all(taken.join("full")).unwrap();
        assert!(write(&taken, "key", b"").is_err());
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn the_environment_names_the_folder() {
        let of = |set: &'static [(&str, &str)]| {
            folder(move |name| {
                let found = set.iter().find(|(n, _)| *n == name);
                found.map(|(_, value)| OsString::from(value))
            })
        };
        let named = of(&[(CACHE_VARIABLE, "here"), ("HOME", "/home/a")]);
        assert_eq!(named, Some(PathBuf::from("here")));
        assert_eq!(of(&[(CACHE_VARIABLE, ""), ("HOME", "/home/a")]), None);
        assert_eq!(of(&[]), None);
        if cfg!(target_os = "linux") {
            let home = of(&[("HOME", "/home/a"), ("XDG_CACHE_HOME", "relative")]);
            assert_eq!(home, Some(PathBuf::from("/home/a/.cache/swiglu")));
            let set = of(&[("XDG_CACHE_HOME", "/cache"), ("HOME", "/home/a")]);
            assert_eq!(set, Some(PathBuf::from("/cache/swiglu")));
        }
    }
}
