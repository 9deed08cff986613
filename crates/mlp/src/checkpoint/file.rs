use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use swiglu_mmap::{MappedFile, open_regular};

use super::header::{self, MAX_HEADER, PREFIX, StoredType};
use super::{OpenMode, under};
use crate::{Error, Result};

/// One file of tensors.
#[derive(Debug)]
pub struct ShardFile {
    path: PathBuf,
    source: Source,
    pub tensors: BTreeMap<String, TensorPlace>,
}

#[derive(Debug)]
enum Source {
    /// Those who read ahead have a share.
    Mapped(Arc<MappedFile>),
    /// The place in the file is shared, hence the lock.
    Read(Mutex<File>),
}

/// Where a tensor lies, checked against its file.
#[derive(Debug)]
pub struct TensorPlace {
    pub dtype: StoredType,
    pub shape: Vec<usize>,
    /// Its place in the file.
    pub bytes: Range<usize>,
}

/// A tensor as its file has it.
#[derive(Clone, Copy, Debug)]
pub struct StoredTensor<'a> {
    pub name: &'a str,
    pub path: &'a Path,
    pub dtype: &'a StoredType,
    pub shape: &'a [usize],
    bytes: &'a Range<usize>,
    source: &'a Source,
}

impl ShardFile {
    pub fn open(path: &Path, mode: OpenMode) -> Result<Self> {
        let io = |e| Error::io(path, e);
        let (source, tensors) = match mode {
            OpenMode::Map => {
                let map = MappedFile::open(path).map_err(io)?;
                let tensors = header::read(path, &map, map.len())?;
                (Source::Mapped(Arc::new(map)), tensors)
            }
            OpenMode::Read => {
                let mut file = open_regular(path).map_err(io)?;
                let length = file.metadata().map_err(io)?.len();
                let length = usize::try_from(length)
                    .map_err(|_| Error::file(path, "longer than the address space"))?;
                let mut start = Vec::new();
                let mut read = |bytes: usize| {
                    let part = Read::by_ref(&mut file).take(bytes as u64);
                    { part }.read_to_end(&mut start).map_err(io)?;
                    Ok::<_, Error>(header::length(&start))
                };
                if let Some(header) = read(PREFIX)? {
                    read(
                        usize::try_from(header)
                            .unwrap_or(MAX_HEADER)
                            .min(MAX_HEADER),
                    )?;
                }
                let tensors = header::read(path, &start, length)?;
                (Source::Read(Mutex::new(file)), tensors)
            }
        };
        let path = path.to_owned();
        Ok(Self {
            path,
            source,
            tensors,
        })
    }

    /// The tensors whose names begin so.
    pub fn under(&self, prefix: &str) -> impl Iterator<Item = StoredTensor<'_>> {
        under(&self.tensors, prefix).map(|(name, place)| self.tensor(name, place))
    }

    pub fn get(&self, name: &str) -> Option<StoredTensor<'_>> {
        let (name, place) = self.tensors.get_key_value(name)?;
        Some(self.tensor(name, place))
    }

    fn tensor<'a>(&'a self, name: &'a str, place: &'a TensorPlace) -> StoredTensor<'a> {
        StoredTensor {
            name,
            path: &self.path,
            dtype: &place.dtype,
            shape: &place.shape,
            bytes: &place.bytes,
            source: &self.source,
        }
    }
}

/// Pages of mapped files that are in use; dropped, they are no longer this process's memory.
#[derive(Clone, Debug)]
pub struct Pages(Arc<[Part]>);

/// Some bytes of a mapped file.
pub type Part = (Arc<MappedFile>, Range<usize>);

impl Pages {
    /// Those of some tensors, one after another.
    pub fn of<'a, 'b: 'a>(tensors: impl Iterator<Item = &'a StoredTensor<'b>>) -> Self {
        Self::new(tensors.filter_map(|tensor| match tensor.source {
            Source::Mapped(map) => Some((Arc::clone(map), tensor.bytes.clone())),
            Source::Read(_) => None,
        }))
    }

    pub fn new(parts: impl Iterator<Item = Part>) -> Self {
        Self(parts.collect())
    }

    pub fn parts(&self) -> &[Part] {
        &self.0
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        for (map, bytes) in self.0.iter() {
            map.release(bytes.clone());
        }
    }
}

impl<'a> StoredTensor<'a> {
    /// Its bytes: those of the mapped file, or read now.
    pub fn data(&self) -> Result<Cow<'a, [u8]>> {
        self.part(0..self.bytes.len())
    }

    /// Some of its bytes, as [`Self::data`]. They must lie within it.
    pub fn part(&self, part: Range<usize>) -> Result<Cow<'a, [u8]>> {
        let start = self.bytes.start;
        let bytes = start + part.start..start + part.end;
        match self.source {
            Source::Mapped(map) => Ok(Cow::Borrowed(&map[bytes])),
            Source::Read(file) => self.read(file, bytes).map(Cow::Owned),
        }
    }

    fn read(&self, file: &Mutex<File>, bytes: Range<usize>) -> Result<Vec<u8>> {
        let (start, length) = (bytes.start, bytes.len());
        let mut data = Vec::new();
        data.try_reserve_exact(length)
            .map_err(|_| swiglu_core::Error::OutOfMemory {
                platform: "host",
                bytes: length,
            })?;
        let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(start as u64))
            .and_then(|_| {
                Read::by_ref(&mut *file)
                    .take(length as u64)
                    .read_to_end(&mut data)
            })
            .map_err(|e| Error::io(self.path, e))?;
        if data.len() != length {
            let problem = "the file ends within it: it was cut since it was opened";
            return Err(self.error(problem));
        }
        Ok(data)
    }

    /// An error that names this tensor and its file.
    pub fn error(&self, problem: impl ToString) -> Error {
        Error::tensor(self.name, self.path, problem)
    }
}
