//! Deliberately wrong backends, so that the suite is seen to catch what it is there for.
//!
//! A [`Mutant`] is a backend with one [`Fault`]: the calls of the right backend with another
//! operation, other places, or inputs and outputs that are changed on the host. Its views are whole
//! buffers of the right backend, so that they can be changed there.
//! [`crate::mutants!`] makes a test of all of them.

mod activation;
mod caught;
mod experts;
mod fp4;
mod matmuls;
mod quant;

use std::fmt;
use std::sync::Arc;

use swiglu_core::{
    Accuracy, Backend, Clamp, Element, Function, GateUp, GatedActivation, Operator, Request,
    Result, Shape, Support, Tensor, TensorMut,
};

pub use caught::{CAUGHT, assert_caught, failing_without_a_fault, missed};

/// What a backend must do to have a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// [`swiglu_core::ActAndMul`].
    Activation,
    /// [`swiglu_core::Matmul`], with an activation behind it too.
    Matmul,
    /// [`swiglu_core::Quantize`].
    Quantization,
    /// [`swiglu_core::Router`] and [`swiglu_core::GroupedMatmul`].
    Experts,
    /// Both kinds of matmuls by FP4 weights.
    Fp4,
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Activation => "activations",
            Self::Matmul => "matmuls",
            Self::Quantization => "quantization",
            Self::Experts => "routed experts",
            Self::Fp4 => "FP4 weights",
        })
    }
}

