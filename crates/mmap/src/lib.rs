//! A file mapped for reading, and files that are no trap to open.
//!
//! This crate exists to hold the `unsafe` calls of that, so that `swiglu-mlp` holds none.

use std::io;
use std::ops::{Deref, Range};
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
pub struct MappedFile {
    map: memmap2::Mmap,
    /// To read ahead from.
    #[cfg(unix)]
    path: std::path::PathBuf,
}

/// Bytes that are read ahead at a time: they stay in a cache until the next overwrite them.
#[cfg(unix)]
const READ: usize = 256 << 10;

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
        Ok(Self {
            map,
            #[cfg(unix)]
            path: path.to_owned(),
        })
    }

    /// Brings some bytes from the disk into the page cache, unless they are there. They are read one
    /// after another, as systems are quickest: faults, and advice to read ahead of them, bring less at
    /// a time. Takes as long as the disk does, so call it on a thread of its own. Does nothing where the
    /// range is not within the file, and where the system has no way to read at a place.
    pub fn read_ahead(&self, bytes: Range<usize>) {
        #[cfg(unix)]
        if self.within(&bytes).is_some() && !self.is_resident(&bytes) {
            // What is not read ahead is read when it is touched, and fails then.
            let _ = read_through(&self.path, bytes);
        }
        #[cfg(not(unix))]
        let _ = bytes;
    }

    /// Whether some bytes within the file are in the page cache, as far as the system tells.
    #[cfg(target_os = "linux")]
    fn is_resident(&self, bytes: &Range<usize>) -> bool {
        // SAFETY: no memory is touched.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
        let start = bytes.start / page * page;
        let mut pages = vec![0_u8; (bytes.end - start).div_ceil(page)];
        // SAFETY: the mapping begins with a page, so this does; it lies within the mapping, and there is
        // a byte for each of its pages. Nothing is changed but these bytes.
        let told = unsafe {
            let from = self.map.as_ptr().add(start).cast_mut();
            libc::mincore(from.cast(), bytes.end - start, pages.as_mut_ptr())
        };
        told == 0 && pages.iter().all(|page| page & 1 == 1)
    }

    #[cfg(all(unix, not(target_os = "linux")))]
    fn is_resident(&self, _: &Range<usize>) -> bool {
        false
    }

    /// Takes the pages of some bytes off this process's memory, which it has no more use for: touched
    /// again, they come from the page cache or the disk. Does nothing as [`Self::read_ahead`] does.
    pub fn release(&self, bytes: Range<usize>) {
        #[cfg(unix)]
        if let Some(length) = self.within(&bytes) {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            // SAFETY: the mapping is of a file, shared and read-only: pages that are dropped come again
            // from the file with the same bytes, as it does not change.
            let _ = unsafe { self.map.unchecked_advise_range(advice, bytes.start, length) };
        }
        #[cfg(not(unix))]
        let _ = bytes;
    }

    /// The length of a range that is within the file and not empty.
    #[cfg(unix)]
    fn within(&self, bytes: &Range<usize>) -> Option<usize> {
        let length = bytes.end.checked_sub(bytes.start)?;
        (length > 0 && bytes.end <= self.map.len()).then_some(length)
    }
}

/// Reads some bytes of a file from end to end, and drops them. The file is opened for it, as a system
/// foresees what is read next by what was read before through the same opening.
#[cfg(unix)]
fn read_through(path: &Path, bytes: Range<usize>) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let file = open_regular(path)?;
    let mut buffer = vec![0; READ.min(bytes.len())];
    let mut at = bytes.start;
    while at < bytes.end {
        let most = buffer.len().min(bytes.end - at);
        match file.read_at(&mut buffer[..most], at as u64)? {
            0 => break,
            read => at += read,
        }
    }
    Ok(())
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
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
    fn advice_changes_no_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let bytes: Vec<u8> = (0..100_000).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let map = MappedFile::open(&path).unwrap();
        let reversed = Range { start: 9, end: 3 };
        for range in [0..0, 0..1, 5000..99_999, 0..100_000, 7..100_001, reversed] {
            map.read_ahead(range.clone());
            assert_eq!(&*map, bytes);
            map.release(range);
            assert_eq!(&*map, bytes);
        }
    }

    /// The page cache may give pages up at any time, and here has no reason to.
    #[cfg(target_os = "linux")]
    #[test]
    fn what_is_read_ahead_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let length = 3_000_001;
        std::fs::write(&path, vec![1; length]).unwrap();
        let map = MappedFile::open(&path).unwrap();
        use std::os::fd::AsRawFd;
        let file = std::fs::File::open(&path).unwrap();
        file.sync_data().unwrap();
        // Nothing is turned out where the file system has no disk.
        // SAFETY: of a file that is open, and no memory is touched.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        map.read_ahead(5000..length);
        assert!(map.is_resident(&(5000..length)));
    }

    /// Pages of the file that this process has in memory.
    #[cfg(target_os = "linux")]
    #[test]
    fn what_is_released_takes_no_memory() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let length = 1 << 22;
        std::fs::write(&path, vec![1; length]).unwrap();
        let map = MappedFile::open(&path).unwrap();
        let resident = || {
            let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let start = format!("{:x}-", map.as_ptr().addr());
            let mut lines = maps.lines().skip_while(|line| !line.starts_with(&start));
            let line = lines.find(|line| line.starts_with("Rss:")).unwrap();
            let kib = line.split_whitespace().nth(1).unwrap();
            kib.parse::<usize>().unwrap() << 10
        };
        let touch = || map.iter().map(|&byte| usize::from(byte)).sum::<usize>();
        assert_eq!(touch(), length);
        // The system may have taken some of it back.
        assert!(resident() > 0);
        map.release(0..length);
        assert_eq!(resident(), 0);
        assert_eq!(touch(), length);
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
