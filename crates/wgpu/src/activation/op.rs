//! An activation as the shaders take it.

use swiglu_core::{Clamp, Error, Float, Function, GatedActivation, Result, Rounding, bf16, f16};

use crate::error::PLATFORM;
use crate::launch::Op;
use crate::pipelines::FUNCTIONS;

/// The largest |alpha · gate| for which exp(-|alpha · gate|) is far from subnormal.
const QUICK_RANGE: f32 = 80.0;

/// Whether no parameter of silu takes an intermediate of a fast path out of f32, or to where its
/// precision ends, in a way that the path does not see in its result.
pub(super) fn keeps_in_range(op: &Op, float: Float) -> bool {
    // No sum with an up half that this is added to overflows, and none is of subnormal numbers
    // alone; in f16 a result is 0 where its exponential or f(g) underflows.
    let largest = match float {
        Float::F16 => 65536.0,
        Float::F32 | Float::BF16 => 2.0_f32.powi(102),
    };
    let up_add = op.up_add.abs();
    (2.0_f32.powi(-100)..=2.0_f32.powi(14)).contains(&op.first)
        && op.limit >= 2.0_f32.powi(-100)
        && (up_add == 0.0 || (2.0_f32.powi(-63)..=largest).contains(&up_add))
}

/// What, added to a gate's magnitude, sets the bit above it where the gate is NaN or too large
/// for the quick path; for both elements of a pair at once.
fn gate_guard(alpha: f32, float: Float) -> u32 {
    let largest = QUICK_RANGE / alpha;
    let pair = |bits: u32| (0x7fff - bits) * 0x1_0001;
    match float {
        // alpha · gate must be exact in two parts: with 24 bits of gate only where alpha is 1.
        Float::F32 if alpha != 1.0 => 0,
        Float::F32 => 0x7fff_ffff - largest.to_bits(),
        Float::F16 => {
            let largest = f16::from_f32(largest.min(65504.0));
            pair(u32::from(largest.to_bits().min(0x7bff)))
        }
        Float::BF16 => {
            let largest = bf16::from_f32(largest.min(1e38));
            pair(u32::from(largest.to_bits().min(0x7f7f)))
        }
    }
}

/// Where the clamp is, and its limit.
fn clamp(op: &GatedActivation) -> Result<(u32, f32)> {
    match op.clamp() {
        Clamp::None => Ok((0, f32::MAX)),
        Clamp::Before(limit) => Ok((1, limit.get())),
        Clamp::After(limit) => Ok((2, limit.get())),
        _ => Err(Error::unsupported(
            PLATFORM,
            op,
            "the place of its clamp is not known to this backend",
        )),
    }
}

/// Whether the shaders have the function and the clamp: the family may have grown since.
///
/// # Errors
/// [`Error::Unsupported`], if not.
pub(crate) fn check_known(op: &GatedActivation) -> Result<()> {
    clamp(op)?;
    if op.function().id() < FUNCTIONS {
        return Ok(());
    }
    let reason = "its function is not known to this backend";
    Err(Error::unsupported(PLATFORM, op, reason))
}

impl Op {
    /// The shaders' number for silu.
    pub(crate) const SILU: u32 = Function::Silu { alpha: 1.0 }.id();

    /// What a call on elements of this type tells of an activation.
    ///
    /// # Errors
    /// As [`check_known`].
    pub(crate) fn of(op: &GatedActivation, float: Float) -> Result<Self> {
        check_known(op)?;
        let (clamp_place, limit) = clamp(op)?;
        let function = op.function();
        let [first, second] = function.scalars();
        let mut taken = Self {
            function: function.id(),
            clamp_place,
            eager: u32::from(op.rounding() == Rounding::Eager),
            limit,
            first,
            second,
            up_add: op.up_offset(),
            gate_guard: 0,
        };
        if let Function::Silu { alpha } = function
            && keeps_in_range(&taken, float)
        {
            taken.gate_guard = gate_guard(alpha, float);
        }
        Ok(taken)
    }

    pub(crate) const fn is_silu(&self) -> bool {
        self.function == Self::SILU
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quick_path_ends_where_the_exponential_does() {
        // A gate of 80 stays below the bit above the magnitude, the next one reaches it.
        let guard = gate_guard(1.0, Float::F32);
        assert_eq!((80.0_f32.to_bits() + guard) >> 31, 0);
        assert_eq!((80.0_f32.next_up().to_bits() + guard) >> 31, 1);
        assert_eq!(gate_guard(1.702, Float::F32), 0);
        for (float, bits, infinite) in [
            (Float::F16, f16::from_f32(47.0).to_bits(), 0x7c00),
            (Float::BF16, bf16::from_f32(47.0).to_bits(), 0x7f80),
        ] {
            let guard = gate_guard(1.702, float) & 0xffff;
            assert_eq!((u32::from(bits) + guard) >> 15, 0, "{float}");
            assert_eq!((infinite + guard) >> 15, 1, "{float}");
        }
    }

    #[test]
    fn parameters_that_leave_the_range_have_no_fast_path() {
        let guard = |limit, alpha, beta, float| {
            let op = GatedActivation::silu_and_mul_with_clamp(limit, alpha, beta).unwrap();
            let op = Op::of(&op, float).unwrap();
            assert_eq!(op.gate_guard != 0, keeps_in_range(&op, float));
            op.gate_guard
        };
        for (float, largest) in [
            (Float::F16, 65536.0),
            (Float::BF16, 1e30),
            (Float::F32, 1e30),
        ] {
            assert_ne!(guard(10.0, 1.0, largest, float), 0, "{float}");
            assert_ne!(guard(10.0, 1.0, -1.0, float), 0, "{float}");
            assert_eq!(guard(10.0, 1.0, 1e31, float), 0, "{float}");
            assert_eq!(guard(10.0, 1.0, -3e38, float), 0, "{float}");
            assert_eq!(guard(10.0, 1.0, 1e-39, float), 0, "{float}");
            assert_eq!(guard(1e-39, 1.0, 0.0, float), 0, "{float}");
            assert_eq!(guard(10.0, 6e-37, 0.0, float), 0, "{float}");
            assert_eq!(guard(10.0, 1e30, 0.0, float), 0, "{float}");
        }
    }

    #[test]
    fn an_activation_is_told_by_the_table_of_the_family() {
        let op = Op::of(&GatedActivation::kimi_k3(), Float::BF16).unwrap();
        assert_eq!((op.function, op.first, op.second), (5, 4.0, 25.0));
        assert!(!op.is_silu() && op.gate_guard == 0);
        let op = Op::of(&GatedActivation::gelu_quick_and_mul(), Float::BF16).unwrap();
        assert!(op.is_silu() && op.first == 1.702 && op.limit == f32::MAX);
    }
}
