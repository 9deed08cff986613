//! The calls of a layer of routed experts: plans carried out.

use std::sync::Arc;

use cudarc::driver::{CudaContext, sys};
use swiglu_core::{
    Error as CoreError, Experts, Float, GatedActivation, Quantization, Routes, RowLayout,
};

use super::{
    kernels::MoeKernels,
    plan::{ExpertsPlan, ExpertsProblem, Half, MOST_EXPERTS, THREADS},
};
use crate::{
    activation::{Form, Forms, compiled_forms, scalars, unsupported},
    buffer::CudaBuffer,
    error::{Doing, Result},
    launch::{
        driver::{Function, Grid},
        params::{Divisor, ExpertsParams, GatheredParams, PackParams, Scalars, SumParams},
        tensor_map::TensorMap,
    },
    matmul::{MatmulFacts, y_type},
    view::RawMatrix,
    weight::{CudaWeight, stack::not_stacked},
};

/// Rows in scratch memory begin at its first multiple of so many bytes.
pub(super) const ALIGNMENT: u64 = 16;

/// Blocks of a launch whose warps take one group after another, at most.
pub(super) const MOST_BLOCKS: usize = 4096;

/// Gathered rows that a tensor map copies at once.
const GATHERED_AT_ONCE: u32 = 8;

/// Blocks that pack an expert, whose warps take one unit after another.
const PACK_BLOCKS: u32 = 1024;

/// The kernels of a layer, for every stream of a context.
pub(crate) struct Moe {
    context: Arc<CudaContext>,
    pub(super) kernels: MoeKernels,
    forms: Forms,
}

/// A matrix of bf16 without gaps in scratch memory.
fn in_scratch(scratch: u64, rows: usize, cols: usize) -> RawMatrix {
    RawMatrix {
        address: scratch.next_multiple_of(ALIGNMENT),
        float: Float::BF16,
        layout: RowLayout::contiguous(rows, cols),
    }
}

/// The end of a matrix in scratch memory.
fn behind(matrix: &RawMatrix) -> u64 {
    let elements = matrix.layout.rows * matrix.layout.cols;
    matrix.address + (elements * matrix.float.size()) as u64
}

/// Where a buffer begins, 0 where there is none.
pub(super) fn address(buffer: Option<&CudaBuffer>) -> u64 {
    buffer.map_or(0, CudaBuffer::address)
}

/// Whether rows begin at multiples of so many bytes.
pub(super) fn rows_aligned(matrix: &RawMatrix, bytes: usize) -> bool {
    let stride = if matrix.layout.rows == 1 {
        0
    } else {
        matrix.layout.stride
    };
    let starts = matrix.first() | (stride * matrix.float.size()) as u64;
    starts.is_multiple_of(bytes as u64)
}

/// A side of a matrix as a kernel counts it.
pub(super) fn side(argument: &'static str, count: usize) -> Result<u32> {
    let fits = u32::try_from(count).ok().filter(|&n| n < 1 << 31);
    let too_many = || CoreError::argument(argument, "sides below 2^31", count).into();
    fits.ok_or_else(too_many)
}

impl Moe {
    pub(crate) fn new(context: &Arc<CudaContext>) -> Result<Self> {
        Ok(Self {
            context: context.clone(),
            kernels: MoeKernels::new(context)?,
            forms: compiled_forms(),
        })
    }

    /// Enqueues a kernel: blocks, threads of a block, bytes of its dynamic shared memory.
    ///
    /// # Safety
    /// As [`Function::launch`].
    pub(super) unsafe fn launch<P>(
        &self,
        stream: sys::CUstream,
        kernel: Function,
        (blocks, threads, shared): ([u32; 2], u32, u32),
        params: &P,
    ) -> Result<()> {
        let grid = Grid {
            blocks,
            threads,
            shared,
            programmatic: self.kernels.overlaps,
        };
        // SAFETY: by the callers' contracts, and the kernels stay inside of the call's shapes.
        unsafe { kernel.launch(stream, grid, params) }
    }

