//! Matmuls and whole MLPs, each way that they may go, weights cold.

use swiglu_bench::{Figure, Report, figure};
use swiglu_conformance::{Case as Call, MlpShape};
use swiglu_core::{
    Backend, E4M3, Float, GatedActivation, HostWeight, Matmul, QuantOptions, Quantization,
    Quantize, Quantized, QuantizedMut, RowLayout, ScaleFormat, ScaleLayout, ScaleOrder, Tensor,
    TensorMut, WeightFormat,
};
use swiglu_cuda::{CudaBackend, CudaBuffer, CudaWeight, Route};

use crate::gpu::{Bytes, COLD, Case, Failure, Gpu, random_bytes};
use crate::steps::gate_ups;

pub type In<'a> = Tensor<'a, CudaBackend>;
pub type Out<'a> = TensorMut<'a, CudaBackend>;

pub const BF16: Float = Float::BF16;

const fn fp8(scales: ScaleFormat) -> WeightFormat {
    WeightFormat::Fp8 {
        scales,
        block: [128, 128],
    }
}

/// N and K.
const SHAPES: [(&str, [usize; 2]); 4] = [
    ("Pro gate_up", [6144, 7168]),
    ("Pro down", [7168, 3072]),
    ("Flash gate_up", [4096, 4096]),
    ("Flash down", [4096, 2048]),
];
const TOKENS: [usize; 6] = [1, 4, 16, 64, 256, 4096];

/// Of whole MLPs.
const OF_MLPS: [usize; 23] = [
    1, 2, 4, 8, 16, 24, 32, 64, 96, 128, 192, 256, 512, 640, 768, 896, 1000, 1024, 1280, 1536,
    2048, 3072, 4096,
];

const FEW: [usize; 6] = [1, 4, 8, 16, 32, 64];

/// The bytes of a weight and of its scales.
pub fn weight_bytes(shape: [usize; 2], format: WeightFormat) -> Result<[Vec<u8>; 2], Failure> {
    let elements = match format {
        WeightFormat::Float(float) => Bytes::Numbers(float),
        _ => Bytes::Codes,
    };
    let data = random_bytes(elements, shape[0] * format.row_bytes(shape[1]));
    let [rows, columns] = format.scale_grid(shape)?;
    let scales = format.scaling().map_or_else(Vec::new, |(scales, _)| {
        random_bytes(Bytes::of_scales(scales), rows * columns * scales.size())
    });
    Ok([data, scales])
}

/// Copies of one weight that together are larger than the L2.
pub fn weights(
    gpu: &Gpu,
    shape: [usize; 2],
    format: WeightFormat,
) -> Result<Vec<CudaWeight>, Failure> {
    let copies = (COLD / (shape[0] * format.row_bytes(shape[1]))).max(2);
    weights_of(&gpu.backend, shape, format, copies)
}

/// So many copies of one weight, as a backend loads them.
fn weights_of(
    backend: &CudaBackend,
    shape: [usize; 2],
    format: WeightFormat,
    copies: usize,
) -> Result<Vec<CudaWeight>, Failure> {
    let [data, scales] = weight_bytes(shape, format)?;
    let weight = HostWeight::new(shape, format, &data, &scales)?;
    let load = |_| Ok(backend.load_weight(std::slice::from_ref(&weight))?);
    (0..copies).map(load).collect()
}

fn buffer(gpu: &Gpu, kind: Bytes, bytes: usize) -> Result<CudaBuffer, Failure> {
    let bytes = random_bytes(kind, bytes);
    let mut buffer = gpu.backend.alloc(bytes.len())?;
    gpu.backend.upload(&mut buffer, &bytes)?;
    Ok(buffer)
}

/// Numbers in bf16.
pub fn numbers(gpu: &Gpu, elements: usize) -> Result<CudaBuffer, Failure> {
    buffer(gpu, Bytes::Numbers(BF16), 2 * elements)
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
        let scales = Bytes::of_scales(quant.format());
        Ok(Self {
            codes: buffer(gpu, Bytes::Codes, t * k)?,
            scales: buffer(gpu, scales, layout.bytes()?)?,
            layout,
            shape: [t, k],
        })
    }

    fn read(&self) -> Quantized<'_, CudaBackend> {
        let [t, k] = self.shape;
        Quantized {
            codes: (&self.codes).into(),
            layout: RowLayout::contiguous(t, k),
            scales: (&self.scales).into(),
            scale_layout: self.layout,
        }
    }

    fn write(&mut self) -> QuantizedMut<'_, CudaBackend> {
        let [t, k] = self.shape;
        QuantizedMut {
            codes: (&mut self.codes).into(),
            layout: RowLayout::contiguous(t, k),
            scales: (&mut self.scales).into(),
            scale_layout: self.layout,
        }
    }
}

