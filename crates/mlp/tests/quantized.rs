//! The MLP with FP8 activations on the reference backend, against a plain computation of its own.

#![allow(clippy::unwrap_used, reason = "a test helper is no #[test] function")]

use std::sync::Arc;

use swiglu_core::{
    E4M3, E8M0, Float, HostWeight, Limit, RowLayout, ScaleFormat, Tensor, TensorMut, WeightFormat,
    bf16, reference::Reference,
};
use swiglu_mlp::synthetic::{SyntheticConfig, synthetic_input};
use swiglu_mlp::{
    ActivationQuant, DeepseekV4Mlp, HiddenAct, MlpConfig, Shard, SharedExpert, Workspace,
};

mod common;
use common::{error, forward, forward_to, load, matmul, rounded, stages, tiny, with};

/// What the plain computation does. Anything but [`Plain::of`] is a mistake that an engine made.
#[derive(Clone, Copy, Debug)]
struct Plain {
    group: usize,
    floor: f64,
    powers_of_two: bool,
    quantizes: [bool; 2],
    limit: f64,
}

impl Plain {
    const fn of(group: usize) -> Self {
        Self {
            group,
            floor: 1e-4,
            powers_of_two: true,
            quantizes: [true; 2],
            limit: 10.0,
        }
    }

    /// Rows of `cols` values as an FP8 matmul sees them: through the nearest of all codes, found
    /// by looking at each.
    fn quantized(&self, x: &[f64], cols: usize) -> Vec<f64> {
        let group = |x: &[f64]| {
            let amax = x.iter().fold(self.floor, |a, v| a.max(v.abs()));
            let mut scale = amax / 448.0;
            if self.powers_of_two {
                scale = (-149..128)
                    .map(|e| 2f64.powi(e))
                    .find(|s| *s >= scale)
                    .unwrap();
            }
            x.iter()
                .map(|v| nearest(v / scale) * scale)
                .collect::<Vec<_>>()
        };
        x.chunks(cols)
            .flat_map(|row| row.chunks(self.group))
            .flat_map(group)
            .collect()
    }

    fn forward(&self, expert: &SharedExpert<'_>, x: &[bf16]) -> Vec<f64> {
        let [first, second] = self.quantizes;
        let mut x: Vec<f64> = x.iter().map(|v| v.to_f64()).collect();
        if first {
            x = self.quantized(&x, expert.gate().cols());
        }
        let gate = rounded(matmul(&x, expert.gate()));
        let up = rounded(matmul(&x, expert.up()));
        let act = gate.iter().zip(&up).map(|(&g, &u)| {
            let (g, u) = (g.min(self.limit), u.clamp(-self.limit, self.limit));
            g / (1.0 + (-g).exp()) * u
        });
        let mut act = rounded(act.collect());
        if second {
            act = self.quantized(&act, expert.down().cols());
        }
        rounded(matmul(&act, expert.down()))
    }
}

/// The value of the nearest code, the even one in the middle between two.
fn nearest(x: f64) -> f64 {
    let better = |best: u8, code: u8| {
        let off = |c: u8| (f64::from(E4M3(c).to_f32()) - x.abs()).abs();
        if off(code) < off(best) || (off(code) == off(best) && code & 1 == 0) {
            code
        } else {
            best
        }
    };
    let code = (0..0x7f).reduce(better).unwrap();
    f64::from(E4M3(code).to_f32()).copysign(x)
}

/// As the released models are quantized, and ragged: the last block of each dimension is partial.
fn forms() -> [SyntheticConfig; 4] {
    let form = |hidden, intermediate, block, scales| SyntheticConfig {
        hidden,
        intermediate,
        block,
        scales,
        ..tiny()
    };
    [
        form(256, 128, 128, ScaleFormat::E8M0),
        form(200, 136, 128, ScaleFormat::F32),
        form(160, 96, 32, ScaleFormat::E8M0),
        form(75, 147, 32, ScaleFormat::E8M0),
    ]
}

fn quantized(config: MlpConfig) -> MlpConfig {
    MlpConfig {
        activation_quant: ActivationQuant::Fp8Block,
        ..config
    }
}

/// Runs `test` with each form's MLP, its weights and an input whose pre-activations pass the limit.
fn each(test: impl Fn(&SyntheticConfig, &DeepseekV4Mlp<Reference>, &SharedExpert<'_>, &[bf16])) {
    for form in forms() {
        with(&form, |config, expert| {
            let mlp = load(&quantized(config), &expert);
            let x = synthetic_input(4, form.hidden, 9);
            let (gate_up, ..) = stages(&mlp, &x);
            assert!(gate_up.iter().any(|v| v.to_f32().abs() > 10.0));
            test(&form, &mlp, &expert, &x);
        });
    }
}

#[test]
fn it_is_the_definition_and_no_mistake_is() {
    each(|form, mlp, expert, x| {
        let y = forward(mlp, x);
        let plain = Plain::of(form.block);
        let off = error(&y, &plain.forward(expert, x));
        assert!(off < 1e-4, "{form:?}: {off}");
        let mistakes = [
            Plain {
                quantizes: [false; 2],
                ..plain
            },
            Plain {
                quantizes: [true, false],
                ..plain
            },
            Plain {
                quantizes: [false, true],
                ..plain
            },
            Plain {
                powers_of_two: false,
                ..plain
            },
            Plain {
                limit: f64::INFINITY,
                ..plain
            },
        ];
        for mistake in mistakes {
            let off = error(&y, &mistake.forward(expert, x));
            assert!(off > 3e-3, "{form:?} {mistake:?}: {off}");
        }
    });
}

fn with_codes<'a>(codes: &'a [u8], like: &'a HostWeight<'_>) -> HostWeight<'a> {
    let shape = [like.rows(), like.cols()];
    HostWeight::new(shape, like.format(), codes, like.scales()).unwrap()
}

