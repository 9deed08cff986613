//! Checkpoints, and the MLP composed of candle's operations.

use std::collections::HashMap;

use candle_core::{D, DType, Device, Tensor};
use swiglu_candle::{Checkpoint, DeepseekV4Mlp, MlpConfig, ModelConfig};
use swiglu_core::Float;
use swiglu_mlp::synthetic::{SyntheticConfig, synthetic_input, write_checkpoint};

use super::{composed, values};

pub const H: usize = 96;
pub const I: usize = 64;

pub fn synthetic() -> SyntheticConfig {
    SyntheticConfig {
        hidden: H,
        intermediate: I,
        block: 32,
        ..SyntheticConfig::flash(11)
    }
}

/// A checkpoint in a folder that is gone with it, and the configuration of its MLP.
pub struct Written {
    pub folder: tempfile::TempDir,
    pub config: MlpConfig,
}

pub fn written(synthetic: &SyntheticConfig) -> Written {
    let folder = tempfile::tempdir().unwrap();
    write_checkpoint(folder.path(), synthetic).unwrap();
    let model = ModelConfig::from_file(&folder.path().join("config.json")).unwrap();
    let config = model.mlp_config(&synthetic.prefix()).unwrap();
    Written { folder, config }
}

impl Written {
    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint::open(self.folder.path()).unwrap()
    }

    pub fn tensors(&self) -> HashMap<String, Tensor> {
        let path = self.folder.path().join("model.safetensors");
        candle_core::safetensors::load(path, &Device::Cpu).unwrap()
    }

    pub fn mlp(&self) -> DeepseekV4Mlp {
        DeepseekV4Mlp::load(&self.config, &self.checkpoint(), &Device::Cpu).unwrap()
    }
}

/// The same weights as numbers, in f32.
pub fn dequantized() -> Written {
    written(&SyntheticConfig {
        weights: Some(Float::F32),
        ..synthetic()
    })
}

pub fn x(shape: &[usize], dtype: DType) -> Tensor {
    let len: usize = shape.iter().product();
    let values = synthetic_input(len.div_ceil(H), H, 7);
    let values = values[..len].to_vec();
    Tensor::from_vec(values, shape, &Device::Cpu)
        .unwrap()
        .to_dtype(dtype)
        .unwrap()
}

/// Gate, up and down of a checkpoint, in f64.
pub fn matrices(written: &Written) -> [Tensor; 3] {
    let tensors = written.tensors();
    ["w1", "w3", "w2"].map(|name| {
        let name = format!("{}.{name}.weight", written.config.prefix);
        tensors[&name].to_dtype(DType::F64).unwrap()
    })
}

/// The MLP composed of candle's operations in f64, rounded between the stages.
pub fn composition(
    config: &MlpConfig,
    [gate, up, down]: &[Tensor; 3],
    x: &Tensor,
    stages: DType,
) -> Tensor {
    let rows = x.reshape(((), x.dim(D::Minus1).unwrap())).unwrap();
    let wide = rows.to_dtype(DType::F64).unwrap();
    let matmul = |x: &Tensor, w: &Tensor| x.matmul(&w.t().unwrap()).unwrap();
    let stored = |x: Tensor| x.to_dtype(stages).unwrap();
    let (gate, up) = (stored(matmul(&wide, gate)), stored(matmul(&wide, up)));
    let act = composed(&config.activation().unwrap(), &gate, &up).unwrap();
    let y = matmul(&act.to_dtype(DType::F64).unwrap(), down);
    y.to_dtype(x.dtype()).unwrap().reshape(x.shape()).unwrap()
}

/// ‖got - expected‖ / ‖expected‖.
pub fn error(got: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(
        (got.dims(), got.dtype()),
        (expected.dims(), expected.dtype())
    );
    let (got, expected) = (values(got), values(expected));
    let off: f64 = got
        .iter()
        .zip(&expected)
        .map(|(g, e)| (g - e).powi(2))
        .sum();
    (off / expected.iter().map(|e| e * e).sum::<f64>()).sqrt()
}
