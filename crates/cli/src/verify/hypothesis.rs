use std::fmt;

use swiglu::{
    Clamp, Element, Float, Function, GatedActivation, Layout, Limit, Order, Result, Rounding,
    reference,
};

/// What an implementation may have got wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// The limit is ignored.
    NoClamp,
    /// The clamp is on the other side of the function.
    ClampMoved,
    /// The gate has a floor of -L as well.
    GateClampedOnBothSides,
    /// Interleaved rows taken for concatenated ones, or the other way round.
    LayoutsMixedUp,
    /// The gate taken for up and up for the gate.
    HalvesSwapped,
    /// A NaN gate becomes L, as with `fminf`, and an up of NaN the value here, as with
    /// `fmaxf(fminf(..), ..)` or its reverse, or stays.
    NanSwallowed(NanUp),
}

/// What becomes of an up half of NaN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NanUp {
    Limit,
    MinusLimit,
    Stays,
}

impl Fault {
    const ALL: [Self; 9] = [
        Self::None,
        Self::NoClamp,
        Self::ClampMoved,
        Self::GateClampedOnBothSides,
        Self::LayoutsMixedUp,
        Self::HalvesSwapped,
        Self::NanSwallowed(NanUp::Limit),
        Self::NanSwallowed(NanUp::MinusLimit),
        Self::NanSwallowed(NanUp::Stays),
    ];
}

/// One way in which an output may have come about: the operation that was asked for in one of the
/// rounding modes, with at most one fault.
#[derive(Clone, Copy, Debug)]
pub struct Hypothesis {
    pub fault: Fault,
    asked: GatedActivation,
    /// What is evaluated: the operation asked for, or the one that the fault makes of it.
    runs: GatedActivation,
}

impl Hypothesis {
    /// Every hypothesis on an output in this type that applies to the operation, the one that it
    /// is right first. In f32 nothing is rounded between the steps, so that the two modes are one.
    ///
    /// # Errors
    /// None for an operation that was built by its constructors.
    pub fn all(asked: &GatedActivation, float: Float) -> Result<Vec<Self>> {
        let mut roundings = vec![asked.rounding()];
        if float != Float::F32 {
            roundings.push(match asked.rounding() {
                Rounding::Official => Rounding::Eager,
                Rounding::Eager => Rounding::Official,
            });
        }
        let mut all = Vec::new();
        for fault in Fault::ALL {
            for rounding in &roundings {
                all.extend(Self::new(fault, asked.with_rounding(*rounding))?);
            }
        }
        Ok(all)
    }

    /// The hypothesis, if the fault can befall the operation.
    fn new(fault: Fault, asked: GatedActivation) -> Result<Option<Self>> {
        let runs = match (fault, asked.limit()) {
            (Fault::None | Fault::LayoutsMixedUp | Fault::HalvesSwapped, _) => asked,
            (_, None) => return Ok(None),
            (Fault::GateClampedOnBothSides | Fault::NanSwallowed(_), Some(_)) => asked,
            (Fault::NoClamp, Some(_)) => unclamped(&asked, asked.up_offset())?,
            (Fault::ClampMoved, Some(limit)) => match asked.clamp() {
                Clamp::After(_) => GatedActivation::silu_and_mul_with_clamp(limit.get(), 1.0, 0.0)?,
                _ if is_plain(&asked) => GatedActivation::swiglustep_and_mul(limit.get())?,
                _ => unclamped(&asked, 0.0)?,
            },
        };
        let runs = runs.with_rounding(asked.rounding());
        Ok(Some(Self { fault, asked, runs }))
    }

    /// The rounding mode.
    pub const fn rounding(&self) -> Rounding {
        self.asked.rounding()
    }

    /// Output `j` of a row of 2d elements.
    pub fn predict<T: Element>(&self, row: &[T], d: usize, j: usize) -> T {
        let (g, u) = self.positions(d, j);
        let (gate, up) = (row[g], row[u]);
        let limit = self.asked.limit().map_or(f32::INFINITY, Limit::get);
        match self.fault {
            Fault::None | Fault::LayoutsMixedUp | Fault::HalvesSwapped => {
                reference::gated(&self.runs, gate, up)
            }
            Fault::NoClamp => self.without_clamp(gate, up),
            Fault::ClampMoved => match self.asked.clamp() {
                Clamp::Before(limit) if !is_plain(&self.asked) => {
                    self.clamped_after(gate, up, limit.get())
                }
                _ => reference::gated(&self.runs, gate, up),
            },
            Fault::GateClampedOnBothSides if gate.to_f32() < -limit => self.of(-limit, up.to_f32()),
            Fault::GateClampedOnBothSides => reference::gated(&self.runs, gate, up),
            Fault::NanSwallowed(nan_up) => {
                let replace = |x: T, by: f32| if x.is_nan() { by } else { x.to_f32() };
                let of_up = match nan_up {
                    NanUp::Limit => limit,
                    NanUp::MinusLimit => -limit,
                    NanUp::Stays => f32::NAN,
                };
                self.of(replace(gate, limit), replace(up, of_up))
            }
        }
    }

