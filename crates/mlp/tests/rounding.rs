//! The rounding mode on each of the MLP's paths, against a computation stage by stage that is not
//! the MLP's, with pre-activations beyond the limit.

#![allow(clippy::unwrap_used, reason = "a test helper is no #[test] function")]

use std::fmt::Debug;
use std::sync::Arc;

use swiglu_core::reference::{Reference, gated, quantize_row};
use swiglu_core::{
    E4M3, Element, GatedActivation, HostWeight, Matmul, Quantization, Rounding, RowLayout, Tensor,
    TensorMut, bf16,
};
use swiglu_mlp::synthetic::{SyntheticConfig, synthetic_input};
use swiglu_mlp::{ActivationQuant, DeepseekV4Mlp, MlpConfig, SharedExpert};

mod common;
use common::probe::Probe;
use common::{forward_to, stages, tiny, with};

/// What each stage gives: `gate_up`, `act` and y in f32.
type Staged = (Vec<bf16>, Vec<bf16>, Vec<f32>);

/// Rows as a matmul sees them: their codes times scales, which bf16 holds exactly.
fn through(quant: Option<&Quantization>, x: &[bf16], cols: usize) -> Vec<bf16> {
    let Some(quant) = quant else {
        return x.to_vec();
    };
    let row = |row: &[bf16]| {
        let values: Vec<f32> = row.iter().map(|v| v.to_f32()).collect();
        let (mut codes, mut scales) = (vec![0; cols], vec![0.0; quant.groups(cols)]);
        quantize_row(quant, &values, &mut codes, |group, s| scales[group] = s);
        let value = |(j, code)| E4M3(code).to_f32() * scales[j / quant.group()];
        let values = codes.into_iter().enumerate().map(value);
        values.map(bf16::from_f32).collect::<Vec<_>>()
    };
    x.chunks(cols).flat_map(row).collect()
}

fn matmul<T: Element>(x: &[bf16], parts: &[HostWeight<'_>]) -> Vec<T> {
    let weight = Reference.load_weight(parts).unwrap();
    let [n, k] = Reference.weight_shape(&weight);
    let rows = x.len() / k;
    let mut y = vec![T::default(); rows * n];
    Reference
        .matmul(
            Tensor::from_slice(x, RowLayout::contiguous(rows, k)),
            &weight,
            TensorMut::from_slice(&mut y, RowLayout::contiguous(rows, n)),
        )
        .unwrap();
    y
}

fn stage_by_stage(
    op: &GatedActivation,
    quant: Option<&Quantization>,
    expert: &SharedExpert<'_>,
    x: &[bf16],
) -> Staged {
    let [i, h] = [expert.gate().rows(), expert.gate().cols()];
    let parts = [expert.gate().clone(), expert.up().clone()];
    let gate_up: Vec<bf16> = matmul(&through(quant, x, h), &parts);
    let row = |row: &[bf16]| {
        let (gate, up) = row.split_at(i);
        let pairs = gate.iter().zip(up);
        pairs.map(|(g, u)| gated(op, *g, *u)).collect::<Vec<_>>()
    };
    let act: Vec<bf16> = gate_up.chunks(2 * i).flat_map(row).collect();
    let y = matmul(&through(quant, &act, i), &[expert.down().clone()]);
    (gate_up, act, y)
}

/// Compares what a path gives, on a backend that rounds as it is told, with what it should; and
/// the same on backends that round in one mode whatever they are told, where the comparison must
/// fail if that is the wrong one.
fn path<R: PartialEq + Debug>(
    quant: ActivationQuant,
    fuses: bool,
    run: impl Fn(&DeepseekV4Mlp<Probe>, &[bf16]) -> R,
    of: impl Fn(Staged) -> R,
) {
    let form = SyntheticConfig {
        hidden: 160,
        intermediate: 96,
        block: 32,
        ..tiny()
    };
    with(&form, |config, expert| {
        // Four times as wide as usual, so that each clamp meets several values.
        let x = synthetic_input(5, form.hidden, 9);
        let x: Vec<bf16> = x.iter().map(|v| *v * bf16::from_f32(4.0)).collect();
        for rounding in [Rounding::Official, Rounding::Eager] {
            let config = MlpConfig {
                activation_quant: quant,
                rounding,
                ..config.clone()
            };
            let load = |rounds| {
                let probe = Arc::new(Probe {
                    fuses,
                    rounds,
                    ..Probe::default()
                });
                DeepseekV4Mlp::load(probe, &config, &expert).unwrap()
            };
            let mlp = load(None);
            let op = GatedActivation::deepseek_v4().with_rounding(rounding);
            assert_eq!(*mlp.activation(), op);
            let staged = stage_by_stage(&op, mlp.quantization(), &expert, &x);
            for (half, sign) in [(0, 1.0), (1, 1.0), (1, -1.0)] {
                let i = form.intermediate;
                let of_half = |(at, _): &(usize, &bf16)| at / i % 2 == half;
                let halves = staged.0.iter().enumerate().filter(of_half);
                let beyond = halves.filter(|(_, v)| v.to_f32() * sign > 10.0).count();
                assert!(beyond > 5, "{beyond} beyond the limit in half {half}");
            }
            let expected = of(staged);
            assert_eq!(run(&mlp, &x), expected, "{rounding:?}");
            assert_eq!(run(&load(Some(rounding)), &x), expected, "{rounding:?}");
            let other = match rounding {
                Rounding::Official => Rounding::Eager,
                Rounding::Eager => Rounding::Official,
            };
            assert_ne!(run(&load(Some(other)), &x), expected, "{rounding:?} lost");
        }
    });
}

#[test]
fn the_plain_path_rounds_as_it_is_told() {
    path(ActivationQuant::None, false, forward_to, |staged| staged.2);
}

#[test]
fn the_fused_path_rounds_as_it_is_told() {
    path(ActivationQuant::None, true, forward_to, |staged| staged.2);
}

#[test]
fn the_fp8_path_rounds_as_it_is_told() {
    path(ActivationQuant::Fp8Block, false, forward_to, |s| s.2);
}

#[test]
fn the_staged_paths_round_as_they_are_told() {
    path(ActivationQuant::None, false, stages, |staged| staged);
    path(ActivationQuant::Fp8Block, false, stages, |staged| staged);
}
