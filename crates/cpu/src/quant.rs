//! Quantization to FP8 and back: a row, or a part of a long one, at a time on one thread. What an
//! activation gives stays in the first-level cache until it is quantized.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use swiglu_core::{
    ActAndMulQuant, Batch, DType, E8M0, GatedActivation, HostBuffer, QuantOptions, Quantization,
    Quantized, QuantizedMut, Result, RowLayout, ScaleFormat, ScaleLayout, ScaleOrder, Scales,
    Support, Tensor, TensorMut, bf16, f16,
};

use crate::activation::{self, Columns, Lanes, Shared};
use crate::simd;
use crate::{CpuBackend, InstructionSet};

mod fused;
mod hits;
mod rows;

use fused::Fused;
use hits::Hits;
use rows::{Dequantize, Quantize};

/// Codes and scales of a matrix, of which tasks write disjoint parts.
struct Target {
    codes: Shared<u8>,
    layout: RowLayout,
    scales: Shared<u8>,
    scales_layout: ScaleLayout,
}

impl Target {
    fn new(output: QuantizedMut<'_, HostBuffer>) -> Self {
        Self {
            layout: output.codes.layout,
            codes: Shared(output.codes.buffer.bytes_mut().as_mut_ptr()),
            scales_layout: output.scales.layout,
            scales: Shared(output.scales.buffer.bytes_mut().as_mut_ptr()),
        }
    }

    /// # Safety
    /// The layouts were checked against the buffers, which outlive the value, and nothing else uses
    /// the row's columns and their scales meanwhile.
    unsafe fn row(&self, row: usize) -> TargetRow<'_> {
        TargetRow {
            // SAFETY: the row lies inside the codes.
            codes: unsafe { self.codes.get().add(self.layout.row(row).start) },
            scales: self.scales.get(),
            layout: &self.scales_layout,
            row,
        }
    }
}

/// A row's codes and scales, to be written.
#[derive(Clone, Copy)]
struct TargetRow<'a> {
    codes: *mut u8,
    scales: *mut u8,
    layout: &'a ScaleLayout,
    row: usize,
}

impl TargetRow<'_> {
    /// Writes the scale of a group, and after the last one what fills a packed word.
    ///
    /// # Safety
    /// As [`Target::row`].
    #[inline(always)]
    unsafe fn write_scale(&self, group: usize, scale: f32) {
        let at = self.layout.position(self.row, group);
        match self.layout.format {
            // SAFETY: the caller vouches for the buffer; its alignment is not known here.
            ScaleFormat::F32 => unsafe {
                self.scales.cast::<f32>().add(at).write_unaligned(scale);
            },
            // SAFETY: as above. A power of two is its own ceiling.
            ScaleFormat::Ue8m0 => unsafe { self.scales.add(at).write(E8M0::ceil(scale).0) },
        }
        if self.layout.order == ScaleOrder::Packed && group + 1 == self.layout.groups {
            for g in group + 1..self.layout.groups.next_multiple_of(4) {
                // SAFETY: words are whole.
                unsafe { self.scales.add(self.layout.position(self.row, g)).write(0) };
            }
        }
    }
}

/// The scale at a place.
fn read_scale(scales: &Scales<'_, HostBuffer>, row: usize, group: usize) -> f32 {
    let at = scales.layout.position(row, group);
    match scales.layout.format {
        ScaleFormat::F32 => scales.buffer.typed::<f32>()[at],
        ScaleFormat::Ue8m0 => E8M0(scales.buffer.bytes()[at]).to_f32(),
    }
}

/// Whether a row is in use.
fn in_use(row: usize, batch: Option<&Batch<'_, HostBuffer>>) -> bool {
    batch.is_none_or(|batch| {
        let counts = batch.counts.bytes().as_chunks().0;
        let count = i32::from_le_bytes(counts[row / batch.rows]);
        usize::try_from(count).is_ok_and(|count| row % batch.rows < count)
    })
}

