//! Quantization as a caller sees it: what is set, what is refused, and the reference's codes and back.
#![allow(clippy::unwrap_used, reason = "a test helper is no #[test] function")]

use swiglu_core::reference::{Reference, clamp_hits, gated_routed};
use swiglu_core::{
    Batch, Function, GatedActivation, Limit, Parameter, Parameters, QuantOptions, Quantization,
    Quantize, Quantized, QuantizedMut, Rounding, RowLayout, ScaleFormat, ScaleLayout, ScaleOrder,
    Tensor, TensorMut, bf16,
};

#[test]
fn what_is_set_is_told_and_printed() {
    let v4 = Quantization::deepseek_v4();
    let told = (v4.group(), v4.format(), v4.floor(), v4.materialize());
    assert_eq!(told, (128, ScaleFormat::E8M0, 1e-4, true));
    assert_eq!(v4.to_string(), "fp8(group=128, scales=e8m0)");
    let other = Quantization::new(64, ScaleFormat::F32).unwrap();
    let other = other.with_floor(1e-10).unwrap().with_materialize(false);
    assert_eq!((other.floor(), other.materialize()), (1e-10, false));
    let printed = "fp8(group=64, scales=f32, floor=1e-10, not materialized)";
    assert_eq!(other.to_string(), printed);
    assert!(other.with_materialize(true).materialize());
}

#[test]
fn only_eager_rounding_that_is_not_materialized_is_refused() {
    for rounding in [Rounding::Official, Rounding::Eager] {
        for materialize in [false, true] {
            let quant = Quantization::deepseek_v4().with_materialize(materialize);
            let refused = quant.check_rounding(rounding).is_err();
            assert_eq!(refused, rounding == Rounding::Eager && !materialize);
        }
    }
}

#[test]
fn the_parameters_of_a_function_are_those_that_kernels_take() {
    for (function, scalars) in [
        (Function::Silu { alpha: 1.5 }, [1.5, 0.0]),
        (Function::Gelu, [0.0; 2]),
        (Function::GeluTanh, [0.0; 2]),
        (Function::FatRelu { threshold: 0.25 }, [0.25, 0.0]),
        (
            Function::Situ {
                beta: 4.0,
                up_bound: Some(25.0),
            },
            [4.0, 25.0],
        ),
    ] {
        assert_eq!(function.scalars(), scalars);
    }
}

#[test]
fn a_parameter_has_a_name_a_sentence_and_at_most_one_may_be_none() {
    let mut sentences = std::collections::BTreeSet::new();
    for parameter in Parameter::ALL {
        assert_eq!(parameter.to_string(), parameter.name());
        assert!(parameter.help().contains(' '), "{parameter}");
        assert!(sentences.insert(parameter.help()), "{parameter}");
        assert_eq!(parameter.may_be_none(), parameter == Parameter::UpBound);
    }
    // A slope's default is the operator's own: to switch it off is something else.
    let none = Parameters::default().without(Parameter::Alpha);
    let error = GatedActivation::from_name("silu_and_mul_with_clamp", &none).unwrap_err();
    assert_eq!(error.to_string(), "alpha: expected a number, got none");
}

#[test]
fn a_limit_below_zero_is_told_what_a_configuration_may_say() {
    let error = Limit::from_config(Some(-1.0)).unwrap_err().to_string();
    let expected = "limit: expected a number above 0, or 0, null or infinity for none, got -1";
    assert_eq!(error, expected);
}

#[test]
fn a_route_weight_goes_in_before_the_rounding() {
    let op = GatedActivation::deepseek_v4();
    let [gate, up] = [1.0, 3.0].map(bf16::from_f32);
    let y = 1.0 / (1.0 + (-1.0_f64).exp()) * 3.0;
    let mut told = 0;
    for weight in (1..100).map(|i| i as f32 * 0.013) {
        let expected = bf16::from_f64(y * f64::from(weight));
        assert_eq!(gated_routed(&op, gate, up, weight), expected);
        let after = bf16::from_f32(bf16::from_f64(y).to_f32() * weight);
        told += u32::from(after != expected);
    }
    assert!(told > 0, "no weight tells before from after");
}

