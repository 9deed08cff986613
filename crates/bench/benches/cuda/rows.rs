//! Activations, plain and quantizing, against the limit of the memory.

use cudarc::driver::DevicePtr;
use swiglu_bench::{Report, figure};
use swiglu_conformance::Case as Call;
use swiglu_core::{
    Float, GatedActivation, Quantization, RowLayout, ScaleFormat, ScaleLayout, ScaleOrder,
};
use swiglu_cuda::{
    LaunchOptions, RawActCall, RawGateUp, RawMatrix, RawQuantCall, RawQuantized, cudarc,
};

use crate::gpu::{Bytes, COLD, Case, Failure, Gpu};

const ROWS: [(usize, usize); 9] = [
    (1, 2048),
    (64, 3072),
    (1, 18432),
    (128, 3072),
    (256, 3072),
    (512, 3072),
    (1024, 3072),
    (4096, 3072),
    (32768, 18432),
];

/// Unaligned: an odd row, a stride and a base off by one element.
const UNALIGNED: [(usize, usize); 4] = [(1, 2049), (64, 3071), (512, 3071), (4096, 3071)];

#[derive(Clone, Copy)]
enum Kernel {
    Activation(GatedActivation),
    Quantized(GatedActivation, Quantization, ScaleOrder),
    Copy,
}

/// Slots of input and output for calls of one shape, rows of input and output `gap` elements apart.
struct Memory<'a> {
    gpu: &'a Gpu,
    float: Float,
    shape: (usize, usize),
    gap: usize,
    /// Elements before the first.
    offset: usize,
    addresses: [u64; 2],
    ring: usize,
    _slices: [cudarc::driver::CudaSlice<u8>; 2],
}

impl<'a> Memory<'a> {
    fn new(
        gpu: &'a Gpu,
        float: Float,
        (t, d): (usize, usize),
        [gap, offset]: [usize; 2],
    ) -> Result<Self, Failure> {
        let bytes = t * (d + gap) * float.size();
        let ring = (COLD / (3 * bytes)).max(2);
        let ends = 2 * offset * float.size();
        let input = gpu.random(Bytes::Numbers(float), 2 * ring * bytes + ends)?;
        let output = gpu.stream.alloc_zeros::<u8>(ring * bytes + ends)?;
        let address = |slice: &cudarc::driver::CudaSlice<u8>| slice.device_ptr(&gpu.stream).0;
        Ok(Self {
            gpu,
            float,
            shape: (t, d),
            gap,
            offset,
            addresses: [address(&input), address(&output)],
            ring,
            _slices: [input, output],
        })
    }

    fn bytes(&self) -> usize {
        let (t, d) = self.shape;
        t * d * self.float.size()
    }

    fn case(&self, kernel: Kernel, options: LaunchOptions) -> Result<Case, Failure> {
        let (t, d) = self.shape;
        let slot_bytes = t * (d + self.gap) * self.float.size();
        let stream = self.gpu.stream.cu_stream();
        let layout = |cols, gap| {
            RowLayout::contiguous(t, cols)
                .with_stride(cols + gap)
                .with_offset(self.offset)
        };
        let (input_layout, output_layout) = (layout(2 * d, 2 * self.gap), layout(d, self.gap));
        let matrix = |address, layout| RawMatrix {
            address,
            float: self.float,
            layout,
        };
        self.gpu.case(self.ring, self.traffic(), |place| {
            let slot = (place * slot_bytes) as u64;
            let (input, output) = (self.addresses[0] + 2 * slot, self.addresses[1] + slot);
            // SAFETY: the buffers hold `ring` slots.
            unsafe {
                match kernel {
                    Kernel::Copy => {
                        let bytes = self.bytes() / 16 * 16;
                        let (input, output) = (input & !15, output & !15);
                        let activations = &self.gpu.activations;
                        activations.copy_raw(stream, input, output, bytes, options)?;
                    }
                    Kernel::Activation(op) => {
                        let call = RawActCall {
                            input: RawGateUp::Merged(matrix(input, input_layout)),
                            output: matrix(output, output_layout),
                            batches: None,
                        };
                        let activations = &self.gpu.activations;
                        activations.act_and_mul_raw(stream, &op, &call, options)?;
                    }
                    Kernel::Quantized(op, quant, order) => {
                        // Codes in the first half of a slot for y, scales in the second.
                        let call = RawQuantCall {
                            input: RawGateUp::Merged(matrix(input, input_layout)),
                            output: RawQuantized {
                                codes: output,
                                codes_layout: RowLayout::contiguous(t, d),
                                scales: output + (t * d).next_multiple_of(16) as u64,
                                scales_layout: ScaleLayout::contiguous(
                                    quant.format(),
                                    order,
                                    t,
                                    quant.groups(d),
                                ),
                            },
                            route: None,
                            batches: None,
                            hits: None,
                        };
                        let quantizers = &self.gpu.quantizers;
                        quantizers.act_and_mul_quant_raw(stream, &op, &quant, &call, options)?;
                    }
                }
            }
            Ok(())
        })
    }

    /// Bytes that an activation reads and writes.
    fn traffic(&self) -> usize {
        let (t, d) = self.shape;
        let call = Call::activation(GatedActivation::deepseek_v4(), self.float, t, d);
        call.bytes().iter().sum()
    }

