//! Maps of tensors, by which Hopper's kernels copy tiles.

use cudarc::driver::sys::{
    self, CUtensorMap, CUtensorMapDataType as Type, CUtensorMapFloatOOBfill as Beyond,
    CUtensorMapInterleave, CUtensorMapL2promotion as Promotion, CUtensorMapSwizzle as Swizzle,
};

use crate::{
    error::{Doing, Result},
    view::RawMatrix,
};

/// Elements, and what of them the L2 reads at once.
type Elements = (Type, Promotion);
const BF16: Elements = (
    Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
    Promotion::CU_TENSOR_MAP_L2_PROMOTION_NONE,
);
/// The next tile is beside this one.
const CODES: Elements = (
    Type::CU_TENSOR_MAP_DATA_TYPE_UINT8,
    Promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
);

/// A map as kernels take it.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct TensorMap([u64; 16]);

impl TensorMap {
    /// Tiles of so many rows and 64 columns of a matrix in bf16, whose rows begin at multiples of 16
    /// bytes. A tile's rows are 128 bytes each in shared memory, their pieces of 16 bytes swizzled
    /// by the row's number in eight; beyond the last row are zeros.
    pub(crate) fn of_rows(matrix: &RawMatrix, rows: u32) -> Result<Self> {
        let layout = &matrix.layout;
        // That of one row may be anything.
        let stride = if layout.rows == 1 {
            layout.cols
        } else {
            layout.stride
        };
        let bytes = (stride * matrix.float.size()) as u64;
        let sides = [layout.cols as u64, layout.rows as u64];
        Self::new(BF16, matrix.first(), sides, [bytes], [64, rows])
    }

    /// The same of codes, whose tiles have 128 columns.
    pub(crate) fn of_codes(
        address: u64,
        [all, cols]: [usize; 2],
        stride: usize,
        rows: u32,
    ) -> Result<Self> {
        let stride = if all == 1 { cols } else { stride };
        let sides = [cols as u64, all as u64];
        Self::new(CODES, address, sides, [stride as u64], [128, rows])
    }

    /// The same of a weight of bf16 without gaps, in tiles of so many groups: eight following rows and eight others. There
    /// are so many groups, and so many rows from the first of one to the first of the next and to its ninth.
    pub(crate) fn of_groups(
        (address, cols): (u64, usize),
        (groups, [next, half]): (u32, [usize; 2]),
        tile_groups: u32,
    ) -> Result<Self> {
        Self::groups_of(
            (BF16, 2),
            (address, cols),
            (groups, [next, half]),
            [64, tile_groups],
        )
    }

    /// The same of codes, whose tiles have 128 columns.
    pub(crate) fn of_code_groups(
        weight: (u64, usize),
        groups: (u32, [usize; 2]),
        tile_groups: u32,
    ) -> Result<Self> {
        Self::groups_of((CODES, 1), weight, groups, [128, tile_groups])
    }

    fn groups_of(
        (elements, size): (Elements, usize),
        (address, cols): (u64, usize),
        (groups, [next, half]): (u32, [usize; 2]),
        [tile_cols, tile_groups]: [u32; 2],
    ) -> Result<Self> {
        let rows = |rows: usize| (size * cols * rows) as u64;
        let sides = [cols as u64, 8, 2, u64::from(groups)];
        let strides = [rows(1), rows(half), rows(next)];
        Self::new(
            elements,
            address,
            sides,
            strides,
            [tile_cols, 8, 2, tile_groups],
        )
    }

    /// `strides` are in bytes, but for the first side's.
    fn new<const SIDES: usize, const STRIDES: usize>(
        (kind, promotion): Elements,
        address: u64,
        sides: [u64; SIDES],
        strides: [u64; STRIDES],
        tile: [u32; SIDES],
    ) -> Result<Self> {
        const { assert!(SIDES == STRIDES + 1, "a stride for each side but the first") };
        let steps = [1; SIDES];
        let mut map = CUtensorMap { opaque: [0; 16] };
        // SAFETY: the pointers are to this frame's arrays, as long as the rank asks; nothing is read
        // at the address.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                &raw mut map,
                kind,
                SIDES as u32,
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
