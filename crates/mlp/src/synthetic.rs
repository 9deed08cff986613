//! Checkpoints and inputs for trials: deterministic, fast to make, and with pre-activations beyond
//! the limit, without which a lost clamp would not show.

use std::borrow::Cow;
use std::path::Path;

use safetensors::{Dtype, View};
use swiglu_core::{E4M3, E8M0, Float, ScaleFormat, bf16, f16};

use crate::{Error, Result};

mod moe;

pub use moe::{SyntheticMoe, write_moe_checkpoint};

/// How a checkpoint names its tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// `layers.N.ffn.shared_experts.w1.weight`, `.scale`.
    DeepSeek,
    /// `model.layers.N.mlp.shared_experts.gate_proj.weight`, `.weight_scale_inv`.
    HuggingFace,
}

/// A checkpoint to be made up: one layer's shared expert.
#[derive(Clone, Debug, PartialEq)]
pub struct SyntheticConfig {
    /// H.
    pub hidden: usize,
    /// I.
    pub intermediate: usize,
    /// The side of the square blocks that share a scale.
    pub block: usize,
    /// The layer's number.
    pub layer: usize,
    /// Where the random numbers start.
    pub seed: u64,
    /// How tensors are named.
    pub names: Names,
    /// Plain numbers of this type, or `None` for FP8 codes with scales: the same values.
    pub weights: Option<Float>,
    /// How the scales of FP8 weights are stored.
    pub scales: ScaleFormat,
}

impl SyntheticConfig {
    /// The shape and the form of DeepSeek-V4-Flash: layer 3, FP8 with E8M0 scales.
    pub const fn flash(seed: u64) -> Self {
        Self {
            hidden: 4096,
            intermediate: 2048,
            block: 128,
            layer: 3,
            seed,
            names: Names::DeepSeek,
            weights: None,
            scales: ScaleFormat::E8M0,
        }
    }

    /// What the tensors' names begin with.
    pub fn prefix(&self) -> String {
        match self.names {
            Names::DeepSeek => format!("layers.{}.ffn.shared_experts", self.layer),
            Names::HuggingFace => format!("model.layers.{}.mlp.shared_experts", self.layer),
        }
    }

    /// The text of its `config.json`, with `swiglu_limit` 10.
    pub fn config_json(&self) -> String {
        let mut config = serde_json::json!({
            "model_type": "deepseek_v4",
            "hidden_size": self.hidden,
            "moe_intermediate_size": self.intermediate,
            "n_shared_experts": 1,
            "hidden_act": "silu",
            "swiglu_limit": 10.0,
        });
        if self.weights.is_none() {
            config["quantization_config"] = serde_json::json!({
                "quant_method": "fp8",
                "fmt": "e4m3",
                "activation_scheme": "dynamic",
                "weight_block_size": [self.block, self.block],
            });
            if self.scales == ScaleFormat::E8M0 {
                config["quantization_config"]["scale_fmt"] = "ue8m0".into();
            }
        }
        config.to_string()
    }

    fn check(&self) -> Result<()> {
        let least = self.hidden.min(self.intermediate).min(self.block);
        if least == 0 {
            return Err(Error::config("synthetic sizes", "at least 1", least));
        }
        if self
            .hidden
            .checked_mul(self.intermediate)
            .is_none_or(|n| n > isize::MAX as usize / 4)
        {
            let got = format!("{} x {}", self.hidden, self.intermediate);
            return Err(Error::config("synthetic sizes", "within memory", got));
        }
        Ok(())
    }
}

/// Writes `config.json` and `model.safetensors` into `folder`, one tensor at a time.
///
/// With an input of about unit variance a few per cent of the gates and ups lie beyond ±10.
///
/// # Errors
/// Sizes of 0 or beyond memory, or a file that cannot be written.
pub fn write_checkpoint(folder: &Path, config: &SyntheticConfig) -> Result<()> {
    config.check()?;
    let json = folder.join("config.json");
    std::fs::write(&json, config.config_json()).map_err(|e| Error::io(&json, e))?;
    let path = folder.join("model.safetensors");
    safetensors::serialize_to_file(tensors(config), None, &path).map_err(|e| Error::file(&path, e))
}

