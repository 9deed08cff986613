//! Matmuls by one way, compared with sums in f64.

use half::{bf16, f16};
use swiglu_core::{
    Backend, E4M3, Element, Float, HostWeight, Matmul, RowLayout, ScaleFormat, Tensor, TensorMut,
    WeightFormat,
};
use swiglu_cuda::{CudaBackend, Route};

use super::filled;

pub const fn fp8(scales: ScaleFormat, block: [usize; 2]) -> WeightFormat {
    WeightFormat::Fp8 { scales, block }
}

fn push(bytes: &mut Vec<u8>, format: WeightFormat, x: f32) {
    match format {
        WeightFormat::Float(Float::F32) => bytes.extend(x.to_le_bytes()),
        WeightFormat::Float(Float::F16) => bytes.extend(f16::from_f32(x).to_le_bytes()),
        WeightFormat::Float(Float::BF16) => bytes.extend(bf16::from_f32(x).to_le_bytes()),
        WeightFormat::Fp8 { .. } => bytes.push(E4M3::from_f32_saturating(x).0),
        other => panic!("these tests have no weights of {other}"),
    }
}

/// A weight of this shape, its elements and its scales one after another.
pub fn new_weight(
    shape: [usize; 2],
    format: WeightFormat,
    mut value: impl FnMut() -> f32,
    mut scale: impl FnMut() -> f32,
) -> HostWeight<'static> {
    let mut data = Vec::new();
    (0..shape[0] * shape[1]).for_each(|_| push(&mut data, format, value()));
    let [rows, columns] = format.scale_grid(shape).unwrap();
    let size = format.scaling().map_or(0, |(scales, _)| scales.size());
    let mut scales = vec![0; rows * columns * size];
    if let Some((format, _)) = format.scaling() {
        (0..rows * columns).for_each(|i| format.write(&mut scales, i, scale()));
    }
    HostWeight::owned(shape, format, data, scales).unwrap()
}

/// y in f32 of rows of x that lie `gap` elements apart; `None` where the route does not take it.
pub fn matmul<X: Element>(
    (backend, route): (&CudaBackend, Route),
    x: &[X],
    weight: &HostWeight<'_>,
    gap: usize,
) -> Option<Vec<f32>> {
    let [n, k] = [weight.rows(), weight.cols()];
    let t = x.len() / k;
    let mut spread = vec![X::from_f32(f32::NAN); t * (k + gap)];
    for (to, from) in spread.chunks_mut(k + gap).zip(x.chunks(k)) {
        to[..k].copy_from_slice(from);
    }
    let x = filled(backend, bytemuck::cast_slice(&spread));
    let stride = n + 3;
    let poison = vec![0x7fa5_a5a5_u32; t * stride];
    let mut y = filled(backend, bytemuck::cast_slice(&poison));
    let loaded = backend.load_weight(std::slice::from_ref(weight)).unwrap();
    let layout = RowLayout::contiguous(t, k).with_stride(k + gap);
    let from = Tensor::new(CudaBackend::view(&x), X::FLOAT, layout);
    let layout = RowLayout::contiguous(t, n).with_stride(stride);
    let to = TensorMut::new(CudaBackend::view_mut(&mut y), Float::F32, layout);
    backend.matmul_by(Some(route), &from, &loaded, &to).ok()?;
    let mut got = vec![0.0_f32; t * stride];
    backend
        .download(&y, bytemuck::cast_slice_mut(&mut got))
        .unwrap();
    for row in got.chunks(stride) {
        let untouched = row[n..].iter().all(|y| y.to_bits() == 0x7fa5_a5a5);
        assert!(untouched, "elements behind a row were written");
    }
    Some(got.chunks(stride).flat_map(|r| r[..n].to_vec()).collect())
}

/// Compares with sums in f64, give or take what k additions in f32 lose, times `slack`. Returns
/// whether the route took the matmul.
pub fn compare<X: Element>(
    way: (&CudaBackend, Route),
    x: &[X],
    weight: &HostWeight<'_>,
    slack: f64,
) -> bool {
    let [n, k] = [weight.rows(), weight.cols()];
    let gap = 16;
    let Some(got) = matmul(way, x, weight, gap) else {
        return false;
    };
    let mut row = vec![0.0; k];
    for j in 0..n {
        weight.decode_row(j, &mut row);
        for (t, x) in x.chunks(k).enumerate() {
            let terms = x.iter().zip(&row).map(|(x, w)| f64::from(x.to_f32()) * w);
            let (sum, size) = terms.fold((0.0, 0.0), |(s, a), p: f64| (s + p, a + p.abs()));
            let lost = slack * (k as f64 + 4.0) * f64::from(f32::EPSILON) / 2.0 * size;
            let error = (f64::from(got[t * n + j]) - sum).abs();
            assert!(
                error <= lost,
                "{:?}, {} by {} of [{n}, {k}], y[{t}, {j}]: {} for {sum}",
                way.1,
                X::FLOAT,
                weight.format(),
                got[t * n + j],
            );
        }
    }
    true
}
