use swiglu_core::{Element, bf16, f16};

use crate::simd::{LANES, Simd};

/// Elements that are taken at once: two vectors, between which each type has them in an order of its
/// own.
pub(crate) const UNIT: usize = 2 * LANES;

/// An element type as units are loaded and stored. What is stored or rounded has no NaN but the
/// canonical one.
pub(crate) trait Lanes: Element {
    /// # Safety
    /// [`UNIT`] elements can be read.
    unsafe fn load<S: Simd>(s: S, from: *const Self) -> [S::F; 2];
    /// The elements at even and at odd places, a unit of each.
    ///
    /// # Safety
    /// Two units can be read.
    unsafe fn load_alternating<S: Simd>(s: S, from: *const Self) -> [[S::F; 2]; 2];
    /// # Safety
    /// [`UNIT`] elements can be written.
    unsafe fn store<S: Simd>(s: S, to: *mut Self, a: [S::F; 2]);
    /// Stores past the caches.
    ///
    /// # Safety
    /// As [`Self::store`], and the address is a multiple of as many elements.
    unsafe fn stream<S: Simd>(s: S, to: *mut Self, a: [S::F; 2]);
    /// Rounds to this type and widens again.
    fn round<S: Simd>(s: S, a: S::F) -> S::F;

    /// A unit from its first and its last elements, in order each.
    #[inline(always)]
    fn from_order<S: Simd>(_: S, a: [S::F; 2]) -> [S::F; 2] {
        a
    }
    /// Where in the two vectors an element of a unit is.
    fn place(element: usize) -> usize {
        element
    }

    /// Bytes beside the elements of a unit.
    ///
    /// # Safety
    /// [`UNIT`] bytes can be read.
    #[inline(always)]
    unsafe fn load_bytes<S: Simd>(s: S, from: *const u8) -> [S::I; 2] {
        // SAFETY: the caller vouches for it; so below.
        unsafe { [s.load_u8(from), s.load_u8(from.add(LANES))] }
    }
    /// The lowest bytes, of lanes where the others are 0.
    ///
    /// # Safety
    /// [`UNIT`] bytes can be written.
    #[inline(always)]
    unsafe fn store_bytes<S: Simd>(s: S, to: *mut u8, a: [S::I; 2]) {
        // SAFETY: as above.
        unsafe {
            s.store_u8(to, a[0]);
            s.store_u8(to.add(LANES), a[1]);
        }
    }
}

/// One after another.
impl Lanes for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const Self) -> [S::F; 2] {
        // SAFETY: as above.
        unsafe { [s.load_f32(from), s.load_f32(from.add(LANES))] }
    }
    #[inline(always)]
    unsafe fn load_alternating<S: Simd>(s: S, from: *const Self) -> [[S::F; 2]; 2] {
        // SAFETY: as above.
        let [a, b] = unsafe { [Self::load(s, from), Self::load(s, from.add(UNIT))] };
        sort(s, a, b)
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, to: *mut Self, a: [S::F; 2]) {
        // SAFETY: as above.
        unsafe {
            s.store_f32(to, a[0]);
            s.store_f32(to.add(LANES), a[1]);
        }
    }
    #[inline(always)]
    unsafe fn stream<S: Simd>(s: S, to: *mut Self, a: [S::F; 2]) {
        // SAFETY: as above.
        unsafe {
            s.stream_f32(to, a[0]);
            s.stream_f32(to.add(LANES), a[1]);
        }
    }
    #[inline(always)]
    fn round<S: Simd>(_: S, a: S::F) -> S::F {
        a
    }
}

/// The even and the odd elements of two units, where a unit is one vector after another.
#[inline(always)]
fn sort<S: Simd>(s: S, a: [S::F; 2], b: [S::F; 2]) -> [[S::F; 2]; 2] {
    let (a, b) = (s.deinterleave(a[0], a[1]), s.deinterleave(b[0], b[1]));
    [[a.0, b.0], [a.1, b.1]]
}

/// The upper half of a lane.
const UPPER: u32 = 0xffff_0000;

