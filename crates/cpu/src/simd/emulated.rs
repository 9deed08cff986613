//! Products of bf16 in plain Rust, to the bit as AMX gives those of tiles (Intel's manual, TDPBF16PS),
//! and VDPBF16PS dot products.

use super::tiles::{DEPTH, SIDE, TILE, TileProduct};

/// bf16 as f32, subnormals as zero.
fn operand(bits: u16) -> f32 {
    flushed(f32::from_bits(u32::from(bits) << 16))
}

/// A subnormal number as a zero of its sign.
fn flushed(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE {
        0.0_f32.copysign(x)
    } else {
        x
    }
}

/// VDPBF16PS: the product of the upper halves is added to the sum, then that of the lower ones.
pub(super) fn dot(x: u32, w: u32, sum: f32) -> f32 {
    [16, 0].into_iter().fold(sum, |sum, half| {
        let [x, w] = [x, w].map(|pair| operand((pair >> half) as u16));
        flushed(x.mul_add(w, flushed(sum)))
    })
}

/// TDPBF16PS: the even and the odd k are summed by themselves from zero, in order, each sum
/// rounded, then added to one another and to what there was.
///
/// A product of two bf16 is exact in f32, so that adding it is the fused multiply-add of the unit.
fn tile(sums: &mut [f32], x: &[u16], w: &[u16]) {
    for m in 0..SIDE {
        for n in 0..SIDE {
            let mut pair = [0.0_f32; 2];
            for k in 0..DEPTH / 2 {
                for (e, sum) in pair.iter_mut().enumerate() {
                    let x = operand(x[m * DEPTH + 2 * k + e]);
                    let w = operand(w[(k * SIDE + n) * 2 + e]);
                    *sum = flushed(*sum + x * w);
                }
            }
            let both = flushed(pair[0] + pair[1]);
            let sum = &mut sums[m * SIDE + n];
            *sum = flushed(flushed(*sum) + both);
        }
    }
}

/// Adds a product to its sums as AMX does.
///
/// # Safety
/// As [`super::tiles::Ready::multiply`].
pub(super) unsafe fn multiply(product: &TileProduct) {
    let TileProduct {
        rows,
        panels,
        steps,
        begins,
        ..
    } = *product;
    for (p, r) in (0..panels).flat_map(|p| (0..rows).map(move |r| (p, r))) {
        // SAFETY: the caller vouches for the sums; so below for the tiles.
        let sums = unsafe {
            let first = product.sums[p].add(r * SIDE * SIDE);
            std::slice::from_raw_parts_mut(first, SIDE * SIDE)
        };
        if begins {
            sums.fill(0.0);
        }
        for step in 0..steps {
            // SAFETY: as above.
            let [x, w] = unsafe {
                [
                    product.x.add((step * rows + r) * TILE),
                    product.w[p].add(step * TILE),
                ]
                .map(|tile| std::slice::from_raw_parts(tile, TILE))
            };
            tile(sums, x, w);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: u16 = 0x3f80;

    fn sum(x: [u16; 4], w: [u16; 4], before: f32) -> f32 {
        let (mut a, mut b, mut sums) = ([0; TILE], [0; TILE], [before; SIDE * SIDE]);
        a[..4].copy_from_slice(&x);
        for (k, w) in w.into_iter().enumerate() {
            b[k / 2 * 2 * SIDE + k % 2] = w;
        }
        tile(&mut sums, &a, &b);
        sums[0]
    }

    #[test]
    fn even_and_odd_k_are_summed_by_themselves() {
        // 2^24 + 1 rounds to 2^24, as a chain of all k would; two chains keep both ones.
        let huge = 0x4b80;
        assert_eq!(sum([huge, ONE, 0, ONE], [ONE; 4], 0.0), 16_777_218.0);
        assert_eq!(sum([huge, 0, ONE, 0], [ONE; 4], 0.0), 16_777_216.0);
        assert_eq!(sum([ONE, ONE, ONE, ONE], [ONE; 4], 0.5), 4.5);
    }

    #[test]
    fn subnormal_operands_and_sums_are_zero() {
        assert_eq!(sum([1, 0, 0, 0], [0x7e80, 0, 0, 0], 0.0), 0.0);
        assert_eq!(sum([0x0080, 0, 0, 0], [0x3f00, 0, 0, 0], 0.0), 0.0);
        assert_eq!(
            sum([0x0080, 0, 0, 0], [ONE, 0, 0, 0], 1e-40),
            f32::MIN_POSITIVE
        );
    }

    #[test]
    fn dots_are_one_chain_in_which_odd_k_come_first() {
        let huge = 0x4b80;
        let pair = |[low, high]: [u16; 2]| u32::from(low) | u32::from(high) << 16;
        let dots = |x: [u16; 4], before| {
            let [a, b] = [[x[0], x[1]], [x[2], x[3]]].map(pair);
            dot(b, pair([ONE; 2]), dot(a, pair([ONE; 2]), before))
        };
        // 2^24 swallows a one that comes after it, and none of what is summed before.
        assert_eq!(dots([huge, ONE, 0, 0], 1.0), 16_777_218.0);
        assert_eq!(dots([ONE, huge, 0, 0], 1.0), 16_777_216.0);
        assert_eq!(dots([huge, 0, ONE, ONE], 0.0), 16_777_216.0);
        assert_eq!(dots([1, 0, 0, 0], 1e-40), 0.0);
        assert_eq!(dots([0x0080, 0, 0, 0], 1e-40), f32::MIN_POSITIVE);
    }
}