    /// Enqueues the first half. Returns whether its kernel lets the next one start only when the routes
    /// are there: [`Self::sum`] may be told so if it follows.
    ///
    /// # Safety
    /// As [`Self::logits`]. `sorted_before`: the kernel before this call lets the next one start only when the routes
    /// are there.
    #[allow(clippy::too_many_arguments)] // Those of the call.
    pub(crate) unsafe fn gated(
        &self,
        stream: sys::CUstream,
        facts: &MatmulFacts,
        op: &GatedActivation,
        quant: Option<&Quantization>,
        x: &RawMatrix,
        experts: &Experts<CudaWeight>,
        routes: &Routes<CudaBuffer>,
        scratch: u64,
        act: &RawMatrix,
        sorted_before: bool,
    ) -> Result<bool> {
        x.check_aligned("x")?;
        act.check_aligned("act")?;
        let (tokens, shape) = (x.layout.rows, experts.shape());
        if tokens == 0 || shape.count() == 0 {
            return Ok(false);
        }
        let form = self.forms.place(Form::merged(op));
        let form = form.ok_or_else(|| unsupported(op))?;
        let weight = experts.gate_up.first().ok_or_else(not_stacked)?;
        self.bind()?;
        let widened = in_scratch(scratch, tokens, shape.hidden);
        let (x, scratch) = match quant {
            None => (x, scratch),
            Some(quant) => {
                // SAFETY: by this function's contract.
                unsafe { self.widen(stream, quant, x, &widened, tokens, None) }?;
                (&widened, behind(&widened))
            }
        };
        let first = Some((form, scalars(op)));
        let matrices = (x, weight, act);
        // SAFETY: by this function's contract.
        unsafe {
            let sorted = self.half(
                stream,
                facts,
                first,
                matrices,
                experts,
                routes,
                scratch,
                sorted_before,
            )?;
            if let Some(quant) = quant {
                let own = Some((experts, routes));
                self.widen(stream, quant, act, act, routes.count(), own)?;
            }
            Ok(sorted)
        }
    }

    /// Enqueues the second half and the sum.
    ///
    /// # Safety
    /// As [`Self::logits`]. `sorted_before` is what [`Self::gated`] returned of a call with these routes that this one
    /// follows on the stream, or false.
    #[allow(clippy::too_many_arguments)] // Those of the call.
    pub(crate) unsafe fn sum(
        &self,
        stream: sys::CUstream,
        facts: &MatmulFacts,
        act: &RawMatrix,
        experts: &Experts<CudaWeight>,
        routes: &Routes<CudaBuffer>,
        shared: Option<&RawMatrix>,
        scratch: u64,
        y: &RawMatrix,
        sorted_before: bool,
    ) -> Result<()> {
        act.check_aligned("act")?;
        y.check_aligned("y")?;
        if let Some(shared) = shared {
            shared.check_aligned("shared")?;
        }
        let (tokens, shape) = (y.layout.rows, experts.shape());
        if tokens == 0 {
            return Ok(());
        }
        self.bind()?;
        let outputs = in_scratch(scratch, routes.count(), shape.hidden);
        let mut sorted = false;
        if shape.count() > 0 {
            let weight = experts.down.first().ok_or_else(not_stacked)?;
            let matrices = (act, weight, &outputs);
            let behind = behind(&outputs);
            // SAFETY: by this function's contract.
            sorted = unsafe {
                self.half(
                    stream,
                    facts,
                    None,
                    matrices,
                    experts,
                    routes,
                    behind,
                    sorted_before,
                )
            }?;
        }
        let vectors = |m: &RawMatrix| rows_aligned(m, 4 * m.float.size());
        let four = shape.hidden.is_multiple_of(4) && vectors(y) && shared.is_none_or(vectors);
        let (kernel, columns) = if four {
            (self.kernels.sum_vectors, 4)
        } else {
            (self.kernels.sum_elements, 1)
        };
        let params = SumParams {
            outputs: outputs.first(),
            shared: shared.map_or(0, RawMatrix::first),
            y: y.first(),
            offsets: routes.offsets.address(),
            rows: routes.rows.address(),
            shared_stride: shared.map_or(0, |s| s.layout.stride as u64),
            y_stride: y.layout.stride as u64,
            tokens: side("y", tokens)?,
            columns: side("y", shape.hidden)?,
            top_k: side("routes", routes.routing().top_k())?,
            first: side("experts", shape.range.start)?,
            experts: side("experts", shape.count())?,
            shared_type: shared.map_or(0, |s| y_type(s.float)),
            y_type: y_type(y.float),
            sorted_before: u32::from(sorted),
        };
        let of_row = shape.hidden.div_ceil(columns * THREADS as usize) as u32;
        let blocks = [of_row, tokens.min(65_535) as u32];
        // SAFETY: by this function's contract.
        unsafe { self.launch(stream, kernel, (blocks, THREADS, 0), &params) }
    }

