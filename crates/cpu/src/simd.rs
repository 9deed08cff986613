//! Vectors of [`LANES`] f32, one file an instruction set. Every operation is exactly rounded, so
//! that a kernel written over [`Simd`] gives the same bits on all of them.
//!
//! ## Method
//! 1. A kernel is a value that implements [`Kernel`]: one generic `run`, always inlined.
//! 2. [`dispatch`] calls it in a function that is compiled with the features of an instruction set
//!    and hands it that set's token. A token is only made there, so a token in hand is proof that
//!    the machine has the instructions.
//! 3. What is not inlined into such a function is compiled without its features. So closures do not
//!    take part, not even in an array's `map`: traits do, whose methods are `#[inline(always)]`.
//! 4. What several kernels share, or seldom do, implements [`Outlined`]. [`Simd::call`] compiles it
//!    by itself with the same features: once for all who call it, and with the registers to itself.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod emulated;
mod instruction_set;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
pub(crate) mod tiles;

pub use instruction_set::InstructionSet;
pub(crate) use instruction_set::MatrixUnit;

/// Elements of a vector, however many registers that takes.
pub(crate) const LANES: usize = 16;

/// Makes what was streamed past the caches visible to other threads as ordinary stores are.
pub(crate) fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 has SSE.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

/// Prefetches a cache line that will be read.
#[inline(always)]
pub(crate) fn prefetch<T>(from: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 has SSE, and no address is wrong.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(from.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = from;
}

/// The same into the second-level cache, for later.
#[inline(always)]
pub(crate) fn prefetch_second_level<T>(from: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as above.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(from.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = from;
}

/// Takes a value to the f16 whose bits end in those of its E4M3 code: the two formats' exponents are
/// biased by 15 and 7, a factor of 2^-8.
///
/// f16 has fewer small values than bf16: below 1/128 of the least code it flushes to zero, where a
/// value decides nothing but whether it lies above the midpoint of 0 and that code. A factor of
/// 1 + 2^-14 more keeps those above it there; conversion rounds it off again everywhere else.
#[cfg(target_arch = "x86_64")]
const TO_F16: f32 = (1.0 + 1.0 / 16_384.0) / 256.0;

/// The bf16 of every E2M1 code.
const E2M1_AS_BF16: [u16; 16] = {
    let mut table = [0; 16];
    let mut code = 0;
    while code < 16 {
        table[code] = (swiglu_core::E2M1::TABLE[code].to_bits() >> 16) as u16;
        code += 1;
    }
    table
};

/// One byte of each of them: the lower or, 8 bits on, the upper.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
const fn e2m1_bytes(shift: u32) -> [u8; 16] {
    let mut table = [0; 16];
    let mut code = 0;
    while code < 16 {
        table[code] = (E2M1_AS_BF16[code] >> shift) as u8;
        code += 1;
    }
    table
}

/// A kernel, generic over the instruction set it runs on.
pub(crate) trait Kernel {
    type Output;
    /// Implementations are `#[inline(always)]`, so that they take on the caller's features.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// A part of a kernel that is compiled by itself: see [`Simd::call`].
pub(crate) trait Outlined<S: Simd> {
    type Output;
    /// Implementations are `#[inline(always)]`, as kernels' are.
    fn run(self, s: S) -> Self::Output;
}

/// A kernel of dot products, generic over the instruction set it runs on.
pub(crate) trait DotKernel {
    /// As [`Kernel::run`].
    fn run<S: Dots>(self, s: S);
}

/// Runs a kernel on an instruction set; on [`InstructionSet::Scalar`] where the set is not this
/// architecture's.
///
/// # Safety
/// The machine has the instruction set.
pub(crate) unsafe fn dispatch<K: Kernel>(set: InstructionSet, kernel: K) -> K::Output {
    match set {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the caller vouches for the instruction set; so below.
        InstructionSet::Avx2 => unsafe { avx2::run(kernel) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        InstructionSet::Avx512 | InstructionSet::Avx512Bf16 | InstructionSet::Amx => unsafe {
            avx512::run(kernel)
        },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        InstructionSet::Neon => unsafe { neon::run(kernel) },
        _ => scalar::run(kernel),
    }
}

/// Runs a kernel of dot products; in plain Rust where the set has none.
///
/// # Safety
/// The machine has the instruction set.
pub(crate) unsafe fn dispatch_dots<K: DotKernel>(set: InstructionSet, kernel: K) {
    match set {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the caller vouches for the instruction set.
        InstructionSet::Avx512Bf16 => unsafe { avx512::run_dots(kernel) },
        _ => kernel.run(scalar::Scalar),
    }
}

/// How large a micro-kernel's tile of sums may be, in vectors of [`LANES`] sums.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Registers {
    /// Vectors of sums that stay in registers.
    pub(crate) sums: usize,
    /// Most rows of a tile (MR): a divisor of `sums`.
    pub(crate) rows: usize,
    /// The same of FP4 where totals stay in registers beside the sums; 0 where there is no room.
    pub(crate) rows_of_fp4: usize,
}

/// What an instruction set has for micro-kernels.
pub(crate) const fn registers(set: InstructionSet) -> Registers {
    match set {
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx2 => avx2::Avx2::REGISTERS,
        #[cfg(target_arch = "x86_64")]
        InstructionSet::Avx512 | InstructionSet::Avx512Bf16 | InstructionSet::Amx => {
            avx512::WithoutDots::REGISTERS
        }
        #[cfg(target_arch = "aarch64")]
        InstructionSet::Neon => neon::Neon::REGISTERS,
        _ => scalar::Scalar::REGISTERS,
    }
}

/// The operations on vectors. A value of the type is proof that the machine has the instructions.
///
/// Comparisons with NaN are false. `fma(a, b, c)` is a·b + c in one rounding.
pub(crate) trait Simd: Copy {
    const REGISTERS: Registers;

    /// [`LANES`] f32.
    type F: Copy;
    /// [`LANES`] u32.
    type I: Copy;
    /// [`LANES`] truth values.
    type M: Copy;

    /// Bytes up to which a row is short enough to prefetch the next one meanwhile, as measured.
    const PREFETCHED_ROW: usize = 16 << 10;

    fn splat(self, x: f32) -> Self::F;
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    fn lt(self, a: Self::F, b: Self::F) -> Self::M;
    fn is_nan(self, a: Self::F) -> Self::M;
    fn select(self, mask: Self::M, yes: Self::F, no: Self::F) -> Self::F;
    /// Runs a part that is compiled by itself, once for all kernels that call it. Where that happens
    /// seldom, [`crate::cold::cold_path`] before it keeps the caller's registers for the rest.
    fn call<P: Outlined<Self>>(self, part: P) -> P::Output;

    /// Whether every lane is true.
    fn all(self, mask: Self::M) -> bool;

    fn bits(self, a: Self::F) -> Self::I;
    fn float(self, a: Self::I) -> Self::F;
    fn splat_u32(self, x: u32) -> Self::I;
    /// Wrapping.
    fn add_u32(self, a: Self::I, b: Self::I) -> Self::I;
    fn max_u32(self, a: Self::I, b: Self::I) -> Self::I;
    /// Of the halves of each lane, as all of these with 16 bits.
    fn max_u16(self, a: Self::I, b: Self::I) -> Self::I;
    fn min_u16(self, a: Self::I, b: Self::I) -> Self::I;
    fn min_i16(self, a: Self::I, b: Self::I) -> Self::I;
    /// Whether every half is at most `most`.
    fn at_most_u16(self, a: Self::I, most: u16) -> bool;
    /// Rounds to nearest even: of each half `upper`, or one more, as the 16 bits `below` it say.
    fn round_u16(self, upper: Self::I, below: Self::I) -> Self::I;
    /// The largest lane.
    fn highest(self, a: Self::I) -> u32;
    /// The largest half of a lane.
    #[inline(always)]
    fn highest_u16(self, a: Self::I) -> u32 {
        let low = self.and(a, self.splat_u32(0xffff));
        self.highest(self.max_u32(low, self.shr::<16>(a)))
    }
    fn and(self, a: Self::I, b: Self::I) -> Self::I;
    fn or(self, a: Self::I, b: Self::I) -> Self::I;
    fn shl<const N: u32>(self, a: Self::I) -> Self::I;
    fn shr<const N: u32>(self, a: Self::I) -> Self::I;
    /// Shifts the halves of each lane to the right, each by itself and with its sign.
    fn sar_u16<const N: u32>(self, a: Self::I) -> Self::I;

    /// Of each half of a lane the bf16 of the E2M1 code in its lowest four bits.
    fn e2m1(self, codes: Self::I) -> Self::I;

    /// The even and the odd elements of `a` followed by `b`.
    fn deinterleave(self, a: Self::F, b: Self::F) -> (Self::F, Self::F);

    /// # Safety
    /// [`LANES`] elements can be read; so for all loads. No alignment is asked for.
    unsafe fn load_f32(self, from: *const f32) -> Self::F;
    /// # Safety
    /// [`LANES`] elements can be written; so for all stores.
    unsafe fn store_f32(self, to: *mut f32, a: Self::F);
    /// Stores past the caches where the instruction set can, which [`fence`] must follow.
    ///
    /// # Safety
    /// As [`Self::store_f32`], and the address is a multiple of the vector's size.
    #[inline(always)]
    unsafe fn stream_f32(self, to: *mut f32, a: Self::F) {
        // SAFETY: the caller vouches for it.
        unsafe { self.store_f32(to, a) }
    }
    /// # Safety
    /// As [`Self::load_f32`].
    unsafe fn load_f16(self, from: *const u16) -> Self::F;
    /// # Safety
    /// As [`Self::store_f32`].
    unsafe fn store_f16(self, to: *mut u16, a: Self::F);
    /// [`Self::store_f16`] as [`Self::stream_f32`] stores.
    ///
    /// # Safety
    /// As [`Self::stream_f32`].
    #[inline(always)]
    unsafe fn stream_f16(self, to: *mut u16, a: Self::F) {
        // SAFETY: the caller vouches for it.
        unsafe { self.store_f16(to, a) }
    }
    /// # Safety
    /// As [`Self::load_f32`].
    unsafe fn load_u16(self, from: *const u16) -> Self::I;
    /// Stores the lower halves; the upper ones are 0.
    ///
    /// # Safety
    /// As [`Self::store_f32`].
    unsafe fn store_u16(self, to: *mut u16, a: Self::I);
    /// # Safety
    /// As [`Self::load_f32`].
    unsafe fn load_u8(self, from: *const u8) -> Self::I;
    /// Stores the lowest bytes; the others are 0.
    ///
    /// # Safety
    /// As [`Self::store_f32`].
    unsafe fn store_u8(self, to: *mut u8, a: Self::I);

    /// Stores the E4M3 codes of values of bf16 times `by`, the first's at even places and the second's
    /// at odd ones, where the set has a way that is shorter than operations on
    /// lanes of 32 bits; elsewhere stores nothing and is false. `by` is a power of two, and the products are at most 448.
    ///
    /// # Safety
    /// Two bytes a lane can be written.
    #[inline(always)]
    unsafe fn store_e4m3_of_bf16(self, to: *mut u8, a: [Self::F; 2], by: f32) -> bool {
        let _ = (to, a, by);
        false
    }

    /// As pairs of bf16 what E4M3 codes in words of four are, times a power of two for each lane: each
    /// word's lower two, and the others. `exponents` has in both halves of a lane what to add to a
    /// code's exponent, in the place of bf16's. None where the set has no shorter way than operations
    /// on lanes of 32 bits, and where a code is zero or subnormal.
    #[inline(always)]
    fn bf16_of_e4m3(self, codes: Self::I, exponents: Self::I) -> Option<[Self::I; 2]> {
        let _ = (codes, exponents);
        None
    }

    /// Rounds to f16 and widens again.
    #[inline(always)]
    fn round_f16(self, a: Self::F) -> Self::F {
        let mut halves = [0_u16; LANES];
        // SAFETY: the array has LANES elements.
        unsafe {
            self.store_f16(halves.as_mut_ptr(), a);
            self.load_f16(halves.as_ptr())
        }
    }
    #[inline(always)]
    fn abs(self, a: Self::F) -> Self::F {
        self.float(self.and(self.bits(a), self.splat_u32(0x7fff_ffff)))
    }
    #[inline(always)]
    fn neg(self, a: Self::F) -> Self::F {
        self.sub(self.splat(-0.0), a)
    }
    /// min(a, limit) that lets NaN through, with a limit that is neither NaN nor 0.
    #[inline(always)]
    fn clamp_above(self, a: Self::F, limit: Self::F) -> Self::F {
        self.select(self.lt(limit, a), limit, a)
    }
    /// max(a, limit) that lets NaN through, with a limit as above.
    #[inline(always)]
    fn clamp_below(self, a: Self::F, limit: Self::F) -> Self::F {
        self.select(self.lt(a, limit), limit, a)
    }
    /// Every NaN as the one canonical quiet NaN.
    #[inline(always)]
    fn canonical(self, a: Self::F) -> Self::F {
        self.select(self.is_nan(a), self.splat(f32::from_bits(0x7fc0_0000)), a)
    }
}

/// What multiplies two numbers of bf16 a lane at a time.
pub(crate) trait Dots: Simd {
    /// Adds to a sum the product of the upper halves, then that of the lower ones, each by a fused
    /// multiply-add; subnormal numbers are zero, on the way in and out.
    fn dot(self, x: Self::I, w: Self::I, sum: Self::F) -> Self::F;
}
