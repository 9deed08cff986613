use std::io::Write;
use std::time::Instant;

use swiglu::{ActShape, Dispatcher};

use crate::arguments::Act;
use crate::failure::{Failure, Result};
use crate::tensor_file::{self, HostTensor};

/// `swiglu act`.
pub fn act(arguments: &Act, out: &mut impl Write) -> Result<()> {
    let op = arguments.settings.activation(&arguments.op)?;
    let input = tensor_file::read(&arguments.input)?;
    let (shape, output_shape) = shapes(&input)?;
    let device = dispatcher(arguments.platform.as_deref())?.device(&op, input.dtype)?;
    let mut y = HostTensor {
        dtype: input.dtype,
        data: vec![0; shape.rows * shape.d * input.dtype.size()],
        shape: output_shape,
    };
    let start = Instant::now();
    let backend = device.backend();
    backend.act_and_mul(&op, input.dtype, shape, &input.data, &mut y.data)?;
    let elapsed = start.elapsed();
    tensor_file::write(&arguments.output, &[("y", &y)])?;
    writeln!(out, "{op}")?;
    writeln!(out, "platform {}", device.report())?;
    writeln!(
        out,
        "{} {:?} -> {:?} in {:.3} ms, copies included",
        input.dtype,
        input.shape,
        y.shape,
        elapsed.as_secs_f64() * 1e3
    )?;
    Ok(())
}

/// The environment's dispatcher, with the platform that the command line names.
pub fn dispatcher(platform: Option<&str>) -> Result<Dispatcher> {
    let dispatcher = Dispatcher::from_env()?;
    Ok(match platform {
        Some(name) => dispatcher.platform(name),
        None => dispatcher,
    })
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
