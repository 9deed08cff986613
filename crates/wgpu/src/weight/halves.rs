//! Powers of two under which a weight is exact in f16, for cooperative matrices.
//!
//! ## Method
//! 1. A row of bf16 is multiplied by what brings its largest magnitude to 2^15 or more, below 2^16. Numbers
//!    of 8 significant bits are f16s from 2^-17 on, as f16s are multiples of 2^-24 at least.
//! 2. Codes of E4M3 are from 2^-9 to 448 and have 4 significant bits. Of scales that are powers of two the
//!    largest in a row of blocks becomes 2^7, which takes 448 to 57344; the least may be 2^-15.
//! 3. Codes of E2M1 are multiples of 2^-1 up to 6. Of experts' scales the largest becomes 2^13, which takes 6 to 49152;
//!    the least may be 2^-23.
//! 4. A weight that has other numbers (NaN, infinities, subnormal ones) or others' range has no such
//!    powers, and is multiplied by other kernels.

use super::lift::Lift;

/// The logarithm of what f16's largest power of two is.
const MOST: i32 = 15;

/// That of the least number of 8 significant bits that is sure to be an f16.
const LEAST: i32 = -17;

/// Those of the largest and the least scale of E4M3.
const SCALES: [i32; 2] = [-15, 7];

/// Those of E2M1.
const SCALES_FP4: [i32; 2] = [-23, 13];

/// The shaders multiply 256ths of codes.
const CODES: i32 = 8;

/// The logarithm of what undoes the power of a row of bf16: 0 for zeros.
pub(super) fn row_exponent(row: &[u8]) -> Option<i32> {
    let magnitudes = row.chunks_exact(2).map(|pair| {
        let bits = u16::from_le_bytes([pair[0], pair[1]]);
        i32::from(bits & 0x7fff)
    });
    let nonzero = |(least, most): (i32, i32), m| match m {
        0 => (least, most),
        m => (least.min(m), most.max(m)),
    };
    let (least, most) = magnitudes.fold((i32::MAX, 0), nonzero);
    if most == 0 {
        return Some(0);
    }
    let [least, most] = [least, most].map(|bits| bits >> 7);
    let exponent = most - 127 - MOST;
    let finite_and_normal = least > 0 && most < 255;
    // Both the power and what undoes it are normal numbers of f32.
    let normal = (-126..=126).contains(&exponent);
    (finite_and_normal && normal && least - 127 - exponent >= LEAST).then_some(exponent)
}

/// A row of blocks: what 256ths of codes are multiplied by in place of their scales, and the logarithm of
/// what undoes it.
pub(super) fn block_row(scales: &[f32], lift: Lift) -> Option<(Vec<f32>, i32)> {
    let counts = |scale: &&f32| !scale.is_nan() && **scale != 0.0;
    let logarithms = scales
        .iter()
        .filter(counts)
        .map(|&scale| power_of_two(scale));
    let logarithms: Vec<i32> = logarithms.collect::<Option<_>>()?;
    let most = logarithms.iter().copied().max().unwrap_or(0);
    let exponent = most - SCALES[1];
    if logarithms.iter().any(|e| e - exponent < SCALES[0]) {
        return None;
    }
    let factor = 2_f64.powi(CODES - exponent);
    let factors = scales.iter().map(|&s| (f64::from(s) * factor) as f32);
    Some((factors.collect(), exponent - lift.logarithm()))
}

/// Whether codes of E2M1 by scales between two bytes are f16s where the greatest becomes the largest there may be.
pub(super) fn fp4(least: u8, most: u8) -> bool {
    let [lowest, highest] = SCALES_FP4;
    most < u8::MAX && i32::from(most) - i32::from(least) <= highest - lowest
}

/// The logarithm of a normal power of two.
fn power_of_two(x: f32) -> Option<i32> {
    let bits = x.to_bits();
    let exponent = bits >> 23;
    // With a sign it would be beyond 255.
    (bits & 0x7f_ffff == 0 && (1..255).contains(&exponent)).then_some(exponent as i32 - 127)
}

#[cfg(test)]
mod tests {
    use super::*;
    use swiglu_core::{E4M3, bf16, f16};

    fn exponent(row: &[f32]) -> Option<i32> {
        let row: Vec<u8> = row
            .iter()
            .flat_map(|x| bf16::from_f32(*x).to_le_bytes())
            .collect();
        row_exponent(&row)
    }

    fn is_f16(x: f64) -> bool {
        f16::from_f64(x).to_f64() == x
    }

    #[test]
    fn a_row_of_bf16_is_exact_in_f16_or_has_no_power() {
        for base in [1.0_f32, 1e-24, 3e38, 1.2e-38, 7.3e-5] {
            // All significands, and the largest that the row's power still holds.
            let row: Vec<f32> = (0..32)
                .map(|below| base * (1.0 - below as f32 / 256.0) * 2_f32.powi(-below))
                .chain([0.0, -base])
                .filter(|x| x.is_normal() || *x == 0.0)
                .map(|x| bf16::from_f32(x).to_f32())
                .collect();
            let Some(e) = exponent(&row) else {
                assert!(base < 1e-36, "{base:e}");
                continue;
            };
            for x in row {
                let scaled = f64::from(x) * 2_f64.powi(-e);
                assert!(is_f16(scaled), "{x:e} of {base:e}");
            }
        }
        assert_eq!(exponent(&[0.0, -0.0]), Some(0));
        assert_eq!(exponent(&[1.0, 2_f32.powi(-32)]), Some(-15));
        for row in [
            [1.0, 2_f32.powi(-33)],
            [1.0, f32::NAN],
            [f32::INFINITY, 1.0],
            [1e-40, 0.0],
        ] {
            assert_eq!(exponent(&row), None, "{row:?}");
        }
    }

    #[test]
    fn every_code_of_fp4_is_an_f16_under_scales_that_are_near_enough() {
        for least in [0, 100, 218_u8] {
            let most = least + 36;
            assert!(fp4(least, most) && !fp4(least, most + 1));
            for byte in least..=most {
                let scale = 2_f64.powi(i32::from(byte) - i32::from(most) + SCALES_FP4[1]);
                for code in 0..16 {
                    let made = f64::from(swiglu_core::E2M1(code).to_f32()) * scale;
                    assert!(is_f16(made), "{code} by {byte} of {most}");
                }
            }
        }
        // NaN.
        assert!(!fp4(250, 255));
    }

    #[test]
    fn every_code_times_its_factor_is_an_f16() {
        let lift = Lift::default();
        for scales in [
            vec![1.0],
            vec![0.25, 2_f32.powi(20)],
            vec![2_f32.powi(-60); 3],
        ] {
            let (factors, exponent) = block_row(&scales, lift).unwrap();
            for (scale, factor) in scales.iter().zip(factors) {
                for code in (0..=255).filter(|code| code & 0x7f != 0x7f) {
                    let code = f64::from(E4M3(code).to_f32());
                    let made = code / 256.0 * f64::from(factor);
                    assert!(is_f16(made), "{code} by {scale}");
                    assert_eq!(made * 2_f64.powi(exponent), code * f64::from(*scale));
                }
            }
        }
        let (factors, exponent) = block_row(&[0.0, f32::NAN], lift).unwrap();
        assert!(factors[0] == 0.0 && factors[1].is_nan() && exponent == -7);
        for scales in [
            [1.0, 3.0],
            [1.0, -1.0],
            [1.0, 2_f32.powi(23)],
            [1.0, f32::INFINITY],
        ] {
            assert_eq!(block_row(&scales, lift), None, "{scales:?}");
        }
    }
}
