//! swiglu on candle's tensors beside what an engine on candle composes of candle's own operations:
//! the clamped activation, and the MLP of V4-Flash (H 4096, I 2048), on the CPU. The two take turns,
//! each in the pool that candle runs its operations in.
//!
//! `cargo bench -p swiglu-bench --features candle --bench candle [-- [bf16|f16|f32] [T …]] [--csv]`
#![allow(clippy::unwrap_used, reason = "a benchmark ends at the first error")]

use std::time::Duration;

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::{Linear, Module, VarBuilder};
use swiglu_bench::{Options, Passes, Report, figure, in_turn};
use swiglu_candle::{ActAndMul, DeepseekV4Mlp, GatedActivation, MlpConfig, ModelConfig};
use swiglu_conformance::MlpShape;

const H: usize = MlpShape::FLASH.hidden;
const I: usize = MlpShape::FLASH.intermediate;
const LIMIT: f64 = 10.0;
const FLOATS: [DType; 3] = [DType::BF16, DType::F16, DType::F32];
const TOKENS: [usize; 3] = [1, 16, 64];
/// T × d of the activation.
const SHAPES: [[usize; 2]; 3] = [[1, 2048], [64, 3072], [4096, 3072]];
const BUDGET: Duration = Duration::from_millis(700);

/// Normal numbers.
fn random(shape: [usize; 2], deviation: f64, dtype: DType) -> Tensor {
    let x = Tensor::randn(0.0_f32, deviation as f32, &shape, &Device::Cpu);
    x.unwrap().to_dtype(dtype).unwrap()
}

/// The activation of DeepSeek-V4 on \[T, 2d\], composed.
fn composed(gate_up: &Tensor) -> Result<Tensor> {
    let d = gate_up.dim(D::Minus1)? / 2;
    let gate = gate_up.narrow(D::Minus1, 0, d)?.minimum(LIMIT)?;
    let up = gate_up.narrow(D::Minus1, d, d)?.clamp(-LIMIT, LIMIT)?;
    gate.silu()? * up
}

/// Medians of candle's composition and of ours, and their ratio.
fn compare(report: &mut Report, section: &str, case: &str, passes: [&dyn Fn() -> Tensor; 2]) {
    let mut cases =
        passes.map(|pass| -> Passes<'_> { Box::new(move |n| (0..n).for_each(|_| drop(pass()))) });
    let times = in_turn(BUDGET, &mut cases);
    let figures = [
        figure("composed", "us", times[0] * 1e6),
        figure("swiglu", "us", times[1] * 1e6),
        figure("composed / swiglu", "ratio", times[0] / times[1]),
    ];
    report.case(section, case, &figures);
}

fn activations(report: &mut Report, dtype: DType) {
    let act = ActAndMul(GatedActivation::deepseek_v4());
    for [rows, d] in SHAPES {
        let input = random([rows, 2 * d], 5.0, dtype);
        let case = format!("{} {rows}x{d}", dtype.as_str());
        let passes: [&dyn Fn() -> Tensor; 2] = [&|| composed(&input).unwrap(), &|| {
            act.forward(&input).unwrap()
        }];
        compare(report, "silu_and_mul_with_clamp", &case, passes);
    }
}

fn config() -> MlpConfig {
    let json = format!(
        r#"{{"model_type": "deepseek_v4", "hidden_size": {H}, "moe_intermediate_size": {I},
            "n_shared_experts": 1, "hidden_act": "silu", "swiglu_limit": {LIMIT}}}"#
    );
    ModelConfig::from_json(&json)
        .unwrap()
        .mlp_config("")
        .unwrap()
}

fn mlps(report: &mut Report, dtype: DType, tokens: &[usize]) {
    // Gates and ups of deviation 5, of which a few in a hundred are beyond the limit.
    let gate_up = random([2 * I, H], 5.0 / (H as f64).sqrt(), dtype);
    let down = random([H, I], 1.0 / (I as f64).sqrt(), dtype);
    let tensors = [
        ("gate_up_proj.weight", &gate_up),
        ("down_proj.weight", &down),
    ];
    let tensors = tensors.map(|(name, weight)| (name.to_owned(), weight.clone()));
    let vb = VarBuilder::from_tensors(tensors.into(), dtype, &Device::Cpu);
    let mlp = DeepseekV4Mlp::builder(&config())
        .stages(dtype)
        .build(vb)
        .unwrap();
    let (gate_up, down) = (Linear::new(gate_up, None), Linear::new(down, None));
    for &tokens in tokens {
        let x = random([tokens, H], 1.0, dtype);
        let composed = || down.forward(&composed(&gate_up.forward(&x)?)?);
        let case = format!("{} T={tokens}", dtype.as_str());
        let passes: [&dyn Fn() -> Tensor; 2] =
            [&|| composed().unwrap(), &|| mlp.forward(&x).unwrap()];
        compare(report, "mlp", &case, passes);
    }
}

fn main() {
    let options = Options::from_env();
    let mut report = Report::new(&options);
    let floats = options.named(&FLOATS, |dtype| dtype.as_str().to_owned());
    let tokens = options.numbers(&TOKENS);
    Device::Cpu.with_context(|| {
        for dtype in floats {
            activations(&mut report, dtype);
            mlps(&mut report, dtype, &tokens);
        }
    });
}
