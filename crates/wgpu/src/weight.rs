//! Weights on the device: rows padded to whole vectors, in buffers that fit a binding.
//!
//! ## Method
//! 1. A [`WeightForm`] says how a format is kept: as it comes, or decoded to f32 where a block of
//!    scales would end within a vector.
//! 2. Parts that are stacked share one grid of blocks as long as each ends with a block; where one
//!    does not, a new segment begins.
//! 3. A segment is cut into chunks that fit a binding. Each brings its scales, as f32 or, of FP4, as they
//!    come, and the rows of its first block that lie before it.
//! 4. For cooperative matrices, powers of two are kept under which rows are exact in f16, where there
//!    are such.
//! 5. Where a scale is so small that a driver could take it for zero, all are multiplied by a power
//!    of two, which results are divided by.

mod codes;
mod form;
mod halves;
mod lift;

use swiglu_core::{HostWeight, WeightFormat};

use crate::device::Device;
use crate::launch::Bound;
use crate::pipelines::DeviceFormat;
use crate::{Buffer, Result};
use form::VECTOR_COLUMNS;
pub(crate) use form::WeightForm;
pub(crate) use lift::Lift;

/// Host memory that rows are padded in, in bytes.
pub(crate) const STAGING: usize = 16 << 20;

/// A weight in the memory of a device.
///
/// It holds the buffers that it was last multiplied from and to, where they have at most 1 MiB.
#[derive(Debug)]
pub struct Weight {
    pub(crate) rows: usize,
    pub(crate) form: WeightForm,
    pub(crate) bytes: usize,
    /// What scales were multiplied by.
    pub(crate) lift: Lift,
    /// Whether a code of E4M3 is NaN.
    pub(crate) has_nan_codes: bool,
    pub(crate) chunks: Vec<Chunk>,
    /// Whether rows are exact in f16 as they are, or under the powers of two that they come with.
    pub(crate) exact_in_f16: bool,
    /// The least and the greatest byte of FP4's scales, of experts.
    pub(crate) scale_bytes: Option<[u8; 2]>,
    /// The kernel on cooperative matrices for dense rows of x, where there is one.
    pub(crate) dense: Option<wgpu::ComputePipeline>,
}

/// Successive rows of a weight in one buffer.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) first_row: usize,
    pub(crate) rows: usize,
    pub(crate) data: Buffer,
    pub(crate) scales: Option<ChunkScales>,
    pub(crate) bound: Bound,
}

/// The scales of a chunk, or the exponents of its rows.
#[derive(Debug)]
pub(crate) struct ChunkScales {
    pub(crate) data: Buffer,
    pub(crate) block: [u32; 2],
    pub(crate) cols: u32,
    /// Rows of the first block that lie before the chunk.
    pub(crate) skip: u32,
    /// Where what stands for scales in f16 begins, and the exponents of rows of blocks.
    pub(crate) factors: u32,
    pub(crate) exponents: u32,
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
            let scaling = part.format().scaling();
            let whole = scaling.is_none_or(|(_, block)| rows.is_multiple_of(block[0]));
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

impl Weight {
    /// The greatest byte of FP4's scales, if codes times scales are exact in f16 where its power of two becomes 2^13.
    pub(crate) fn top_scale(&self) -> Option<u8> {
        let [least, most] = self.scale_bytes?;
        halves::fp4(least, most).then_some(most)
    }

    /// Whether FP4's scales, times a code and whatever x has, need no care: none is near an end of their range.
    pub(crate) fn has_ordinary_scales(&self) -> bool {
        self.scale_bytes
            .is_some_and(|[least, most]| least >= 32 && most < 224)
    }

    /// Outputs and inputs.
    pub(crate) const fn shape(&self) -> [usize; 2] {
        [self.rows, self.form.cols]
    }

