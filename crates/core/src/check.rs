//! What every backend checks of a call, once, before anything is enqueued: shapes, types, strides
//! and the views' lengths. Each error names the argument, what was expected and what came.

use crate::{
    ActShape, Backend, Error, GateUp, GatedActivation, QuantOptions, Quantization, Quantized,
    QuantizedMut, Result, Rounding, Tensor, TensorMut,
};

mod grouped;

pub use grouped::{grouped_act_and_mul, grouped_sum, route};

/// Checks a call of [`crate::ActAndMul::act_and_mul`].
///
/// # Errors
/// An odd or zero last dimension of a merged input; halves of different shapes or types; an output
/// of another type or shape; a stride shorter than a row; a view that is too short.
pub fn act<B: Backend>(input: &GateUp<'_, B>, output: &TensorMut<'_, B>) -> Result<ActShape> {
    let shape = act_input(input)?;
    let float = input.float();
    if output.float != float {
        return Err(Error::argument("output", float.name(), output.float));
    }
    has_shape("output", [output.layout.rows, output.layout.cols], shape)?;
    output.as_tensor().check("output")?;
    Ok(shape)
}

/// The shape of an activation's input, checked.
fn act_input<B: Backend>(input: &GateUp<'_, B>) -> Result<ActShape> {
    match input {
        GateUp::Merged(input) => {
            let shape = ActShape::of_input(&input.layout)?;
            input.check("input")?;
            Ok(shape)
        }
        GateUp::Split { gate, up } => {
            let shape = at_least_one_column("gate", gate)?;
            if up.float != gate.float {
                return Err(Error::argument("up", gate.float.name(), up.float));
            }
            has_shape("up", [up.layout.rows, up.layout.cols], shape)?;
            up.check("up")?;
            Ok(shape)
        }
    }
}

fn at_least_one_column<B: Backend>(
    argument: &'static str,
    matrix: &Tensor<'_, B>,
) -> Result<ActShape> {
    if matrix.layout.cols == 0 {
        return Err(Error::argument(argument, "at least one column", 0));
    }
    matrix.check(argument)?;
    Ok(ActShape {
        rows: matrix.layout.rows,
        d: matrix.layout.cols,
    })
}

fn has_shape(argument: &'static str, got: [usize; 2], shape: ActShape) -> Result<()> {
    let ActShape { rows, d } = shape;
    if got == [rows, d] {
        return Ok(());
    }
    let got = format!("[{}, {}]", got[0], got[1]);
    let expected = format!("shape [{rows}, {d}]");
    Err(Error::argument(argument, expected, got))
}

/// Checks a call of [`crate::Quantize::act_and_mul_quant`].
///
/// # Errors
/// As [`act`] of the input and [`quantized`]; a route weight or `materialize` = false with
/// [`Rounding::Eager`], which has no place for either; options whose views are too short.
pub fn act_quant<B: Backend>(
    op: &GatedActivation,
    quant: &Quantization,
    input: &GateUp<'_, B>,
    output: &QuantizedMut<'_, B>,
    options: &QuantOptions<'_, B>,
) -> Result<ActShape> {
    let shape = act_input(input)?;
    quantized(quant, shape, &output.as_quantized())?;
    quant.check_rounding(op.rounding())?;
    if op.rounding() == Rounding::Eager && options.route.is_some() {
        let expected = "none in eager rounding, which does not define its place";
        return Err(Error::argument("route", expected, "a route weight"));
    }
    if let Some(route) = &options.route {
        holds("route", B::view_len(route), shape.rows)?;
    }
    if let Some(batch) = &options.batch {
        if batch.rows == 0 || !shape.rows.is_multiple_of(batch.rows) {
            let expected = format!("a divisor of {} rows", shape.rows);
            return Err(Error::argument("batch", expected, batch.rows));
        }
        let counts = B::view_len(&batch.counts);
        holds("counts", counts, shape.rows / batch.rows)?;
    }
    if let Some(hits) = &options.hits {
        holds("hits", B::view_len(&B::as_view(hits)), 3)?;
    }
    Ok(shape)
}

/// Whether a view has room for so many values of four bytes.
fn holds(argument: &'static str, bytes: usize, count: usize) -> Result<()> {
    let expected = count.saturating_mul(4);
    if bytes < expected {
        let expected = format!("at least {expected} bytes");
        return Err(Error::argument(
            argument,
            expected,
            format!("{bytes} bytes"),
        ));
    }
    Ok(())
}

/// Checks a call of [`crate::Quantize::quantize`].
///
/// # Errors
/// No columns, and as [`Tensor::check`] and [`quantized`].
pub fn quantize<B: Backend>(
    quant: &Quantization,
    input: &Tensor<'_, B>,
    output: &QuantizedMut<'_, B>,
) -> Result<ActShape> {
    let shape = at_least_one_column("input", input)?;
    quantized(quant, shape, &output.as_quantized())?;
    Ok(shape)
}

/// Checks a call of [`crate::Quantize::dequantize`].
///
/// # Errors
/// As [`quantize`].
pub fn dequantize<B: Backend>(
    quant: &Quantization,
    input: &Quantized<'_, B>,
    output: &TensorMut<'_, B>,
) -> Result<ActShape> {
    let shape = at_least_one_column("output", &output.as_tensor())?;
    quantized(quant, shape, input)?;
    Ok(shape)
}

/// Checks codes and scales against the shape that they should have.
///
/// # Errors
/// Codes or scales of another shape, scales in another format than the quantization's, strides or
/// views that are too short.
pub fn quantized<B: Backend>(
    quant: &Quantization,
    shape: ActShape,
    matrix: &Quantized<'_, B>,
) -> Result<()> {
    has_shape("codes", [matrix.layout.rows, matrix.layout.cols], shape)?;
    matrix.layout.check("codes", B::view_len(&matrix.codes))?;
    let scales = &matrix.scale_layout;
    if scales.format != quant.format() {
        let expected = quant.format().name();
        return Err(Error::argument("scales", expected, scales.format));
    }
    let groups = quant.groups(shape.d);
    let expected = ActShape {
        rows: shape.rows,
        d: groups,
    };
    has_shape("scales", [scales.rows, scales.groups], expected)?;
    scales.check(B::view_len(&matrix.scales))
}

/// Checks a call of [`crate::Matmul::matmul`] with a weight of shape `[n, k]`.
///
/// # Errors
/// An x that is not \[T, K\], a y that is not \[T, N\], a stride shorter than a row, or a view that
/// is too short.
pub fn matmul<B: Backend>(
    x: &Tensor<'_, B>,
    [n, k]: [usize; 2],
    y: &TensorMut<'_, B>,
) -> Result<()> {
    let rows = x.layout.rows;
    has_shape("x", [rows, x.layout.cols], ActShape { rows, d: k })?;
    let shape = ActShape { rows, d: n };
    has_shape("y", [y.layout.rows, y.layout.cols], shape)?;
    x.check("x")?;
    y.as_tensor().check("y")
}

/// Checks a call of [`crate::Matmul::matmul_act_and_mul`] with a weight of shape `[2I, K]`.
///
/// # Errors
/// As [`matmul`], with `gate_up` for y, and as [`act`].
pub fn gated_matmul<B: Backend>(
    x: &Tensor<'_, B>,
    shape: [usize; 2],
    gate_up: &TensorMut<'_, B>,
    act_output: &TensorMut<'_, B>,
) -> Result<ActShape> {
    matmul(x, shape, gate_up)?;
    act(&GateUp::Merged(gate_up.as_tensor()), act_output)
}
