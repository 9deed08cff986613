//! The kernels that round sums to another type.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream};
use swiglu_core::Float;

use crate::error::{Doing, Result};
use crate::launch::driver::{Capability, Fatbins, Function, Grid, Module, fatbins};
use crate::launch::params::RoundParams;
use crate::view::RawMatrix;

static FATBINS: Fatbins = fatbins!("round");

const THREADS: u32 = 256;

/// The most blocks in y, each of which takes every so many rows.
const MOST_ROWS: u32 = 4096;

/// The kernels by [`Float::ALL`]'s order.
#[derive(Debug)]
pub(super) struct Rounding {
    kernels: Vec<Function>,
    programmatic: bool,
    _module: Module,
}

impl Rounding {
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<Self> {
        let module = Module::load(context, &FATBINS)?;
        let kernel = |float| module.function(&format!("round_{float}"));
        Ok(Self {
            kernels: Float::ALL.into_iter().map(kernel).collect::<Result<_>>()?,
            programmatic: Capability::of(context)?.overlaps_launches(),
            _module: module,
        })
    }

    /// Enqueues `to` = `from`, which is f32, rounded. Both have the same shape.
    ///
    /// # Safety
    /// Both lie in memory of the stream's context that is valid until the stream has run this.
    pub(super) unsafe fn run(
        &self,
        stream: &CudaStream,
        from: &RawMatrix,
        to: &RawMatrix,
    ) -> Result<()> {
        let (rows, columns) = (from.layout.rows as u32, from.layout.cols as u32);
        if rows == 0 || columns == 0 {
            return Ok(());
        }
        let params = RoundParams {
            from: from.first(),
            to: to.first(),
            from_stride: from.layout.stride as u64,
            to_stride: to.layout.stride as u64,
            rows,
            columns,
        };
        let grid = Grid {
            blocks: [columns.div_ceil(THREADS), rows.min(MOST_ROWS)],
            threads: THREADS,
            shared: 0,
            programmatic: self.programmatic,
        };
        stream
            .context()
            .bind_to_thread()
            .doing("bind the context")?;
        let kernel = Float::ALL.into_iter().zip(&self.kernels);
        for (_, kernel) in kernel.filter(|(float, _)| *float == to.float) {
            // SAFETY: by this function's contract; the parameter is the kernel's.
            unsafe { kernel.launch(stream.cu_stream(), grid, &params) }?;
        }
        Ok(())
    }
}