    /// With what `cooperative` matrices take besides, if there are such.
    pub(crate) fn load(
        device: &Device,
        parts: &[HostWeight<'_>],
        cooperative: bool,
    ) -> Result<Self> {
        HostWeight::check_parts(parts)?;
        let first = &parts[0];
        let form = WeightForm::of(first.format(), first.cols())?;
        let per_chunk = form.rows_per_chunk(&device.bindings())?;
        let mut weight = Self {
            rows: 0,
            form,
            bytes: 0,
            lift: Lift::of(parts),
            has_nan_codes: false,
            chunks: Vec::new(),
            exact_in_f16: cooperative,
            scale_bytes: None,
            dense: None,
        };
        for segment in Segment::cut(parts) {
            for row in (0..segment.rows).step_by(per_chunk) {
                let rows = per_chunk.min(segment.rows - row);
                weight.push(device, &segment, row, rows)?;
            }
        }
        Ok(weight)
    }

    fn push(
        &mut self,
        device: &Device,
        segment: &Segment<'_, '_>,
        row: usize,
        rows: usize,
    ) -> Result<()> {
        let form = self.form;
        let row_bytes = form.row_bytes();
        let data = Buffer::allocated(device, rows * row_bytes)?;
        let per_write = (STAGING / row_bytes).max(1);
        let mut line = vec![0.0; if form.is_decoded() { form.cols } else { 0 }];
        let mut exponents = Vec::new();
        for from in (0..rows).step_by(per_write) {
            let count = per_write.min(rows - from);
            let mut staging = vec![0; count * row_bytes];
            for (i, out) in staging.chunks_exact_mut(row_bytes).enumerate() {
                if let Some(place) = segment.find(row + from + i) {
                    form.write_row(place, self.lift, &mut line, out);
                }
                if self.exact_in_f16 && form.format == DeviceFormat::BF16 {
                    match halves::row_exponent(out) {
                        Some(exponent) => exponents.push(exponent),
                        None => self.exact_in_f16 = false,
                    }
                }
            }
            self.has_nan_codes |= form.has_nan_codes(&staging);
            device.write_words(data.raw(), from * row_bytes, &staging)?;
        }
        let scales = match form.block {
            None if self.exact_in_f16 && form.format == DeviceFormat::BF16 => {
                Some(row_exponents(device, &exponents)?)
            }
            None => None,
            Some(_) if form.format == DeviceFormat::Fp4 => {
                self.exact_in_f16 = false;
                let made = load_bytes(device, &form, segment, [row, rows])?;
                self.bytes += made.data.len();
                Some(made)
            }
            Some(block) => {
                let how = (&form, block, self.lift);
                let made = load_scales(device, how, segment, [row, rows])?;
                self.bytes += size_of::<f32>() * made.count;
                self.exact_in_f16 &= made.exact_in_f16;
                Some(made.scales)
            }
        };
        self.bytes += data.len();
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

/// The exponents of rows of bf16.
fn row_exponents(device: &Device, exponents: &[i32]) -> Result<ChunkScales> {
    let data = Buffer::allocated(device, size_of_val(exponents))?;
    device.write_words(data.raw(), 0, bytemuck::cast_slice(exponents))?;
    Ok(ChunkScales {
        data,
        // One for each row, and no columns that share a scale.
        block: [1, 0],
        cols: 0,
        skip: 0,
        factors: 0,
        exponents: 0,
    })
}

/// The scales of `rows` rows of FP4 from `row` on, as they come.
fn load_bytes(
    device: &Device,
    form: &WeightForm,
    segment: &Segment<'_, '_>,
    [row, rows]: [usize; 2],
) -> Result<ChunkScales> {
    let pitch = form.scale_pitch();
    let mut bytes = vec![0; rows * pitch];
    for (i, line) in bytes.chunks_exact_mut(pitch).enumerate() {
        if let Some((part, r)) = segment.find(row + i) {
            form.write_scale_bytes(part, r, line);
        }
    }
    let data = Buffer::allocated(device, bytes.len())?;
    device.write_words(data.raw(), 0, &bytes)?;
    let int = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    Ok(ChunkScales {
        data,
        block: [1, int(WeightFormat::FP4_GROUP)],
        cols: int(pitch),
        skip: 0,
        factors: 0,
        exponents: 0,
    })
}

struct LoadedScales {
    scales: ChunkScales,
    /// Scales as they come.
    count: usize,
    exact_in_f16: bool,
}

/// The scales of `rows` rows from `row` on, as f32, and what stands for them in f16.
fn load_scales(
    device: &Device,
    (form, [block_rows, block_cols], lift): (&WeightForm, [usize; 2], Lift),
    segment: &Segment<'_, '_>,
    [row, rows]: [usize; 2],
) -> Result<LoadedScales> {
    // A block taller or wider than the weight is as good as one of its size.
    let block = [
        block_rows.min(segment.rows.max(1)),
        block_cols.min(form.cols.next_multiple_of(VECTOR_COLUMNS)),
    ];
    let cols = form.scale_cols(block_cols);
    let first = row / block[0];
    let mut values: Vec<f32> = Vec::new();
    let mut factors = Vec::new();
    let mut exponents = Vec::new();
    let mut exact_in_f16 = true;
    for block_row in first..(row + rows).div_ceil(block[0]) {
        if let Some((part, r)) = segment.find(block_row * block[0]) {
            let start = values.len();
            values.extend((0..cols).map(|c| lift.lifted(part.scale(r, c * block_cols))));
            match halves::block_row(&values[start..], lift) {
                Some((of_row, exponent)) => {
                    factors.extend(of_row);
                    exponents.push(exponent);
                }
                None => exact_in_f16 = false,
            }
        }
    }
    let count = values.len();
    if exact_in_f16 {
        values.extend(factors);
        values.extend(exponents.iter().map(|e| f32::from_bits(e.cast_unsigned())));
    }
    let data = Buffer::allocated(device, size_of_val(values.as_slice()))?;
    device.write_words(data.raw(), 0, bytemuck::cast_slice(&values))?;
    let int = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let scales = ChunkScales {
        data,
        block: block.map(int),
        cols: int(cols),
        skip: int(row - first * block[0]),
        factors: int(count),
        exponents: int(2 * count),
    };
    Ok(LoadedScales {
        scales,
        count,
        exact_in_f16,
    })
}
