//! What the MLP asks of its backend, and when: seen by a backend that keeps count.

#![allow(clippy::unwrap_used, reason = "a test helper is no #[test] function")]

use std::sync::Arc;

use swiglu_core::{Request, RowLayout, Tensor, TensorMut, bf16};
use swiglu_mlp::synthetic::SyntheticConfig;
use swiglu_mlp::{ActivationQuant, DeepseekV4Mlp, MlpConfig, Workspace};

mod common;
use common::probe::Probe;
use common::{tiny, with};

fn form(hidden: usize, intermediate: usize) -> SyntheticConfig {
    SyntheticConfig {
        hidden,
        intermediate,
        block: 32,
        ..tiny()
    }
}

/// Runs `test` with an MLP on `probe`.
fn on(
    probe: Probe,
    form: &SyntheticConfig,
    quant: ActivationQuant,
    test: impl FnOnce(swiglu_mlp::Result<DeepseekV4Mlp<Probe>>, &Probe, &MlpConfig),
) {
    with(form, |config, expert| {
        let config = MlpConfig {
            activation_quant: quant,
            ..config
        };
        let probe = Arc::new(probe);
        let mlp = DeepseekV4Mlp::load(Arc::clone(&probe), &config, &expert);
        test(mlp, &probe, &config);
    });
}

/// Runs passes of each number of tokens in turn and expects as many allocations in all.
fn count(form: &SyntheticConfig, quant: ActivationQuant, passes: &[(usize, usize)]) {
    on(Probe::default(), form, quant, |mlp, probe, _| {
        let mut workspace = Workspace::new();
        for &(tokens, allocations) in passes {
            let rows = RowLayout::contiguous(tokens, form.hidden);
            let x = vec![bf16::ZERO; tokens * form.hidden];
            let mut y = x.clone();
            mlp.as_ref()
                .unwrap()
                .forward(
                    Tensor::from_slice(&x, rows),
                    TensorMut::from_slice(&mut y, rows),
                    &mut workspace,
                )
                .unwrap();
            assert_eq!(probe.allocated(), allocations, "T = {tokens}");
        }
    });
}

#[test]
fn only_a_larger_pass_allocates() {
    let none = ActivationQuant::None;
    on(Probe::default(), &tiny(), none, |mlp, _, _| {
        assert_eq!(mlp.unwrap().weight_bytes(), 3 * (40 * 27 + 5 * 4));
    });
    let passes = [(0, 0), (3, 2), (3, 2), (1, 2), (0, 2), (4, 4), (3, 4)];
    count(&tiny(), none, &passes);
}

#[test]
fn only_a_larger_quantized_pass_allocates() {
    // gate_up, codes, scales and the backend's scratch memory.
    let passes = [(0, 0), (3, 4), (3, 4), (1, 4), (0, 4), (4, 8), (3, 8)];
    count(&form(80, 70), ActivationQuant::Fp8Block, &passes);
    count(&form(70, 80), ActivationQuant::Fp8Block, &passes);
    count(&form(40, 200), ActivationQuant::Fp8Block, &passes);
    count(&form(200, 40), ActivationQuant::Fp8Block, &passes);
}

#[test]
fn nothing_has_run_where_y_does_not_fit() {
    for quant in [ActivationQuant::None, ActivationQuant::Fp8Block] {
        on(Probe::default(), &form(80, 70), quant, |mlp, probe, _| {
            let mlp = mlp.unwrap();
            let x = vec![bf16::ZERO; 2 * 80];
            for (y, layout) in [
                (2 * 80, RowLayout::contiguous(2, 79)),
                (2 * 80 - 1, RowLayout::contiguous(2, 80)),
                (2 * 80, RowLayout::contiguous(2, 80).with_offset(1)),
                (2 * 80, RowLayout::contiguous(2, 80).with_stride(79)),
            ] {
                let mut y = vec![bf16::ZERO; y];
                let error = mlp.forward(
                    Tensor::from_slice(&x, RowLayout::contiguous(2, 80)),
                    TensorMut::from_slice(&mut y, layout),
                    &mut Workspace::new(),
                );
                let error = error.unwrap_err().to_string();
                assert!(error.starts_with("y: expected"), "{error}");
            }
            assert_eq!((probe.called(), probe.allocated()), (vec![], 0));
        });
    }
}

