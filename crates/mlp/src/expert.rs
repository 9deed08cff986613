use swiglu_core::{Error as CoreError, HostWeight, Quantization, Request, Shape, WeightFormat};

use crate::checkpoint::Pages;
use crate::shard::cut;
use crate::{Checkpoint, Error, MlpConfig, Result, Shard};

mod blocks;
mod names;
mod read;

pub(crate) use names::MlpTensors;
pub(crate) use read::Matrices;

/// The weights of a shared expert in host memory: gate and up [I, H], down [H, I].
#[derive(Clone, Debug)]
pub struct SharedExpert<'a> {
    pub(crate) gate: HostWeight<'a>,
    pub(crate) up: HostWeight<'a>,
    pub(crate) down: HostWeight<'a>,
    /// What of mapped files they are: nothing of weights that the caller holds.
    _pages: Option<Pages>,
}

impl<'a> SharedExpert<'a> {
    /// Weights that the caller holds: gate and up [I, H], down [H, I].
    pub const fn new(gate: HostWeight<'a>, up: HostWeight<'a>, down: HostWeight<'a>) -> Self {
        Self {
            gate,
            up,
            down,
            _pages: None,
        }
    }

    /// Finds the weights under `config.prefix`: DeepSeek's names (`w1`, `w3`, `w2`, `.scale`),
    /// Hugging Face's (`gate_proj`, `up_proj`, `down_proj`, `.weight_scale_inv`, `.weight_scale`),
    /// or a mixture; gate and up may be one (`gate_up_proj`, gate rows first). What is mapped stays
    /// where it is, but for scales in 16 bits, which are widened to f32; it is read into
    /// the page cache first, and after it that of the next two layers where layers are loaded in order.
    /// When the expert is dropped its pages are no longer this process's memory.
    ///
    /// FP8 weights have blocks as `config.block` says, and otherwise as follow from the shapes of
    /// their scales, one for a row or for the whole matrix included.
    ///
    /// # Errors
    /// A tensor that is missing, unexpected under the prefix, misshaped or wrong-typed; scales that
    /// several blocks would explain; a shard that cannot be read.
    pub fn load(checkpoint: &'a Checkpoint, config: &MlpConfig) -> Result<Self> {
        let matrices = Matrices::find(checkpoint, config)?;
        matrices.read_ahead();
        for prefix in checkpoint.loads(&config.prefix) {
            let next = MlpConfig {
                prefix,
                ..config.clone()
            };
            // There may be none, or one that cannot be loaded: that is said when it is asked for.
            if let Ok(matrices) = Matrices::find(checkpoint, &next) {
                matrices.read_ahead();
            }
        }
        matrices.read()
    }

    /// How gate, up and down under `config.prefix` are stored, as the files' headers say: nothing
    /// else is read. As [`Self::load`], this finds what is wrong with the tensors.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn stored_formats(
        checkpoint: &'a Checkpoint,
        config: &MlpConfig,
    ) -> Result<[WeightFormat; 3]> {
        Matrices::find(checkpoint, config)?.formats()
    }

    /// The gate's weight, [I, H].
    pub const fn gate(&self) -> &HostWeight<'a> {
        &self.gate
    }

    /// The up weight, [I, H].
    pub const fn up(&self) -> &HostWeight<'a> {
        &self.up
    }

    /// The down weight, [H, I].
    pub const fn down(&self) -> &HostWeight<'a> {
        &self.down
    }

    /// Checks that the weights fit together.
    ///
    /// # Errors
    /// The first whose shape is not as `hidden` and `intermediate` demand.
    pub fn check(&self, hidden: usize, intermediate: usize) -> Result<()> {
        for (name, weight, shape) in [
            ("gate", &self.gate, [intermediate, hidden]),
            ("up", &self.up, [intermediate, hidden]),
            ("down", &self.down, [hidden, intermediate]),
        ] {
            let got = [weight.rows(), weight.cols()];
            if got != shape {
                let (expected, got) = (format!("shape {shape:?}"), format!("{got:?}"));
                return Err(CoreError::argument(name, expected, got).into());
            }
        }
        Ok(())
    }

    /// The same, with the pages that its weights are.
    pub(crate) fn with_pages(self, pages: Pages) -> Self {
        Self {
            _pages: Some(pages),
            ..self
        }
    }

    /// What a forward pass with these weights asks of its backend, stage by stage, x and y in bf16:
    /// what [`crate::DeepseekV4Mlp::load`] requires.
    ///
    /// # Errors
    /// As [`MlpConfig::requests`].
    pub fn requests(&self, config: &MlpConfig) -> Result<Vec<Request>> {
        let stages = config.stages(self.formats())?.list();
        Ok(stages.into_iter().map(|stage| stage.request).collect())
    }

    /// What a backend's [`swiglu_core::Backend::plan`] says of a forward pass over so many rows: a
    /// line for each stage that it has a plan for.
    ///
    /// # Errors
    /// As [`Self::requests`].
    pub fn plan(
        &self,
        config: &MlpConfig,
        rows: usize,
        plan: impl Fn(&Request, &Shape) -> Option<String>,
    ) -> Result<Vec<String>> {
        Ok(config.stages(self.formats())?.plan(rows, plan))
    }

    /// How gate, up and down are stored.
    pub(crate) fn formats(&self) -> [WeightFormat; 3] {
        [&self.gate, &self.up, &self.down].map(HostWeight::format)
    }

    /// A rank's part of the weights: a copy, or where that is the whole, these. Columns of `act` in
    /// one group of a quantization stay together.
    pub(crate) fn part(
        &self,
        shard: Shard,
        quant: Option<&Quantization>,
    ) -> Result<SharedExpert<'_>> {
        if !shard.is_split() {
            return Ok(SharedExpert {
                gate: borrowed(&self.gate)?,
                up: borrowed(&self.up)?,
                down: borrowed(&self.down)?,
                _pages: None,
            });
        }
        let sides = [
            block_side(&self.gate, 0),
            block_side(&self.up, 0),
            block_side(&self.down, 1),
        ];
        let width = shard
            .cut_at(self.gate.rows(), sides, quant.map(Quantization::group))
            .and_then(|step| shard.width(self.gate.rows(), step))
            .ok_or_else(|| {
                let [gate, up, down] = sides;
                let expected = "blocks with a common multiple in range";
                Error::config("block", expected, format!("{gate}, {up} and {down}"))
            })?;
        let start = shard.rank.saturating_mul(width);
        let hidden = self.gate.cols();
        Ok(SharedExpert {
            gate: cut(&self.gate, [start, 0], [width, hidden])?,
            up: cut(&self.up, [start, 0], [width, hidden])?,
            down: cut(&self.down, [0, start], [hidden, width])?,
            _pages: None,
        })
    }
}

/// Rows or columns that share a scale; plain numbers are each by itself.
fn block_side(weight: &HostWeight<'_>, axis: usize) -> usize {
    let scaling = weight.format().scaling();
    scaling.map_or(1, |(_, block)| block[axis])
}

/// The same weight without a copy.
pub(crate) fn borrowed<'a>(weight: &'a HostWeight<'_>) -> Result<HostWeight<'a>> {
    let shape = [weight.rows(), weight.cols()];
    Ok(HostWeight::new(
        shape,
        weight.format(),
        weight.data(),
        weight.scales(),
    )?)
}
