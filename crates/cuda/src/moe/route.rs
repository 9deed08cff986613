//! The call of the router.

use cudarc::driver::sys;
use swiglu_core::{Float, Gate, Routes, RowLayout};

use super::{
    call::{Moe, address, rows_aligned, side},
    plan::{Logits, RoutePlan, RouteProblem, TOGETHER_THREADS},
};
use crate::{
    buffer::CudaBuffer,
    error::Result,
    launch::params::{Divisor, RouteParams},
    matmul::Matmuls,
    view::{RawMatrix, check_aligned},
    weight::CudaWeight,
};

/// Addresses of what there is to know of tokens besides their rows, 0 where it is not given: i32s each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Marks {
    pub(crate) token_ids: u64,
    pub(crate) image: u64,
    pub(crate) padding: u64,
}

impl Moe {
    /// Enqueues the choice of tokens.
    ///
    /// # Safety
    /// The call has been checked, and its memory lives until the stream has run it.
    #[allow(clippy::too_many_arguments)] // Those of the call, and the stream's matmuls.
    pub(crate) unsafe fn route(
        &self,
        stream: sys::CUstream,
        matmuls: &Matmuls,
        gate: &Gate<CudaWeight, CudaBuffer>,
        x: &RawMatrix,
        marks: &Marks,
        scratch: u64,
        routes: &Routes<CudaBuffer>,
    ) -> Result<()> {
        x.check_aligned("x")?;
        check_aligned("scratch", scratch, 4)?;
        for (argument, address) in [
            ("token_ids", marks.token_ids),
            ("image", marks.image),
            ("padding", marks.padding),
        ] {
            check_aligned(argument, address, 4)?;
        }
        let (tokens, routing) = (x.layout.rows, gate.routing);
        if tokens == 0 {
            return Ok(());
        }
        self.check_weight("gate", &gate.weight)?;
        let problem = RouteProblem {
            tokens,
            hidden: gate.weight.cols,
            experts: routing.experts(),
            top_k: routing.top_k(),
            x: x.float,
            gate: gate.weight.elements,
            in_vectors: rows_aligned(x, 16) && gate.weight.packing.is_none(),
        };
        let plan = RoutePlan::new(&problem, matmuls.facts());
        let params = RouteParams {
            x: x.first(),
            w: gate.weight.data.address(),
            logits: scratch,
            bias: address(gate.bias.as_ref()),
            bias_vl: address(gate.bias_vl.as_ref()),
            table: address(gate.table.as_ref()),
            token_ids: marks.token_ids,
            image: marks.image,
            padding: marks.padding,
            ids: routes.ids.address(),
            weights: routes.weights.address(),
            offsets: routes.offsets.address(),
            sorted: routes.sorted.address(),
            rows: routes.rows.address(),
            x_stride: x.layout.stride as u64,
            tokens: side("x", tokens)?,
            hidden: side("x", gate.weight.cols)?,
            experts: side("gate", routing.experts())?,
            top_k: side("gate", routing.top_k())?,
            by_top_k: Divisor::new(side("gate", routing.top_k())?),
            vocabulary: side("table", routing.vocabulary().unwrap_or_default())?,
            normalize: u32::from(routing.normalize()),
            scale: routing.scale(),
            splits: plan.splits(),
        };
        self.bind()?;
        let kernels = &self.kernels;
        // SAFETY: by this function's contract; each launch reads what those before it wrote.
        unsafe {
            match plan.logits {
                Logits::Own(blocks) => {
                    self.launch(stream, kernels.logits, (blocks, 128, 0), &params)?;
                }
                Logits::Matmul => {
                    let logits = RawMatrix {
                        address: scratch,
                        float: Float::F32,
                        layout: RowLayout::contiguous(tokens, routing.experts()),
                    };
                    matmuls.matmul(stream, x, &gate.weight, &logits, None)?;
                }
            }
            match plan.apart {
                None => self.launch(
                    stream,
                    kernels.choose_and_sort,
                    ([1, 1], TOGETHER_THREADS, 0),
                    &params,
                ),
                Some([choose, sort]) => {
                    self.launch(stream, kernels.choose, ([choose, 1], 128, 0), &params)?;
                    self.launch(stream, kernels.sort, ([sort, 1], 128, 0), &params)
                }
            }
        }
    }
}
