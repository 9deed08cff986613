use std::{borrow::Cow, sync::Arc};

use cudarc::driver::{CudaStream, result};
use swiglu_core::{Error as CoreError, Float, HostWeight, Support, WeightFormat, bf16};

use crate::{
    buffer::CudaBuffer,
    error::{Doing, PLATFORM, Result},
    launch::params::Packing,
};

pub(crate) mod packing;
pub(crate) mod stack;

use stack::ExpertStack;

/// How the elements of a weight that is multiplied by itself lie on the device. Its scales are f32s there, whatever
/// they were; FP4 becomes bf16 when it is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum WeightType {
    F32,
    F16,
    Bf16,
    /// FP8 codes in blocks that share a scale.
    E4m3,
}

impl WeightType {
    pub(crate) const ALL: [Self; 4] = [Self::F32, Self::F16, Self::Bf16, Self::E4m3];

    /// Plain numbers of a type.
    pub(crate) const fn of(float: Float) -> Self {
        match float {
            Float::F32 => Self::F32,
            Float::F16 => Self::F16,
            Float::BF16 => Self::Bf16,
        }
    }

    /// Where a format of core's, of which there may be more than are known here, is taken or
    /// refused.
    pub(crate) fn from_format(format: WeightFormat) -> Result<Self> {
        match format {
            WeightFormat::Float(float) => Ok(Self::of(float)),
            WeightFormat::Fp8 { .. } => Ok(Self::E4m3),
            WeightFormat::Fp4 => Ok(Self::Bf16),
            other => Err(CoreError::unsupported(PLATFORM, other, NO_KERNEL).into()),
        }
    }

    /// Bytes of an element.
    pub(crate) const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::E4m3 => 1,
        }
    }

    /// The name in the names of kernels.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::E4m3 => "e4m3",
        }
    }
}

const NO_KERNEL: &str = "no kernel multiplies by this format";

/// Whether a weight of this format runs.
pub(crate) fn support(format: WeightFormat) -> Support {
    match WeightType::from_format(format) {
        Ok(_) if format == WeightFormat::Fp4 => {
            Support::Emulated("decoded to bf16 when it is loaded".to_owned())
        }
        Ok(_) => Support::Native,
        Err(_) => Support::No(NO_KERNEL.to_owned()),
    }
}

/// A weight on the device, its parts one below the other: as it was stored, or in the order in which
/// kernels for few tokens stream it. There is one copy of it. Those of routed experts are one, which only grouped
/// matmuls read.
#[derive(Debug)]
pub struct CudaWeight {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) elements: WeightType,
    pub(crate) data: CudaBuffer,
    /// How `data` is packed; none where rows follow one another.
    pub(crate) packing: Option<Packing>,
    pub(crate) scales: Option<WeightScales>,
    /// How experts lie in it, each of `rows` rows; none of a weight by itself.
    pub(crate) stack: Option<ExpertStack>,
}

/// How weights are brought to the device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LoadOptions {
    /// The device's multiprocessors, where it has the kernels of packed weights.
    pub(crate) packs_for: Option<u32>,
    /// Whether two parts are a gate's and its up's.
    pub(crate) pairs: bool,
}

/// The scales of an FP8 weight.
#[derive(Debug)]
pub(crate) struct WeightScales {
    /// f32, those of the parts' blocks one below the other.
    pub(crate) values: CudaBuffer,
    /// The row of scales of each row of the weight, u32.
    pub(crate) rows: CudaBuffer,
    pub(crate) columns: usize,
    pub(crate) block_columns: usize,
    /// Whether every product of a code and a scale is a value of bf16.
    pub(crate) exact_in_bf16: bool,
    /// Whether scales are such powers of two, up to 2^7, and no code is a NaN: what warpgroups multiply by.
    pub(crate) factors: bool,
    /// For blocks of 128 x 128 that no part cuts: the values, rows padded to a multiple of four,
    /// as cublasLt reads them.
    pub(crate) blocks: Option<CudaBuffer>,
}

/// A power of two that takes no code of E4M3 out of bf16's range: codes are 2^-9 to 448.
fn keeps_codes_exact(scale: f32) -> bool {
    let bits = scale.to_bits();
    bits & 0x807f_ffff == 0 && (1e-36..1e35).contains(&scale)
}

/// The largest scale whose product with 2^120 is a bf16: `kernels/matmul/warpgroups.cuh`.
const LARGEST_FACTOR: f32 = 128.0;

/// Whether routed experts of this format run.
pub(crate) fn expert_support(format: WeightFormat) -> Support {
    match stack::ExpertFormat::from_format(format) {
        Ok(_) => Support::Native,
        Err(_) => Support::No(NO_KERNEL.to_owned()),
    }
}

