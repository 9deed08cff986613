//! Small layers.

use std::path::Path;

use swiglu_mlp::synthetic::{Names, SyntheticConfig, SyntheticMoe, write_moe_checkpoint};
use swiglu_mlp::{ExpertDtype, ModelConfig, MoeConfig};

use super::Tensors;

/// A small layer of five experts.
pub fn small(dtype: ExpertDtype, names: Names, vocabulary: Option<usize>) -> SyntheticMoe {
    SyntheticMoe {
        shared: SyntheticConfig {
            hidden: 64,
            intermediate: 32,
            block: 32,
            names,
            ..SyntheticConfig::flash(3)
        },
        top_k: 2,
        dtype,
        vocabulary,
        images: true,
        ..SyntheticMoe::flash(5, 3)
    }
}

pub fn plain() -> SyntheticMoe {
    small(ExpertDtype::Fp4, Names::DeepSeek, None)
}

pub fn config(folder: &Path, form: &SyntheticMoe) -> MoeConfig {
    let model = ModelConfig::from_file(&folder.join("config.json")).unwrap();
    model.moe_config(&form.prefix()).unwrap()
}

/// The small layer's tensors and configuration.
pub fn tensors(form: &SyntheticMoe) -> (MoeConfig, Tensors) {
    let folder = tempfile::tempdir().unwrap();
    write_moe_checkpoint(folder.path(), form).unwrap();
    let config = config(folder.path(), form);
    let bytes = std::fs::read(folder.path().join("model.safetensors")).unwrap();
    let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let own = |(n, t): (&str, safetensors::tensor::TensorView<'_>)| {
        let tensor = (t.dtype(), t.shape().to_vec(), t.data().to_vec());
        (n.to_owned(), tensor)
    };
    (config, read.iter().map(own).collect())
}
