use std::arch::x86_64::*;

use super::{Kernel, Outlined, Registers, Simd, TO_F16, e2m1_bytes};

/// AVX2, FMA and F16C: two registers a vector.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

/// Runs a kernel.
///
/// # Safety
/// The machine has AVX2, FMA and F16C.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Avx2(()))
}

/// Runs a part of a kernel, out of line.
///
/// # Safety
/// As [`run`].
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn call<P: Outlined<Avx2>>(part: P) -> P::Output {
    part.run(Avx2(()))
}

/// An intrinsic on both registers of its vector arguments.
macro_rules! both {
    ($f:path; $($a:expr),+) => {
        // SAFETY: a value of `Avx2` is only made where the machine has the instructions.
        unsafe { [$f($($a[0]),+), $f($($a[1]),+)] }
    };
}

impl Simd for Avx2 {
    // Twelve of sixteen registers.
    const REGISTERS: Registers = Registers {
        sums: 6,
        rows: 6,
        rows_of_fp4: 0,
    };

    type F = [__m256; 2];
    type I = [__m256i; 2];
    type M = [__m256; 2];

    #[inline(always)]
    fn call<P: Outlined<Self>>(self, part: P) -> P::Output {
        // SAFETY: a value of `Avx2` is only made where the machine has the instructions.
        unsafe { call(part) }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        // SAFETY: as in `both`; so below.
        unsafe { [_mm256_set1_ps(x); 2] }
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_add_ps; a, b)
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_sub_ps; a, b)
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_mul_ps; a, b)
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        both!(_mm256_div_ps; a, b)
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        both!(_mm256_fmadd_ps; a, b, c)
    }
    #[inline(always)]
    fn lt(self, a: Self::F, b: Self::F) -> Self::M {
        both!(_mm256_cmp_ps::<_CMP_LT_OQ>; a, b)
    }
    #[inline(always)]
    fn is_nan(self, a: Self::F) -> Self::M {
        both!(_mm256_cmp_ps::<_CMP_UNORD_Q>; a, a)
    }
    #[inline(always)]
    fn select(self, mask: Self::M, yes: Self::F, no: Self::F) -> Self::F {
        both!(_mm256_blendv_ps; no, yes, mask)
    }
    #[inline(always)]
    fn all(self, mask: Self::M) -> bool {
        // SAFETY: as in `both`.
        unsafe { _mm256_movemask_ps(_mm256_and_ps(mask[0], mask[1])) == 0xff }
    }
    #[inline(always)]
    fn clamp_above(self, a: Self::F, limit: Self::F) -> Self::F {
        // Of a NaN and a number the instruction gives its second operand.
        both!(_mm256_min_ps; limit, a)
    }
    #[inline(always)]
    fn clamp_below(self, a: Self::F, limit: Self::F) -> Self::F {
        both!(_mm256_max_ps; limit, a)
    }
    #[inline(always)]
    fn bits(self, a: Self::F) -> Self::I {
        both!(_mm256_castps_si256; a)
    }
    #[inline(always)]
    fn float(self, a: Self::I) -> Self::F {
        both!(_mm256_castsi256_ps; a)
    }
    #[inline(always)]
    fn splat_u32(self, x: u32) -> Self::I {
        // SAFETY: as in `both`.
        unsafe { [_mm256_set1_epi32(x as i32); 2] }
    }
    #[inline(always)]
    fn add_u32(self, a: Self::I, b: Self::I) -> Self::I {
        both!(_mm256_add_epi32; a, b)
    }
    #[inline(always)]
    fn max_u32(self, a: Self::I, b: Self::I) -> Self::I {
        both!(_mm256_max_epu32; a, b)
    }
    #[inline(always)]
    fn max_u16(self, a: Self::I, b: Self::I) -> Self::I {
        both!(_mm256_max_epu16; a, b)
    }
    #[inline(always)]
    fn min_u16(self, a: Self::I, b: Self::I) -> Self::I {
        both!(_mm256_min_epu16; a, b)
    }
    #[inline(always)]
    fn min_i16(self, a: Self::I, b: Self::I) -> Self::I {
        both!(_mm256_min_epi16; a, b)
    }
    #[inline(always)]
    fn at_most_u16(self, a: Self::I, most: u16) -> bool {
        // SAFETY: as in `both`.
        unsafe {
            let largest = _mm256_max_epu16(a[0], a[1]);
            let above = _mm256_subs_epu16(largest, _mm256_set1_epi16(most as i16));
            _mm256_testz_si256(above, above) == 1
        }
    }
    #[inline(always)]
    fn round_u16(self, upper: Self::I, below: Self::I) -> Self::I {
        // Above the middle, or on it and odd: with that 1 the distance from it is positive.
        let one = self.splat_u32(0x0001_0001);
        let middle = self.splat_u32(0x8000_8000);
        let (odd, distance) = (self.and(upper, one), both!(_mm256_xor_si256; below, middle));
        let distance = both!(_mm256_adds_epi16; distance, odd);
        // All bits of a half, which is -1.
        let up = both!(_mm256_cmpgt_epi16; distance, self.splat_u32(0));
        both!(_mm256_sub_epi16; upper, up)
    }
    #[inline(always)]
    fn highest(self, a: Self::I) -> u32 {
        // SAFETY: as in `both`.
        unsafe {
            let eight = _mm256_max_epu32(a[0], a[1]);
            let half = _mm256_extracti128_si256::<1>(eight);
            let four = _mm_max_epu32(_mm256_castsi256_si128(eight), half);
            let two = _mm_max_epu32(four, _mm_unpackhi_epi64(four, four));
            _mm_cvtsi128_si32(_mm_max_epu32(two, _mm_shuffle_epi32::<1>(two))) as u32
        }
    }
    #[inline(always)]
    fn and(self, a: Self::I, b: Self::I) -> Self::I {
        both!(_mm256_and_si256; a, b)
    }
    #[inline(always)]
    fn or(self, a: Self::I, b: Self::I) -> Self::I {
        both!(_mm256_or_si256; a, b)
    }
    #[inline(always)]
    fn shl<const N: u32>(self, a: Self::I) -> Self::I {
        // SAFETY: as in `both`.
        let by = unsafe { [_mm256_set1_epi32(N as i32); 2] };
        both!(_mm256_sllv_epi32; a, by)
    }
    #[inline(always)]
    fn shr<const N: u32>(self, a: Self::I) -> Self::I {
        // SAFETY: as in `both`.
        let by = unsafe { [_mm256_set1_epi32(N as i32); 2] };
        both!(_mm256_srlv_epi32; a, by)
    }
    #[inline(always)]
    fn sar_u16<const N: u32>(self, a: Self::I) -> Self::I {
        // SAFETY: as in `both`.
        let by = unsafe { [_mm_cvtsi32_si128(N as i32); 2] };
        both!(_mm256_sra_epi16; a, by)
    }
    #[inline(always)]
    fn e2m1(self, codes: Self::I) -> Self::I {
        const BYTES: [[u8; 16]; 2] = [e2m1_bytes(0), e2m1_bytes(8)];
        // SAFETY: as in `both`.
        let [low, high, mask] = unsafe {
            let [low, high] = BYTES.each_ref().map(|b| _mm_loadu_si128(b.as_ptr().cast()));
            let both = |table| [_mm256_broadcastsi128_si256(table); 2];
            [both(low), both(high), [_mm256_set1_epi16(15); 2]]
        };
        // The upper bytes of the halves are 0 by then, and so are those of the table's code 0.
        let codes = both!(_mm256_and_si256; codes, mask);
        let high = both!(_mm256_shuffle_epi8; high, codes);
        let high = both!(_mm256_slli_epi16::<8>; high);
        self.or(both!(_mm256_shuffle_epi8; low, codes), high)
    }
    #[inline(always)]
    fn deinterleave(self, a: Self::F, b: Self::F) -> (Self::F, Self::F) {
        // SAFETY: as in `both`.
        unsafe {
            let order = _mm256_setr_epi32(0, 1, 4, 5, 2, 3, 6, 7);
            let even = |v: Self::F| _mm256_shuffle_ps::<0b10_00_10_00>(v[0], v[1]);
            let odd = |v: Self::F| _mm256_shuffle_ps::<0b11_01_11_01>(v[0], v[1]);
            let sort = |v| _mm256_permutevar8x32_ps(v, order);
            let (e, o) = ([even(a), even(b)], [odd(a), odd(b)]);
            ([sort(e[0]), sort(e[1])], [sort(o[0]), sort(o[1])])
        }
    }
    #[inline(always)]
    unsafe fn load_f32(self, from: *const f32) -> Self::F {
        // SAFETY: the caller vouches for 16 elements; so below.
        unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
    }
    #[inline(always)]
    unsafe fn store_f32(self, to: *mut f32, a: Self::F) {
        // SAFETY: as above.
        unsafe {
            _mm256_storeu_ps(to, a[0]);
            _mm256_storeu_ps(to.add(8), a[1]);
        }
    }
    #[inline(always)]
    unsafe fn stream_f32(self, to: *mut f32, a: Self::F) {
        // SAFETY: as above; the address is a multiple of 64.
        unsafe {
            _mm256_stream_ps(to, a[0]);
            _mm256_stream_ps(to.add(8), a[1]);
        }
    }
    #[inline(always)]
    unsafe fn load_f16(self, from: *const u16) -> Self::F {
        // SAFETY: as above.
        let raw = unsafe { halves(from) };
        both!(_mm256_cvtph_ps; raw)
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut u16, a: Self::F) {
        let raw = both!(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>; a);
        // SAFETY: as above.
        unsafe {
            _mm_storeu_si128(to.cast(), raw[0]);
            _mm_storeu_si128(to.add(8).cast(), raw[1]);
        }
    }
    #[inline(always)]
    unsafe fn stream_f16(self, to: *mut u16, a: Self::F) {
        let raw = both!(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>; a);
        // SAFETY: as above; the address is a multiple of 32.
        unsafe {
            _mm_stream_si128(to.cast(), raw[0]);
            _mm_stream_si128(to.add(8).cast(), raw[1]);
        }
    }
    #[inline(always)]
    unsafe fn store_e4m3_of_bf16(self, to: *mut u8, a: [Self::F; 2], by: f32) -> bool {
        let by = self.splat(by * TO_F16);
        let [even, odd] = [self.mul(a[0], by), self.mul(a[1], by)];
        let even = both!(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>; even);
        let odd = both!(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>; odd);
        // SAFETY: the caller vouches for 32 bytes.
        unsafe {
            let even = code_bits(_mm256_set_m128i(even[1], even[0]));
            let odd = code_bits(_mm256_set_m128i(odd[1], odd[0]));
            // A code's magnitude lies above the lowest seven bits, its sign in the highest.
            let mask = |bits: u16| _mm256_set1_epi16(bits as i16);
            let low = _mm256_and_si256(_mm256_srli_epi16::<7>(even), mask(0x7f));
            let sign = _mm256_and_si256(_mm256_srli_epi16::<8>(even), mask(0x80));
            let even = _mm256_or_si256(low, sign);
            let high = _mm256_and_si256(_mm256_add_epi16(odd, odd), mask(0x7f00));
            let sign = _mm256_and_si256(odd, mask(0x8000));
            let odd = _mm256_or_si256(high, sign);
            _mm256_storeu_si256(to.cast(), _mm256_or_si256(even, odd));
        }
        true
    }
    #[inline(always)]
    fn round_f16(self, a: Self::F) -> Self::F {
        let raw = both!(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>; a);
        both!(_mm256_cvtph_ps; raw)
    }
    #[inline(always)]
    unsafe fn load_u16(self, from: *const u16) -> Self::I {
        // SAFETY: as above.
        let raw = unsafe { halves(from) };
        both!(_mm256_cvtepu16_epi32; raw)
    }
    #[inline(always)]
    unsafe fn store_u16(self, to: *mut u16, a: Self::I) {
        // SAFETY: as above.
        unsafe { _mm256_storeu_si256(to.cast(), pack(a)) }
    }
    #[inline(always)]
    unsafe fn load_u8(self, from: *const u8) -> Self::I {
        // SAFETY: as above.
        let raw = unsafe {
            let v = _mm_loadu_si128(from.cast());
            [v, _mm_unpackhi_epi64(v, v)]
        };
        both!(_mm256_cvtepu8_epi32; raw)
    }
    #[inline(always)]
    unsafe fn store_u8(self, to: *mut u8, a: Self::I) {
        // SAFETY: as above.
        unsafe {
            let sorted = pack(a);
            let low = _mm256_castsi256_si128(sorted);
            let high = _mm256_extracti128_si256::<1>(sorted);
            _mm_storeu_si128(to.cast(), _mm_packus_epi16(low, high));
        }
    }
}

