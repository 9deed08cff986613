use swiglu_core::reference::Reference;
use swiglu_core::{
    Element, Quantization, Quantize, Quantized, RowLayout, ScaleFormat, ScaleOrder, bf16, f16,
};

use super::in_every_type;
use crate::compare::shown;
use crate::harness::tensor_mut;
use crate::inputs::{Numbers, telling};
use crate::quant_case::{Outcome, QuantCase};
use crate::skips::Skips;
use crate::{Failure, Harness, Size};

/// The same case on the reference.
pub(super) fn on_reference<T: Element, B>(
    h: &Harness<B>,
    case: &QuantCase<'_>,
    rows: &[T],
) -> Result<Outcome, Failure> {
    case.run(&Harness::new(Reference, h.size), rows)
}

fn as_the_reference<T: Element, B: Quantize>(
    h: &Harness<B>,
    case: &QuantCase<'_>,
    rows: &[T],
) -> Result<(), Failure> {
    let got = case.run(h, rows).map_err(|f| f.within(case))?;
    let want = on_reference(h, case, rows)?;
    case.same(T::FLOAT, &got, &want, "against the reference")
}

/// Matrices become the reference's codes and scales, bit for bit, in every group, format and order
/// of scales, and nothing around them is touched.
///
/// # Errors
/// The first difference.
pub fn matrices_are_quantized<B: Quantize>(h: &Harness<B>) -> Result<(), Failure> {
    fn check<T: Element, B: Quantize>(
        h: &Harness<B>,
        skips: &mut Skips<'_, B>,
    ) -> Result<(), Failure> {
        let shapes = [
            (0, 128),
            (1, 1),
            (3, 70),
            (2, 300),
            (3, 1024),
            (2, 2081),
            (83, 128),
            (2, 16_500),
        ];
        for kind in skips.quantizations_of(T::FLOAT)? {
            for (rows, d) in shapes {
                for (gap, offset) in [(0, 0), (16, 16), (3, 1)] {
                    let case = QuantCase {
                        gap,
                        offset,
                        ..QuantCase::new(None, kind, rows, d)
                    };
                    as_the_reference::<T, B>(h, &case, &telling(rows, d, 5))?;
                }
            }
        }
        Ok(())
    }
    let skips = &mut Skips::new(h, "matrices_are_quantized");
    in_every_type!(check(h, skips))
}

/// A quotient is rounded as a division and one rounding give it: every number of 16 bits beside
/// its neighbours and beside others far from it, and floats of every size, under several floors.
///
/// # Errors
/// The first difference to the reference.
pub fn quotients_are_rounded_once<B: Quantize>(h: &Harness<B>) -> Result<(), Failure> {
    fn every<T: Element>() -> Vec<T> {
        let near = (0..1 << 16).map(T::from_bits);
        // Bits far apart: a group has many magnitudes.
        let far = (0..1_u32 << 16).map(|i| T::from_bits(i.wrapping_mul(40_503) & 0xffff));
        near.chain(far)
            .filter(|x: &T| x.to_f32().is_finite())
            .collect()
    }
    fn floats() -> Vec<f32> {
        let mut x: Vec<f32> = Numbers::new(9).values(1 << 17, 1.0);
        for (g, group) in x.chunks_mut(96).enumerate() {
            let power = 2f32.powi(g as i32 % 250 - 125);
            group.iter_mut().for_each(|x| *x *= power);
        }
        x
    }
    fn check<T: Element, B: Quantize>(
        h: &Harness<B>,
        skips: &mut Skips<'_, B>,
        x: &[T],
    ) -> Result<(), Failure> {
        let floors = [Quantization::FLOOR, 1e-30, 1e-10, 1e30];
        let floors = &floors[..h.size.pick(2, 4)];
        let (rows, d) = (2, x.len() / 2);
        for (quant, order) in skips.quantizations_of(T::FLOAT)? {
            let other = quant.group() == 64 || order != ScaleOrder::RowMajor;
            if other && h.size == Size::Quick {
                continue;
            }
            for floor in floors {
                let kind = (quant.with_floor(*floor)?, order);
                as_the_reference(h, &QuantCase::new(None, kind, rows, d), &x[..rows * d])?;
            }
        }
        Ok(())
    }
    let skips = &mut Skips::new(h, "quotients_are_rounded_once");
    check::<bf16, B>(h, skips, &every())?;
    check::<f16, B>(h, skips, &every())?;
    check::<f32, B>(h, skips, &floats())
}

/// Codes times scales, rounded once: every code under many scales, NaN among them, to the bit.
///
/// # Errors
/// The first difference to the reference, or an element outside of the rows that was written.
pub fn codes_are_widened<B: Quantize>(h: &Harness<B>) -> Result<(), Failure> {
    fn widened<T: Element, B: Quantize>(
        h: &Harness<B>,
        case: &QuantCase<'_>,
    ) -> Result<Vec<T>, Failure> {
        let codes: Vec<u8> = (0..case.codes().end("codes")?)
            .map(|i| (i % 256) as u8)
            .collect();
        let layout = case.scales();
        let bytes = layout.bytes()?;
        let scales: Vec<u8> = match layout.format {
            ScaleFormat::E8M0 => (0..bytes).map(|i| (i * 7 + 3) as u8).collect(),
            ScaleFormat::F32 => (0..bytes / 4)
                .flat_map(|i| {
                    let power = 2f32.powi(i as i32 * 5 % 200 - 100);
                    let scale = 1.013 * (i as f32 + 0.7) * power;
                    if i % 13 == 6 { f32::NAN } else { scale }.to_le_bytes()
                })
                .collect(),
        };
        let (codes, scales) = (h.upload_bytes(&codes)?, h.upload_bytes(&scales)?);
        let input = Quantized {
            codes: B::view(&codes),
            layout: case.codes(),
            scales: B::view(&scales),
            scale_layout: layout,
        };
        let layout = RowLayout::contiguous(case.rows, case.d)
            .with_stride(case.d + case.gap)
            .with_offset(case.offset);
        let mut y = h.poisoned::<T>(&layout)?;
        let output = tensor_mut::<B, T>(&mut y, layout);
        h.backend.dequantize(&case.quant, input, output)?;
        h.collect(&layout, &y)
    }
    fn check<T: Element, B: Quantize>(
        h: &Harness<B>,
        skips: &mut Skips<'_, B>,
    ) -> Result<(), Failure> {
        let reference = Harness::new(Reference, h.size);
        for kind in skips.quantizations_of(T::FLOAT)? {
            for (rows, d, gap) in [(7, 255, 0), (3, 1024, 0), (5, 301, 3)] {
                let case = QuantCase {
                    gap,
                    offset: gap / 3,
                    ..QuantCase::new(None, kind, rows, d)
                };
                let got = widened::<T, B>(h, &case).map_err(|f| f.within(case))?;
                let want = widened::<T, Reference>(&reference, &case)?;
                for (at, (got, want)) in got.iter().zip(&want).enumerate() {
                    // Where subnormals may be flushed, one is zero.
                    let small = |x: &T| x.to_f32().abs() < f32::MIN_POSITIVE;
                    let flushed = h.accuracy.flushes_subnormals && small(got) && small(want);
                    if got.to_bits() != want.to_bits() && !flushed {
                        return Err(Failure::new(format!(
                            "{case} back to {}: [{}, {}] is {}, expected {}",
                            T::FLOAT,
                            at / d,
                            at % d,
                            shown(*got),
                            shown(*want),
                        )));
                    }
                }
            }
        }
        Ok(())
    }
    let skips = &mut Skips::new(h, "codes_are_widened");
    in_every_type!(check(h, skips))
}