/// The ways of a matmul by a weight of FP8 or of another type.
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
        routes.push(Some(Route::Ordered));
    }
    routes
}

/// Matmuls of each kind of weight, each way; x and y in bf16.
pub fn matmuls(gpu: &Gpu, report: &mut Report) -> Result<(), Failure> {
    for (name, [n, k]) in SHAPES {
        let kinds = [
            ("bf16", WeightFormat::Float(BF16)),
            ("FP8, E8M0", fp8(ScaleFormat::E8M0)),
            ("FP8, f32", fp8(ScaleFormat::F32)),
        ];
        for (kind, format) in kinds {
            let weights = weights(gpu, [n, k], format)?;
            // FP8 tensor cores read weights by rows.
            let in_rows = weights_of(&gpu.tensor_cores, [n, k], format, weights.len())?;
            for t in TOKENS {
                let matmul = Measured {
                    gpu,
                    weights: &weights,
                    in_rows: &in_rows,
                    format,
                    shape: [t, n, k],
                };
                let case = format!("{name} T={t}, {kind} weight");
                report.case("matmul", &case, &matmul.ways()?);
                if let Some((scales, _)) = format.scaling() {
                    report.case("matmul, W8A8", &case, &matmul.of_codes(scales)?);
                }
            }
        }
    }
    Ok(())
}

/// A matmul by copies of one weight.
struct Measured<'a> {
    gpu: &'a Gpu,
    weights: &'a [CudaWeight],
    in_rows: &'a [CudaWeight],
    format: WeightFormat,
    /// T, N and K.
    shape: [usize; 3],
}

impl Measured<'_> {
    /// The weight's bytes.
    fn bytes(&self) -> usize {
        self.shape[1] * self.format.row_bytes(self.shape[2])
    }

    /// Microseconds that the weight takes at 4.39 TB/s, or the operations at so many TFLOP/s.
    fn floor(&self, rate: f64) -> f64 {
        let operations = Call::matmul(self.format, BF16, self.shape).operations();
        (self.bytes() as f64 / 4.39e6).max(operations as f64 / rate / 1e6)
    }

    fn graph(
        &self,
        mut call: impl FnMut(usize) -> swiglu_core::Result<()>,
    ) -> Result<Case, Failure> {
        // Long matmuls are captured a few times only.
        let long = self.shape[0] > 1000;
        let bytes = if long { usize::MAX } else { self.bytes() };
        self.gpu.case(self.weights.len(), bytes, |i| Ok(call(i)?))
    }

    fn medians(&self, cases: Vec<Case>) -> Result<Vec<f64>, Failure> {
        self.gpu
            .medians(cases, if self.shape[0] > 1000 { 5 } else { 11 })
    }

    /// As the plan chooses, and each way that it could have taken.
    fn ways(&self) -> Result<Vec<Figure>, Failure> {
        let [t, n, k] = self.shape;
        let (gpu, backend) = (self.gpu, &self.gpu.backend);
        let x = numbers(gpu, t * k)?;
        let mut y = backend.alloc(t * n * 2)?;
        let (mut cases, mut taken) = (Vec::new(), Vec::new());
        for route in routes(self.format.scaling().is_some(), t) {
            let mut call = |place: usize| {
                let x = In::contiguous((&x).into(), BF16, t, k);
                let y = Out::contiguous((&mut y).into(), BF16, t, n);
                backend.matmul_by(route, &x, &self.weights[place], &y)
            };
            // The library chooses its algorithm at the first call; a way that does not take it refuses.
            if call(0).is_ok() {
                cases.push(self.graph(call)?);
                taken.push(route);
            }
        }
        let times = self.medians(cases)?;
        let time = |route| {
            let at = taken.iter().position(|&r| r == route);
            at.map_or(f64::NAN, |at| times[at])
        };
        Ok(vec![
            figure("floor", "us", self.floor(989.0)),
            figure("as chosen", "us", time(None)),
            figure("decode", "us", time(Some(Route::Decode))),
            figure("rows", "us", time(Some(Route::Rows))),
            figure("tiles", "us", time(Some(Route::Tiles))),
            figure("ordered", "us", time(Some(Route::Ordered))),
        ])
    }

    /// Of codes with scales as the weight has them, widened and on FP8 tensor cores.
    fn of_codes(&self, scales: ScaleFormat) -> Result<Vec<Figure>, Failure> {
        let [t, n, k] = self.shape;
        let gpu = self.gpu;
        let quant = Quantization::new(128, scales)?;
        let order = match scales {
            ScaleFormat::E8M0 => ScaleOrder::RowMajor,
            ScaleFormat::F32 => ScaleOrder::ColumnMajor,
        };
        let codes = Codes::new(gpu, quant, order, [t, k])?;
        let mut y = gpu.backend.alloc(t * n * 2)?;
        let mut room = gpu.backend.alloc(t * k * 2)?;
        let mut figures = Vec::new();
        for (how, backend, weights, rate) in [
            ("widened", &gpu.backend, self.weights, 989.0),
            ("FP8 tensor cores", &gpu.tensor_cores, self.in_rows, 1979.0),
        ] {
            let mut call = |place: usize| {
                let room = (&mut room).into();
                let y = Out::contiguous((&mut y).into(), BF16, t, n);
                backend.matmul_quantized(&quant, codes.read(), &weights[place], room, y)
            };
            call(0)?;
            let case = self.graph(call)?;
            let floor = self.floor(rate);
            figures.push(figure(format!("{how}, floor"), "us", floor));
            figures.push(figure(how, "us", self.medians(vec![case])?[0]));
        }
        Ok(figures)
    }
}

