//! Sums of packed weights, each way, against f64.

use half::{bf16, f16};
use swiglu_conformance::inputs::Numbers;
use swiglu_core::{
    Backend, Element, Float, HostWeight, Matmul, RowLayout, ScaleFormat, Tensor, TensorMut,
};
use swiglu_cuda::{CudaBackend, Route};

use crate::common::sums::{compare, fp8, matmul};
use crate::common::{bytes, filled, open};
use crate::weights::{FORMATS, exact, has_steps, random};

/// Of one group a stream and of a few, and of k that gives warps nothing, one unit, or more than their
/// rings hold.
const SMALL: [[usize; 2]; 4] = [[16, 64], [160, 1088], [16, 8256], [2128, 64]];

/// Of four, five, six and seven groups a stream on 132 multiprocessors.
const LARGE: [[usize; 2]; 4] = [[4224, 192], [5280, 128], [6288, 64], [7392, 64]];

fn small_x<X: Element>(count: usize, seed: u64) -> Vec<X> {
    let mut numbers = Numbers::new(seed);
    let value = |_| X::from_f32(numbers.below(17) as f32 - 8.0);
    (0..count).map(value).collect()
}

/// How often a route took the matmuls of these shapes, of how many.
fn sweep<X: Element>(
    way: (&CudaBackend, Route),
    shapes: &[[usize; 2]],
    tokens: &[usize],
) -> [usize; 2] {
    let (mut taken, mut all) = (0, 0);
    for (i, format) in FORMATS.into_iter().enumerate() {
        for &[n, k] in shapes {
            let (whole, any) = (exact([n, k], format, i as u64), random([n, k], format, 7));
            for &t in tokens {
                let small = small_x::<X>(t * k, t as u64);
                let x = Numbers::new(3).values::<X>(t * k, 4.0);
                let took = [
                    compare(way, &small, &whole, 0.0),
                    compare(way, &x, &any, 1.0),
                ];
                taken += took.into_iter().filter(|took| *took).count();
                all += 2;
            }
        }
    }
    [taken, all]
}

#[test]
fn steps_of_every_number_of_tokens() {
    let Some((backend, _turn)) = open("decode") else {
        return;
    };
    if !has_steps(&backend) {
        return;
    }
    for (shapes, tokens) in [
        (&SMALL, [1, 2, 3, 7, 8, 9, 15, 16].as_slice()),
        (&LARGE, &[1, 5, 13]),
    ] {
        let [taken, all] = sweep::<bf16>((&backend, Route::Step), shapes, tokens);
        assert_eq!(taken, all);
    }
    // Beyond sixteen by a kernel of their own where streams are small, or some at a time.
    for [n, k] in [[4224, 192], [6288, 64]] {
        let weight = random([n, k], FORMATS[0], 1);
        for t in [17, 31, 32, 33, 48] {
            let x = Numbers::new(t as u64).values::<bf16>(t * k, 4.0);
            assert!(compare((&backend, Route::Step), &x, &weight, 1.0));
        }
    }
    // Parts one below the other, which is how a gate and its up lie elsewhere.
    for t in [1, 8] {
        let x = Numbers::new(t as u64).values::<bf16>(t * 192, 4.0);
        let parts = [
            random([56, 192], FORMATS[3], 1),
            random([24, 192], FORMATS[3], 2),
        ];
        let got = by_parts(&backend, &x, &parts);
        let of_each = parts.map(|part| matmul((&backend, Route::Ordered), &x, &part, 0).unwrap());
        for (at, got) in got.iter().enumerate() {
            let (t, n) = (at / 80, at % 80);
            let want = match n.checked_sub(56) {
                None => of_each[0][t * 56 + n],
                Some(n) => of_each[1][t * 24 + n],
            };
            assert!((got - want).abs() < 1e-4, "{got} for {want}");
        }
    }
}

