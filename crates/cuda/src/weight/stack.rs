//! The weights of a layer's routed experts, one expert's behind another's, as grouped matmuls read them.
//!
//! ## Layout
//! 1. Elements as they were stored, row after row: of FP4 two codes a byte. Gate rows come first, then up rows.
//! 2. FP4 on Hopper, where its shape allows: packed in groups of 16 rows, as `kernels/moe/packed.cuh` has it, codes and
//!    scales in one, as large as they were.
//! 3. Other FP4: the scales' bytes as they were stored. FP8: the scales as f32s, each expert's blocks with a row of NaN behind
//!    them for rows that hold a NaN, and a number of a row of scales for each row of the weight.

use std::sync::Arc;

use cudarc::driver::CudaStream;
use swiglu_core::{Error as CoreError, Float, HostWeight, WeightFormat};

use super::{
    CudaWeight, NO_KERNEL, WeightType, scales_of_parts, to_device, uploaded, with_nan_rows,
};
use crate::{
    buffer::CudaBuffer,
    error::{Doing, PLATFORM, Result},
    launch::params::PackParams,
};

/// How experts' elements lie: `ExpertFormat` of `kernels/moe/experts.cuh`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExpertFormat {
    F32,
    F16,
    Bf16,
    /// FP8 codes in blocks that share a scale.
    E4m3,
    /// FP4 codes in groups of 32 that share one.
    E2m1,
    /// The same, packed.
    PackedE2m1,
}

/// Columns of a unit of packed FP4, and rows of a group.
const PACKED_K: usize = 128;
const PACKED_ROWS: usize = 16;

impl ExpertFormat {
    /// Where a format of core's is taken or refused.
    pub(crate) fn from_format(format: WeightFormat) -> Result<Self> {
        match format {
            WeightFormat::Float(Float::F32) => Ok(Self::F32),
            WeightFormat::Float(Float::F16) => Ok(Self::F16),
            WeightFormat::Float(Float::BF16) => Ok(Self::Bf16),
            WeightFormat::Fp8 { .. } => Ok(Self::E4m3),
            WeightFormat::Fp4 => Ok(Self::E2m1),
            other => Err(CoreError::unsupported(PLATFORM, other, NO_KERNEL).into()),
        }
    }

    /// As [`Self::from_format`], of experts of this shape where FP4 is `packed` if it can be: groups are 16 rows, or 8 of
    /// the gate and 8 of the up half.
    pub(crate) fn of_experts(
        format: WeightFormat,
        parts: usize,
        [part_rows, cols]: [usize; 2],
        packed: bool,
    ) -> Result<Self> {
        let whole = part_rows.is_multiple_of(PACKED_ROWS / parts.clamp(1, 2))
            && parts <= 2
            && cols.is_multiple_of(PACKED_K);
        match Self::from_format(format)? {
            Self::E2m1 if packed && whole => Ok(Self::PackedE2m1),
            format => Ok(format),
        }
    }

    /// Bits of an element.
    pub(crate) const fn bits(self) -> usize {
        match self {
            Self::F32 => 32,
            Self::F16 | Self::Bf16 => 16,
            Self::E4m3 => 8,
            Self::E2m1 | Self::PackedE2m1 => 4,
        }
    }

    /// The name in the names of kernels.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::E4m3 => "e4m3",
            Self::E2m1 => "e2m1",
            Self::PackedE2m1 => "packed",
        }
    }
}

/// How the experts of a [`CudaWeight`] lie.
#[derive(Debug)]
pub(crate) struct ExpertStack {
    pub(crate) format: ExpertFormat,
    /// Bytes of elements from expert to expert, of packed ones with their scales.
    pub(crate) stride: usize,
    /// Of those that are not packed.
    pub(crate) scales: Option<StackScales>,
    /// Packed: a byte for each expert, whether one of its scales is above 2.
    pub(crate) marks: Option<CudaBuffer>,
}

