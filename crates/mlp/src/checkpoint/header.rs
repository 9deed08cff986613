use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use safetensors::tensor::TensorInfo;
use serde::Deserialize;

use crate::json::UniqueMap;
use crate::{Error, Result};

/// The length of the header's length.
const PREFIX: usize = 8;
/// The format's own bound on a header.
const MAX_HEADER: usize = 100_000_000;

/// A tensor that a header describes, checked against the file.
pub struct DescribedTensor {
    pub name: String,
    pub info: TensorInfo,
    /// Its place in the file.
    pub bytes: Range<usize>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum HeaderEntry {
    Tensor(TensorInfo),
    Metadata(#[allow(dead_code, reason = "read to check its type")] HashMap<String, String>),
}

/// The tensors of the file `path` with these bytes, in the order in which they lie.
///
/// `safetensors` reads the entries; the figures are checked here, where an error can name the
/// tensor and where sums that overflow are refused rather than wrapped.
pub fn read(path: &Path, file: &[u8]) -> Result<Vec<DescribedTensor>> {
    let Some((length, rest)) = file.split_first_chunk::<PREFIX>() else {
        let problem = format!("{} bytes are too few for a header", file.len());
        return Err(Error::file(path, problem));
    };
    let length = u64::from_le_bytes(*length);
    let header = usize::try_from(length).ok().filter(|&n| n <= MAX_HEADER);
    let Some((header, data)) = header.and_then(|n| rest.split_at_checked(n)) else {
        let most = rest.len().min(MAX_HEADER);
        let problem = format!("a header of {length} bytes, where at most {most} are possible");
        return Err(Error::file(path, problem));
    };
    let UniqueMap(entries) = serde_json::from_slice::<UniqueMap<HeaderEntry>>(header)
        .map_err(|e| Error::file(path, format!("header: {e}")))?;
    let mut tensors = Vec::with_capacity(entries.len());
    for (name, entry) in entries {
        match (entry, name.as_str()) {
            (HeaderEntry::Metadata(_), "__metadata__") => {}
            (HeaderEntry::Tensor(info), n) if n != "__metadata__" => tensors.push((name, info)),
            _ => {
                let problem = "neither the description of a tensor nor metadata of text";
                return Err(Error::file(path, format!("header: {name}: {problem}")));
            }
        }
    }
    tensors.sort_by_key(|(_, info)| info.data_offsets);
    let start = PREFIX + header.len();
    let mut end = 0;
    let mut described = Vec::with_capacity(tensors.len());
    for (name, info) in tensors {
        let (from, to) = info.data_offsets;
        let wrong = |problem: String| Error::tensor(&name, path, problem);
        if from > to || to > data.len() {
            let problem = format!("lies at {from} to {to} of {} bytes of data", data.len());
            return Err(wrong(problem));
        }
        if from != end {
            let problem = format!("begins at {from} where the one before ends at {end}");
            return Err(wrong(problem));
        }
        let size = byte_size(&info);
        if size != Some(to - from) {
            let (dtype, shape) = (info.dtype, &info.shape);
            let problem = format!("type {dtype:?} and shape {shape:?} in {} bytes", to - from);
            return Err(wrong(problem));
        }
        end = to;
        let bytes = start + from..start + to;
        described.push(DescribedTensor { name, info, bytes });
    }
    if end != data.len() {
        let problem = format!("{} bytes of data, of which tensors take {end}", data.len());
        return Err(Error::file(path, problem));
    }
    Ok(described)
}

/// The bytes that a type and a shape stand for; none where that overflows or is no whole number.
fn byte_size(info: &TensorInfo) -> Option<usize> {
    let elements = info
        .shape
        .iter()
        .try_fold(1_usize, |n, &d| n.checked_mul(d))?;
    let bits = elements.checked_mul(info.dtype.bitsize())?;
    bits.is_multiple_of(8).then_some(bits / 8)
}
