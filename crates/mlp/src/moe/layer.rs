use std::fmt;
use std::sync::Arc;

use swiglu_core::{
    Error as CoreError, Experts, ExpertsShape, Float, Gate, GatedActivation, GroupedMatmul,
    HostRoutes, MoeCall, Quantization, Request, Router, Routes, Shape, SharedCall, Tensor,
    TensorMut, Tokens, WeightFormat,
};

use super::{MoeConfig, MoeWeights, MoeWorkspace};
use crate::mlp::has_shape;
use crate::{DeepseekV4Mlp, Result};

/// The whole feed-forward layer of DeepSeek-V4: x \[T, H\] → the router's choice, k routed experts a
/// token and the shared expert → y \[T, H\].
///
/// ```text
/// y = R(sum of the routes, experts ascending, in f32 + shared(x))
/// ```
///
/// A route's weight multiplies the activation of its expert before that is rounded. With
/// [`crate::ActivationQuant::Fp8Block`] the matmuls of all experts read FP8. docs/moe.md says all of
/// what is computed.
pub struct DeepseekV4Moe<B: Router + GroupedMatmul> {
    backend: Arc<B>,
    gate: Arc<Gate<B::Weight, B::Buffer>>,
    experts: Arc<Experts<B::Weight>>,
    shared: DeepseekV4Mlp<B>,
    op: GatedActivation,
    quant: Option<Quantization>,
}

/// Where [`DeepseekV4Moe::forward_stages`] leaves what lies between x and y.
pub struct MoeStages<'a, B: Router + GroupedMatmul> {
    /// The sum of the routes, \[T, H\] of f32 or any other type.
    pub routed: TensorMut<'a, B>,
    /// What the shared expert gives, \[T, H\] of bf16.
    pub shared: TensorMut<'a, B>,
}

impl<B: Router + GroupedMatmul> fmt::Debug for MoeStages<'_, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "routed {:?}, shared {:?}", self.routed, self.shared)
    }
}

impl<B: Router + GroupedMatmul> fmt::Debug for DeepseekV4Moe<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeepseekV4Moe")
            .field("backend", &self.backend.platform())
            .field("routing", &self.gate.routing)
            .field("experts", self.experts.shape())
            .finish_non_exhaustive()
    }
}

impl<B: Router + GroupedMatmul> DeepseekV4Moe<B> {
    /// Brings the weights to the backend, one expert after another.
    ///
    /// # Errors
    /// As [`MoeConfig::check`], a request that the backend does not support, weights that do not fit
    /// the configuration or cannot be read, or a failure of the device.
    pub fn load(backend: Arc<B>, config: &MoeConfig, weights: &MoeWeights<'_>) -> Result<Self> {
        config.check()?;
        let routing = *weights.routing();
        if routing != config.routing(routing.vocabulary())? {
            let expected = config.routing(routing.vocabulary())?.to_string();
            return Err(CoreError::argument("weights", expected, routing).into());
        }
        let h = weights.gate().weight().cols();
        if h != config.shared.hidden_size {
            let expected = format!("rows of {} elements", config.shared.hidden_size);
            return Err(CoreError::argument("gate", expected, h).into());
        }
        for request in weights.requests(config)? {
            let support = backend.supports(&request);
            support.required(backend.platform(), &request)?;
        }
        let [gate_up, down] = weights.formats();
        let mut experts = backend.alloc_experts(ExpertsShape {
            range: 0..config.experts,
            hidden: h,
            intermediate: config.intermediate_size,
            gate_up,
            down,
        })?;
        for number in 0..config.experts {
            let expert = weights.expert(number)?;
            let (gate, up, down) = (expert.gate, expert.up, expert.down);
            backend.load_expert(&mut experts, gate, up, down)?;
        }
        Ok(Self {
            gate: Arc::new(backend.load_gate(weights.gate())?),
            experts: Arc::new(experts),
            shared: DeepseekV4Mlp::load(Arc::clone(&backend), &config.shared, weights.shared())?,
            op: config.activation()?,
            quant: config.quantization()?,
            backend,
        })
    }

