mod forward;

use std::fmt;
use std::sync::Arc;

use swiglu_core::{
    ActAndMul, Communicator, Error as CoreError, Float, GatedActivation, Matmul, Quantization,
    Quantize, RowLayout, Tensor, TensorMut,
};

use crate::stage::{Stage, Stages};
use crate::{Error, MlpConfig, Result, SharedExpert, Workspace};

/// The MLP of a DeepSeek-V4 shared expert: x \[T, H\] → `gate_up` \[T, 2I\] → `act` \[T, I\] →
/// y \[T, H\], bf16 between the stages unless [`Self::with_stages`] says otherwise.
///
/// With [`crate::ActivationQuant::Fp8Block`] both matmuls read FP8: x is quantized, and so is
/// `act`, in the pass that computes it.
///
/// I is this rank's share: see [`Self::intermediate_size`]. With several ranks and
/// [`MlpConfig::reduce_results`] the ranks add up what each computed, in f32, and round once;
/// without it y is a partial sum: give f32 for y to add them without another rounding.
pub struct DeepseekV4Mlp<B: Matmul> {
    backend: Arc<B>,
    /// There if results are to be reduced over several ranks.
    ranks: Option<Arc<dyn Communicator<B>>>,
    stages: Stages,
    /// Gate and up in one, or where they are stored differently each by itself.
    gate_up: Arc<[B::Weight]>,
    down: Arc<B::Weight>,
}

impl<B: Matmul> fmt::Debug for DeepseekV4Mlp<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeepseekV4Mlp")
            .field("backend", &self.backend.platform())
            .field("stages", &self.stages)
            .finish_non_exhaustive()
    }
}

impl<B: ActAndMul + Quantize + Matmul> DeepseekV4Mlp<B> {
    /// Brings this rank's part of the weights to the backend.
    ///
    /// # Errors
    /// As [`MlpConfig::requests`] and [`SharedExpert::check`], a request that the backend does not
    /// support, results to be reduced over several ranks, or a failure of the device.
    pub fn load(backend: Arc<B>, config: &MlpConfig, weights: &SharedExpert<'_>) -> Result<Self> {
        Self::new(backend, config, weights, None)
    }

    /// As [`Self::load`], for a rank of several. All ranks make the same calls with the same x;
    /// they communicate only where results are to be reduced and the MLP is split.
    ///
    /// # Errors
    /// As [`Self::load`], and a communicator of another rank or world than [`MlpConfig::shard`].
    pub fn load_on_ranks(
        backend: Arc<B>,
        config: &MlpConfig,
        weights: &SharedExpert<'_>,
        ranks: Arc<dyn Communicator<B>>,
    ) -> Result<Self> {
        let (rank, world) = (config.shard.rank, config.shard.world);
        if (ranks.rank(), ranks.world()) != (rank, world) {
            let expected = format!("rank {rank} of {world}, as the shard says");
            let got = format!("rank {} of {}", ranks.rank(), ranks.world());
            return Err(CoreError::argument("ranks", expected, got).into());
        }
        Self::new(backend, config, weights, Some(ranks))
    }

    fn new(
        backend: Arc<B>,
        config: &MlpConfig,
        weights: &SharedExpert<'_>,
        ranks: Option<Arc<dyn Communicator<B>>>,
    ) -> Result<Self> {
        let ranks = ranks.filter(|_| config.reduces());
        if config.reduces() && ranks.is_none() {
            let expected = "false, or a communicator of the ranks (DeepseekV4Mlp::load_on_ranks)";
            let got = format!("true with {} ranks", config.shard.world);
            return Err(Error::config("reduce_results", expected, got));
        }
        let quant = config.stages(weights.formats())?.quant;
        weights.check(config.hidden_size, config.intermediate_size)?;
        let part = weights.part(config.shard, quant.as_ref())?;
        let stages = Stages {
            intermediate: part.gate().rows(),
            ..config.stages(part.formats())?
        };
        runs(&*backend, &stages)?;
        let SharedExpert { gate, up, down, .. } = part;
        let gate_up = match stages.is_merged() {
            true => vec![backend.load_gate_up(gate, up)?],
            false => vec![backend.load_weight(&[gate])?, backend.load_weight(&[up])?],
        };
        Ok(Self {
            gate_up: gate_up.into(),
            down: Arc::new(backend.load_weight(&[down])?),
            ranks,
            stages,
            backend,
        })
    }

