//! Quantization to FP8 and back as dispatches.

use swiglu_core::{
    DType, Error, Function, GatedActivation, Order, QuantOptions, Quantization, Quantized,
    ScaleFormat, ScaleLayout, ScaleOrder, Scales, Tensor,
};

use crate::activation::{Call, Quant};
use crate::device::{Device, INVOCATIONS};
use crate::kernels::QuantKernels;
use crate::shaders::dtype_code;
use crate::window::{Columns, bind, stride, workgroups};
use crate::{Buffer, Result};

/// Elements of a row that a workgroup quantizes.
const PER_WORKGROUP: usize = 8 * INVOCATIONS as usize;

fn int(n: usize) -> Result<u32> {
    let too_many = |_| Error::argument("input", "fewer than 2^32 rows and groups", n);
    Ok(u32::try_from(n).map_err(too_many)?)
}

impl Quant {
    fn of(quant: &Quantization, layout: &ScaleLayout, rounded_to: DType) -> Result<Self> {
        Ok(Self {
            group: int(quant.group())?,
            groups: int(layout.groups)?,
            format: match layout.format {
                ScaleFormat::F32 => 0,
                ScaleFormat::Ue8m0 => 1,
            },
            order: match layout.order {
                ScaleOrder::RowMajor => 0,
                ScaleOrder::ColumnMajor => 1,
                ScaleOrder::Packed => 2,
            },
            scale_stride: stride(layout.stride),
            floor: quant.floor(),
            rounded_to: dtype_code(rounded_to),
            ..Self::default()
        })
    }
}

/// The scales, all of them in one binding.
fn scales_binding<'a>(
    device: &Device,
    scales: &Scales<'a, Buffer>,
) -> Result<wgpu::BufferBinding<'a>> {
    let bytes = scales.layout.bytes()?.next_multiple_of(16) as u64;
    if bytes > device.binding_limit() {
        let expected = format!("at most {} bytes", device.binding_limit());
        return Err(Error::argument("scales", expected, bytes).into());
    }
    Ok(wgpu::BufferBinding {
        buffer: scales.buffer.raw(),
        offset: 0,
        size: wgpu::BufferSize::new(bytes),
    })
}

/// Refuses one buffer in two roles, of which one is written.
fn check_distinct(written: &'static str, a: &Buffer, others: &[&Buffer]) -> Result<()> {
    if others.iter().any(|other| other.raw() == a.raw()) {
        let error = Error::argument(written, "a buffer of its own", "one used twice");
        return Err(error.into());
    }
    Ok(())
}

fn columns<'a>(matrix: &Tensor<'a, Buffer>) -> Columns<'a> {
    Columns::new(matrix, 0, matrix.layout.cols)
}

/// A quantization, of what an activation gives or of a matrix.
#[derive(Debug)]
pub(crate) struct QuantCall<'a> {
    op: Option<&'a GatedActivation>,
    quant: &'a Quantization,
    /// What y, or the matrix, is rounded to.
    rounded_to: DType,
    route: Option<&'a Buffer>,
    counts: Option<(usize, &'a Buffer)>,
    hits: Option<&'a Buffer>,
}

impl<'a> QuantCall<'a> {
    pub(crate) fn fused(
        op: &'a GatedActivation,
        quant: &'a Quantization,
        input: &Tensor<'_, Buffer>,
        options: &'a QuantOptions<'_, Buffer>,
    ) -> Self {
        Self {
            op: Some(op),
            quant,
            rounded_to: if quant.materialize() {
                input.dtype
            } else {
                DType::F32
            },
            route: options.route,
            counts: options.batch.as_ref().map(|b| (b.rows, b.counts)),
            hits: options.hits.as_deref(),
        }
    }

    pub(crate) fn plain(quant: &'a Quantization, input: &Tensor<'_, Buffer>) -> Self {
        Self {
            op: None,
            quant,
            rounded_to: input.dtype,
            route: None,
            counts: None,
            hits: None,
        }
    }

    /// What all windows have in common.
    fn call(&self, input: DType, scales: &ScaleLayout) -> Result<Call> {
        let mut call = self.op.map_or_else(Call::default, |op| Call::of(op, input));
        call.quant = Quant {
            has_route: u32::from(self.route.is_some()),
            has_hits: u32::from(self.hits.is_some()),
            batch_rows: int(self.counts.map_or(0, |(rows, _)| rows))?,
            ..Quant::of(self.quant, scales, self.rounded_to)?
        };
        Ok(call)
    }