    /// Enqueues the matmuls of a half. Gathered rows are written from `scratch` on. Returns what [`Self::gated`] does.
    #[allow(clippy::too_many_arguments)] // Those of the calls.
    unsafe fn half(
        &self,
        stream: sys::CUstream,
        facts: &MatmulFacts,
        activation: Option<(usize, Scalars)>,
        (x, weight, y): (&RawMatrix, &CudaWeight, &RawMatrix),
        experts: &Experts<CudaWeight>,
        routes: &Routes<CudaBuffer>,
        scratch: u64,
        sorted_before: bool,
    ) -> Result<bool> {
        self.check_weight("experts", weight)?;
        let stack = weight.stack.as_ref().ok_or_else(not_stacked)?;
        let (routing, shape) = (routes.routing(), experts.shape());
        let halves = if activation.is_some() { 2 } else { 1 };
        let whole = weight.data.len() >= shape.count() * stack.stride;
        if [weight.rows, weight.cols] != [halves * y.layout.cols, x.layout.cols] || !whole {
            return Err(not_stacked());
        }
        let scales = stack.scales.as_ref();
        let by_blocks = scales.filter(|s| s.rows.is_some());
        let several = by_blocks.filter(|s| s.columns > 1);
        let problem = ExpertsProblem {
            half: if activation.is_some() {
                Half::Gated
            } else {
                Half::Down
            },
            routes: routes.count(),
            all_experts: routing.experts(),
            experts: shape.count(),
            outputs: y.layout.cols,
            k: weight.cols,
            x: x.float,
            format: stack.format,
            block_columns: several.map(|s| s.block_columns),
            x_aligned: rows_aligned(x, 16),
            y_aligned: rows_aligned(y, 16),
        };
        let plan = ExpertsPlan::new(&problem, facts).ok_or_else(|| too_large(&problem))?;
        let (form, scalars) = activation.unwrap_or_default();
        let params = ExpertsParams {
            x: x.first(),
            w: weight.data.address(),
            scales: scales.map_or(address(stack.marks.as_ref()), |s| s.values.address()),
            scale_rows: scales.map_or(0, |s| address(s.rows.as_ref())),
            y: y.first(),
            offsets: routes.offsets.address(),
            sorted: routes.sorted.address(),
            weights: routes.weights.address(),
            x_stride: x.layout.stride as u64,
            y_stride: y.layout.stride as u64,
            w_stride: stack.stride as u64,
            scale_stride: scales.map_or(0, |s| s.stride as u64),
            scale_row_stride: by_blocks.map_or(0, |_| weight.rows as u64),
            outputs: side("experts", y.layout.cols)?,
            k: side("experts", weight.cols)?,
            first: side("experts", shape.range.start)?,
            experts: side("experts", shape.count())?,
            top_k: side("routes", routing.top_k())?,
            scale_columns: by_blocks.map_or(0, |s| s.columns as u32),
            by_block: Divisor::new(by_blocks.map_or(1, |s| s.block_columns as u32)),
            pieces: plan.pieces,
            by_pieces: Divisor::new(plan.pieces),
            format: stack.format as u32,
            x_type: y_type(x.float),
            form: form as u32,
            scalars,
            sorted_before: u32::from(sorted_before),
        };
        let shared = plan.kernel.shared(stack.format, shape.count());
        let grid = ([plan.blocks, 1], plan.kernel.threads(stack.format), shared);
        let kernel = self.kernels.experts(&plan);
        if !plan.gathers() {
            // SAFETY: by the callers' contracts.
            unsafe { self.launch(stream, kernel, grid, &params) }?;
            return Ok(plan.starts_next_late());
        }
        let gathered = in_scratch(scratch, routes.count(), weight.cols);
        let params = GatheredParams {
            x: TensorMap::of_rows(&gathered, GATHERED_AT_ONCE)?,
            experts: params,
        };
        // SAFETY: by the callers' contracts: scratch memory is as large as `Moe::scratch` says, which knows this plan.
        unsafe {
            self.gather(stream, plan.half, x, &gathered, &params.experts)?;
            self.launch(stream, kernel, grid, &params)?;
        }
        Ok(plan.starts_next_late())
    }

    /// Enqueues the packing of an expert's half.
    ///
    /// # Safety
    /// The addresses are of the expert's codes, scales, place and mark, whose memory lives until the stream has run it.
    pub(crate) unsafe fn pack(&self, stream: sys::CUstream, params: &PackParams) -> Result<()> {
        let kernel = self.kernels.pack.ok_or_else(not_stacked)?;
        self.bind()?;
        // SAFETY: by this function's contract.
        unsafe { self.launch(stream, kernel, ([PACK_BLOCKS, 1], THREADS, 0), params) }
    }

    pub(super) fn bind(&self) -> Result<()> {
        self.context.bind_to_thread().doing("bind the context")
    }

    /// Checks that a weight lies in the context that the kernels were loaded into.
    pub(super) fn check_weight(&self, argument: &'static str, weight: &CudaWeight) -> Result<()> {
        if weight.data.context().cu_ctx() == self.context.cu_ctx() {
            return Ok(());
        }
        let expected = "weights of the backend's context";
        Err(CoreError::argument(argument, expected, "another context's").into())
    }
}

/// The error of a call that no plan takes.
fn too_large(problem: &ExpertsProblem) -> crate::error::Error {
    let expected = format!(
        "at most {} experts, and fewer than 2^31 pieces of work",
        MOST_EXPERTS
    );
    let got = format!("{} experts, {} routes", problem.experts, problem.routes);
    CoreError::argument("experts", expected, got).into()
}
