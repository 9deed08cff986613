use std::arch::aarch64::*;
use std::array::from_fn;

use swiglu_core::f16;

use super::{Kernel, LANES, Outlined, Registers, Simd, e2m1_bytes};

/// NEON: four registers a vector. Conversions from and to f16 go through memory, an element at a
/// time, as the instructions for them are not in stable Rust.
#[derive(Clone, Copy)]
pub(super) struct Neon(());

/// Runs a kernel.
///
/// # Safety
/// The machine has NEON.
#[target_feature(enable = "neon")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Neon(()))
}

/// Runs a part of a kernel, out of line.
///
/// # Safety
/// As [`run`].
#[inline(never)]
#[target_feature(enable = "neon")]
unsafe fn call<P: Outlined<Neon>>(part: P) -> P::Output {
    part.run(Neon(()))
}

/// An intrinsic on all four registers of its vector arguments.
macro_rules! all {
    ($f:path; $($a:expr),+) => {
        // SAFETY: a value of `Neon` is only made where the machine has the instructions.
        from_fn(|i| unsafe { $f($($a[i]),+) })
    };
}

/// An intrinsic on the halves of lanes.
macro_rules! halves {
    ($f:path, u16; $a:expr, $b:expr) => {
        // SAFETY: as in `all`.
        from_fn(|i| unsafe {
            let (a, b) = (vreinterpretq_u16_u32($a[i]), vreinterpretq_u16_u32($b[i]));
            vreinterpretq_u32_u16($f(a, b))
        })
    };
    ($f:path, s16; $a:expr, $b:expr) => {
        // SAFETY: as in `all`.
        from_fn(|i| unsafe {
            let (a, b) = (vreinterpretq_s16_u32($a[i]), vreinterpretq_s16_u32($b[i]));
            vreinterpretq_u32_s16($f(a, b))
        })
    };
}

impl Simd for Neon {
    // Twenty-four of 32 registers.
    const REGISTERS: Registers = Registers {
        sums: 6,
        rows: 6,
        rows_of_fp4: 0,
    };

    type F = [float32x4_t; 4];
    type I = [uint32x4_t; 4];
    type M = [uint32x4_t; 4];

