use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, DType, Device, Layout, MetalStorage, Module,
    Result, Shape, Tensor,
};
use candle_nn::VarBuilder;
use swiglu_core::{Float, GatedActivation};
use swiglu_cpu::CpuBackend;
use swiglu_mlp::{Checkpoint, MlpConfig, SharedExpert, Workspace};

use crate::error::{OrCandle as _, argument, float, no_gradient, no_metal};
use crate::host::{filled, matrix};
use crate::weights::Weights;

const NAME: &str = "deepseek_v4_mlp";

/// The MLP of a DeepSeek-V4 shared expert as a module: x \[.., H\] → `gate_up` \[.., 2I\] → `act`
/// \[.., I\] → y \[.., H\] in x's type.
///
/// Between the stages it is bf16 as DeepSeek has it, whatever x is; [`Self::builder`] has another
/// type. The weights are copied into the form that the matmuls read, on the device that they are
/// loaded for; FP8 weights stay FP8. With several ranks y is a partial sum, as
/// [`swiglu_mlp::DeepseekV4Mlp`] says.
///
/// Many threads may run one module, or clones of it, which share the weights: on the CPU side by
/// side, on CUDA one after another on the device's stream.
///
/// ```
/// use std::collections::HashMap;
/// use candle_core::{DType, Device, Module, Tensor};
/// use candle_nn::VarBuilder;
/// use swiglu_candle::{DeepseekV4Mlp, ModelConfig};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let json = r#"{"model_type": "deepseek_v4", "hidden_size": 32, "moe_intermediate_size": 16,
/// #     "n_shared_experts": 1, "hidden_act": "silu", "swiglu_limit": 10.0}"#;
/// let config = ModelConfig::from_json(json)?.mlp_config("layers.3.ffn.shared_experts")?;
/// # let mut tensors = HashMap::new();
/// # for (name, shape) in [("w1", (16, 32)), ("w3", (16, 32)), ("w2", (32, 16))] {
/// #     let weight = Tensor::ones(shape, DType::BF16, &Device::Cpu)?;
/// #     tensors.insert(format!("layers.3.ffn.shared_experts.{name}.weight"), weight);
/// # }
/// # let vb = VarBuilder::from_tensors(tensors, DType::BF16, &Device::Cpu);
/// let mlp = DeepseekV4Mlp::new(&config, vb)?; // vb at the root of the checkpoint
/// let x = Tensor::ones((2, 5, 32), DType::BF16, &Device::Cpu)?;
/// assert_eq!(mlp.forward(&x)?.dims(), [2, 5, 32]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct DeepseekV4Mlp {
    placed: Arc<Placed>,
    /// One element of a weight that a gradient is kept for: with it a backward pass comes by, and is
    /// refused. Without, the weight would be taken for one that y does not depend on.
    tracked: Option<Tensor>,
}

/// An MLP on the device of its weights.
enum Placed {
    Cpu(CpuMlp),
    #[cfg(feature = "cuda")]
    Cuda(crate::cuda::CudaMlp),
}

struct CpuMlp {
    mlp: swiglu_mlp::DeepseekV4Mlp<CpuBackend>,
    /// One for each call that was under way at once.
    workspaces: Mutex<Vec<Workspace<CpuBackend>>>,
}

/// How a [`DeepseekV4Mlp`] is made.
#[derive(Clone, Copy, Debug)]
pub struct MlpBuilder<'a> {
    config: &'a MlpConfig,
    stages: DType,
}

