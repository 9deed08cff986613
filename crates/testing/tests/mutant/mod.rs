//! The reference with a fault.

mod activation;

use swiglu_core::reference::{Reference, ReferenceWeight};
use swiglu_core::{
    ActAndMul, ActAndMulQuant, Backend, BlockScales, DType, Element, GatedActivation, GatedMatmul,
    HostBuffer, HostWeight, Matmul, QuantisedMatmul, Result, Support, Tensor, TensorMut, bf16, f16,
};

macro_rules! faults {
    ($($(#[$doc:meta])* $fault:ident),* $(,)?) => {
        /// What is wrong.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Fault {
            /// Nothing.
            None,
            $($(#[$doc])* $fault,)*
        }

        impl Fault {
            /// All but [`Fault::None`].
            pub const ALL: &'static [Self] = &[$(Self::$fault),*];
        }
    };
}

faults! {
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
    /// `Official` rounds where `Eager` does.
    OneRoundingTooMany,
    /// `Eager` rounds where `Official` does.
    OneRoundingTooFew,
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
    /// Index arithmetic wraps at 2^16, as it would at 2^32 in a larger matrix.
    IndexWraps,
    /// Subnormal results are taken to zero.
    SubnormalsFlushed,
    /// -0 becomes +0.
    ZeroLosesItsSign,
    /// What does not fit is left out in silence.
    ArgumentsUnchecked,
    /// The parts of a weight are stacked in reverse.
    PartsSwapped,
    /// The scales of a weight are taken for 1.
    ScalesIgnored,
    /// The rows of x are taken to have no gaps.
    XStrideIgnored,
    /// Sums are cut off, not rounded.
    ProductTruncates,
    /// The fused path hands its accumulators to the activation unrounded.
    FusedSkipsRounding,
    /// The fused path knows no limit.
    FusedSkipsClamp,
}

/// [`Reference`] with a fault.
#[derive(Debug)]
pub struct Mutant(pub Fault);

impl Backend for Mutant {
    type Device = ();
    type Buffer = HostBuffer;

    fn platform(&self) -> &'static str {
        "mutant"
    }
    fn description(&self) -> String {
        format!("{:?}", self.0)
    }
    fn device(&self) -> &() {
        &()
    }
    fn supports(&self, op: &GatedActivation, dtype: DType) -> Support {
        Reference.supports(op, dtype)
    }
    fn alloc(&self, bytes: usize) -> Result<HostBuffer> {
        Reference.alloc(bytes)
    }
    fn len(&self, buffer: &HostBuffer) -> usize {
        buffer.len()
    }
    fn upload(&self, buffer: &mut HostBuffer, data: &[u8]) -> Result<()> {
        Reference.upload(buffer, data)
    }
    fn download(&self, buffer: &HostBuffer, data: &mut [u8]) -> Result<()> {
        Reference.download(buffer, data)
    }
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
}

impl ActAndMul for Mutant {
    fn act_and_mul(
        &self,
        op: &GatedActivation,
        input: Tensor<'_, HostBuffer>,
        output: TensorMut<'_, HostBuffer>,
    ) -> Result<()> {
        match (self.check_act(&input, &output), self.0) {
            (Err(_), Fault::ArgumentsUnchecked) => return Ok(()),
            (checked, _) => checked?,
        };
        match input.dtype {
            DType::F32 => activation::run::<f32>(self.0, op, &input, output),
            DType::F16 => activation::run::<f16>(self.0, op, &input, output),
            _ => activation::run::<bf16>(self.0, op, &input, output),
        }
        Ok(())
    }
}

/// The elements of y one representable value nearer to zero, where the sum was rounded up.
fn truncate<T: Element>(exact: &[f32], y: &mut TensorMut<'_, HostBuffer>) {
    let layout = y.layout;
    let data = y.buffer.typed_mut::<T>();
    for t in 0..layout.rows {
        for (y, exact) in data[layout.row(t)]
            .iter_mut()
            .zip(&exact[t * layout.cols..])
        {
            if y.to_f32().abs() > exact.abs() {
                *y = T::from_bits(y.to_bits() - 1);
            }
        }
    }
}

impl Matmul for Mutant {
    type Weight = ReferenceWeight;

    fn supports_weight(&self, dtype: DType) -> Support {
        Reference.supports_weight(dtype)
    }

    fn load_weight(&self, parts: &[HostWeight<'_>]) -> Result<ReferenceWeight> {
        let mut parts = parts.to_vec();
        match self.0 {
            Fault::PartsSwapped => {
                parts.reverse();
                Reference.load_weight(&parts)
            }
            Fault::ScalesIgnored if parts.iter().all(|p| p.scales().is_some()) => {
                let rows = parts.iter().map(HostWeight::rows).sum();
                let cols = parts[0].cols();
                let data = parts
                    .iter()
                    .map(HostWeight::data)
                    .collect::<Vec<_>>()
                    .concat();
                let scales = BlockScales {
                    data: &[127],
                    dtype: DType::E8M0,
                    block: [rows, cols],
                };
                let one = HostWeight::new(rows, cols, DType::F8E4M3, &data, Some(scales))?;
                Reference.load_weight(&[one])
            }
            _ => Reference.load_weight(&parts),
        }
    }

    fn weight_shape(&self, weight: &ReferenceWeight) -> [usize; 2] {
        Reference.weight_shape(weight)
    }
    fn weight_bytes(&self, weight: &ReferenceWeight) -> usize {
        Reference.weight_bytes(weight)
    }

    fn matmul(
        &self,
        mut x: Tensor<'_, HostBuffer>,
        weight: &ReferenceWeight,
        mut y: TensorMut<'_, HostBuffer>,
    ) -> Result<()> {
        self.check_matmul(&x, weight, &y)?;
        if self.0 == Fault::XStrideIgnored {
            x.layout.stride = x.layout.cols;
        }
        if self.0 != Fault::ProductTruncates {
            return Reference.matmul(x, weight, y);
        }
        let (rows, cols) = (y.layout.rows, y.layout.cols);
        let mut exact = HostBuffer::zeroed(4 * rows * cols)?;
        let again = Tensor { ..x };
        let sums = TensorMut::contiguous(&mut exact, DType::F32, rows, cols);
        Reference.matmul(again, weight, sums)?;
        Reference.matmul(x, weight, y.reborrow())?;
        match y.dtype {
            DType::F16 => truncate::<f16>(exact.typed(), &mut y),
            DType::BF16 => truncate::<bf16>(exact.typed(), &mut y),
            _ => {}
        }
        Ok(())
    }
}

impl ActAndMulQuant for Mutant {}

impl QuantisedMatmul for Mutant {}

impl GatedMatmul for Mutant {
    fn matmul_act_and_mul(
        &self,
        op: &GatedActivation,
        x: Tensor<'_, HostBuffer>,
        weight: &ReferenceWeight,
        mut gate_up: TensorMut<'_, HostBuffer>,
        act: TensorMut<'_, HostBuffer>,
    ) -> Result<()> {
        match self.0 {
            Fault::FusedSkipsClamp => {
                let op = activation::unclamped(op);
                Reference.matmul_act_and_mul(&op, x, weight, gate_up, act)
            }
            Fault::FusedSkipsRounding => {
                let (rows, d) = (act.layout.rows, act.layout.cols);
                let mut sums = HostBuffer::zeroed(8 * rows * d)?;
                let mut unrounded = TensorMut::contiguous(&mut sums, DType::F32, rows, 2 * d);
                Reference.matmul(x, weight, unrounded.reborrow())?;
                let mut wide = HostBuffer::zeroed(4 * rows * d)?;
                let out = TensorMut::contiguous(&mut wide, DType::F32, rows, d);
                Reference.act_and_mul(op, unrounded.as_ref(), out)?;
                match act.dtype {
                    DType::F16 => activation::store::<f16>(wide.typed(), act),
                    DType::BF16 => activation::store::<bf16>(wide.typed(), act),
                    _ => activation::store::<f32>(wide.typed(), act),
                }
                Ok(())
            }
            _ => {
                self.matmul(x, weight, gate_up.reborrow())?;
                self.act_and_mul(op, gate_up.as_ref(), act)
            }
        }
    }
}
