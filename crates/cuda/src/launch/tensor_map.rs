//! Maps of tensors, by which Hopper's kernels copy tiles.

use cudarc::driver::sys::{self, CUtensorMap};

use crate::{
    error::{Doing, Result},
    view::RawMatrix,
};

/// A map as kernels take it.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct TensorMap([u64; 16]);

impl TensorMap {
    /// Tiles of so many rows and 64 columns of a matrix in bf16, whose rows begin at multiples of 16
    /// bytes. A tile's rows are 128 bytes each in shared memory, their pieces of 16 bytes swizzled
    /// by the row's number in eight; beyond the last row are zeros.
    pub(crate) fn of_rows(matrix: &RawMatrix, rows: u32) -> Result<Self> {
        use sys::{
            CUtensorMapDataType as Type, CUtensorMapFloatOOBfill as Beyond, CUtensorMapInterleave,
            CUtensorMapL2promotion as Promotion, CUtensorMapSwizzle as Swizzle,
        };
        let layout = &matrix.layout;
        let sides = [layout.cols as u64, layout.rows as u64];
        // That of one row may be anything.
        let stride = if layout.rows == 1 {
            layout.cols
        } else {
            layout.stride
        };
        let strides = [2 * stride as u64];
        let (tile, steps) = ([64, rows], [1, 1]);
        let mut map = CUtensorMap { opaque: [0; 16] };
        // SAFETY: the pointers are to this frame's arrays, as long as the rank asks; nothing is read
        // at the address.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                &raw mut map,
                Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                2,
                matrix.first() as *mut _,
                sides.as_ptr(),
                strides.as_ptr(),
                tile.as_ptr(),
                steps.as_ptr(),
                CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                Swizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                Promotion::CU_TENSOR_MAP_L2_PROMOTION_NONE,
                Beyond::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()
        .doing("map a tensor")?;
        Ok(Self(map.opaque))
    }
}
