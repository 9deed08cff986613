//! The CPU on the engine's own thread pool: results do not depend on how many threads it has.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::sync::Arc;

use swiglu::cpu::CpuBackend;
use swiglu::{ActAndMul, GatedActivation, RowLayout, Tensor, TensorMut, bf16};

fn main() -> Result<(), Box<dyn Error>> {
    print!("{}", run()?);
    Ok(())
}

/// What the program prints.
pub fn run() -> Result<String, Box<dyn Error>> {
    let op = GatedActivation::deepseek_v4();
    let (rows, d) = (512, 3072);
    let gate_up: Vec<bf16> = (0..rows * 2 * d)
        .map(|n| bf16::from_f32((n % 61) as f32 - 30.0))
        .collect();

    let mut text = String::new();
    let mut first = None;
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()?;
        // Without `with_pool` a call runs in the pool that it is made from, such as that of a
        // surrounding `pool.install`; from outside of any, on threads of the library's own.
        let backend = CpuBackend::new().with_pool(Arc::new(pool));
        let mut y = vec![bf16::ZERO; rows * d];
        backend.act_and_mul(
            &op,
            Tensor::from_slice(&gate_up, RowLayout::contiguous(rows, 2 * d)).into(),
            TensorMut::from_slice(&mut y, RowLayout::contiguous(rows, d)),
        )?;
        let same = first.get_or_insert_with(|| y.clone()) == &y;
        text += &format!(
            "{threads} threads: y[5] = {}, the same bits: {same}\n",
            y[5]
        );
    }
    Ok(text)
}
