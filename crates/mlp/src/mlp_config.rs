use std::str::FromStr;

use swiglu_core::{
    Error as CoreError, Float, GatedActivation, Limit, Quantization, Request, Rounding,
    ScaleFormat, WeightFormat,
};

use crate::expert::{Matrices, MlpTensors};
use crate::stage::Stages;
use crate::{Checkpoint, Error, Result, Shard};

/// What gate and up go through. The first is DeepSeek's; a configuration's `hidden_act` says
/// `silu` for all of them.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum HiddenAct {
    /// silu(gate) · up. A limit clamps before the function: `silu_and_mul_with_clamp`.
    Silu,
    /// gate·sigmoid(alpha·gate) · (up + beta), which needs a limit and clamps before the function:
    /// MiniMax-M3.
    SwigluOai {
        /// What the gate is multiplied by in the sigmoid.
        alpha: f32,
        /// What is added to the clamped up half.
        beta: f32,
    },
    /// silu(gate) · up, where a limit clamps silu(gate), after the function: Step and Ling.
    SwigluStep,
}

impl FromStr for HiddenAct {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "silu" => Ok(Self::Silu),
            other => Err(Error::config(
                "hidden_act",
                "\"silu\"",
                format!("{other:?}"),
            )),
        }
    }
}

/// What the two matmuls read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ActivationQuant {
    /// Their inputs as they are: bf16 between the stages.
    #[default]
    None,
    /// FP8, as DeepSeek runs its FP8 weights: each row in groups as wide as the weights' blocks,
    /// scales powers of two. See [`MlpConfig::quantization`].
    Fp8Block,
}

/// What an MLP is built from. There is no default: a limit in particular must be stated, for an MLP
/// that silently lost its clamp still gives plausible results.
#[derive(Clone, Debug, PartialEq)]
pub struct MlpConfig {
    /// Elements in a row of the input and the output (H).
    pub hidden_size: usize,
    /// Outputs of gate and up and inputs of down (I), of the whole MLP, not of a shard.
    pub intermediate_size: usize,
    /// The activation.
    pub hidden_act: HiddenAct,
    /// The limit of the clamp; `None` is no clamp.
    pub limit: Option<Limit>,
    /// Where the activation rounds.
    pub rounding: Rounding,
    /// Rows and columns that share a scale of FP8 weights; `None` is what the shapes of the scales
    /// say. Of no effect for other weights.
    pub block: Option<[usize; 2]>,
    /// Whether scales are known to be UE8M0, so that those stored as plain bytes (U8) are
    /// [`swiglu_core::E8M0`].
    pub ue8m0: bool,
    /// Whether the inputs of the matmuls are quantized, which takes FP8 weights.
    pub activation_quant: ActivationQuant,
    /// Whether the ranks' partial sums are added up, which takes a communicator
    /// ([`crate::DeepseekV4Mlp::load_on_ranks`]). If not, the caller adds them.
    pub reduce_results: bool,
    /// Which part of the MLP this is.
    pub shard: Shard,
    /// What the names of its tensors begin with, such as `layers.3.ffn.shared_experts`.
    pub prefix: String,
}

impl MlpConfig {
    /// The largest side of a block. Those in use have 128; the bound keeps the padding of a shard
    /// from growing with a number in a file.
    pub const MAX_BLOCK: usize = 1 << 16;

    /// The activation between the matmuls.
    ///
    /// # Errors
    /// [`HiddenAct::SwigluOai`] without a limit, or with an alpha or a beta that it does not take.
    pub fn activation(&self) -> Result<GatedActivation> {
        let op = match (self.hidden_act, self.limit) {
            (HiddenAct::Silu, Some(limit)) => {
                GatedActivation::silu_and_mul_with_clamp(limit.get(), 1.0, 0.0)?
            }
            (HiddenAct::SwigluOai { alpha, beta }, Some(limit)) => {
                GatedActivation::silu_and_mul_with_clamp(limit.get(), alpha, beta)?
            }
            (HiddenAct::SwigluStep, Some(limit)) => {
                GatedActivation::swiglustep_and_mul(limit.get())?
            }
            (HiddenAct::Silu | HiddenAct::SwigluStep, None) => GatedActivation::silu_and_mul(),
            (HiddenAct::SwigluOai { .. }, None) => {
                let expected = "a limit, as the activation with alpha and beta has one";
                return Err(Error::config("limit", expected, "none"));
            }
        };
        Ok(op.with_rounding(self.rounding))
    }

