//! Products and whole MLPs, each way that they may go, weights cold.

use swiglu_core::{
    ActAndMul, ActAndMulQuant, Backend, BlockScales, DType, E4M3, GatedActivation, HostWeight,
    Matmul, QuantOptions, Quantization, Quantized, QuantizedMatmul, QuantizedMut, ScaleFormat,
    ScaleLayout, ScaleOrder, Scales, ScalesMut, Tensor, TensorMut,
};
use swiglu_cuda::{CudaBuffer, CudaWeight, Route};

use crate::gpu::{COLD, Case, Failure, Gpu, random_bytes};

/// N and K.
const SHAPES: [(&str, [usize; 2]); 4] = [
    ("Pro gate_up", [6144, 7168]),
    ("Pro down", [7168, 3072]),
    ("Flash gate_up", [4096, 4096]),
    ("Flash down", [4096, 2048]),
];
const TOKENS: [usize; 6] = [1, 4, 16, 64, 256, 4096];

const FEW: [usize; 6] = [1, 4, 8, 16, 32, 64];

/// Copies of one weight that together are larger than the L2.
fn weights(
    gpu: &Gpu,
    [n, k]: [usize; 2],
    dtype: DType,
    scales: Option<DType>,
) -> Result<Vec<CudaWeight>, Failure> {
    let data = random_bytes(dtype, n * k * dtype.size());
    let blocks = n.div_ceil(128) * k.div_ceil(128);
    let scale_bytes = scales.map(|s| random_bytes(s, blocks * s.size()));
    let scales = scales.zip(scale_bytes.as_ref());
    let scales = scales.map(|(dtype, data)| BlockScales {
        data,
        dtype,
        block: [128, 128],
    });
    let weight = HostWeight::new(n, k, dtype, &data, scales)?;
    let copies = (COLD / data.len()).max(2);
    let load = |_| Ok(gpu.backend.load_weight(&[weight])?);
    (0..copies).map(load).collect()
}

fn buffer(gpu: &Gpu, dtype: DType, elements: usize) -> Result<CudaBuffer, Failure> {
    let bytes = random_bytes(dtype, elements * dtype.size());
    let mut buffer = gpu.backend.alloc(bytes.len())?;
    gpu.backend.upload(&mut buffer, &bytes)?;
    Ok(buffer)
}

/// A matrix of codes and scales in device memory.
struct Codes {
    codes: CudaBuffer,
    scales: CudaBuffer,
    layout: ScaleLayout,
    shape: [usize; 2],
}

impl Codes {
    fn new(
        gpu: &Gpu,
        quant: Quantization,
        order: ScaleOrder,
        [t, k]: [usize; 2],
    ) -> Result<Self, Failure> {
        let layout = ScaleLayout::contiguous(quant.format(), order, t, quant.groups(k));
        let scales = match quant.format() {
            ScaleFormat::F32 => buffer(gpu, DType::F32, layout.bytes()? / 4)?,
            ScaleFormat::Ue8m0 => buffer(gpu, DType::E8M0, layout.bytes()?)?,
        };
        Ok(Self {
            codes: buffer(gpu, DType::F8E4M3, t * k)?,
            scales,
            layout,
            shape: [t, k],
        })
    }

    fn read(&self) -> Quantized<'_, CudaBuffer> {
        let [t, k] = self.shape;
        Quantized {
            codes: Tensor::contiguous(&self.codes, DType::F8E4M3, t, k),
            scales: Scales {
                buffer: &self.scales,
                layout: self.layout,
            },
        }
    }

    fn write(&mut self) -> QuantizedMut<'_, CudaBuffer> {
        let [t, k] = self.shape;
        QuantizedMut {
            codes: TensorMut::contiguous(&mut self.codes, DType::F8E4M3, t, k),
            scales: ScalesMut {
                buffer: &mut self.scales,
                layout: self.layout,
            },
        }
    }
}

/// The ways of a product by a weight of FP8 or of another type.
fn routes(fp8: bool, t: usize) -> Vec<Option<Route>> {
    let mut routes = vec![None];
    if fp8 {
        routes.push(Some(Route::Decode));
    }
    if t <= 256 {
        routes.push(Some(Route::Rows));
    }
    if t >= 128 {
        routes.push(Some(Route::Tiles));
    }
    if t == 256 {
        routes.push(Some(Route::Any));
    }
    routes
}

