//! Matmuls of codes: on tensor cores where they can be, else widened first.

use swiglu_core::reference::Reference;
use swiglu_core::{
    Accumulation, Backend, E4M3, Element, Float, HostWeight, Matmul, Quantization, Quantize,
    Quantized, Request, RowLayout, ScaleFormat, ScaleLayout, ScaleOrder, Support, TensorMut,
    WeightFormat,
};

use half::{bf16, f16};
use swiglu_cuda::CudaBackend;

use crate::{
    common::{POISON, open},
    device::{bytes, filled},
};

struct CodesMatmul {
    quant: Quantization,
    order: ScaleOrder,
    t: usize,
    k: usize,
    /// Rows of each part of the weight.
    n: usize,
    codes: Vec<u8>,
    /// f32s or bytes, for every place of the layout.
    scales: Vec<u8>,
    /// Two parts, one below the other.
    weight: [Vec<u8>; 2],
    weight_scales: [Vec<u8>; 2],
}

const N: usize = 256;

fn random(seed: u32, i: usize) -> u32 {
    (i as u32 ^ seed.wrapping_mul(0x9e37_79b9)).wrapping_mul(2_654_435_761) >> 16
}

impl CodesMatmul {
    /// Codes and powers of two, out of which `codes` and `powers` choose by random numbers.
    fn new(
        which: (Quantization, ScaleOrder),
        [t, k]: [usize; 2],
        code: impl Fn(u32) -> u8,
        power: impl Fn(u32) -> u8,
    ) -> Self {
        Self::of_rows(which, [t, N, k], code, power)
    }

    /// The same by a weight of 2 · n rows.
    fn of_rows(
        (quant, order): (Quantization, ScaleOrder),
        [t, n, k]: [usize; 3],
        code: impl Fn(u32) -> u8,
        power: impl Fn(u32) -> u8,
    ) -> Self {
        let layout = ScaleLayout::contiguous(quant.format(), order, t, quant.groups(k));
        let places = layout.bytes().unwrap() / quant.format().size();
        let scales = (0..places).map(|i| power(random(1, i)));
        let scales = match quant.format() {
            ScaleFormat::E8M0 => scales.collect(),
            ScaleFormat::F32 => scales
                .flat_map(|b| f32::from_bits(u32::from(b) << 23).to_le_bytes())
                .collect(),
        };
        let codes = |seed, count| (0..count).map(|i| code(random(seed, i))).collect();
        let powers = |seed, count| (0..count).map(|i| power(random(seed, i))).collect();
        let blocks = k.div_ceil(128) * (n / 128);
        Self {
            quant,
            order,
            t,
            k,
            n,
            codes: codes(2, t * k),
            scales,
            weight: [codes(3, n * k), codes(4, n * k)],
            weight_scales: [powers(5, blocks), powers(6, blocks)],
        }
    }

    /// y in f32, and the scratch memory.
    fn run<B: Quantize + Matmul>(&self, backend: &B) -> (Vec<f32>, Vec<u8>) {
        self.run_to::<f32, B>(backend)
    }

    /// y, and the scratch memory.
    fn run_to<Y: Element, B: Quantize + Matmul>(&self, backend: &B) -> (Vec<Y>, Vec<u8>) {
        let (t, n, k) = (self.t, self.n, self.k);
        let parts = [0, 1].map(|i| {
            let (codes, scales) = (&self.weight[i], &self.weight_scales[i]);
            HostWeight::new([n, k], WeightFormat::DEEPSEEK_V4, codes, scales).unwrap()
        });
        let weight = backend.load_weight(&parts).unwrap();
        let format = self.quant.format();
        let scale_layout = ScaleLayout::contiguous(format, self.order, t, self.quant.groups(k));
        let (codes, scales) = (filled(backend, &self.codes), filled(backend, &self.scales));
        let mut scratch = filled(backend, &vec![POISON; t * k * 2]);
        let size = size_of::<Y>();
        let mut y = filled(backend, &vec![POISON; t * 2 * n * size]);
        let x = Quantized {
            codes: B::view(&codes),
            layout: RowLayout::contiguous(t, k),
            scales: B::view(&scales),
            scale_layout,
        };
        let room = B::view_mut(&mut scratch);
        let to = TensorMut::contiguous(B::view_mut(&mut y), Y::FLOAT, t, 2 * n);
        backend
            .matmul_quantized(&self.quant, x, &weight, room, to)
            .unwrap();
        let y = bytes(backend, &y);
        let y = y.chunks_exact(size).map(bytemuck::pod_read_unaligned);
        (y.collect(), bytes(backend, &scratch))
    }
}