    /// Records the call: a dispatch for each window of rows.
    pub(crate) fn record(
        &self,
        device: &Device,
        (kernels, native): (&QuantKernels, bool),
        pass: &mut wgpu::ComputePass<'_>,
        input: &Tensor<'_, Buffer>,
        output: &Quantized<'_, Buffer>,
    ) -> Result<()> {
        let Quantized { codes, scales } = output;
        let read = [Some(input.buffer), self.route, self.counts.map(|c| c.1)];
        let read: Vec<_> = read.into_iter().flatten().collect();
        check_distinct("codes", codes.buffer, &read)?;
        check_distinct(
            "scales",
            scales.buffer,
            &[&read[..], &[codes.buffer]].concat(),
        )?;
        if let Some(hits) = self.hits {
            let others = [&read[..], &[codes.buffer, scales.buffer]].concat();
            check_distinct("hits", hits, &others)?;
        }
        let rows = codes.layout.rows;
        if rows == 0 {
            return Ok(());
        }
        let d = codes.layout.cols;
        let (from, to) = (columns(input), columns(codes));
        let mut call = self.call(input.dtype, &scales.layout)?;
        let (gate, up) = self.op.map_or((0, 0), |op| op.positions(d, 0));
        call.d = int(d)?;
        call.in_stride = stride(input.layout.stride);
        call.out_stride = stride(codes.layout.stride);
        call.row_units = int(d.div_ceil(PER_WORKGROUP))?;
        let most = u32::MAX as usize / d.div_ceil(PER_WORKGROUP);
        let per_window = from.rows_per_window(device).min(to.rows_per_window(device));
        let per_window = per_window.min(most).max(1);
        let kind = match self.op {
            Some(_) => DType::COMPUTE.iter().position(|t| *t == input.dtype),
            None => Some(DType::COMPUTE.len()),
        };
        let pipeline = kind.and_then(|kind| kernels.pipelines.get(kind));
        let pipeline =
            pipeline.ok_or_else(|| crate::WgpuError::failed("choosing a kernel", input.dtype))?;
        for row in (0..rows).step_by(per_window) {
            let count = per_window.min(rows - row);
            let (x, y) = (
                from.window(device, row, count)?,
                to.window(device, row, count)?,
            );
            call.rows = int(count)?;
            call.gate_offset = x.offset + int(gate)?;
            call.up_offset = x.offset + int(up)?;
            call.out_offset = y.offset;
            call.quant.first_row = int(row)?;
            call.quant.path = match self.takes_vectors(&call, input.dtype) {
                false => 0,
                true if native && call.is_native(input.dtype) => 2,
                true => 1,
            };
            let or_input = |b: Option<&'a Buffer>| match b {
                Some(b) => b.raw().as_entire_buffer_binding(),
                None => x.binding(),
            };
            let bindings = [
                x.binding(),
                or_input(self.route),
                or_input(self.counts.map(|c| c.1)),
                y.binding(),
                scales_binding(device, scales)?,
                self.hits
                    .map_or(&kernels.unused, Buffer::raw)
                    .as_entire_buffer_binding(),
            ];
            let group = bind(device, &kernels.layout, bindings)?;
            let (nx, ny) = workgroups(device, call.rows * call.row_units);
            pass.set_pipeline(pipeline);
            pass.set_bind_group(0, &group, &[]);
            pass.set_immediates(0, bytemuck::bytes_of(&call));
            pass.dispatch_workgroups(nx, ny, 1);
        }
        Ok(())
    }

    /// Whether the activation alone, into rows without gaps, would take whole vectors, so that
    /// both paths compute the same bits.
    fn takes_vectors(&self, call: &Call, dtype: DType) -> bool {
        let per_vector = 16 / dtype.size() as u32;
        let whole = |n: u32| n.is_multiple_of(per_vector);
        let silu = |op: &&GatedActivation| matches!(op.function(), Function::Silu { .. });
        self.op.filter(silu).is_some_and(|op| {
            let up = match call.in_step {
                1 => whole(call.up_offset),
                _ => op.order() == Order::GateFirst,
            };
            up && [call.d, call.gate_offset, call.in_stride]
                .into_iter()
                .all(whole)
        })
    }
}

/// Records output = code · scale.
pub(crate) fn record_dequantize(
    device: &Device,
    kernels: &QuantKernels,
    pass: &mut wgpu::ComputePass<'_>,
    quant: &Quantization,
    input: &Quantized<'_, Buffer>,
    output: &Tensor<'_, Buffer>,
) -> Result<()> {
    let Quantized { codes, scales } = input;
    check_distinct("output", output.buffer, &[codes.buffer, scales.buffer])?;
    let (from, to) = (columns(codes), columns(output));
    let (rows, d) = (codes.layout.rows, codes.layout.cols);
    let mut call = Call {
        d: int(d)?,
        row_units: int(d.div_ceil(2))?,
        in_stride: stride(codes.layout.stride),
        out_stride: stride(output.layout.stride),
        quant: Quant::of(quant, &scales.layout, output.dtype)?,
        ..Call::default()
    };
    let per_window = from.rows_per_window(device).min(to.rows_per_window(device));
    let most = u32::MAX as usize / d.div_ceil(2);
    let per_window = per_window.min(most).max(1);
    for row in (0..rows).step_by(per_window) {
        let count = per_window.min(rows - row);
        let (x, y) = (
            from.window(device, row, count)?,
            to.window(device, row, count)?,
        );
        call.rows = int(count)?;
        call.units = call.rows * call.row_units;
        call.gate_offset = x.offset;
        call.out_offset = y.offset;
        call.quant.first_row = int(row)?;
        let bindings = [x.binding(), scales_binding(device, scales)?, y.binding()];
        let group = bind(device, &kernels.back_layout, bindings)?;
        let (nx, ny) = workgroups(device, call.units.div_ceil(INVOCATIONS));
        pass.set_pipeline(&kernels.back);
        pass.set_bind_group(0, &group, &[]);
        pass.set_immediates(0, bytemuck::bytes_of(&call));
        pass.dispatch_workgroups(nx, ny, 1);
    }
    Ok(())
}
