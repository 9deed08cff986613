//! The forms of an activation that kernels are compiled for, out of core's table of the family.
//!
//! `cargo xtask kernels` includes this file and writes `kernels/activation/instances.cuh` from it,
//! so that what is compiled and what is looked up are one list.

use swiglu_core::{Clamp, Function, GatedActivation, Layout, Order};

/// Where a form clamps: core's [`Clamp`] without its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClampPlace {
    /// No clamp.
    None,
    /// Before the function.
    Before,
    /// After the function.
    After,
}

/// What of an activation is a template parameter of its kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// The function's name: core's, or `silu_alpha` for silu with a slope or an offset of up.
    pub function: &'static str,
    /// Where it clamps.
    pub clamp: ClampPlace,
    /// Whether gate and up are alternating elements of a row.
    pub interleaved: bool,
}

impl Form {
    /// The form for halves that lie in one matrix; none where no kernel has that layout.
    pub fn merged(op: &GatedActivation) -> Option<Self> {
        match (op.layout(), op.order()) {
            (Layout::Concatenated, _) => Self::new(op, false),
            (Layout::Interleaved, Order::GateFirst) => Self::new(op, true),
            (Layout::Interleaved, Order::UpFirst) => None,
        }
    }

    /// The form for halves that lie in a matrix each.
    pub fn split(op: &GatedActivation) -> Option<Self> {
        Self::new(op, false)
    }

    fn new(op: &GatedActivation, interleaved: bool) -> Option<Self> {
        let clamp = match op.clamp() {
            Clamp::None => ClampPlace::None,
            Clamp::Before(_) => ClampPlace::Before,
            Clamp::After(_) => ClampPlace::After,
            // A clamp of a newer core: there is no kernel of that form.
            _ => return None,
        };
        // Plain silu adds no offset, and its Eager form is PyTorch's.
        let plain = op.function() == Function::Silu { alpha: 1.0 } && op.up_offset() == 0.0;
        let function = match op.function().name() {
            "silu" if !plain => "silu_alpha",
            name => name,
        };
        Some(Self {
            function,
            clamp,
            interleaved,
        })
    }

    /// The name in the names of kernels.
    pub fn name(&self) -> String {
        let clamp = match self.clamp {
            ClampPlace::None => "none",
            ClampPlace::Before => "before",
            ClampPlace::After => "after",
        };
        let layout = if self.interleaved {
            "interleaved"
        } else {
            "concatenated"
        };
        format!("{}_{clamp}_{layout}", self.function)
    }

    /// Whether anything is clamped.
    pub fn is_clamped(&self) -> bool {
        self.clamp != ClampPlace::None
    }

    /// Whether DeepSeek's models run it, for which kernels are tuned besides: with 32-byte
    /// accesses, and with quantization to a known format of scales.
    pub fn is_tuned(&self) -> bool {
        self.function == "silu" && self.clamp != ClampPlace::After && !self.interleaved
    }
}

/// The forms of the whole family, each once. A form's kernels have its place.
#[derive(Clone, Debug)]
pub struct Forms(pub Vec<Form>);

impl Forms {
    /// Those that core's table asks for.
    pub fn of_family() -> Self {
        let mut forms = Vec::new();
        for op in &GatedActivation::ALL {
            for form in [Form::merged(op), Form::split(op)].into_iter().flatten() {
                if !forms.contains(&form) {
                    forms.push(form);
                }
            }
        }
        Self(forms)
    }

    /// The place of a form; none where it was not compiled.
    pub fn place(&self, form: Option<Form>) -> Option<usize> {
        form.and_then(|form| self.0.iter().position(|f| *f == form))
    }

    /// Whether an activation runs, whichever way its halves lie.
    pub fn run(&self, op: &GatedActivation) -> bool {
        let there = |form| self.place(form).is_some();
        there(Form::merged(op)) && there(Form::split(op))
    }
}
