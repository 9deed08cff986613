//! Matmuls of bf16 and of FP8 codes by weights of every format.

use swiglu::{
    Accumulation, E4M3, Element, Float, HostWeight, Quantization, Quantized, Request, RowLayout,
    ScaleFormat, ScaleLayout, ScaleOrder, Shape, Tensor, TensorMut, WeightFormat, bf16,
};
use swiglu_conformance::inputs::{
    Numbers, SampleValues, SampleWeight, weight_formats, whole_columns,
};
use swiglu_conformance::{Failure, FullBackend, contents, filled, relative_error};

use super::{FUSED, Measured, row};
use crate::verify::report::StageRow;

/// A row for each format, and for each quantization of x.
pub fn rows<B: FullBackend>(backend: &B) -> Vec<StageRow> {
    let (x, y) = (Float::BF16, Float::F32);
    let plain = weight_formats().map(|weight| {
        let request = Request::Matmul { x, weight, y };
        row(backend, request.to_string(), &[request], || {
            matmul(backend, weight)
        })
    });
    let quantized = quantized_matmuls().into_iter().map(|(quant, weight)| {
        let request = Request::QuantizedMatmul { quant, weight, y };
        row(backend, request.to_string(), &[request], || {
            quantized_matmul(backend, &quant, weight)
        })
    });
    plain.chain(quantized).collect()
}

/// A matrix, row by row, as exact as f64.
pub type Rows = Vec<Vec<f64>>;

pub fn widened<T: Element>(x: &[T], cols: usize) -> Rows {
    let row = |row: &[T]| row.iter().map(|x| f64::from(x.to_f32())).collect();
    x.chunks(cols).map(row).collect()
}

pub fn decoded(weight: &HostWeight<'_>) -> Rows {
    let row = |r| {
        let mut row = vec![0.0; weight.cols()];
        weight.decode_row(r, &mut row);
        row
    };
    (0..weight.rows()).map(row).collect()
}

/// The sum of an output's terms, and that of their magnitudes.
fn sum(x: &[f64], w: &[f64]) -> [f64; 2] {
    let terms = x.iter().zip(w).map(|(x, w)| x * w);
    terms.fold([0.0; 2], |[sum, size], term| {
        [sum + term, size + term.abs()]
    })
}

/// What a sum may be off by, of that sum of magnitudes.
const fn bound(accumulation: Accumulation) -> f64 {
    match accumulation {
        Accumulation::Ordered | Accumulation::MatrixUnit => 1e-6,
        // About 14 bits, where that is asked for.
        Accumulation::Fp8TensorCore => 1e-3,
    }
}

/// Holds y \[T, N\] in any type against x \[T, K\] times w \[N, K\], and says how far off it is by
/// norm.
pub fn compare<T: Element>(y: &[T], x: &Rows, w: &Rows, accumulation: Accumulation) -> Measured {
    let n = w.len();
    let mut exact = Vec::with_capacity(y.len());
    for (at, &got) in y.iter().enumerate() {
        let [sum, size] = sum(&x[at / n], &w[at % n]);
        let lost = bound(accumulation) * size + f64::from(f32::EPSILON) * sum.abs();
        let [low, high] = [sum - lost, sum + lost].map(|x| T::from_f64(x).to_f32());
        if !(low..=high).contains(&got.to_f32()) {
            return Err(Failure::new(format!(
                "y[{}, {}] is {:e}, expected {sum:e} within {lost:.1e}",
                at / n,
                at % n,
                got.to_f32()
            )));
        }
        exact.push(T::from_f64(sum));
    }
    let error = relative_error(y, &exact);
    let most = match (T::FLOAT, accumulation) {
        (Float::F32, Accumulation::Ordered) => 1e-6,
        (Float::F32, Accumulation::MatrixUnit) => 5e-6,
        (Float::F32, Accumulation::Fp8TensorCore) => 1e-3,
        // Some results fall on the other side of a tie.
        (Float::F16 | Float::BF16, _) => FUSED,
    };
    let measured = format!("{error:.1e} by norm, of {most:.0e}");
    match error <= most {
        true => Ok(measured),
        false => Err(Failure::new(measured)),
    }
}