/// The scales of experts.
#[derive(Debug)]
pub(crate) struct StackScales {
    /// FP8: f32s; FP4: bytes.
    pub(crate) values: CudaBuffer,
    /// Values from expert to expert.
    pub(crate) stride: usize,
    /// FP8: the row of scales of each row of each expert.
    pub(crate) rows: Option<CudaBuffer>,
    /// Values of a row of scales.
    pub(crate) columns: usize,
    /// Columns of the weight that share a scale.
    pub(crate) block_columns: usize,
}

/// A product of sizes, or the error of experts that no memory holds.
fn sized(factors: &[usize]) -> Result<usize> {
    let product = factors.iter().try_fold(1_usize, |n, &f| n.checked_mul(f));
    product.ok_or_else(|| {
        let got = format!("{factors:?} bytes");
        CoreError::argument("experts", "experts within the address space", got).into()
    })
}

impl CudaWeight {
    /// Room for experts, each of `parts` weights \[rows, cols\] one below the other; `packed`: whether the device has
    /// kernels for packed ones.
    pub(crate) fn alloc_stack(
        stream: &Arc<CudaStream>,
        count: usize,
        parts: usize,
        [part_rows, cols]: [usize; 2],
        format: WeightFormat,
        packed: bool,
    ) -> Result<Self> {
        let rows = sized(&[parts, part_rows])?;
        if rows > i32::MAX as usize || cols > i32::MAX as usize {
            let got = format!("[{rows}, {cols}]");
            return Err(CoreError::argument("experts", "sides below 2^31", got).into());
        }
        let [grid_rows, columns] = format.scale_grid([part_rows, cols])?;
        let memory = |bytes| CudaBuffer::new(stream.context(), bytes);
        let stored = ExpertFormat::of_experts(format, parts, [part_rows, cols], packed)?;
        let packed = stored == ExpertFormat::PackedE2m1;
        let of_row = format.row_bytes(cols) + if packed { columns } else { 0 };
        let stride = sized(&[rows, of_row])?;
        let marks = packed.then(|| -> Result<_> {
            let marks = memory(count)?;
            to_device(stream, &marks, 0, &vec![0; count])?;
            Ok(marks)
        });
        let scales = match format.scaling().filter(|_| !packed) {
            None => None,
            Some((_, block)) => {
                let is_fp4 = format == WeightFormat::Fp4;
                // FP8 has a row of NaN besides.
                let of_expert = sized(&[parts, grid_rows])? + usize::from(!is_fp4);
                let of_expert = sized(&[of_expert, columns])?;
                let size = if is_fp4 { 1 } else { 4 };
                let table = (!is_fp4).then(|| memory(sized(&[count, rows, 4])?));
                Some(StackScales {
                    values: memory(sized(&[count, of_expert, size])?)?,
                    stride: of_expert,
                    rows: table.transpose()?,
                    columns,
                    block_columns: block[1].min(cols),
                })
            }
        };
        Ok(Self {
            rows,
            cols,
            elements: WeightType::from_format(format)?,
            data: memory(sized(&[count, stride])?)?,
            packing: None,
            scales: None,
            stack: Some(ExpertStack {
                format: stored,
                stride,
                scales,
                marks: marks.transpose()?,
            }),
        })
    }

