//! The three floats as vectors load, round and store them.
//!
//! ## Method
//! 1. Elements come in units of [`UNIT`]: two vectors of f32.
//! 2. Which element of a unit is where in them is the type's own affair. f32 and f16 have the first
//!    half in the first vector. bf16 has the elements at even places there and those at odd places in
//!    the second: a shift and a mask of 32-bit words, where order would take a permutation.
//! 3. What is elementwise need not know. Where order counts, [`VectorElement::place`] and
//!    [`VectorElement::from_order`] say it.

use crate::cold::cold_path;

use swiglu_core::{Element, bf16, f16};

use crate::simd::{LANES, Simd};

/// Elements that are taken at once: two vectors.
pub(crate) const UNIT: usize = 2 * LANES;

/// Magnitudes below which silu takes its short way: neither exp(x) nor 1 plus it leaves the normal
/// numbers.
pub(crate) const USUAL: f32 = 80.0;

/// The highest limit of [`VectorElement::load_clamped`].
pub(crate) const HIGHEST_LIMIT: f32 = 16.0;

/// An element type as units are loaded and stored. What is stored or rounded must have no NaN but
/// the canonical one.
pub(crate) trait VectorElement: Element {
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
    /// A unit of gates and one of ups, clamped: the gates from above by `limit`, the ups on both
    /// sides. The limit is positive, at most [`HIGHEST_LIMIT`] and one of this type's values. None where a
    /// lane is NaN or silu not [`USUAL`] of its gate; also where one is merely large.
    ///
    /// # Safety
    /// As [`Self::load`], of both.
    #[inline(always)]
    unsafe fn load_clamped<S: Simd>(
        s: S,
        [gates, ups]: [*const Self; 2],
        limit: f32,
    ) -> Option<[[S::F; 2]; 2]> {
        // SAFETY: the caller vouches for it.
        let (gates, ups) = unsafe { (Self::load(s, gates), Self::load(s, ups)) };
        let (above, below) = (s.splat(limit), s.splat(-limit));
        let gates = [
            s.clamp_above(gates[0], above),
            s.clamp_above(gates[1], above),
        ];
        let ups = [
            s.clamp_below(s.clamp_above(ups[0], above), below),
            s.clamp_below(s.clamp_above(ups[1], above), below),
        ];
        // None of four summands is above the limit: above this sum all are numbers, and the gates
        // usual ones; with 1 for the rounding.
        let sum = s.add(s.add(gates[0], ups[0]), s.add(gates[1], ups[1]));
        let least = s.splat(3.0 * limit - (USUAL - 1.0));
        if !s.all(s.lt(least, sum)) {
            cold_path();
            return None;
        }
        Some([gates, ups])
    }

    /// Takes a unit's magnitudes into the largest ones so far, 0 before the first.
    ///
    /// # Safety
    /// As [`Self::load`].
    #[inline(always)]
    unsafe fn larger<S: Simd>(s: S, so_far: S::I, from: *const Self) -> S::I {
        // SAFETY: the caller vouches for it.
        let [a, b] = unsafe { Self::load(s, from) };
        // Bits order magnitudes as their values do, with NaN above all.
        s.max_u32(so_far, s.max_u32(s.bits(s.abs(a)), s.bits(s.abs(b))))
    }
    /// The largest of what [`Self::larger`] took in.
    #[inline(always)]
    fn largest<S: Simd>(s: S, so_far: S::I) -> f32 {
        f32::from_bits(s.highest(so_far))
    }

    /// Rounds to this type and widens again.
    fn round<S: Simd>(s: S, a: S::F) -> S::F;

