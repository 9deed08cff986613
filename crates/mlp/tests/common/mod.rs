//! What the tests share: checkpoints, honest and hostile, and passes on host memory.
#![allow(dead_code, reason = "each test uses its part")]
#![allow(clippy::unwrap_used, reason = "a test helper is no #[test] function")]

pub mod moe;
pub mod probe;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use swiglu_core::{
    ActAndMul, Backend, Element, HostWeight, Matmul, Quantize, RowLayout, Tensor, TensorMut, bf16,
    reference::Reference,
};
use swiglu_mlp::synthetic::{SyntheticConfig, write_checkpoint};
use swiglu_mlp::{Checkpoint, DeepseekV4Mlp, MlpConfig, ModelConfig, SharedExpert, Workspace};

pub const PREFIX: &str = "layers.3.ffn.shared_experts";

/// A configuration of DeepSeek-V4's.
pub const V4: &str = r#"{"model_type": "deepseek_v4", "hidden_size": 4096, "moe_intermediate_size": 2048,
  "n_shared_experts": 1, "hidden_act": "silu", "swiglu_limit": 10.0, "quantization_config":
  {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "scale_fmt": "ue8m0",
   "weight_block_size": [128, 128]}}"#;

/// A small ragged checkpoint: the last block of each dimension is partial.
pub fn tiny() -> SyntheticConfig {
    SyntheticConfig {
        hidden: 40,
        intermediate: 27,
        block: 8,
        ..SyntheticConfig::flash(5)
    }
}

/// A safetensors file of this header and data.
pub fn file(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

/// Writes `bytes` as `name` in `folder`.
pub fn put(folder: &Path, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

/// A checkpoint's tensors, by name.
pub type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// The small checkpoint's configuration and tensors.
pub fn tensors(form: &SyntheticConfig) -> (MlpConfig, Tensors) {
    let folder = tempfile::tempdir().unwrap();
    write_checkpoint(folder.path(), form).unwrap();
    let model = ModelConfig::from_file(&folder.path().join("config.json")).unwrap();
    let bytes = std::fs::read(folder.path().join("model.safetensors")).unwrap();
    let read = SafeTensors::deserialize(&bytes).unwrap();
    let own = |(n, t): (&str, TensorView<'_>)| {
        (
            n.to_owned(),
            (t.dtype(), t.shape().to_vec(), t.data().to_vec()),
        )
    };
    (
        model.mlp_config(&form.prefix()).unwrap(),
        read.iter().map(own).collect(),
    )
}

/// Writes tensors as a file.
pub fn save(folder: &Path, name: &str, tensors: &Tensors) {
    let views: BTreeMap<&String, TensorView<'_>> = tensors
        .iter()
        .map(|(n, (d, s, b))| (n, TensorView::new(*d, s.clone(), b).unwrap()))
        .collect();
    put(folder, name, safetensors::serialize(views, None).unwrap());
}

/// A backend on host memory, whose views are bytes.
pub trait OnHost:
    for<'a> Backend<View<'a> = &'a [u8], ViewMut<'a> = &'a mut [u8]> + ActAndMul + Quantize + Matmul
{
}

impl<B> OnHost for B where
    B: for<'a> Backend<View<'a> = &'a [u8], ViewMut<'a> = &'a mut [u8]>
        + ActAndMul
        + Quantize
        + Matmul
{
}

/// y of a whole forward pass in `T`.
pub fn forward_to<T: Element, B: OnHost>(mlp: &DeepseekV4Mlp<B>, x: &[bf16]) -> Vec<T> {
    let mut y = vec![T::default(); x.len()];
    let rows = RowLayout::contiguous(x.len() / mlp.hidden_size(), mlp.hidden_size());
    mlp.forward(
        Tensor::from_slice(x, rows),
        TensorMut::from_slice(&mut y, rows),
        &mut Workspace::new(),
    )
    .unwrap();
    y
}

/// y of a whole forward pass in bf16.
pub fn forward<B: OnHost>(mlp: &DeepseekV4Mlp<B>, x: &[bf16]) -> Vec<bf16> {
    forward_to(mlp, x)
}

/// `gate_up`, `act` in bf16 and y in f32 of a pass stage by stage.
pub fn stages<B: OnHost>(mlp: &DeepseekV4Mlp<B>, x: &[bf16]) -> (Vec<bf16>, Vec<bf16>, Vec<f32>) {
    let (h, i) = (mlp.hidden_size(), mlp.intermediate_size());
    let t = x.len() / h;
    let (mut gate_up, mut act) = (vec![bf16::ZERO; t * 2 * i], vec![bf16::ZERO; t * i]);
    let mut y = vec![0.0; t * h];
    let rows = |cols| RowLayout::contiguous(t, cols);
    mlp.forward_stages(
        Tensor::from_slice(x, rows(h)),
        TensorMut::from_slice(&mut gate_up, rows(2 * i)),
        TensorMut::from_slice(&mut act, rows(i)),
        TensorMut::from_slice(&mut y, rows(h)),
        &mut Workspace::new(),
    )
    .unwrap();
    (gate_up, act, y)
}

/// Runs `test` with a checkpoint's configuration and weights.
pub fn with(synthetic: &SyntheticConfig, test: impl FnOnce(MlpConfig, SharedExpert<'_>)) {
    let folder = tempfile::tempdir().unwrap();
    write_checkpoint(folder.path(), synthetic).unwrap();
    let model = ModelConfig::from_file(&folder.path().join("config.json")).unwrap();
    let config = model.mlp_config(&synthetic.prefix()).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let expert = SharedExpert::load(&checkpoint, &config).unwrap();
    test(config, expert);
}

pub fn load(config: &MlpConfig, expert: &SharedExpert<'_>) -> DeepseekV4Mlp<Reference> {
    DeepseekV4Mlp::load(Arc::new(Reference), config, expert).unwrap()
}

/// x · wᵀ, row by row.
pub fn matmul(x: &[f64], w: &HostWeight<'_>) -> Vec<f64> {
    let row = |x: &[f64], r| (0..w.cols()).map(|c| x[c] * w.get(r, c)).sum();
    x.chunks(w.cols())
        .flat_map(|x| (0..w.rows()).map(move |r| row(x, r)).collect::<Vec<f64>>())
        .collect()
}

/// Rounded to bf16.
pub fn rounded(x: Vec<f64>) -> Vec<f64> {
    let round = |v| f64::from(<bf16 as Element>::from_f64(v).to_f32());
    x.into_iter().map(round).collect()
}

/// The definition, in f64 between the roundings to bf16.
pub fn plainly(expert: &SharedExpert<'_>, limit: Option<f64>, x: &[bf16]) -> Vec<f64> {
    let x: Vec<f64> = x.iter().map(|v| v.to_f64()).collect();
    let gate = rounded(matmul(&x, expert.gate()));
    let up = rounded(matmul(&x, expert.up()));
    let act = gate.iter().zip(&up).map(|(&g, &u)| {
        let (g, u) = match limit {
            Some(l) => (g.min(l), u.clamp(-l, l)),
            None => (g, u),
        };
        g / (1.0 + (-g).exp()) * u
    });
    rounded(matmul(&rounded(act.collect()), expert.down()))
}

/// ‖got - expected‖ / ‖expected‖.
pub fn error(got: &[bf16], expected: &[f64]) -> f64 {
    let square = |d: f64| d * d;
    let pairs = got.iter().zip(expected);
    let off: f64 = pairs.map(|(g, e)| square(g.to_f64() - e)).sum();
    let norm: f64 = expected.iter().map(|&e| square(e)).sum();
    (off / norm).sqrt()
}
