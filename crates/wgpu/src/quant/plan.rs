//! Which kernel quantizes, and by which of the activation's paths.
//!
//! ## Method
//! 1. A fused kernel gives the codes of the activation followed by a quantization. So it computes as
//!    the activation alone would, into rows without gaps: natively, by vectors, or one by one.
//! 2. As many rows as fit into the bindings of input and codes make a dispatch. Scales are bound whole.

use std::fmt;

use swiglu_core::{Float, Layout};

use crate::activation::is_native;
use crate::device::Facts;
use crate::launch::{Op, RowSpan};
use crate::pipelines::{QuantizeKernel, WORKGROUP};

/// Elements of a row that a workgroup quantizes.
pub(super) const PER_WORKGROUP: usize = 8 * WORKGROUP as usize;

/// How the activation alone would compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QuantizePath {
    Elements,
    Vectors,
    Native,
}

impl QuantizePath {
    /// The shaders' number.
    pub(super) const fn code(self) -> u32 {
        match self {
            Self::Elements => 0,
            Self::Vectors => 1,
            Self::Native => 2,
        }
    }
}

/// The halves of an activation's input.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct FusedInput<'a> {
    pub(crate) op: &'a Op,
    pub(crate) float: Float,
    pub(crate) layout: Layout,
    /// Whether gates and ups are whole vectors, as the activation's kernels ask for it.
    pub(crate) vectors: bool,
}

/// The dispatches of a quantization.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QuantizePlan {
    pub(crate) kernel: QuantizeKernel,
    pub(crate) path: QuantizePath,
    /// Rows that a dispatch takes, at most.
    pub(crate) rows: usize,
    pub(crate) dispatches: usize,
}

impl QuantizePlan {
    /// Of an activation's results, or of a matrix: `spans` are those of the rows read and written.
    pub(crate) fn new(
        facts: &Facts,
        input: Option<FusedInput<'_>>,
        spans: &[RowSpan],
        [all_rows, d]: [usize; 2],
    ) -> Self {
        let (kernel, path) = match input {
            None => (QuantizeKernel::Matrix, QuantizePath::Elements),
            Some(input) => (QuantizeKernel::Fused(input.float), path(facts, &input, d)),
        };
        let rows = rows_per_dispatch(facts, spans, d.div_ceil(PER_WORKGROUP));
        Self {
            kernel,
            path,
            rows,
            dispatches: all_rows.div_ceil(rows),
        }
    }
}

fn path(facts: &Facts, input: &FusedInput<'_>, d: usize) -> QuantizePath {
    let vectors = input.vectors && d.is_multiple_of(16 / input.float.size());
    if !(input.op.is_silu() && vectors) {
        return QuantizePath::Elements;
    }
    match is_native(input.op, input.float, input.layout) {
        Some(_) if facts.native => QuantizePath::Native,
        _ => QuantizePath::Vectors,
    }
}

/// The rows that fit into a binding of each span, and whose units are fewer than 2^32.
pub(super) fn rows_per_dispatch(facts: &Facts, spans: &[RowSpan], row_units: usize) -> usize {
    spans
        .iter()
        .map(|span| span.rows_per_window(&facts.bindings))
        .fold(u32::MAX as usize / row_units.max(1), usize::min)
        .max(1)
}

impl fmt::Display for QuantizePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kernel)?;
        match (self.kernel, self.path) {
            (QuantizeKernel::Matrix, _) => {}
            (_, QuantizePath::Elements) => f.write_str(" by elements")?,
            (_, QuantizePath::Vectors) => f.write_str(" by vectors")?,
            (_, QuantizePath::Native) => f.write_str(" by native vectors")?,
        }
        if self.dispatches > 1 {
            let Self {
                rows, dispatches, ..
            } = self;
            write!(f, " in {dispatches} dispatches of up to {rows} rows")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::activation::ActivationSpans;
    use swiglu_core::GatedActivation;

    #[test]
    fn the_path_is_that_of_the_activation_alone() {
        use QuantizePath::{Elements, Native, Vectors};
        let own_exp = Facts {
            native: false,
            ..Facts::GPU
        };
        let v4 = GatedActivation::deepseek_v4();
        for (facts, op, float, d, path) in [
            (Facts::GPU, v4, Float::BF16, 3072, Native),
            (own_exp, v4, Float::BF16, 3072, Vectors),
            (Facts::GPU, v4, Float::BF16, 3076, Elements),
            (Facts::GPU, v4, Float::F32, 3076, Vectors),
            (
                Facts::GPU,
                GatedActivation::gpt_oss(),
                Float::BF16,
                3072,
                Vectors,
            ),
            (
                Facts::GPU,
                GatedActivation::gelu_and_mul(),
                Float::BF16,
                3072,
                Elements,
            ),
        ] {
            let spans = ActivationSpans::contiguous(&op, float, d);
            let op = Op::of(&op, float).unwrap();
            let input = FusedInput {
                op: &op,
                float,
                layout: spans.layout,
                vectors: spans.halves_are_vectors(),
            };
            let codes = RowSpan::contiguous(1, d);
            let spans = [spans.gate, spans.up, codes];
            let plan = QuantizePlan::new(&facts, Some(input), &spans, [64, d]);
            assert_eq!((plan.path, plan.dispatches), (path, 1), "{float} {d}");
        }
    }

    #[test]
    fn rows_that_do_not_fit_make_several_dispatches() {
        let facts = Facts::GPU.with_bindings_of(8192);
        let spans = [RowSpan::contiguous(2, 512), RowSpan::contiguous(1, 512)];
        let plan = QuantizePlan::new(&facts, None, &spans, [100, 512]);
        let expected = "quantize(matrix) in 15 dispatches of up to 7 rows";
        assert_eq!(plan.to_string(), expected);
    }
}
