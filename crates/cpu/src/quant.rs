//! Quantization to FP8 and back: a row, or a part of a long one, at a time on one thread. What an
//! activation gives stays in the first-level cache until it is quantized.

use std::marker::PhantomData;
use std::sync::atomic::{AtomicU32, Ordering};

use swiglu_core::{
    Backend, E8M0, QuantOptions, Quantization, Quantized, QuantizedMut, RowLayout, ScaleFormat,
    ScaleLayout, ScaleOrder,
};

use crate::InstructionSet;
use crate::activation::{GateUpRows, KnownActivation};
use crate::element::VectorElement;
use crate::simd;
use crate::tasks::{Shared, Split};

mod fused;
mod hits;
mod rows;

use fused::Fused;
use hits::Hits;
use rows::{Dequantize, Quantize};

/// Codes and scales of a matrix, of which tasks write disjoint parts.
pub(crate) struct Target<'a> {
    codes: Shared<u8>,
    layout: RowLayout,
    scales: Shared<u8>,
    scale_layout: ScaleLayout,
    memory: PhantomData<&'a mut [u8]>,
}

impl<'a> Target<'a> {
    /// The matrix must have passed its check.
    pub(crate) fn new<B: Backend<ViewMut<'a> = &'a mut [u8]>>(output: QuantizedMut<'a, B>) -> Self {
        Self {
            codes: Shared(output.codes.as_mut_ptr()),
            layout: output.layout,
            scales: Shared(output.scales.as_mut_ptr()),
            scale_layout: output.scale_layout,
            memory: PhantomData,
        }
    }

    /// # Safety
    /// Nothing else uses the row's columns and their scales meanwhile.
    unsafe fn row(&self, row: usize) -> TargetRow<'_> {
        TargetRow {
            // SAFETY: the row lies inside the codes.
            codes: unsafe { self.codes.get().add(self.layout.row(row).start) },
            scales: self.scales.get(),
            layout: &self.scale_layout,
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
            ScaleFormat::E8M0 => unsafe { self.scales.add(at).write(E8M0::ceil(scale).0) },
        }
        // SAFETY: as above.
        unsafe { self.fill_up(group) };
    }

    /// The same for the byte of a scale in E8M0.
    ///
    /// # Safety
    /// As [`Target::row`].
    #[inline(always)]
    unsafe fn write_e8m0(&self, group: usize, byte: u8) {
        let at = self.layout.position(self.row, group);
        // SAFETY: the caller vouches for the buffer; so below.
        unsafe {
            self.scales.add(at).write(byte);
            self.fill_up(group);
        }
    }

    /// Writes what fills a packed word after the last group.
    ///
    /// # Safety
    /// As [`Target::row`].
    #[inline(always)]
    unsafe fn fill_up(&self, group: usize) {
        if self.layout.order == ScaleOrder::Packed && group + 1 == self.layout.groups {
            for g in group + 1..self.layout.groups.next_multiple_of(4) {
                // SAFETY: words are whole.
                unsafe { self.scales.add(self.layout.position(self.row, g)).write(0) };
            }
        }
    }
}

/// Rows in batches, of which the first few are in use.
#[derive(Clone, Copy)]
struct Batches<'a> {
    rows: usize,
    /// An i32 each.
    counts: &'a [u8],
}

impl Batches<'_> {
    fn in_use(self, row: usize) -> bool {
        let counts = self.counts.as_chunks().0;
        let count = i32::from_le_bytes(counts[row / self.rows]);
        usize::try_from(count).is_ok_and(|count| row % self.rows < count)
    }
}

/// What a fused call does besides, as [`QuantOptions`].
pub(crate) struct Options<'a> {
    /// An f32 for each row.
    route: Option<&'a [u8]>,
    batches: Option<Batches<'a>>,
    /// Three u32.
    hits: Option<&'a mut [u8]>,
}

impl<'a> Options<'a> {
    pub(crate) fn new<B>(options: QuantOptions<'a, B>) -> Self
    where
        B: Backend<View<'a> = &'a [u8], ViewMut<'a> = &'a mut [u8]>,
    {
        Self {
            route: options.route,
            batches: options.batch.map(|batch| Batches {
                rows: batch.rows,
                counts: batch.counts,
            }),
            hits: options.hits,
        }
    }
}

/// How a call is cut into tasks, and the instruction set that runs them.
pub(crate) type How = (InstructionSet, Split);

/// Quantizes an activation's results. The call must have passed its check.
pub(crate) fn act_quant<T: VectorElement>(
    (set, split): How,
    activation: &KnownActivation,
    quant: &Quantization,
    input: &GateUpRows<'_, T>,
    target: &Target<'_>,
    options: Options<'_>,
) {
    let Options { route, batches, .. } = options;
    let counted = options.hits.is_some();
    let counters = [const { AtomicU32::new(0) }; 3];
    split.run(&target.layout, false, &|row, range| {
        if batches.is_some_and(|batches| !batches.in_use(row)) {
            return;
        }
        let from = input.columns(activation, row, range);
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
            route: route.map(|route| ScaleFormat::F32.read(route, row)),
            // SAFETY: the layouts were checked; a task alone has these columns.
            to: unsafe { target.row(row) },
        };
        // SAFETY: as above.
        unsafe { simd::dispatch(set, fused) }
    });
    if let Some(hits) = options.hits {
        let places = hits.as_chunks_mut().0;
        for (place, counter) in places.iter_mut().zip(counters) {
            let count = u32::from_le_bytes(*place).wrapping_add(counter.into_inner());
            *place = count.to_le_bytes();
        }
    }
}

/// Quantizes rows. The call must have passed its check.
pub(crate) fn quantize<T: VectorElement>(
    (set, split): How,
    quant: &Quantization,
    (x, layout): (&[T], RowLayout),
    target: &Target<'_>,
) {
    split.run(&target.layout, false, &|row, range| {
        let quantize = Quantize {
            quant,
            values: &x[layout.row(row)],
            range,
            // SAFETY: the layouts were checked; a task alone has these columns.
            to: unsafe { target.row(row) },
        };
        // SAFETY: `set` is only given out for machines that have it.
        unsafe { simd::dispatch(set, quantize) }
    });
}

/// Widens codes with their scales. The call must have passed its check.
pub(crate) fn dequantize<'a, T: VectorElement, B: Backend<View<'a> = &'a [u8]>>(
    (set, split): How,
    quant: &Quantization,
    input: &Quantized<'a, B>,
    (y, layout): (&mut [T], RowLayout),
) {
    let (codes, codes_layout) = (input.codes, input.layout);
    let (scales, scale_layout) = (input.scales, input.scale_layout);
    let y = Shared(y.as_mut_ptr());
    split.run(&layout, false, &|row, range| {
        let dequantize = Dequantize {
            group: quant.group(),
            codes: &codes[codes_layout.row(row)],
            range,
            scale: |group| {
                let at = scale_layout.position(row, group);
                scale_layout.format.read(scales, at)
            },
            // SAFETY: the row lies inside the output, whose layout was checked.
            to: unsafe { y.get().add(layout.row(row).start) },
        };
        // SAFETY: `set` is only given out for machines that have it.
        unsafe { simd::dispatch(set, dequantize) }
    });
}
