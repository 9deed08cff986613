use std::fmt;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::Serialize;
use swiglu::{Float, HostBuffer, ScaleFormat};

use crate::failure::{Failure, Result};
use crate::files::{Inputs, OutputFile, STANDARD};

mod layer;
mod read;

pub use layer::{LayerInput, read_layer};

/// How the elements of a tensor are stored in the files that the program writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredType {
    /// Plain numbers.
    Float(Float),
    /// FP8 codes.
    E4M3,
    /// Powers of two, as scales.
    E8M0,
    /// Whole numbers.
    I32,
}

impl From<Float> for StoredType {
    fn from(float: Float) -> Self {
        Self::Float(float)
    }
}

impl From<ScaleFormat> for StoredType {
    fn from(format: ScaleFormat) -> Self {
        match format {
            ScaleFormat::F32 => Self::Float(Float::F32),
            ScaleFormat::E8M0 => Self::E8M0,
        }
    }
}

impl StoredType {
    const fn size(self) -> usize {
        match self {
            Self::Float(float) => float.size(),
            Self::E4M3 | Self::E8M0 => 1,
            Self::I32 => 4,
        }
    }

    const fn dtype(self) -> Dtype {
        match self {
            Self::Float(Float::F32) => Dtype::F32,
            Self::Float(Float::F16) => Dtype::F16,
            Self::Float(Float::BF16) => Dtype::BF16,
            Self::E4M3 => Dtype::F8_E4M3,
            Self::E8M0 => Dtype::F8_E8M0,
            Self::I32 => Dtype::I32,
        }
    }
}

impl fmt::Display for StoredType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Float(float) => float.name(),
            Self::E4M3 => "f8_e4m3",
            Self::E8M0 => "f8_e8m0",
            Self::I32 => "i32",
        })
    }
}

/// A tensor in host memory that is aligned for every type, its elements as little-endian bytes.
#[derive(Debug)]
pub struct HostTensor<S = StoredType> {
    pub stored: S,
    pub shape: Vec<usize>,
    pub data: HostBuffer,
}

impl HostTensor {
    /// A tensor of zeros.
    ///
    /// # Errors
    /// As [`HostBuffer::zeroed`].
    pub fn zeroed(stored: StoredType, shape: Vec<usize>) -> Result<Self> {
        let elements: usize = shape.iter().product();
        Ok(Self {
            stored,
            data: HostBuffer::zeroed(elements * stored.size())?,
            shape,
        })
    }
}

/// `FILE[:NAME]`: a colon belongs to the file's name if a file of that whole name exists.
fn split(argument: &str) -> (PathBuf, Option<&str>) {
    match argument.rsplit_once(':') {
        Some((file, name)) if !name.is_empty() && !Path::new(argument).exists() => {
            (file.into(), Some(name))
        }
        _ => (argument.into(), None),
    }
}

/// Reads one tensor from a safetensors file: the named one, or the only one. The file is noted among
/// the inputs; `-` is standard input.
pub fn read(argument: &str, inputs: &mut Inputs) -> Result<HostTensor<Float>> {
    let (path, name) = split(argument);
    if path == Path::new(STANDARD) {
        inputs.add_stdin();
        return read::stream(std::io::stdin().lock(), name)
            .map_err(|e| e.of_file(Path::new("standard input")));
    }
    inputs.add("the input", &path);
    read_tensor(&path, name)
}

/// Reads one tensor from a safetensors file: the one of this name, or the only one.
pub fn read_tensor(path: &Path, name: Option<&str>) -> Result<HostTensor<Float>> {
    read::file(path, name).map_err(|e| e.of_file(path))
}

/// Writes tensors to a safetensors file.
pub fn write(file: &OutputFile, tensors: &[(&str, &HostTensor)]) -> Result<()> {
    let views = tensors.iter().map(|(name, t)| {
        let view = TensorView::new(t.stored.dtype(), t.shape.clone(), t.data.bytes());
        view.map(|view| (*name, view))
    });
    let views = views.collect::<std::result::Result<Vec<_>, _>>();
    let bytes = views
        .and_then(|views| safetensors::serialize(views, None))
        .map_err(|e| Failure::file(file.name(), e))?;
    file.write(&bytes)
}

/// A tensor of an output file, as JSON has it.
#[derive(Debug, Serialize)]
pub struct WrittenTensor {
    pub name: String,
    pub dtype: String,
    pub shape: Vec<usize>,
}

impl WrittenTensor {
    /// What was written under these names.
    pub fn all(tensors: &[(&str, &HostTensor)]) -> Vec<Self> {
        let written = |(name, tensor): &(&str, &HostTensor)| Self {
            name: (*name).to_owned(),
            dtype: tensor.stored.to_string(),
            shape: tensor.shape.clone(),
        };
        tensors.iter().map(written).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_follows_the_last_colon() {
        assert_eq!(split("a.safetensors"), ("a.safetensors".into(), None));
        assert_eq!(split("a.st:x"), ("a.st".into(), Some("x")));
        assert_eq!(split("c:/a.st:x"), ("c:/a.st".into(), Some("x")));
        assert_eq!(split("a.st:"), ("a.st:".into(), None));
        assert_eq!(split("-:x"), ("-".into(), Some("x")));
    }
}