/// With scales that are powers of two a code shows its scale only where it is small: so a large
/// value that no weight multiplies raises the scale of its group.
#[test]
fn a_group_is_as_wide_as_a_block() {
    each(|form, mlp, expert, x| {
        let (h, i) = (form.hidden, form.intermediate);
        let at = h / 2;
        let blind = |w: &HostWeight<'_>| {
            let mut codes = w.data().to_vec();
            codes.iter_mut().skip(at).step_by(h).for_each(|c| *c = 0);
            codes
        };
        let codes = [blind(expert.gate()), blind(expert.up())];
        let expert = SharedExpert::new(
            with_codes(&codes[0], expert.gate()),
            with_codes(&codes[1], expert.up()),
            expert.down().clone(),
        );
        let config = MlpConfig {
            hidden_size: h,
            intermediate_size: i,
            hidden_act: HiddenAct::Silu,
            limit: Some(Limit::new(10.0).unwrap()),
            rounding: mlp.activation().rounding(),
            block: Some([form.block; 2]),
            ue8m0: false,
            activation_quant: ActivationQuant::Fp8Block,
            reduce_results: false,
            shard: Shard::WHOLE,
            prefix: String::new(),
        };
        let mut x = x.to_vec();
        x.iter_mut()
            .skip(at)
            .step_by(h)
            .for_each(|x| *x = bf16::from_f32(65536.0));
        let y = forward(&load(&config, &expert), &x);
        let plain = Plain::of(form.block);
        let off = error(&y, &plain.forward(&expert, &x));
        assert!(off < 1e-4, "{form:?}: {off}");
        for group in [16, 32, 64, 128, h]
            .into_iter()
            .filter(|g| *g != form.block)
        {
            let off = error(&y, &Plain { group, ..plain }.forward(&expert, &x));
            assert!(off > 3e-3, "{form:?} {group}: {off}");
        }
    });
}

#[test]
fn small_rows_meet_deepseeks_floor() {
    each(|form, mlp, expert, x| {
        let x: Vec<_> = x
            .iter()
            .map(|v| bf16::from_f32(v.to_f32() * 3e-5))
            .collect();
        let y = forward(mlp, &x);
        let plain = Plain::of(form.block);
        let off = error(&y, &plain.forward(expert, &x));
        assert!(off < 1e-4, "{form:?}: {off}");
        let other = Plain {
            floor: 1e-10,
            ..plain
        };
        let off = error(&y, &other.forward(expert, &x));
        assert!(off > 3e-3, "{form:?}: {off}");
    });
}

#[test]
fn fused_and_stage_by_stage_are_the_same_bits() {
    each(|_, mlp, _, x| {
        assert_eq!(stages(mlp, x).2, forward_to::<f32, _>(mlp, x));
    });
}

#[test]
fn a_workspace_that_held_more_rows_changes_nothing() {
    each(|form, mlp, _, x| {
        let mut workspace = Workspace::new();
        let mut run = |x: &[bf16]| {
            let (t, h) = (x.len() / form.hidden, form.hidden);
            let rows = RowLayout::contiguous(t, h);
            let mut y = vec![bf16::ZERO; x.len()];
            mlp.forward(
                Tensor::from_slice(x, rows),
                TensorMut::from_slice(&mut y, rows),
                &mut workspace,
            )
            .unwrap();
            y
        };
        let whole = run(x);
        for (x, y) in x.chunks(form.hidden).zip(whole.chunks(form.hidden)) {
            assert_eq!(run(x), y);
        }
    });
}

#[test]
fn nan_and_infinity_stay_in_their_row() {
    each(|form, mlp, _, x| {
        let clean = forward(mlp, x);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = x.to_vec();
            x[form.hidden + 3] = bf16::from_f32(bad);
            let y = forward(mlp, &x);
            for (row, (y, clean)) in y
                .chunks(form.hidden)
                .zip(clean.chunks(form.hidden))
                .enumerate()
            {
                if row == 1 {
                    assert!(y.iter().all(|v| v.is_nan()), "{bad}");
                } else {
                    assert_eq!(y, clean, "{bad}");
                }
            }
        }
    });
}

