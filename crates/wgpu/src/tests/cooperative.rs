//! The kernels on cooperative matrices, each of them made to run: where a device has none, with what
//! stands in for their matrices.

use std::sync::Arc;

use swiglu_conformance::inputs::Numbers;
use swiglu_core::{
    Backend, E4M3, Float, HostWeight, Matmul, Request, RowLayout, ScaleFormat, Tensor, TensorMut,
    WeightFormat, bf16, f16,
};

use crate::device::Facts;
use crate::pipelines::{CooperativeTile, LaneSums, Pipelines, Tier};
use crate::{WgpuBackend, wgpu};

/// Backends whose matmuls of more than eight tokens go to cooperative matrices, or to what stands in.
fn open() -> Option<Vec<WgpuBackend>> {
    let requests = formats().map(|weight| {
        let x = usual_x(weight);
        Request::Matmul { x, weight, y: x }
    });
    let builder = WgpuBackend::builder()
        .features(wgpu::Features::SHADER_F16)
        .for_requests(&requests);
    let backend = match builder.allow_software(true).open() {
        Ok(backend) => backend,
        Err(reason) => {
            swiglu_conformance::may_skip("wgpu", &reason.to_string(), "cooperative");
            return None;
        }
    };
    let mut standing_in = backend.share();
    let tier = Tier {
        sums: LaneSums::Workgroup,
        e4m3_as_f16: false,
        two_buffers: false,
        expert_buffers: 1,
    };
    let facts = Facts {
        cooperative: false,
        ..Facts::of(backend.device(), false)
    };
    let mut pipelines =
        Pipelines::new(backend.device(), tier, facts, &Arc::default(), Some(&[])).unwrap();
    pipelines.stand_in(backend.device(), tier).unwrap();
    standing_in.pipelines = Arc::new(pipelines);
    let mut all = vec![standing_in];
    if backend.pipelines.facts.cooperative {
        all.push(backend);
    }
    Some(all)
}

/// The same with tiles of one size for all.
fn with_tile(backend: &mut WgpuBackend, tile: CooperativeTile) {
    let place = CooperativeTile::ALL.iter().position(|t| *t == tile);
    Arc::get_mut(&mut backend.pipelines)
        .unwrap()
        .facts
        .cooperative_tile = place;
}

/// Tokens, rows and columns for a tile, which it does not divide: several steps of each, none of them whole
/// but of those that take no others.
const fn shape(tile: CooperativeTile) -> [usize; 3] {
    match tile {
        CooperativeTile::Wide => [141, 134, 192],
        CooperativeTile::Middle => [131, 70, 608],
        CooperativeTile::Narrow | CooperativeTile::Low => [69, 70, 608],
    }
}

fn usual_x(format: WeightFormat) -> Float {
    match format {
        WeightFormat::Float(float) => float,
        _ => Float::BF16,
    }
}

struct Case {
    rows: usize,
    weight: HostWeight<'static>,
    x: Vec<u8>,
    from: RowLayout,
    float: Float,
    /// By token and row: the exact sum, and how far from it one may be.
    expected: Vec<(f64, f64)>,
}