macro_rules! faults {
    ($($capability:ident { $($(#[$doc:meta])* $fault:ident),* $(,)? })*) => {
        /// What is wrong.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Fault {
            /// Nothing.
            None,
            $($($(#[$doc])* $fault,)*)*
        }

        impl Fault {
            /// All but [`Fault::None`].
            pub const ALL: &'static [Self] = &[$($(Self::$fault),*),*];

            /// What only a backend can do that has it.
            pub const fn capability(self) -> Capability {
                match self {
                    Self::None => Capability::Activation,
                    $($(Self::$fault)|* => Capability::$capability,)*
                }
            }
        }
    };
}

faults! {
Activation {
    /// The limit is ignored.
    NoClamp,
    /// min(silu(gate), L) in place of silu(min(gate, L)).
    ClampAfter,
    /// The gate is clamped from below as well.
    GateClampedOnBothSides,
    /// The up half is not clamped from below.
    UpClampedAboveOnly,
    /// The clamp takes a NaN to the limit, as `f32::min` does.
    NanSwallowed,
    /// Interleaved rows are read as concatenated ones and the other way round.
    LayoutsMixedUp,
    /// Gate and up change places.
    HalvesSwapped,
    /// The last element of an odd d is not written.
    TailNotWritten,
    /// What is left behind whole vectors of 8 begins one element late.
    TailBeginsLate,
    /// What is left behind whole vectors of 8 is read one element early.
    TailReadsItsNeighbour,
    /// `Official` rounds where `Eager` does.
    OneRoundingTooMany,
    /// `Eager` rounds where `Official` does.
    OneRoundingTooFew,
    /// Results are rounded to three more bits first, and then again.
    RoundedTwice,
    /// silu(gate) is flushed to zero before it meets an up half that would lift it.
    ExpUnderflows,
    /// Nothing is added to up.
    BetaIgnored,
    /// The slope is 1.
    AlphaIgnored,
    /// Input rows are taken to have no gaps.
    InputStrideIgnored,
    /// Output rows are taken to have no gaps.
    OutputStrideIgnored,
    /// The input is taken to start with its buffer.
    InputOffsetIgnored,
    /// The output is taken to start with its buffer.
    OutputOffsetIgnored,
    /// One element behind each row is written, also behind the last.
    WritesPastTheRow,
    /// An element is written where there are no rows.
    WritesForNoRows,
    /// The input's index arithmetic wraps at 2^16, as it would at 2^32 in a larger matrix.
    InputIndexWraps,
    /// The output's index arithmetic wraps at 2^16.
    OutputIndexWraps,
    /// Subnormal results are taken to zero.
    SubnormalsFlushed,
    /// -0 becomes +0.
    ZeroLosesItsSign,
    /// A NaN is written with a payload.
    NanIsNotCanonical,
    /// Gate and up change places where they are two matrices.
    SplitHalvesSwapped,
    /// The ups are taken to lie as far apart as the gates.
    SplitUpStrideIsTheGates,
    /// Gates and ups in two matrices are taken to start with their buffers.
    SplitOffsetsIgnored,
    /// What does not fit is left out in silence.
    ArgumentsUnchecked,
}
Matmul {
    /// The parts of a weight are stacked in reverse.
    PartsSwapped,
    /// The scales of a weight are taken for 1.
    ScalesIgnored,
    /// The rows of x are taken to have no gaps.
    XStrideIgnored,
    /// Sums are cut off, not rounded.
    MatmulTruncates,
    /// The fused path hands its accumulators to the activation unrounded.
    FusedSkipsRounding,
    /// The fused path knows no limit.
    FusedSkipsClamp,
}
Quantization {
    /// The fused quantization knows no limit.
    QuantSkipsClamp,
    /// y is rounded before the quantization where it should not be, and not where it should.
    MaterializeReversed,
    /// The least amax is that of nobody.
    FloorIgnored,
    /// A NaN does not reach its group's scale.
    NanMissesTheScale,
    /// Codes are y · (1/scale).
    QuotientByReciprocal,
    /// The largest code becomes a NaN.
    SaturatesToNan,
    /// A short last group takes the scale of the one before it.
    LastGroupSharesItsScale,
    /// Column-major scales are written row-major.
    ScaleOrderIgnored,
    /// Bytes of packed words behind the last group are left as they were.
    PackedPaddingLeft,
    /// Rows that are not in use are computed all the same.
    CountsIgnored,
    /// Route weights are taken for 1.
    RouteIgnored,
    /// The route weight multiplies what has been rounded, and is rounded again.
    RouteAfterRounding,
    /// Counters are set where they should be added to.
    HitsOverwritten,
    /// Codes are widened without their scales.
    WidenedWithoutScales,
    /// Gate and up change places where they are two matrices.
    QuantSplitHalvesSwapped,
    /// The ups are taken to lie as far apart as the gates.
    QuantSplitUpStrideIsTheGates,
    /// A quantization that does not fit is left out in silence.
    QuantArgumentsUnchecked,
}
Experts {
    /// The experts chosen are those with the greatest scores.
    BiasIgnored,
    /// Weights are of scores with their bias.
    BiasInTheWeights,
    /// Tokens of images choose as all others do.
    ImageBiasIgnored,
    /// The scale of the weights is taken for 1.
    RouteScaleIgnored,
    /// Weights are not divided by their sum.
    NormalizeIgnored,
    /// Nothing is added to the sum of the scores: 0 is divided by 0.
    EpsilonMissing,
    /// Experts that a table chose have equal weights.
    UniformHashWeights,
    /// A token outside of the vocabulary is taken for the nearest one.
    TokenClamped,
    /// Rows of padding have experts.
    PaddingRouted,
    /// Logits are rounded to bf16.
    LogitsRounded,
    /// The score is 0 below logits of -16.6, where log(1 + exp(l)) is.
    SoftplusUnstable,
    /// A NaN among the logits is hidden.
    NanHidden,
    /// Of equal scores the higher expert is chosen.
    TiesToTheHigher,
    /// The experts' activation knows no limit.
    ExpertsSkipClamp,
    /// Gate and up of the experts change places.
    ExpertHalvesSwapped,
    /// The route's weight multiplies what the expert gives.
    WeightAfterDown,
    /// The shared expert's output is not added.
    SharedLeftOut,
    /// The sum of the routes is rounded before the shared expert's output is added.
    RoutesRounded,
}
Fp4 {
    /// Of two codes in a byte the high one is read first.
    HighNibbleFirst,
    /// FP4 weights' scales are taken for 1.
    Fp4ScalesIgnored,
    /// Each group of 32 has the scale of the next one.
    Fp4GroupsShifted,
}
}

/// A backend with a fault.
#[derive(Debug)]
pub struct Mutant<B> {
    inner: Arc<B>,
    fault: Fault,
}

impl<B> Mutant<B> {
    /// The backend with this fault.
    pub const fn new(inner: Arc<B>, fault: Fault) -> Self {
        Self { inner, fault }
    }
}

impl<B: Backend> Mutant<B> {
    /// What a buffer holds, whole elements of it.
    fn read<T: Element>(&self, buffer: &B::Buffer) -> Result<Vec<T>> {
        let mut data = vec![T::default(); self.inner.len(buffer) / size_of::<T>()];
        let bytes = bytemuck::cast_slice_mut(&mut data);
        self.inner.download(buffer, bytes)?;
        Ok(data)
    }

    /// Writes into a buffer.
    fn write<T: Element>(&self, buffer: &mut B::Buffer, data: &[T]) -> Result<()> {
        self.inner.upload(buffer, bytemuck::cast_slice(data))
    }

    /// A buffer of these elements.
    fn buffer<T: Element>(&self, data: &[T]) -> Result<B::Buffer> {
        let mut buffer = self.inner.alloc(size_of_val(data))?;
        self.write(&mut buffer, data)?;
        Ok(buffer)
    }
}

/// The same matrix for the right backend.
fn inner<'a, B: Backend>(t: &Tensor<'a, Mutant<B>>) -> Tensor<'a, B> {
    Tensor::new(B::view(t.view), t.float, t.layout)
}

/// As [`inner`], to be written.
fn inner_mut<'a, B: Backend>(t: TensorMut<'a, Mutant<B>>) -> TensorMut<'a, B> {
    TensorMut::new(B::view_mut(t.view), t.float, t.layout)
}

/// As [`inner`], of an activation's input.
fn inner_input<'a, B: Backend>(input: &GateUp<'a, Mutant<B>>) -> GateUp<'a, B> {
    match input {
        GateUp::Merged(input) => GateUp::Merged(inner(input)),
        GateUp::Split { gate, up } => GateUp::Split {
            gate: inner(gate),
            up: inner(up),
        },
    }
}

