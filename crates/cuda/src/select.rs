//! Which kernel an activation runs.

use swiglu_core::{Clamp, DType, Function, GatedActivation, Layout, Order, Rounding};

use crate::params::Scalars;

/// How a kernel reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Vectors of 16 bytes out of rows that lie anywhere.
    Any,
    /// Rows of whole vectors of 16 bytes.
    Bytes16,
    /// Of 32, from compute capability 10.0 on.
    Bytes32,
}

impl Access {
    pub(crate) const ALL: [Self; 3] = [Self::Any, Self::Bytes16, Self::Bytes32];

    /// Outputs of one thread.
    pub(crate) const fn lanes(self, dtype: DType) -> usize {
        match self {
            Self::Any | Self::Bytes16 => 16 / dtype.size(),
            Self::Bytes32 => 32 / dtype.size(),
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::Bytes16 => "16bytes",
            Self::Bytes32 => "32bytes",
        }
    }
}

/// The kernels' functions, with their clamps and layouts: the instances of `activation.cu`.
pub(crate) const SHAPES: [&str; 9] = [
    "silu_none_concatenated",
    "silu_before_concatenated",
    "silu_after_concatenated",
    "silu_alpha_before_concatenated",
    "silu_alpha_before_interleaved",
    "gelu_none_concatenated",
    "gelu_tanh_none_concatenated",
    "fatrelu_none_concatenated",
    "situ_none_concatenated",
];

/// The instances that have a form of 32-byte accesses, in mode `Official`.
const WIDE: usize = 2;

/// The instances whose quantizing forms know their scales.
pub(crate) const QUICK: usize = 2;

/// Types with the rounding modes that differ in them: f32 rounds to itself.
pub(crate) const TYPES: [(DType, Rounding); 5] = [
    (DType::F32, Rounding::Official),
    (DType::F16, Rounding::Official),
    (DType::F16, Rounding::Eager),
    (DType::BF16, Rounding::Official),
    (DType::BF16, Rounding::Eager),
];

/// The place of an activation's kernel in [`SHAPES`]; `None` where there is none.
pub(crate) fn shape(op: &GatedActivation) -> Option<usize> {
    let function = match op.function() {
        Function::Silu { alpha: 1.0 } if op.up_offset() == 0.0 => "silu",
        Function::Silu { .. } => "silu_alpha",
        Function::Gelu => "gelu",
        Function::GeluTanh => "gelu_tanh",
        Function::FatRelu { .. } => "fatrelu",
        Function::Situ { .. } => "situ",
    };
    let clamp = match op.clamp() {
        Clamp::None => "none",
        Clamp::Before(_) => "before",
        Clamp::After(_) => "after",
    };
    let layout = match (op.layout(), op.order()) {
        (Layout::Concatenated, _) => "concatenated",
        (Layout::Interleaved, Order::GateFirst) => "interleaved",
        (Layout::Interleaved, Order::UpFirst) => return None,
    };
    let find = |f: &str| {
        let name = format!("{f}_{clamp}_{layout}");
        SHAPES.iter().position(|s| *s == name)
    };
    // The form with a slope serves a slope of 1 as well.
    find(function).or_else(|| (function == "silu").then(|| find("silu_alpha")).flatten())
}

/// The place of a type in [`TYPES`]; `None` for types that are storage only.
pub(crate) fn typed(dtype: DType, rounding: Rounding) -> Option<usize> {
    let same = |(d, r): &(DType, Rounding)| *d == dtype && (*r == rounding || dtype == DType::F32);
    TYPES.iter().position(same)
}

/// The kernel's name; `None` where there is no such instance.
pub(crate) fn name(shape: usize, typed: usize, access: Access) -> Option<String> {
    let (dtype, rounding) = TYPES[typed];
    let official = rounding == Rounding::Official;
    if access == Access::Bytes32 && !(shape < WIDE && official) {
        return None;
    }
    let mode = if official { "official" } else { "eager" };
    Some(format!(
        "act_{}_{dtype}_{mode}_{}",
        SHAPES[shape],
        access.name()
    ))
}

/// The name of the kernels that quantize as well, without the access; whether some count hits.
pub(crate) fn quant_name(shape: usize, typed: usize) -> (String, bool) {
    let (dtype, rounding) = TYPES[typed];
    let mode = match rounding {
        Rounding::Official => "official",
        Rounding::Eager => "eager",
    };
    let clamped = !SHAPES[shape].contains("_none_");
    (format!("quant_{}_{dtype}_{mode}", SHAPES[shape]), clamped)
}

/// The numbers of an activation.
pub(crate) fn scalars(op: &GatedActivation) -> Scalars {
    let limit = match op.clamp() {
        Clamp::None => 0.0,
        Clamp::Before(limit) | Clamp::After(limit) => limit.get(),
    };
    let (a, b) = match op.function() {
        Function::Silu { alpha } => (alpha, 0.0),
        Function::Gelu | Function::GeluTanh => (0.0, 0.0),
        Function::FatRelu { threshold } => (threshold, 0.0),
        Function::Situ { beta, up_bound } => (beta, up_bound.unwrap_or(0.0)),
    };
    // Adding -0 changes no value, adding +0 takes -0 to +0.
    let up_offset = if op.up_offset() == 0.0 {
        -0.0
    } else {
        op.up_offset()
    };
    Scalars {
        limit,
        up_offset,
        a,
        b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_activation_has_a_kernel() {
        for op in GatedActivation::ALL {
            assert!(shape(&op).is_some(), "{op}");
        }
        let with_offset = GatedActivation::silu_and_mul_with_clamp(1.0, 1.0, 0.5).unwrap();
        assert_eq!(shape(&with_offset), Some(3));
        assert_eq!(shape(&GatedActivation::gpt_oss()), Some(4));
        let slope_1 = GatedActivation::swigluoai_and_mul(7.0, 1.0).unwrap();
        assert_eq!(shape(&slope_1), Some(4));
        for (dtype, rounding) in TYPES {
            assert!(typed(dtype, rounding).is_some());
        }
    }
}
