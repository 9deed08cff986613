//! Matmuls of codes: on tensor cores where they can be, else widened first.

use swiglu_core::reference::Reference;
use swiglu_core::{
    Accumulation, Backend, E4M3, Float, HostWeight, Matmul, Quantization, Quantize, Quantized,
    Request, RowLayout, ScaleFormat, ScaleLayout, ScaleOrder, Support, TensorMut, WeightFormat,
};

use crate::{
    common::{POISON, open},
    device::{bytes, filled},
};

struct CodesMatmul {
    quant: Quantization,
    order: ScaleOrder,
    t: usize,
    k: usize,
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
        (quant, order): (Quantization, ScaleOrder),
        [t, k]: [usize; 2],
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
        let blocks = k.div_ceil(128) * (N / 128);
        Self {
            quant,
            order,
            t,
            k,
            codes: codes(2, t * k),
            scales,
            weight: [codes(3, N * k), codes(4, N * k)],
            weight_scales: [powers(5, blocks), powers(6, blocks)],
        }
    }

    /// y in f32, and the scratch memory.
    fn run<B: Quantize + Matmul>(&self, backend: &B) -> (Vec<f32>, Vec<u8>) {
        let (t, k) = (self.t, self.k);
        let parts = [0, 1].map(|i| {
            let (codes, scales) = (&self.weight[i], &self.weight_scales[i]);
            HostWeight::new([N, k], WeightFormat::DEEPSEEK_V4, codes, scales).unwrap()
        });
        let weight = backend.load_weight(&parts).unwrap();
        let format = self.quant.format();
        let scale_layout = ScaleLayout::contiguous(format, self.order, t, self.quant.groups(k));
        let (codes, scales) = (filled(backend, &self.codes), filled(backend, &self.scales));
        let mut scratch = filled(backend, &vec![POISON; t * k * 2]);
        let mut y = filled(backend, &vec![POISON; t * 2 * N * 4]);
        let x = Quantized {
            codes: B::view(&codes),
            layout: RowLayout::contiguous(t, k),
            scales: B::view(&scales),
            scale_layout,
        };
        let room = B::view_mut(&mut scratch);
        let to = TensorMut::contiguous(B::view_mut(&mut y), Float::F32, t, 2 * N);
        backend
            .matmul_quantized(&self.quant, x, &weight, room, to)
            .unwrap();
        let y = bytes(backend, &y);
        let y = y.chunks_exact(4).map(bytemuck::pod_read_unaligned);
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
    assert_eq!(written(64), !native);
    assert!(written(63));
    let groups = Quantization::new(32, ScaleFormat::F32).unwrap();
    let support = backend.supports(&request(groups));
    assert!(matches!(support, Support::Emulated(_)));
}
