use swiglu_core::{
    Float, GatedActivation, Quantization, Request, Rounding, Routing, Selection, Shape,
    WeightFormat,
};

use crate::config::ExpertDtype;
use crate::{Checkpoint, Error, MlpConfig, MoeWeights, Result, SharedExpert};

/// What a layer of routed experts is built from: what [`crate::ModelConfig::moe_config`] reads.
#[derive(Clone, Debug, PartialEq)]
pub struct MoeConfig {
    /// The shared expert. H, the limit, the blocks of FP8 weights and whether the matmuls read FP8
    /// ([`crate::ActivationQuant`]) are those of the routed experts too.
    pub shared: MlpConfig,
    /// What the names of the layer's tensors begin with, such as `layers.3.ffn`.
    pub prefix: String,
    /// Routed experts (E).
    pub experts: usize,
    /// Routed experts of a token (k).
    pub top_k: usize,
    /// What the routes' weights are multiplied by (`routed_scaling_factor`).
    pub scale: f32,
    /// Whether they are divided by their sum first (`norm_topk_prob`).
    pub normalize: bool,
    /// Whether a table chooses the experts, where that is known; the tensors must agree.
    pub hashes: Option<bool>,
    /// Rows of that table, where that is known; the tensors must agree.
    pub vocab_size: Option<usize>,
    /// Outputs of gate and up of one routed expert, and inputs of its down (I).
    pub intermediate_size: usize,
    /// How the routed experts are said to be stored; the tensors must agree.
    pub expert_dtype: Option<ExpertDtype>,
}

impl MoeConfig {
    /// How tokens choose their experts, with a table of so many rows or by score.
    ///
    /// # Errors
    /// As [`Routing::new`].
    pub fn routing(&self, vocabulary: Option<usize>) -> Result<Routing> {
        let selection = match vocabulary {
            Some(vocabulary) => Selection::Hash { vocabulary },
            None => Selection::Score,
        };
        let (e, k) = (self.experts, self.top_k);
        let routing = Routing::new(e, k, self.scale, self.normalize, selection);
        routing.map_err(named)
    }

    /// The activation of the routed experts.
    ///
    /// # Errors
    /// As [`MlpConfig::activation`], and eager rounding, which has no place for a route's weight.
    pub fn activation(&self) -> Result<GatedActivation> {
        if self.shared.rounding == Rounding::Eager {
            let expected = "official with routed experts, as eager has no place for their weights";
            return Err(Error::config("rounding", expected, "eager"));
        }
        self.shared.activation()
    }

    /// How the inputs of the experts' matmuls are quantized, if they are: as the shared expert's.
    ///
    /// # Errors
    /// As [`MlpConfig::quantization`].
    pub fn quantization(&self) -> Result<Option<Quantization>> {
        self.shared.quantization()
    }

    /// The MLP of one routed expert, as its weights are read.
    pub(super) fn expert(&self, number: usize) -> MlpConfig {
        MlpConfig {
            intermediate_size: self.intermediate_size,
            activation_quant: crate::ActivationQuant::None,
            prefix: format!("{}.experts.{number}", self.prefix),
            ..self.shared.clone()
        }
    }

    /// Checks what a caller or a file may have got wrong.
    ///
    /// # Errors
    /// As [`Self::routing`], [`Self::activation`] and [`MlpConfig::check`], an I of 0, and a shard:
    /// the layer is not split.
    pub fn check(&self) -> Result<()> {
        self.routing(None)?;
        self.shared.check()?;
        self.activation()?;
        if self.intermediate_size == 0 {
            return Err(Error::config("moe_intermediate_size", "at least 1", 0));
        }
        if self.shared.shard.world != 1 {
            let expected = "the whole layer, which is not split over ranks";
            let got = format!("{} ranks", self.shared.shard.world);
            return Err(Error::config("shard", expected, got));
        }
        Ok(())
    }

    /// What a forward pass asks of its backend, with weights stored so, x and y in bf16.
    pub(super) fn requests(
        &self,
        routing: Routing,
        [gate_up, down]: [WeightFormat; 2],
        shared: &SharedExpert<'_>,
    ) -> Result<Vec<Request>> {
        let (op, quant) = (self.activation()?, self.quantization()?);
        let bf16 = Float::BF16;
        let mut requests = shared.requests(&self.shared)?;
        requests.extend([
            Request::Route {
                routing,
                x: bf16,
                weight: WeightFormat::Float(bf16),
            },
            Request::GroupedGatedMatmul {
                op,
                quant,
                routing,
                x: bf16,
                weight: gate_up,
            },
            Request::GroupedMatmulSum {
                quant,
                routing,
                weight: down,
                y: bf16,
            },
        ]);
        Ok(requests)
    }

    /// What a backend's [`swiglu_core::Backend::plan`] says of a forward pass over so many rows: a line
    /// for each stage that it has a plan for.
    ///
    /// # Errors
    /// As [`Self::check`] and [`SharedExpert::plan`].
    pub fn plan(
        &self,
        weights: &MoeWeights<'_>,
        rows: usize,
        plan: impl Fn(&Request, &Shape) -> Option<String>,
    ) -> Result<Vec<String>> {
        let (routing, formats) = (*weights.routing(), weights.formats());
        let hidden = self.shared.hidden_size;
        let mut lines = Vec::new();
        for request in self.requests(routing, formats, weights.shared())? {
            let (name, cols, depth) = match request {
                Request::Route { .. } => ("router", self.experts, hidden),
                Request::GroupedGatedMatmul { .. } => {
                    let both = self.intermediate_size.saturating_mul(2);
                    ("experts gate_up", both, hidden)
                }
                Request::GroupedMatmulSum { .. } => {
                    ("experts down", hidden, self.intermediate_size)
                }
                // Those of the shared expert, which knows their sizes.
                _ => continue,
            };
            let shape = Shape { rows, cols, depth };
            if let Some(plan) = plan(&request, &shape) {
                lines.push(format!("{name} {shape}: {plan}"));
            }
        }
        let shared = weights.shared().plan(&self.shared, rows, plan)?;
        lines.extend(shared.into_iter().map(|line| format!("shared {line}")));
        Ok(lines)
    }

    /// The same with what is left to a checkpoint's tensors: the block of FP8 weights of the shared
    /// expert where none is given.
    ///
    /// # Errors
    /// As [`SharedExpert::load`].
    pub fn with_tensors(mut self, checkpoint: &Checkpoint) -> Result<Self> {
        self.shared = self.shared.with_tensors(checkpoint)?;
        Ok(self)
    }
}

/// The error of a value by the name that configurations have for it.
fn named(error: swiglu_core::Error) -> Error {
    match error {
        swiglu_core::Error::Argument {
            argument,
            expected,
            got,
        } => {
            let field = match argument {
                "experts" => "n_routed_experts",
                "top_k" => "num_experts_per_tok",
                "scale" => "routed_scaling_factor",
                other => other,
            };
            Error::config(field, expected, got)
        }
        other => other.into(),
    }
}
