use crate::{
    Experts, Gate, GatedActivation, GroupedMatmul, Matmul, Quantization, Result, Router, Routes,
    Tensor, TensorMut, Tokens,
};

/// The matmuls of a shared expert that reads x as it is: `y = R(R(op(R(x · gate_upᵀ))) · downᵀ)`.
pub struct SharedCall<'a, B: Matmul> {
    /// What [`Matmul::load_gate_up`] made, \[2I, H\].
    pub gate_up: &'a B::Weight,
    /// \[H, I\].
    pub down: &'a B::Weight,
    /// Between them.
    pub op: &'a GatedActivation,
    /// \[T, 2I\], which may stay unwritten.
    pub between: TensorMut<'a, B>,
    /// \[T, I\].
    pub act: TensorMut<'a, B>,
    /// \[T, H\].
    pub y: TensorMut<'a, B>,
}

/// What the parts of [`GroupedMatmul::moe`] take besides x, its tokens and y.
pub struct MoeCall<'a, B: Router + GroupedMatmul> {
    /// The router.
    pub gate: &'a Gate<B::Weight, B::Buffer>,
    /// The routed experts.
    pub experts: &'a Experts<B::Weight>,
    /// Their activation.
    pub op: &'a GatedActivation,
    /// How their inputs are quantized, if they are.
    pub quant: Option<&'a Quantization>,
    /// The shared expert.
    pub shared: SharedCall<'a, B>,
    /// With room for T tokens.
    pub routes: &'a mut Routes<B::Buffer>,
    /// The most bytes that [`crate::Backend::scratch`] asks for the router and both halves.
    pub scratch: B::ViewMut<'a>,
    /// \[T · k, I\] of bf16.
    pub act: TensorMut<'a, B>,
}

impl<B: Router + GroupedMatmul> MoeCall<'_, B> {
    /// Makes the calls one after another.
    ///
    /// # Errors
    /// As [`GroupedMatmul::moe`].
    pub fn one_by_one(
        self,
        backend: &B,
        x: Tensor<'_, B>,
        tokens: Tokens<'_, B>,
        y: TensorMut<'_, B>,
    ) -> Result<()> {
        let Self {
            gate,
            routes,
            mut scratch,
            mut shared,
            ..
        } = self;
        // The router comes second: a device may ask for the first weights of its experts at once.
        let (between, act) = (shared.between, shared.act.reborrow());
        backend.matmul_act_and_mul(shared.op, x, shared.gate_up, between, act)?;
        backend.matmul(shared.act.as_tensor(), shared.down, shared.y.reborrow())?;
        backend.route(gate, x, tokens, B::reborrow(&mut scratch), routes)?;
        let (op, quant, experts) = (self.op, self.quant, self.experts);
        let shared = Some(shared.y.as_tensor());
        backend.grouped_mlp(op, quant, x, experts, routes, shared, scratch, self.act, y)
    }
}
