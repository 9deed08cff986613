//! Maps of tensors, by which Hopper's kernels copy tiles.

use cudarc::driver::sys::{
    self, CUtensorMap, CUtensorMapDataType as Type, CUtensorMapFloatOOBfill as Beyond,
    CUtensorMapInterleave, CUtensorMapL2promotion as Promotion, CUtensorMapSwizzle as Swizzle,
};
use swiglu_core::RowLayout;

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
        let RowLayout {
            rows: all,
            cols,
            stride,
            ..
        } = matrix.layout;
        let bytes = |elements: usize| elements as u64 * matrix.float.size() as u64;
        let [row, stride] = [cols, stride].map(bytes);
        let kind = Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
        let sides = [cols as u64, all as u64];
        // That of one row may be anything.
        let stride = if all == 1 { row } else { stride };
        let promotion = Promotion::CU_TENSOR_MAP_L2_PROMOTION_NONE;
        Self::tiles(
            (kind, promotion),
            matrix.first(),
            (sides, stride),
            [64, rows],
        )
    }

    /// The same of codes, whose tiles have 128 columns.
    pub(crate) fn of_codes(
        address: u64,
        [all, cols]: [usize; 2],
        stride: usize,
        rows: u32,
    ) -> Result<Self> {
        let kind = Type::CU_TENSOR_MAP_DATA_TYPE_UINT8;
        let sides = [cols as u64, all as u64];
        let stride = if all == 1 { cols } else { stride };
        // The next tile is beside this one.
        let promotion = Promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B;
        Self::tiles(
            (kind, promotion),
            address,
            (sides, stride as u64),
            [128, rows],
        )
    }

    fn tiles(
        (kind, promotion): (Type, Promotion),
        address: u64,
        (sides, stride): ([u64; 2], u64),
        tile: [u32; 2],
    ) -> Result<Self> {
        let (strides, steps) = ([stride], [1, 1]);
        let mut map = CUtensorMap { opaque: [0; 16] };
        // SAFETY: the pointers are to this frame's arrays, as long as the rank asks; nothing is read
        // at the address.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                &raw mut map,
                kind,
                2,
                address as *mut _,
                sides.as_ptr(),
                strides.as_ptr(),
                tile.as_ptr(),
                steps.as_ptr(),
                CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                Swizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                promotion,
                Beyond::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()
        .doing("map a tensor")?;
        Ok(Self(map.opaque))
    }
}
