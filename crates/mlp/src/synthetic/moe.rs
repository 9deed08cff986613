//! Checkpoints of whole layers: a router, routed experts and a shared one.

use std::borrow::Cow;
use std::path::Path;

use safetensors::{Dtype, View};
use swiglu_core::{E8M0, Float, bf16};

use super::{Names, SyntheticConfig, SyntheticTensor, normal, tensors};
use crate::{Error, ExpertDtype, Result};

/// A checkpoint of a whole layer to be made up.
#[derive(Clone, Debug, PartialEq)]
pub struct SyntheticMoe {
    /// The sizes and names; I is one expert's, and also the shared one's. Its weights are FP8, or plain
    /// numbers where the routed experts are.
    pub shared: SyntheticConfig,
    /// Routed experts (E).
    pub experts: usize,
    /// Routed experts of a token (k).
    pub top_k: usize,
    /// What the weights of routes are multiplied by.
    pub scale: f32,
    /// How the routed experts are stored.
    pub dtype: ExpertDtype,
    /// The rows of `tid2eid` of a layer that hashes; none for one that chooses by score.
    pub vocabulary: Option<usize>,
    /// Whether tokens of images have a bias of their own.
    pub images: bool,
}

impl SyntheticMoe {
    /// A layer of DeepSeek-V4-Flash's shape and form with so many of its 256 experts.
    pub const fn flash(experts: usize, seed: u64) -> Self {
        Self {
            shared: SyntheticConfig::flash(seed),
            experts,
            top_k: 6,
            scale: 1.5,
            dtype: ExpertDtype::Fp4,
            vocabulary: None,
            images: false,
        }
    }

    /// What the tensors' names begin with.
    pub fn prefix(&self) -> String {
        let shared = self.shared.prefix();
        shared.trim_end_matches(".shared_experts").to_owned()
    }

    /// The text of its `config.json`, with `swiglu_limit` 10.
    pub fn config_json(&self) -> String {
        let mut config: serde_json::Value =
            serde_json::from_str(&self.shared_expert().config_json()).unwrap_or_default();
        let layer = self.shared.layer;
        let more = serde_json::json!({
            "n_routed_experts": self.experts,
            "num_experts_per_tok": self.top_k,
            "scoring_func": "sqrtsoftplus",
            "topk_method": "noaux_tc",
            "norm_topk_prob": true,
            "routed_scaling_factor": self.scale,
            "num_hash_layers": if self.vocabulary.is_some() { layer + 1 } else { 0 },
            "vocab_size": self.vocabulary.unwrap_or(129_280),
            "expert_dtype": self.dtype.name(),
        });
        if let (Some(config), serde_json::Value::Object(more)) = (config.as_object_mut(), more) {
            config.extend(more);
        }
        config.to_string()
    }

    /// The shared expert as it is stored: plain numbers where the routed ones are.
    fn shared_expert(&self) -> SyntheticConfig {
        SyntheticConfig {
            weights: match self.dtype {
                ExpertDtype::Bf16 => Some(Float::BF16),
                ExpertDtype::Fp4 | ExpertDtype::Fp8 => self.shared.weights,
            },
            ..self.shared.clone()
        }
    }

    fn check(&self) -> Result<()> {
        self.shared.check()?;
        let sizes = [self.shared.hidden, self.shared.intermediate];
        let step = if self.dtype == ExpertDtype::Fp4 {
            32
        } else {
            1
        };
        if let Some(size) = sizes.into_iter().find(|n| !n.is_multiple_of(step)) {
            let expected = format!("a multiple of {step} for {}", self.dtype.name());
            return Err(Error::config("synthetic sizes", expected, size));
        }
        if !(1..=self.experts).contains(&self.top_k) {
            let expected = format!("1 to {} experts a token", self.experts);
            return Err(Error::config("synthetic sizes", expected, self.top_k));
        }
        Ok(())
    }
}

/// Writes `config.json` and `model.safetensors` of a whole layer into `folder`, one tensor at a time.
///
/// With an input of about unit variance some of the gates and ups lie beyond ±10, and the router's
/// bias chooses other experts than the scores alone.
///
/// # Errors
/// Sizes of 0 or beyond memory, fewer experts than a token has, or a file that cannot be written.
pub fn write_moe_checkpoint(folder: &Path, config: &SyntheticMoe) -> Result<()> {
    config.check()?;
    let json = folder.join("config.json");
    std::fs::write(&json, config.config_json()).map_err(|e| Error::io(&json, e))?;
    let path = folder.join("model.safetensors");
    safetensors::serialize_to_file(layer(config), None, &path).map_err(|e| Error::file(&path, e))
}

