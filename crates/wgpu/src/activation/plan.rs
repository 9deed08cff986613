//! Which kernel runs an activation, and on how much at a time.
//!
//! ## Method
//! 1. Where the halves are: in one matrix, one behind the other or alternating, or in two.
//! 2. Rows that do not fit into a binding are cut into parts of whole vectors of columns; as many rows
//!    as fit make a dispatch.
//! 3. The kernel follows from the places: whole vectors where all starts, strides and d are, and of
//!    those the native one for silu of 16-bit elements where the device's own arithmetic will do.
//!    It is one kernel for all dispatches of a call. Halves in two matrices compute as they would in
//!    one that lies alike, bit for bit.

use std::fmt;

use swiglu_core::{Float, GatedActivation, Layout};

use super::op::keeps_in_range;
use crate::device::{BindingLimits, Facts};
use crate::launch::{Op, RowSpan, Workgroups, in_workgroups};
use crate::pipelines::{ActivationKernel, SixteenBit, VECTOR_WORKGROUP, WORKGROUP};

/// The slopes that the native kernels take: their product with a gate must not leave f32.
const NATIVE_ALPHAS: std::ops::RangeInclusive<f32> = 1e-4..=1e4;

/// Where in a merged row of 2d elements the halves are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HalfPlaces {
    /// The first gate, and the first up.
    pub(crate) gate: usize,
    pub(crate) up: usize,
    /// From one gate to the next.
    pub(crate) step: usize,
}

impl HalfPlaces {
    pub(crate) const fn of(op: &GatedActivation, d: usize) -> Self {
        let (gate, up) = op.positions(d, 0);
        let step = match op.layout() {
            Layout::Concatenated => 1,
            Layout::Interleaved => 2,
        };
        Self { gate, up, step }
    }

    /// From the first gate of a row to the last, both counted.
    pub(crate) const fn span(step: usize, d: usize) -> usize {
        (d - 1) * step + 1
    }
}

/// Where the matrices of an activation lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ActivationSpans {
    pub(crate) gate: RowSpan,
    pub(crate) up: RowSpan,
    pub(crate) step: usize,
    /// The operation's, whatever the step is.
    pub(crate) layout: Layout,
    pub(crate) output: RowSpan,
}

impl ActivationSpans {
    /// Of a merged input and an output without gaps.
    pub(crate) const fn contiguous(op: &GatedActivation, float: Float, d: usize) -> Self {
        let HalfPlaces { gate, up, step } = HalfPlaces::of(op, d);
        let row = RowSpan::contiguous(float.size(), 2 * d);
        let span = HalfPlaces::span(step, d);
        Self {
            gate: row.part(gate, span),
            up: row.part(up, span),
            step,
            layout: op.layout(),
            output: RowSpan::contiguous(float.size(), d),
        }
    }

    /// The part of `cols` columns.
    fn narrow(&self, cols: usize) -> [RowSpan; 3] {
        let span = HalfPlaces::span(self.step, cols);
        [
            self.gate.part(0, span),
            self.up.part(0, span),
            self.output.part(0, cols),
        ]
    }

    /// Whether the gates and the ups are whole vectors; where they alternate, those of the gates,
    /// beside which the kernel finds the ups.
    pub(crate) fn halves_are_vectors(&self) -> bool {
        let ups = match self.step {
            1 => self.up.starts_vectors(),
            _ => self.up.first == self.gate.first + 1,
        };
        ups && self.gate.starts_vectors()
    }
}

/// Whether the native kernels compute this.
pub(crate) fn is_native(op: &Op, float: Float, layout: Layout) -> Option<SixteenBit> {
    let computes = layout == Layout::Concatenated
        && op.is_silu()
        && op.clamp_place != 2
        && op.eager == 0
        && keeps_in_range(op, float)
        && NATIVE_ALPHAS.contains(&op.first);
    SixteenBit::of(float).filter(|_| computes)
}

/// The dispatches of an activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ActivationPlan {
    pub(crate) kernel: ActivationKernel,
    /// Rows and columns of the output that a dispatch takes, at most.
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) dispatches: usize,
}

/// What a dispatch of `rows` rows and `d` columns tells its kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ActivationUnits {
    /// Words or vectors of a row.
    pub(crate) row_units: u32,
    /// The same of all rows.
    pub(crate) units: u32,
    pub(crate) columns_log2: u32,
    pub(crate) workgroups: Workgroups,
}