/// FP4 as bf16, which holds every code times its scale; others as they are.
fn decoded<'a>(part: &HostWeight<'a>) -> Result<HostWeight<'a>> {
    if part.format() != WeightFormat::Fp4 {
        return Ok(part.clone());
    }
    let (rows, cols) = (part.rows(), part.cols());
    let (mut data, mut line) = (Vec::with_capacity(2 * rows * cols), vec![0.0; cols]);
    for row in 0..rows {
        part.decode_row(row, &mut line);
        data.extend(line.iter().flat_map(|&w| bf16::from_f64(w).to_le_bytes()));
    }
    let format = WeightFormat::Float(Float::BF16);
    Ok(HostWeight::owned([rows, cols], format, data, Vec::new())?)
}

/// Copies `data` to the buffer, `at` bytes from its start, and waits until it is there.
pub(crate) fn to_device(
    stream: &Arc<CudaStream>,
    buffer: &CudaBuffer,
    at: usize,
    data: &[u8],
) -> Result<()> {
    stream
        .context()
        .bind_to_thread()
        .doing("bind the context")?;
    let address = buffer.address() + at as u64;
    // SAFETY: the callers have checked that the data fits; it stays until the stream has read it.
    unsafe { result::memcpy_htod_async(address, data, stream.cu_stream()) }.doing("copy")?;
    stream.synchronize().doing("copy")
}

/// A buffer of these bytes, one piece after another.
fn uploaded(stream: &Arc<CudaStream>, pieces: &[&[u8]]) -> Result<CudaBuffer> {
    let bytes = pieces.iter().map(|piece| piece.len()).sum();
    let buffer = CudaBuffer::new(stream.context(), bytes)?;
    let mut at = 0;
    for piece in pieces {
        to_device(stream, &buffer, at, piece)?;
        at += piece.len();
    }
    Ok(buffer)
}

impl CudaWeight {
    pub(crate) fn load(
        stream: &Arc<CudaStream>,
        parts: &[HostWeight<'_>],
        options: LoadOptions,
    ) -> Result<Self> {
        HostWeight::check_parts(parts)?;
        let is_fp4 = parts[0].format() == WeightFormat::Fp4;
        let parts: Cow<'_, [HostWeight<'_>]> = if is_fp4 {
            parts
                .iter()
                .map(decoded)
                .collect::<Result<Vec<_>>>()?
                .into()
        } else {
            parts.into()
        };
        let parts = &*parts;
        let rows = parts.iter().map(HostWeight::rows).sum::<usize>();
        let (cols, format) = (parts[0].cols(), parts[0].format());
        let elements = WeightType::from_format(format)?;
        if rows > i32::MAX as usize || cols > i32::MAX as usize {
            let got = format!("[{rows}, {cols}]");
            return Err(CoreError::argument("parts", "sides below 2^31", got).into());
        }
        let packing = options
            .packs_for
            .and_then(|multiprocessors| Packing::of_parts(parts, options.pairs, multiprocessors));
        let data = match &packing {
            Some(packing) => uploaded(stream, &[&packing.pack(parts)])?,
            None => uploaded(
                stream,
                &parts.iter().map(HostWeight::data).collect::<Vec<_>>(),
            )?,
        };
        let mut scales = match format.scaling() {
            None => None,
            Some((_, block)) => Some(WeightScales::load(stream, parts, block)?),
        };
        if packing.is_some() {
            // cublasLt does not read packed codes.
            scales = scales.map(|scales| WeightScales {
                blocks: None,
                ..scales
            });
        }
        Ok(Self {
            rows,
            cols,
            elements,
            data,
            packing,
            scales,
            stack: None,
        })
    }

    /// The scales of whole blocks of 128 x 128, as cublasLt reads them, where there are.
    pub(crate) fn block_scales(&self) -> Option<&CudaBuffer> {
        self.scales.as_ref()?.blocks.as_ref()
    }

    /// The bytes that a matmul reads: of experts those of one.
    pub(crate) fn bytes(&self) -> usize {
        if let Some(stack) = &self.stack {
            return stack.expert_bytes();
        }
        // A packed weight has its scales among its codes.
        if self.packing.is_some() {
            return self.data.len();
        }
        let scales = self.scales.as_ref().map_or(0, |s| {
            s.values.len() + s.blocks.as_ref().map_or(0, CudaBuffer::len)
        });
        self.data.len() + scales
    }
}

/// Rows of `columns` values, each filled up with zeros to a multiple of four.
fn padded(values: &[f32], columns: usize) -> Vec<f32> {
    let zeros = columns.next_multiple_of(4) - columns;
    let fill = |row: &[f32]| [row, &[0.0; 4][..zeros]].concat();
    values.chunks(columns).flat_map(fill).collect()
}

