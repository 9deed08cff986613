use super::{Clamp, Function, GatedActivation, Layout, Limit, Operator, Order, number};
use crate::Result;

/// The operators under their own names.
impl GatedActivation {
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

    /// gate·sigmoid(1.702·gate) · up: ggml's `GEGLU_QUICK`.
    pub const fn gelu_quick_and_mul() -> Self {
        let function = Function::Silu { alpha: 1.702 };
        Self::plain(Operator::GeluQuickAndMul, function)
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

    pub(super) const fn clamped_silu(limit: Limit, alpha: f32, up_offset: f32) -> Self {
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
}