fn matmul<B: FullBackend>(backend: &B, format: WeightFormat) -> Measured {
    let (n, k) = (160, whole_columns(&format, 600));
    let weight = SampleWeight::new([n, k], format, SampleValues::Random, 1)?;
    let loaded = backend.load_weight(&[weight.view()?])?;
    let w = decoded(&weight.view()?);
    let mut measured = String::new();
    for rows in [1, 33] {
        let x: Vec<bf16> = Numbers::new(2).values(rows * k, 4.0);
        let from = filled(backend, bytemuck::cast_slice(&x))?;
        let mut to = backend.alloc(rows * n * size_of::<f32>())?;
        backend.matmul(
            Tensor::contiguous(B::view(&from), Float::BF16, rows, k),
            &loaded,
            TensorMut::contiguous(B::view_mut(&mut to), Float::F32, rows, n),
        )?;
        let y = read::<f32, B>(backend, &to, rows * n)?;
        let x = widened(&x, k);
        measured = compare(&y, &x, &w, backend.accuracy().accumulation)?;
    }
    Ok(measured)
}

/// The first elements of a buffer.
pub fn read<T: Element, B: FullBackend>(
    backend: &B,
    buffer: &B::Buffer,
    count: usize,
) -> Result<Vec<T>, Failure> {
    let bytes = contents(backend, buffer)?;
    let data: Vec<T> = bytemuck::allocation::pod_collect_to_vec(&bytes[..count * size_of::<T>()]);
    Ok(data)
}

/// Quantizations with the FP8 weights whose blocks are as wide as their groups.
fn quantized_matmuls() -> Vec<(Quantization, WeightFormat)> {
    let of = |weight: WeightFormat| {
        let width = weight.scaling().map(|(_, block)| block[1]);
        let quants = ScaleFormat::ALL.map(|format| Quantization::new(width?, format).ok());
        quants
            .into_iter()
            .flatten()
            .map(move |quant| (quant, weight))
    };
    weight_formats().flat_map(of).collect()
}

fn quantized_matmul<B: FullBackend>(
    backend: &B,
    quant: &Quantization,
    format: WeightFormat,
) -> Measured {
    let (rows, n, k) = (33, 72, whole_columns(&format, 400));
    let weight = SampleWeight::new([n, k], format, SampleValues::Random, 3)?;
    let loaded = backend.load_weight(&[weight.view()?])?;
    let mut numbers = Numbers::new(4);
    let codes: Vec<u8> = (0..rows * k)
        .map(|_| E4M3::from_f32_saturating(numbers.within(100.0)).0)
        .collect();
    let scale_layout =
        ScaleLayout::contiguous(quant.format(), ScaleOrder::RowMajor, rows, quant.groups(k));
    let mut scales = vec![0; scale_layout.bytes()?];
    for place in 0..rows * quant.groups(k) {
        // Powers of two, under which codes are exact in bf16 as well.
        let scale = 2_f32.powi(numbers.below(4) as i32 - 6);
        quant.format().write(&mut scales, place, scale);
    }
    let x = (0..rows).map(|t| {
        let value = |j: usize| {
            let scale = scale_layout.position(t, j / quant.group());
            let scale = quant.format().read(&scales, scale);
            f64::from(E4M3(codes[t * k + j]).to_f32()) * f64::from(scale)
        };
        (0..k).map(value).collect()
    });
    let x: Rows = x.collect();
    let request = Request::QuantizedMatmul {
        quant: *quant,
        weight: format,
        y: Float::F32,
    };
    let shape = Shape {
        rows,
        cols: n,
        depth: k,
    };
    let mut scratch = backend.alloc(backend.scratch(&request, &shape))?;
    let (on_device, its_scales) = (filled(backend, &codes)?, filled(backend, &scales)?);
    let mut y = backend.alloc(rows * n * size_of::<f32>())?;
    let from = Quantized {
        codes: B::view(&on_device),
        layout: RowLayout::contiguous(rows, k),
        scales: B::view(&its_scales),
        scale_layout,
    };
    let to = TensorMut::contiguous(B::view_mut(&mut y), Float::F32, rows, n);
    backend.matmul_quantized(quant, from, &loaded, B::view_mut(&mut scratch), to)?;
    let y = read::<f32, B>(backend, &y, rows * n)?;
    let w = decoded(&weight.view()?);
    compare(&y, &x, &w, backend.accuracy().accumulation)
}
