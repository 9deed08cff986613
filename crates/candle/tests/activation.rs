//! The activations against candle's own composition, option by option and layout by layout.

#![allow(clippy::unwrap_used, reason = "a test helper is no #[test] function")]

use candle_core::{CustomOp1, D, DType, Device, IndexOp, Module, Tensor, Var};
use swiglu_candle::{ActAndMul, GatedActivation, Rounding, act_and_mul, act_and_mul_split};
use swiglu_core::Function;

mod common;
use common::{
    FLOATS, assert_close, assert_same, assert_within, composed, halves, random, refusal, values,
};

/// One of each operator, with other settings than the defaults where there are any.
fn family() -> Vec<GatedActivation> {
    vec![
        GatedActivation::silu_and_mul(),
        GatedActivation::silu_and_mul_with_clamp(3.0, 1.0, 0.0).unwrap(),
        GatedActivation::silu_and_mul_with_clamp(7.0, 1.702, 1.0).unwrap(),
        GatedActivation::mul_and_silu(),
        GatedActivation::gelu_and_mul(),
        GatedActivation::gelu_tanh_and_mul(),
        GatedActivation::gelu_quick_and_mul(),
        GatedActivation::fatrelu_and_mul(0.5).unwrap(),
        GatedActivation::swigluoai_and_mul(7.0, 1.702).unwrap(),
        GatedActivation::swiglustep_and_mul(1.0).unwrap(),
        GatedActivation::situ_and_mul(4.0, Some(25.0)).unwrap(),
    ]
}

#[test]
fn the_family_is_what_candle_composes() {
    for dtype in FLOATS {
        let wide = random(&[16, 2 * 67], dtype, 1);
        for op in family() {
            let input = match op.function() {
                // candle's own formulas of these lose digits far below zero.
                Function::Gelu | Function::GeluTanh => (&wide * 0.2).unwrap(),
                _ => wide.clone(),
            };
            let [gate, up] = halves(&op, &input).unwrap();
            let expected = composed(&op, &gate, &up).unwrap();
            let what = format!("{op} {dtype:?}");
            assert_close(&act_and_mul(&op, &input).unwrap(), &expected, &what);
            let apart =
                act_and_mul_split(&op, &gate.contiguous().unwrap(), &up.contiguous().unwrap());
            assert_close(&apart.unwrap(), &expected, &what);
        }
    }
}

#[test]
fn beyond_the_limit_results_are_exact() {
    let op = GatedActivation::deepseek_v4();
    let rows = [
        [30.0_f32, 10.25, 30.0, -30.0],
        [12.0, 1000.0, -1000.0, 11.0],
    ];
    for dtype in FLOATS {
        let gates = Tensor::full(40.0_f32, (2, 4), &Device::Cpu).unwrap();
        let ups = Tensor::new(&rows, &Device::Cpu).unwrap();
        let input = Tensor::cat(&[gates, ups], 1)
            .unwrap()
            .to_dtype(dtype)
            .unwrap();
        let y = act_and_mul(&op, &input).unwrap();
        // silu(10) · 10.
        let most = |up: &f32| 99.995_460_213_129_76_f64.copysign(f64::from(*up));
        let expected: Vec<f64> = rows.iter().flatten().map(most).collect();
        let expected = Tensor::from_vec(expected, (2, 4), &Device::Cpu).unwrap();
        let expected = expected.to_dtype(dtype).unwrap();
        if dtype == DType::F32 {
            assert_close(&y, &expected, "f32");
        } else {
            assert_same(&y, &expected, "16 bits");
        }
    }
}

#[test]
fn each_option_changes_the_result() {
    let input = random(&[32, 2 * 64], DType::BF16, 2);
    let y = |op: GatedActivation| values(&act_and_mul(&op, &input).unwrap());
    let differ = |a: GatedActivation, b: GatedActivation| {
        let (a, b) = (y(a), y(b));
        a.iter().zip(&b).filter(|(a, b)| a != b).count()
    };
    let clamped =
        |limit, alpha, beta| GatedActivation::silu_and_mul_with_clamp(limit, alpha, beta).unwrap();
    let plain = clamped(10.0, 1.0, 0.0);
    for other in [
        GatedActivation::silu_and_mul(),
        clamped(9.0, 1.0, 0.0),
        clamped(10.0, 1.5, 0.0),
        clamped(10.0, 1.0, 1.0),
        plain.with_rounding(Rounding::Eager),
    ] {
        assert!(differ(plain, other) > 100, "{other}");
    }
    let after = GatedActivation::swiglustep_and_mul(1.0).unwrap();
    assert!(
        differ(clamped(1.0, 1.0, 0.0), after) > 100,
        "the clamp's place"
    );
}

