//! Files for the tests of checkpoints, honest and hostile.
#![allow(dead_code, reason = "each test uses its part")]
#![allow(clippy::unwrap_used, reason = "a test helper is no #[test] function")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use swiglu_core::{
    DType, Element, HostBuffer, HostWeight, Tensor, TensorMut, bf16, reference::Reference,
};
use swiglu_mlp::synthetic::{SyntheticConfig, write_checkpoint};
use swiglu_mlp::{Checkpoint, DeepseekV4Mlp, MlpConfig, ModelConfig, SharedExpert, Workspace};

pub const PREFIX: &str = "layers.3.ffn.shared_experts";

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

/// y of a whole forward pass in bf16.
pub fn forward(mlp: &DeepseekV4Mlp<Reference>, x: &[bf16]) -> Vec<bf16> {
    let h = mlp.hidden_size();
    let t = x.len() / h;
    let x = HostBuffer::from_slice(x).unwrap();
    let mut y = HostBuffer::zeroed(t * h * 2).unwrap();
    mlp.forward(
        Tensor::contiguous(&x, DType::BF16, t, h),
        TensorMut::contiguous(&mut y, DType::BF16, t, h),
        &mut Workspace::new(),
    )
    .unwrap();
    y.typed().to_vec()
}

/// `gate_up`, `act` in bf16 and y in f32 of a pass stage by stage.
pub fn stages(mlp: &DeepseekV4Mlp<Reference>, x: &[bf16]) -> (Vec<bf16>, Vec<bf16>, Vec<f32>) {
    let (h, i) = (mlp.hidden_size(), mlp.intermediate_size());
    let t = x.len() / h;
    let x = HostBuffer::from_slice(x).unwrap();
    let room = |n: usize| HostBuffer::zeroed(n).unwrap();
    let (mut gate_up, mut act, mut y) = (room(t * i * 4), room(t * i * 2), room(t * h * 4));
    mlp.forward_stages(
        Tensor::contiguous(&x, DType::BF16, t, h),
        TensorMut::contiguous(&mut gate_up, DType::BF16, t, 2 * i),
        TensorMut::contiguous(&mut act, DType::BF16, t, i),
        TensorMut::contiguous(&mut y, DType::F32, t, h),
        &mut Workspace::new(),
    )
    .unwrap();
    (
        gate_up.typed().to_vec(),
        act.typed().to_vec(),
        y.typed().to_vec(),
    )
}

/// Runs `test` with a checkpoint's configuration and weights.
pub fn with(synthetic: &SyntheticConfig, test: impl FnOnce(MlpConfig, SharedExpert<'_>)) {
    let folder = tempfile::tempdir().unwrap();
    write_checkpoint(folder.path(), synthetic).unwrap();
    let model = ModelConfig::from_file(&folder.path().join("config.json")).unwrap();
    let config = model.mlp_config(&synthetic.prefix());
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let expert = SharedExpert::load(&checkpoint, &config).unwrap();
    test(config, expert);
}

pub fn load(config: &MlpConfig, expert: &SharedExpert<'_>) -> DeepseekV4Mlp<Reference> {
    DeepseekV4Mlp::load(Arc::new(Reference), config, expert).unwrap()
}

/// x · wᵀ, row by row.
pub fn product(x: &[f64], w: &HostWeight<'_>) -> Vec<f64> {
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

/// ‖got - expected‖ / ‖expected‖.
pub fn error(got: &[bf16], expected: &[f64]) -> f64 {
    let square = |d: f64| d * d;
    let pairs = got.iter().zip(expected);
    let off: f64 = pairs.map(|(g, e)| square(g.to_f64() - e)).sum();
    let norm: f64 = expected.iter().map(|&e| square(e)).sum();
    (off / norm).sqrt()
}
