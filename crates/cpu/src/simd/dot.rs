//! Tiles multiplied by VDPBF16PS, the dot products of pairs of bf16 that AVX-512 has beside AMX or
//! without it.
//!
//! ## Method
//! 1. A row of a panel's tile is the pairs of k of 16 outputs, one register; an element of a row of x's
//!    tile is a pair for all of them.
//! 2. 8 rows by two panels of sums stay in registers over all steps. Rows of zeros that fill a tile up
//!    are left out, 8 at a time.
//!
//! The instruction adds the product of the odd k to a sum, then that of the even, each by a fused
//! multiply-add; subnormal numbers are zero.

use std::arch::x86_64::*;

use super::tiles::{DEPTH, SIDE, TILE, TileProduct};

/// Rows of sums that stay in registers, of two panels.
const ROWS: usize = 8;

/// Adds a product to its sums.
///
/// # Safety
/// As [`super::tiles::Ready::multiply`], and the machine has AVX-512 F and BF16.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn multiply(product: &TileProduct) {
    for first in (0..product.rows_in_use).step_by(ROWS) {
        // SAFETY: the caller vouches for the tiles and the sums.
        unsafe {
            match product.panels {
                2 => rows::<2>(product, first),
                _ => rows::<1>(product, first),
            }
        }
    }
}

/// The same for [`ROWS`] rows and so many panels.
///
/// # Safety
/// As [`multiply`].
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn rows<const PANELS: usize>(product: &TileProduct, first: usize) {
    let (tile, row) = (first / SIDE, first % SIDE);
    let place = |panel: usize, r: usize| product.sums[panel].wrapping_add((first + r) * SIDE);
    let mut sums = [[_mm512_setzero_ps(); PANELS]; ROWS];
    // SAFETY: the caller vouches for the tiles and the sums.
    unsafe {
        if !product.begins {
            for (r, sums) in sums.iter_mut().enumerate() {
                for (panel, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm512_loadu_ps(place(panel, r));
                }
            }
        }
        for step in 0..product.steps {
            let x = product
                .x
                .add((step * product.rows + tile) * TILE + row * DEPTH);
            for pair in 0..DEPTH / 2 {
                let at = step * TILE + pair * 2 * SIDE;
                let w: [__m512bh; PANELS] =
                    std::array::from_fn(|p| bf16s(_mm512_loadu_si512(product.w[p].add(at).cast())));
                for (r, sums) in sums.iter_mut().enumerate() {
                    let x = x.add(r * DEPTH + 2 * pair).cast::<i32>().read_unaligned();
                    let x = bf16s(_mm512_set1_epi32(x));
                    for (sum, w) in sums.iter_mut().zip(w) {
                        *sum = _mm512_dpbf16_ps(*sum, w, x);
                    }
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (panel, sum) in sums.iter().enumerate() {
                _mm512_storeu_ps(place(panel, r), *sum);
            }
        }
    }
}

/// Bits as numbers of bf16.
#[inline]
#[target_feature(enable = "avx512f")]
fn bf16s(bits: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes, of which all are numbers.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(bits) }
}