#[test]
fn eager_rounds_where_candle_does() {
    for dtype in [DType::F16, DType::BF16] {
        let input = random(&[64, 2 * 64], dtype, 3);
        for op in [
            GatedActivation::deepseek_v4(),
            GatedActivation::minimax_m3(),
            GatedActivation::silu_and_mul(),
        ] {
            let op = op.with_rounding(Rounding::Eager);
            let [gate, up] = halves(&op, &input).unwrap();
            let expected = composed(&op, &gate, &up).unwrap();
            // Where f(gate) is all but halfway between two numbers, the other one of them makes two
            // of the product; a quarter of all would differ had the mode been lost.
            let got = act_and_mul(&op, &input).unwrap();
            assert_within(2.0, &got, &expected, &format!("{op} {dtype:?}"));
        }
    }
}

#[test]
fn rows_are_read_where_they_lie() {
    let op = GatedActivation::silu_and_mul_with_clamp(1.0, 1.0, 0.0).unwrap();
    for dtype in FLOATS {
        let whole = random(&[4, 6, 48], dtype, 4);
        let parts = [
            ("a whole tensor", whole.clone()),
            ("rank 1", whole.i((1, 2)).unwrap()),
            ("rank 2", whole.i(2).unwrap()),
            ("rank 4", whole.reshape((2, 2, 6, 48)).unwrap()),
            (
                "the last dimension from the start",
                whole.narrow(2, 0, 22).unwrap(),
            ),
            (
                "the last dimension from within",
                whole.narrow(2, 7, 30).unwrap(),
            ),
            ("the first dimension", whole.narrow(0, 1, 2).unwrap()),
            ("the last token", whole.narrow(1, 5, 1).unwrap()),
            ("the last token of one", whole.i((.., 5, ..)).unwrap()),
            (
                "both",
                whole.narrow(0, 1, 3).unwrap().narrow(2, 9, 20).unwrap(),
            ),
            (
                "one sequence's tokens",
                whole.narrow(0, 3, 1).unwrap().narrow(1, 2, 3).unwrap(),
            ),
            ("no rows", whole.narrow(0, 0, 0).unwrap()),
        ];
        for (what, part) in parts {
            let copy = part.force_contiguous().unwrap();
            let got = act_and_mul(&op, &part).unwrap();
            assert!(got.is_contiguous(), "{what}");
            assert_same(&got, &act_and_mul(&op, &copy).unwrap(), what);
            let [gate, up] = halves(&op, &copy).unwrap();
            assert_close(&got, &composed(&op, &gate, &up).unwrap(), what);
        }
    }
}

#[test]
fn gate_and_up_may_lie_apart_and_differently() {
    let op = GatedActivation::deepseek_v4();
    for dtype in FLOATS {
        let merged = random(&[2, 5, 64], dtype, 5);
        let expected = act_and_mul(&op, &merged).unwrap();
        let halves = merged.chunk(2, D::Minus1).unwrap();
        assert!(!halves[0].is_contiguous());
        let got = act_and_mul_split(&op, &halves[0], &halves[1]).unwrap();
        assert_same(&got, &expected, "chunks");
        let up = halves[1].contiguous().unwrap();
        let got = act_and_mul_split(&op, &halves[0], &up).unwrap();
        assert_same(&got, &expected, "one strided");
        // Which is which does not depend on the operation's own order.
        let reversed = GatedActivation::mul_and_silu();
        let plain = GatedActivation::silu_and_mul();
        let got = act_and_mul_split(&reversed, &halves[0], &up).unwrap();
        assert_same(&got, &act_and_mul(&plain, &merged).unwrap(), "the order");
    }
}