    /// The same MLP on another backend over the same device's memory, such as one for another stream:
    /// the weights are shared, not loaded again. Each needs a workspace of its own.
    #[must_use]
    pub fn on(&self, backend: Arc<B>) -> Self {
        Self {
            backend,
            ranks: self.ranks.clone(),
            stages: self.stages,
            gate_up: Arc::clone(&self.gate_up),
            down: Arc::clone(&self.down),
        }
    }

    /// The same MLP with `gate_up` and `act` in this type; bf16 is DeepSeek's. A model that is f32
    /// throughout has f32 here too.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use swiglu_core::{Float, HostWeight, WeightFormat, reference::Reference};
    /// # use swiglu_mlp::{DeepseekV4Mlp, ModelConfig, SharedExpert};
    /// # fn main() -> Result<(), swiglu_mlp::Error> {
    /// # let json = r#"{"model_type": "deepseek_v4", "hidden_size": 1, "moe_intermediate_size": 1,
    /// #     "n_shared_experts": 1, "hidden_act": "silu", "swiglu_limit": 10.0}"#;
    /// # let config = ModelConfig::from_json(json)?.mlp_config("")?;
    /// # let (one, f32s) = (1.0_f32.to_le_bytes(), WeightFormat::Float(Float::F32));
    /// # let weight = || HostWeight::new([1, 1], f32s, &one, &[]);
    /// # let weights = SharedExpert::new(weight()?, weight()?, weight()?);
    /// let mlp = DeepseekV4Mlp::load(Arc::new(Reference), &config, &weights)?;
    /// let mlp = mlp.with_stages(Float::F32)?;
    /// # drop(mlp);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Another type than bf16 where the matmuls read FP8, or one that the backend does not support.
    pub fn with_stages(mut self, float: Float) -> Result<Self> {
        if self.stages.quant.is_some() && float != Float::BF16 {
            let expected = "bf16, as the matmuls read FP8 activations";
            return Err(Error::config("stages", expected, float));
        }
        self.stages.float = float;
        runs(&*self.backend, &self.stages)?;
        Ok(self)
    }

    /// Enqueues y = mlp(x): x \[T, H\] to y \[T, H\], each bf16, f16 or f32, where they lie. Nothing
    /// is allocated where `workspace` has seen as large a T before, on the device or on the host;
    /// T = 0 does nothing.
    ///
    /// # Errors
    /// Shapes or views that do not fit, or a failure of the device.
    pub fn forward(
        &self,
        x: Tensor<'_, B>,
        y: TensorMut<'_, B>,
        workspace: &mut Workspace<B>,
    ) -> Result<()> {
        self.check_ends(&x, &y)?;
        if x.layout.rows == 0 {
            return Ok(());
        }
        self.reduce(y, workspace, |y, workspace| self.run(x, y, workspace))
    }

    /// Its weights, if they are two and read x as it is, for this rank alone.
    pub(crate) fn merged(&self) -> Option<[&B::Weight; 2]> {
        let plain = self.stages.quant.is_none() && self.ranks.is_none();
        match &self.gate_up[..] {
            [both] if plain => Some([both, &self.down]),
            _ => None,
        }
    }

    /// The elements' type between the stages.
    pub(crate) const fn between(&self) -> Float {
        self.stages.float
    }