impl Case {
    fn check(&self, backend: &WgpuBackend, to: Float, what: &str) {
        let (tokens, rows) = (self.from.rows, self.rows);
        let loaded = backend
            .load_weight(std::slice::from_ref(&self.weight))
            .unwrap();
        assert!(loaded.exact_in_f16, "{what}");
        let on_device = swiglu_conformance::filled(backend, &self.x).unwrap();
        let layout = RowLayout::contiguous(tokens, rows)
            .with_stride(rows + 6)
            .with_offset(2);
        let elements = 2 + tokens * (rows + 6);
        let poison = vec![0xa5; elements * to.size()];
        let mut y = swiglu_conformance::filled(backend, &poison).unwrap();
        let x = Tensor::new(WgpuBackend::view(&on_device), self.float, self.from);
        let output = TensorMut::new(WgpuBackend::view_mut(&mut y), to, layout);
        backend.matmul(x, &loaded, output).unwrap();
        let got = swiglu_conformance::contents(backend, &y).unwrap();
        let value = |i: usize| match to {
            Float::F32 => f32::from_le_bytes(got[4 * i..4 * i + 4].try_into().unwrap()),
            Float::F16 => f16::from_le_bytes([got[2 * i], got[2 * i + 1]]).to_f32(),
            Float::BF16 => bf16::from_le_bytes([got[2 * i], got[2 * i + 1]]).to_f32(),
        };
        let ulp = match to {
            Float::F32 => 0.0,
            Float::F16 => 2_f64.powi(-11),
            Float::BF16 => 2_f64.powi(-8),
        };
        for token in 0..tokens {
            for row in 0..rows {
                let (want, bound) = self.expected[token * rows + row];
                let got = f64::from(value(2 + token * (rows + 6) + row));
                // What is subnormal may be zero; what is too large is infinite.
                let near = (got - want).abs() <= bound + ulp * want.abs() + 1.2e-38;
                let beyond =
                    got.is_infinite() && got.signum() == want.signum() && want.abs() > 3.38e38;
                let as_it_is = got == want || got.is_nan() && want.is_nan();
                assert!(
                    near || beyond || as_it_is,
                    "{what}: {token}, {row}: {got:e}, not {want:e}"
                );
            }
        }
        // Nothing beside the rows was touched.
        let apart = (0..elements).filter(|i| *i < 2 || (i - 2) % (rows + 6) >= rows);
        for i in apart {
            let bytes = &got[i * to.size()..(i + 1) * to.size()];
            assert!(
                bytes.iter().all(|byte| *byte == 0xa5),
                "{what}: element {i}"
            );
        }
    }
}

/// How the numbers of a case are made.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Range {
    /// Whole numbers, whose sums are exact.
    Whole,
    /// Rows of x from 2^-133 to 2^120 with numbers down to 2^-60 of them, of zeros, and with NaN and
    /// infinities; rows of the weight from 2^-90 to 2^90, with numbers down to 2^-32 of them.
    Extreme,
}

