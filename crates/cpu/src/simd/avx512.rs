use std::arch::x86_64::*;

use super::avx2::code_bits;
use super::{DotKernel, Dots, E2M1_AS_BF16, Kernel, Outlined, Registers, Simd, TO_F16};

/// AVX-512: one register a vector. With the dot products of bf16 or without.
#[derive(Clone, Copy)]
pub(super) struct Avx512<const DOTS: bool>(());

pub(super) type WithoutDots = Avx512<false>;

/// Runs a kernel.
///
/// # Safety
/// The machine has AVX-512 F, BW, DQ and VL, and AVX2, FMA and F16C.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx512::<false>(()))
}

/// Runs a kernel of dot products.
///
/// # Safety
/// As [`run`], and the machine has AVX-512 BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
pub(super) unsafe fn run_dots<K: DotKernel>(kernel: K) {
    kernel.run(Avx512::<true>(()));
}

/// Runs a part of a kernel, out of line.
///
/// # Safety
/// As [`run`].
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
unsafe fn call<S: Simd, P: Outlined<S>>(s: S, part: P) -> P::Output {
    part.run(s)
}

/// The same of a kernel of dot products.
///
/// # Safety
/// As [`run_dots`].
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
unsafe fn call_dots<S: Simd, P: Outlined<S>>(s: S, part: P) -> P::Output {
    part.run(s)
}

/// Which bytes of a group of four words a shuffle takes into each of them: those of the first, moved on
/// by four from word to word. A byte of 0x80 and more is 0.
#[target_feature(enable = "avx512f")]
fn words_of_bytes(first: u32) -> __m512i {
    let word = |i: u32| (first + i * 0x0400_0400) as i32;
    _mm512_set4_epi32(word(3), word(2), word(1), word(0))
}

/// An expression of intrinsics that touch no memory.
macro_rules! op {
    ($e:expr) => {
        // SAFETY: a value of `Avx512` is only made where the machine has the instructions.
        unsafe { $e }
    };
}

impl<const DOTS: bool> Simd for Avx512<DOTS> {
    // Half of 32 registers, with room for the weights.
    const REGISTERS: Registers = Registers {
        sums: 16,
        rows: 8,
        rows_of_fp4: 6,
    };

    type F = __m512;
    type I = __m512i;
    type M = __mmask16;

    const PREFETCHED_ROW: usize = 24 << 10;