    /// The places of gate and up in a row, with the faults that concern them.
    pub fn positions(&self, d: usize, j: usize) -> (usize, usize) {
        let (gate, up) = self.asked.positions(d, j);
        match self.fault {
            Fault::HalvesSwapped => (up, gate),
            Fault::LayoutsMixedUp => {
                let (first, second) = match self.asked.layout() {
                    Layout::Concatenated => (2 * j, 2 * j + 1),
                    Layout::Interleaved => (j, d + j),
                };
                match self.asked.order() {
                    Order::GateFirst => (first, second),
                    Order::UpFirst => (second, first),
                }
            }
            _ => (gate, up),
        }
    }
}

/// silu(gate) · up but for a clamp, with no slope or offset of its own.
fn is_plain(op: &GatedActivation) -> bool {
    op.function() == (Function::Silu { alpha: 1.0 }) && op.up_offset() == 0.0
}

/// The operation without its clamp; with a slope or an offset, one whose limit no finite value
/// exceeds.
fn unclamped(op: &GatedActivation, offset: f32) -> Result<GatedActivation> {
    match op.function() {
        Function::Silu { alpha } if !is_plain(op) => {
            GatedActivation::silu_and_mul_with_clamp(f32::MAX, alpha, offset)
        }
        _ => Ok(GatedActivation::silu_and_mul()),
    }
}

impl Hypothesis {
    /// The operation on values that the type may not have, as the limit often is: `Eager` rounds
    /// them, `Official` computes on.
    fn of<T: Element>(&self, gate: f32, up: f32) -> T {
        let (g, u) = (T::from_f32(gate), T::from_f32(up));
        let exact = |x: f32, t: T| x.is_nan() || t.to_f32() == x;
        if self.rounding() == Rounding::Eager || (exact(gate, g) && exact(up, u)) {
            return reference::gated(&self.runs, g, u);
        }
        T::from_f32(reference::gated(&self.runs, gate, up))
    }

    /// The operation without its clamp, also for infinite values, which are beyond every limit.
    fn without_clamp<T: Element>(&self, gate: T, up: T) -> T {
        if gate.to_f32().is_infinite() || up.to_f32().is_infinite() {
            // Only the signs count, and those do not depend on the slope.
            let up = T::from_f32(up.to_f32() + self.asked.up_offset());
            return reference::gated(&GatedActivation::silu_and_mul(), gate, up);
        }
        reference::gated(&self.runs, gate, up)
    }

    /// min(silu(alpha; gate), L) · (clamp(up, ±L) + beta), for which there is no operator: from
    /// the function alone, `runs` with an up of 1.
    fn clamped_after<T: Element>(&self, gate: T, up: T, limit: f32) -> T {
        let above = |x: f32| if x > limit { limit } else { x };
        let up = if up.to_f32() < -limit {
            -limit
        } else {
            above(up.to_f32())
        } + self.asked.up_offset();
        let round = |x: f32| T::from_f32(x).to_f32();
        let (f, up) = match self.rounding() {
            Rounding::Official => (above(reference::gated(&self.runs, gate.to_f32(), 1.0)), up),
            Rounding::Eager => {
                let f = reference::gated(&self.runs, gate, T::from_f32(1.0));
                (round(above(f.to_f32())), round(up))
            }
        };
        T::from_f64(f64::from(f) * f64::from(up))
    }
}

impl fmt::Display for Hypothesis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rounding = match self.rounding() {
            Rounding::Official => "official",
            Rounding::Eager => "eager",
        };
        let fault = match (self.fault, self.asked.clamp(), self.asked.layout()) {
            (Fault::None, ..) => return f.write_str(rounding),
            (Fault::NoClamp, ..) => "no clamp",
            (Fault::ClampMoved, Clamp::After(_), _) => "clamp before the activation",
            (Fault::ClampMoved, ..) => "clamp after the activation",
            (Fault::GateClampedOnBothSides, ..) => "gate clamped on both sides",
            (Fault::LayoutsMixedUp, _, Layout::Concatenated) => "read as interleaved",
            (Fault::LayoutsMixedUp, _, Layout::Interleaved) => "read as concatenated",
            (Fault::HalvesSwapped, ..) => "halves swapped",
            (Fault::NanSwallowed(NanUp::Limit), ..) => "NaN swallowed (becomes L)",
            (Fault::NanSwallowed(NanUp::MinusLimit), ..) => "NaN swallowed (gate L, up -L)",
            (Fault::NanSwallowed(NanUp::Stays), ..) => "NaN swallowed (gate L, up stays)",
        };
        write!(f, "{fault}, {rounding}")
    }
}
