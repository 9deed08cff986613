//! Activations, plain and quantizing, against the limit of the memory.

use cudarc::driver::DevicePtr;
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
        self.gpu.case(self.ring, 3 * self.bytes(), |place| {
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

    fn medians(&self, cases: &[(Kernel, LaunchOptions)]) -> Result<Vec<f32>, Failure> {
        let cases = cases.iter().map(|&(k, o)| self.case(k, o));
        let cases = cases.collect::<Result<Vec<_>, _>>()?;
        let replays = if self.bytes() > 100 << 20 { 8 } else { 20 };
        self.gpu.medians(cases, replays)
    }
}

const PLAIN: LaunchOptions = LaunchOptions::ordinary();
const PDL: LaunchOptions = LaunchOptions::programmatic();

/// The activation against the limit.
pub fn limit(gpu: &Gpu) -> Result<(), Failure> {
    println!("microseconds a call, medians; limit/ours is the fastest copy over clamp with PDL\n");
    println!(
        "| T x d | type | copy | copy, PDL | clamp | clamp, PDL | silu, PDL | limit/ours | TB/s |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
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
            let limit = m[0].min(copy_pdl);
            println!(
                "| {t} x {d} | {float} | {:.2} | {copy_pdl:.2} | {:.2} | {:.2} | {:.2} | {:.3} | {:.2} |",
                m[0],
                m[3],
                m[4],
                m[5],
                limit / m[4],
                3e-6 * memory.bytes() as f32 / m[4]
            );
        }
    }
    println!("\nrows that are not whole vectors: d as given, and a gap or a base of an element\n");
    println!("| T x d | type | copy | odd d | odd stride, d + 1 | odd base, d + 1 | limit/odd d |");
    println!("|---|---|---|---|---|---|---|");
    for float in Float::ALL {
        for (t, d) in UNALIGNED {
            let odd = Memory::new(gpu, float, (t, d), [0, 0])?;
            let limit = odd.medians(&[(Kernel::Copy, PDL.with_threads(512)), (clamp, PDL)])?;
            let of = |how| Memory::new(gpu, float, (t, d + 1), how)?.medians(&[(clamp, PDL)]);
            let (stride, base) = (of([1, 0])?[0], of([0, 1])?[0]);
            println!(
                "| {t} x {d} | {float} | {:.2} | {:.2} | {stride:.2} | {base:.2} | {:.3} |",
                limit[0],
                limit[1],
                limit[0] / limit[1]
            );
        }
    }
    Ok(())
}

/// The activation that quantizes beside the one that does not.
pub fn quantized(gpu: &Gpu) -> Result<(), Failure> {
    println!("microseconds a call, medians; the ratio is that of groups of 128, E8M0\n");
    println!(
        "| T x d | type | launch | clamp | quant 128 E8M0 | packed | 128 f32 columns | 32 E8M0 | quant/clamp |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let op = GatedActivation::deepseek_v4();
    let v4 = Quantization::deepseek_v4();
    let f32s = Quantization::new(128, ScaleFormat::F32)?;
    let kernels = [
        Kernel::Activation(op),
        Kernel::Quantized(op, v4, ScaleOrder::RowMajor),
        Kernel::Quantized(op, v4, ScaleOrder::Packed),
        Kernel::Quantized(op, f32s, ScaleOrder::ColumnMajor),
        Kernel::Quantized(op, Quantization::deepseek_v4_1(), ScaleOrder::RowMajor),
    ];
    for float in Float::ALL {
        for (t, d) in ROWS {
            let memory = Memory::new(gpu, float, (t, d), [0, 0])?;
            let cases = [PLAIN, PDL].map(|o| kernels.map(|k| (k, o)));
            let m = memory.medians(cases.as_flattened())?;
            for (m, launch) in m.chunks(kernels.len()).zip(["plain", "PDL"]) {
                print!("| {t} x {d} | {float} | {launch} | {:.2} |", m[0]);
                m[1..].iter().for_each(|m| print!(" {m:.2} |"));
                println!(" {:.3} |", m[1] / m[0]);
            }
        }
    }
    Ok(())
}

/// The sizes of a block.
pub fn blocks(gpu: &Gpu) -> Result<(), Failure> {
    let sizes = [64, 128, 192, 256, 384, 512];
    let op = GatedActivation::deepseek_v4();
    let quant = Kernel::Quantized(op, Quantization::deepseek_v4(), ScaleOrder::RowMajor);
    for (t, d) in ROWS {
        println!("{t} x {d} bf16, PDL, threads {sizes:?}");
        let memory = Memory::new(gpu, Float::BF16, (t, d), [0, 0])?;
        for (name, kernel) in [
            ("copy", Kernel::Copy),
            ("clamp", Kernel::Activation(op)),
            ("quant", quant),
        ] {
            let cases = sizes.map(|n| (kernel, PDL.with_threads(n)));
            println!("    {name:5} {:.2?}", memory.medians(&cases)?);
        }
    }
    Ok(())
}