fn quantizations() -> [(Quantization, ScaleOrder); 6] {
    let f32s = |group| Quantization::new(group, ScaleFormat::F32).unwrap();
    [
        (Quantization::deepseek_v4(), ScaleOrder::RowMajor),
        (Quantization::deepseek_v4(), ScaleOrder::ColumnMajor),
        (Quantization::deepseek_v4(), ScaleOrder::Packed),
        (f32s(128), ScaleOrder::ColumnMajor),
        (f32s(128), ScaleOrder::RowMajor),
        (f32s(32), ScaleOrder::RowMajor),
    ]
}

/// Each with every class of sums.
fn with_classes<T: Copy, const N: usize>(all: [T; N]) -> impl Iterator<Item = (Accumulation, T)> {
    let classes = Accumulation::ALL.into_iter();
    classes.flat_map(move |class| all.map(|x| (class, x)))
}

/// Small whole numbers under small powers of two: every sum is exact in any order, and a scale
/// out of its place shows.
#[test]
fn matmuls_of_whole_numbers_are_exact() {
    for (class, which) in with_classes(quantizations()) {
        let Some((backend, _turn)) = open() else {
            return;
        };
        let backend = backend.with_accumulation(class);
        for t in [1, 3, 4, 20, 64, 132] {
            for k in [256, 640, 400] {
                let code = |r| E4M3::from_f32_saturating((r % 4) as f32 - 1.0).0;
                let matmul = CodesMatmul::new(which, [t, k], code, |r| 127 + (r % 3) as u8);
                let (got, _) = matmul.run(&backend);
                let (want, _) = matmul.run(&Reference);
                let at = (0..got.len()).find(|&i| got[i] != want[i]);
                let pair = at.map(|i| (i, got[i], want[i]));
                assert_eq!(pair, None, "{class} {} {} {t} x {k}", which.0, which.1);
            }
        }
    }
}

/// Every finite code: sums of products within the precision of f32, or of tensor cores.
#[test]
fn matmuls_of_any_codes_are_close() {
    for (class, which) in with_classes(quantizations()) {
        let Some((backend, _turn)) = open() else {
            return;
        };
        let backend = backend.with_accumulation(class);
        for [t, k] in [[1, 2048], [4, 4096], [64, 2304]] {
            let code = |r| if r & 0x7f == 0x7f { 0 } else { r as u8 };
            let matmul = CodesMatmul::new(which, [t, k], code, |r| 120 + (r % 9) as u8);
            let (got, _) = matmul.run(&backend);
            let (want, _) = matmul.run(&Reference);
            let square = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>();
            let want: Vec<f64> = want.into_iter().map(f64::from).collect();
            let pairs = got.iter().zip(&want);
            let error: Vec<f64> = pairs.map(|(g, w)| f64::from(*g) - w).collect();
            let relative = (square(&error) / square(&want)).sqrt();
            // Under powers of two widened codes are exact, and all that is lost is f32's; tensor
            // cores keep about 14 bits.
            let bound = match class {
                // One chain of k additions.
                Accumulation::Ordered => 4e-6,
                Accumulation::MatrixUnit => 2e-6,
                Accumulation::Fp8TensorCore => 1e-3,
            };
            assert!(
                relative < bound,
                "{} {} {t} x {k}: {relative:e}",
                which.0,
                which.1
            );
        }
    }
}

