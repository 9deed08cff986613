//! A product as dispatches: which kernel, on which part of the weight and of the tokens.

use bytemuck::{Pod, Zeroable};
use swiglu_core::{DType, Error, Tensor, TensorMut};

use crate::device::Device;
use crate::kernels::Kernels;
use crate::shaders::{COOPERATIVE_DEPTH, COOPERATIVE_TILE, ROWS, TILES, dtype_code, usual_x};
use crate::weight::{Chunk, Weight};
use crate::window::{Columns, bind, stride, workgroups};
use crate::{Buffer, Result};

/// The struct of the same name in product_call.wgsl, field by field.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
struct Call {
    tokens: u32,
    rows: u32,
    k: u32,
    row_vectors: u32,
    x_dtype: u32,
    x_offset: u32,
    x_stride: u32,
    y_dtype: u32,
    y_offset: u32,
    y_stride: u32,
    block_rows: u32,
    block_cols: u32,
    scale_cols: u32,
    scale_skip: u32,
    scale_shift: u32,
}

/// The most tokens that matrix-vector kernels take at a time.
const ROW_TOKENS: usize = 4;

/// Up to so many tokens reading the weight once for each four is faster than tiles.
const FEW_TOKENS: usize = 8;

/// Whether large tiles pay: they need many invocations at work.
fn wants_large_tiles(device: &Device, tokens: usize, rows: usize) -> bool {
    let software = device.info().device_type == wgpu::DeviceType::Cpu;
    let enough = 4 * TILES[1] as usize;
    !software && tokens >= enough && rows >= enough
}

/// Records y = x · wᵀ: a dispatch for each buffer of the weight and window of tokens.
pub(crate) fn record(
    device: &Device,
    kernels: &Kernels,
    pass: &mut wgpu::ComputePass<'_>,
    x: &Tensor<'_, Buffer>,
    weight: &Weight,
    y: &TensorMut<'_, Buffer>,
) -> Result<()> {
    if x.buffer.raw() == y.buffer.raw() {
        return Err(Error::argument("y", "another buffer than x's", "the same").into());
    }
    let input = Columns {
        buffer: x.buffer,
        dtype: x.dtype,
        layout: x.layout,
        first: 0,
        span: weight.cols,
    };
    let few = x.layout.rows <= FEW_TOKENS;
    for chunk in &weight.chunks {
        let output = Columns {
            buffer: &*y.buffer,
            dtype: y.dtype,
            layout: y.layout,
            first: chunk.first_row,
            span: chunk.rows,
        };
        let per_window = input
            .rows_per_window(device)
            .min(output.rows_per_window(device))
            .min(if few { ROW_TOKENS } else { usize::MAX })
            .min(TILES[0] as usize * device.workgroups_per_dimension() as usize)
            .max(1);
        for token in (0..x.layout.rows).step_by(per_window) {
            let tokens = per_window.min(x.layout.rows - token);
            let part = (token, tokens);
            dispatch(
                device,
                kernels,
                pass,
                (&input, weight, chunk, &output),
                part,
            )?;
        }
    }
    Ok(())
}

fn dispatch(
    device: &Device,
    kernels: &Kernels,
    pass: &mut wgpu::ComputePass<'_>,
    (input, weight, chunk, output): (&Columns<'_>, &Weight, &Chunk, &Columns<'_>),
    (token, tokens): (usize, usize),
) -> Result<()> {
    let x = input.window(device, token, tokens)?;
    let y = output.window(device, token, tokens)?;
    let too_large = |n: usize| Error::argument("x", "fewer than 2^32 tokens and columns", n);
    let int = |n: usize| u32::try_from(n).map_err(|_| too_large(n));
    let mut call = Call {
        tokens: int(tokens)?,
        rows: int(chunk.rows)?,
        k: int(weight.cols)?,
        row_vectors: weight.row_vectors,
        x_dtype: dtype_code(input.dtype),
        x_offset: x.offset,
        x_stride: stride(input.layout.stride),
        y_dtype: dtype_code(output.dtype),
        y_offset: y.offset,
        y_stride: stride(output.layout.stride),
        ..Call::default()
    };
    let per_vector = 16 / input.dtype.size() as u32;
    let per_weight_vector = 16 / weight.dtype.size() as u32;
    let aligned = call.k.is_multiple_of(per_weight_vector)
        && call.x_offset.is_multiple_of(per_vector)
        && (tokens == 1 || call.x_stride.is_multiple_of(per_vector));
    if let Some(scales) = &chunk.scales {
        [call.block_rows, call.block_cols] = scales.block;
        call.scale_cols = scales.cols;
        call.scale_skip = scales.skip;
        call.scale_shift = scales.shift().unwrap_or(0);
    }
    // The kernel for one token knows no NaN among codes, and shifts to a vector's scale; it and
    // large tiles are for x of one type.
    let scales_fit = chunk.scales.as_ref().is_none_or(|s| s.shift().is_some());
    let usual = input.dtype == usual_x(weight.dtype);
    let fitting = if usual && scales_fit && !weight.has_nan_codes {
        tokens
    } else {
        tokens.max(2)
    };
    let cooperative = kernels.cooperative.as_ref().filter(|_| {
        let f16 = (input.dtype, weight.dtype) == (DType::F16, DType::F16);
        let whole_words = output.dtype == DType::F32
            || [call.y_offset, call.y_stride]
                .iter()
                .all(|n| n.is_multiple_of(2));
        let full = call.tokens.min(call.rows) >= COOPERATIVE_TILE
            && call.k.is_multiple_of(COOPERATIVE_DEPTH)
            && call.rows.is_multiple_of(2);
        f16 && aligned && full && whole_words
    });
    let tiles = |side: u32| (call.rows.div_ceil(side), call.tokens.div_ceil(side));
    let (pipeline, groups) = match (kernels.rows(weight.dtype, fitting, aligned), cooperative) {
        (Some(pipeline), _) => (pipeline, workgroups(device, call.rows.div_ceil(ROWS))),
        (None, Some(pipeline)) => (pipeline, tiles(COOPERATIVE_TILE)),
        (None, None) => {
            let large = usual && wants_large_tiles(device, tokens, chunk.rows);
            let (pipeline, side) = kernels.tiles(weight.dtype, large, aligned)?;
            (pipeline, tiles(side))
        }
    };
    let scales = chunk.scales.as_ref().map_or(&chunk.data, |s| &s.data);
    let bindings = [
        x.binding(),
        chunk.data.raw().as_entire_buffer_binding(),
        scales.raw().as_entire_buffer_binding(),
        y.binding(),
    ];
    let bind_group = bind(device, &kernels.product_layout, bindings);
    pass.set_pipeline(pipeline);
    pass.set_bind_group(0, &bind_group, &[]);
    pass.set_immediates(0, bytemuck::bytes_of(&call));
    pass.dispatch_workgroups(groups.0, groups.1, 1);
    Ok(())
}