/// What the faults of two matrices make of them.
fn split_wrong<'a, B: Backend>(
    fault: Fault,
    input: GateUp<'a, Mutant<B>>,
) -> GateUp<'a, Mutant<B>> {
    let GateUp::Split { mut gate, mut up } = input else {
        return input;
    };
    match fault {
        Fault::SplitHalvesSwapped | Fault::QuantSplitHalvesSwapped => {
            std::mem::swap(&mut gate, &mut up);
        }
        Fault::SplitUpStrideIsTheGates | Fault::QuantSplitUpStrideIsTheGates => {
            up.layout.stride = gate.layout.stride;
        }
        Fault::SplitOffsetsIgnored => (gate.layout.offset, up.layout.offset) = (0, 0),
        _ => {}
    }
    GateUp::Split { gate, up }
}

impl<B: Backend> Backend for Mutant<B> {
    type Buffer = B::Buffer;
    type View<'a> = &'a B::Buffer;
    type ViewMut<'a> = &'a mut B::Buffer;

    fn platform(&self) -> &'static str {
        self.inner.platform()
    }
    fn description(&self) -> String {
        format!("{} with {:?}", self.inner.description(), self.fault)
    }
    fn accuracy(&self) -> Accuracy {
        self.inner.accuracy()
    }
    fn supports(&self, request: &Request) -> Support {
        self.inner.supports(request)
    }
    fn plan(&self, request: &Request, shape: &Shape) -> Option<String> {
        self.inner.plan(request, shape)
    }
    fn scratch(&self, request: &Request, shape: &Shape) -> usize {
        self.inner.scratch(request, shape)
    }
    fn alloc(&self, bytes: usize) -> Result<B::Buffer> {
        self.inner.alloc(bytes)
    }
    fn len(&self, buffer: &B::Buffer) -> usize {
        self.inner.len(buffer)
    }
    fn upload(&self, buffer: &mut B::Buffer, data: &[u8]) -> Result<()> {
        self.inner.upload(buffer, data)
    }
    fn download(&self, buffer: &B::Buffer, data: &mut [u8]) -> Result<()> {
        self.inner.download(buffer, data)
    }
    fn read(&self, view: &B::Buffer, data: &mut [u8]) -> Result<()> {
        self.inner.download(view, data)
    }
    fn write(&self, view: &mut B::Buffer, data: &[u8]) -> Result<()> {
        self.inner.upload(view, data)
    }
    fn synchronize(&self) -> Result<()> {
        self.inner.synchronize()
    }
    fn view(buffer: &B::Buffer) -> &B::Buffer {
        buffer
    }
    fn view_mut(buffer: &mut B::Buffer) -> &mut B::Buffer {
        buffer
    }
    fn as_view<'a>(view: &'a &mut B::Buffer) -> &'a B::Buffer {
        view
    }
    fn reborrow<'a>(view: &'a mut &mut B::Buffer) -> &'a mut B::Buffer {
        view
    }
    fn view_len(view: &&B::Buffer) -> usize {
        B::view_len(&B::view(view))
    }
}

/// The operation without its limit.
fn unclamped(op: &GatedActivation) -> Result<GatedActivation> {
    let without = match (op.operator(), op.function()) {
        (Operator::SwigluOaiAndMul, Function::Silu { alpha }) => {
            GatedActivation::swigluoai_and_mul(f32::MAX, alpha)?
        }
        (_, Function::Silu { alpha }) if op.clamp() != Clamp::None => {
            GatedActivation::silu_and_mul_with_clamp(f32::MAX, alpha, op.up_offset())?
        }
        _ => *op,
    };
    Ok(without.with_rounding(op.rounding()))
}
