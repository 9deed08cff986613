use swiglu_core::reference::Reference;
use swiglu_core::{
    E4M3, Float, Matmul, Quantize, Quantized, Request, RowLayout, ScaleFormat, Shape,
};

use crate::compare::shown;
use crate::harness::tensor_mut;
use crate::inputs::{Numbers, SampleValues, SampleWeight, weight_formats, whole_columns};
use crate::quant_case::QuantCase;
use crate::skips::Skips;
use crate::{Failure, Harness};

/// Codes that are small whole numbers under small powers of two, so that every sum is exact in any
/// order and a scale out of its place shows: y is the reference's, bit for bit, however the
/// backend multiplies.
///
/// # Errors
/// The first difference.
pub fn matmuls_of_codes<B: Quantize + Matmul>(h: &Harness<B>) -> Result<(), Failure> {
    let reference = Harness::new(Reference, h.size);
    let mut skips = Skips::new(h, "matmuls_of_codes");
    let n = 72;
    let y = Float::F32;
    for weight in weight_formats() {
        let kinds = skips.quantizations(|quant| Request::QuantizedMatmul { quant, weight, y })?;
        let k = whole_columns(&weight, 400);
        let weight = SampleWeight::new([n, k], weight, SampleValues::Exact, 11)?;
        for kind in kinds {
            for rows in [1, 3, 20, 64] {
                let case = QuantCase::new(None, kind, rows, k);
                let got = matmul::<B>(h, &case, &weight).map_err(|f| f.within(case))?;
                let want = matmul::<Reference>(&reference, &case, &weight)?;
                let differs = |(got, want): (&f32, &f32)| got.to_bits() != want.to_bits();
                if let Some(at) = got.iter().zip(&want).position(differs) {
                    return Err(Failure::new(format!(
                        "{case} by weights of {}: y[{}, {}] is {}, expected {}",
                        weight.format,
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

/// y of one matmul, in f32.
fn matmul<B: Quantize + Matmul>(
    h: &Harness<B>,
    case: &QuantCase<'_>,
    weight: &SampleWeight,
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
        ScaleFormat::E8M0 => powers.collect(),
        ScaleFormat::F32 => powers
            .flat_map(|b| f32::from_bits(u32::from(b) << 23).to_le_bytes())
            .collect(),
    };
    let (codes, scales) = (h.upload_bytes(&codes)?, h.upload_bytes(&scales)?);
    let loaded = h.backend.load_weight(&[weight.view()?])?;
    let request = Request::QuantizedMatmul {
        quant: case.quant,
        weight: weight.format,
        y: Float::F32,
    };
    let shape = Shape {
        rows,
        cols: weight.shape[0],
        depth: k,
    };
    let mut scratch = h.backend.alloc(h.backend.scratch(&request, &shape))?;
    let to = RowLayout::contiguous(rows, weight.shape[0])
        .with_stride(weight.shape[0] + 5)
        .with_offset(1);
    let mut y = h.poisoned::<f32>(&to)?;
    let x = Quantized {
        codes: B::view(&codes),
        layout: RowLayout::contiguous(rows, k),
        scales: B::view(&scales),
        scale_layout: layout,
    };
    let (room, output) = (B::view_mut(&mut scratch), tensor_mut::<B, f32>(&mut y, to));
    h.backend
        .matmul_quantized(&case.quant, x, &loaded, room, output)?;
    h.collect(&to, &y)
}
