//! y = x · wᵀ over packed panels. An output is summed over k in order, block by block, and then
//! rounded once, whatever the number of rows, threads and lanes; so its bits depend on its own row
//! and weights alone.

use rayon::prelude::*;
use swiglu_core::{Element, RowLayout};

use crate::simd::{self, Kernel, LANES, Simd};
use crate::weight::{Elements, PackedScales, PackedWeight};
use crate::{InstructionSet, e4m3};

/// k's that are summed before they are added to the total; less where a scale's block ends.
const BLOCK: usize = 256;
/// Rows that share the weights decoded for a block.
const ROWS: usize = 256;
/// Rows of a tile: with two registers a vector, 6 rows keep 12 sums in 16 registers.
const TILE: usize = 6;
/// Panels that a thread reads side by side where there are too few rows to fill its registers.
const STREAMS: usize = 4;

/// Where a product writes.
struct Target<T> {
    data: *mut T,
    layout: RowLayout,
}

// SAFETY: threads write disjoint columns, see `Job::store`.
unsafe impl<T: Send> Sync for Target<T> {}

/// Products whose operations one thread does in about the time that waking a pool takes.
const INLINE: usize = 64 * 1024;

/// Multiplies the rows of `x`, one after another, by `weight`: \[T, K\] to \[T, N\]. The layout of
/// `y` must have passed its check against its slice and the weight.
pub(crate) fn multiply<T: Element>(
    set: InstructionSet,
    x: &[f32],
    weight: &PackedWeight,
    (y, layout): (&mut [T], RowLayout),
) {
    if layout.rows == 0 {
        return;
    }
    let [n, k] = weight.shape();
    let target = Target {
        data: y.as_mut_ptr(),
        layout,
    };
    let panels = n.div_ceil(LANES);
    let run = |group: usize| {
        let first = group * STREAMS;
        let job = Job {
            x,
            weight,
            panels: first..panels.min(first + STREAMS),
            target: &target,
        };
        // SAFETY: `set` is only given out for machines that have it.
        unsafe { simd::dispatch(set, job) }
    };
    let groups = panels.div_ceil(STREAMS);
    if layout.rows * n * k <= INLINE {
        (0..groups).for_each(run);
    } else {
        (0..groups).into_par_iter().for_each(run);
    }
}

/// Some panels for all rows, on one thread.
struct Job<'a, T> {
    x: &'a [f32],
    weight: &'a PackedWeight,
    panels: std::ops::Range<usize>,
    target: &'a Target<T>,
}

impl<T: Element> Kernel for Job<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        match &self.weight.elements {
            Elements::F32(v) => self.with(s, v.as_slice(), F32),
            Elements::F16(v) => self.with(s, v.as_slice(), F16),
            Elements::BF16(v) => self.with(s, v.as_slice(), BF16),
            Elements::E4M3(v) => self.with(s, v.as_slice(), E4M3),
        }
    }
}

/// How stored elements become f32, exactly.
trait Decode: Copy {
    type Stored: Copy;
    /// # Safety
    /// [`LANES`] elements can be read.
    unsafe fn load<S: Simd>(self, s: S, from: *const Self::Stored) -> S::F;
}

#[derive(Clone, Copy)]
struct F32;
#[derive(Clone, Copy)]
struct F16;
#[derive(Clone, Copy)]
struct BF16;
#[derive(Clone, Copy)]
struct E4M3;

impl Decode for F32 {
    type Stored = f32;
    #[inline(always)]
    unsafe fn load<S: Simd>(self, s: S, from: *const f32) -> S::F {
        // SAFETY: the caller vouches for LANES elements; so below.
        unsafe { s.load_f32(from) }
    }
}
impl Decode for F16 {
    type Stored = u16;
    #[inline(always)]
    unsafe fn load<S: Simd>(self, s: S, from: *const u16) -> S::F {
        // SAFETY: as above.
        unsafe { s.load_f16(from) }
    }
}
impl Decode for BF16 {
    type Stored = u16;
    #[inline(always)]
    unsafe fn load<S: Simd>(self, s: S, from: *const u16) -> S::F {
        // SAFETY: as above.
        let upper = unsafe { s.load_u16(from) };
        s.float(s.shl::<16>(upper))
    }
}
impl Decode for E4M3 {
    type Stored = u8;
    #[inline(always)]
    unsafe fn load<S: Simd>(self, s: S, from: *const u8) -> S::F {
        // SAFETY: as above.
        e4m3::decode(s, unsafe { s.load_u8(from) })
    }
}

