use swiglu_core::{
    Experts, ExpertsShape, Gate, GatedActivation, GroupedMatmul, HostWeight, Matmul, MoeCall,
    Quantization, Router, Routes, SharedCall, Tensor, TensorMut, Tokens, check,
};

use super::matrix;
use crate::{
    buffer::CudaBuffer,
    launch::params::PackParams,
    matmul::{SharedStep, SharedSteps},
    moe::Marks,
    open::CudaBackend,
    view::{DeviceView, DeviceViewMut},
    weight::{CudaWeight, stack::not_stacked},
};

fn address(view: Option<DeviceView<'_>>) -> u64 {
    view.map_or(0, |view| view.address())
}

fn marks(tokens: &Tokens<'_, CudaBackend>) -> Marks {
    Marks {
        token_ids: address(tokens.ids),
        image: address(tokens.image),
        padding: address(tokens.padding),
    }
}

impl Router for CudaBackend {
    /// Two launches for up to four tokens, three for more or for other types, and nothing comes to the host.
    fn route(
        &self,
        gate: &Gate<CudaWeight, CudaBuffer>,
        x: Tensor<'_, Self>,
        tokens: Tokens<'_, Self>,
        scratch: DeviceViewMut<'_>,
        routes: &mut Routes<CudaBuffer>,
    ) -> swiglu_core::Result<()> {
        check::route(self, gate, &x, &tokens, &scratch.as_view(), routes)?;
        let marks = marks(&tokens);
        if x.layout.rows == 0 {
            return Ok(());
        }
        let (stream, scratch) = (self.stream.cu_stream(), scratch.address());
        let (x, moe, matmuls) = (matrix(&x), &self.moe, &self.matmuls);
        let call = moe.route_call(matmuls, gate, &x, &marks, scratch, routes)?;
        // SAFETY: the call has been checked against the views, whose memory lives until the stream
        // has run it; `routes` has room for as many tokens.
        unsafe {
            moe.logits(stream, matmuls, gate, &x, &call)?;
            moe.choose(stream, &call, false)
        }?;
        Ok(())
    }
}

impl GroupedMatmul for CudaBackend {
    /// All experts are one weight for each half, in the formats that they are stored in.
    fn alloc_experts(&self, shape: ExpertsShape) -> swiglu_core::Result<Experts<CudaWeight>> {
        let (count, hidden, i) = (shape.count(), shape.hidden, shape.intermediate);
        let packed = self.matmuls.facts().packs_for().is_some();
        let stack = |parts, shape, format| {
            CudaWeight::alloc_stack(&self.stream, count, parts, shape, format, packed)
        };
        let gate_up = stack(2, [i, hidden], shape.gate_up)?;
        let down = stack(1, [hidden, i], shape.down)?;
        let mut experts = Experts::new(shape);
        experts.gate_up.push(gate_up);
        experts.down.push(down);
        Ok(experts)
    }

    fn load_expert(
        &self,
        experts: &mut Experts<CudaWeight>,
        gate: HostWeight<'_>,
        up: HostWeight<'_>,
        down: HostWeight<'_>,
    ) -> swiglu_core::Result<()> {
        let place = experts.loaded();
        experts.count_next(&gate, &up, &down)?;
        let (stream, stacks) = (&self.stream, (&experts.gate_up[..], &experts.down[..]));
        let ([both], [second]) = stacks else {
            return Err(not_stacked().into());
        };
        let pack = |params: &PackParams| {
            // SAFETY: the parameters are of memory of this device that is there until the stream has run it.
            unsafe { self.moe.pack(stream.cu_stream(), params) }
        };
        both.load_into_stack(stream, place, &[gate, up], pack)?;
        second.load_into_stack(stream, place, &[down], pack)?;
        Ok(())
    }

    fn grouped_matmul_act_and_mul(
        &self,
        op: &GatedActivation,
        quant: Option<&Quantization>,
        x: Tensor<'_, Self>,
        experts: &Experts<CudaWeight>,
        routes: &Routes<CudaBuffer>,
        scratch: DeviceViewMut<'_>,
        act: TensorMut<'_, Self>,
    ) -> swiglu_core::Result<()> {
        check::grouped_act_and_mul(self, op, quant, &x, experts, routes, &scratch, &act)?;
        let (stream, scratch) = (self.stream.cu_stream(), scratch.address());
        let (facts, x, act) = (self.matmuls.facts(), matrix(&x), matrix(&act.as_tensor()));
        // SAFETY: as `route`.
        unsafe {
            self.moe.gated(
                stream, facts, op, quant, &x, experts, routes, scratch, &act, false,
            )
        }?;
        Ok(())
    }