    /// The same layer on another backend over the same device's memory, as [`DeepseekV4Mlp::on`].
    #[must_use]
    pub fn on(&self, backend: Arc<B>) -> Self {
        Self {
            gate: Arc::clone(&self.gate),
            experts: Arc::clone(&self.experts),
            shared: self.shared.on(Arc::clone(&backend)),
            op: self.op,
            quant: self.quant,
            backend,
        }
    }

    /// Enqueues y = layer(x): x \[T, H\] to y \[T, H\], each bf16, f16 or f32, where they lie, and what
    /// `tokens` say of the rows. Nothing is allocated where `workspace` has seen as large a T before,
    /// by a backend that has its own implementation of the stages; T = 0 does nothing.
    ///
    /// # Errors
    /// Shapes or views that do not fit, token ids that a layer which hashes lacks, or a failure of
    /// the device.
    pub fn forward(
        &self,
        x: Tensor<'_, B>,
        tokens: Tokens<'_, B>,
        y: TensorMut<'_, B>,
        workspace: &mut MoeWorkspace<B>,
    ) -> Result<()> {
        self.check_ends(&x, &y)?;
        let rows = x.layout.rows;
        if rows == 0 {
            return Ok(());
        }
        let backend = &*self.backend;
        let mut routes = workspace.take_routes(backend, &self.gate.routing, rows)?;
        if let Some(weights) = self.shared.merged() {
            self.at_once(weights, x, tokens, &mut routes, y, workspace)?;
            workspace.keep_routes(routes);
            return Ok(());
        }
        // Taken out while the stages use the rest.
        let mut slot = std::mem::take(&mut workspace.shared);
        {
            let shape = [rows, self.hidden_size()];
            let mut shared = slot.matrix(backend, Float::BF16, shape)?;
            let mlp = &mut workspace.mlp;
            // Before the router, whose experts a device may then ask for at once.
            self.shared.forward(x, shared.reborrow(), mlp)?;
            self.route(x, tokens, &mut routes, workspace)?;
            self.experts_and_sum(x, &routes, shared.as_tensor(), y, workspace)?;
        }
        workspace.shared = slot;
        workspace.keep_routes(routes);
        Ok(())
    }

    /// The whole layer in one call, for a shared expert that reads x as it is.
    fn at_once(
        &self,
        [gate_up, down]: [&B::Weight; 2],
        x: Tensor<'_, B>,
        tokens: Tokens<'_, B>,
        routes: &mut Routes<B::Buffer>,
        y: TensorMut<'_, B>,
        workspace: &mut MoeWorkspace<B>,
    ) -> Result<()> {
        let backend = &*self.backend;
        let (rows, i) = (x.layout.rows, self.shared.intermediate_size());
        let requests = [
            self.route_request(rows, x.float),
            self.first_request(rows, x.float),
            self.second_request(rows, y.float),
        ];
        let bytes = requests.map(|(request, shape)| backend.scratch(&request, &shape));
        let bytes = bytes.into_iter().max().unwrap_or_default();
        let (float, mlp) = (self.shared.between(), &mut workspace.mlp);
        let shared = SharedCall {
            gate_up,
            down,
            op: self.shared.activation(),
            between: mlp.gate_up.matrix(backend, float, [rows, 2 * i])?,
            act: mlp.act.matrix(backend, float, [rows, i])?,
            y: workspace
                .shared
                .matrix(backend, Float::BF16, [rows, self.hidden_size()])?,
        };
        let act = [routes.count(), self.intermediate_size()];
        let call = MoeCall {
            gate: &self.gate,
            experts: &self.experts,
            op: &self.op,
            quant: self.quant.as_ref(),
            shared,
            routes,
            scratch: workspace.scratch.reserve(backend, bytes)?,
            act: workspace.act.matrix(backend, Float::BF16, act)?,
        };
        Ok(backend.moe(call, x, tokens, y)?)
    }

