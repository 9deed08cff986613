use swiglu_core::{
    ActAndMul, DType, Error, GatedActivation, HostWeight, Matmul, RowLayout, Tensor, TensorMut,
};

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
    use DType::{BF16, E8M0, F8E4M3, F16};
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
        ("an input of f8", "input", (F8E4M3, a), (F8E4M3, b)),
        ("an input of scales", "input", (E8M0, a), (E8M0, b)),
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
    let op = GatedActivation::deepseek_v4();
    let input = h.backend.alloc(32)?;
    let mut output = h.backend.alloc(16)?;
    for (case, argument, (in_type, in_layout), (out_type, out_layout)) in cases {
        let outcome = h.backend.act_and_mul(
            &op,
            Tensor {
                buffer: &input,
                dtype: in_type,
                layout: in_layout,
            },
            TensorMut {
                buffer: &mut output,
                dtype: out_type,
                layout: out_layout,
            },
        );
        named(case, argument, outcome)?;
    }
    Ok(())
}

/// Products that do not fit are refused, by the name of the argument at fault.
///
/// # Errors
/// The first that is accepted, or whose error names something else.
pub fn product_arguments_are_named<B: Matmul>(h: &Harness<B>) -> Result<(), Failure> {
    use DType::{E8M0, F8E4M3, F32};
    let data = [0; 4 * 3 * 5];
    let weight = |n: usize, k: usize| HostWeight::new(n, k, F32, &data[..4 * n * k], None);
    named("no parts", "parts", h.backend.load_weight(&[]))?;
    let unlike = [weight(3, 5)?, weight(3, 4)?];
    named(
        "parts of unlike width",
        "parts",
        h.backend.load_weight(&unlike),
    )?;
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
        ("x of another width", "x", (F32, rows(2, 4)), (F32, b)),
        ("y of another width", "y", (F32, a), (F32, rows(2, 2))),
        ("y of other rows", "y", (F32, a), (F32, rows(1, 3))),
        ("x of f8", "x", (F8E4M3, a), (F32, b)),
        ("y of scales", "y", (F32, a), (E8M0, b)),
        ("x past its buffer", "x", (F32, a.with_offset(1)), (F32, b)),
        ("y past its buffer", "y", (F32, a), (F32, b.with_stride(4))),
        (
            "a stride of x below its width",
            "x",
            (F32, a.with_stride(4)),
            (F32, b),
        ),
    ];
    let x = h.backend.alloc(4 * 10)?;
    let mut y = h.backend.alloc(4 * 6)?;
    for (case, argument, (x_type, x_layout), (y_type, y_layout)) in cases {
        let outcome = h.backend.matmul(
            Tensor {
                buffer: &x,
                dtype: x_type,
                layout: x_layout,
            },
            &weight,
            TensorMut {
                buffer: &mut y,
                dtype: y_type,
                layout: y_layout,
            },
        );
        named(case, argument, outcome)?;
    }
    Ok(())
}
