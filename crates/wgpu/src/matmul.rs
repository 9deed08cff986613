//! A product as dispatches: which kernel, on which part of the weight and of the tokens.

use bytemuck::{Pod, Zeroable};
use swiglu_core::{DType, Error, Tensor, TensorMut};

use crate::activation::Op;
use crate::device::Device;
use crate::kernels::Kernels;
use crate::shaders::{
    ANY_TOKENS, COOPERATIVE_DEPTH, COOPERATIVE_TILE, ROWS, RowKind, TILE_DEPTH, TILES,
    USUAL_TOKENS, dtype_code, usual_x,
};
use crate::weight::{Chunk, Weight};
use crate::window::{Columns, Window, bind, stride, workgroups};
use crate::{Buffer, Result};

/// The struct of the same name in product_call.wgsl, field by field.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Call {
    pub(crate) tokens: u32,
    pub(crate) rows: u32,
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
    pub(crate) gate_row: u32,
    pub(crate) up_row: u32,
    pub(crate) op: Op,
}

/// Up to so many tokens the matrix-vector kernels of the usual type, which read the weight once for
/// each eight, are faster than tiles; in software up to half as many.
pub(crate) const FEW_USUAL: usize = 32;

/// Up to so many tokens those of any type, which read it once for each four, are faster than tiles.
const FEW_ANY: usize = 8;

/// The number of large tiles from which on they pay: fewer leave parts of a large device idle, which
/// four times as many small ones do not.
pub(crate) const MANY_TILES: u32 = 96;

/// A product: how its operands suit the kernels.
pub(crate) struct Product<'a> {
    input: Columns<'a>,
    weight: &'a Weight,
    /// Whether rows, of x and of the weight, are whole vectors.
    aligned: bool,
    /// Whether x is of the type that kernels of one type are made for.
    usual: bool,
    /// Whether the matrix-vector kernels of the usual type take it.
    by_usual_rows: bool,
    /// The most tokens that matrix-vector kernels are faster for.
    few: usize,
}

impl<'a> Product<'a> {
    pub(crate) fn new(device: &Device, x: &Tensor<'a, Buffer>, weight: &'a Weight) -> Self {
        let per_vector = 16 / x.dtype.size();
        let aligned = weight.cols.is_multiple_of(16 / weight.dtype.size())
            && x.layout.offset.is_multiple_of(per_vector)
            && (x.layout.rows == 1 || x.layout.stride.is_multiple_of(per_vector));
        let usual = x.dtype == usual_x(weight.dtype);
        // Those kernels know no NaN among codes, and shift to a vector's scale.
        let mut scales = weight.chunks.iter().filter_map(|c| c.scales.as_ref());
        let codes_fit = !weight.has_nan_codes && scales.all(|s| s.shift().is_some());
        let by_usual_rows = aligned && usual && codes_fit;
        Self {
            input: Columns::new(x, 0, weight.cols),
            weight,
            aligned,
            usual,
            by_usual_rows,
            few: match (by_usual_rows, device.is_software()) {
                (true, false) => FEW_USUAL,
                (true, true) => FEW_USUAL / 2,
                (false, _) => FEW_ANY,
            },
        }
    }

    /// Whether matrix-vector kernels of the usual type are the ones for so many tokens.
    pub(crate) const fn is_for_usual_rows(&self) -> bool {
        self.by_usual_rows && self.input.layout.rows <= self.few
    }

    /// The most tokens that a matrix-vector kernel takes at a time.
    const fn row_tokens(&self) -> usize {
        if self.by_usual_rows {
            USUAL_TOKENS[USUAL_TOKENS.len() - 1] as usize
        } else {
            ANY_TOKENS as usize
        }
    }

    fn row_kind(&self, tokens: usize) -> RowKind {
        let fits = |most: &&u32| tokens <= **most as usize;
        match USUAL_TOKENS.iter().find(fits) {
            Some(most) if self.by_usual_rows => RowKind::Usual(*most),
            _ => RowKind::Any {
                aligned: self.aligned,
            },
        }
    }

    /// The tokens of each dispatch that writes to `output`: the first, and how many.
    pub(crate) fn windows(
        &self,
        device: &Device,
        output: &Columns<'_>,
    ) -> impl Iterator<Item = (usize, usize)> + use<> {
        let all = self.input.layout.rows;
        let per_window = self
            .input
            .rows_per_window(device)
            .min(output.rows_per_window(device))
            .min(if all <= self.few {
                self.row_tokens()
            } else {
                usize::MAX
            })
            .min(TILES[0] as usize * device.workgroups_per_dimension() as usize)
            .max(1);
        (0..all)
            .step_by(per_window)
            .map(move |token| (token, per_window.min(all - token)))
    }

