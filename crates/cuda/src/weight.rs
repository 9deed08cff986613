use std::sync::Arc;

use cudarc::driver::{CudaStream, result};
use swiglu_core::{DType, Error as CoreError, HostWeight};

use crate::{CudaBuffer, Result, error::Doing};

/// A weight on the device, as it was stored, its parts one below the other.
#[derive(Debug)]
pub struct CudaWeight {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) dtype: DType,
    pub(crate) data: CudaBuffer,
    pub(crate) scales: Option<Scales>,
}

/// The scales of an FP8 weight.
#[derive(Debug)]
pub(crate) struct Scales {
    /// f32, those of the parts' blocks one below the other.
    pub(crate) values: CudaBuffer,
    /// The row of scales of each row of the weight, u32.
    pub(crate) rows: CudaBuffer,
    pub(crate) columns: usize,
    pub(crate) block_columns: usize,
    /// Whether every product of a code and a scale is a value of bf16.
    pub(crate) exact_in_bf16: bool,
    /// For blocks of 128 x 128 that no part cuts: the values, rows padded to a multiple of four,
    /// as cublasLt reads them.
    pub(crate) blocks: Option<CudaBuffer>,
}

/// A power of two that takes no code of E4M3 out of bf16's range: codes are 2^-9 to 448.
fn keeps_codes_exact(scale: f32) -> bool {
    let bits = scale.to_bits();
    bits & 0x807f_ffff == 0 && (1e-36..1e35).contains(&scale)
}

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

impl CudaWeight {
    pub(crate) fn load(stream: &Arc<CudaStream>, parts: &[HostWeight<'_>]) -> Result<Self> {
        HostWeight::check_parts(parts)?;
        let rows = parts.iter().map(HostWeight::rows).sum::<usize>();
        let (cols, dtype) = (parts[0].cols(), parts[0].dtype());
        if rows > i32::MAX as usize || cols > i32::MAX as usize {
            let got = format!("[{rows}, {cols}]");
            return Err(CoreError::argument("parts", "sides below 2^31", got).into());
        }
        let bytes = parts.iter().map(|p| p.data().len()).sum();
        let data = CudaBuffer::new(stream.context(), bytes)?;
        let mut at = 0;
        for part in parts {
            to_device(stream, &data, at, part.data())?;
            at += part.data().len();
        }
        Ok(Self {
            rows,
            cols,
            dtype,
            data,
            scales: Scales::load(stream, parts)?,
        })
    }

    pub(crate) fn bytes(&self) -> usize {
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

impl Scales {
    fn load(stream: &Arc<CudaStream>, parts: &[HostWeight<'_>]) -> Result<Option<Self>> {
        let Some(block) = parts[0].scales().map(|s| s.block) else {
            return Ok(None);
        };
        let columns = parts[0].cols().div_ceil(block[1]);
        let (mut values, mut rows) = (Vec::<f32>::new(), Vec::<u32>::new());
        for part in parts {
            let Some(scales) = part.scales() else {
                continue;
            };
            let first = values.len() / columns;
            let blocks = part.rows().div_ceil(block[0]);
            rows.extend((0..part.rows()).map(|r| (first + r / block[0]) as u32));
            values.extend((0..blocks * columns).map(|i| scales.get(i)));
        }
        let exact_in_bf16 = values.iter().all(|&s| keeps_codes_exact(s));
        let (last, others) = (parts.len() - 1, |p: &HostWeight<'_>| {
            p.rows().is_multiple_of(128)
        });
        let blocks = block == [128, 128] && parts[..last].iter().all(others);
        let block_values = blocks.then(|| padded(&values, columns));
        with_nan_rows(parts, columns, &mut values, &mut rows);
        let upload = |bytes: &[u8]| {
            let buffer = CudaBuffer::new(stream.context(), bytes.len())?;
            to_device(stream, &buffer, 0, bytes)?;
            Ok::<_, crate::Error>(buffer)
        };
        Ok(Some(Self {
            exact_in_bf16,
            values: upload(bytemuck::cast_slice(&values))?,
            rows: upload(bytemuck::cast_slice(&rows))?,
            blocks: block_values
                .map(|values| upload(bytemuck::cast_slice(&values)))
                .transpose()?,
            columns,
            block_columns: block[1].min(parts[0].cols()),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