/// Whole MLPs with FP8 weights: the input as it is, and quantized before both matmuls.
pub fn mlps(gpu: &Gpu, report: &mut Report) -> Result<(), Failure> {
    let (op, quant) = (GatedActivation::deepseek_v4(), Quantization::deepseek_v4());
    for model in [MlpShape::PRO, MlpShape::FLASH] {
        let (name, h, i) = (model.name, model.hidden, model.intermediate);
        let gate_up = gate_ups(gpu, &model, model.weight())?;
        let format = WeightFormat::DEEPSEEK_V4;
        let down = weights(gpu, [h, i], format)?;
        let copies = gate_up.len();
        // FP8 tensor cores read weights by rows.
        let in_rows = [[2 * i, h], [h, i]];
        let in_rows = in_rows.map(|shape| weights_of(&gpu.tensor_cores, shape, format, copies));
        let [first, second] = in_rows;
        let in_rows = [first?, second?];
        for t in OF_MLPS {
            let x = numbers(gpu, t * h)?;
            let alloc = |cols: usize| gpu.backend.alloc(2 * t * cols);
            let (mut wide, mut act) = (alloc(2 * i)?, alloc(i)?);
            let (mut y, mut room) = (alloc(h)?, alloc(h)?);
            let mut codes_x = Codes::new(gpu, quant, ScaleOrder::RowMajor, [t, h])?;
            let mut codes_act = Codes::new(gpu, quant, ScaleOrder::RowMajor, [t, i])?;
            let b = &gpu.backend;
            let mut plain = |place: usize| -> Result<(), Failure> {
                let from = In::contiguous((&x).into(), BF16, t, h);
                let between = Out::contiguous((&mut wide).into(), BF16, t, 2 * i);
                let to = Out::contiguous((&mut act).into(), BF16, t, i);
                b.matmul_act_and_mul(&op, from, &gate_up[place], between, to)?;
                let from = In::contiguous((&act).into(), BF16, t, i);
                let to = Out::contiguous((&mut y).into(), BF16, t, h);
                Ok(b.matmul(from, &down[place], to)?)
            };
            plain(0)?;
            let bytes = 3 * h * i;
            let mut cases = vec![gpu.case(copies, bytes, &mut plain)?];
            for (b, gate_up, down) in [
                (&gpu.backend, &gate_up, &down),
                (&gpu.tensor_cores, &in_rows[0], &in_rows[1]),
            ] {
                let mut fp8 = |place: usize| -> Result<(), Failure> {
                    let from = || In::contiguous((&x).into(), BF16, t, h);
                    let to = Out::contiguous((&mut act).into(), BF16, t, i);
                    let space = (&mut room).into();
                    let weight = &gate_up[place];
                    if b.quantizing_matmul_act_and_mul(&op, &quant, from(), weight, space, to)? {
                        let from = In::contiguous((&act).into(), BF16, t, i);
                        let to = Out::contiguous((&mut y).into(), BF16, t, h);
                        let space = (&mut room).into();
                        b.quantizing_matmul(&quant, from, &down[place], space, to)?;
                        return Ok(());
                    }
                    let (space, to) = ((&mut room).into(), codes_act.write());
                    if b.quantizing_matmul_act_and_mul_quant(
                        &op,
                        &quant,
                        from(),
                        weight,
                        space,
                        to,
                    )? {
                        let to = Out::contiguous((&mut y).into(), BF16, t, h);
                        let space = (&mut room).into();
                        b.matmul_quantized(&quant, codes_act.read(), &down[place], space, to)?;
                        return Ok(());
                    }
                    b.quantize(&quant, from(), codes_x.write())?;
                    let to = Out::contiguous((&mut wide).into(), BF16, t, 2 * i);
                    let space = (&mut room).into();
                    b.matmul_quantized(&quant, codes_x.read(), weight, space, to)?;
                    let from = In::contiguous((&wide).into(), BF16, t, 2 * i).into();
                    let options = QuantOptions::default();
                    b.act_and_mul_quant(&op, &quant, from, codes_act.write(), options)?;
                    let to = Out::contiguous((&mut y).into(), BF16, t, h);
                    let space = (&mut room).into();
                    b.matmul_quantized(&quant, codes_act.read(), &down[place], space, to)?;
                    Ok(())
                };
                fp8(0)?;
                cases.push(gpu.case(copies, bytes, &mut fp8)?);
            }
            let m = gpu.medians(cases, 15)?;
            let figures = [
                figure("floor: weights at 4.39 TB/s", "us", bytes as f64 / 4.39e6),
                figure("W8A16, bf16 activations", "us", m[0]),
                figure("W8A8, widened", "us", m[1]),
                figure("W8A8, FP8 tensor cores", "us", m[2]),
            ];
            report.case("mlp", &format!("{name} T={t}"), &figures);
        }
    }
    Ok(())
}