#[test]
fn what_is_not_fp8_in_blocks_is_refused_by_name() {
    let refused = |form: &SyntheticConfig, change: &dyn Fn(&mut MlpConfig), message: &str| {
        with(form, |config, expert| {
            let mut config = quantized(config);
            change(&mut config);
            let mlp = DeepseekV4Mlp::load(Arc::new(Reference), &config, &expert);
            let error = mlp.err().unwrap().to_string();
            assert!(error.starts_with(message), "{error}");
        });
    };
    let [form, ..] = forms();
    for weights in Float::ALL.map(Some) {
        let plain = SyntheticConfig {
            weights,
            ..form.clone()
        };
        let none = "activation_quant: expected none with weights that are not FP8 in blocks";
        refused(&plain, &|_| (), none);
        let message = format!(
            "activation_quant: expected none, as the gate weight is {} and not FP8 in blocks, \
             got FP8",
            weights.unwrap()
        );
        refused(&plain, &|c| c.block = Some([128, 128]), &message);
    }
    let width = "block: expected a width of 128, 64 or 32 for FP8 activations, got";
    refused(&tiny(), &|_| (), width);
    refused(
        &form,
        &|c| c.block = Some([128, MlpConfig::MAX_BLOCK]),
        width,
    );
    refused(&form, &|c| c.block = Some([128, 0]), "block: expected");
    let other = "gate: expected blocks 64 columns wide, got 128";
    refused(&form, &|c| c.block = Some([128, 64]), other);
}

#[test]
fn a_down_weight_in_another_form_is_refused() {
    let [form, ..] = forms();
    with(&form, |config, expert| {
        let (h, i) = (form.hidden, form.intermediate);
        let load = |down| {
            let mixed = SharedExpert::new(expert.gate().clone(), expert.up().clone(), down);
            let mlp = DeepseekV4Mlp::load(Arc::new(Reference), &quantized(config.clone()), &mixed);
            mlp.err().unwrap().to_string()
        };
        let halves = vec![0; 2 * h * i];
        let plain = WeightFormat::Float(Float::BF16);
        let message = load(HostWeight::new([h, i], plain, &halves, &[]).unwrap());
        let expected = "activation_quant: expected none, as the down weight is bf16 and not FP8";
        assert!(message.starts_with(expected), "{message}");
        let narrow = WeightFormat::Fp8 {
            scales: ScaleFormat::E8M0,
            block: [128, 32],
        };
        let scales = vec![127; h.div_ceil(128) * i.div_ceil(32)];
        let down = HostWeight::new([h, i], narrow, &halves[..h * i], &scales).unwrap();
        let message = load(down);
        let expected = "down: expected blocks 128 columns wide, got 32";
        assert!(message.starts_with(expected), "{message}");
    });
}

#[test]
fn an_up_weight_in_blocks_of_another_width_is_refused_with_fp8_activations_alone() {
    let [form, ..] = forms();
    with(&form, |config, expert| {
        let (h, i) = (form.hidden, form.intermediate);
        let codes = vec![0; h * i];
        let narrow = WeightFormat::Fp8 {
            scales: ScaleFormat::E8M0,
            block: [128, 32],
        };
        let scales = vec![127; i.div_ceil(128) * h.div_ceil(32)];
        let up = HostWeight::new([i, h], narrow, &codes, &scales).unwrap();
        let mixed = SharedExpert::new(expert.gate().clone(), up, expert.down().clone());
        let load = |config| DeepseekV4Mlp::load(Arc::new(Reference), config, &mixed);
        let fp8 = quantized(config.clone());
        let message = load(&fp8).err().unwrap().to_string();
        let expected = "up: expected blocks 128 columns wide, got 32";
        assert!(message.starts_with(expected), "{message}");
        assert!(load(&config).is_ok());
    });
}

/// Gate and up with scales of different types are two weights, and give the same bits as one.
#[test]
fn an_up_weight_with_scales_of_another_type_changes_no_bit() {
    let [form, ..] = forms();
    with(&form, |config, expert| {
        let up = expert.up();
        let wide = |&byte| E8M0(byte).to_f32().to_le_bytes();
        let scales: Vec<u8> = up.scales().iter().flat_map(wide).collect();
        let format = WeightFormat::Fp8 {
            scales: ScaleFormat::F32,
            block: [form.block; 2],
        };
        let up = HostWeight::new([up.rows(), up.cols()], format, up.data(), &scales).unwrap();
        let mixed = SharedExpert::new(expert.gate().clone(), up, expert.down().clone());
        let x = synthetic_input(3, form.hidden, 9);
        for config in [quantized(config.clone()), config] {
            for world in [1, 2] {
                let config = MlpConfig {
                    reduce_results: false,
                    shard: Shard {
                        rank: world - 1,
                        world,
                        disable_tp: false,
                    },
                    ..config.clone()
                };
                let two = stages(&load(&config, &mixed), &x);
                assert!(two == stages(&load(&config, &expert), &x));
                let y: Vec<f32> = forward_to(&load(&config, &mixed), &x);
                assert_eq!(y, forward_to::<f32, _>(&load(&config, &expert), &x));
                let requests = mixed.requests(&config).unwrap();
                assert_eq!(
                    requests.len(),
                    expert.requests(&config).unwrap().len()
                        + 1
                        + usize::from(config.activation_quant == ActivationQuant::None)
                );
            }
        }
    });
}