    /// The call on a chunk and a window of tokens, and the windows of x and y.
    pub(crate) fn call<'y>(
        &self,
        device: &Device,
        chunk: &Chunk,
        output: &Columns<'y>,
        (token, tokens): (usize, usize),
    ) -> Result<(Call, [Window<'y>; 2])>
    where
        'a: 'y,
    {
        let x = self.input.window(device, token, tokens)?;
        let y = output.window(device, token, tokens)?;
        let too_large = |n: usize| Error::argument("x", "fewer than 2^32 tokens and columns", n);
        let int = |n: usize| u32::try_from(n).map_err(|_| too_large(n));
        let mut call = Call {
            tokens: int(tokens)?,
            rows: int(chunk.rows)?,
            k: int(self.weight.cols)?,
            row_vectors: self.weight.row_vectors,
            x_dtype: dtype_code(self.input.dtype),
            x_offset: x.offset,
            x_stride: stride(self.input.layout.stride),
            y_dtype: dtype_code(output.dtype),
            y_offset: y.offset,
            y_stride: stride(output.layout.stride),
            ..Call::default()
        };
        if let Some(scales) = &chunk.scales {
            [call.block_rows, call.block_cols] = scales.block;
            call.scale_cols = scales.cols;
            call.scale_skip = scales.skip;
            call.scale_shift = scales.shift().unwrap_or(0);
        }
        Ok((call, [x, y]))
    }

    /// The kernel on cooperative matrices, if there is one and it takes the call.
    fn cooperative<'k>(&'k self, kernels: &'k Kernels, call: &Call) -> Option<&'k Pipeline> {
        let any = kernels.cooperative.as_ref()?;
        let f16 = (self.input.dtype, self.weight.dtype) == (DType::F16, DType::F16);
        let whole_words = call.y_dtype == dtype_code(DType::F32)
            || [call.y_offset, call.y_stride]
                .iter()
                .all(|n| n.is_multiple_of(2));
        let full = call.tokens.min(call.rows) >= COOPERATIVE_TILE
            && call.k.is_multiple_of(COOPERATIVE_DEPTH)
            && call.rows.is_multiple_of(2);
        let dense = self.weight.dense.as_ref();
        let pipeline = dense.filter(|_| call.x_stride == call.k).unwrap_or(any);
        (f16 && self.aligned && full && whole_words).then_some(pipeline)
    }

    /// The kernel for a call, and its workgroups.
    fn kernel<'k>(
        &'k self,
        device: &Device,
        kernels: &'k Kernels,
        call: &Call,
    ) -> Result<(&'k Pipeline, (u32, u32))> {
        let tokens = call.tokens as usize;
        if tokens <= self.row_tokens() {
            let pipeline = kernels.rows(self.weight.dtype, self.row_kind(tokens))?;
            return Ok((pipeline, workgroups(device, call.rows.div_ceil(ROWS))));
        }
        let tiles = |side: u32| (call.rows.div_ceil(side), call.tokens.div_ceil(side));
        if let Some(pipeline) = self.cooperative(kernels, call) {
            return Ok((pipeline, tiles(COOPERATIVE_TILE)));
        }
        let (across, down) = tiles(TILES[1]);
        let large = self.usual
            && call.k.is_multiple_of(TILE_DEPTH[1])
            && across.saturating_mul(down) >= kernels.least_large_tiles;
        let (pipeline, side) = kernels.tiles(self.weight.dtype, large, self.aligned)?;
        Ok((pipeline, tiles(side)))
    }
}

type Pipeline = wgpu::ComputePipeline;

/// Builds what products with this weight want beside the kernels that are there.
pub(crate) fn prepare(device: &Device, kernels: &Kernels, weight: &mut Weight) -> Result<()> {
    let full = |chunk: &Chunk| chunk.rows >= COOPERATIVE_TILE as usize;
    let k = u32::try_from(weight.cols).unwrap_or(0);
    if kernels.cooperative.is_some()
        && weight.dtype == DType::F16
        && k.is_multiple_of(COOPERATIVE_DEPTH)
        && weight.chunks.iter().any(full)
    {
        weight.dense = Some(kernels.dense(device, k)?);
    }
    Ok(())
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
    let product = Product::new(device, x, weight);
    for chunk in &weight.chunks {
        let output = Columns::new(&y.as_ref(), chunk.first_row, chunk.rows);
        for part in product.windows(device, &output) {
            let (call, ends) = product.call(device, chunk, &output, part)?;
            let (pipeline, groups) = product.kernel(device, kernels, &call)?;
            dispatch(
                device,
                kernels,
                pass,
                pipeline,
                (chunk, ends),
                &call,
                groups,
            )?;
        }
    }
    Ok(())
}