/// How far matmuls of codes are from sums in f64: on tensor cores, and widened to f32, which is
/// exact under any scales: x [64, 7168] by w [128, 7168], y in f32.
pub fn accuracy(gpu: &Gpu, report: &mut Report) -> Result<(), Failure> {
    let [t, n, k] = [64, 128, 7168];
    let quant = Quantization::new(128, ScaleFormat::F32)?;
    let format = fp8(ScaleFormat::F32);
    let weight = &weights(gpu, [n, k], format)?[0];
    let codes = Codes::new(gpu, quant, ScaleOrder::ColumnMajor, [t, k])?;
    let mut room = gpu.backend.alloc(t * k * 4)?;
    let mut y = gpu.backend.alloc(t * n * 4)?;

    // The same bytes as on the device.
    let groups = k / 128;
    let x = random_bytes(Bytes::Codes, t * k);
    let [w, w_scales] = weight_bytes([n, k], format)?;
    let floats = |bytes: &[u8]| -> Vec<f64> {
        let one = |b: &[u8]| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        bytes.chunks_exact(4).map(one).collect()
    };
    let x_scales = random_bytes(Bytes::Numbers(Float::F32), 4 * t * groups);
    let (x_scales, w_scales) = (floats(&x_scales), floats(&w_scales));
    let value = |code: u8| f64::from(E4M3(code).to_f32());

    for (name, tensor_cores) in [("FP8 tensor cores", true), ("widened to f32", false)] {
        let to = Out::contiguous((&mut y).into(), Float::F32, t, n);
        if tensor_cores {
            let in_rows = &weights_of(&gpu.tensor_cores, [n, k], format, 1)?[0];
            let space = (&mut room).into();
            gpu.tensor_cores
                .matmul_quantized(&quant, codes.read(), in_rows, space, to)?;
        } else {
            let mut wide = Out::contiguous((&mut room).into(), Float::F32, t, k);
            gpu.backend
                .dequantize(&quant, codes.read(), wide.reborrow())?;
            gpu.backend.matmul(wide.as_tensor(), weight, to)?;
        }
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
        let figures = [
            figure("error/size", "ratio", (wrong / size).sqrt()),
            figure(
                "worst error of an output over the sum of its terms' magnitudes",
                "ratio",
                worst,
            ),
        ];
        report.case("precision of W8A8", name, &figures);
    }
    Ok(())
}

/// The kernels for few rows of x alone.
pub fn few(gpu: &Gpu, report: &mut Report) -> Result<(), Failure> {
    for (name, [n, k]) in SHAPES {
        let weights = weights(gpu, [n, k], WeightFormat::DEEPSEEK_V4)?;
        let mut cases = Vec::new();
        let x = numbers(gpu, 64 * k)?;
        let mut y = gpu.backend.alloc(64 * n * 2)?;
        for t in FEW {
            cases.push(gpu.case(weights.len(), n * k, |place| {
                let x = In::contiguous((&x).into(), BF16, t, k);
                let y = Out::contiguous((&mut y).into(), BF16, t, n);
                let route = Some(Route::Rows);
                Ok(gpu.backend.matmul_by(route, &x, &weights[place], &y)?)
            })?);
        }
        for (t, time) in FEW.iter().zip(gpu.medians(cases, 15)?) {
            let case = format!("{name} T={t}, FP8, E8M0 weight");
            report.case("matmul, few rows", &case, &[figure("rows", "us", time)]);
        }
    }
    Ok(())
}
