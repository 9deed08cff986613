use swiglu_core::{
    ActAndMul, Error, Float, GatedActivation, HostWeight, Matmul, Request, RowLayout, Tensor,
    TensorMut, WeightFormat,
};

use crate::skips::Skips;
use crate::{Failure, Harness};

/// What the call was refused for must be this argument.
pub(super) fn named<V>(
    case: &str,
    argument: &str,
    outcome: Result<V, Error>,
) -> Result<(), Failure> {
    match outcome {
        Err(Error::Argument { argument: got, .. }) if got == argument => Ok(()),
        Err(error) => Err(Failure::new(format!(
            "{case}: expected an error that names `{argument}`, got `{error}`"
        ))),
        Ok(_) => Err(Failure::new(format!("{case} was accepted"))),
    }
}

/// Calls of the activation that do not fit are refused, by the name of the argument at fault.
///
/// # Errors
/// The first that is accepted, or whose error names something else.
pub fn arguments_are_named<B: ActAndMul>(h: &Harness<B>) -> Result<(), Failure> {
    use Float::{BF16, F16};
    let op = GatedActivation::deepseek_v4();
    if !Skips::new(h, "arguments_are_named").activates(&op, BF16) {
        return Ok(());
    }
    let rows = RowLayout::contiguous;
    let (a, b) = (rows(2, 8), rows(2, 4));
    let cases = [
        (
            "an odd last dimension",
            "input",
            (BF16, rows(2, 7)),
            (BF16, rows(2, 3)),
        ),
        (
            "a last dimension of 0",
            "input",
            (BF16, rows(2, 0)),
            (BF16, rows(2, 0)),
        ),
        (
            "an output too wide",
            "output",
            (BF16, a),
            (BF16, rows(2, 8)),
        ),
        (
            "an output with too many rows",
            "output",
            (BF16, a),
            (BF16, rows(3, 4)),
        ),
        ("an output of another type", "output", (BF16, a), (F16, b)),
        (
            "an input stride below 2d",
            "input",
            (BF16, a.with_stride(7)),
            (BF16, b),
        ),
        (
            "an output stride below d",
            "output",
            (BF16, a),
            (BF16, b.with_stride(3)),
        ),
        (
            "an input past its buffer",
            "input",
            (BF16, a.with_offset(1)),
            (BF16, b),
        ),
        (
            "an input stride past its buffer",
            "input",
            (BF16, a.with_stride(9)),
            (BF16, b),
        ),
        (
            "an output past its buffer",
            "output",
            (BF16, a),
            (BF16, b.with_offset(1)),
        ),
        (
            "an output stride past its buffer",
            "output",
            (BF16, a),
            (BF16, b.with_stride(5)),
        ),
        (
            "an offset that overflows",
            "input",
            (BF16, a.with_offset(usize::MAX)),
            (BF16, b),
        ),
        (
            "a stride that overflows",
            "output",
            (BF16, a),
            (BF16, b.with_stride(usize::MAX)),
        ),
    ];
    let input = h.backend.alloc(32)?;
    let mut output = h.backend.alloc(16)?;
    for (case, argument, (in_type, in_layout), (out_type, out_layout)) in cases {
        let input = Tensor::new(B::view(&input), in_type, in_layout).into();
        let output = TensorMut::new(B::view_mut(&mut output), out_type, out_layout);
        let outcome = h.backend.act_and_mul(&op, input, output);
        named(case, argument, outcome)?;
    }
    Ok(())
}

/// Matmuls that do not fit are refused, by the name of the argument at fault.
///
/// # Errors
/// The first that is accepted, or whose error names something else.
pub fn matmul_arguments_are_named<B: Matmul>(h: &Harness<B>) -> Result<(), Failure> {
    use Float::{BF16, F32};
    let format = WeightFormat::Float(F32);
    let request = Request::Matmul {
        x: F32,
        weight: format,
        y: F32,
    };
    if !Skips::new(h, "matmul_arguments_are_named").runs(&request) {
        return Ok(());
    }
    let data = [0; 4 * 3 * 5];
    let weight = |n: usize, k: usize| HostWeight::new([n, k], format, &data[..4 * n * k], &[]);
    named("no parts", "parts", h.backend.load_weight(&[]))?;
    let unlike = [weight(3, 5)?, weight(3, 4)?];
    let outcome = h.backend.load_weight(&unlike);
    named("parts of unlike width", "parts", outcome)?;
    let halves = HostWeight::new([3, 5], WeightFormat::Float(BF16), &data[..30], &[])?;
    let outcome = h.backend.load_weight(&[weight(3, 5)?, halves]);
    named("parts of unlike format", "parts", outcome)?;
    let weight = h.backend.load_weight(&[weight(3, 5)?])?;
    if h.backend.weight_shape(&weight) != [3, 5] {
        let shape = h.backend.weight_shape(&weight);
        return Err(Failure::new(format!(
            "a weight of [3, 5] has the shape {shape:?}"
        )));
    }
    let rows = RowLayout::contiguous;
    let (a, b) = (rows(2, 5), rows(2, 3));
    let cases = [
        ("x of another width", "x", rows(2, 4), b),
        ("y of another width", "y", a, rows(2, 2)),
        ("y of other rows", "y", a, rows(1, 3)),
        ("x past its buffer", "x", a.with_offset(1), b),
        ("y past its buffer", "y", a, b.with_stride(4)),
        ("a stride of x below its width", "x", a.with_stride(4), b),
    ];
    let x = h.backend.alloc(4 * 10)?;
    let mut y = h.backend.alloc(4 * 6)?;
    for (case, argument, x_layout, y_layout) in cases {
        let x = Tensor::new(B::view(&x), F32, x_layout);
        let y = TensorMut::new(B::view_mut(&mut y), F32, y_layout);
        named(case, argument, h.backend.matmul(x, &weight, y))?;
    }
    Ok(())
}
