use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::Path;

use safetensors::Dtype;
use serde::Deserialize;
use serde::de::IntoDeserializer;
use serde::de::value::{Error as ValueError, StrDeserializer};

use super::contents::not_the_file;
use super::file::TensorPlace;
use crate::json::UniqueMap;
use crate::{Error, Result, text};

/// The length of the header's length.
pub const PREFIX: usize = 8;
/// The format's own bound on a header.
pub const MAX_HEADER: usize = 100_000_000;

/// What elements are stored as. A type that is not known matters when its tensor is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoredType {
    Known(Dtype),
    Unknown(String),
}

impl fmt::Display for StoredType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known(dtype) => write!(f, "{dtype:?}"),
            Self::Unknown(name) => f.write_str(&text::name(name)),
        }
    }
}

impl From<String> for StoredType {
    fn from(name: String) -> Self {
        let known: StrDeserializer<'_, ValueError> = name.as_str().into_deserializer();
        match Dtype::deserialize(known) {
            Ok(dtype) => Self::Known(dtype),
            Err(_) => Self::Unknown(name),
        }
    }
}

#[derive(Deserialize)]
struct Described {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum HeaderEntry {
    Tensor(Described),
    Metadata(#[allow(dead_code, reason = "read to check its type")] HashMap<String, String>),
}

/// The length of the header that follows, where a file begins so.
pub fn length(start: &[u8]) -> Option<u64> {
    start
        .first_chunk::<PREFIX>()
        .copied()
        .map(u64::from_le_bytes)
}

/// The tensors of the file `path`, of `size` bytes, that begins with `start`: with its header, at
/// least.
///
/// The figures are checked here, where an error can name the tensor and where sums that overflow
/// are refused rather than wrapped.
pub fn read(path: &Path, start: &[u8], size: usize) -> Result<BTreeMap<String, TensorPlace>> {
    const INCOMPLETE: &str = "(incomplete download?)";
    if let Some(other) = not_the_file(start) {
        return Err(Error::file(path, other));
    }
    let Some(length) = length(start) else {
        let problem = format!("{size} bytes are too few for a header {INCOMPLETE}");
        return Err(Error::file(path, problem));
    };
    let header = usize::try_from(length).ok().filter(|&n| n <= MAX_HEADER);
    let header = header.and_then(|n| start[PREFIX..].get(..n));
    let Some(header) = header else {
        let most = size.saturating_sub(PREFIX).min(MAX_HEADER);
        let problem = format!(
            "a header of {length} bytes, where at most {most} are possible: no safetensors file, \
             or not all of it {INCOMPLETE}"
        );
        return Err(Error::file(path, problem));
    };
    let data = size.saturating_sub(PREFIX + header.len());
    let mut tensors = entries(path, header)?;
    tensors.sort_by_key(|(_, described)| described.data_offsets);
    let mut end = 0;
    let mut places = BTreeMap::new();
    for (
        name,
        Described {
            dtype,
            shape,
            data_offsets: (from, to),
        },
    ) in tensors
    {
        let dtype = StoredType::from(dtype);
        let wrong = |problem: String| Error::tensor(&name, path, problem);
        if from > to {
            return Err(wrong(format!("lies at {from} to {to}")));
        }
        if to > data {
            let problem = format!("lies at {from} to {to} of {data} bytes of data {INCOMPLETE}");
            return Err(wrong(problem));
        }
        if from != end {
            let problem = format!("begins at {from} where the one before ends at {end}");
            return Err(wrong(problem));
        }
        if !fits(&dtype, &shape, to - from) {
            let shape = text::shape(&shape);
            let problem = format!("type {dtype} and shape {shape} in {} bytes", to - from);
            return Err(wrong(problem));
        }
        end = to;
        let first = PREFIX + header.len();
        let bytes = first + from..first + to;
        let place = TensorPlace {
            dtype,
            shape,
            bytes,
        };
        places.insert(name, place);
    }
    if end != data {
        let problem = format!("{data} bytes of data, of which tensors take {end}");
        return Err(Error::file(path, problem));
    }
    Ok(places)
}

/// The tensors that a header describes.
fn entries(path: &Path, header: &[u8]) -> Result<Vec<(String, Described)>> {
    let UniqueMap(entries) = serde_json::from_slice::<UniqueMap<HeaderEntry>>(header)
        .map_err(|e| Error::file(path, format!("header: {e}")))?;
    let mut tensors = Vec::with_capacity(entries.len());
    for (name, entry) in entries {
        match (entry, name.as_str()) {
            (HeaderEntry::Metadata(_), "__metadata__") => {}
            (HeaderEntry::Tensor(info), n) if n != "__metadata__" => tensors.push((name, info)),
            _ => {
                let problem = "neither the description of a tensor nor metadata of text";
                let name = text::name(&name);
                return Err(Error::file(path, format!("header: {name}: {problem}")));
            }
        }
    }
    Ok(tensors)
}

/// Whether a type and a shape stand for so many bytes; of a type that is not known nobody knows.
fn fits(dtype: &StoredType, shape: &[usize], bytes: usize) -> bool {
    let StoredType::Known(dtype) = dtype else {
        return true;
    };
    let bits = shape
        .iter()
        .try_fold(dtype.bitsize(), |n, &d| n.checked_mul(d));
    bits.is_some_and(|bits| bits.is_multiple_of(8) && bits / 8 == bytes)
}