impl ActivationPlan {
    pub(crate) fn new(
        facts: &Facts,
        (op, float): (&Op, Float),
        spans: &ActivationSpans,
        [all_rows, d]: [usize; 2],
    ) -> Self {
        let cols = d.min(columns_per_window(&facts.bindings, float, spans.step).max(8));
        let rows = spans
            .narrow(cols)
            .map(|span| span.rows_per_window(&facts.bindings))
            .into_iter()
            .min()
            .unwrap_or(0)
            .max(1);
        let per_vector = spans.output.per_vector();
        let aligned = d.is_multiple_of(per_vector)
            && spans.output.starts_vectors()
            && spans.halves_are_vectors();
        let native = is_native(op, float, spans.layout).filter(|_| facts.native);
        let kernel = match (aligned, native) {
            (false, _) => ActivationKernel::Words(float),
            (true, Some(float)) => {
                let from_starts = [spans.gate, spans.up, spans.output]
                    .iter()
                    .all(|span| span.starts_binding(&facts.bindings));
                let whole = (d / per_vector).is_multiple_of(VECTOR_WORKGROUP as usize);
                if all_rows == 1 && cols == d && from_starts && whole {
                    ActivationKernel::NativeRow(float)
                } else {
                    ActivationKernel::NativeSilu(float)
                }
            }
            (true, None) if op.is_silu() => ActivationKernel::SiluVectors(float),
            (true, None) => ActivationKernel::Vectors(float),
        };
        Self {
            kernel,
            rows,
            cols,
            dispatches: all_rows.div_ceil(rows) * d.div_ceil(cols),
        }
    }

    /// What a dispatch tells the kernel; none where it would have 2^32 units or more.
    pub(crate) fn units(
        &self,
        limits: &BindingLimits,
        rows: u32,
        d: u32,
    ) -> Option<ActivationUnits> {
        let (row_units, columns_log2) = match self.kernel {
            ActivationKernel::Words(Float::F32) => (d, 0),
            // A row that starts or ends within a word takes that word too.
            ActivationKernel::Words(Float::F16 | Float::BF16) => (d / 2 + 1, 0),
            ActivationKernel::Vectors(Float::F32) | ActivationKernel::SiluVectors(Float::F32) => {
                (d / 4, columns_log2(d / 4))
            }
            ActivationKernel::Vectors(_)
            | ActivationKernel::SiluVectors(_)
            | ActivationKernel::NativeSilu(_)
            | ActivationKernel::NativeRow(_) => (d / 8, columns_log2(d / 8)),
        };
        let units = row_units.checked_mul(rows)?;
        let workgroups = if let ActivationKernel::Words(_) = self.kernel {
            let [x, y] = in_workgroups(limits, units.div_ceil(WORKGROUP));
            [x, y, 1]
        } else {
            let per_workgroup = VECTOR_WORKGROUP >> columns_log2;
            let [y, z] = in_workgroups(limits, rows.div_ceil(per_workgroup));
            [row_units.div_ceil(1 << columns_log2), y, z]
        };
        Some(ActivationUnits {
            row_units,
            units,
            columns_log2,
            workgroups,
        })
    }
}

impl fmt::Display for ActivationPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kernel)?;
        if self.dispatches > 1 {
            let Self {
                rows,
                cols,
                dispatches,
                ..
            } = self;
            write!(f, " in {dispatches} dispatches of up to {rows} x {cols}")?;
        }
        Ok(())
    }
}

/// How a workgroup's invocations are laid over rows of so many vectors: the logarithm of those that
/// are side by side. At least 32 are, if there are as many, for whole lines of memory.
fn columns_log2(row_vectors: u32) -> u32 {
    let padded = |log2: &u32| row_vectors.next_multiple_of(1 << log2);
    let least = row_vectors.next_power_of_two().ilog2().min(5);
    let sizes = (least..=VECTOR_WORKGROUP.ilog2()).rev();
    sizes.min_by_key(padded).unwrap_or(0)
}

/// Elements of half a row that fit into a binding whatever their place.
fn columns_per_window(limits: &BindingLimits, float: Float, step: usize) -> usize {
    let bytes = limits.bytes.saturating_sub(limits.alignment + 32);
    let elements = bytes / (float.size() * step) as u64;
    // Whole vectors, so that a part starts as aligned as the row does.
    usize::try_from(elements).unwrap_or(usize::MAX) & !7
}

#[cfg(test)]
mod tests {
    use super::*;
    use swiglu_core::Rounding;

    #[test]
    fn rows_fill_their_workgroups() {
        for (row_vectors, log2) in [(1, 0), (2, 1), (3, 2), (33, 6), (96, 5), (128, 7)] {
            assert_eq!(columns_log2(row_vectors), log2, "{row_vectors}");
        }
        // V4-Flash, V4.1-Flash and V4-Pro in 16 bits: no invocation is idle.
        for row_vectors in [256_u32, 288, 384] {
            assert!(row_vectors.is_multiple_of(1 << columns_log2(row_vectors)));
        }
    }

