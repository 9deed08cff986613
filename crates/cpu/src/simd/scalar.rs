//! Plain Rust, for machines without any of the instruction sets and as the tests' yardstick.
//!
//! Kernels are compiled for every instruction set. Here each operation is a call, so that a kernel
//! is a short list of calls: inlined, this file alone was most of the crate's code and of its build.

use std::array::from_fn;

use swiglu_core::f16;

use super::{Dots, E2M1_AS_BF16, Kernel, LANES, Outlined, Registers, Simd, emulated};

/// Plain Rust.
#[derive(Clone, Copy)]
pub(super) struct Scalar;

type Floats = [f32; LANES];
type Words = [u32; LANES];
type Mask = [bool; LANES];

impl Dots for Scalar {
    #[inline(always)]
    fn dot(self, x: Words, w: Words, sum: Floats) -> Floats {
        dot(&x, &w, &sum)
    }
}

#[inline(never)]
fn dot(x: &Words, w: &Words, sum: &Floats) -> Floats {
    from_fn(|i| emulated::dot(x[i], w[i], sum[i]))
}

/// Methods that are calls of functions of the same name in [`lanes`].
macro_rules! out_of_line {
    ($($name:ident($($a:ident: $of:ty),+) -> $to:ty;)+) => {
        $(#[inline(always)]
        fn $name(self, $($a: $of),+) -> $to {
            lanes::$name($(&$a),+)
        })+
    };
}

impl Simd for Scalar {
    const REGISTERS: Registers = Registers {
        sums: 1,
        rows: 1,
        rows_of_fp4: 0,
    };

    type F = Floats;
    type I = Words;
    type M = Mask;

