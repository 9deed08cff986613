use swiglu_core::{Clamp, Function, GatedActivation, Rounding};

/// An activation as the kernels here know it: they compute all that this can hold.
#[derive(Clone, Copy)]
pub(crate) struct KnownActivation {
    pub(crate) op: GatedActivation,
    pub(crate) function: KnownFunction,
    /// Whether what is between is rounded to the elements' type too.
    pub(crate) eager: bool,
}

#[derive(Clone, Copy)]
pub(crate) enum KnownFunction {
    /// silu with a slope, clamps around it, and something added to the up half.
    Silu {
        alpha: f32,
        clamp: SiluClamp,
        up_offset: f32,
    },
    FatRelu {
        threshold: f32,
    },
    Gelu,
    GeluTanh,
    Situ {
        beta: f32,
        up_bound: Option<f32>,
    },
}

/// The limit of gates and ups, and whether a gate is clamped before silu or after.
#[derive(Clone, Copy)]
pub(crate) enum SiluClamp {
    None,
    Before(f32),
    After(f32),
}

impl KnownActivation {
    /// The only place where core's description is read. None for what a later core may describe and
    /// these kernels do not compute.
    pub(crate) const fn new(op: &GatedActivation) -> Option<Self> {
        let clamp = match op.clamp() {
            Clamp::None => SiluClamp::None,
            Clamp::Before(limit) => SiluClamp::Before(limit.get()),
            Clamp::After(limit) => SiluClamp::After(limit.get()),
            _ => return None,
        };
        let up_offset = op.up_offset();
        let is_plain = matches!(clamp, SiluClamp::None) && up_offset == 0.0;
        let function = match op.function() {
            Function::Silu { alpha } => KnownFunction::Silu {
                alpha,
                clamp,
                up_offset,
            },
            Function::FatRelu { threshold } if is_plain => KnownFunction::FatRelu { threshold },
            Function::Gelu if is_plain => KnownFunction::Gelu,
            Function::GeluTanh if is_plain => KnownFunction::GeluTanh,
            Function::Situ { beta, up_bound } if is_plain => KnownFunction::Situ { beta, up_bound },
            _ => return None,
        };
        Some(Self {
            op: *op,
            function,
            eager: matches!(op.rounding(), Rounding::Eager),
        })
    }
}
