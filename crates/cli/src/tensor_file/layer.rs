//! Reading the input of a whole layer: rows, and what there is to know of their tokens.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use safetensors::Dtype;
use swiglu::{Float, HostBuffer};
use swiglu_mmap::open_regular;

use super::read::{Header, ReadError, Result, read_exact, wrong};
use super::{HostTensor, split};
use crate::escape;
use crate::failure;
use crate::files::{Inputs, STANDARD};

/// The input of a whole layer.
#[derive(Debug)]
pub struct LayerInput {
    /// [.., H].
    pub x: HostTensor<Float>,
    /// The tokens' numbers, where the file has `token_ids`; -1 for those that no i32 holds.
    pub token_ids: Option<Vec<i32>>,
    /// Not 0 where a token is of an image, where the file has `image`.
    pub image: Option<Vec<i32>>,
    /// Not 0 where a row is padding, where the file has `padding`.
    pub padding: Option<Vec<i32>>,
}

/// Reads `FILE[:NAME]`: the rows are the tensor of that name, the only one, or `x`; `token_ids`,
/// `image` and `padding` lie beside it. `-` is standard input.
pub fn read_layer(argument: &str, inputs: &mut Inputs) -> failure::Result<LayerInput> {
    let (path, name) = split(argument);
    if path == Path::new(STANDARD) {
        inputs.add_stdin();
        let source = Streamed::read(std::io::stdin().lock());
        return source
            .and_then(|mut source| source.input(name))
            .map_err(|e| e.of_file(Path::new("standard input")));
    }
    inputs.add("the input", &path);
    let source = Opened::open(&path);
    source
        .and_then(|mut source| source.input(name))
        .map_err(|e| e.of_file(&path))
}

/// Where tensors are read from.
trait Source {
    fn header(&self) -> &Header;
    /// Some bytes behind the header.
    fn bytes(&mut self, from: u64, length: usize) -> Result<HostBuffer>;

    fn input(&mut self, name: Option<&str>) -> Result<LayerInput> {
        let names = self.header().tensors.offset_keys();
        let several = names.len() > 1 && names.iter().any(|n| n == "x");
        let name = name.or(several.then_some("x"));
        let place = self.header().find(name)?;
        let data = self.bytes(place.from, place.length)?;
        let x = place.tensor(data);
        let rows = x.shape.split_last().map_or(0, |(_, l)| l.iter().product());
        Ok(LayerInput {
            x,
            token_ids: self.marks("token_ids", rows)?,
            image: self.marks("image", rows)?,
            padding: self.marks("padding", rows)?,
        })
    }

    /// Whole numbers, one for each row.
    fn marks(&mut self, name: &str, rows: usize) -> Result<Option<Vec<i32>>> {
        let Some(info) = self.header().tensors.info(name) else {
            return Ok(None);
        };
        let (dtype, shape) = (info.dtype, info.shape.clone());
        let (from, to) = info.data_offsets;
        if shape
            .iter()
            .try_fold(1_usize, |n, &side| n.checked_mul(side))
            != Some(rows)
        {
            let got = escape::shape(&shape);
            return wrong(format!(
                "tensor `{name}`: expected one for each of {rows} rows, got {got}"
            ));
        }
        let data = self.bytes(from as u64, to - from)?;
        let data = data.bytes();
        Ok(Some(match dtype {
            Dtype::I64 => {
                let (words, _) = data.as_chunks();
                let narrow = |&word| i32::try_from(i64::from_le_bytes(word)).unwrap_or(-1);
                words.iter().map(narrow).collect()
            }
            Dtype::I32 => {
                let (words, _) = data.as_chunks();
                words.iter().map(|&word| i32::from_le_bytes(word)).collect()
            }
            Dtype::U8 | Dtype::BOOL => data.iter().map(|&byte| i32::from(byte)).collect(),
            other => {
                let expected = "expected I64, I32, U8 or BOOL";
                return wrong(format!("tensor `{name}`: {expected}, got {other:?}"));
            }
        }))
    }
}

struct Opened {
    file: File,
    header: Header,
}

impl Opened {
    fn open(path: &Path) -> Result<Self> {
        let mut file = open_regular(path)?;
        let length = file.metadata()?.len();
        let header = Header::read(&mut file)?;
        header.check_length(length)?;
        Ok(Self { file, header })
    }
}

impl Source for Opened {
    fn header(&self) -> &Header {
        &self.header
    }

    fn bytes(&mut self, from: u64, length: usize) -> Result<HostBuffer> {
        self.file.seek(SeekFrom::Start(self.header.end + from))?;
        let mut bytes = HostBuffer::zeroed(length)?;
        read_exact(&mut self.file, bytes.bytes_mut())?;
        Ok(bytes)
    }
}

/// A stream that was read to its end.
struct Streamed {
    header: Header,
    data: Vec<u8>,
}

impl Streamed {
    fn read(mut stream: impl Read) -> Result<Self> {
        let header = Header::read(&mut stream)?;
        let expected = header.tensors.data_len() as u64;
        let mut data = Vec::new();
        stream.take(expected + 1).read_to_end(&mut data)?;
        if data.len() as u64 != expected {
            let got = match data.len() as u64 > expected {
                true => "more".to_owned(),
                false => data.len().to_string(),
            };
            return wrong(format!("tensors: expected {expected} bytes, got {got}"));
        }
        Ok(Self { header, data })
    }
}

impl Source for Streamed {
    fn header(&self) -> &Header {
        &self.header
    }

    fn bytes(&mut self, from: u64, length: usize) -> Result<HostBuffer> {
        let start = usize::try_from(from).unwrap_or(usize::MAX);
        let part = self.data.get(start..start.saturating_add(length));
        let part = part.ok_or_else(|| {
            ReadError::Wrong("a tensor that lies behind the stream's end".to_owned())
        })?;
        let mut bytes = HostBuffer::zeroed(length)?;
        bytes.write(part)?;
        Ok(bytes)
    }
}
