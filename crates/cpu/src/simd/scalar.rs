use std::array::from_fn;

use swiglu_core::f16;

use super::{LANES, Rare, Simd};

/// Plain Rust.
#[derive(Clone, Copy)]
pub(super) struct Scalar;

impl Simd for Scalar {
    const SUMS: usize = 1;
    const ROWS: usize = 1;

    type F = [f32; LANES];
    type I = [u32; LANES];
    type M = [bool; LANES];

    #[inline(always)]
    fn apart<R: Rare<Self>>(self, rare: R) -> R::Output {
        rare.run(self)
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        [x; LANES]
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| a[i] / b[i])
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn lt(self, a: Self::F, b: Self::F) -> Self::M {
        from_fn(|i| a[i] < b[i])
    }
    #[inline(always)]
    fn is_nan(self, a: Self::F) -> Self::M {
        a.map(f32::is_nan)
    }
    #[inline(always)]
    fn select(self, mask: Self::M, yes: Self::F, no: Self::F) -> Self::F {
        from_fn(|i| if mask[i] { yes[i] } else { no[i] })
    }
    #[inline(always)]
    fn all(self, mask: Self::M) -> bool {
        mask.into_iter().all(|m| m)
    }
    #[inline(always)]
    fn bits(self, a: Self::F) -> Self::I {
        a.map(f32::to_bits)
    }
    #[inline(always)]
    fn float(self, a: Self::I) -> Self::F {
        a.map(f32::from_bits)
    }
    #[inline(always)]
    fn splat_u32(self, x: u32) -> Self::I {
        [x; LANES]
    }
    #[inline(always)]
    fn add_u32(self, a: Self::I, b: Self::I) -> Self::I {
        from_fn(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    fn max_u32(self, a: Self::I, b: Self::I) -> Self::I {
        from_fn(|i| a[i].max(b[i]))
    }
    #[inline(always)]
    fn max_u16(self, a: Self::I, b: Self::I) -> Self::I {
        halves(a, b, u16::max)
    }
    #[inline(always)]
    fn min_u16(self, a: Self::I, b: Self::I) -> Self::I {
        halves(a, b, u16::min)
    }
    #[inline(always)]
    fn min_i16(self, a: Self::I, b: Self::I) -> Self::I {
        halves(a, b, |a, b| (a as i16).min(b as i16) as u16)
    }
    #[inline(always)]
    fn at_most_u16(self, a: Self::I, most: u16) -> bool {
        a.into_iter()
            .all(|x| x as u16 <= most && (x >> 16) as u16 <= most)
    }
    #[inline(always)]
    fn highest(self, a: Self::I) -> u32 {
        a.into_iter().fold(0, u32::max)
    }
    #[inline(always)]
    fn and(self, a: Self::I, b: Self::I) -> Self::I {
        from_fn(|i| a[i] & b[i])
    }
    #[inline(always)]
    fn or(self, a: Self::I, b: Self::I) -> Self::I {
        from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    fn shl<const N: u32>(self, a: Self::I) -> Self::I {
        a.map(|x| x << N)
    }
    #[inline(always)]
    fn shr<const N: u32>(self, a: Self::I) -> Self::I {
        a.map(|x| x >> N)
    }
    #[inline(always)]
    fn sar_u16<const N: u32>(self, a: Self::I) -> Self::I {
        let half = |x: u32| u32::from((x as u16 as i16 >> N) as u16);
        a.map(|x| half(x >> 16) << 16 | half(x))
    }
    #[inline(always)]
    fn deinterleave(self, a: Self::F, b: Self::F) -> (Self::F, Self::F) {
        let at = |i: usize| if i < LANES { a[i] } else { b[i - LANES] };
        (from_fn(|i| at(2 * i)), from_fn(|i| at(2 * i + 1)))
    }
    #[inline(always)]
    unsafe fn load_f32(self, from: *const f32) -> Self::F {
        // SAFETY: the caller vouches for LANES elements; so below.
        unsafe { from.cast::<Self::F>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store_f32(self, to: *mut f32, a: Self::F) {
        // SAFETY: as above.
        unsafe { to.cast::<Self::F>().write_unaligned(a) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, from: *const u16) -> Self::F {
        // SAFETY: as above.
        let raw = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        raw.map(|x| f16::from_bits(x).to_f32())
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut u16, a: Self::F) {
        let raw = a.map(|x| f16::from_f32(x).to_bits());
        // SAFETY: as above.
        unsafe { to.cast::<[u16; LANES]>().write_unaligned(raw) }
    }
    #[inline(always)]
    unsafe fn load_u16(self, from: *const u16) -> Self::I {
        // SAFETY: as above.
        let raw = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        raw.map(u32::from)
    }
    #[inline(always)]
    unsafe fn store_u16(self, to: *mut u16, a: Self::I) {
        // SAFETY: as above.
        unsafe {
            to.cast::<[u16; LANES]>()
                .write_unaligned(a.map(|x| x as u16))
        }
    }
    #[inline(always)]
    unsafe fn load_u8(self, from: *const u8) -> Self::I {
        // SAFETY: as above.
        let raw = unsafe { from.cast::<[u8; LANES]>().read_unaligned() };
        raw.map(u32::from)
    }
    #[inline(always)]
    unsafe fn store_u8(self, to: *mut u8, a: Self::I) {
        // SAFETY: as above.
        unsafe {
            to.cast::<[u8; LANES]>().write_unaligned(a.map(|x| x as u8));
        }
    }
}

/// An operation on the halves of lanes.
#[inline(always)]
fn halves(a: [u32; LANES], b: [u32; LANES], f: impl Fn(u16, u16) -> u16) -> [u32; LANES] {
    let both = |a: u32, b: u32| {
        let upper = f((a >> 16) as u16, (b >> 16) as u16);
        u32::from(upper) << 16 | u32::from(f(a as u16, b as u16))
    };
    from_fn(|i| both(a[i], b[i]))
}