impl MlpBuilder<'_> {
    /// The type of `gate_up` and `act`; bf16 by default. A model that is f32 throughout has f32 here
    /// too.
    #[must_use]
    pub const fn stages(self, dtype: DType) -> Self {
        Self {
            stages: dtype,
            ..self
        }
    }

    /// Takes f32, f16 or bf16 weights out of a [`VarBuilder`], in its type and for its device. Their
    /// names begin with its prefix, then the configuration's where that is not empty, and go on as
    /// DeepSeek's (`w1`, `w3`, `w2`) or Hugging Face's (`gate_proj`, `up_proj`, `down_proj`), or with
    /// gate and up in one matrix, gate first (`gate_up_proj`, `down_proj`).
    ///
    /// # Errors
    /// Weights that are missing, misshaped or of another type; two namings at once; scales, without
    /// which FP8 weights mean nothing: [`Self::load`] reads those; a bias; whatever
    /// [`swiglu_mlp::DeepseekV4Mlp::load`] refuses; a device that is not the CPU or CUDA.
    pub fn build(self, vb: VarBuilder<'_>) -> Result<DeepseekV4Mlp> {
        let device = vb.device().clone();
        let weights = Weights::find(self.config, vb)?;
        let placed = weights.as_expert(|expert| self.place(expert, &device))?;
        let tracked = weights.tracked()?.map(|weight| weight.to_device(&device));
        Ok(DeepseekV4Mlp {
            placed: Arc::new(placed),
            tracked: tracked.transpose()?,
        })
    }

    /// Takes the weights under the configuration's prefix out of a [`Checkpoint`]: FP8, f32, f16 or
    /// bf16, by either naming.
    ///
    /// # Errors
    /// As [`SharedExpert::load`] and [`Self::load_expert`].
    pub fn load(self, checkpoint: &Checkpoint, device: &Device) -> Result<DeepseekV4Mlp> {
        let expert = SharedExpert::load(checkpoint, self.config).or_candle()?;
        self.load_expert(&expert, device)
    }

    /// Takes weights in host memory.
    ///
    /// # Errors
    /// As [`swiglu_mlp::DeepseekV4Mlp::load`]; stages of a type that there is not; a device that is not
    /// the CPU or CUDA.
    pub fn load_expert(self, expert: &SharedExpert<'_>, device: &Device) -> Result<DeepseekV4Mlp> {
        Ok(DeepseekV4Mlp {
            placed: Arc::new(self.place(expert, device)?),
            tracked: None,
        })
    }

    fn place(self, expert: &SharedExpert<'_>, device: &Device) -> Result<Placed> {
        let stages = float("stages", self.stages)?;
        match device {
            Device::Cpu => CpuMlp::new(self.config, expert, stages).map(Placed::Cpu),
            #[cfg(feature = "cuda")]
            Device::Cuda(device) => {
                crate::cuda::CudaMlp::new(self.config, expert, stages, device).map(Placed::Cuda)
            }
            #[cfg(not(feature = "cuda"))]
            Device::Cuda(_) => Err(crate::error::no_cuda(NAME)),
            Device::Metal(_) => Err(no_metal(NAME)),
        }
    }
}

impl DeepseekV4Mlp {
    /// How an MLP is made, where [`Self::new`] and [`Self::load`] do not say enough.
    ///
    /// ```no_run
    /// # use candle_core::{DType, Device};
    /// # use swiglu_candle::{Checkpoint, DeepseekV4Mlp, MlpConfig};
    /// # fn load(config: &MlpConfig, checkpoint: &Checkpoint) -> candle_core::Result<()> {
    /// let builder = DeepseekV4Mlp::builder(config).stages(DType::F32);
    /// let mlp = builder.load(checkpoint, &Device::Cpu)?;
    /// # drop(mlp);
    /// # Ok(())
    /// # }
    /// ```
    pub const fn builder(config: &MlpConfig) -> MlpBuilder<'_> {
        MlpBuilder {
            config,
            stages: DType::BF16,
        }
    }

    /// The MLP of the weights in a [`VarBuilder`], with bf16 between its stages.
    ///
    /// # Errors
    /// As [`MlpBuilder::build`].
    pub fn new(config: &MlpConfig, vb: VarBuilder<'_>) -> Result<Self> {
        Self::builder(config).build(vb)
    }

    /// The MLP of the weights in a [`Checkpoint`], with bf16 between its stages.
    ///
    /// # Errors
    /// As [`MlpBuilder::load`].
    pub fn load(config: &MlpConfig, checkpoint: &Checkpoint, device: &Device) -> Result<Self> {
        Self::builder(config).load(checkpoint, device)
    }

    /// Elements in a row of x and y (H).
    pub fn hidden_size(&self) -> usize {
        match &*self.placed {
            Placed::Cpu(on) => on.mlp.hidden_size(),
            #[cfg(feature = "cuda")]
            Placed::Cuda(on) => on.mlp().hidden_size(),
        }
    }

    /// Elements in a row of `act` (I): those of this rank.
    pub fn intermediate_size(&self) -> usize {
        match &*self.placed {
            Placed::Cpu(on) => on.mlp.intermediate_size(),
            #[cfg(feature = "cuda")]
            Placed::Cuda(on) => on.mlp().intermediate_size(),
        }
    }

    /// The activation between the matmuls.
    pub fn activation(&self) -> &GatedActivation {
        match &*self.placed {
            Placed::Cpu(on) => on.mlp.activation(),
            #[cfg(feature = "cuda")]
            Placed::Cuda(on) => on.mlp().activation(),
        }
    }

    /// The device that the weights are on, and x must be.
    pub fn device(&self) -> Device {
        match &*self.placed {
            Placed::Cpu(_) => Device::Cpu,
            #[cfg(feature = "cuda")]
            Placed::Cuda(on) => Device::Cuda(on.device().clone()),
        }
    }
}