    /// As [`Self::forward`], stage by stage into the caller's memory and never fused: `gate_up`
    /// \[T, 2I\] and `act` \[T, I\] are of the stages' type and hold what the stages gave, `act` before it is
    /// quantized.
    ///
    /// # Errors
    /// As [`Self::forward`], and a stage by itself that the backend does not support.
    pub fn forward_stages(
        &self,
        x: Tensor<'_, B>,
        mut gate_up: TensorMut<'_, B>,
        mut act: TensorMut<'_, B>,
        y: TensorMut<'_, B>,
        workspace: &mut Workspace<B>,
    ) -> Result<()> {
        self.check_ends(&x, &y)?;
        let (rows, i) = (x.layout.rows, self.stages.intermediate);
        is_stage("gate_up", &gate_up, self.stages.float, [rows, 2 * i])?;
        is_stage("act", &act, self.stages.float, [rows, i])?;
        if rows == 0 {
            return Ok(());
        }
        self.reduce(y, workspace, |y, workspace| {
            self.run_stages(x, [gate_up.reborrow(), act.reborrow()], y, workspace)
        })
    }

    /// Which kernels a forward pass over so many rows runs, with x and y in bf16: a line for each
    /// stage that the backend has a plan for.
    pub fn plan(&self, rows: usize) -> Vec<String> {
        self.stages
            .plan(rows, |request, shape| self.backend.plan(request, shape))
    }

    /// Elements in a row of x and y (H).
    pub const fn hidden_size(&self) -> usize {
        self.stages.hidden
    }

    /// Elements in a row of `act` (I): those of this rank, its padding included.
    pub const fn intermediate_size(&self) -> usize {
        self.stages.intermediate
    }

    /// The bytes of weights that a forward pass reads.
    pub fn weight_bytes(&self) -> usize {
        let weights = self.gate_up.iter().chain([&*self.down]);
        weights.map(|w| self.backend.weight_bytes(w)).sum()
    }

    /// The activation between the matmuls.
    pub const fn activation(&self) -> &GatedActivation {
        &self.stages.op
    }

    /// How the inputs of the matmuls are quantized, if they are.
    pub const fn quantization(&self) -> Option<&Quantization> {
        self.stages.quant.as_ref()
    }

    /// The backend that holds the weights.
    pub const fn backend(&self) -> &Arc<B> {
        &self.backend
    }

    /// Checks of x and y what the stages would find too late, or under another name: the first
    /// stage has then run, or the workspace has grown for rows that do not exist.
    fn check_ends(&self, x: &Tensor<'_, B>, y: &TensorMut<'_, B>) -> Result<()> {
        let shape = [x.layout.rows, self.stages.hidden];
        has_shape("x", &x.layout, shape)?;
        has_shape("y", &y.layout, shape)?;
        y.as_tensor().check("y")?;
        match self.stages.quant {
            // `quantize` would call it its input.
            Some(_) => Ok(x.check("x")?),
            None => Ok(()),
        }
    }
}

/// Checks that the backend runs each of the stages.
fn runs<B: Matmul>(backend: &B, stages: &Stages) -> Result<()> {
    for Stage { request, .. } in stages.list() {
        let support = backend.supports(&request);
        support.required(backend.platform(), &request)?;
    }
    Ok(())
}

/// Checks that a caller's matrix has the shape that a pass reads or writes.
pub(crate) fn has_shape(
    argument: &'static str,
    layout: &RowLayout,
    [rows, cols]: [usize; 2],
) -> Result<()> {
    let got = [layout.rows, layout.cols];
    if got == [rows, cols] {
        return Ok(());
    }
    let expected = format!("shape [{rows}, {cols}]");
    let got = format!("[{}, {}]", got[0], got[1]);
    Err(CoreError::argument(argument, expected, got).into())
}

/// Checks the caller's memory for what a stage gives.
fn is_stage<B: Matmul>(
    argument: &'static str,
    matrix: &TensorMut<'_, B>,
    float: Float,
    shape: [usize; 2],
) -> Result<()> {
    if matrix.float != float {
        return Err(CoreError::argument(argument, float.name(), matrix.float).into());
    }
    has_shape(argument, &matrix.layout, shape)?;
    Ok(matrix.as_tensor().check(argument)?)
}