    fn plan(facts: &Facts, op: GatedActivation, float: Float, shape: [usize; 2]) -> ActivationPlan {
        let spans = ActivationSpans::contiguous(&op, float, shape[1]);
        let op = Op::of(&op, float).unwrap();
        ActivationPlan::new(facts, (&op, float), &spans, shape)
    }

    #[test]
    fn the_kernel_follows_from_function_type_and_place() {
        use ActivationKernel::{NativeRow, NativeSilu, SiluVectors, Vectors, Words};
        let v4 = GatedActivation::deepseek_v4();
        let own_exp = Facts {
            native: false,
            ..Facts::GPU
        };
        let bf16 = SixteenBit::BF16;
        for (op, float, shape, kernel) in [
            (v4, Float::BF16, [1, 2048], NativeRow(bf16)),
            (v4, Float::BF16, [2, 2048], NativeSilu(bf16)),
            (v4, Float::BF16, [1, 2056], NativeSilu(bf16)),
            (v4, Float::BF16, [1, 2052], Words(Float::BF16)),
            (v4, Float::F32, [4, 2052], SiluVectors(Float::F32)),
            (v4, Float::F32, [4, 2050], Words(Float::F32)),
            (
                v4.with_rounding(Rounding::Eager),
                Float::F16,
                [4, 64],
                SiluVectors(Float::F16),
            ),
            (
                GatedActivation::gpt_oss(),
                Float::F16,
                [4, 64],
                SiluVectors(Float::F16),
            ),
            (
                GatedActivation::gelu_quick_and_mul(),
                Float::F16,
                [4, 64],
                NativeSilu(SixteenBit::F16),
            ),
            (
                GatedActivation::gelu_and_mul(),
                Float::F16,
                [4, 64],
                Vectors(Float::F16),
            ),
        ] {
            assert_eq!(plan(&Facts::GPU, op, float, shape).kernel, kernel, "{op}");
        }
        let kernel = plan(&own_exp, v4, Float::BF16, [2, 2048]).kernel;
        assert_eq!(kernel, SiluVectors(Float::BF16));
    }

    #[test]
    fn halves_in_two_matrices_have_starts_and_strides_of_their_own() {
        let half = RowSpan::contiguous(2, 64);
        let kernel = |op: GatedActivation, up: RowSpan| {
            let spans = ActivationSpans {
                gate: half,
                up,
                step: 1,
                layout: op.layout(),
                output: half,
            };
            let op = Op::of(&op, Float::BF16).unwrap();
            ActivationPlan::new(&Facts::GPU, (&op, Float::BF16), &spans, [4, 64]).kernel
        };
        let v4 = GatedActivation::deepseek_v4();
        let native = ActivationKernel::NativeSilu(SixteenBit::BF16);
        assert_eq!(kernel(v4, half), native);
        assert_eq!(kernel(v4, RowSpan::contiguous(2, 72).part(0, 64)), native);
        let words = ActivationKernel::Words(Float::BF16);
        assert_eq!(kernel(v4, RowSpan::contiguous(2, 65).part(0, 64)), words);
        assert_eq!(kernel(v4, half.part(1, 64)), words);
        // As where its halves alternate.
        let own_exp = ActivationKernel::SiluVectors(Float::BF16);
        assert_eq!(kernel(GatedActivation::gpt_oss(), half), own_exp);
    }

    #[test]
    fn rows_that_do_not_fit_are_cut_into_whole_vectors() {
        let facts = Facts::GPU.with_bindings_of(8192);
        let v4 = GatedActivation::deepseek_v4();
        let plan = |shape| plan(&facts, v4, Float::BF16, shape);
        // Rows of 192 bytes that are 384 apart.
        let rows = plan([100, 96]);
        assert_eq!((rows.rows, rows.cols, rows.dispatches), (21, 96, 5));
        let shown = "activation_native(bf16) in 5 dispatches of up to 21 x 96";
        assert_eq!(rows.to_string(), shown);
        let row = plan([1, 20_000]);
        assert_eq!((row.rows, row.cols, row.dispatches), (1, 4072, 5));
        assert_eq!(row.kernel, ActivationKernel::NativeSilu(SixteenBit::BF16));
        let units = row.units(&facts.bindings, 1, 4072).unwrap();
        assert_eq!((units.row_units, units.workgroups[1]), (509, 1));
    }
}