/// Products of each kind of weight, each way.
pub fn products(gpu: &Gpu) -> Result<(), Failure> {
    println!(
        "microseconds a call, medians; x and y in bf16; floor: the weight's bytes at 4.39 TB/s, or\nits operations at 989 (bf16) or 1979 TFLOP/s (codes); - where the way does not take it\n"
    );
    println!(
        "| product | T | weight | floor | as chosen | decode | rows | tiles | no tensor cores |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let v4 = Quantization::deepseek_v4();
    let f32s = Quantization::new(128, ScaleFormat::F32)?;
    for (name, [n, k]) in SHAPES {
        let kinds = [
            ("bf16", DType::BF16, None),
            ("fp8, E8M0", DType::F8E4M3, Some(DType::E8M0)),
            ("fp8, f32", DType::F8E4M3, Some(DType::F32)),
        ];
        for (kind, dtype, scales) in kinds {
            let weights = weights(gpu, [n, k], dtype, scales)?;
            let weight_bytes = n * k * dtype.size();
            for t in TOKENS {
                let floor = |rate: f32| {
                    (weight_bytes as f32 / 4.39e6).max(2e-6 * (t * n * k) as f32 / rate)
                };
                let x = buffer(gpu, DType::BF16, t * k)?;
                // Long products are captured a few times only.
                let bytes = if t > 1000 { usize::MAX } else { weight_bytes };
                let mut y = gpu.backend.alloc(t * n * 2)?;
                let mut cases = Vec::new();
                let mut shown = Vec::new();
                let mut measure = |route: Option<Route>| -> Result<Option<Case>, Failure> {
                    let mut call = |place: usize| {
                        let x = Tensor::contiguous(&x, DType::BF16, t, k);
                        let y = TensorMut::contiguous(&mut y, DType::BF16, t, n);
                        gpu.backend.matmul_by(route, &x, &weights[place], y)
                    };
                    // The library chooses its algorithm at the first call.
                    if call(0).is_err() {
                        return Ok(None);
                    }
                    Ok(Some(gpu.case(weights.len(), bytes, |i| Ok(call(i)?))?))
                };
                let ways = routes(scales.is_some(), t);
                for &route in &ways {
                    let case = measure(route)?;
                    shown.push((route, case.is_some()));
                    cases.extend(case);
                }
                let times = gpu.medians(cases, if t > 1000 { 5 } else { 11 })?;
                let mut times = times.into_iter();
                let mut time = |route| {
                    let there = shown.contains(&(route, true));
                    let time = if there { times.next() } else { None };
                    time.map_or("-".to_owned(), |t| format!("{t:.1}"))
                };
                let [auto, decode] = [None, Some(Route::Decode)].map(&mut time);
                let own = [Route::Rows, Route::Tiles, Route::Any];
                let [rows, tiles, any] = own.map(|r| time(Some(r)));
                println!(
                    "| {name} | {t} | {kind} | {:.1} | {auto} | {decode} | {rows} | {tiles} | {any} |",
                    floor(989.0)
                );
                if scales.is_none() {
                    continue;
                }
                for (label, quant, order) in [
                    ("codes, UE8M0 rows", v4, ScaleOrder::RowMajor),
                    ("codes, f32 columns", f32s, ScaleOrder::ColumnMajor),
                ] {
                    if (scales == Some(DType::F32)) != (order == ScaleOrder::ColumnMajor) {
                        continue;
                    }
                    let codes = Codes::new(gpu, quant, order, [t, k])?;
                    for (how, backend, rate) in [
                        ("widened", &gpu.backend, 989.0),
                        ("tensor cores", &gpu.tensor_cores, 1979.0),
                    ] {
                        let mut room = gpu.backend.alloc(t * k * 2)?;
                        let mut call = |place: usize| {
                            let room = TensorMut::contiguous(&mut room, DType::BF16, t, k);
                            let y = TensorMut::contiguous(&mut y, DType::BF16, t, n);
                            backend.matmul_quantized(&quant, codes.read(), &weights[place], room, y)
                        };
                        call(0)?;
                        let case = gpu.case(weights.len(), bytes, |i| Ok(call(i)?))?;
                        let time = gpu.medians(vec![case], if t > 1000 { 5 } else { 11 })?[0];
                        println!(
                            "| {name} | {t} | {kind} x {label}, {how} | {:.1} | {time:.1} | - | - | - | - |",
                            floor(rate)
                        );
                    }
                }
            }
        }
    }
    Ok(())
}

/// Whole MLPs with FP8 weights: the input as it is, and quantized before both products.
pub fn mlps(gpu: &Gpu) -> Result<(), Failure> {
    println!("\nmicroseconds for a whole MLP with FP8 weights, E8M0 scales, medians\n");
    println!(
        "| model | T | weights at 4.39 TB/s | bf16 activations | FP8, widened | FP8, tensor cores |"
    );
    println!("|---|---|---|---|---|---|");
    let (op, quant) = (GatedActivation::deepseek_v4(), Quantization::deepseek_v4());
    for (name, [h, i]) in [("Pro", [7168, 3072]), ("Flash", [4096, 2048])] {
        let scales = Some(DType::E8M0);
        let gate_up = weights(gpu, [2 * i, h], DType::F8E4M3, scales)?;
        let down = weights(gpu, [h, i], DType::F8E4M3, scales)?;
        let copies = gate_up.len();
        for t in [1, 4, 16, 64, 256, 4096] {
            let bf16 = DType::BF16;
            let x = buffer(gpu, bf16, t * h)?;
            let [mut wide, mut act, mut y, mut room] =
                [2 * i, i, h, h].map(|cols| gpu.backend.alloc(2 * t * cols).map_err(Failure::from));
            let (wide, act) = (
                wide.as_mut().map_err(|e| e.to_string())?,
                act.as_mut().map_err(|e| e.to_string())?,
            );
            let (y, room) = (
                y.as_mut().map_err(|e| e.to_string())?,
                room.as_mut().map_err(|e| e.to_string())?,
            );
            let mut codes_x = Codes::new(gpu, quant, ScaleOrder::RowMajor, [t, h])?;
            let mut codes_act = Codes::new(gpu, quant, ScaleOrder::RowMajor, [t, i])?;
            let b = &gpu.backend;
            let mut plain = |place: usize| -> Result<(), Failure> {
                let x = Tensor::contiguous(&x, bf16, t, h);
                b.matmul(
                    x,
                    &gate_up[place],
                    TensorMut::contiguous(wide, bf16, t, 2 * i),
                )?;
                let from = Tensor::contiguous(wide, bf16, t, 2 * i);
                b.act_and_mul(&op, from, TensorMut::contiguous(act, bf16, t, i))?;
                let from = Tensor::contiguous(act, bf16, t, i);
                Ok(b.matmul(from, &down[place], TensorMut::contiguous(y, bf16, t, h))?)
            };
            plain(0)?;
            let bytes = 3 * h * i;
            let mut cases = vec![gpu.case(copies, bytes, &mut plain)?];
            for b in [&gpu.backend, &gpu.tensor_cores] {
                let mut fp8 = |place: usize| -> Result<(), Failure> {
                    b.quantize(&quant, Tensor::contiguous(&x, bf16, t, h), codes_x.write())?;
                    let to = TensorMut::contiguous(wide, bf16, t, 2 * i);
                    let space = TensorMut::contiguous(room, bf16, t, h);
                    b.matmul_quantized(&quant, codes_x.read(), &gate_up[place], space, to)?;
                    let from = Tensor::contiguous(wide, bf16, t, 2 * i);
                    let options = QuantOptions::default();
                    b.act_and_mul_quant(&op, &quant, from, codes_act.write(), options)?;
                    let to = TensorMut::contiguous(y, bf16, t, h);
                    let space = TensorMut::contiguous(room, bf16, t, i);
                    b.matmul_quantized(&quant, codes_act.read(), &down[place], space, to)?;
                    Ok(())
                };
                fp8(0)?;
                cases.push(gpu.case(copies, bytes, &mut fp8)?);
            }
            let m = gpu.medians(cases, 15)?;
            println!(
                "| {name} | {t} | {:.1} | {:.1} | {:.1} | {:.1} |",
                bytes as f32 / 4.39e6,
                m[0],
                m[1],
                m[2]
            );
        }
    }
    Ok(())
}

/// How far products of codes are from sums in f64: on tensor cores, and widened.
pub fn accuracy(gpu: &Gpu) -> Result<(), Failure> {
    println!("\nproducts of codes against sums in f64, x [64, 7168] by w [128, 7168], y in f32\n");
    println!(
        "| way | error/size | worst error of one output over the sum of its terms' magnitudes |"
    );
    println!("|---|---|---|");
    let [t, n, k] = [64, 128, 7168];
    let quant = Quantization::new(128, ScaleFormat::F32)?;
    let scales = Some(DType::F32);
    let weight = &weights(gpu, [n, k], DType::F8E4M3, scales)?[0];
    let codes = Codes::new(gpu, quant, ScaleOrder::ColumnMajor, [t, k])?;
    let mut room = gpu.backend.alloc(t * k * 4)?;
    let mut y = gpu.backend.alloc(t * n * 4)?;

    // The same bytes as on the device.
    let bytes = |dtype, count: usize| random_bytes(dtype, count * dtype.size());
    let (x, w) = (bytes(DType::F8E4M3, t * k), bytes(DType::F8E4M3, n * k));
    let groups = k / 128;
    let floats = |count| -> Vec<f64> {
        let all = bytes(DType::F32, count);
        let one = |b: &[u8]| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        all.chunks_exact(4).map(one).collect()
    };
    let (x_scales, w_scales) = (floats(t * groups), floats(groups));
    let value = |code: u8| f64::from(E4M3(code).to_f32());

    for (name, tensor_cores) in [("FP8 tensor cores", true), ("widened to f32", false)] {
        let to = TensorMut::contiguous(&mut y, DType::F32, t, n);
        let b = if tensor_cores {
            &gpu.tensor_cores
        } else {
            &gpu.backend
        };
        let space = TensorMut::contiguous(&mut room, DType::F32, t, k);
        b.matmul_quantized(&quant, codes.read(), weight, space, to)?;
        let mut got = vec![0; t * n * 4];
        gpu.backend.download(&y, &mut got)?;
        let (mut wrong, mut size, mut worst) = (0.0_f64, 0.0_f64, 0.0_f64);
        for (at, got) in got.chunks_exact(4).enumerate() {
            let (row, column) = (at / n, at % n);
            let (mut sum, mut terms) = (0.0, 0.0);
            for i in 0..k {
                let scale = x_scales[i / 128 * t + row] * w_scales[i / 128];
                let term = value(x[row * k + i]) * value(w[column * k + i]) * scale;
                sum += term;
                terms += term.abs();
            }
            let error = f64::from(f32::from_le_bytes([got[0], got[1], got[2], got[3]])) - sum;
            wrong += error * error;
            size += sum * sum;
            worst = worst.max(error.abs() / terms);
        }
        println!("| {name} | {:.2e} | {worst:.2e} |", (wrong / size).sqrt());
    }
    Ok(())
}

/// The kernels for few rows of x alone.
pub fn few(gpu: &Gpu) -> Result<(), Failure> {
    println!("microseconds a call, medians: rows of x {FEW:?}\n");
    for (name, [n, k]) in SHAPES {
        let weights = weights(gpu, [n, k], DType::F8E4M3, Some(DType::E8M0))?;
        let mut cases = Vec::new();
        let x = buffer(gpu, DType::BF16, 64 * k)?;
        let mut y = gpu.backend.alloc(64 * n * 2)?;
        for t in FEW {
            cases.push(gpu.case(weights.len(), n * k, |place| {
                let x = Tensor::contiguous(&x, DType::BF16, t, k);
                let y = TensorMut::contiguous(&mut y, DType::BF16, t, n);
                let route = Some(Route::Rows);
                Ok(gpu.backend.matmul_by(route, &x, &weights[place], y)?)
            })?);
        }
        println!("{name:13} {:.1?}", gpu.medians(cases, 15)?);
    }
    Ok(())
}
