use std::io::Write;
use std::time::Instant;

use serde::Serialize;
use swiglu::{
    ActShape, Device, Float, GatedActivation, Quantization, QuantizedMut, Request, RowLayout,
    ScaleLayout, ScaleOrder, Shape, Tensor, TensorMut,
};

use crate::arguments::Act;
use crate::chosen::Chosen;
use crate::console::Console;
use crate::escape;
use crate::failure::{Failure, Result};
use crate::files::{Inputs, OutputFile};
use crate::tensor_file::{self, HostTensor, StoredType, WrittenTensor};

/// What `swiglu act` did, as JSON has it.
#[derive(Debug, Serialize)]
struct ActReport {
    operation: String,
    /// Nothing where the output is not quantized.
    quantization: Option<String>,
    platform: Chosen,
    input: InputTensor,
    /// As it was named.
    output: String,
    tensors: Vec<WrittenTensor>,
    /// Copies to and from the device included.
    milliseconds: f64,
}

/// The tensor that was read.
#[derive(Debug, Serialize)]
pub struct InputTensor {
    dtype: &'static str,
    shape: Vec<usize>,
}

impl From<&HostTensor<Float>> for InputTensor {
    fn from(tensor: &HostTensor<Float>) -> Self {
        Self {
            dtype: tensor.stored.name(),
            shape: tensor.shape.clone(),
        }
    }
}

/// `swiglu act`.
pub fn act(arguments: &Act, out: &mut Console) -> Result<()> {
    let op = arguments.settings.activation(&arguments.op)?;
    let quant = arguments.quant.quantization()?;
    // Before a device is opened: a mistake should not have to wait for that.
    if let Some(quant) = &quant {
        quant.check_rounding(op.rounding())?;
    }
    let mut inputs = Inputs::default();
    let input = tensor_file::read(&arguments.input, &mut inputs)?;
    let output = OutputFile::new("output", &arguments.output, &inputs)?;
    out.reserve_for_json(arguments.json);
    out.reserve_for(&output)?;
    let (shape, output_shape) = shapes(&input)?;
    let request = request(&op, quant.as_ref(), input.stored);
    let device = arguments.platform.dispatcher()?.device_for(&[request])?;
    let start = Instant::now();
    let outputs = match &quant {
        None => vec![("y", plain(&device, &op, &input, shape, output_shape)?)],
        Some(quant) => {
            let [codes, scales] = quantized(&device, &op, quant, &input, shape, output_shape)?;
            vec![("codes", codes), ("scales", scales)]
        }
    };
    let elapsed = start.elapsed();
    let tensors: Vec<_> = outputs.iter().map(|(name, t)| (*name, t)).collect();
    tensor_file::write(&output, &tensors)?;
    match &quant {
        Some(quant) => writeln!(out, "{op}, {quant}")?,
        None => writeln!(out, "{op}")?,
    }
    let call = Shape {
        rows: shape.rows,
        cols: shape.d,
        depth: 0,
    };
    let report = device.report_for(&[(request, call)]);
    writeln!(out, "platform {report}")?;
    write!(out, "{} {} ->", input.stored, escape::shape(&input.shape))?;
    for (name, t) in &tensors {
        write!(out, " {name} {} {}", t.stored, escape::shape(&t.shape))?;
    }
    let milliseconds = elapsed.as_secs_f64() * 1e3;
    writeln!(out, " in {milliseconds:.3} ms, copies included")?;
    if arguments.json {
        out.document(&ActReport {
            operation: op.to_string(),
            quantization: quant.as_ref().map(ToString::to_string),
            platform: (&report).into(),
            input: (&input).into(),
            output: output.name().display().to_string(),
            tensors: WrittenTensor::all(&tensors),
            milliseconds,
        })?;
    }
    Ok(())
}

/// What an activation asks of a backend.
pub fn request(op: &GatedActivation, quant: Option<&Quantization>, float: Float) -> Request {
    match quant {
        None => Request::Activation { op: *op, float },
        Some(quant) => Request::ActivationQuant {
            op: *op,
            quant: *quant,
            float,
        },
    }
}

fn plain(
    device: &Device,
    op: &GatedActivation,
    input: &HostTensor<Float>,
    ActShape { rows, d }: ActShape,
    output_shape: Vec<usize>,
) -> Result<HostTensor> {
    let mut y = HostTensor::zeroed(input.stored.into(), output_shape)?;
    let from = Tensor::contiguous(input.data.bytes(), input.stored, rows, 2 * d);
    let to = TensorMut::contiguous(y.data.bytes_mut(), input.stored, rows, d);
    device.backend().act_and_mul(op, from.into(), to)?;
    Ok(y)
}

/// The codes and the scales.
fn quantized(
    device: &Device,
    op: &GatedActivation,
    quant: &Quantization,
    input: &HostTensor<Float>,
    ActShape { rows, d }: ActShape,
    output_shape: Vec<usize>,
) -> Result<[HostTensor; 2]> {
    let groups = quant.groups(d);
    let mut grid = output_shape.clone();
    if let Some(last) = grid.last_mut() {
        *last = groups;
    }
    let mut codes = HostTensor::zeroed(StoredType::E4M3, output_shape)?;
    let mut scales = HostTensor::zeroed(quant.format().into(), grid)?;
    let from = Tensor::contiguous(input.data.bytes(), input.stored, rows, 2 * d);
    let order = ScaleOrder::RowMajor;
    let to = QuantizedMut {
        codes: codes.data.bytes_mut(),
        layout: RowLayout::contiguous(rows, d),
        scales: scales.data.bytes_mut(),
        scale_layout: ScaleLayout::contiguous(quant.format(), order, rows, groups),
    };
    let backend = device.backend();
    backend.act_and_mul_quant(op, quant, from.into(), to)?;
    Ok([codes, scales])
}

/// Rows and d of a tensor [.., 2d], and the shape [.., d].
pub fn shapes<S>(input: &HostTensor<S>) -> Result<(ActShape, Vec<usize>)> {
    let bad = || {
        Failure::Input(format!(
            "input: expected shape [.., 2d] with d of at least 1, got {}",
            escape::shape(&input.shape)
        ))
    };
    let (&last, leading) = input.shape.split_last().ok_or_else(bad)?;
    if last == 0 || last % 2 == 1 {
        return Err(bad());
    }
    let shape = ActShape {
        rows: leading.iter().product(),
        d: last / 2,
    };
    Ok((shape, [leading, &[shape.d]].concat()))
}
