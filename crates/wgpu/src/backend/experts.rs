//! Layers of routed experts.

use swiglu_core::{
    Error, Experts, ExpertsShape, Float, Gate, GatedActivation, GroupedMatmul, HostWeight,
    Quantization, Request, Result, Router, Routes, Tensor, TensorMut, Tokens, WeightFormat, check,
};

use super::WgpuBackend;
use crate::error::PLATFORM;
use crate::launch::Matrix;
use crate::pipelines::{MoePipelines, TOO_FEW_BUFFERS};
use crate::weight::Weight;
use crate::{Buffer, ViewMut, moe};

impl WgpuBackend {
    /// The pipelines of layers of routed experts, or the refusal of a request.
    fn moe_pipelines(&self, request: impl FnOnce() -> Request) -> Result<&MoePipelines> {
        match &self.pipelines.moe {
            Some(pipelines) => Ok(pipelines),
            None => Err(Error::unsupported(PLATFORM, request(), TOO_FEW_BUFFERS)),
        }
    }
}

impl Router for WgpuBackend {
    fn route(
        &self,
        gate: &Gate<Weight, Buffer>,
        x: Tensor<'_, Self>,
        tokens: Tokens<'_, Self>,
        scratch: ViewMut<'_>,
        routes: &mut Routes<Buffer>,
    ) -> Result<()> {
        let scratch = scratch.as_view();
        check::route(self, gate, &x, &tokens, &scratch, routes)?;
        if x.layout.rows == 0 {
            return Ok(());
        }
        let moe = self.moe_pipelines(|| Request::Route {
            routing: gate.routing,
            x: x.float,
            weight: WeightFormat::Float(Float::BF16),
        })?;
        let on = (self.device(), &*self.pipelines, moe);
        let x = Matrix::of("x", &x);
        let marks = [tokens.ids, tokens.image, tokens.padding];
        Ok(self
            .recorder
            .record(|pass| moe::route(on, pass, gate, &x, marks, scratch, routes))?)
    }
}

/// Experts lie in few buffers, several in each.
impl GroupedMatmul for WgpuBackend {
    fn alloc_experts(&self, shape: ExpertsShape) -> Result<Experts<Weight>> {
        Ok(moe::alloc(self.device(), shape)?)
    }

    fn load_expert(
        &self,
        experts: &mut Experts<Weight>,
        gate: HostWeight<'_>,
        up: HostWeight<'_>,
        down: HostWeight<'_>,
    ) -> Result<()> {
        Ok(moe::load(&self.recorder, experts, [&gate, &up, &down])?)
    }

    fn expert_bytes(&self, experts: &Experts<Weight>) -> usize {
        moe::expert_bytes(experts.shape())
    }

    fn grouped_matmul_act_and_mul(
        &self,
        op: &GatedActivation,
        quant: Option<&Quantization>,
        x: Tensor<'_, Self>,
        experts: &Experts<Weight>,
        routes: &Routes<Buffer>,
        scratch: ViewMut<'_>,
        act: TensorMut<'_, Self>,
    ) -> Result<()> {
        check::grouped_act_and_mul(self, op, quant, &x, experts, routes, &scratch, &act)?;
        if x.layout.rows == 0 {
            return Ok(());
        }
        let moe = self.moe_pipelines(|| Request::GroupedGatedMatmul {
            op: *op,
            quant: quant.copied(),
            routing: *routes.routing(),
            x: x.float,
            weight: experts.shape().gate_up,
        })?;
        let on = (self.device(), &*self.pipelines, moe);
        let (x, act) = (Matrix::of("x", &x), Matrix::of("act", &act.as_tensor()));
        let (what, ends, scratch) = ((op, quant), (&x, &act), scratch.as_view());
        Ok(self
            .recorder
            .record(|pass| moe::first_half(on, pass, what, ends, (experts, routes), scratch))?)
    }

    fn grouped_matmul_sum(
        &self,
        quant: Option<&Quantization>,
        act: Tensor<'_, Self>,
        experts: &Experts<Weight>,
        routes: &Routes<Buffer>,
        shared: Option<Tensor<'_, Self>>,
        scratch: ViewMut<'_>,
        y: TensorMut<'_, Self>,
    ) -> Result<()> {
        let of = (shared.as_ref(), &scratch);
        check::grouped_sum(self, quant, &act, experts, routes, of.0, of.1, &y)?;
        if y.layout.rows == 0 {
            return Ok(());
        }
        let moe = self.moe_pipelines(|| Request::GroupedMatmulSum {
            quant: quant.copied(),
            routing: *routes.routing(),
            weight: experts.shape().down,
            y: y.float,
        })?;
        let on = (self.device(), &*self.pipelines, moe);
        let (act, y) = (Matrix::of("act", &act), Matrix::of("y", &y.as_tensor()));
        let shared = shared.as_ref().map(|shared| Matrix::of("shared", shared));
        let (ends, scratch) = ((&act, shared.as_ref(), &y), scratch.as_view());
        Ok(self
            .recorder
            .record(|pass| moe::second_half(on, pass, ends, (experts, routes), scratch))?)
    }
}
