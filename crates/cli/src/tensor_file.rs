use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use swiglu::DType;

use crate::failure::{Failure, Result};

/// A tensor in host memory, its elements as little-endian bytes.
#[derive(Debug)]
pub struct HostTensor {
    pub dtype: DType,
    pub shape: Vec<usize>,
    pub data: Vec<u8>,
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

/// Reads one tensor from a safetensors file: the named one, or the only one.
pub fn read(argument: &str) -> Result<HostTensor> {
    let (path, name) = split(argument);
    read_tensor(&path, name)
}

/// Reads one tensor from a safetensors file: the one of this name, or the only one.
pub fn read_tensor(path: &Path, name: Option<&str>) -> Result<HostTensor> {
    let fail = |source: String| Failure::file(path, source);
    let bytes = std::fs::read(path).map_err(|e| Failure::file(path, e))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| Failure::file(path, e))?;
    let mut names = file.names();
    names.sort_unstable();
    let name = match (name, names.as_slice()) {
        (Some(name), _) => name,
        (None, [only]) => only,
        (None, _) => {
            let listed = names.join(", ");
            return Err(fail(format!(
                "expected one tensor or a name (FILE:NAME), got {} tensors: {listed}",
                names.len()
            )));
        }
    };
    let Ok(view) = file.tensor(name) else {
        let listed = names.join(", ");
        return Err(fail(format!("no tensor `{name}`, there are: {listed}")));
    };
    let dtype = match view.dtype() {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        other => {
            return Err(fail(format!(
                "tensor `{name}`: expected F32, F16 or BF16, got {other:?}"
            )));
        }
    };
    Ok(HostTensor {
        dtype,
        shape: view.shape().to_vec(),
        data: view.data().to_vec(),
    })
}

/// Writes tensors to a safetensors file.
pub fn write(path: &Path, tensors: &[(&str, &HostTensor)]) -> Result<()> {
    let views = tensors.iter().map(|(name, t)| {
        let dtype = match t.dtype {
            DType::F32 => Dtype::F32,
            DType::F16 => Dtype::F16,
            DType::BF16 => Dtype::BF16,
            DType::F8E4M3 => Dtype::F8_E4M3,
            DType::E8M0 => Dtype::F8_E8M0,
        };
        TensorView::new(dtype, t.shape.clone(), &t.data).map(|view| (*name, view))
    });
    let views: Vec<_> = views
        .collect::<std::result::Result<_, _>>()
        .map_err(|e| Failure::file(path, e))?;
    safetensors::serialize_to_file(views, None, path).map_err(|e| Failure::file(path, e))
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
    }
}