impl fmt::Debug for DeepseekV4Mlp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.placed {
            Placed::Cpu(on) => fmt::Debug::fmt(&on.mlp, f),
            #[cfg(feature = "cuda")]
            Placed::Cuda(on) => fmt::Debug::fmt(on.mlp(), f),
        }
    }
}

/// y = mlp(x): x \[.., H\] in f32, f16 or bf16, of which [`crate`] says how its rows may lie.
///
/// Errors are those of shapes, types and devices that do not fit, and failures of the device.
impl Module for DeepseekV4Mlp {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let forward = Forward(self.placed.clone());
        match &self.tracked {
            None => x.apply_op1(forward),
            Some(weight) => x.apply_op2(weight, forward),
        }
    }
}

impl CpuMlp {
    fn new(config: &MlpConfig, expert: &SharedExpert<'_>, stages: Float) -> Result<Self> {
        let backend = Arc::new(CpuBackend::new());
        let mlp = swiglu_mlp::DeepseekV4Mlp::load(backend, config, expert);
        let mlp = mlp.and_then(|mlp| mlp.with_stages(stages)).or_candle()?;
        Ok(Self {
            mlp,
            workspaces: Mutex::default(),
        })
    }

    fn forward(&self, storage: &CpuStorage, layout: &Layout) -> Result<CpuStorage> {
        let x = matrix("x", storage, layout)?;
        let kept = || {
            self.workspaces
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        };
        filled(x.float, [x.layout.rows, x.layout.cols], |y| {
            let mut workspace = kept().pop().unwrap_or_default();
            let done = self.mlp.forward(x, y, &mut workspace);
            kept().push(workspace);
            done.or_candle()
        })
    }
}

/// A forward pass as a custom operation: of x, and of a weight for whose gradient [`DeepseekV4Mlp`]
/// is asked in vain.
struct Forward(Arc<Placed>);

impl Forward {
    fn on_cpu(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        match &*self.0 {
            Placed::Cpu(on) => Ok((on.forward(x, layout)?, layout.shape().clone())),
            #[cfg(feature = "cuda")]
            Placed::Cuda(_) => {
                let expected = "a tensor on CUDA, as the weights are";
                Err(argument("x", expected, "one on the CPU"))
            }
        }
    }

    #[cfg(feature = "cuda")]
    fn on_cuda(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        match &*self.0 {
            Placed::Cuda(on) => Ok((on.forward(x, layout)?, layout.shape().clone())),
            Placed::Cpu(_) => Err(not_on_cpu("CUDA")),
        }
    }

    #[cfg(not(feature = "cuda"))]
    fn on_cuda(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        let Placed::Cpu(_) = &*self.0;
        Err(not_on_cpu("CUDA"))
    }
}

/// The error of an x elsewhere than weights on the CPU.
fn not_on_cpu(place: &str) -> candle_core::Error {
    let expected = "a tensor on the CPU, as the weights are";
    argument("x", expected, format!("one on {place}"))
}

impl CustomOp1 for Forward {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        self.on_cpu(x, layout)
    }

    fn cuda_fwd(&self, x: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        self.on_cuda(x, layout)
    }

    fn metal_fwd(&self, _: &MetalStorage, _: &Layout) -> Result<(MetalStorage, Shape)> {
        Err(no_metal(NAME))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        Err(no_gradient(NAME))
    }
}

impl CustomOp2 for Forward {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.on_cpu(x, layout)
    }

    fn cuda_fwd(
        &self,
        x: &CudaStorage,
        layout: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.on_cuda(x, layout)
    }

    fn metal_fwd(
        &self,
        _: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        Err(no_metal(NAME))
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Err(no_gradient(NAME))
    }
}