    /// How the inputs of both matmuls are quantized, if they are: [`Quantization::deepseek_v4`]
    /// with blocks 128 wide, [`Quantization::deepseek_v4_1`] with 32.
    ///
    /// # Errors
    /// [`ActivationQuant::Fp8Block`] without [`Self::block`], or with blocks of a width for which
    /// there are no groups.
    pub fn quantization(&self) -> Result<Option<Quantization>> {
        if self.activation_quant == ActivationQuant::None {
            return Ok(None);
        }
        let Some([_, width]) = self.block else {
            let expected = "none with weights that are not FP8 in blocks";
            return Err(Error::config("activation_quant", expected, "FP8"));
        };
        match Quantization::new(width, ScaleFormat::E8M0) {
            Ok(quant) => Ok(Some(quant)),
            Err(_) => {
                let expected = "a width of 128, 64 or 32 for FP8 activations";
                Err(Error::config("block", expected, width))
            }
        }
    }

    /// What a forward pass asks of its backend, stage by stage, with gate and up weights stored as
    /// `gate_up` says and a down weight as `down` says, x and y in bf16: what
    /// [`crate::DeepseekV4Mlp::load`] requires.
    ///
    /// # Errors
    /// As [`Self::check`], and FP8 activations with weights that are not FP8 in blocks as wide as
    /// [`Self::block`] says.
    pub fn requests(&self, gate_up: WeightFormat, down: WeightFormat) -> Result<Vec<Request>> {
        let stages = self.stages([gate_up, gate_up, down])?.list();
        Ok(stages.into_iter().map(|stage| stage.request).collect())
    }

    /// The stages of the whole MLP, checked, with gate, up and down stored so.
    pub(crate) fn stages(&self, [gate, up, down]: [WeightFormat; 3]) -> Result<Stages> {
        self.check()?;
        let quant = self.quantization()?;
        if let Some(quant) = &quant {
            reads_quantized(quant, "gate", gate)?;
            reads_quantized(quant, "up", up)?;
            reads_quantized(quant, "down", down)?;
        }
        Ok(Stages {
            op: self.activation()?,
            quant,
            float: Float::BF16,
            gate,
            up,
            down,
            y: if self.reduces() {
                Float::F32
            } else {
                Float::BF16
            },
            hidden: self.hidden_size,
            intermediate: self.intermediate_size,
        })
    }

    /// The same with what is left to a checkpoint's tensors: I of an MLP whose prefix does not end
    /// with `shared_experts`, such as a dense one, and the block of FP8 weights where none is given.
    ///
    /// # Errors
    /// As [`crate::SharedExpert::load`].
    pub fn with_tensors(mut self, checkpoint: &Checkpoint) -> Result<Self> {
        if !self.is_shared_expert() {
            let found = MlpTensors::find(checkpoint, &self.prefix)?;
            self.intermediate_size = found.intermediate().unwrap_or(self.intermediate_size);
        }
        if self.block.is_none() {
            // FP8 activations go by the block, which is not known yet.
            let activation_quant = std::mem::take(&mut self.activation_quant);
            self.block = Matrices::find(checkpoint, &self)?.block()?;
            self.activation_quant = activation_quant;
        }
        Ok(self)
    }

    /// Whether the prefix names the shared experts of a layer, whose I the configuration has.
    fn is_shared_expert(&self) -> bool {
        let name = self.prefix.rsplit('.').next();
        name.is_some_and(|n| ["shared_experts", "shared_expert", "share_expert"].contains(&n))
    }

    /// Checks what a caller or a file may have got wrong.
    ///
    /// # Errors
    /// A size of 0, a block outside 1 to [`Self::MAX_BLOCK`], a rank outside its world, and as
    /// [`Self::quantization`].
    pub fn check(&self) -> Result<()> {
        for (field, size) in [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
        ] {
            if size == 0 {
                return Err(Error::config(field, "at least 1", size));
            }
        }
        if let Some([r, c]) = self.block {
            let sides = 1..=Self::MAX_BLOCK;
            if !sides.contains(&r) || !sides.contains(&c) {
                let expected = format!("sides of 1 to {}", Self::MAX_BLOCK);
                return Err(Error::config("block", expected, format!("{r} x {c}")));
            }
        }
        self.quantization()?;
        self.shard.check()
    }

    /// Whether the ranks add up what each computed.
    pub(crate) const fn reduces(&self) -> bool {
        self.reduce_results && self.shard.is_split()
    }
}

/// Checks that a matmul by this weight can read quantized rows: FP8, in blocks as wide as the rows'
/// groups.
fn reads_quantized(quant: &Quantization, name: &'static str, weight: WeightFormat) -> Result<()> {
    let Some((_, [_, width])) = weight.scaling() else {
        let expected = format!("none, as the {name} weight is {weight} and not FP8 in blocks");
        return Err(Error::config("activation_quant", expected, "FP8"));
    };
    if width != quant.group() {
        let expected = format!("blocks {} columns wide", quant.group());
        return Err(CoreError::argument(name, expected, width).into());
    }
    Ok(())
}
