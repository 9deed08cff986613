use std::sync::Arc;

use swiglu_core::{
    DType, Error as CoreError, GatedActivation, GatedMatmul, QuantOptions, Quantization, RowLayout,
    Support, Tensor, TensorMut,
};

use crate::workspace::QuantizedSlots;
use crate::{MlpConfig, Result, SharedExpert, Workspace};

/// The MLP of a DeepSeek-V4 shared expert: x \[T, H\] → `gate_up` \[T, 2I\] → `act` \[T, I\] →
/// y \[T, H\], bf16 between the stages.
///
/// With [`crate::ActivationQuant::Fp8Block`] both products read FP8: x is quantized, and so is
/// `act`, in the pass that computes it.
///
/// I is this rank's share: see [`Self::intermediate_size`]. With several ranks y is a partial sum;
/// give f32 for y to add them without another rounding.
pub struct DeepseekV4Mlp<B: GatedMatmul> {
    backend: Arc<B>,
    op: GatedActivation,
    quant: Option<Quantization>,
    gate_up: B::Weight,
    down: B::Weight,
    hidden: usize,
    intermediate: usize,
}

impl<B: GatedMatmul> DeepseekV4Mlp<B> {
    /// Brings this rank's part of the weights to the backend.
    ///
    /// # Errors
    /// As [`MlpConfig::check`] and [`SharedExpert::check`], an activation, a quantization or a type
    /// of weight that the backend does not support, quantized activations with weights that are not
    /// FP8 in blocks as wide as `config.block` says, or a failure of the device.
    pub fn load(backend: Arc<B>, config: &MlpConfig, weights: &SharedExpert<'_>) -> Result<Self> {
        config.check()?;
        weights.check(config.hidden_size, config.intermediate_size)?;
        let op = config.activation()?;
        let quant = config.quantization()?;
        supported(
            &*backend,
            op.name(),
            DType::BF16,
            backend.supports(&op, DType::BF16),
        )?;
        for dtype in [weights.gate().dtype(), weights.down().dtype()] {
            supported(
                &*backend,
                "a product",
                dtype,
                backend.supports_weight(dtype),
            )?;
        }
        if let Some(quant) = &quant {
            weights.check_quantized(quant)?;
            supported(
                &*backend,
                &format!("a product with {quant}"),
                DType::F8E4M3,
                backend.supports_quantized(quant, DType::F8E4M3),
            )?;
        }
        let cut = weights.shard(config.shard)?;
        let weights = match &cut {
            Some(cut) => cut.view()?,
            None => weights.clone(),
        };
        Ok(Self {
            gate_up: backend.load_gate_up(*weights.gate(), *weights.up())?,
            down: backend.load_weight(&[*weights.down()])?,
            hidden: config.hidden_size,
            intermediate: weights.gate().rows(),
            op,
            quant,
            backend,
        })
    }

    /// Enqueues y = mlp(x): x \[T, H\] to y \[T, H\], each bf16, f16 or f32. Nothing is allocated
    /// where `workspace` has seen as large a T before; T = 0 does nothing.
    ///
    /// # Errors
    /// Shapes, types or buffers that do not fit, or a failure of the device.
    pub fn forward(
        &self,
        x: Tensor<'_, B::Buffer>,
        y: TensorMut<'_, B::Buffer>,
        workspace: &mut Workspace<B>,
    ) -> Result<()> {
        self.check_ends(&x, &y)?;
        if x.layout.rows == 0 {
            return Ok(());
        }
        let (backend, rows, i) = (&*self.backend, x.layout.rows, self.intermediate);
        let Workspace {
            gate_up,
            act,
            quantized,
        } = workspace;
        let mut gate_up = gate_up.matrix(backend, DType::BF16, rows, 2 * i)?;
        let Some(quant) = &self.quant else {
            let mut act = act.matrix(backend, DType::BF16, rows, i)?;
            backend.matmul_act_and_mul(&self.op, x, &self.gate_up, gate_up, act.reborrow())?;
            return Ok(backend.matmul(act.as_ref(), &self.down, y)?);
        };
        quantized.reserve(backend, quant, rows, self.hidden.max(i))?;
        self.product(x, &self.gate_up, gate_up.reborrow(), quantized)?;
        let (mut act, widened) = quantized.matrix(backend, quant, rows, i)?;
        let options = QuantOptions::default();
        backend.act_and_mul_quant(&self.op, quant, gate_up.as_ref(), act.reborrow(), options)?;
        Ok(backend.matmul_quantized(quant, act.as_ref(), &self.down, widened, y)?)
    }