    #[inline(always)]
    fn call<P: Outlined<Self>>(self, part: P) -> P::Output {
        call(part)
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Floats {
        [x; LANES]
    }
    #[inline(always)]
    fn splat_u32(self, x: u32) -> Words {
        [x; LANES]
    }
    out_of_line! {
        add(a: Floats, b: Floats) -> Floats;
        sub(a: Floats, b: Floats) -> Floats;
        mul(a: Floats, b: Floats) -> Floats;
        div(a: Floats, b: Floats) -> Floats;
        fma(a: Floats, b: Floats, c: Floats) -> Floats;
        lt(a: Floats, b: Floats) -> Mask;
        is_nan(a: Floats) -> Mask;
        select(mask: Mask, yes: Floats, no: Floats) -> Floats;
        all(mask: Mask) -> bool;
        bits(a: Floats) -> Words;
        float(a: Words) -> Floats;
        add_u32(a: Words, b: Words) -> Words;
        max_u32(a: Words, b: Words) -> Words;
        max_u16(a: Words, b: Words) -> Words;
        min_u16(a: Words, b: Words) -> Words;
        min_i16(a: Words, b: Words) -> Words;
        round_u16(upper: Words, below: Words) -> Words;
        highest(a: Words) -> u32;
        and(a: Words, b: Words) -> Words;
        or(a: Words, b: Words) -> Words;
        e2m1(codes: Words) -> Words;
        deinterleave(a: Floats, b: Floats) -> (Floats, Floats);
        round_f16(a: Floats) -> Floats;
        abs(a: Floats) -> Floats;
        neg(a: Floats) -> Floats;
        clamp_above(a: Floats, limit: Floats) -> Floats;
        clamp_below(a: Floats, limit: Floats) -> Floats;
        canonical(a: Floats) -> Floats;
    }
    #[inline(always)]
    fn at_most_u16(self, a: Words, most: u16) -> bool {
        lanes::at_most_u16(&a, most)
    }
    #[inline(always)]
    fn shl<const N: u32>(self, a: Words) -> Words {
        lanes::shl(&a, N)
    }
    #[inline(always)]
    fn shr<const N: u32>(self, a: Words) -> Words {
        lanes::shr(&a, N)
    }
    #[inline(always)]
    fn sar_u16<const N: u32>(self, a: Words) -> Words {
        lanes::sar_u16(&a, N)
    }
    #[inline(always)]
    unsafe fn load_f32(self, from: *const f32) -> Floats {
        // SAFETY: the caller vouches for LANES elements; so below.
        unsafe { from.cast::<Floats>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store_f32(self, to: *mut f32, a: Floats) {
        // SAFETY: as above.
        unsafe { to.cast::<Floats>().write_unaligned(a) }
    }
    #[inline(always)]
    unsafe fn load_f16(self, from: *const u16) -> Floats {
        // SAFETY: as above.
        lanes::from_f16(&unsafe { from.cast::<[u16; LANES]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store_f16(self, to: *mut u16, a: Floats) {
        // SAFETY: as above.
        unsafe { to.cast::<[u16; LANES]>().write_unaligned(lanes::to_f16(&a)) }
    }
    #[inline(always)]
    unsafe fn load_u16(self, from: *const u16) -> Words {
        // SAFETY: as above.
        lanes::from_u16(&unsafe { from.cast::<[u16; LANES]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store_u16(self, to: *mut u16, a: Words) {
        // SAFETY: as above.
        unsafe { to.cast::<[u16; LANES]>().write_unaligned(lanes::to_u16(&a)) }
    }
    #[inline(always)]
    unsafe fn load_u8(self, from: *const u8) -> Words {
        // SAFETY: as above.
        lanes::from_u8(&unsafe { from.cast::<[u8; LANES]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store_u8(self, to: *mut u8, a: Words) {
        // SAFETY: as above.
        unsafe { to.cast::<[u8; LANES]>().write_unaligned(lanes::to_u8(&a)) }
    }
}

/// Runs a kernel.
#[inline(never)]
pub(super) fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Scalar)
}

/// Runs a part of a kernel, out of line.
#[inline(never)]
fn call<P: Outlined<Scalar>>(part: P) -> P::Output {
    part.run(Scalar)
}

/// The operations, each compiled once.
mod lanes {
    use super::*;

    /// Functions that are not inlined.
    macro_rules! functions {
        ($(fn $name:ident($($a:ident: $of:ty),+) -> $to:ty $body:block)+) => {
            $(#[inline(never)]
            pub(super) fn $name($($a: $of),+) -> $to $body)+
        };
    }

    functions! {
        fn add(a: &Floats, b: &Floats) -> Floats { from_fn(|i| a[i] + b[i]) }
        fn sub(a: &Floats, b: &Floats) -> Floats { from_fn(|i| a[i] - b[i]) }
        fn mul(a: &Floats, b: &Floats) -> Floats { from_fn(|i| a[i] * b[i]) }
        fn div(a: &Floats, b: &Floats) -> Floats { from_fn(|i| a[i] / b[i]) }
        fn fma(a: &Floats, b: &Floats, c: &Floats) -> Floats {
            from_fn(|i| a[i].mul_add(b[i], c[i]))
        }
        fn lt(a: &Floats, b: &Floats) -> Mask { from_fn(|i| a[i] < b[i]) }
        fn is_nan(a: &Floats) -> Mask { a.map(f32::is_nan) }
        fn select(mask: &Mask, yes: &Floats, no: &Floats) -> Floats {
            from_fn(|i| if mask[i] { yes[i] } else { no[i] })
        }
        fn all(mask: &Mask) -> bool { mask.iter().all(|m| *m) }
        fn bits(a: &Floats) -> Words { a.map(f32::to_bits) }
        fn float(a: &Words) -> Floats { a.map(f32::from_bits) }
        fn add_u32(a: &Words, b: &Words) -> Words { from_fn(|i| a[i].wrapping_add(b[i])) }
        fn max_u32(a: &Words, b: &Words) -> Words { from_fn(|i| a[i].max(b[i])) }
        fn max_u16(a: &Words, b: &Words) -> Words { halves(a, b, u16::max) }
        fn min_u16(a: &Words, b: &Words) -> Words { halves(a, b, u16::min) }
        fn min_i16(a: &Words, b: &Words) -> Words {
            halves(a, b, |a, b| (a as i16).min(b as i16) as u16)
        }
        fn at_most_u16(a: &Words, most: u16) -> bool {
            a.iter().all(|&x| x as u16 <= most && (x >> 16) as u16 <= most)
        }
        fn round_u16(upper: &Words, below: &Words) -> Words {
            halves(upper, below, |upper, below| {
                let up = below > 0x8000 || below == 0x8000 && upper % 2 == 1;
                upper.wrapping_add(u16::from(up))
            })
        }
        fn highest(a: &Words) -> u32 { a.iter().fold(0, |m, &x| m.max(x)) }
        fn and(a: &Words, b: &Words) -> Words { from_fn(|i| a[i] & b[i]) }
        fn or(a: &Words, b: &Words) -> Words { from_fn(|i| a[i] | b[i]) }
        fn e2m1(codes: &Words) -> Words {
            let half = |code: u32| u32::from(E2M1_AS_BF16[code as usize & 15]);
            codes.map(|c| half(c) | half(c >> 16) << 16)
        }
        fn shl(a: &Words, by: u32) -> Words { a.map(|x| x << by) }
        fn shr(a: &Words, by: u32) -> Words { a.map(|x| x >> by) }
        fn sar_u16(a: &Words, by: u32) -> Words {
            let half = |x: u32| u32::from((x as u16 as i16 >> by) as u16);
            a.map(|x| half(x >> 16) << 16 | half(x))
        }
        fn deinterleave(a: &Floats, b: &Floats) -> (Floats, Floats) {
            let at = |i: usize| if i < LANES { a[i] } else { b[i - LANES] };
            (from_fn(|i| at(2 * i)), from_fn(|i| at(2 * i + 1)))
        }
        fn round_f16(a: &Floats) -> Floats { a.map(|x| f16::from_f32(x).to_f32()) }
        fn abs(a: &Floats) -> Floats { a.map(f32::abs) }
        fn neg(a: &Floats) -> Floats { a.map(|x| -0.0 - x) }
        fn clamp_above(a: &Floats, limit: &Floats) -> Floats {
            from_fn(|i| if limit[i] < a[i] { limit[i] } else { a[i] })
        }
        fn clamp_below(a: &Floats, limit: &Floats) -> Floats {
            from_fn(|i| if a[i] < limit[i] { limit[i] } else { a[i] })
        }
        fn canonical(a: &Floats) -> Floats {
            a.map(|x| if x.is_nan() { f32::from_bits(0x7fc0_0000) } else { x })
        }
        fn from_f16(a: &[u16; LANES]) -> Floats { a.map(|x| f16::from_bits(x).to_f32()) }
        fn to_f16(a: &Floats) -> [u16; LANES] { a.map(|x| f16::from_f32(x).to_bits()) }
        fn from_u16(a: &[u16; LANES]) -> Words { a.map(u32::from) }
        fn to_u16(a: &Words) -> [u16; LANES] { a.map(|x| x as u16) }
        fn from_u8(a: &[u8; LANES]) -> Words { a.map(u32::from) }
        fn to_u8(a: &Words) -> [u8; LANES] { a.map(|x| x as u8) }
    }

    /// An operation on the halves of lanes.
    #[inline(always)]
    fn halves(a: &Words, b: &Words, f: impl Fn(u16, u16) -> u16) -> Words {
        let both = |a: u32, b: u32| {
            let upper = f((a >> 16) as u16, (b >> 16) as u16);
            u32::from(upper) << 16 | u32::from(f(a as u16, b as u16))
        };
        from_fn(|i| both(a[i], b[i]))
    }
}
