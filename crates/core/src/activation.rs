use std::fmt;

use crate::{Error, Result};

mod constructors;
mod functions;
mod limit;
mod parameters;

pub use functions::{Function, Operator};
pub use limit::Limit;
pub use parameters::{Parameter, Parameters};

/// Where the limit applies. Without one there is no clamp, not a large limit.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Clamp {
    /// No clamp.
    None,
    /// min(gate, L) before the function, and clamp(up, -L, L).
    Before(Limit),
    /// min(function(gate), L), and clamp(up, -L, L).
    After(Limit),
}

/// Which half of a row comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    /// gate, then up.
    GateFirst,
    /// up, then gate.
    UpFirst,
}

/// How the two halves share a row of 2d elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// d elements of one half, then d of the other.
    Concatenated,
    /// Alternating elements.
    Interleaved,
}

/// Where results are rounded to the storage type (R: to nearest, ties to even). Arithmetic between
/// is f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Rounding {
    /// R(f(gate) · (up + beta)): one rounding, as DeepSeek's own `Expert.forward`.
    #[default]
    Official,
    /// R(R(f(R(gate))) · R(up + beta)), with gate and up clamped: as PyTorch eager and vLLM's CUDA
    /// kernels.
    Eager,
}

/// A gated activation: takes rows of 2d elements, a gate half and an up half, to rows of d.
///
/// With the clamp before the function, as in DeepSeek-V4,
///
/// ```text
/// g = min(gate, L)
/// u = clamp(up, -L, L)
/// y = f(g) · (u + beta)
/// ```
///
/// A value of this type is valid by construction: a limit is finite and positive, the other
/// parameters are finite. The constructors carry vLLM's operator names and the models' names.
///
/// ```
/// use swiglu_core::{GatedActivation, Rounding};
/// # fn main() -> swiglu_core::Result<()> {
/// let op = GatedActivation::deepseek_v4();
/// assert_eq!(op, GatedActivation::silu_and_mul_with_clamp(10.0, 1.0, 0.0)?);
/// assert_eq!(op.with_rounding(Rounding::Eager).rounding(), Rounding::Eager);
/// assert!(GatedActivation::silu_and_mul_with_clamp(0.0, 1.0, 0.0).is_err());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GatedActivation {
    operator: Operator,
    function: Function,
    clamp: Clamp,
    up_offset: f32,
    order: Order,
    layout: Layout,
    rounding: Rounding,
}

/// `value`, if it is finite, and positive where that is asked.
fn number(argument: &'static str, value: f32, positive: bool) -> Result<f32> {
    if value.is_finite() && (!positive || value > 0.0) {
        return Ok(value);
    }
    let expected = if positive {
        "a finite number above 0"
    } else {
        "a finite number"
    };
    Err(Error::argument(argument, expected, value))
}

impl GatedActivation {
    pub(super) const fn plain(operator: Operator, function: Function) -> Self {
        Self {
            operator,
            function,
            clamp: Clamp::None,
            up_offset: 0.0,
            order: Order::GateFirst,
            layout: Layout::Concatenated,
            rounding: Rounding::Official,
        }
    }

    /// This operation with another rounding mode.
    #[must_use]
    pub const fn with_rounding(self, rounding: Rounding) -> Self {
        Self { rounding, ..self }
    }

    /// The operator of which this is an instance.
    pub const fn operator(&self) -> Operator {
        self.operator
    }

    /// The operator's name, as vLLM has it.
    pub const fn name(&self) -> &'static str {
        self.operator.name()
    }

    /// The function that the gate goes through.
    pub const fn function(&self) -> Function {
        self.function
    }

    /// The clamp and its place.
    pub const fn clamp(&self) -> Clamp {
        self.clamp
    }

    /// What is added to the clamped up half.
    pub const fn up_offset(&self) -> f32 {
        self.up_offset
    }

    /// The limit of the clamp, wherever it is.
    pub const fn limit(&self) -> Option<Limit> {
        match self.clamp {
            Clamp::None => None,
            Clamp::Before(limit) | Clamp::After(limit) => Some(limit),
        }
    }

    /// Which half comes first.
    pub const fn order(&self) -> Order {
        self.order
    }

    /// How the halves share a row.
    pub const fn layout(&self) -> Layout {
        self.layout
    }

    /// Where results are rounded.
    pub const fn rounding(&self) -> Rounding {
        self.rounding
    }

    /// The places of (gate\[j\], up\[j\]) in a row of 2d elements.
    pub const fn positions(&self, d: usize, j: usize) -> (usize, usize) {
        let (first, second) = match self.layout {
            Layout::Concatenated => (j, d + j),
            Layout::Interleaved => (2 * j, 2 * j + 1),
        };
        match self.order {
            Order::GateFirst => (first, second),
            Order::UpFirst => (second, first),
        }
    }
}

/// The name and what is set, such as `silu_and_mul_with_clamp(limit=10, official)`.
impl fmt::Display for GatedActivation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}(", self.name())?;
        match self.clamp {
            Clamp::None => {}
            Clamp::Before(limit) | Clamp::After(limit) => write!(f, "limit={limit}, ")?,
        }
        for (name, value) in self.function.settings().into_iter().flatten() {
            match value {
                Some(value) => write!(f, "{name}={value}, ")?,
                None => write!(f, "{name}=none, ")?,
            }
        }
        if self.up_offset != 0.0 {
            write!(f, "beta={}, ", self.up_offset)?;
        }
        match self.rounding {
            Rounding::Official => f.write_str("official)"),
            Rounding::Eager => f.write_str("eager)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_lie_where_the_operators_have_them() {
        let at = |op: GatedActivation| [op.positions(5, 0), op.positions(5, 3)];
        assert_eq!(at(GatedActivation::silu_and_mul()), [(0, 5), (3, 8)]);
        assert_eq!(at(GatedActivation::mul_and_silu()), [(5, 0), (8, 3)]);
        assert_eq!(at(GatedActivation::gpt_oss()), [(0, 1), (6, 7)]);
    }

    #[test]
    fn a_limit_is_told_wherever_its_clamp_is() {
        let limit = |op: GatedActivation| op.limit().map(Limit::get);
        assert_eq!(limit(GatedActivation::deepseek_v4()), Some(10.0));
        assert_eq!(limit(GatedActivation::step_3_5()), Some(7.0));
        assert_eq!(limit(GatedActivation::silu_and_mul()), None);
    }
}