    /// As [`Self::forward`], stage by stage into the caller's memory and never fused: `gate_up`
    /// \[T, 2I\] and `act` \[T, I\] are bf16 and hold what the stages gave, `act` before it is
    /// quantized.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn forward_stages(
        &self,
        x: Tensor<'_, B::Buffer>,
        mut gate_up: TensorMut<'_, B::Buffer>,
        mut act: TensorMut<'_, B::Buffer>,
        y: TensorMut<'_, B::Buffer>,
        workspace: &mut Workspace<B>,
    ) -> Result<()> {
        self.check_ends(&x, &y)?;
        let rows = x.layout.rows;
        let stages = [
            ("gate_up", &gate_up, 2 * self.intermediate),
            ("act", &act, self.intermediate),
        ];
        for (argument, stage, cols) in stages {
            if stage.dtype != DType::BF16 {
                return Err(CoreError::argument(argument, "bf16", stage.dtype).into());
            }
            self.check_matrix(argument, &stage.as_ref(), rows, cols)?;
        }
        if rows == 0 {
            return Ok(());
        }
        let slots = &mut workspace.quantized;
        self.product(x, &self.gate_up, gate_up.reborrow(), slots)?;
        self.backend
            .act_and_mul(&self.op, gate_up.as_ref(), act.reborrow())?;
        self.product(act.as_ref(), &self.down, y, slots)
    }

    /// y = x · wᵀ, of x quantized where activations are.
    fn product(
        &self,
        x: Tensor<'_, B::Buffer>,
        weight: &B::Weight,
        y: TensorMut<'_, B::Buffer>,
        slots: &mut QuantizedSlots<B::Buffer>,
    ) -> Result<()> {
        let backend = &*self.backend;
        let Some(quant) = &self.quant else {
            return Ok(backend.matmul(x, weight, y)?);
        };
        let RowLayout { rows, cols, .. } = x.layout;
        let (mut codes, widened) = slots.matrix(backend, quant, rows, cols)?;
        backend.quantize(quant, x, codes.reborrow())?;
        Ok(backend.matmul_quantized(quant, codes.as_ref(), weight, widened, y)?)
    }

    /// Elements in a row of x and y (H).
    pub const fn hidden_size(&self) -> usize {
        self.hidden
    }

    /// Elements in a row of `act` (I): those of this rank, its padding included.
    pub const fn intermediate_size(&self) -> usize {
        self.intermediate
    }

    /// The bytes of weights that a forward pass reads.
    pub fn weight_bytes(&self) -> usize {
        self.backend.weight_bytes(&self.gate_up) + self.backend.weight_bytes(&self.down)
    }

    /// The activation between the products.
    pub const fn activation(&self) -> &GatedActivation {
        &self.op
    }

    /// How the inputs of the products are quantized, if they are.
    pub const fn quantization(&self) -> Option<&Quantization> {
        self.quant.as_ref()
    }

    /// The backend that holds the weights.
    pub const fn backend(&self) -> &Arc<B> {
        &self.backend
    }

    fn check_ends(&self, x: &Tensor<'_, B::Buffer>, y: &TensorMut<'_, B::Buffer>) -> Result<()> {
        self.check_matrix("x", x, x.layout.rows, self.hidden)?;
        self.check_matrix("y", &y.as_ref(), x.layout.rows, self.hidden)
    }

    /// Checks a whole call before its first stage is enqueued.
    fn check_matrix(
        &self,
        argument: &'static str,
        matrix: &Tensor<'_, B::Buffer>,
        rows: usize,
        cols: usize,
    ) -> Result<()> {
        let RowLayout {
            rows: r, cols: c, ..
        } = matrix.layout;
        if !DType::COMPUTE.contains(&matrix.dtype) {
            return Err(CoreError::argument(argument, "f32, f16 or bf16", matrix.dtype).into());
        }
        if (r, c) != (rows, cols) {
            let expected = format!("shape [{rows}, {cols}]");
            return Err(CoreError::argument(argument, expected, format!("[{r}, {c}]")).into());
        }
        let elements = self.backend.len(matrix.buffer) / matrix.dtype.size();
        Ok(matrix.layout.check(argument, elements)?)
    }
}

fn supported<B: GatedMatmul>(
    backend: &B,
    what: &str,
    dtype: DType,
    support: Support,
) -> Result<()> {
    match support {
        Support::Native | Support::Emulated(_) => Ok(()),
        Support::No(reason) => Err(CoreError::Unsupported {
            platform: backend.platform().to_owned(),
            what: what.to_owned(),
            dtype,
            reason,
        }
        .into()),
    }
}