/// Records one call on a chunk, from the window of x to that of y.
pub(crate) fn dispatch(
    device: &Device,
    kernels: &Kernels,
    pass: &mut wgpu::ComputePass<'_>,
    pipeline: &Pipeline,
    (chunk, ends): (&Chunk, [Window<'_>; 2]),
    call: &Call,
    groups: (u32, u32),
) -> Result<()> {
    let scales = chunk.scales.as_ref().map_or(&chunk.data, |s| &s.data);
    let [x, y] = ends;
    let bind_group = chunk.bound.last_or(ends, || {
        let bindings = [
            x.binding(),
            chunk.data.raw().as_entire_buffer_binding(),
            scales.raw().as_entire_buffer_binding(),
            y.binding(),
        ];
        bind(device, &kernels.product_layout, bindings)
    })?;
    pass.set_pipeline(pipeline);
    pass.set_bind_group(0, &bind_group, &[]);
    pass.set_immediates(0, bytemuck::bytes_of(call));
    pass.dispatch_workgroups(groups.0, groups.1, 1);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use swiglu_core::{Backend, BlockScales, HostWeight, Matmul};
    use swiglu_testing::inputs::push;

    use crate::WgpuBackend;
    use crate::shaders::Tier;

    const TOKENS: usize = 265;
    const ROWS: usize = 259;

    /// Whole numbers from -3 to 3 in any type.
    fn numbers(dtype: DType, count: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for i in 0..count {
            push(&mut bytes, dtype, (i * 5 % 7) as f32 - 3.0);
        }
        bytes
    }

    /// Software takes small tiles with two buffers: here it is made to take others too.
    #[test]
    fn tiles_of_any_size_and_buffers_are_equal() {
        let mut backend = match WgpuBackend::builder().allow_software(true).build() {
            Ok(backend) => backend,
            Err(reason) => return swiglu_testing::may_skip("wgpu", &reason.to_string(), "tiles"),
        };
        // Of large tiles' steps 80 columns are an even number, 72 an odd one.
        let cases: Vec<_> = crate::shaders::WEIGHTS
            .into_iter()
            .flat_map(|dtype| [80, 72].map(|cols| (dtype, cols)))
            .collect();
        let expected: Vec<_> = cases.iter().map(|case| product(&backend, *case)).collect();
        for two_buffers in [true, false] {
            let tier = Tier {
                subgroups: false,
                e4m3_as_f16: false,
                two_buffers,
            };
            backend.kernels = Kernels::new(backend.device(), tier).unwrap();
            for least in [1, u32::MAX] {
                backend.kernels.least_large_tiles = least;
                for (case, expected) in cases.iter().zip(&expected) {
                    let got = product(&backend, *case);
                    assert!(got == *expected, "{case:?}, {least}, {two_buffers}");
                }
            }
        }
    }

    /// The bytes of a product in f32 of whole numbers, which is exact, with columns of the weight.
    fn product(backend: &WgpuBackend, (dtype, cols): (DType, usize)) -> Vec<u8> {
        let x_dtype = usual_x(dtype);
        let data = numbers(dtype, ROWS * cols);
        let scales: Vec<u8> = (0..ROWS.div_ceil(32) * cols.div_ceil(32))
            .map(|i| 126 + (i % 3) as u8)
            .collect();
        let scales = (dtype == DType::F8E4M3).then_some(BlockScales {
            data: &scales,
            dtype: DType::E8M0,
            block: [32, 32],
        });
        let host = HostWeight::new(ROWS, cols, dtype, &data, scales).unwrap();
        let weight = backend.load_weight(&[host]).unwrap();
        let x = numbers(x_dtype, TOKENS * cols);
        let mut on_device = backend.alloc(x.len()).unwrap();
        backend.upload(&mut on_device, &x).unwrap();
        let mut y = backend.alloc(TOKENS * ROWS * 4).unwrap();
        let x = Tensor::contiguous(&on_device, x_dtype, TOKENS, cols);
        let to = TensorMut::contiguous(&mut y, DType::F32, TOKENS, ROWS);
        backend.matmul(x, &weight, to).unwrap();
        let mut got = vec![0_u8; TOKENS * ROWS * 4];
        backend.download(&y, &mut got).unwrap();
        assert!(got.iter().any(|byte| *byte != 0), "{dtype}");
        got
    }
}
