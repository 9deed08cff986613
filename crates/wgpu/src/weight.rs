//! Weights on the device: rows padded to whole vectors, in buffers that fit a binding.

use swiglu_core::{DType, Error, HostWeight};

use crate::bound::Bound;
use crate::device::Device;
use crate::{Buffer, Result};

/// Columns that one vector of FP8 weights covers: a block of scales must not end within.
const VECTOR_COLUMNS: usize = 16;

/// Host memory that rows are padded in, in bytes.
const STAGING: usize = 16 << 20;

/// A weight in the memory of a device.
///
/// It holds the buffers that it was last multiplied from and to, where they have at most 1 MiB.
#[derive(Debug)]
pub struct Weight {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// As it is stored on the device.
    pub(crate) dtype: DType,
    pub(crate) bytes: usize,
    pub(crate) row_vectors: u32,
    /// Whether a code of E4M3 is NaN.
    pub(crate) has_nan_codes: bool,
    pub(crate) chunks: Vec<Chunk>,
    /// The kernel on cooperative matrices for dense rows of x, where there is one.
    pub(crate) dense: Option<wgpu::ComputePipeline>,
}

/// Successive rows of a weight in one buffer.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) first_row: usize,
    pub(crate) rows: usize,
    pub(crate) data: Buffer,
    pub(crate) scales: Option<Scales>,
    pub(crate) bound: Bound,
}

#[derive(Debug)]
pub(crate) struct Scales {
    pub(crate) data: Buffer,
    pub(crate) block: [u32; 2],
    pub(crate) cols: u32,
    /// Rows of the first block that lie before the chunk.
    pub(crate) skip: u32,
}

impl Scales {
    /// The logarithm of the vectors of a row that share a scale, if that is a power of two.
    pub(crate) fn shift(&self) -> Option<u32> {
        if self.cols == 1 {
            return Some(u32::BITS - 1);
        }
        let vectors = self.block[1] / VECTOR_COLUMNS as u32;
        vectors.is_power_of_two().then(|| vectors.ilog2())
    }
}

/// Parts whose rows lie in one grid of blocks.
#[derive(Clone, Copy, Debug)]
struct Segment<'p, 'a> {
    parts: &'p [HostWeight<'a>],
    rows: usize,
}

impl<'p, 'a> Segment<'p, 'a> {
    /// Cuts where a part ends within a block: the next part has a grid of its own.
    fn cut(parts: &'p [HostWeight<'a>]) -> Vec<Self> {
        let mut segments = Vec::new();
        let mut start = 0;
        let mut rows = 0;
        for (i, part) in parts.iter().enumerate() {
            rows += part.rows();
            let whole = part
                .scales()
                .is_none_or(|s| rows.is_multiple_of(s.block[0]));
            if !whole || i + 1 == parts.len() {
                segments.push(Self {
                    parts: &parts[start..=i],
                    rows,
                });
                (start, rows) = (i + 1, 0);
            }
        }
        segments
    }

    /// The part that holds a row, and the row in it.
    fn find(&self, mut row: usize) -> Option<(&'p HostWeight<'a>, usize)> {
        for part in self.parts {
            if row < part.rows() {
                return Some((part, row));
            }
            row -= part.rows();
        }
        None
    }
}

/// How rows are stored: as they come, or decoded to f32 where blocks of scales are too odd.
#[derive(Clone, Copy, Debug)]
struct Format {
    dtype: DType,
    cols: usize,
    row_bytes: usize,
    decoded: bool,
}

impl Format {
    fn of(weight: &HostWeight<'_>) -> Self {
        let decoded = weight.scales().is_some_and(|s| {
            !s.block[1].is_multiple_of(VECTOR_COLUMNS) && s.block[1] < weight.cols()
        });
        let dtype = if decoded { DType::F32 } else { weight.dtype() };
        Self {
            dtype,
            cols: weight.cols(),
            row_bytes: (weight.cols() * dtype.size()).next_multiple_of(16),
            decoded,
        }
    }