    #[inline(always)]
    fn call<P: Outlined<Self>>(self, part: P) -> P::Output {
        // SAFETY: a value of `Neon` is only made where the machine has the instructions.
        unsafe { call(part) }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Self::F {
        // SAFETY: as in `all`; so below.
        unsafe { [vdupq_n_f32(x); 4] }
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        all!(vaddq_f32; a, b)
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        all!(vsubq_f32; a, b)
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        all!(vmulq_f32; a, b)
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        all!(vdivq_f32; a, b)
    }
    #[inline(always)]
    fn fma(self, a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // The instruction takes what is added first.
        all!(vfmaq_f32; c, a, b)
    }
    #[inline(always)]
    fn lt(self, a: Self::F, b: Self::F) -> Self::M {
        all!(vcltq_f32; a, b)
    }
    #[inline(always)]
    fn is_nan(self, a: Self::F) -> Self::M {
        let number: Self::M = all!(vceqq_f32; a, a);
        all!(vmvnq_u32; number)
    }
    #[inline(always)]
    fn select(self, mask: Self::M, yes: Self::F, no: Self::F) -> Self::F {
        all!(vbslq_f32; mask, yes, no)
    }
    #[inline(always)]
    fn all(self, mask: Self::M) -> bool {
        // SAFETY: as in `all`.
        unsafe {
            let half = vandq_u32(vandq_u32(mask[0], mask[1]), vandq_u32(mask[2], mask[3]));
            vminvq_u32(half) == u32::MAX
        }
    }
    #[inline(always)]
    fn clamp_above(self, a: Self::F, limit: Self::F) -> Self::F {
        // The instruction lets NaN through.
        all!(vminq_f32; a, limit)
    }
    #[inline(always)]
    fn clamp_below(self, a: Self::F, limit: Self::F) -> Self::F {
        all!(vmaxq_f32; a, limit)
    }
    #[inline(always)]
    fn bits(self, a: Self::F) -> Self::I {
        all!(vreinterpretq_u32_f32; a)
    }
    #[inline(always)]
    fn float(self, a: Self::I) -> Self::F {
        all!(vreinterpretq_f32_u32; a)
    }
    #[inline(always)]
    fn splat_u32(self, x: u32) -> Self::I {
        // SAFETY: as in `all`.
        unsafe { [vdupq_n_u32(x); 4] }
    }
    #[inline(always)]
    fn add_u32(self, a: Self::I, b: Self::I) -> Self::I {
        all!(vaddq_u32; a, b)
    }
    #[inline(always)]
    fn max_u32(self, a: Self::I, b: Self::I) -> Self::I {
        all!(vmaxq_u32; a, b)
    }
    #[inline(always)]
    fn max_u16(self, a: Self::I, b: Self::I) -> Self::I {
        halves!(vmaxq_u16, u16; a, b)
    }
    #[inline(always)]
    fn min_u16(self, a: Self::I, b: Self::I) -> Self::I {
        halves!(vminq_u16, u16; a, b)
    }
    #[inline(always)]
    fn min_i16(self, a: Self::I, b: Self::I) -> Self::I {
        halves!(vminq_s16, s16; a, b)
    }
    #[inline(always)]
    fn at_most_u16(self, a: Self::I, most: u16) -> bool {
        let half = self.max_u16([a[0], a[1], a[0], a[1]], [a[2], a[3], a[2], a[3]]);
        // SAFETY: as in `all`.
        unsafe {
            let both = vmaxq_u16(
                vreinterpretq_u16_u32(half[0]),
                vreinterpretq_u16_u32(half[1]),
            );
            vmaxvq_u16(both) <= most
        }
    }
    #[inline(always)]
    fn round_u16(self, upper: Self::I, below: Self::I) -> Self::I {
        from_fn(|i| {
            // SAFETY: as in `all`.
            unsafe {
                // Above the middle, or on it and odd: with that 1 the distance from it is positive.
                let upper = vreinterpretq_u16_u32(upper[i]);
                let odd = vreinterpretq_s16_u16(vandq_u16(upper, vdupq_n_u16(1)));
                let distance = veorq_u16(vreinterpretq_u16_u32(below[i]), vdupq_n_u16(1 << 15));
                let up = vcgtzq_s16(vqaddq_s16(vreinterpretq_s16_u16(distance), odd));
                // All bits of a half, which is -1.
                vreinterpretq_u32_u16(vsubq_u16(upper, up))
            }
        })
    }
    #[inline(always)]
    fn highest(self, a: Self::I) -> u32 {
        // SAFETY: as in `all`.
        unsafe { vmaxvq_u32(vmaxq_u32(vmaxq_u32(a[0], a[1]), vmaxq_u32(a[2], a[3]))) }
    }
    #[inline(always)]
    fn and(self, a: Self::I, b: Self::I) -> Self::I {
        all!(vandq_u32; a, b)
    }
    #[inline(always)]
    fn or(self, a: Self::I, b: Self::I) -> Self::I {
        all!(vorrq_u32; a, b)
    }
    #[inline(always)]
    fn shl<const N: u32>(self, a: Self::I) -> Self::I {
        // SAFETY: as in `all`.
        let by = unsafe { [vdupq_n_s32(N as i32); 4] };
        all!(vshlq_u32; a, by)
    }
    #[inline(always)]
    fn shr<const N: u32>(self, a: Self::I) -> Self::I {
        // SAFETY: as in `all`. A negative shift to the left is one to the right.
        let by = unsafe { [vdupq_n_s32(-(N as i32)); 4] };
        all!(vshlq_u32; a, by)
    }
    #[inline(always)]
    fn sar_u16<const N: u32>(self, a: Self::I) -> Self::I {
        // SAFETY: as in `all`. A negative shift to the left is one to the right.
        let by = unsafe { vdupq_n_s16(-(N as i16)) };
        from_fn(|i| {
            // SAFETY: as in `all`.
            unsafe { vreinterpretq_u32_s16(vshlq_s16(vreinterpretq_s16_u32(a[i]), by)) }
        })
    }
    #[inline(always)]
    fn e2m1(self, codes: Self::I) -> Self::I {
        const BYTES: [[u8; 16]; 2] = [e2m1_bytes(0), e2m1_bytes(8)];
        // SAFETY: as in `all`. The upper bytes of the halves are 0 in between, and so are those of the
        // table's code 0.
        from_fn(|i| unsafe {
            let [low, high] = BYTES.each_ref().map(|bytes| vld1q_u8(bytes.as_ptr()));
            let codes = vandq_u16(vreinterpretq_u16_u32(codes[i]), vdupq_n_u16(15));
            let codes = vreinterpretq_u8_u16(codes);
            let high = vshlq_n_u16::<8>(vreinterpretq_u16_u8(vqtbl1q_u8(high, codes)));
            let low = vreinterpretq_u16_u8(vqtbl1q_u8(low, codes));
            vreinterpretq_u32_u16(vorrq_u16(low, high))
        })
    }
    #[inline(always)]
    fn deinterleave(self, a: Self::F, b: Self::F) -> (Self::F, Self::F) {
        let pair = |i: usize| {
            if i < 2 {
                (a[2 * i], a[2 * i + 1])
            } else {
                (b[2 * i - 4], b[2 * i - 3])
            }
        };
        (
            // SAFETY (both): as in `all`.
            from_fn(|i| unsafe { vuzp1q_f32(pair(i).0, pair(i).1) }),
            // SAFETY: as above.
            from_fn(|i| unsafe { vuzp2q_f32(pair(i).0, pair(i).1) }),
        )
    }
    #[inline(always)]
    unsafe fn load_f32(self, from: *const f32) -> Self::F {
        // SAFETY: the caller vouches for 16 elements; so below.
        from_fn(|i| unsafe { vld1q_f32(from.add(4 * i)) })
    }
    #[inline(always)]
    unsafe fn store_f32(self, to: *mut f32, a: Self::F) {
        for (i, a) in a.into_iter().enumerate() {
            // SAFETY: as above.
            unsafe { vst1q_f32(to.add(4 * i), a) };
        }
    }
    #[inline(always)]
    unsafe fn load_f16(self, from: *const u16) -> Self::F {
        // SAFETY: as above.
        let halves: [u16; LANES] = unsafe { from.cast::<[u16; LANES]>().read_unaligned() };
        let values = halves.map(|h| f16::from_bits(h).to_f32());
        // SAFETY: the array has 16 elements.
        unsafe { self.load_f32(values.as_ptr()) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut u16, a: Self::F) {
        let mut values = [0.0; LANES];
        // SAFETY: the array has 16 elements, and so has the caller's memory.
        unsafe {
            self.store_f32(values.as_mut_ptr(), a);
            let halves = values.map(|v| f16::from_f32(v).to_bits());
            to.cast::<[u16; LANES]>().write_unaligned(halves);
        }
    }
    #[inline(always)]
    unsafe fn load_u16(self, from: *const u16) -> Self::I {
        from_fn(|i| {
            // SAFETY: as above.
            unsafe { vmovl_u16(vld1_u16(from.add(4 * i))) }
        })
    }
    #[inline(always)]
    unsafe fn store_u16(self, to: *mut u16, a: Self::I) {
        for (i, a) in a.into_iter().enumerate() {
            // SAFETY: as above.
            unsafe { vst1_u16(to.add(4 * i), vmovn_u32(a)) };
        }
    }
    #[inline(always)]
    unsafe fn load_u8(self, from: *const u8) -> Self::I {
        // SAFETY: as above; each half of each half is widened on its own.
        unsafe {
            let v = vld1q_u8(from);
            let (low, high) = (vmovl_u8(vget_low_u8(v)), vmovl_u8(vget_high_u8(v)));
            [
                vmovl_u16(vget_low_u16(low)),
                vmovl_u16(vget_high_u16(low)),
                vmovl_u16(vget_low_u16(high)),
                vmovl_u16(vget_high_u16(high)),
            ]
        }
    }
    #[inline(always)]
    unsafe fn store_u8(self, to: *mut u8, a: Self::I) {
        // SAFETY: as above.
        unsafe {
            let low = vcombine_u16(vmovn_u32(a[0]), vmovn_u32(a[1]));
            let high = vcombine_u16(vmovn_u32(a[2]), vmovn_u32(a[3]));
            vst1q_u8(to, vcombine_u8(vmovn_u16(low), vmovn_u16(high)));
        }
    }
}