/// y in f32 as the backend chooses.
fn by_parts(backend: &CudaBackend, x: &[bf16], parts: &[HostWeight<'_>]) -> Vec<f32> {
    let (n, k) = (parts.iter().map(HostWeight::rows).sum(), parts[0].cols());
    let t = x.len() / k;
    let weight = backend.load_weight(parts).unwrap();
    let (x, mut y) = (
        filled(backend, bytemuck::cast_slice(x)),
        filled(backend, &vec![0xa5; 4 * t * n]),
    );
    let from = Tensor::contiguous(CudaBackend::view(&x), Float::BF16, t, k);
    let to = TensorMut::contiguous(CudaBackend::view_mut(&mut y), Float::F32, t, n);
    backend.matmul(from, &weight, to).unwrap();
    let y = bytes(backend, &y);
    y.chunks_exact(4)
        .map(bytemuck::pod_read_unaligned)
        .collect()
}

/// The ways that take what decode steps do not, of the same packed weights.
#[test]
fn every_other_way_reads_a_packed_weight() {
    let Some((backend, _turn)) = open("decode") else {
        return;
    };
    let (shapes, tokens) = ([[160, 576], [2128, 64]], [1, 9, 33, 70]);
    for route in [Route::Rows, Route::Tiles, Route::Ordered] {
        for [taken, all] in [
            sweep::<bf16>((&backend, route), &shapes, &tokens),
            sweep::<f16>((&backend, route), &shapes, &tokens),
            sweep::<f32>((&backend, route), &shapes, &tokens),
        ] {
            assert_eq!(taken, all, "{route:?}");
        }
    }
    // Of random weights those of E8M0, of the others all, as they are powers of two.
    let [taken, all] = sweep::<bf16>((&backend, Route::Decode), &shapes, &tokens);
    assert_eq!(4 * taken, 3 * all);
}

/// Rows of a gate, then of its up, each way, though they take turns in memory.
#[test]
fn pairs_of_rows_come_out_in_order() {
    let Some((backend, _turn)) = open("decode") else {
        return;
    };
    let ([n, k], format) = ([1072, 192], FORMATS[2]);
    let halves = [exact([n, k], format, 1), exact([n, k], format, 2)];
    let [gate, up] = halves.clone();
    let weight = backend.load_gate_up(gate, up).unwrap();
    let mut rows = vec![vec![0.0; k]; 2 * n];
    for (j, row) in rows.iter_mut().enumerate() {
        halves[j / n].decode_row(j % n, row);
    }
    for (route, t) in [
        (Some(Route::Rows), 9),
        (Some(Route::Rows), 40),
        (Some(Route::Tiles), 70),
        (Some(Route::Ordered), 3),
        (None, 5),
        (None, 100),
    ] {
        let x = small_x::<bf16>(t * k, t as u64);
        let on_device = filled(&backend, bytemuck::cast_slice(&x));
        let mut y = filled(&backend, &vec![0xa5; 4 * t * 2 * n]);
        let from = Tensor::contiguous(CudaBackend::view(&on_device), Float::BF16, t, k);
        let to = TensorMut::contiguous(CudaBackend::view_mut(&mut y), Float::F32, t, 2 * n);
        backend.matmul_by(route, &from, &weight, &to).unwrap();
        let y = bytes(&backend, &y);
        for (at, got) in y.chunks_exact(4).enumerate() {
            let (x, w) = (&x[at / (2 * n) * k..][..k], &rows[at % (2 * n)]);
            let sum: f64 = x
                .iter()
                .zip(w)
                .map(|(x, w)| f64::from(x.to_f32()) * w)
                .sum();
            let got: f32 = bytemuck::pod_read_unaligned(got);
            assert_eq!(f64::from(got), sum, "{route:?}, {t} tokens, output {at}");
        }
    }
}

/// y in each type at odd places; x at any multiple of 16 bytes, and elsewhere by another kernel.
#[test]
fn rows_lie_where_they_may() {
    fn sums<Y: Element>(backend: &CudaBackend, t: usize) {
        let (n, k) = (96, 320);
        let weight = exact([n, k], fp8(ScaleFormat::E8M0, [32, 32]), 4);
        let loaded = backend.load_weight(std::slice::from_ref(&weight)).unwrap();
        for (gap, offset) in [(0, 0), (8, 8), (24, 16), (1, 0), (8, 3)] {
            let x = small_x::<bf16>(offset + t * (k + gap), 6);
            let x_layout = RowLayout::contiguous(t, k)
                .with_stride(k + gap)
                .with_offset(offset);
            let y_layout = RowLayout::contiguous(t, n)
                .with_stride(n + 5)
                .with_offset(3);
            let poison = vec![0xa5; Y::FLOAT.size() * (3 + t * (n + 5))];
            let (on_device, mut y) = (
                filled(backend, bytemuck::cast_slice(&x)),
                filled(backend, &poison),
            );
            let from = Tensor::new(CudaBackend::view(&on_device), Float::BF16, x_layout);
            let to = TensorMut::new(CudaBackend::view_mut(&mut y), Y::FLOAT, y_layout);
            backend.matmul(from, &loaded, to).unwrap();
            let got = bytes(backend, &y);
            let (mut want, mut row) = (poison, vec![0.0; k]);
            for (t, j) in (0..t).flat_map(|t| (0..n).map(move |j| (t, j))) {
                weight.decode_row(j, &mut row);
                let x = &x[x_layout.row(t)];
                let sum = x
                    .iter()
                    .zip(&row)
                    .map(|(x, w)| f64::from(x.to_f32()) * w)
                    .sum();
                let at = y_layout.row(t).start + j;
                let size = Y::FLOAT.size();
                want[at * size..][..size].copy_from_slice(bytemuck::bytes_of(&Y::from_f64(sum)));
            }
            assert!(
                got == want,
                "{} with a gap of {gap} from {offset}",
                Y::FLOAT
            );
        }
    }
    let Some((backend, _turn)) = open("decode") else {
        return;
    };
    for t in [1, 5, 12] {
        sums::<bf16>(&backend, t);
        sums::<f16>(&backend, t);
        sums::<f32>(&backend, t);
    }
}

#[test]
fn a_packed_weight_takes_no_more_memory_than_it_says() {
    let Some((backend, _turn)) = open("decode") else {
        return;
    };
    if !has_steps(&backend) {
        return;
    }
    let loaded = backend
        .load_weight(&[exact([4224, 192], FORMATS[0], 0)])
        .unwrap();
    // Its codes, and for each 64 columns and stream 128 bytes of scales.
    let multiprocessors = backend.stream().context().attribute(
        swiglu_cuda::cudarc::driver::sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
    );
    let streams = multiprocessors.unwrap() as usize / 2;
    assert_eq!(
        backend.weight_bytes(&loaded),
        4224 * 192 + 3 * streams * 128
    );
}