    fn write_row(&self, part: &HostWeight<'_>, row: usize, line: &mut [f64], out: &mut [u8]) {
        if self.decoded {
            part.decode_row(row, line);
            for (bytes, value) in out.chunks_exact_mut(4).zip(line) {
                bytes.copy_from_slice(&(*value as f32).to_le_bytes());
            }
        } else {
            let bytes = self.cols * self.dtype.size();
            out[..bytes].copy_from_slice(&part.data()[row * bytes..(row + 1) * bytes]);
        }
    }
}

impl Weight {
    pub(crate) fn load(device: &Device, parts: &[HostWeight<'_>]) -> Result<Self> {
        HostWeight::check_parts(parts)?;
        let first = &parts[0];
        let format = Format::of(first);
        let limit = usize::try_from(device.binding_limit()).unwrap_or(usize::MAX);
        let per_chunk = limit / format.row_bytes;
        if per_chunk == 0 {
            let expected = format!("rows of at most {limit} bytes");
            let got = format!("{} bytes", format.row_bytes);
            return Err(Error::argument("weight", expected, got).into());
        }
        let mut weight = Self {
            rows: 0,
            cols: first.cols(),
            dtype: format.dtype,
            bytes: 0,
            row_vectors: u32::try_from(format.row_bytes / 16).unwrap_or(u32::MAX),
            has_nan_codes: false,
            chunks: Vec::new(),
            dense: None,
        };
        for segment in Segment::cut(parts) {
            for row in (0..segment.rows).step_by(per_chunk) {
                let rows = per_chunk.min(segment.rows - row);
                weight.push(device, &format, &segment, row, rows)?;
            }
        }
        Ok(weight)
    }

    fn push(
        &mut self,
        device: &Device,
        format: &Format,
        segment: &Segment<'_, '_>,
        row: usize,
        rows: usize,
    ) -> Result<()> {
        let data = device.alloc(rows * format.row_bytes)?;
        let per_write = (STAGING / format.row_bytes).max(1);
        let mut line = vec![0.0; if format.decoded { format.cols } else { 0 }];
        for from in (0..rows).step_by(per_write) {
            let count = per_write.min(rows - from);
            let mut staging = vec![0; count * format.row_bytes];
            for (i, out) in staging.chunks_exact_mut(format.row_bytes).enumerate() {
                if let Some((part, r)) = segment.find(row + from + i) {
                    format.write_row(part, r, &mut line, out);
                }
            }
            let is_nan = |code: &u8| code & 0x7f == 0x7f;
            self.has_nan_codes |= format.dtype == DType::F8E4M3 && staging.iter().any(is_nan);
            device.write(data.raw(), from * format.row_bytes, &staging)?;
        }
        let scales = if format.decoded {
            None
        } else {
            load_scales(device, segment, row, rows)?
        };
        self.bytes += data.len() + scales.as_ref().map_or(0, |s| s.data.len());
        self.chunks.push(Chunk {
            first_row: self.rows,
            rows,
            data,
            scales,
            bound: Bound::default(),
        });
        self.rows += rows;
        Ok(())
    }
}

/// The scales of `rows` rows from `row` on, as f32.
fn load_scales(
    device: &Device,
    segment: &Segment<'_, '_>,
    row: usize,
    rows: usize,
) -> Result<Option<Scales>> {
    let Some(kind) = segment.parts[0].scales() else {
        return Ok(None);
    };
    // A block taller or wider than the weight is as good as one of its size.
    let block = [
        kind.block[0].min(segment.rows.max(1)),
        kind.block[1].min(segment.parts[0].cols().next_multiple_of(VECTOR_COLUMNS)),
    ];
    let cols = segment.parts[0].cols().div_ceil(kind.block[1]);
    let first = row / block[0];
    let mut values = Vec::new();
    for block_row in first..(row + rows).div_ceil(block[0]) {
        if let Some((part, r)) = segment.find(block_row * block[0]) {
            values.extend((0..cols).map(|c| part.scale(r, c * kind.block[1])));
        }
    }
    let data = device.alloc(size_of_val(values.as_slice()))?;
    device.write(data.raw(), 0, bytemuck::cast_slice(&values))?;
    let int = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Ok(Some(Scales {
        data,
        block: block.map(int),
        cols: int(cols),
        skip: int(row - first * block[0]),
    }))
}
