//! Calls from within a pool and from outside of any, in one process.

use swiglu_core::{
    Backend, Float, HostBuffer, HostWeight, Matmul, Tensor, TensorMut, WeightFormat, bf16,
};
use swiglu_cpu::{CpuBackend, InstructionSet};

/// A first call from within a pool larger than rayon's global one does not say how many threads later
/// calls from outside have: those that use memory for each thread would find too little.
#[test]
fn a_larger_pool_has_no_say_in_calls_from_outside() {
    const FLOAT: Float = Float::BF16;
    let (rows, n, k) = (64, 2048, 64);
    let mut x = HostBuffer::zeroed(rows * k * 2).unwrap();
    for (i, value) in x.typed_mut::<bf16>().iter_mut().enumerate() {
        *value = bf16::from_f32((i % 13) as f32 - 6.0);
    }
    let data: Vec<u8> = (0..n * k)
        .flat_map(|i| bf16::from_f32((i % 7) as f32).to_le_bytes())
        .collect();
    let weight = HostWeight::new([n, k], WeightFormat::Float(FLOAT), &data, &[]).unwrap();
    let cpu = CpuBackend::with_instruction_set(InstructionSet::AmxEmulated).unwrap();
    let weight = cpu.load_weight(&[weight]).unwrap();
    let multiply = || {
        let mut y = HostBuffer::zeroed(rows * n * 2).unwrap();
        let from = Tensor::contiguous(CpuBackend::view(&x), FLOAT, rows, k);
        let to = TensorMut::contiguous(CpuBackend::view_mut(&mut y), FLOAT, rows, n);
        cpu.matmul(from, &weight, to).unwrap();
        y.bytes().to_vec()
    };
    let global = rayon::current_num_threads();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(global + 6);
    let within = pool.build().unwrap().install(multiply);
    for _ in 0..20 {
        assert!(multiply() == within);
    }
}