/// As [`write_checkpoint`], each tensor in a file of its own, with the index that says where each
/// lies.
///
/// # Errors
/// As [`write_checkpoint`].
pub fn write_sharded_checkpoint(folder: &Path, config: &SyntheticConfig) -> Result<()> {
    config.check()?;
    let write = |name: &str, text: String| {
        let path = folder.join(name);
        std::fs::write(&path, text).map_err(|e| Error::io(&path, e))
    };
    write("config.json", config.config_json())?;
    let tensors = tensors(config);
    let count = tensors.len();
    let mut weight_map = serde_json::Map::new();
    for (n, (name, tensor)) in tensors.into_iter().enumerate() {
        let file = format!("model-{:05}-of-{count:05}.safetensors", n + 1);
        let path = folder.join(&file);
        weight_map.insert(name.clone(), file.into());
        safetensors::serialize_to_file([(name, tensor)], None, &path)
            .map_err(|e| Error::file(&path, e))?;
    }
    let index = serde_json::json!({ "metadata": {}, "weight_map": weight_map });
    write("model.safetensors.index.json", index.to_string())
}

/// `tokens` rows of `hidden` elements, normal with unit variance; one channel in a hundred is an
/// outlier, four times as large.
pub fn synthetic_input(tokens: usize, hidden: usize, seed: u64) -> Vec<bf16> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let channel: Vec<f64> = (0..hidden)
        .map(|_| if rng.u8(..100) == 0 { 4.0 } else { 1.0 })
        .collect();
    let mut x = Vec::new();
    for _ in 0..tokens {
        x.extend(channel.iter().map(|c| bf16::from_f64(c * normal(&mut rng))));
    }
    x
}

/// A normal number, by the transform of Box and Muller.
fn normal(rng: &mut fastrand::Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.f64()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.f64()).cos()
}

fn tensors(config: &SyntheticConfig) -> Vec<(String, SyntheticTensor)> {
    let (h, i) = (config.hidden, config.intermediate);
    let (labels, scale) = match config.names {
        Names::DeepSeek => (["w1", "w3", "w2"], "scale"),
        Names::HuggingFace => (["gate_proj", "up_proj", "down_proj"], "weight_scale_inv"),
    };
    // The deviation of the matmuls' results, for an input of unit variance.
    let shapes = [([i, h], 5.0), ([i, h], 5.0), ([h, i], 1.0)];
    let prefix = config.prefix();
    let mut tensors = Vec::new();
    for (n, (label, (shape, deviation))) in labels.into_iter().zip(shapes).enumerate() {
        let matrix = RandomWeight {
            shape,
            block: config.block,
            seed: config.seed.wrapping_mul(3).wrapping_add(n as u64),
            exponent: (deviation / ((shape[1] as f64).sqrt() * RMS))
                .log2()
                .round() as i32,
        };
        let mut add = |name: &str, shape: [usize; 2], content| {
            let [rows, cols] = matrix.shape;
            let packed = match content {
                Content::Scales(_) => cols / 32,
                Content::Codes | Content::Numbers(_) => cols / 2,
            };
            let tensor = SyntheticTensor {
                weight: matrix.clone(),
                shape,
                fp4_shape: [rows, packed],
                content,
            };
            tensors.push((format!("{prefix}.{label}.{name}"), tensor));
        };
        match config.weights {
            Some(float) => add("weight", shape, Content::Numbers(float)),
            None => {
                add("weight", shape, Content::Codes);
                add(scale, matrix.grid(), Content::Scales(config.scales));
            }
        }
    }
    tensors
}

/// The root of the mean square of [`RandomWeight::codes`], times that of the three scales in a block's
/// choice: 0.87 · √((1/4 + 1 + 4)/3).
const RMS: f64 = 0.87 * 1.32;