#[test]
fn the_module_is_the_function() {
    let op = GatedActivation::step_3_5();
    let input = random(&[3, 20], DType::F16, 6);
    let module = ActAndMul(op).forward(&input).unwrap();
    assert_same(&module, &act_and_mul(&op, &input).unwrap(), "a module");
    assert_eq!(CustomOp1::name(&ActAndMul(op)), "swiglustep_and_mul");
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let op = GatedActivation::deepseek_v4();
    let ones = |shape: &[usize], dtype| Tensor::ones(shape, dtype, &Device::Cpu).unwrap();
    let f32s = |shape: &[usize]| ones(shape, DType::F32);
    for (input, start) in [
        (f32s(&[3, 7]), "input: expected an even last dimension"),
        (f32s(&[3, 0]), "input: expected an even last dimension"),
        (f32s(&[]), "input: expected at least one dimension"),
        (
            f32s(&[4, 6]).t().unwrap(),
            "input: expected rows at one distance",
        ),
        (
            f32s(&[6]).broadcast_as((4, 6)).unwrap(),
            "input: expected rows at one distance",
        ),
        (
            ones(&[2, 4], DType::F64),
            "input: expected f32, f16 or bf16, got f64",
        ),
        (
            ones(&[2, 4], DType::U32),
            "input: expected f32, f16 or bf16, got u32",
        ),
        (
            ones(&[2, 4], DType::F8E4M3),
            "input: expected f32, f16 or bf16, got f8e4m3",
        ),
    ] {
        let error = refusal(act_and_mul(&op, &input));
        assert!(error.starts_with(start), "{error}");
    }
    for (gate, up, start) in [
        (
            f32s(&[2, 4]),
            f32s(&[4, 2]),
            "up: expected shape [2, 4], as gate has it, got [4, 2]",
        ),
        (f32s(&[2, 4]), f32s(&[1, 2, 4]), "up: expected shape [2, 4]"),
        (
            f32s(&[2, 4]),
            ones(&[2, 4], DType::BF16),
            "up: expected f32, got bf16",
        ),
        (
            f32s(&[2, 4]),
            ones(&[2, 4], DType::I64),
            "up: expected f32, f16 or bf16, got i64",
        ),
        (
            ones(&[2, 4], DType::F64),
            f32s(&[2, 4]),
            "gate: expected f32, f16 or bf16, got f64",
        ),
        (
            f32s(&[2, 4]),
            f32s(&[4, 2]).t().unwrap(),
            "up: expected rows",
        ),
        (
            f32s(&[4, 2]).t().unwrap(),
            f32s(&[2, 4]),
            "gate: expected rows",
        ),
        (
            f32s(&[2, 0]),
            f32s(&[2, 0]),
            "gate: expected at least one column",
        ),
    ] {
        let error = refusal(act_and_mul_split(&op, &gate, &up));
        assert!(error.starts_with(start), "{error}");
    }
}

#[test]
fn a_backward_pass_is_refused() {
    let op = GatedActivation::deepseek_v4();
    let input = Var::from_tensor(&random(&[3, 8], DType::F32, 7)).unwrap();
    let y = act_and_mul(&op, &input).unwrap();
    let error = refusal(y.sum_all().unwrap().backward());
    assert!(
        error.starts_with("silu_and_mul_with_clamp: no gradient"),
        "{error}"
    );
    let y = act_and_mul_split(&op, &random(&[3, 8], DType::F32, 8), &input).unwrap();
    let error = refusal(y.sum_all().unwrap().backward());
    assert!(
        error.starts_with("silu_and_mul_with_clamp: no gradient"),
        "{error}"
    );
    // Detached, it is a constant.
    let y = act_and_mul(&op, &input.as_tensor().detach()).unwrap();
    assert!(y.sum_all().unwrap().backward().is_ok());
}

#[test]
#[cfg(not(any(feature = "cuda", target_vendor = "apple")))]
fn other_devices_are_refused_in_words() {
    use candle_core::{CudaStorage, CustomOp2, Layout, MetalStorage};
    let op = ActAndMul(GatedActivation::deepseek_v4());
    let layout = Layout::contiguous((2, 4));
    for error in [
        refusal(CustomOp1::metal_fwd(&op, &MetalStorage, &layout)),
        refusal(CustomOp2::metal_fwd(
            &op,
            &MetalStorage,
            &layout,
            &MetalStorage,
            &layout,
        )),
    ] {
        let expected =
            "silu_and_mul_with_clamp: expected a tensor on the CPU or on CUDA, got one on Metal";
        assert!(error.starts_with(expected), "{error}");
    }
    for error in [
        refusal(CustomOp1::cuda_fwd(&op, &CudaStorage, &layout)),
        refusal(CustomOp2::cuda_fwd(
            &op,
            &CudaStorage,
            &layout,
            &CudaStorage,
            &layout,
        )),
    ] {
        assert!(
            error.ends_with("built without its feature `cuda`"),
            "{error}"
        );
    }
}
