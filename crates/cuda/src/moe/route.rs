//! The call of the router.

mod plan;

use cudarc::driver::sys;
use swiglu_core::{Float, Gate, Routes, RowLayout};

use super::call::{Moe, address, rows_aligned, side};
use plan::{Logits, TOGETHER_THREADS};
pub(super) use plan::{RoutePlan, RouteProblem, TOGETHER_LOGITS, together_shared};

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

/// A router's call, planned.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RouteCall {
    plan: RoutePlan,
    params: RouteParams,
}

impl Moe {
    /// A call that has been checked, as it is to run.
    pub(crate) fn route_call(
        &self,
        matmuls: &Matmuls,
        gate: &Gate<CudaWeight, CudaBuffer>,
        x: &RawMatrix,
        marks: &Marks,
        scratch: u64,
        routes: &Routes<CudaBuffer>,
    ) -> Result<RouteCall> {
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
            by_experts: Divisor::new(side("gate", routing.experts())?),
            vocabulary: side("table", routing.vocabulary().unwrap_or_default())?,
            normalize: u32::from(routing.normalize()),
            scale: routing.scale(),
            splits: plan.splits(),
            beside: 0,
        };
        Ok(RouteCall { plan, params })
    }

    /// Enqueues the logits of all experts, of at least one token.
    ///
    /// # Safety
    /// The call is of this gate and x, and its memory lives until the stream has run it.
    pub(crate) unsafe fn logits(
        &self,
        stream: sys::CUstream,
        matmuls: &Matmuls,
        gate: &Gate<CudaWeight, CudaBuffer>,
        x: &RawMatrix,
        call: &RouteCall,
    ) -> Result<()> {
        self.bind()?;
        // SAFETY: by this function's contract.
        unsafe {
            match call.plan.logits {
                Logits::Own(blocks) => {
                    let grid = (blocks, 128, 0);
                    self.launch(stream, self.kernels.logits, grid, &call.params)
                }
                Logits::Matmul => {
                    let logits = RawMatrix {
                        address: call.params.logits,
                        float: Float::F32,
                        layout: RowLayout::contiguous(x.layout.rows, gate.routing.experts()),
                    };
                    matmuls.matmul(stream, x, &gate.weight, &logits, None)
                }
            }
        }
    }

    /// Enqueues the choice. `beside`: behind a kernel that waits for the logits before it lets the next one start, and
    /// that the choice waits for only last.
    ///
    /// # Safety
    /// As [`Self::logits`]; with `beside` that kernel and the choice write nothing that the other one reads.
    pub(crate) unsafe fn choose(
        &self,
        stream: sys::CUstream,
        call: &RouteCall,
        beside: bool,
    ) -> Result<()> {
        let params = RouteParams {
            beside: u32::from(beside),
            ..call.params
        };
        self.bind()?;
        let kernels = &self.kernels;
        // SAFETY: by this function's contract; each launch reads what those before it wrote.
        unsafe {
            match call.plan.apart {
                None => {
                    let shared = together_shared((params.tokens * params.experts) as usize);
                    let grid = ([1, 1], TOGETHER_THREADS, shared);
                    self.launch(stream, kernels.choose_and_sort, grid, &params)
                }
                Some([choose, sort]) => {
                    self.launch(stream, kernels.choose, ([choose, 1], 128, 0), &params)?;
                    self.launch(stream, kernels.sort, ([sort, 1], 128, 0), &params)
                }
            }
        }
    }
}