/// A random matrix, made anew each time it is asked for.
#[derive(Clone, Debug)]
struct RandomWeight {
    shape: [usize; 2],
    block: usize,
    seed: u64,
    /// Of the middle one of the three scales.
    exponent: i32,
}

impl RandomWeight {
    fn grid(&self) -> [usize; 2] {
        self.shape.map(|n| n.div_ceil(self.block))
    }

    /// E4M3 codes of either sign, from 2^-3 to just below 2.
    fn codes(&self) -> Vec<u8> {
        let mut codes = vec![0; self.shape[0] * self.shape[1]];
        fastrand::Rng::with_seed(self.seed).fill(&mut codes);
        for code in &mut codes {
            *code = (*code & 0x9f) | 0x20;
        }
        codes
    }

    /// E8M0 scales: three powers of two.
    fn scales(&self) -> Vec<u8> {
        let mut rng = fastrand::Rng::with_seed(!self.seed);
        let [rows, cols] = self.grid();
        let middle = i32::from(E8M0::ONE.0) + self.exponent;
        let scale = |_| (middle + rng.i32(-1..=1)).clamp(1, 254) as u8;
        (0..rows * cols).map(scale).collect()
    }

    /// The weights, code times scale, each through `put`.
    fn values<const N: usize>(&self, put: impl Fn(f32) -> [u8; N]) -> Vec<u8> {
        let (codes, scales) = (self.codes(), self.scales());
        let [_, cols] = self.shape;
        let [_, grid_cols] = self.grid();
        let mut out = Vec::with_capacity(codes.len() * N);
        for (at, code) in codes.into_iter().enumerate() {
            let (row, col) = (at / cols / self.block, at % cols / self.block);
            let scale = E8M0(scales[row * grid_cols + col]).to_f32();
            out.extend(put(E4M3(code).to_f32() * scale));
        }
        out
    }
}

/// What of a weight a tensor holds.
#[derive(Clone, Copy, Debug)]
enum Content {
    Numbers(Float),
    Codes,
    Scales(ScaleFormat),
}

/// A tensor that is made when it is written.
#[derive(Debug)]
struct SyntheticTensor {
    weight: RandomWeight,
    shape: [usize; 2],
    /// The shape that it would have in FP4.
    fp4_shape: [usize; 2],
    content: Content,
}

impl SyntheticTensor {
    const fn is_scales(&self) -> bool {
        matches!(self.content, Content::Scales(_))
    }
}

impl View for SyntheticTensor {
    fn dtype(&self) -> Dtype {
        match self.content {
            Content::Numbers(Float::F32) | Content::Scales(ScaleFormat::F32) => Dtype::F32,
            Content::Numbers(Float::F16) => Dtype::F16,
            Content::Numbers(Float::BF16) => Dtype::BF16,
            Content::Codes => Dtype::F8_E4M3,
            Content::Scales(ScaleFormat::E8M0) => Dtype::F8_E8M0,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let w = &self.weight;
        Cow::Owned(match self.content {
            Content::Numbers(Float::F32) => w.values(f32::to_le_bytes),
            Content::Numbers(Float::F16) => w.values(|x| f16::from_f32(x).to_le_bytes()),
            Content::Numbers(Float::BF16) => w.values(|x| bf16::from_f32(x).to_le_bytes()),
            Content::Codes => w.codes(),
            Content::Scales(ScaleFormat::E8M0) => w.scales(),
            Content::Scales(ScaleFormat::F32) => {
                let wide = |s| E8M0(s).to_f32().to_le_bytes();
                w.scales().into_iter().flat_map(wide).collect()
            }
        })
    }

    fn data_len(&self) -> usize {
        let size = match self.content {
            Content::Numbers(float) => float.size(),
            Content::Codes => 1,
            Content::Scales(scales) => scales.size(),
        };
        self.shape[0] * self.shape[1] * size
    }
}