#[test]
fn what_is_at_the_limit_is_not_clamped() {
    let op = GatedActivation::deepseek_v4();
    assert_eq!(clamp_hits(&op, 10.0_f32, 10.0), [false; 3]);
    assert_eq!(clamp_hits(&op, 10.0_f32, -10.0), [false; 3]);
    assert_eq!(clamp_hits(&op, 10.5_f32, 10.5), [true, true, false]);
    assert_eq!(clamp_hits(&op, -10.5_f32, -10.5), [false, false, true]);
}

/// Codes and scales of one matrix, with room behind each row.
struct Matrix {
    codes: Vec<u8>,
    scales: Vec<u8>,
    layout: RowLayout,
    scale_layout: ScaleLayout,
}

impl Matrix {
    fn new(quant: &Quantization, rows: usize, d: usize) -> Self {
        let layout = RowLayout::contiguous(rows, d).with_stride(d + 3);
        let groups = quant.groups(d);
        let scale_layout =
            ScaleLayout::contiguous(quant.format(), ScaleOrder::ColumnMajor, rows, groups);
        Self {
            codes: vec![0xee; rows * (d + 3)],
            scales: vec![0xee; scale_layout.bytes().unwrap()],
            layout,
            scale_layout,
        }
    }

    fn view(&mut self) -> QuantizedMut<'_, Reference> {
        QuantizedMut {
            codes: &mut self.codes,
            layout: self.layout,
            scales: &mut self.scales,
            scale_layout: self.scale_layout,
        }
    }
}

const ROWS: usize = 4;
const D: usize = 70;

fn gate_up() -> Vec<bf16> {
    let wave = |i: usize| bf16::from_f32((i as f32 * 0.37).sin() * 12.0);
    (0..ROWS * 2 * D).map(wave).collect()
}

fn act_quant(options: QuantOptions<'_, Reference>) -> swiglu_core::Result<Matrix> {
    let op = GatedActivation::deepseek_v4();
    let quant = Quantization::new(32, ScaleFormat::F32).unwrap();
    let x = gate_up();
    let input = Tensor::from_slice(&x, RowLayout::contiguous(ROWS, 2 * D));
    let mut output = Matrix::new(&quant, ROWS, D);
    Reference.act_and_mul_quant(&op, &quant, input.into(), output.view(), options)?;
    Ok(output)
}

#[test]
fn codes_go_back_to_what_they_stand_for() {
    let quant = Quantization::new(32, ScaleFormat::F32).unwrap();
    let x: Vec<f32> = (0..ROWS * D)
        .map(|i| (i as f32 * 0.37).sin() * 12.0)
        .collect();
    let rows = RowLayout::contiguous(ROWS, D);
    let mut matrix = Matrix::new(&quant, ROWS, D);
    let input = Tensor::from_slice(&x, rows);
    Reference.quantize(&quant, input, matrix.view()).unwrap();
    let mut y = vec![f32::NAN; ROWS * D];
    let input = Quantized {
        codes: &matrix.codes[..],
        layout: matrix.layout,
        scales: &matrix.scales[..],
        scale_layout: matrix.scale_layout,
    };
    let output = TensorMut::from_slice(&mut y, rows);
    Reference.dequantize(&quant, input, output).unwrap();
    for (x, y) in x.iter().zip(&y) {
        // Three bits of mantissa, in a group whose largest magnitude is at most 12.
        assert!((x - y).abs() <= x.abs() / 16.0 + 1e-3, "{y} for {x}");
    }
}

#[test]
fn a_route_weight_scales_its_own_row() {
    let plain = act_quant(QuantOptions::default()).unwrap();
    let route: [u8; 4 * ROWS] = bytemuck::cast([1.0_f32, 0.5, 1.0, 1.0]);
    let options = QuantOptions {
        route: Some(&route[..]),
        ..QuantOptions::default()
    };
    let routed = act_quant(options).unwrap();
    // A power of two goes to the scale.
    assert_eq!(routed.codes, plain.codes);
    let scale = |matrix: &Matrix, row: usize, group: usize| {
        let at = matrix.scale_layout.position(row, group);
        ScaleFormat::F32.read(&matrix.scales, at)
    };
    for (row, weight) in [1.0, 0.5, 1.0, 1.0].into_iter().enumerate() {
        for group in 0..3 {
            let expected = scale(&plain, row, group) * weight;
            assert_eq!(scale(&routed, row, group), expected);
        }
    }
}