fn act_quant<T: Lanes>(
    set: InstructionSet,
    op: &GatedActivation,
    quant: &Quantization,
    input: &Tensor<'_, HostBuffer>,
    output: QuantizedMut<'_, HostBuffer>,
    options: QuantOptions<'_, HostBuffer>,
) {
    let QuantOptions { route, batch, hits } = options;
    let (x, target) = (input.buffer.typed::<T>(), Target::new(output));
    let counted = hits.is_some();
    let counters = [const { AtomicU32::new(0) }; 3];
    let work = |row: usize, range: Range<usize>| {
        if !in_use(row, batch.as_ref()) {
            return;
        }
        let from = Columns::new(op, &x[input.layout.row(row)], range);
        if counted {
            // SAFETY: `set` is only given out for machines that have it.
            let hits = unsafe { simd::dispatch(set, Hits(&from)) };
            for (counter, hits) in counters.iter().zip(hits) {
                counter.fetch_add(hits, Ordering::Relaxed);
            }
        }
        let fused = Fused {
            from,
            quant,
            route: route.map(|r| r.typed::<f32>()[row]),
            // SAFETY: the layouts were checked; a task alone has these columns.
            to: unsafe { target.row(row) },
        };
        // SAFETY: as above.
        unsafe { simd::dispatch(set, fused) }
    };
    activation::split(&target.layout, work);
    if let Some(hits) = hits {
        let places = hits.bytes_mut().as_chunks_mut().0;
        for (place, counter) in places.iter_mut().zip(counters) {
            let count = u32::from_le_bytes(*place).wrapping_add(counter.into_inner());
            *place = count.to_le_bytes();
        }
    }
}

fn quantize<T: Lanes>(
    set: InstructionSet,
    quant: &Quantization,
    input: &Tensor<'_, HostBuffer>,
    output: QuantizedMut<'_, HostBuffer>,
) {
    let (x, target) = (input.buffer.typed::<T>(), Target::new(output));
    activation::split(&target.layout, |row, range| {
        let quantize = Quantize {
            quant,
            values: &x[input.layout.row(row)],
            range,
            // SAFETY: the layouts were checked; a task alone has these columns.
            to: unsafe { target.row(row) },
        };
        // SAFETY: `set` is only given out for machines that have it.
        unsafe { simd::dispatch(set, quantize) }
    });
}

fn dequantize<T: Lanes>(
    set: InstructionSet,
    quant: &Quantization,
    input: &Quantized<'_, HostBuffer>,
    output: TensorMut<'_, HostBuffer>,
) {
    let (codes, layout) = (&input.codes, output.layout);
    let y = Shared(output.buffer.typed_mut::<T>().as_mut_ptr());
    activation::split(&layout, |row, range| {
        let dequantize = Dequantize {
            group: quant.group(),
            codes: &codes.buffer.bytes()[codes.layout.row(row)],
            range,
            scale: |group| read_scale(&input.scales, row, group),
            // SAFETY: the row lies inside the output, whose layout was checked.
            to: unsafe { y.get().add(layout.row(row).start) },
        };
        // SAFETY: `set` is only given out for machines that have it.
        unsafe { simd::dispatch(set, dequantize) }
    });
}

/// Calls a function of the type parameter `$t` with the type that a dtype names. Checks have refused
/// what is storage only.
macro_rules! typed {
    ($dtype:expr, $function:ident($($argument:expr),*)) => {
        match $dtype {
            DType::F16 => $function::<f16>($($argument),*),
            DType::BF16 => $function::<bf16>($($argument),*),
            DType::F32 | DType::F8E4M3 | DType::E8M0 => $function::<f32>($($argument),*),
        }
    };
}

impl ActAndMulQuant for CpuBackend {
    fn supports_quant(&self, _quant: &Quantization, dtype: DType) -> Support {
        if DType::COMPUTE.contains(&dtype) {
            Support::Native
        } else {
            Support::No(format!("{dtype} is storage only"))
        }
    }

    fn act_and_mul_quant(
        &self,
        op: &GatedActivation,
        quant: &Quantization,
        input: Tensor<'_, HostBuffer>,
        output: QuantizedMut<'_, HostBuffer>,
        options: QuantOptions<'_, HostBuffer>,
    ) -> Result<()> {
        self.check_act_quant(op, quant, &input, &output, &options)?;
        let (set, layout) = (self.instruction_set(), output.codes.layout);
        self.for_rows(&layout, || {
            typed!(
                input.dtype,
                act_quant(set, op, quant, &input, output, options)
            );
        });
        Ok(())
    }

    fn quantize(
        &self,
        quant: &Quantization,
        input: Tensor<'_, HostBuffer>,
        output: QuantizedMut<'_, HostBuffer>,
    ) -> Result<()> {
        self.check_quant(quant, &input, &output)?;
        let (set, layout) = (self.instruction_set(), output.codes.layout);
        self.for_rows(&layout, || {
            typed!(input.dtype, quantize(set, quant, &input, output));
        });
        Ok(())
    }

    fn dequantize(
        &self,
        quant: &Quantization,
        input: Quantized<'_, HostBuffer>,
        output: TensorMut<'_, HostBuffer>,
    ) -> Result<()> {
        self.check_dequant(quant, &input, &output)?;
        let (set, layout) = (self.instruction_set(), output.layout);
        self.for_rows(&layout, || {
            typed!(output.dtype, dequantize(set, quant, &input, output));
        });
        Ok(())
    }
}
