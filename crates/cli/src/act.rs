use std::io::Write;
use std::time::Instant;

use swiglu::{ActShape, DType, Dispatcher, ScaleFormat};

use crate::arguments::Act;
use crate::failure::{Failure, Result};
use crate::tensor_file::{self, HostTensor};

/// `swiglu act`.
pub fn act(arguments: &Act, out: &mut impl Write) -> Result<()> {
    let op = arguments.settings.activation(&arguments.op)?;
    let quant = arguments.quant.quantization()?;
    // Before a device is opened: a mistake should not have to wait for that.
    if let Some(quant) = &quant {
        quant.check_rounding(op.rounding())?;
    }
    let input = tensor_file::read(&arguments.input)?;
    let (shape, output_shape) = shapes(&input)?;
    let dispatcher = dispatcher(arguments.platform.as_deref())?;
    let (device, outputs, elapsed) = match &quant {
        None => {
            let device = dispatcher.device(&op, input.dtype)?;
            let mut y = zeros(input.dtype, output_shape);
            let start = Instant::now();
            let backend = device.backend();
            backend.act_and_mul(&op, input.dtype, shape, &input.data, &mut y.data)?;
            let elapsed = start.elapsed();
            (device, vec![("y", y)], elapsed)
        }
        Some(quant) => {
            let device = dispatcher.quant_device(&op, quant, input.dtype)?;
            let format = match quant.format() {
                ScaleFormat::F32 => DType::F32,
                ScaleFormat::Ue8m0 => DType::E8M0,
            };
            let mut grid = output_shape.clone();
            if let Some(last) = grid.last_mut() {
                *last = quant.groups(shape.d);
            }
            let (mut codes, mut scales) = (zeros(DType::F8E4M3, output_shape), zeros(format, grid));
            let start = Instant::now();
            device.backend().act_and_mul_quant(
                &op,
                quant,
                input.dtype,
                shape,
                &input.data,
                &mut codes.data,
                &mut scales.data,
            )?;
            let elapsed = start.elapsed();
            (device, vec![("codes", codes), ("scales", scales)], elapsed)
        }
    };
    let tensors: Vec<_> = outputs.iter().map(|(name, t)| (*name, t)).collect();
    tensor_file::write(&arguments.output, &tensors)?;
    match &quant {
        Some(quant) => writeln!(out, "{op}, {quant}")?,
        None => writeln!(out, "{op}")?,
    }
    writeln!(out, "platform {}", device.report())?;
    write!(out, "{} {:?} ->", input.dtype, input.shape)?;
    for (name, t) in &tensors {
        write!(out, " {name} {} {:?}", t.dtype, t.shape)?;
    }
    let milliseconds = elapsed.as_secs_f64() * 1e3;
    writeln!(out, " in {milliseconds:.3} ms, copies included")?;
    Ok(())
}

fn zeros(dtype: DType, shape: Vec<usize>) -> HostTensor {
    let elements: usize = shape.iter().product();
    HostTensor {
        dtype,
        data: vec![0; elements * dtype.size()],
        shape,
    }
}

/// The environment's dispatcher, with the platform that the command line names.
pub fn dispatcher(platform: Option<&str>) -> Result<Dispatcher> {
    let dispatcher = Dispatcher::from_env()?;
    Ok(match platform {
        Some(name) => dispatcher.platform(name),
        None => dispatcher,
    })
}

/// Which platforms are compared with the reference: the one that is asked for, or all others.
pub fn compared(dispatcher: &Dispatcher) -> impl Fn(&str) -> bool {
    let asked = dispatcher.asked_for();
    move |name| asked.map_or(name != "reference", |a| a == name)
}

/// Rows and d of a tensor [.., 2d], and the shape [.., d].
pub fn shapes(input: &HostTensor) -> Result<(ActShape, Vec<usize>)> {
    let bad = || {
        Failure::Input(format!(
            "input: expected shape [.., 2d] with d of at least 1, got {:?}",
            input.shape
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
