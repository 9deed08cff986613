//! Reading one tensor out of a safetensors file without the rest.
//!
//! The header comes first, no longer than the format allows; then what lies before the tensor is
//! passed over, and the tensor read. So a file takes as much memory as its header and that tensor. A
//! stream is believed no more than it brings: memory grows with what was read.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use swiglu::{Float, HostBuffer};
use swiglu_mmap::{MOST_TEXT, open_regular};

use super::HostTensor;
use crate::escape;
use crate::failure::Failure;

/// Bytes before the header: its length.
const PREFIX: u64 = 8;

/// Why a tensor cannot be read.
pub enum ReadError {
    Io(io::Error),
    Wrong(String),
    Host(swiglu::Error),
}

impl ReadError {
    /// The failure of reading this file.
    pub fn of_file(self, path: &Path) -> Failure {
        match self {
            Self::Io(error) => Failure::file(path, error),
            Self::Wrong(problem) => Failure::file(path, problem),
            Self::Host(error) => error.into(),
        }
    }
}

impl From<io::Error> for ReadError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<swiglu::Error> for ReadError {
    fn from(error: swiglu::Error) -> Self {
        Self::Host(error)
    }
}

pub(super) type Result<T> = std::result::Result<T, ReadError>;

pub(super) fn wrong<T>(problem: String) -> Result<T> {
    Err(ReadError::Wrong(problem))
}

/// Reads the tensor of this name, or the only one, from a regular file.
pub fn file(path: &Path, name: Option<&str>) -> Result<HostTensor<Float>> {
    let mut file = open_regular(path)?;
    let length = file.metadata()?.len();
    let header = Header::read(&mut file)?;
    header.check_length(length)?;
    let place = header.find(name)?;
    file.seek(SeekFrom::Start(header.end + place.from))?;
    let mut bytes = HostBuffer::zeroed(place.length)?;
    read_exact(&mut file, bytes.bytes_mut())?;
    Ok(place.tensor(bytes))
}

/// A file that is cut while it is read is no mistake of ours: say so in its words.
pub(super) fn read_exact(file: &mut File, bytes: &mut [u8]) -> Result<()> {
    match file.read_exact(bytes) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
            wrong("the file was cut while it was read".to_owned())
        }
        other => Ok(other?),
    }
}

/// Reads the tensor of this name, or the only one, from a stream, and the rest of it to its end.
pub fn stream(mut stream: impl Read, name: Option<&str>) -> Result<HostTensor<Float>> {
    let header = Header::read(&mut stream)?;
    let place = header.find(name)?;
    let data = header.tensors.data_len() as u64;
    let mut taken = stream.by_ref().take(data);
    io::copy(&mut taken.by_ref().take(place.from), &mut io::sink())?;
    let mut bytes = Vec::new();
    let length = place.length as u64;
    taken.by_ref().take(length).read_to_end(&mut bytes)?;
    io::copy(&mut taken, &mut io::sink())?;
    if taken.limit() > 0 {
        let got = data - taken.limit();
        return wrong(format!("tensors: expected {data} bytes, got {got}"));
    }
    if stream.read(&mut [0])? > 0 {
        return wrong(format!("tensors: expected {data} bytes, got more"));
    }
    // The bytes lie as they came, at no multiple of an element's size.
    let mut aligned = HostBuffer::zeroed(bytes.len())?;
    aligned.write(&bytes)?;
    Ok(place.tensor(aligned))
}

/// What a file says of its tensors, and where they begin.
pub(super) struct Header {
    pub(super) tensors: Metadata,
    pub(super) end: u64,
}

/// A tensor of a type that is computed in, and its place behind the header.
pub(super) struct Place {
    float: Float,
    shape: Vec<usize>,
    pub(super) from: u64,
    pub(super) length: usize,
}

impl Place {
    pub(super) fn tensor(self, data: HostBuffer) -> HostTensor<Float> {
        HostTensor {
            stored: self.float,
            shape: self.shape,
            data,
        }
    }
}

impl Header {
    pub(super) fn read(stream: &mut impl Read) -> Result<Self> {
        let mut bytes = Vec::new();
        stream.by_ref().take(PREFIX).read_to_end(&mut bytes)?;
        let Some(&length) = bytes.first_chunk() else {
            let got = bytes.len();
            return wrong(format!("expected a safetensors file, got {got} bytes"));
        };
        let length = u64::from_le_bytes(length);
        if length > MOST_TEXT {
            return wrong(format!(
                "header: expected at most {MOST_TEXT} bytes, got {length}: no safetensors file?"
            ));
        }
        bytes.clear();
        let got = stream.by_ref().take(length).read_to_end(&mut bytes)? as u64;
        if got < length {
            return wrong(format!("header: expected {length} bytes, got {got}"));
        }
        let tensors = serde_json::from_slice(&bytes).map_err(|e| {
            ReadError::Wrong(format!("header: {}", escape::one_line(&e.to_string())))
        })?;
        Ok(Self {
            tensors,
            end: PREFIX + length,
        })
    }

    /// Checks that a file of this length holds what its header says.
    pub(super) fn check_length(&self, length: u64) -> Result<()> {
        let data = self.tensors.data_len() as u64;
        if self.end.checked_add(data) == Some(length) {
            return Ok(());
        }
        let got = length.saturating_sub(self.end);
        wrong(format!("tensors: expected {data} bytes, got {got}"))
    }

    pub(super) fn find(&self, name: Option<&str>) -> Result<Place> {
        let mut names = self.tensors.offset_keys();
        names.sort_unstable();
        let listed = || escape::list(&names);
        let name = match (name, names.as_slice()) {
            (Some(name), _) => name,
            (None, [only]) => only,
            (None, _) => {
                let problem = "expected one tensor or a name (FILE:NAME), got";
                let count = names.len();
                return wrong(format!("{problem} {count} tensors: {}", listed()));
            }
        };
        let shown = escape::name(name);
        let Some(info) = self.tensors.info(name) else {
            return wrong(format!("no tensor `{shown}`, there are: {}", listed()));
        };
        let TensorInfo {
            dtype,
            shape,
            data_offsets: (from, to),
        } = info;
        let float = match dtype {
            Dtype::F32 => Float::F32,
            Dtype::F16 => Float::F16,
            Dtype::BF16 => Float::BF16,
            other => {
                let expected = "expected F32, F16 or BF16";
                return wrong(format!("tensor `{shown}`: {expected}, got {other:?}"));
            }
        };
        Ok(Place {
            float,
            shape: shape.clone(),
            from: *from as u64,
            length: to - from,
        })
    }
}