    fn grouped_matmul_sum(
        &self,
        quant: Option<&Quantization>,
        act: Tensor<'_, Self>,
        experts: &Experts<CudaWeight>,
        routes: &Routes<CudaBuffer>,
        shared: Option<Tensor<'_, Self>>,
        scratch: DeviceViewMut<'_>,
        y: TensorMut<'_, Self>,
    ) -> swiglu_core::Result<()> {
        check::grouped_sum(
            self,
            quant,
            &act,
            experts,
            routes,
            shared.as_ref(),
            &scratch,
            &y,
        )?;
        let (stream, scratch) = (self.stream.cu_stream(), scratch.address());
        let (facts, act, y) = (self.matmuls.facts(), matrix(&act), matrix(&y.as_tensor()));
        let shared = shared.as_ref().map(matrix);
        let shared = shared.as_ref();
        // SAFETY: as `route`.
        unsafe {
            self.moe.sum(
                stream, facts, &act, experts, routes, shared, scratch, &y, false,
            )
        }?;
        Ok(())
    }

    /// The second half's kernel starts before the first's has ended: it reads its first weights, as the routes
    /// have been there since the first half read them.
    fn grouped_mlp(
        &self,
        op: &GatedActivation,
        quant: Option<&Quantization>,
        x: Tensor<'_, Self>,
        experts: &Experts<CudaWeight>,
        routes: &Routes<CudaBuffer>,
        shared: Option<Tensor<'_, Self>>,
        scratch: DeviceViewMut<'_>,
        act: TensorMut<'_, Self>,
        y: TensorMut<'_, Self>,
    ) -> swiglu_core::Result<()> {
        check::grouped_act_and_mul(self, op, quant, &x, experts, routes, &scratch, &act)?;
        let between = act.as_tensor();
        let of_shared = shared.as_ref();
        check::grouped_sum(
            self, quant, &between, experts, routes, of_shared, &scratch, &y,
        )?;
        let (stream, scratch) = (self.stream.cu_stream(), scratch.address());
        let (facts, x, act) = (self.matmuls.facts(), matrix(&x), matrix(&between));
        let (shared, y) = (of_shared.map(matrix), matrix(&y.as_tensor()));
        let shared = shared.as_ref();
        // SAFETY: as `route`; the second call follows the first on the stream, with the same routes.
        unsafe {
            let sorted = self.moe.gated(
                stream, facts, op, quant, &x, experts, routes, scratch, &act, false,
            )?;
            self.moe.sum(
                stream, facts, &act, experts, routes, shared, scratch, &y, sorted,
            )
        }?;
        Ok(())
    }

    /// If the shared expert's matmuls are decode steps, tokens choose beside the first of them, and the first half's
    /// kernel reads its first weights beside the second.
    fn moe(
        &self,
        call: MoeCall<'_, Self>,
        x: Tensor<'_, Self>,
        tokens: Tokens<'_, Self>,
        y: TensorMut<'_, Self>,
    ) -> swiglu_core::Result<()> {
        let SharedCall {
            gate_up,
            down,
            op,
            between,
            act,
            y: of_shared,
        } = &call.shared;
        let shared = SharedSteps {
            op,
            weights: [gate_up, down],
            matrices: [
                matrix(&x),
                matrix(&act.as_tensor()),
                matrix(&of_shared.as_tensor()),
            ],
        };
        let plan = self.matmuls.shared_plan(&shared);
        let Some(plan) = plan.filter(|_| call.quant.is_none()) else {
            return call.one_by_one(self, x, tokens, y);
        };
        check::gated_matmul(&x, self.weight_shape(gate_up), between, act)?;
        check::matmul(&act.as_tensor(), self.weight_shape(down), of_shared)?;
        let MoeCall {
            gate,
            experts,
            op,
            routes,
            scratch,
            act,
            ..
        } = &call;
        check::route(self, gate, &x, &tokens, &scratch.as_view(), routes)?;
        check::grouped_act_and_mul(self, op, None, &x, experts, routes, scratch, act)?;
        let (act, of_shared) = (act.as_tensor(), of_shared.as_tensor());
        check::grouped_sum(
            self,
            None,
            &act,
            experts,
            routes,
            Some(&of_shared),
            scratch,
            &y,
        )?;
        let (stream, scratch) = (self.stream.cu_stream(), scratch.address());
        let (marks, facts) = (marks(&tokens), self.matmuls.facts());
        let (x, y) = (matrix(&x), matrix(&y.as_tensor()));
        let (act, of_shared) = (matrix(&act), matrix(&of_shared));
        let (moe, matmuls) = (&self.moe, &self.matmuls);
        let call = moe.route_call(matmuls, gate, &x, &marks, scratch, routes)?;
        // SAFETY: as `route`; the calls follow one another on the stream. The first step waits for the logits, and then
        // lets the choice start, which reads and writes nothing of it. The second waits for both, and then lets the first
        // half start, which so finds the routes.
        unsafe {
            moe.logits(stream, matmuls, gate, &x, &call)?;
            matmuls.shared_step(stream, &plan, &shared, SharedStep::GateUp)?;
            moe.choose(stream, &call, true)?;
            matmuls.shared_step(stream, &plan, &shared, SharedStep::Down)?;
            let sorted = moe.gated(
                stream, facts, op, None, &x, experts, routes, scratch, &act, true,
            )?;
            let shared = Some(&of_shared);
            moe.sum(
                stream, facts, &act, experts, routes, shared, scratch, &y, sorted,
            )
        }?;
        Ok(())
    }
}