/// Rounded to nearest even at the 16th bit; the lower half is left over.
#[inline(always)]
fn to_upper<S: Simd>(s: S, a: S::F) -> S::I {
    let bits = s.bits(a);
    let odd = s.and(s.shr::<16>(bits), s.splat_u32(1));
    s.add_u32(bits, s.add_u32(odd, s.splat_u32(0x7fff)))
}

/// The even elements, then the odd: words of two, of which a shift and a mask make vectors.
impl Lanes for bf16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const Self) -> [S::F; 2] {
        // SAFETY: as above; a unit is LANES words, and no alignment is asked for.
        let words = s.bits(unsafe { s.load_f32(from.cast()) });
        [
            s.float(s.shl::<16>(words)),
            s.float(s.and(words, s.splat_u32(UPPER))),
        ]
    }
    #[inline(always)]
    unsafe fn load_alternating<S: Simd>(s: S, from: *const Self) -> [[S::F; 2]; 2] {
        // SAFETY: as above.
        let [a, b] = unsafe { [Self::load(s, from), Self::load(s, from.add(UNIT))] };
        // What is even and odd here is in order.
        let (even, odd) = (s.deinterleave(a[0], b[0]), s.deinterleave(a[1], b[1]));
        [[even.0, even.1], [odd.0, odd.1]]
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, to: *mut Self, a: [S::F; 2]) {
        // SAFETY: as above.
        unsafe { s.store_f32(to.cast(), words(s, a)) }
    }
    #[inline(always)]
    unsafe fn stream<S: Simd>(s: S, to: *mut Self, a: [S::F; 2]) {
        // SAFETY: as above.
        unsafe { s.stream_f32(to.cast(), words(s, a)) }
    }
    #[inline(always)]
    fn round<S: Simd>(s: S, a: S::F) -> S::F {
        s.float(s.and(to_upper(s, a), s.splat_u32(UPPER)))
    }
    #[inline(always)]
    fn from_order<S: Simd>(s: S, a: [S::F; 2]) -> [S::F; 2] {
        let (even, odd) = s.deinterleave(a[0], a[1]);
        [even, odd]
    }
    fn place(element: usize) -> usize {
        element % 2 * LANES + element / 2
    }
    #[inline(always)]
    unsafe fn load_bytes<S: Simd>(s: S, from: *const u8) -> [S::I; 2] {
        // SAFETY: as above.
        let pairs = unsafe { s.load_u16(from.cast()) };
        [s.and(pairs, s.splat_u32(0xff)), s.shr::<8>(pairs)]
    }
    #[inline(always)]
    unsafe fn store_bytes<S: Simd>(s: S, to: *mut u8, a: [S::I; 2]) {
        // SAFETY: as above.
        unsafe { s.store_u16(to.cast(), s.or(a[0], s.shl::<8>(a[1]))) }
    }
}

/// A unit rounded to bf16.
#[inline(always)]
fn words<S: Simd>(s: S, a: [S::F; 2]) -> S::F {
    let even = s.shr::<16>(to_upper(s, a[0]));
    s.float(s.or(even, s.and(to_upper(s, a[1]), s.splat_u32(UPPER))))
}

/// One after another.
impl Lanes for f16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const Self) -> [S::F; 2] {
        // SAFETY: as above; f16 is a u16.
        unsafe { [s.load_f16(from.cast()), s.load_f16(from.add(LANES).cast())] }
    }
    #[inline(always)]
    unsafe fn load_alternating<S: Simd>(s: S, from: *const Self) -> [[S::F; 2]; 2] {
        // SAFETY: as above.
        let [a, b] = unsafe { [Self::load(s, from), Self::load(s, from.add(UNIT))] };
        sort(s, a, b)
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(s: S, to: *mut Self, a: [S::F; 2]) {
        // SAFETY: as above.
        unsafe {
            s.store_f16(to.cast(), a[0]);
            s.store_f16(to.add(LANES).cast(), a[1]);
        }
    }
    #[inline(always)]
    unsafe fn stream<S: Simd>(s: S, to: *mut Self, a: [S::F; 2]) {
        // SAFETY: as above.
        unsafe {
            s.stream_f16(to.cast(), a[0]);
            s.stream_f16(to.add(LANES).cast(), a[1]);
        }
    }
    #[inline(always)]
    fn round<S: Simd>(s: S, a: S::F) -> S::F {
        s.round_f16(a)
    }
}
