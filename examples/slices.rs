//! The activation on slices of the engine's own: merged, in wider rows, and in two tensors.
#![allow(clippy::print_stdout)]

use swiglu::{GateUp, GatedActivation, Result, RowLayout, Tensor, TensorMut, bf16, cpu};

fn main() -> Result<()> {
    print!("{}", run()?);
    Ok(())
}

/// What the program prints.
pub fn run() -> Result<String> {
    let op = GatedActivation::deepseek_v4();
    let (rows, d) = (2, 4);

    // What the engine's matmul wrote: rows of gate ‖ up, 10 elements apart, of which 8 are used.
    let input = RowLayout::contiguous(rows, 2 * d).with_stride(10);
    let gate_up: Vec<bf16> = (0..20).map(|n| bf16::from_f32(n as f32 - 6.0)).collect();
    let mut y = vec![bf16::ZERO; rows * d];
    cpu::act_and_mul(
        &op,
        Tensor::from_slice(&gate_up, input).into(),
        TensorMut::from_slice(&mut y, RowLayout::contiguous(rows, d)),
    )?;

    // The same numbers, where gate and up are two tensors.
    let part = |from: usize| -> Vec<bf16> {
        let row = |r: usize| gate_up[10 * r + from..][..d].iter().copied();
        (0..rows).flat_map(row).collect()
    };
    let (gate, up) = (part(0), part(d));
    let halves = RowLayout::contiguous(rows, d);
    let mut apart = vec![bf16::ZERO; rows * d];
    cpu::act_and_mul(
        &op,
        GateUp::Split {
            gate: Tensor::from_slice(&gate, halves),
            up: Tensor::from_slice(&up, halves),
        },
        TensorMut::from_slice(&mut apart, halves),
    )?;

    Ok(format!(
        "{op}\n{y:?}\nin two tensors the same: {}\n",
        y == apart
    ))
}
