use swiglu_core::reference::Reference;
use swiglu_core::{
    DType, E4M3, Element, Quantized, QuantizedMatmul, RowLayout, ScaleFormat, Scales, Support,
    Tensor, TensorMut, bf16,
};

use super::weights::{FORMATS, Stored, Values};
use crate::compare::shown;
use crate::inputs::Numbers;
use crate::quant_case::{QuantCase, quantizations};
use crate::suite::skip;
use crate::{Failure, Harness};

/// Codes that are small whole numbers under small powers of two, so that every sum is exact in any
/// order and a scale out of its place shows: y is the reference's, bit for bit, however the
/// backend multiplies.
///
/// # Errors
/// The first difference.
pub fn products_of_codes<B: QuantizedMatmul>(h: &Harness<B>) -> Result<(), Failure> {
    let reference = Harness::new(Reference, h.expectations);
    let check = "products_of_codes";
    let (n, k) = (72, 400);
    for kind in quantizations(h, DType::BF16, check)? {
        for format in FORMATS {
            if let Support::No(reason) = h.backend.supports_quantized(&kind.0, format.0) {
                let what = format!("{} by {}: {reason}", kind.0, format.0);
                skip(h.backend.platform(), &what, check);
                continue;
            }
            let weight = Stored::new([n, k], format, Values::Exact, 11);
            for rows in [1, 3, 20, 64] {
                let case = QuantCase::new(None, kind, rows, k);
                let got = product::<B>(h, &case, &weight).map_err(|f| f.within(case))?;
                let want = product::<Reference>(&reference, &case, &weight)?;
                let differs = |(got, want): (&f32, &f32)| got.to_bits() != want.to_bits();
                if let Some(at) = got.iter().zip(&want).position(differs) {
                    return Err(Failure::new(format!(
                        "{case} by weights of {}: y[{}, {}] is {}, expected {}",
                        format.0,
                        at / n,
                        at % n,
                        shown(got[at]),
                        shown(want[at]),
                    )));
                }
            }
        }
    }
    Ok(())
}

/// y of one product, in f32.
fn product<B: QuantizedMatmul>(
    h: &Harness<B>,
    case: &QuantCase<'_>,
    weight: &Stored,
) -> Result<Vec<f32>, Failure> {
    let (rows, k) = (case.rows, case.d);
    let mut numbers = Numbers::new(rows as u64);
    let codes: Vec<u8> = (0..rows * k)
        .map(|_| E4M3::from_f32_saturating(numbers.below(4) as f32 - 1.0).0)
        .collect();
    let layout = case.scales();
    let places = layout.bytes()? / layout.format.size();
    let powers = (0..places).map(|_| 126 + numbers.below(3) as u8);
    let scales: Vec<u8> = match layout.format {
        ScaleFormat::Ue8m0 => powers.collect(),
        ScaleFormat::F32 => powers
            .flat_map(|b| f32::from_bits(u32::from(b) << 23).to_le_bytes())
            .collect(),
    };
    let (codes, scales) = (h.upload_bytes(&codes)?, h.upload_bytes(&scales)?);
    let loaded = h.backend.load_weight(&[weight.view()?])?;
    let mut widened = h.backend.alloc(rows * k * bf16::DTYPE.size())?;
    let to = RowLayout::contiguous(rows, weight.shape[0])
        .with_stride(weight.shape[0] + 5)
        .with_offset(1);
    let mut y = h.poisoned::<f32>(&to)?;
    h.backend.matmul_quantized(
        &case.quant,
        Quantized {
            codes: Tensor::contiguous(&codes, DType::F8E4M3, rows, k),
            scales: Scales {
                buffer: &scales,
                layout,
            },
        },
        &loaded,
        TensorMut::contiguous(&mut widened, DType::BF16, rows, k),
        TensorMut {
            buffer: &mut y,
            dtype: DType::F32,
            layout: to,
        },
    )?;
    h.collect(&to, &y)
}