    /// As [`Self::forward`], with the sum of the routes and the shared expert's output in the
    /// caller's memory too. Returns the routes, brought to the host.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn forward_stages(
        &self,
        x: Tensor<'_, B>,
        tokens: Tokens<'_, B>,
        stages: MoeStages<'_, B>,
        y: TensorMut<'_, B>,
        workspace: &mut MoeWorkspace<B>,
    ) -> Result<HostRoutes> {
        self.check_ends(&x, &y)?;
        let MoeStages { routed, mut shared } = stages;
        let rows = x.layout.rows;
        let shape = [rows, self.hidden_size()];
        has_shape("routed", &routed.layout, shape)?;
        has_shape("shared", &shared.layout, shape)?;
        if rows == 0 {
            let none = HostRoutes::new(&self.gate.routing, &[], &[])?;
            return Ok(none);
        }
        let backend = &*self.backend;
        let mut routes = workspace.take_routes(backend, &self.gate.routing, rows)?;
        self.route(x, tokens, &mut routes, workspace)?;
        self.shared
            .forward(x, shared.reborrow(), &mut workspace.mlp)?;
        self.experts(x, &routes, workspace)?;
        self.sum(&routes, None, routed, workspace)?;
        self.sum(&routes, Some(shared.as_tensor()), y, workspace)?;
        let on_host = routes.download(backend)?;
        workspace.keep_routes(routes);
        Ok(on_host)
    }

    /// The choice of experts.
    fn route(
        &self,
        x: Tensor<'_, B>,
        tokens: Tokens<'_, B>,
        routes: &mut Routes<B::Buffer>,
        workspace: &mut MoeWorkspace<B>,
    ) -> Result<()> {
        let (request, shape) = self.route_request(x.layout.rows, x.float);
        let bytes = self.backend.scratch(&request, &shape);
        let scratch = workspace.scratch.reserve(&self.backend, bytes)?;
        Ok(self.backend.route(&self.gate, x, tokens, scratch, routes)?)
    }

    /// The first half of the routed experts, into the workspace.
    fn experts(
        &self,
        x: Tensor<'_, B>,
        routes: &Routes<B::Buffer>,
        workspace: &mut MoeWorkspace<B>,
    ) -> Result<()> {
        let backend = &*self.backend;
        let (request, shape) = self.first_request(x.layout.rows, x.float);
        let bytes = backend.scratch(&request, &shape);
        let scratch = workspace.scratch.reserve(backend, bytes)?;
        let act = [routes.count(), self.intermediate_size()];
        let act = workspace.act.matrix(backend, Float::BF16, act)?;
        let (op, quant, experts) = (&self.op, self.quant.as_ref(), &*self.experts);
        Ok(backend.grouped_matmul_act_and_mul(op, quant, x, experts, routes, scratch, act)?)
    }

    /// The second half, and the sum with what the shared expert gave.
    fn sum(
        &self,
        routes: &Routes<B::Buffer>,
        shared: Option<Tensor<'_, B>>,
        y: TensorMut<'_, B>,
        workspace: &mut MoeWorkspace<B>,
    ) -> Result<()> {
        let backend = &*self.backend;
        let (request, shape) = self.second_request(y.layout.rows, y.float);
        let bytes = backend.scratch(&request, &shape);
        let scratch = workspace.scratch.reserve(backend, bytes)?;
        let act = [routes.count(), self.intermediate_size()];
        let act = workspace.act.matrix(backend, Float::BF16, act)?;
        let (quant, experts) = (self.quant.as_ref(), &*self.experts);
        let act = act.as_tensor();
        Ok(backend.grouped_matmul_sum(quant, act, experts, routes, shared, scratch, y)?)
    }

    /// Both halves, and the sum with what the shared expert gave.
    fn experts_and_sum(
        &self,
        x: Tensor<'_, B>,
        routes: &Routes<B::Buffer>,
        shared: Tensor<'_, B>,
        y: TensorMut<'_, B>,
        workspace: &mut MoeWorkspace<B>,
    ) -> Result<()> {
        let backend = &*self.backend;
        let requests = [
            self.first_request(x.layout.rows, x.float),
            self.second_request(y.layout.rows, y.float),
        ];
        let bytes = requests.map(|(request, shape)| backend.scratch(&request, &shape));
        let scratch = workspace.scratch.reserve(backend, bytes[0].max(bytes[1]))?;
        let act = [routes.count(), self.intermediate_size()];
        let act = workspace.act.matrix(backend, Float::BF16, act)?;
        let (op, quant, experts) = (&self.op, self.quant.as_ref(), &*self.experts);
        let shared = Some(shared);
        Ok(backend.grouped_mlp(op, quant, x, experts, routes, shared, scratch, act, y)?)
    }

    fn route_request(&self, rows: usize, x: Float) -> (Request, Shape) {
        let request = Request::Route {
            routing: self.gate.routing,
            x,
            weight: WeightFormat::Float(Float::BF16),
        };
        let shape = Shape {
            rows,
            cols: self.gate.routing.experts(),
            depth: self.hidden_size(),
        };
        (request, shape)
    }

    fn first_request(&self, rows: usize, x: Float) -> (Request, Shape) {
        let experts = self.experts.shape();
        let request = Request::GroupedGatedMatmul {
            op: self.op,
            quant: self.quant,
            routing: self.gate.routing,
            x,
            weight: experts.gate_up,
        };
        let shape = Shape {
            rows,
            cols: experts.intermediate.saturating_mul(2),
            depth: experts.hidden,
        };
        (request, shape)
    }

    fn second_request(&self, rows: usize, y: Float) -> (Request, Shape) {
        let experts = self.experts.shape();
        let request = Request::GroupedMatmulSum {
            quant: self.quant,
            routing: self.gate.routing,
            weight: experts.down,
            y,
        };
        let shape = Shape {
            rows,
            cols: experts.hidden,
            depth: experts.intermediate,
        };
        (request, shape)
    }

    /// Which kernels a forward pass over so many rows runs, with x and y in bf16: a line for each
    /// stage that the backend has a plan for, the shared expert's last.
    pub fn plan(&self, rows: usize) -> Vec<String> {
        let stages = [
            ("router", self.route_request(rows, Float::BF16)),
            ("experts gate_up", self.first_request(rows, Float::BF16)),
            ("experts down", self.second_request(rows, Float::BF16)),
        ];
        let line = |(name, (request, shape)): (&str, (Request, Shape))| {
            let plan = self.backend.plan(&request, &shape)?;
            Some(format!("{name} {shape}: {plan}"))
        };
        let mut lines: Vec<_> = stages.into_iter().filter_map(line).collect();
        let shared = self.shared.plan(rows).into_iter();
        lines.extend(shared.map(|line| format!("shared {line}")));
        lines
    }

    /// Elements in a row of x and y (H).
    pub fn hidden_size(&self) -> usize {
        self.experts.shape().hidden
    }

    /// Elements in a row of a routed expert's `act` (I).
    pub fn intermediate_size(&self) -> usize {
        self.experts.shape().intermediate
    }

    /// How tokens choose their experts.
    pub fn routing(&self) -> &swiglu_core::Routing {
        &self.gate.routing
    }

    /// The shared expert.
    pub const fn shared(&self) -> &DeepseekV4Mlp<B> {
        &self.shared
    }

    /// The bytes of weights of one routed expert. A pass reads those of the experts that it touches,
    /// the router's and the shared expert's.
    pub fn expert_bytes(&self) -> usize {
        self.backend.expert_bytes(&self.experts)
    }

    /// The activation of the experts.
    pub const fn activation(&self) -> &GatedActivation {
        &self.op
    }

    /// How the inputs of the experts' matmuls are quantized, if they are.
    pub const fn quantization(&self) -> Option<&Quantization> {
        self.quant.as_ref()
    }

    /// The backend that holds the weights.
    pub const fn backend(&self) -> &Arc<B> {
        &self.backend
    }

    fn check_ends(&self, x: &Tensor<'_, B>, y: &TensorMut<'_, B>) -> Result<()> {
        let shape = [x.layout.rows, self.hidden_size()];
        has_shape("x", &x.layout, shape)?;
        has_shape("y", &y.layout, shape)?;
        x.check("x")?;
        Ok(y.as_tensor().check("y")?)
    }
}