    #[inline(always)]
    fn call<P: Outlined<Self>>(self, part: P) -> P::Output {
        // SAFETY: a value of `Avx512` is only made where the machine has the instructions.
        unsafe {
            match DOTS {
                true => call_dots(self, part),
                false => call(self, part),
            }
        }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        op!(_mm512_set1_ps(x))
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm512_add_ps(a, b))
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm512_sub_ps(a, b))
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm512_mul_ps(a, b))
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm512_div_ps(a, b))
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        op!(_mm512_fmadd_ps(a, b, c))
    }
    #[inline(always)]
    fn lt(self, a: Self::F, b: Self::F) -> Self::M {
        op!(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b))
    }
    #[inline(always)]
    fn is_nan(self, a: Self::F) -> Self::M {
        op!(_mm512_cmp_ps_mask::<_CMP_UNORD_Q>(a, a))
    }
    #[inline(always)]
    fn select(self, mask: Self::M, yes: Self::F, no: Self::F) -> Self::F {
        op!(_mm512_mask_blend_ps(mask, no, yes))
    }
    #[inline(always)]
    fn all(self, mask: Self::M) -> bool {
        mask == 0xffff
    }
    #[inline(always)]
    fn clamp_above(self, a: Self::F, limit: Self::F) -> Self::F {
        // Of a NaN and a number the instruction gives its second operand.
        op!(_mm512_min_ps(limit, a))
    }
    #[inline(always)]
    fn clamp_below(self, a: Self::F, limit: Self::F) -> Self::F {
        op!(_mm512_max_ps(limit, a))
    }
    #[inline(always)]
    fn bits(self, a: Self::F) -> Self::I {
        op!(_mm512_castps_si512(a))
    }
    #[inline(always)]
    fn float(self, a: Self::I) -> Self::F {
        op!(_mm512_castsi512_ps(a))
    }
    #[inline(always)]
    fn splat_u32(self, x: u32) -> Self::I {
        op!(_mm512_set1_epi32(x as i32))
    }
    #[inline(always)]
    fn add_u32(self, a: Self::I, b: Self::I) -> Self::I {
        op!(_mm512_add_epi32(a, b))
    }
    #[inline(always)]
    fn max_u32(self, a: Self::I, b: Self::I) -> Self::I {
        op!(_mm512_max_epu32(a, b))
    }
    #[inline(always)]
    fn max_u16(self, a: Self::I, b: Self::I) -> Self::I {
        op!(_mm512_max_epu16(a, b))
    }
    #[inline(always)]
    fn min_u16(self, a: Self::I, b: Self::I) -> Self::I {
        op!(_mm512_min_epu16(a, b))
    }
    #[inline(always)]
    fn min_i16(self, a: Self::I, b: Self::I) -> Self::I {
        op!(_mm512_min_epi16(a, b))
    }
    #[inline(always)]
    fn at_most_u16(self, a: Self::I, most: u16) -> bool {
        op!(_mm512_cmpgt_epu16_mask(a, _mm512_set1_epi16(most as i16))) == 0
    }
    #[inline(always)]
    fn round_u16(self, upper: Self::I, below: Self::I) -> Self::I {
        op!({
            // Above the middle, or on it and odd: with that 1 the distance from it is positive.
            let one = _mm512_set1_epi16(1);
            let distance = _mm512_xor_si512(below, _mm512_set1_epi16(i16::MIN));
            let distance = _mm512_adds_epi16(distance, _mm512_and_si512(upper, one));
            let up = _mm512_cmpgt_epi16_mask(distance, _mm512_setzero_si512());
            _mm512_mask_add_epi16(upper, up, upper, one)
        })
    }
    #[inline(always)]
    fn highest(self, a: Self::I) -> u32 {
        op!(_mm512_reduce_max_epu32(a))
    }
    #[inline(always)]
    fn highest_u16(self, a: Self::I) -> u32 {
        op!({
            let upper = _mm512_extracti64x4_epi64::<1>(a);
            let half = _mm256_max_epu16(_mm512_castsi512_si256(a), upper);
            let upper = _mm256_extracti128_si256::<1>(half);
            let eight = _mm_max_epu16(_mm256_castsi256_si128(half), upper);
            // There is an instruction for the least of eight.
            let least = _mm_minpos_epu16(_mm_xor_si128(eight, _mm_set1_epi16(-1)));
            !_mm_cvtsi128_si32(least) as u32 & 0xffff
        })
    }
    #[inline(always)]
    fn and(self, a: Self::I, b: Self::I) -> Self::I {
        op!(_mm512_and_si512(a, b))
    }
    #[inline(always)]
    fn or(self, a: Self::I, b: Self::I) -> Self::I {
        op!(_mm512_or_si512(a, b))
    }
    #[inline(always)]
    fn shl<const N: u32>(self, a: Self::I) -> Self::I {
        op!(_mm512_slli_epi32::<N>(a))
    }
    #[inline(always)]
    fn shr<const N: u32>(self, a: Self::I) -> Self::I {
        op!(_mm512_srli_epi32::<N>(a))
    }
    #[inline(always)]
    fn sar_u16<const N: u32>(self, a: Self::I) -> Self::I {
        op!(_mm512_srai_epi16::<N>(a))
    }
    #[inline(always)]
    fn e2m1(self, codes: Self::I) -> Self::I {
        // An index is the lowest five bits, so the table is there twice.
        const TABLE: [[u16; 16]; 2] = [E2M1_AS_BF16; 2];
        op!({
            let table = _mm512_loadu_si512(TABLE.as_ptr().cast());
            _mm512_permutexvar_epi16(codes, table)
        })
    }
    #[inline(always)]
    fn deinterleave(self, a: Self::F, b: Self::F) -> (Self::F, Self::F) {
        op!({
            let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
            (
                _mm512_permutex2var_ps(a, even, b),
                _mm512_permutex2var_ps(a, odd, b),
            )
        })
    }
    #[inline(always)]
    unsafe fn load_f32(self, from: *const f32) -> Self::F {
        // SAFETY: the caller vouches for 16 elements; so below.
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store_f32(self, to: *mut f32, a: Self::F) {
        // SAFETY: as above.
        unsafe { _mm512_storeu_ps(to, a) }
    }
    #[inline(always)]
    unsafe fn stream_f32(self, to: *mut f32, a: Self::F) {
        // SAFETY: as above; the address is a multiple of 64.
        unsafe { _mm512_stream_ps(to, a) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, from: *const u16) -> Self::F {
        // SAFETY: as above.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut u16, a: Self::F) {
        // SAFETY: as above.
        unsafe {
            let raw = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(a);
            _mm256_storeu_si256(to.cast(), raw);
        }
    }
    #[inline(always)]
    unsafe fn stream_f16(self, to: *mut u16, a: Self::F) {
        // SAFETY: as above; the address is a multiple of 32.
        unsafe {
            let raw = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(a);
            _mm256_stream_si256(to.cast(), raw);
        }
    }
    #[inline(always)]
    unsafe fn store_e4m3_of_bf16(self, to: *mut u8, a: [Self::F; 2], by: f32) -> bool {
        let by = self.splat(by * TO_F16);
        let [even, odd] = [self.mul(a[0], by), self.mul(a[1], by)];
        // SAFETY: the caller vouches for 32 bytes.
        unsafe {
            let even = code_bits(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(even));
            let odd = code_bits(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(odd));
            // A code's magnitude lies above the lowest seven bits, its sign in the highest.
            let mask = |bits: u16| _mm256_set1_epi16(bits as i16);
            const SELECT: i32 = 0xca;
            let (low, sign) = (_mm256_srli_epi16::<7>(even), _mm256_srli_epi16::<8>(even));
            let even = _mm256_ternarylogic_epi32::<SELECT>(mask(0x7f), low, sign);
            let odd =
                _mm256_ternarylogic_epi32::<SELECT>(mask(0x8000), odd, _mm256_add_epi16(odd, odd));
            let codes = _mm256_ternarylogic_epi32::<SELECT>(mask(0xff), even, odd);
            _mm256_storeu_si256(to.cast(), codes);
        }
        true
    }
    #[inline(always)]
    fn bf16_of_e4m3(self, codes: Self::I, exponents: Self::I) -> Option<[Self::I; 2]> {
        op!({
            if _mm512_testn_epi8_mask(codes, _mm512_set1_epi8(0x78)) != 0 {
                return None;
            }
            // Two codes of each word, in the upper bytes of its halves.
            let first = _mm512_shuffle_epi8(codes, words_of_bytes(0x0180_0080));
            let second = _mm512_shuffle_epi8(codes, words_of_bytes(0x0380_0280));
            let places = _mm512_set1_epi32(0x87f0_87f0_u32 as i32);
            let first = _mm512_and_si512(_mm512_srai_epi16::<4>(first), places);
            let second = _mm512_and_si512(_mm512_srai_epi16::<4>(second), places);
            Some([
                _mm512_add_epi16(first, exponents),
                _mm512_add_epi16(second, exponents),
            ])
        })
    }
    #[inline(always)]
    fn round_f16(self, a: Self::F) -> Self::F {
        op!(_mm512_cvtph_ps(
            _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(a)
        ))
    }
    #[inline(always)]
    unsafe fn load_u16(self, from: *const u16) -> Self::I {
        // SAFETY: as above.
        unsafe { _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn store_u16(self, to: *mut u16, a: Self::I) {
        // SAFETY: as above.
        unsafe { _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(a)) }
    }
    #[inline(always)]
    unsafe fn load_u8(self, from: *const u8) -> Self::I {
        // SAFETY: as above.
        unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    unsafe fn store_u8(self, to: *mut u8, a: Self::I) {
        // SAFETY: as above.
        unsafe { _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(a)) }
    }
}

impl Dots for Avx512<true> {
    #[inline(always)]
    fn dot(self, x: Self::I, w: Self::I, sum: Self::F) -> Self::F {
        op!(_mm512_dpbf16_ps(sum, bf16s(x), bf16s(w)))
    }
}

/// Bits as numbers of bf16.
#[inline]
#[target_feature(enable = "avx512f")]
fn bf16s(bits: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes, of which all are numbers.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(bits) }
}