/// Gives the rows that hold a NaN a row of scales that are NaN: all their outputs are, and our
/// kernels do not tell a NaN from 480.
fn with_nan_rows(
    parts: &[HostWeight<'_>],
    columns: usize,
    values: &mut Vec<f32>,
    rows: &mut [u32],
) {
    let nan = (values.len() / columns) as u32;
    let codes = parts.iter().flat_map(|p| p.data().chunks_exact(p.cols()));
    for (row, codes) in rows.iter_mut().zip(codes) {
        // Not `any`, which would look at one code after another.
        let nans = |n: u32, code: &u8| n + u32::from(code & 0x7f == 0x7f);
        if codes.iter().fold(0, nans) > 0 {
            *row = nan;
        }
    }
    if rows.contains(&nan) {
        values.extend(std::iter::repeat_n(f32::NAN, columns));
    }
}

/// The scales of the parts' blocks, one below the other, and the row of scales of each row of the weight.
fn scales_of_parts(parts: &[HostWeight<'_>]) -> (Vec<f32>, Vec<u32>) {
    let (mut values, mut rows) = (Vec::new(), Vec::new());
    for part in parts {
        let Some((_, block)) = part.format().scaling() else {
            continue;
        };
        let first = values.len() / part.cols().div_ceil(block[1]);
        rows.extend((0..part.rows()).map(|r| (first + r / block[0]) as u32));
        let scale = |row: usize| {
            let columns = (0..part.cols()).step_by(block[1]);
            columns.map(move |column| part.scale(row, column))
        };
        values.extend((0..part.rows()).step_by(block[0]).flat_map(scale));
    }
    (values, rows)
}

impl WeightScales {
    fn load(stream: &Arc<CudaStream>, parts: &[HostWeight<'_>], block: [usize; 2]) -> Result<Self> {
        let columns = parts[0].cols().div_ceil(block[1]);
        let (mut values, mut rows) = scales_of_parts(parts);
        let exact_in_bf16 = values.iter().all(|&s| keeps_codes_exact(s));
        let (last, others) = (parts.len() - 1, |p: &HostWeight<'_>| {
            p.rows().is_multiple_of(128)
        });
        let blocks = block == [128, 128] && parts[..last].iter().all(others);
        let block_values = blocks.then(|| padded(&values, columns));
        let small = values.iter().all(|&s| s <= LARGEST_FACTOR);
        let given = values.len();
        with_nan_rows(parts, columns, &mut values, &mut rows);
        let upload = |bytes: &[u8]| uploaded(stream, &[bytes]);
        Ok(Self {
            exact_in_bf16,
            factors: exact_in_bf16 && small && values.len() == given,
            values: upload(bytemuck::cast_slice(&values))?,
            rows: upload(bytemuck::cast_slice(&rows))?,
            blocks: block_values
                .map(|values| upload(bytemuck::cast_slice(&values)))
                .transpose()?,
            columns,
            block_columns: block[1].min(parts[0].cols()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use swiglu_core::ScaleFormat;

    #[test]
    fn every_format_of_the_samples_has_a_type_of_its_size_and_fp4_is_bf16() {
        let fp4 = WeightFormat::Fp4;
        assert_eq!(WeightType::from_format(fp4).unwrap(), WeightType::Bf16);
        assert!(matches!(support(fp4), Support::Emulated(_)));
        for format in WeightFormat::SAMPLES.into_iter().filter(|f| *f != fp4) {
            let elements = WeightType::from_format(format).unwrap();
            assert_eq!(8 * elements.size(), format.bits(), "{format}");
            assert_eq!(support(format), Support::Native);
        }
        let fp8 = WeightFormat::Fp8 {
            scales: ScaleFormat::F32,
            block: [3, 5],
        };
        assert_eq!(WeightType::from_format(fp8).unwrap(), WeightType::E4m3);
    }

    #[test]
    fn fp4_is_decoded_to_bf16_without_loss() {
        let codes: Vec<u8> = (0..2 * 16).map(|i| 17 * (i % 16)).collect();
        let scales = [0, 252];
        let weight = HostWeight::new([2, 32], WeightFormat::Fp4, &codes, &scales).unwrap();
        let bf16 = decoded(&weight).unwrap();
        for (row, col) in (0..2).flat_map(|r| (0..32).map(move |c| (r, c))) {
            assert_eq!(bf16.get(row, col), weight.get(row, col), "[{row}, {col}]");
        }
    }

    #[test]
    fn rows_of_scales_are_filled_up() {
        assert_eq!(padded(&[1.0, 2.0, 3.0], 1)[4..8], [2.0, 0.0, 0.0, 0.0]);
        assert_eq!(padded(&[1.0, 2.0, 3.0, 4.0], 4), [1.0, 2.0, 3.0, 4.0]);
    }

    #[test]
    fn only_powers_of_two_in_range_keep_codes_exact() {
        for good in [1.0, 0.5, 1024.0, 2f32.powi(-100), 2f32.powi(100)] {
            assert!(keeps_codes_exact(good), "{good}");
        }
        for bad in [
            1.5,
            0.0,
            -1.0,
            f32::NAN,
            f32::INFINITY,
            1e-40,
            2f32.powi(127),
        ] {
            assert!(!keeps_codes_exact(bad), "{bad}");
        }
    }
}