/// # Safety
/// 16 elements can be read, and the machine has SSE2.
#[inline(always)]
unsafe fn halves(from: *const u16) -> [__m128i; 2] {
    // SAFETY: the caller vouches for it.
    unsafe {
        [
            _mm_loadu_si128(from.cast()),
            _mm_loadu_si128(from.add(8).cast()),
        ]
    }
}

/// Lanes below 2^16 as 16 bits.
///
/// # Safety
/// The machine has AVX2.
#[inline(always)]
unsafe fn pack(a: [__m256i; 2]) -> __m256i {
    // SAFETY: the caller vouches for it. The pack works in 128-bit lanes; the permutation puts them
    // in order.
    unsafe {
        let packed = _mm256_packus_epi32(a[0], a[1]);
        _mm256_permute4x64_epi64::<0b11_01_10_00>(packed)
    }
}

/// f16 rounded to nearest even where E4M3 codes end, 7 bits from the lowest, which are left over.
///
/// # Safety
/// The machine has AVX2.
#[inline(always)]
pub(super) unsafe fn code_bits(halves: __m256i) -> __m256i {
    // SAFETY: the caller vouches for it.
    unsafe {
        let odd = _mm256_and_si256(_mm256_srli_epi16::<7>(halves), _mm256_set1_epi16(1));
        _mm256_add_epi16(halves, _mm256_add_epi16(odd, _mm256_set1_epi16(0x3f)))
    }
}