    /// Brings an expert's parts to its place. They have been checked against the experts' shape.
    ///
    /// `pack` enqueues the kernel that packs one.
    pub(crate) fn load_into_stack(
        &self,
        stream: &Arc<CudaStream>,
        place: usize,
        parts: &[HostWeight<'_>],
        pack: impl FnOnce(&PackParams) -> Result<()>,
    ) -> Result<()> {
        let stack = self.stack.as_ref().ok_or_else(not_stacked)?;
        if let Some(marks) = &stack.marks {
            let [codes, scales] = [HostWeight::data, HostWeight::scales].map(|of| {
                let pieces: Vec<&[u8]> = parts.iter().map(of).collect();
                uploaded(stream, &pieces)
            });
            let (codes, scales) = (codes?, scales?);
            let pairs = parts.len() == 2;
            let half = (PACKED_ROWS / 2) as u32;
            pack(&PackParams {
                codes: codes.address(),
                scales: scales.address(),
                to: self.data.address() + (place * stack.stride) as u64,
                mark: marks.address() + place as u64,
                rows: self.rows as u32,
                k: self.cols as u32,
                half_rows: if pairs { parts[0].rows() as u32 } else { half },
                group_rows: if pairs { half } else { 2 * half },
            })?;
            // What was uploaded is let go of.
            return stream.synchronize().doing("pack an expert");
        }
        let mut at = place * stack.stride;
        for part in parts {
            to_device(stream, &self.data, at, part.data())?;
            at += part.data().len();
        }
        let Some(scales) = &stack.scales else {
            return Ok(());
        };
        let Some(table) = &scales.rows else {
            let mut at = place * scales.stride;
            for part in parts {
                to_device(stream, &scales.values, at, part.scales())?;
                at += part.scales().len();
            }
            return Ok(());
        };
        let (mut values, mut rows) = scales_of_parts(parts);
        with_nan_rows(parts, scales.columns, &mut values, &mut rows);
        values.resize(scales.stride, f32::NAN);
        let at = 4 * place * scales.stride;
        to_device(stream, &scales.values, at, bytemuck::cast_slice(&values))?;
        let at = 4 * place * self.rows;
        to_device(stream, table, at, bytemuck::cast_slice(&rows))
    }
}

/// The error of weights that are not of `alloc_experts`.
pub(crate) fn not_stacked() -> crate::error::Error {
    let expected = "those of this backend's `alloc_experts`";
    CoreError::argument("experts", expected, "weights by themselves").into()
}

impl ExpertStack {
    /// The bytes of one expert, all that a matmul with its rows reads.
    pub(super) fn expert_bytes(&self) -> usize {
        let scales = self.scales.as_ref().map_or(0, |scales| {
            scales.stride * if scales.rows.is_some() { 4 } else { 1 }
        });
        self.stride + scales
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_have_the_numbers_that_kernels_know_and_the_size_that_core_says() {
        let source = include_str!("../../kernels/moe/experts.cuh");
        assert!(source.contains(
            "enum ExpertFormat : uint32_t { W_F32, W_F16, W_BF16, W_E4M3, W_E2M1, W_PACKED };"
        ));
        let numbers = [
            ExpertFormat::F32,
            ExpertFormat::F16,
            ExpertFormat::Bf16,
            ExpertFormat::E4m3,
            ExpertFormat::E2m1,
            ExpertFormat::PackedE2m1,
        ]
        .map(|format| format as u32);
        assert_eq!(numbers, [0, 1, 2, 3, 4, 5]);
        for format in WeightFormat::SAMPLES {
            let of = ExpertFormat::from_format(format).unwrap();
            assert_eq!(of.bits(), format.bits(), "{format}");
        }
    }

    #[test]
    fn fp4_is_packed_in_whole_groups_and_units() {
        let of = |parts, shape, packed| {
            let format = ExpertFormat::of_experts(WeightFormat::Fp4, parts, shape, packed);
            format.unwrap() == ExpertFormat::PackedE2m1
        };
        assert!(of(2, [2048, 4096], true) && of(1, [4096, 2048], true));
        assert!(of(2, [8, 128], true) && !of(1, [8, 128], true));
        assert!(!of(2, [2052, 4096], true) && !of(1, [4096, 2080], true));
        assert!(!of(2, [2048, 4096], false));
        let fp8 = ExpertFormat::of_experts(WeightFormat::DEEPSEEK_V4, 2, [2048, 4096], true);
        assert_eq!(fp8.unwrap(), ExpertFormat::E4m3);
    }
}
