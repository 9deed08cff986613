//! A workspace's memory is reused: seen by a backend that counts what it is asked for.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use swiglu_core::reference::{Reference, ReferenceWeight};
use swiglu_core::{
    ActAndMul, ActAndMulQuant, Backend, DType, GatedActivation, GatedMatmul, HostBuffer,
    HostWeight, Matmul, QuantisedMatmul, Result, Support, Tensor, TensorMut,
};
use swiglu_mlp::synthetic::write_checkpoint;
use swiglu_mlp::{Checkpoint, DeepseekV4Mlp, ModelConfig, SharedExpert, Workspace};

mod common;
use common::{PREFIX, tiny};

#[derive(Default)]
struct Counting(AtomicUsize);

impl Backend for Counting {
    type Device = ();
    type Buffer = HostBuffer;
    fn platform(&self) -> &'static str {
        "counting"
    }
    fn description(&self) -> String {
        String::new()
    }
    fn device(&self) -> &() {
        &()
    }
    fn supports(&self, op: &GatedActivation, dtype: DType) -> Support {
        Reference.supports(op, dtype)
    }
    fn alloc(&self, bytes: usize) -> Result<HostBuffer> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Reference.alloc(bytes)
    }
    fn len(&self, buffer: &HostBuffer) -> usize {
        buffer.len()
    }
    fn upload(&self, buffer: &mut HostBuffer, data: &[u8]) -> Result<()> {
        Reference.upload(buffer, data)
    }
    fn download(&self, buffer: &HostBuffer, data: &mut [u8]) -> Result<()> {
        Reference.download(buffer, data)
    }
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
}

impl ActAndMul for Counting {
    fn act_and_mul(
        &self,
        op: &GatedActivation,
        input: Tensor<'_, HostBuffer>,
        output: TensorMut<'_, HostBuffer>,
    ) -> Result<()> {
        Reference.act_and_mul(op, input, output)
    }
}

impl Matmul for Counting {
    type Weight = ReferenceWeight;
    fn supports_weight(&self, dtype: DType) -> Support {
        Reference.supports_weight(dtype)
    }
    fn load_weight(&self, parts: &[HostWeight<'_>]) -> Result<ReferenceWeight> {
        Reference.load_weight(parts)
    }
    fn weight_shape(&self, weight: &ReferenceWeight) -> [usize; 2] {
        Reference.weight_shape(weight)
    }
    fn weight_bytes(&self, weight: &ReferenceWeight) -> usize {
        Reference.weight_bytes(weight)
    }
    fn matmul(
        &self,
        x: Tensor<'_, HostBuffer>,
        weight: &ReferenceWeight,
        y: TensorMut<'_, HostBuffer>,
    ) -> Result<()> {
        Reference.matmul(x, weight, y)
    }
}

impl ActAndMulQuant for Counting {}

impl QuantisedMatmul for Counting {}

impl GatedMatmul for Counting {}

#[test]
fn only_a_larger_pass_allocates() {
    let folder = tempfile::tempdir().unwrap();
    write_checkpoint(folder.path(), &tiny()).unwrap();
    let model = ModelConfig::from_file(&folder.path().join("config.json")).unwrap();
    let config = model.mlp_config(PREFIX);
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let expert = SharedExpert::load(&checkpoint, &config).unwrap();
    let backend = Arc::new(Counting::default());
    let mlp = DeepseekV4Mlp::load(Arc::clone(&backend), &config, &expert).unwrap();
    assert_eq!(mlp.weight_bytes(), 3 * (40 * 27 + 5 * 4));
    let mut workspace = Workspace::new();
    for (tokens, allocations) in [(0, 0), (3, 2), (3, 2), (1, 2), (0, 2), (4, 4), (3, 4)] {
        let x = HostBuffer::zeroed(tokens * 40 * 2).unwrap();
        let mut y = HostBuffer::zeroed(tokens * 40 * 2).unwrap();
        mlp.forward(
            Tensor::contiguous(&x, DType::BF16, tokens, 40),
            TensorMut::contiguous(&mut y, DType::BF16, tokens, 40),
            &mut workspace,
        )
        .unwrap();
        assert_eq!(
            backend.0.load(Ordering::Relaxed),
            allocations,
            "T = {tokens}"
        );
    }
}