fn layer(config: &SyntheticMoe) -> Vec<(String, LayerTensor)> {
    let prefix = config.prefix();
    let shared = config.shared_expert();
    let whole = |(name, tensor)| (name, LayerTensor::Shared(tensor));
    let mut all: Vec<_> = tensors(&shared).into_iter().map(whole).collect();
    for expert in 0..config.experts {
        let own = SyntheticConfig {
            // Other numbers than every other expert's.
            seed: config.shared.seed ^ ((expert as u64 + 1) << 20),
            ..shared.clone()
        };
        for (name, tensor) in tensors(&own) {
            let name = name.replace(".shared_experts.", &format!(".experts.{expert}."));
            let tensor = match config.dtype {
                ExpertDtype::Fp4 => LayerTensor::Fp4(tensor),
                ExpertDtype::Fp8 | ExpertDtype::Bf16 => LayerTensor::Shared(tensor),
            };
            all.push((name, tensor));
        }
    }
    let mut rng = fastrand::Rng::with_seed(config.shared.seed ^ 0x9a7e);
    let (e, h) = (config.experts, config.shared.hidden);
    let wide = 1.0 / (h as f64).sqrt();
    let gate = (0..e * h).flat_map(|_| bf16::from_f64(normal(&mut rng) * wide).to_le_bytes());
    let gate = LayerTensor::plain(Dtype::BF16, &[e, h], gate.collect());
    all.push((format!("{prefix}.gate.weight"), gate));
    let mut bias = || {
        let bytes = (0..e).flat_map(|_| ((normal(&mut rng) * 0.2) as f32).to_le_bytes());
        LayerTensor::plain(Dtype::F32, &[e], bytes.collect())
    };
    if config.images {
        all.push((format!("{prefix}.gate.bias_vl"), bias()));
    }
    match config.vocabulary {
        None => {
            let name = match config.shared.names {
                Names::DeepSeek => "bias",
                Names::HuggingFace => "e_score_correction_bias",
            };
            all.push((format!("{prefix}.gate.{name}"), bias()));
        }
        Some(rows) => {
            let mut experts: Vec<i64> = (0..e as i64).collect();
            let mut table = Vec::new();
            for _ in 0..rows {
                rng.shuffle(&mut experts);
                table.extend(
                    experts[..config.top_k]
                        .iter()
                        .flat_map(|id| id.to_le_bytes()),
                );
            }
            let table = LayerTensor::plain(Dtype::I64, &[rows, config.top_k], table);
            all.push((format!("{prefix}.gate.tid2eid"), table));
        }
    }
    all
}

/// A tensor of a layer, made when it is written where it is large.
#[derive(Debug)]
enum LayerTensor {
    /// As an MLP of its own has it.
    Shared(SyntheticTensor),
    /// The same weight's place, in FP4.
    Fp4(SyntheticTensor),
    Plain {
        dtype: Dtype,
        shape: Vec<usize>,
        bytes: Vec<u8>,
    },
}

impl LayerTensor {
    fn plain(dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> Self {
        let shape = shape.to_vec();
        Self::Plain {
            dtype,
            shape,
            bytes,
        }
    }
}

/// The root of the mean square of the codes' values, times that of three scales of powers of two.
const FP4_RMS: f64 = 2.93 * 1.32;

impl SyntheticTensor {
    /// Random codes, two in a byte.
    fn fp4_codes(&self) -> Vec<u8> {
        let [rows, cols] = self.weight.shape;
        let mut codes = vec![0; rows * cols / 2];
        fastrand::Rng::with_seed(self.weight.seed).fill(&mut codes);
        codes
    }

    /// Scales of three powers of two around what brings the weight to its deviation.
    fn fp4_scales(&self) -> Vec<u8> {
        let [rows, cols] = self.weight.shape;
        let mut rng = fastrand::Rng::with_seed(!self.weight.seed);
        let other = (super::RMS / FP4_RMS).log2().round() as i32;
        let middle = i32::from(E8M0::ONE.0) + self.weight.exponent + other;
        let scale = |_| (middle + rng.i32(-1..=1)).clamp(1, 252) as u8;
        (0..rows * cols / 32).map(scale).collect()
    }
}

impl View for LayerTensor {
    fn dtype(&self) -> Dtype {
        match self {
            Self::Shared(tensor) => tensor.dtype(),
            Self::Fp4(tensor) if tensor.is_scales() => Dtype::F8_E8M0,
            Self::Fp4(_) => Dtype::I8,
            Self::Plain { dtype, .. } => *dtype,
        }
    }

    fn shape(&self) -> &[usize] {
        match self {
            Self::Shared(tensor) => tensor.shape(),
            Self::Fp4(tensor) => &tensor.fp4_shape,
            Self::Plain { shape, .. } => shape,
        }
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match self {
            Self::Shared(tensor) => tensor.data(),
            Self::Fp4(tensor) if tensor.is_scales() => Cow::Owned(tensor.fp4_scales()),
            Self::Fp4(tensor) => Cow::Owned(tensor.fp4_codes()),
            Self::Plain { bytes, .. } => Cow::Borrowed(bytes),
        }
    }

    fn data_len(&self) -> usize {
        match self {
            Self::Shared(tensor) => tensor.data_len(),
            Self::Fp4(tensor) => tensor.fp4_shape.iter().product(),
            Self::Plain { bytes, .. } => bytes.len(),
        }
    }
}