#[test]
fn a_batch_uses_its_first_rows() {
    let counts: [u8; 8] = bytemuck::cast([1_i32, 1]);
    let options = QuantOptions {
        batch: Some(Batch {
            rows: 2,
            counts: &counts[..],
        }),
        ..QuantOptions::default()
    };
    let (masked, plain) = (
        act_quant(options).unwrap(),
        act_quant(QuantOptions::default()).unwrap(),
    );
    for row in 0..ROWS {
        let place = plain.layout.row(row);
        match row % 2 {
            0 => assert_eq!(masked.codes[place.clone()], plain.codes[place]),
            _ => assert!(masked.codes[place].iter().all(|&code| code == 0xee)),
        }
    }
}

#[test]
fn options_that_do_not_fit_are_named() {
    let short = [0_u8; 4 * ROWS - 1];
    let route = |route| QuantOptions {
        route: Some(route),
        ..QuantOptions::default()
    };
    let batch = |rows, counts| QuantOptions {
        batch: Some(Batch { rows, counts }),
        ..QuantOptions::default()
    };
    let mut hits = [0_u8; 11];
    let hits = QuantOptions {
        hits: Some(&mut hits[..]),
        ..QuantOptions::default()
    };
    for (options, words) in [
        (
            route(&short[..]),
            "route: expected at least 16 bytes, got 15 bytes",
        ),
        (
            batch(0, &short[..]),
            "batch: expected a divisor of 4 rows, got 0",
        ),
        (
            batch(3, &short[..]),
            "batch: expected a divisor of 4 rows, got 3",
        ),
        (
            batch(2, &short[..7]),
            "counts: expected at least 8 bytes, got 7 bytes",
        ),
        (hits, "hits: expected at least 12 bytes, got 11 bytes"),
    ] {
        assert_eq!(act_quant(options).err().unwrap().to_string(), words);
    }
    assert!(act_quant(route(&[0; 4 * ROWS])).is_ok());
    assert!(act_quant(batch(2, &short[..8])).is_ok());
}

#[test]
fn a_route_weight_has_no_place_in_eager_rounding() {
    let op = GatedActivation::deepseek_v4().with_rounding(Rounding::Eager);
    let quant = Quantization::deepseek_v4();
    let x = gate_up();
    for (weights, fits) in [(None, true), (Some(&[0; 4 * ROWS][..]), false)] {
        let input = Tensor::from_slice(&x, RowLayout::contiguous(ROWS, 2 * D));
        let mut output = Matrix::new(&quant, ROWS, D);
        let options = QuantOptions {
            route: weights,
            ..QuantOptions::default()
        };
        let result = Reference.act_and_mul_quant(&op, &quant, input.into(), output.view(), options);
        assert_eq!(result.is_ok(), fits);
    }
}

#[test]
fn codes_and_scales_of_another_shape_or_format_are_named() {
    let quant = Quantization::new(32, ScaleFormat::F32).unwrap();
    let x = vec![1.0_f32; ROWS * D];
    let quantize = |change: &dyn Fn(&mut Matrix)| {
        let mut output = Matrix::new(&quant, ROWS, D);
        change(&mut output);
        let input = Tensor::from_slice(&x, RowLayout::contiguous(ROWS, D));
        let error = Reference.quantize(&quant, input, output.view()).err();
        error.unwrap().to_string()
    };
    let words = quantize(&|m| m.layout.rows = 3);
    assert_eq!(words, "codes: expected shape [4, 70], got [3, 70]");
    let words = quantize(&|m| m.scale_layout.groups = 2);
    assert_eq!(words, "scales: expected shape [4, 3], got [4, 2]");
    let words = quantize(&|m| m.scale_layout.format = ScaleFormat::E8M0);
    assert_eq!(words, "scales: expected f32, got e8m0");
}