fn case(format: WeightFormat, range: Range, [tokens, rows, k]: [usize; 3], stride: usize) -> Case {
    let float = usual_x(format);
    let mut numbers = Numbers::new((tokens * k) as u64);
    let mut below = move |n: u64| numbers.below(n) as u32;
    let from = RowLayout::contiguous(tokens, k)
        .with_stride(stride)
        .with_offset(8);
    let mut x_bytes = vec![0xff; (8 + tokens * stride) * 2];
    let mut x = vec![0.0_f64; tokens * k];
    for t in 0..tokens {
        for i in 0..k {
            let value = match range {
                Range::Whole => f64::from(below(9)) - 4.0,
                Range::Extreme => {
                    let scale = [-133, -126, -60, 0, 30, 120][t % 6];
                    let down = if t % 2 == 0 { below(60) } else { below(3) } as i32;
                    let significand = (128.0 + f64::from(below(128))) / 128.0;
                    let sign = if below(2) == 0 { 1.0 } else { -1.0 };
                    match (t, i) {
                        (7, _) => 0.0,
                        (9, 5) => f64::NAN,
                        (11, 5) => f64::INFINITY,
                        (13, 5) => f64::NEG_INFINITY,
                        _ => sign * significand * 2_f64.powi(scale - down),
                    }
                }
            };
            let (bits, value) = match float {
                Float::F16 => (
                    f16::from_f64(value).to_bits(),
                    f16::from_f64(value).to_f64(),
                ),
                _ => (
                    bf16::from_f64(value).to_bits(),
                    bf16::from_f64(value).to_f64(),
                ),
            };
            let at = 2 * (8 + t * stride + i);
            x_bytes[at..at + 2].copy_from_slice(&bits.to_le_bytes());
            x[t * k + i] = value;
        }
    }
    let mut w = vec![0.0_f64; rows * k];
    let mut data = Vec::new();
    let [_, c] = format.scale_grid([rows, k]).unwrap();
    let scale = |row: usize, col: usize| -> i32 {
        let place = row / 32 * c + col / 32;
        match range {
            Range::Whole => (place % 3) as i32 - 1,
            // 22 binary orders within a row of blocks, and 60 between such.
            Range::Extreme => (place % 23) as i32 + (row / 32 % 4 * 20) as i32 - 40,
        }
    };
    for r in 0..rows {
        for i in 0..k {
            let at = r * k + i;
            let value = match range {
                Range::Whole => f64::from(below(7)) - 3.0,
                Range::Extreme => {
                    let down = below(if i == 3 { 1 } else { 32 }) as i32;
                    let of_row = [-90, -20, 0, 90][r % 4];
                    let sign = if below(2) == 0 { 1.0 } else { -1.0 };
                    sign * (1.0 + f64::from(below(2)) / 2.0) * 2_f64.powi(of_row - down)
                }
            };
            match format {
                WeightFormat::Float(Float::F16) => {
                    data.extend(f16::from_f64(value).to_le_bytes());
                    w[at] = f16::from_f64(value).to_f64();
                }
                WeightFormat::Float(_) => {
                    data.extend(bf16::from_f64(value).to_le_bytes());
                    w[at] = bf16::from_f64(value).to_f64();
                }
                _ => {
                    let mut code = E4M3::from_f32_saturating(value as f32).0;
                    if range == Range::Extreme {
                        code = below(256) as u8;
                        code -= u8::from(code & 0x7f == 0x7f);
                    }
                    data.push(code);
                    w[at] = f64::from(E4M3(code).to_f32()) * 2_f64.powi(scale(r, i));
                }
            }
        }
    }
    let scales = match format {
        WeightFormat::Float(_) => Vec::new(),
        _ => {
            let places = (0..rows.div_ceil(32)).flat_map(|r| (0..c).map(move |c| (r, c)));
            places
                .map(|(r, c)| (scale(r * 32, c * 32) + 127) as u8)
                .collect()
        }
    };
    let mut expected = Vec::new();
    for t in 0..tokens {
        let x = &x[t * k..(t + 1) * k];
        let most = x.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
        for r in 0..rows {
            let w = &w[r * k..(r + 1) * k];
            let terms = || x.iter().zip(w).map(|(x, w)| x * w);
            let sum: f64 = terms().sum();
            let terms: f64 = terms().map(f64::abs).sum();
            // docs/numerics.md: what is below 2^-32 of the row's largest is off by up to 2^-40 of it.
            let small: f64 = x
                .iter()
                .zip(w)
                .filter(|(x, _)| x.abs() < most * 2_f64.powi(-32))
                .map(|(_, w)| most * 2_f64.powi(-40) * w.abs())
                .sum();
            let bound = match range {
                Range::Whole => 0.0,
                Range::Extreme => 1e-6 * terms + small,
            };
            expected.push((sum, bound));
        }
    }
    Case {
        rows,
        weight: HostWeight::owned([rows, k], format, data, scales).unwrap(),
        x: x_bytes,
        from,
        float,
        expected,
    }
}

fn formats() -> [WeightFormat; 3] {
    let fp8 = WeightFormat::Fp8 {
        scales: ScaleFormat::E8M0,
        block: [32, 32],
    };
    [
        WeightFormat::Float(Float::F16),
        WeightFormat::Float(Float::BF16),
        fp8,
    ]
}

/// Every kernel, in tiles that are not full: of rows that lie apart, by columns that are no whole steps, sums
/// are exact; and bf16 and FP8 lose no bits that count, however far the numbers of a row lie apart.
#[test]
fn every_tile_keeps_what_counts() {
    let Some(backends) = open() else {
        return;
    };
    for mut backend in backends {
        for (format, tile) in kernels() {
            let [tokens, rows, k] = shape(tile);
            let whole = case(format, Range::Whole, [tokens, rows, k], k + 8);
            with_tile(&mut backend, tile);
            for to in [Float::F32, whole.float] {
                whole.check(&backend, to, &format!("{format}, {tile:?}, {to}"));
            }
            if usual_x(format) == Float::BF16 {
                let k = if tile == CooperativeTile::Wide {
                    k
                } else {
                    160
                };
                let extreme = case(format, Range::Extreme, [tokens, rows, k], k);
                extreme.check(
                    &backend,
                    Float::F32,
                    &format!("{format}, {tile:?}, extreme"),
                );
            }
        }
    }
}

fn kernels() -> impl Iterator<Item = (WeightFormat, CooperativeTile)> {
    let formats = formats().into_iter();
    formats.flat_map(|format| CooperativeTile::ALL.map(|tile| (format, tile)))
}