/// Where the backend says that it multiplies codes, it writes no widened ones.
#[test]
fn codes_are_multiplied_where_the_backend_says_so() {
    let Some((backend, _turn)) = open() else {
        return;
    };
    let f32s = Quantization::new(128, ScaleFormat::F32).unwrap();
    let request = |quant| Request::QuantizedMatmul {
        quant,
        weight: WeightFormat::DEEPSEEK_V4,
        y: Float::F32,
    };
    let asked = backend.supports(&request(f32s));
    assert!(matches!(asked, Support::Emulated(_)), "unasked: {asked}");
    let backend = backend.with_accumulation(Accumulation::Fp8TensorCore);
    let native = backend.supports(&request(f32s)) == Support::Native;
    let of = |t| {
        CodesMatmul::new(
            (f32s, ScaleOrder::ColumnMajor),
            [t, 512],
            |r| r as u8 & 0x3f,
            |_| 127,
        )
    };
    let written = |t| of(t).run(&backend).1.iter().any(|&b| b != POISON);
    // By our own kernels and by cublasLt, which takes whole fours of tokens.
    assert_eq!(written(63), !native);
    assert_eq!(written(510), !native);
    assert_eq!(written(4100), !native);
    assert!(!native || written(4098));
    let groups = Quantization::new(32, ScaleFormat::F32).unwrap();
    let support = backend.supports(&request(groups));
    assert!(matches!(support, Support::Emulated(_)));
}

/// Every kernel of codes: tokens of each, weights of few tiles and of many, and each type of y.
#[test]
fn every_kernel_of_codes_is_exact() {
    fn compare<Y: Element>(backend: &CudaBackend, [t, n, k]: [usize; 3]) {
        let which = (Quantization::deepseek_v4(), ScaleOrder::RowMajor);
        let code = |r| E4M3::from_f32_saturating((r % 4) as f32 - 1.0).0;
        let shape = [t, n, k];
        let matmul = CodesMatmul::of_rows(which, shape, code, |r| 124 + (r % 3) as u8);
        let (got, _) = matmul.run_to::<Y, _>(backend);
        let (want, _) = matmul.run_to::<Y, _>(&Reference);
        let at = (0..got.len()).find(|&i| got[i].to_bits() != want[i].to_bits());
        let pair = at.map(|i| (i, got[i], want[i]));
        assert_eq!(pair, None, "{} {t} x {k} by {n}", Y::FLOAT);
    }
    let Some((backend, _turn)) = open() else {
        return;
    };
    let backend = backend.with_accumulation(Accumulation::Fp8TensorCore);
    for t in [8, 9, 16, 17, 32, 33, 65, 128, 129, 200, 255, 256, 257, 512] {
        compare::<f32>(&backend, [t, 128, 1024]);
    }
    // 68 tiles of 64 rows, for 66 pairs of multiprocessors.
    for t in [5, 31, 40, 64, 65, 121, 128, 129, 300] {
        compare::<f32>(&backend, [t, 2176, 384]);
    }
    // Large tiles of 192 and of 256 tokens.
    for t in [513, 769] {
        compare::<f32>(&backend, [t, 2048, 144]);
        compare::<bf16>(&backend, [t + 100, 2048, 144]);
        compare::<f16>(&backend, [t + 200, 2048, 128]);
    }
    for t in [3, 40, 130, 256] {
        compare::<bf16>(&backend, [t, 128, 272]);
        compare::<f16>(&backend, [t, 128, 128]);
    }
}

/// A NaN among the codes is its row's or its token's.
#[test]
fn a_nan_code_stays_in_its_row() {
    let Some((backend, _turn)) = open() else {
        return;
    };
    let backend = backend.with_accumulation(Accumulation::Fp8TensorCore);
    let which = (Quantization::deepseek_v4(), ScaleOrder::RowMajor);
    let of = |t| CodesMatmul::new(which, [t, 512], |r| r as u8 & 0x3f, |_| 127);
    for t in [1, 16, 100, 200] {
        let (clean, _) = of(t).run(&backend);
        let mut bad = of(t);
        (bad.codes[200], bad.weight[1][7 * 512 + 300]) = (0x7f, 0xff);
        let (got, _) = bad.run(&backend);
        for (at, (got, clean)) in got.iter().zip(&clean).enumerate() {
            let nan = at < 2 * N || at % (2 * N) == N + 7;
            assert!(got.is_nan() == nan && (nan || got == clean), "{at}: {got}");
        }
    }
}