    /// Whether a value is [`NEAR_TIE`] units of f32's last place or fewer from the middle between two
    /// of this type's, so that what it lacks may decide its rounding. Only bf16 asks: in f32 nothing is
    /// rounded, and in f16 middles lie so close that vectors would seldom be without one.
    fn is_near_tie(_: f32) -> bool {
        false
    }
    /// Whether one of a unit's values is, and now and then without one.
    #[inline(always)]
    fn any_near_tie<S: Simd>(_: S, _: [S::F; 2]) -> bool {
        false
    }

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
impl VectorElement for f32 {
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

/// How far from a tie a result of 16 bits is beyond doubt, in units of f32's last place: more than
/// the operations on the way to it and the approximations there can be wrong by.
const NEAR_TIE: u16 = 4;

/// The lower half of an f32 that lies in the middle between two bf16.
const TIE: u16 = 0x8000;

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
impl VectorElement for bf16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(s: S, from: *const Self) -> [S::F; 2] {
        // SAFETY: as above; a unit is LANES words, and no alignment is asked for.
        widen(s, s.bits(unsafe { s.load_f32(from.cast()) }))
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
    /// On words: two elements an operation.
    #[inline(always)]
    unsafe fn load_clamped<S: Simd>(
        s: S,
        [gates, ups]: [*const Self; 2],
        limit: f32,
    ) -> Option<[[S::F; 2]; 2]> {
        // SAFETY: as above.
        let [gates, ups] = unsafe { [s.load_f32(gates.cast()), s.load_f32(ups.cast())] };
        let [gates, ups] = [s.bits(gates), s.bits(ups)];
        // Doubled, a word has no sign but for a last bit that decides nothing.
        let larger = s.max_u16(s.add_u32(gates, gates), s.add_u32(ups, ups));
        let usual = 2 * (USUAL.to_bits() >> 16) as u16 - 1;
        // Bits are ordered as positive numbers are, and as negative ones are the other way round.
        let (above, below) = (twice(limit), twice(-limit));
        let (above, below) = (s.splat_u32(above), s.splat_u32(below));
        let gates = s.min_i16(gates, above);
        let ups = s.min_i16(s.min_u16(ups, below), above);
        let clamped = [widen(s, gates), widen(s, ups)];
        if !s.at_most_u16(larger, usual) {
            cold_path();
            return None;
        }
        Some(clamped)
    }
    #[inline(always)]
    unsafe fn larger<S: Simd>(s: S, so_far: S::I, from: *const Self) -> S::I {
        // SAFETY: as above.
        let words = s.bits(unsafe { s.load_f32(from.cast()) });
        s.max_u16(so_far, s.and(words, s.splat_u32(0x7fff_7fff)))
    }
    #[inline(always)]
    fn largest<S: Simd>(s: S, so_far: S::I) -> f32 {
        f32::from_bits(s.highest_u16(so_far) << 16)
    }
    #[inline(always)]
    fn round<S: Simd>(s: S, a: S::F) -> S::F {
        s.float(s.and(to_upper(s, a), s.splat_u32(UPPER)))
    }
    fn is_near_tie(a: f32) -> bool {
        (a.to_bits() as u16).abs_diff(TIE) <= NEAR_TIE
    }
    /// On words: two lower halves an operation.
    #[inline(always)]
    fn any_near_tie<S: Simd>(s: S, a: [S::F; 2]) -> bool {
        // Takes those near a tie to the largest numbers of 16 bits. One less than the most that can be
        // added: the lower half's sum may carry into the upper.
        let most = u16::MAX - 1;
        let add = u32::from(most - (TIE + NEAR_TIE)) * 0x1_0001;
        let sums = s.add_u32(below(s, a), s.splat_u32(add));
        !s.at_most_u16(sums, most - 2 * NEAR_TIE - 1)
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

/// A value of bf16 in both halves of a word.
const fn twice(x: f32) -> u32 {
    (x.to_bits() >> 16) * 0x1_0001
}

/// Words of two bf16.
#[inline(always)]
fn widen<S: Simd>(s: S, words: S::I) -> [S::F; 2] {
    [
        s.float(s.shl::<16>(words)),
        s.float(s.and(words, s.splat_u32(UPPER))),
    ]
}

/// A unit rounded to bf16.
#[inline(always)]
fn words<S: Simd>(s: S, a: [S::F; 2]) -> S::F {
    let [even, odd] = [s.bits(a[0]), s.bits(a[1])];
    let upper = s.or(s.shr::<16>(even), s.and(odd, s.splat_u32(UPPER)));
    s.float(s.round_u16(upper, below(s, a)))
}

/// What bf16 has no room for, of a unit: words of two.
#[inline(always)]
fn below<S: Simd>(s: S, a: [S::F; 2]) -> S::I {
    let [even, odd] = [s.bits(a[0]), s.bits(a[1])];
    s.or(s.and(even, s.splat_u32(!UPPER)), s.shl::<16>(odd))
}

/// One after another.
impl VectorElement for f16 {
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
