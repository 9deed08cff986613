//! What the CPU promises of bf16 beyond the contract: the activations with silu are rounded correctly,
//! on every instruction set, also where a result lies next to the middle between two values.

use swiglu_core::{
    ActAndMul, GateUp, GatedActivation, RowLayout, Tensor, TensorMut, bf16, reference,
};
use swiglu_cpu::{CpuBackend, InstructionSet};

/// Every gate with ups that have all bits of a mantissa, and with those of few, which make results
/// that lie on ties.
fn ups() -> impl Iterator<Item = bf16> {
    let spread = (0..=u16::MAX).step_by(2003).map(bf16::from_bits);
    let few = [1.0, 1.25, -7.875, 10.0, 0.0];
    spread.chain(few.map(bf16::from_f32))
}

#[test]
fn silu_of_every_gate_in_bf16() {
    let gates: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
    let row = RowLayout::contiguous(1, gates.len());
    let operations = [
        GatedActivation::silu_and_mul(),
        GatedActivation::deepseek_v4(),
        GatedActivation::silu_and_mul_with_clamp(0.3, 1.0, 0.0).unwrap(),
        GatedActivation::gpt_oss(),
        GatedActivation::swiglustep_and_mul(7.0).unwrap(),
    ];
    let backends: Vec<_> = InstructionSet::ALL
        .into_iter()
        .filter_map(|set| CpuBackend::with_instruction_set(set).ok())
        .collect();
    let mut output = vec![bf16::ZERO; gates.len()];
    for op in operations {
        for up in ups() {
            let expected: Vec<_> = gates
                .iter()
                .map(|&gate| reference::gated(&op, gate, up))
                .collect();
            let ups = vec![up; gates.len()];
            for cpu in &backends {
                let input = GateUp::Split {
                    gate: Tensor::from_slice(&gates, row),
                    up: Tensor::from_slice(&ups, row),
                };
                let to = TensorMut::from_slice(&mut output, row);
                cpu.act_and_mul(&op, input, to).unwrap();
                let differs = |i: &usize| output[*i].to_bits() != expected[*i].to_bits();
                if let Some(i) = (0..gates.len()).find(differs) {
                    let set = cpu.instruction_set();
                    panic!(
                        "{op} of {} and {up} on {set}: {}, not {}",
                        gates[i], output[i], expected[i]
                    );
                }
            }
        }
    }
}