/// Each request of a forward pass alone refused.
#[test]
fn a_backend_that_does_not_run_a_stage_is_named() {
    type Refusal = (fn(&Request) -> bool, ActivationQuant, &'static str);
    let refusals: [Refusal; 5] = [
        (
            |r| matches!(r, Request::GatedMatmul { .. }),
            ActivationQuant::None,
            "matmul of bf16 by fp8 in blocks of 32 x 32 with e8m0 scales and \
             silu_and_mul_with_clamp(limit=10, official) in bf16",
        ),
        (
            |r| matches!(r, Request::Matmul { .. }),
            ActivationQuant::None,
            "matmul of bf16 by fp8 in blocks of 32 x 32 with e8m0 scales to bf16",
        ),
        (
            |r| matches!(r, Request::Quantize { .. }),
            ActivationQuant::Fp8Block,
            "fp8(group=32, scales=e8m0) of bf16",
        ),
        (
            |r| matches!(r, Request::ActivationQuant { .. }),
            ActivationQuant::Fp8Block,
            "silu_and_mul_with_clamp(limit=10, official) in bf16 to fp8(group=32, scales=e8m0)",
        ),
        (
            |r| matches!(r, Request::QuantizedMatmul { .. }),
            ActivationQuant::Fp8Block,
            "matmul of fp8(group=32, scales=e8m0) by fp8 in blocks of 32 x 32 with e8m0 scales \
             to bf16",
        ),
    ];
    for (refuses, quant, what) in refusals {
        let probe = Probe {
            refuses,
            ..Probe::default()
        };
        on(probe, &form(80, 70), quant, |mlp, _, _| {
            let expected = format!("probe does not support {what}: it was asked not to");
            assert_eq!(mlp.err().unwrap().to_string(), expected);
        });
    }
}

/// What the dispatcher asks of a backend is what loading asks, and what forward then calls.
#[test]
fn the_requests_are_those_of_the_stages() {
    let stages = [
        (ActivationQuant::None, &["matmul_act_and_mul", "matmul"][..]),
        (
            ActivationQuant::Fp8Block,
            &[
                "quantize",
                "matmul_quantized",
                "act_and_mul_quant",
                "matmul_quantized",
            ],
        ),
    ];
    for (quant, calls) in stages {
        let probe = Probe {
            fuses: true,
            ..Probe::default()
        };
        let form = form(80, 70);
        on(probe, &form, quant, |mlp, probe, config| {
            let rows = RowLayout::contiguous(1, 80);
            let (x, mut y) = ([bf16::ONE; 80], [bf16::ZERO; 80]);
            mlp.unwrap()
                .forward(
                    Tensor::from_slice(&x, rows),
                    TensorMut::from_slice(&mut y, rows),
                    &mut Workspace::new(),
                )
                .unwrap();
            assert_eq!(probe.called(), calls);
            with(&form, |_, expert| {
                let (gate, down) = (expert.gate().format(), expert.down().format());
                let name = |request: &Request| match request {
                    Request::GatedMatmul { .. } => "matmul_act_and_mul",
                    Request::Matmul { .. } => "matmul",
                    Request::Quantize { .. } => "quantize",
                    Request::QuantizedMatmul { .. } => "matmul_quantized",
                    Request::ActivationQuant { .. } => "act_and_mul_quant",
                    _ => "another",
                };
                let requests = config.requests(gate, down).unwrap();
                assert_eq!(requests.iter().map(name).collect::<Vec<_>>(), calls);
            });
        });
    }
}

#[test]
fn a_plan_has_a_line_for_each_stage_that_has_one() {
    let form = form(80, 70);
    on(
        Probe::default(),
        &form,
        ActivationQuant::None,
        |mlp, _, _| {
            let plan = mlp.unwrap().plan(16);
            assert_eq!(plan, ["gate_up [16, 80] x [140, 80]: 16 rows"]);
        },
    );
    on(
        Probe::default(),
        &form,
        ActivationQuant::Fp8Block,
        |mlp, _, _| {
            let expected = [
                "quantize [3, 80]: 3 rows",
                "gate_up [3, 80] x [140, 80]: 3 rows",
                "act [3, 70]: 3 rows",
                "down [3, 70] x [80, 70]: 3 rows",
            ];
            assert_eq!(mlp.unwrap().plan(3), expected);
        },
    );
}

#[test]
fn a_configuration_that_is_not_valid_asks_for_nothing() {
    with(&form(80, 70), |config, expert| {
        let (gate, down) = (expert.gate().format(), expert.down().format());
        let refused = |config: MlpConfig| config.requests(gate, down).unwrap_err().to_string();
        let empty = MlpConfig {
            hidden_size: 0,
            ..config.clone()
        };
        assert!(refused(empty).starts_with("hidden_size: expected"));
        let wide = MlpConfig {
            block: Some([128, 128]),
            activation_quant: ActivationQuant::Fp8Block,
            ..config
        };
        let expected = "gate: expected blocks 128 columns wide, got 32";
        assert!(refused(wide).starts_with(expected));
    });
}

/// A backend that quantizes within its matmuls, or within the first of them, gives the same bits.
#[test]
fn matmuls_may_quantize_on_the_way() {
    let form = form(96, 64);
    let fp8 = ActivationQuant::Fp8Block;
    let steps = [
        "quantize",
        "matmul_quantized",
        "act_and_mul_quant",
        "matmul_quantized",
    ];
    let (first, second) = ("quantizing_matmul_act_and_mul", "quantizing_matmul");
    let to_codes = "quantizing_matmul_act_and_mul_quant";
    let cases: [([bool; 2], bool, &[&str]); 4] = [
        ([false, false], false, &steps),
        (
            [true, false],
            false,
            &[first, "quantize", "matmul_quantized"],
        ),
        ([true, true], true, &[first, second]),
        ([false, false], true, &[to_codes, "matmul_quantized"]),
    ];
    let x: Vec<bf16> = (0..3 * 96)
        .map(|i| bf16::from_f32((i * 37 % 101) as f32 - 50.0))
        .collect();
    let mut results = Vec::new();
    for (quantizes, gives_codes, calls) in cases {
        let probe = Probe {
            quantizes,
            gives_codes,
            ..Probe::default()
        };
        on(probe, &form, fp8, |mlp, probe, _| {
            let (mlp, mut workspace) = (mlp.unwrap(), Workspace::new());
            let rows = RowLayout::contiguous(3, 96);
            let mut y = vec![bf16::ZERO; 3 * 96];
            let mut forward = || {
                let to = TensorMut::from_slice(&mut y, rows);
                mlp.forward(Tensor::from_slice(&x, rows), to, &mut workspace)
                    .unwrap();
            };
            forward();
            assert_eq!(probe.called(), calls);
            let allocated = probe.allocated();
            forward();
            assert_eq!((allocated, probe.allocated()), (4, 4));
            results.push(y);
        });
    }
    assert!(results[0].iter().any(|y| y.to_f32() != 0.0));
    assert_eq!(results[0], results[1]);
    assert_eq!(results[0], results[2]);
    assert_eq!(results[0], results[3]);
}

#[test]
fn a_plan_says_where_matmuls_quantize() {
    for gives_codes in [false, true] {
        plan_of_two(Probe {
            quantizes: [!gives_codes; 2],
            gives_codes,
            ..Probe::default()
        });
    }
}

fn plan_of_two(probe: Probe) {
    on(
        probe,
        &form(80, 70),
        ActivationQuant::Fp8Block,
        |mlp, _, _| {
            let expected = [
                "gate_up [3, 80] x [140, 80]: 3 rows",
                "down [3, 70] x [80, 70]: 3 rows",
            ];
            assert_eq!(mlp.unwrap().plan(3), expected);
        },
    );
}
