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

/// Elements of a thread: as many as 16 bytes of the output hold where every row of both matrices is whole vectors of
/// 16 bytes, else one.
fn elements(from: &RawMatrix, to: &RawMatrix) -> usize {
    let lanes = 16 / to.float.size();
    let mut bytes = from.first() | to.first();
    if from.layout.rows > 1 {
        bytes |= (from.layout.stride * from.float.size()) as u64;
        bytes |= (to.layout.stride * to.float.size()) as u64;
    }
    match bytes.is_multiple_of(16) && from.layout.cols.is_multiple_of(lanes) {
        true => lanes,
        false => 1,
    }
}

/// The kernels by [`Float::ALL`]'s order: of single elements, and of vectors.
#[derive(Debug)]
pub(super) struct Rounding {
    kernels: Vec<[Function; 2]>,
    programmatic: bool,
    _module: Module,
}

impl Rounding {
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<Self> {
        let module = Module::load(context, &FATBINS)?;
        let kernel = |float| -> Result<_> {
            let name = format!("round_{float}");
            let vectors = module.function(&format!("{name}_vectors"))?;
            Ok([module.function(&name)?, vectors])
        };
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
        let elements = elements(from, to);
        let threads = columns.div_ceil(elements as u32);
        let grid = Grid {
            blocks: [threads.div_ceil(THREADS), rows.min(MOST_ROWS)],
            threads: THREADS,
            shared: 0,
            programmatic: self.programmatic,
        };
        stream
            .context()
            .bind_to_thread()
            .doing("bind the context")?;
        let kernel = Float::ALL.into_iter().zip(&self.kernels);
        for (_, kernels) in kernel.filter(|(float, _)| *float == to.float) {
            let kernel = kernels[usize::from(elements > 1)];
            // SAFETY: by this function's contract; the parameter is the kernel's.
            unsafe { kernel.launch(stream.cu_stream(), grid, &params) }?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use swiglu_core::RowLayout;

    #[test]
    fn vectors_need_every_row_of_both_to_be_whole_ones() {
        let matrix = |address, float, rows, cols, stride| RawMatrix {
            address,
            float,
            layout: RowLayout::contiguous(rows, cols).with_stride(stride),
        };
        let of = |cols, [from, to]: [u64; 2], strides: [usize; 2], rows| {
            let from = matrix(from, Float::F32, rows, cols, strides[0]);
            elements(&from, &matrix(to, Float::BF16, rows, cols, strides[1]))
        };
        let places = [0x1000, 0x2000];
        assert_eq!(of(64, places, [64, 64], 3), 8);
        assert_eq!(of(60, places, [64, 64], 3), 1);
        assert_eq!(of(64, [0x1004, 0x2000], [64, 64], 3), 1);
        assert_eq!(of(64, [0x1000, 0x2002], [64, 64], 3), 1);
        assert_eq!(of(64, places, [65, 64], 3), 1);
        assert_eq!(of(64, places, [64, 68], 3), 1);
        // With one row strides have no say.
        assert_eq!(of(64, places, [65, 68], 1), 8);
        let f32s = matrix(0x1000, Float::F32, 3, 60, 60);
        assert_eq!(elements(&f32s, &f32s), 4);
    }
}