impl<T: Element> Job<'_, T> {
    #[inline(always)]
    fn with<S: Simd, D: Decode>(&self, s: S, elements: &[D::Stored], decode: D) {
        match (self.target.layout.rows, self.panels.len()) {
            (1, STREAMS) => self.streams::<S, D, 1>(s, elements, decode),
            (2, STREAMS) => self.streams::<S, D, 2>(s, elements, decode),
            _ => self.tiles(s, elements, decode),
        }
    }

    /// The runs of k that are summed before they are added to the total.
    fn blocks(&self) -> impl Iterator<Item = (usize, usize, usize)> {
        let k = self.weight.k;
        let outer = self.weight.scales.as_ref().map_or(k, |s| s.block.min(k));
        (0..k.div_ceil(outer)).flat_map(move |b| {
            let end = k.min((b + 1) * outer);
            (b * outer..end)
                .step_by(BLOCK)
                .map(move |start| (b, start, end.min(start + BLOCK)))
        })
    }

    /// The scales of a panel's outputs in a block of scales; `None` where there are none.
    #[inline(always)]
    fn scale<S: Simd>(&self, s: S, panel: usize, block: usize) -> Option<S::F> {
        let PackedScales {
            block: width_k,
            width,
            values,
        } = self.weight.scales.as_ref()?;
        let at = (panel * self.weight.k.div_ceil(*width_k) + block) * width;
        Some(if *width == 1 {
            s.splat(values[at])
        } else {
            let lanes = &values[at..at + LANES];
            // SAFETY: the slice has LANES elements.
            unsafe { s.load_f32(lanes.as_ptr()) }
        })
    }

    /// Few rows: the weights are decoded as they come, from several panels side by side.
    #[inline(always)]
    fn streams<S: Simd, D: Decode, const R: usize>(&self, s: S, elements: &[D::Stored], decode: D) {
        let k = self.weight.k;
        let first = self.panels.start;
        let x: [&[f32]; R] = std::array::from_fn(|r| &self.x[r * k..][..k]);
        let panels: [&[D::Stored]; STREAMS] =
            std::array::from_fn(|p| &elements[(first + p) * k * LANES..][..k * LANES]);
        let mut totals = [[s.splat(0.0); STREAMS]; R];
        for (block, start, end) in self.blocks() {
            let mut sums = [[s.splat(0.0); STREAMS]; R];
            for i in start..end {
                for p in 0..STREAMS {
                    // SAFETY: a panel has k · LANES elements, and i < k.
                    let w = unsafe { decode.load(s, panels[p].as_ptr().add(i * LANES)) };
                    for r in 0..R {
                        // SAFETY: a row has k elements.
                        let x = s.splat(unsafe { *x[r].get_unchecked(i) });
                        sums[r][p] = s.fma(x, w, sums[r][p]);
                    }
                }
            }
            for p in 0..STREAMS {
                let scale = self.scale(s, first + p, block);
                for r in 0..R {
                    totals[r][p] = add(s, scale, sums[r][p], totals[r][p]);
                }
            }
        }
        for (r, totals) in totals.iter().enumerate() {
            for (p, &total) in totals.iter().enumerate() {
                self.store(s, r, first + p, total);
            }
        }
    }

    /// Many rows: a block of a panel is decoded once and multiplied with all rows of a chunk.
    #[inline(always)]
    fn tiles<S: Simd, D: Decode>(&self, s: S, elements: &[D::Stored], decode: D) {
        let k = self.weight.k;
        let mut decoded = [0.0_f32; BLOCK * LANES];
        let mut totals = [0.0_f32; ROWS * LANES];
        for (panel, start) in self.panels.clone().flat_map(|p| {
            (0..self.target.layout.rows)
                .step_by(ROWS)
                .map(move |r| (p, r))
        }) {
            let rows = ROWS.min(self.target.layout.rows - start);
            totals[..rows * LANES].fill(0.0);
            for (block, k0, k1) in self.blocks() {
                let stored = &elements[(panel * k + k0) * LANES..(panel * k + k1) * LANES];
                for (from, to) in stored
                    .chunks_exact(LANES)
                    .zip(decoded.chunks_exact_mut(LANES))
                {
                    // SAFETY: both chunks have LANES elements.
                    unsafe { s.store_f32(to.as_mut_ptr(), decode.load(s, from.as_ptr())) };
                }
                let scale = self.scale(s, panel, block);
                let w = &decoded[..(k1 - k0) * LANES];
                let mut row = 0;
                while row < rows {
                    let count = TILE.min(rows - row);
                    let x = &self.x[(start + row) * k + k0..];
                    let totals = &mut totals[row * LANES..(row + count) * LANES];
                    match count {
                        6 => tile::<S, 6>(s, x, k, w, scale, totals),
                        5 => tile::<S, 5>(s, x, k, w, scale, totals),
                        4 => tile::<S, 4>(s, x, k, w, scale, totals),
                        3 => tile::<S, 3>(s, x, k, w, scale, totals),
                        2 => tile::<S, 2>(s, x, k, w, scale, totals),
                        _ => tile::<S, 1>(s, x, k, w, scale, totals),
                    }
                    row += count;
                }
            }
            for (row, total) in totals[..rows * LANES].chunks_exact(LANES).enumerate() {
                // SAFETY: the chunk has LANES elements.
                let total = unsafe { s.load_f32(total.as_ptr()) };
                self.store(s, start + row, panel, total);
            }
        }
    }

    /// Rounds a panel's outputs of a row and writes those that the weight has.
    #[inline(always)]
    fn store<S: Simd>(&self, s: S, row: usize, panel: usize, total: S::F) {
        let mut values = [0.0_f32; LANES];
        // SAFETY: the array has LANES elements.
        unsafe { s.store_f32(values.as_mut_ptr(), total) };
        let first = panel * LANES;
        let count = LANES.min(self.weight.n - first);
        let start = self.target.layout.row(row).start + first;
        for (lane, &value) in values[..count].iter().enumerate() {
            // SAFETY: the layout was checked against the slice, row < rows and first + lane < N;
            // this job alone writes its panels' columns.
            unsafe { self.target.data.add(start + lane).write(T::from_f32(value)) };
        }
    }
}