    fn medians(&self, cases: &[(Kernel, LaunchOptions)]) -> Result<Vec<f64>, Failure> {
        let cases = cases.iter().map(|&(k, o)| self.case(k, o));
        let cases = cases.collect::<Result<Vec<_>, _>>()?;
        let replays = if self.bytes() > 100 << 20 { 8 } else { 20 };
        self.gpu.medians(cases, replays)
    }
}

const PLAIN: LaunchOptions = LaunchOptions::ordinary();
const PDL: LaunchOptions = LaunchOptions::programmatic();

/// The activation against the limit.
pub fn limit(gpu: &Gpu, report: &mut Report) -> Result<(), Failure> {
    let clamp = Kernel::Activation(GatedActivation::deepseek_v4());
    let silu = Kernel::Activation(GatedActivation::silu_and_mul());
    for float in Float::ALL {
        for (t, d) in ROWS {
            let memory = Memory::new(gpu, float, (t, d), [0, 0])?;
            let wide = PDL.with_threads(512);
            let m = memory.medians(&[
                (Kernel::Copy, PLAIN),
                (Kernel::Copy, PDL),
                (Kernel::Copy, wide),
                (clamp, PLAIN),
                (clamp, PDL),
                (silu, PDL),
            ])?;
            let copy_pdl = m[1].min(m[2]);
            let figures = [
                figure("copy", "us", m[0]),
                figure("copy, PDL", "us", copy_pdl),
                figure("clamp", "us", m[3]),
                figure("clamp, PDL", "us", m[4]),
                figure("silu, PDL", "us", m[5]),
                figure("limit/ours", "ratio", m[0].min(copy_pdl) / m[4]),
                figure("traffic", "TB/s", memory.traffic() as f64 / m[4] / 1e6),
            ];
            report.case("activation", &format!("{float} {t}x{d}"), &figures);
        }
    }
    for float in Float::ALL {
        for (t, d) in UNALIGNED {
            let odd = Memory::new(gpu, float, (t, d), [0, 0])?;
            let limit = odd.medians(&[(Kernel::Copy, PDL.with_threads(512)), (clamp, PDL)])?;
            let of = |how| Memory::new(gpu, float, (t, d + 1), how)?.medians(&[(clamp, PDL)]);
            let figures = [
                figure("copy", "us", limit[0]),
                figure("odd d", "us", limit[1]),
                figure("odd stride, d + 1", "us", of([1, 0])?[0]),
                figure("odd base, d + 1", "us", of([0, 1])?[0]),
                figure("limit/odd d", "ratio", limit[0] / limit[1]),
            ];
            let section = "activation, rows that are not whole vectors";
            report.case(section, &format!("{float} {t}x{d}"), &figures);
        }
    }
    Ok(())
}

/// The activation that quantizes beside the one that does not; the ratio is that of groups of 128
/// with E8M0 scales.
pub fn quantized(gpu: &Gpu, report: &mut Report) -> Result<(), Failure> {
    let op = GatedActivation::deepseek_v4();
    let v4 = Quantization::deepseek_v4();
    let f32s = Quantization::new(128, ScaleFormat::F32)?;
    let kernels = [
        ("clamp", Kernel::Activation(op)),
        (
            "quantize, E8M0 128",
            Kernel::Quantized(op, v4, ScaleOrder::RowMajor),
        ),
        (
            "quantize, E8M0 128 packed",
            Kernel::Quantized(op, v4, ScaleOrder::Packed),
        ),
        (
            "quantize, f32 128 columns",
            Kernel::Quantized(op, f32s, ScaleOrder::ColumnMajor),
        ),
        (
            "quantize, E8M0 32",
            Kernel::Quantized(op, Quantization::deepseek_v4_1(), ScaleOrder::RowMajor),
        ),
    ];
    for float in Float::ALL {
        for (t, d) in ROWS {
            let memory = Memory::new(gpu, float, (t, d), [0, 0])?;
            let cases = [PLAIN, PDL].map(|o| kernels.map(|(_, k)| (k, o)));
            let m = memory.medians(cases.as_flattened())?;
            for (m, launch) in m.chunks(kernels.len()).zip(["plain", "PDL"]) {
                let times = kernels.iter().zip(m);
                let mut figures: Vec<_> = times.map(|((n, _), &m)| figure(*n, "us", m)).collect();
                figures.push(figure("quantize/clamp", "ratio", m[1] / m[0]));
                let case = format!("{float} {t}x{d} {launch}");
                report.case("activation and quantize", &case, &figures);
            }
        }
    }
    Ok(())
}

/// The sizes of a block.
pub fn blocks(gpu: &Gpu, report: &mut Report) -> Result<(), Failure> {
    let sizes = [64, 128, 192, 256, 384, 512];
    let op = GatedActivation::deepseek_v4();
    let quant = Kernel::Quantized(op, Quantization::deepseek_v4(), ScaleOrder::RowMajor);
    for (t, d) in ROWS {
        let memory = Memory::new(gpu, Float::BF16, (t, d), [0, 0])?;
        for (name, kernel) in [
            ("copy", Kernel::Copy),
            ("clamp", Kernel::Activation(op)),
            ("quantize", quant),
        ] {
            let times = memory.medians(&sizes.map(|n| (kernel, PDL.with_threads(n))))?;
            let figures = sizes.iter().zip(times);
            let figures: Vec<_> = figures
                .map(|(n, time)| figure(format!("{n} threads"), "us", time))
                .collect();
            let case = format!("bf16 {t}x{d} {name}, PDL");
            report.case("sizes of a block", &case, &figures);
        }
    }
    Ok(())
}
