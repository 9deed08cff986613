use std::fmt;

use crate::{Error, Result};

mod limit;
mod names;

pub use limit::Limit;
pub use names::{Operator, Parameters};

/// The function that the gate goes through.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Function {
    /// x · sigmoid(alpha · x).
    Silu {
        /// The slope, 1 in most models.
        alpha: f32,
    },
    /// x/2 · (1 + erf(x/√2)).
    Gelu,
    /// x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))).
    GeluTanh,
    /// x where it exceeds the threshold, else 0.
    FatRelu {
        /// The threshold.
        threshold: f32,
    },
    /// beta · tanh(x/beta) · sigmoid(x), and the up half through bound · tanh(up/bound).
    Situ {
        /// The bound of the gate.
        beta: f32,
        /// The bound of the up half; without it the up half is taken as it is.
        up_bound: Option<f32>,
    },
}

/// Where the limit applies. Without one there is no clamp, not a large limit.
#[derive(Clone, Copy, Debug, PartialEq)]
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
    const fn plain(operator: Operator, function: Function) -> Self {
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

    /// silu(gate) · up.
    pub const fn silu_and_mul() -> Self {
        Self::plain(Operator::SiluAndMul, Function::Silu { alpha: 1.0 })
    }

    /// silu(alpha; min(gate, L)) · (clamp(up, ±L) + beta), where silu(alpha; x) = x·sigmoid(alpha·x).
    ///
    /// # Errors
    /// `limit` and `alpha` must be finite and above 0, `beta` finite.
    pub fn silu_and_mul_with_clamp(limit: f32, alpha: f32, beta: f32) -> Result<Self> {
        let alpha = number("alpha", alpha, true)?;
        let up_offset = number("beta", beta, false)?;
        Ok(Self {
            clamp: Clamp::Before(Limit::new(limit)?),
            up_offset,
            ..Self::plain(Operator::SiluAndMulWithClamp, Function::Silu { alpha })
        })
    }

    /// first · silu(second): the up half comes first.
    pub const fn mul_and_silu() -> Self {
        Self {
            order: Order::UpFirst,
            ..Self::plain(Operator::MulAndSilu, Function::Silu { alpha: 1.0 })
        }
    }

    /// gelu(gate) · up, with the error function.
    pub const fn gelu_and_mul() -> Self {
        Self::plain(Operator::GeluAndMul, Function::Gelu)
    }

    /// gelu(gate) · up, with the tanh approximation.
    pub const fn gelu_tanh_and_mul() -> Self {
        Self::plain(Operator::GeluTanhAndMul, Function::GeluTanh)
    }

    /// (gate > threshold ? gate : 0) · up.
    ///
    /// # Errors
    /// `threshold` must be finite.
    pub fn fatrelu_and_mul(threshold: f32) -> Result<Self> {
        let threshold = number("threshold", threshold, false)?;
        let function = Function::FatRelu { threshold };
        Ok(Self::plain(Operator::FatReluAndMul, function))
    }

    /// silu(alpha; min(gate, L)) · (clamp(up, ±L) + 1) on interleaved rows, as gpt-oss has it
    /// (alpha 1.702, L 7).
    ///
    /// # Errors
    /// `limit` and `alpha` must be finite and above 0.
    pub fn swigluoai_and_mul(limit: f32, alpha: f32) -> Result<Self> {
        Ok(Self {
            operator: Operator::SwigluOaiAndMul,
            layout: Layout::Interleaved,
            ..Self::silu_and_mul_with_clamp(limit, alpha, 1.0)?
        })
    }

    /// min(silu(gate), L) · clamp(up, ±L): the clamp comes after the function, as Step-3.5 has it.
    ///
    /// # Errors
    /// `limit` must be finite and above 0.
    pub fn swiglustep_and_mul(limit: f32) -> Result<Self> {
        Ok(Self {
            clamp: Clamp::After(Limit::new(limit)?),
            ..Self::plain(Operator::SwigluStepAndMul, Function::Silu { alpha: 1.0 })
        })
    }

    /// beta·tanh(gate/beta)·sigmoid(gate) · (bound·tanh(up/bound), or up where there is no bound),
    /// as Kimi-K3 has it (beta 4, bound 25).
    ///
    /// # Errors
    /// `beta` and `up_bound` must be finite and above 0.
    pub fn situ_and_mul(beta: f32, up_bound: Option<f32>) -> Result<Self> {
        let beta = number("beta", beta, true)?;
        let up_bound = up_bound.map(|b| number("up_bound", b, true)).transpose()?;
        let function = Function::Situ { beta, up_bound };
        Ok(Self::plain(Operator::SituAndMul, function))
    }

    const fn clamped_silu(limit: Limit, alpha: f32, up_offset: f32) -> Self {
        Self {
            clamp: Clamp::Before(limit),
            up_offset,
            ..Self::plain(Operator::SiluAndMulWithClamp, Function::Silu { alpha })
        }
    }

    /// DeepSeek-V4 and V4.1: `silu_and_mul_with_clamp` at L = 10.
    pub const fn deepseek_v4() -> Self {
        Self::clamped_silu(Limit::TEN, 1.0, 0.0)
    }

    /// GLM-5.3-Flash: as [`Self::deepseek_v4`].
    pub const fn glm_5_3_flash() -> Self {
        Self::deepseek_v4()
    }

    /// MiniMax-M3: `silu_and_mul_with_clamp` at L = 7, alpha 1.702, beta 1; not interleaved.
    pub const fn minimax_m3() -> Self {
        Self::clamped_silu(Limit::SEVEN, 1.702, 1.0)
    }

    /// gpt-oss: `swigluoai_and_mul` at L = 7, alpha 1.702.
    pub const fn gpt_oss() -> Self {
        Self {
            operator: Operator::SwigluOaiAndMul,
            layout: Layout::Interleaved,
            ..Self::minimax_m3()
        }
    }

    /// Step-3.5: `swiglustep_and_mul` at L = 7.
    pub const fn step_3_5() -> Self {
        Self {
            clamp: Clamp::After(Limit::SEVEN),
            ..Self::plain(Operator::SwigluStepAndMul, Function::Silu { alpha: 1.0 })
        }
    }

    /// Kimi-K3: `situ_and_mul` with beta 4 and an up bound of 25.
    pub const fn kimi_k3() -> Self {
        let function = Function::Situ {
            beta: 4.0,
            up_bound: Some(25.0),
        };
        Self::plain(Operator::SituAndMul, function)
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
        match self.function {
            Function::Silu { alpha: 1.0 } => {}
            Function::Silu { alpha } => write!(f, "alpha={alpha}, ")?,
            Function::Gelu | Function::GeluTanh => {}
            Function::FatRelu { threshold } => write!(f, "threshold={threshold}, ")?,
            Function::Situ { beta, up_bound } => {
                write!(f, "beta={beta}, ")?;
                match up_bound {
                    Some(bound) => write!(f, "up_bound={bound}, ")?,
                    None => write!(f, "up_bound=none, ")?,
                }
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