/// total + scale · sum, in one rounding where there is a scale.
#[inline(always)]
fn add<S: Simd>(s: S, scale: Option<S::F>, sum: S::F, total: S::F) -> S::F {
    match scale {
        Some(scale) => s.fma(scale, sum, total),
        None => s.add(sum, total),
    }
}

/// Adds a block's products of R rows, `stride` apart in `x`, to their totals.
#[inline(always)]
fn tile<S: Simd, const R: usize>(
    s: S,
    x: &[f32],
    stride: usize,
    w: &[f32],
    scale: Option<S::F>,
    totals: &mut [f32],
) {
    let k = w.len() / LANES;
    let rows: [&[f32]; R] = std::array::from_fn(|r| &x[r * stride..][..k]);
    let mut sums = [s.splat(0.0); R];
    for i in 0..k {
        // SAFETY: w has k · LANES elements, and every row has k.
        unsafe {
            let w = s.load_f32(w.as_ptr().add(i * LANES));
            for r in 0..R {
                sums[r] = s.fma(s.splat(*rows[r].get_unchecked(i)), w, sums[r]);
            }
        }
    }
    for (sum, total) in sums.into_iter().zip(totals.chunks_exact_mut(LANES)) {
        // SAFETY: the chunk has LANES elements.
        unsafe {
            let sum = add(s, scale, sum, s.load_f32(total.as_ptr()));
            s.store_f32(total.as_mut_ptr(), sum);
        }
    }
}
