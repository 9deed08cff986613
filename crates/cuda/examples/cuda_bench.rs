//! Times the activation against the limit of the memory, in CUDA graphs, on cold buffers:
//!
//!     cargo run --release -p swiglu-cuda --example cuda_bench [--sweep | --quant]
//!
//! Each graph holds many calls over a ring of buffers larger than the L2; a time is the median
//! over replays, divided by the calls. The limit is a kernel of the same shape that moves as many
//! bytes, run between the replays of the others. `--sweep` tries the sizes of a block, `--quant`
//! times the activation that quantises against the one that does not.
#![allow(clippy::print_stdout)]

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaGraph, CudaStream, sys};
use swiglu_core::{
    DType, GatedActivation, Quantisation, RowLayout, ScaleFormat, ScaleLayout, ScaleOrder,
};
use swiglu_cuda::{
    Activations, CudaBackend, LaunchOptions, Quantisers, RawCall, RawMatrix, RawQuantCall,
    RawQuantised, cudarc,
};

type Failure = Box<dyn std::error::Error>;

/// Bytes that the ring of buffers goes beyond.
const COLD: usize = 128 << 20;

const ROWS: [(usize, usize); 6] = [
    (1, 2048),
    (64, 3072),
    (1, 18432),
    (512, 3072),
    (4096, 3072),
    (32768, 18432),
];

struct Case {
    graph: CudaGraph,
    calls: usize,
    times: Vec<f32>,
}

struct Bench {
    stream: Arc<CudaStream>,
    activations: Activations,
    quantisers: Quantisers,
}

#[derive(Clone, Copy)]
enum Kernel {
    Activation(GatedActivation),
    Quantised(GatedActivation, Quantisation, ScaleOrder),
    Copy,
}

/// What the bench is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Table {
    Limit,
    Blocks,
    Quantised,
}

/// Codes in the first half of a slot for y, scales in the second.
fn quantised(
    quant: &Quantisation,
    order: ScaleOrder,
    t: usize,
    d: usize,
    slot: u64,
) -> RawQuantised {
    RawQuantised {
        codes: slot,
        codes_layout: RowLayout::contiguous(t, d),
        scales: slot + (t * d) as u64,
        scales_layout: ScaleLayout::contiguous(quant.format(), order, t, quant.groups(d)),
    }
}

impl Bench {
    fn case(
        &self,
        kernel: Kernel,
        dtype: DType,
        (t, d): (usize, usize),
        memory: [u64; 2],
        ring: usize,
        options: LaunchOptions,
    ) -> Result<Case, Failure> {
        let bytes = t * d * dtype.size();
        let calls = ring.max(8);
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode)?;
        for i in 0..calls {
            let slot = (i % ring * bytes) as u64;
            let (input, output) = (memory[0] + 2 * slot, memory[1] + slot);
            // SAFETY: the buffers hold `ring` slots.
            unsafe {
                let stream = self.stream.cu_stream();
                match kernel {
                    Kernel::Copy => {
                        self.activations
                            .copy_raw(stream, input, output, bytes, options)?;
                    }
                    Kernel::Activation(op) => {
                        let call = RawCall {
                            dtype,
                            input,
                            input_layout: RowLayout::contiguous(t, 2 * d),
                            output,
                            output_layout: RowLayout::contiguous(t, d),
                            batches: None,
                        };
                        self.activations
                            .act_and_mul_raw(stream, &op, &call, options)?;
                    }
                    Kernel::Quantised(op, quant, order) => {
                        let call = RawQuantCall {
                            input: RawMatrix {
                                address: input,
                                dtype,
                                layout: RowLayout::contiguous(t, 2 * d),
                            },
                            output: quantised(&quant, order, t, d, output),
                            route: None,
                            batches: None,
                            hits: None,
                        };
                        self.quantisers
                            .act_and_mul_quant_raw(stream, &op, &quant, &call, options)?;
                    }
                }
            }
        }
        let graph = self.stream.end_capture(sys::CUgraphInstantiate_flags(0))?;
        Ok(Case {
            graph: graph.ok_or("nothing was captured")?,
            calls,
            times: Vec::new(),
        })
    }

    /// Medians in microseconds a call; the cases take turns.
    fn medians(&self, mut cases: Vec<Case>, replays: usize) -> Result<Vec<f32>, Failure> {
        let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
        for replay in 0..replays + 3 {
            for case in &mut cases {
                let start = self.stream.record_event(flags)?;
                case.graph.launch()?;
                let end = self.stream.record_event(flags)?;
                if replay >= 3 {
                    case.times
                        .push(start.elapsed_ms(&end)? * 1e3 / case.calls as f32);
                } else {
                    self.stream.synchronize()?;
                }
            }
        }
        let median = |case: Case| {
            let mut times = case.times;
            times.sort_by(f32::total_cmp);
            times[times.len() / 2]
        };
        Ok(cases.into_iter().map(median).collect())
    }

    fn shape(&self, dtype: DType, (t, d): (usize, usize), table: Table) -> Result<(), Failure> {
        let bytes = t * d * dtype.size();
        let ring = (COLD / (3 * bytes)).max(2);
        // Random bits of small numbers: 0x3c to 0x3f above, anything below.
        let pattern: Vec<u8> = (0..1_u32 << 20)
            .map(|i| {
                match (
                    i as usize % dtype.size() == dtype.size() - 1,
                    i.wrapping_mul(2_654_435_761) >> 24,
                ) {
                    (true, r) => 0x3c + (r & 3) as u8 + (r as u8 & 0x80),
                    (false, r) => r as u8,
                }
            })
            .collect();
        let mut input = self.stream.alloc_zeros::<u8>(2 * ring * bytes)?;
        let len = 2 * ring * bytes;
        for at in (0..len).step_by(pattern.len()) {
            let part = pattern.len().min(len - at);
            let mut to = input.slice_mut(at..at + part);
            self.stream.memcpy_htod(&pattern[..part], &mut to)?;
        }
        let output = self.stream.alloc_zeros::<u8>(ring * bytes)?;
        use cudarc::driver::DevicePtr;
        let memory = [
            input.device_ptr(&self.stream).0,
            output.device_ptr(&self.stream).0,
        ];
        let plain = LaunchOptions::default();
        let pdl = LaunchOptions::programmatic();
        let op = GatedActivation::deepseek_v4();
        let clamp = Kernel::Activation(op);
        let silu = Kernel::Activation(GatedActivation::silu_and_mul());
        let replays = if bytes > 100 << 20 { 8 } else { 20 };
        if table == Table::Blocks {
            let sizes = [64, 128, 192, 256, 384, 512, 1024];
            let mut line = Vec::new();
            let quant = Quantisation::deepseek_v4();
            let quant = Kernel::Quantised(op, quant, ScaleOrder::RowMajor);
            for kernel in [Kernel::Copy, clamp, quant] {
                let cases = sizes
                    .iter()
                    .map(|&n| self.case(kernel, dtype, (t, d), memory, ring, pdl.with_threads(n)))
                    .collect::<Result<Vec<_>, _>>()?;
                line.push(self.medians(cases, replays)?);
            }
            println!("{t} x {d} {dtype}, PDL, threads {sizes:?}");
            println!("    copy  {:.2?}", line[0]);
            println!("    clamp {:.2?}", line[1]);
            println!("    quant {:.2?}", line[2]);
            return Ok(());
        }
        if table == Table::Quantised {
            let v4 = Quantisation::deepseek_v4();
            let f32s = Quantisation::new(128, ScaleFormat::F32)?;
            let kernels = [
                clamp,
                Kernel::Quantised(op, v4, ScaleOrder::RowMajor),
                Kernel::Quantised(op, v4, ScaleOrder::Packed),
                Kernel::Quantised(op, f32s, ScaleOrder::ColumnMajor),
                Kernel::Quantised(op, Quantisation::deepseek_v4_1(), ScaleOrder::RowMajor),
            ];
            let cases = [plain, pdl]
                .into_iter()
                .flat_map(|o| kernels.map(|k| (k, o)));
            let cases = cases
                .map(|(k, o)| self.case(k, dtype, (t, d), memory, ring, o))
                .collect::<Result<Vec<_>, _>>()?;
            let m = self.medians(cases, replays)?;
            for (m, launch) in m.chunks(kernels.len()).zip(["plain", "PDL"]) {
                print!("| {t} x {d} | {dtype} | {launch} | {:.2} |", m[0]);
                m[1..].iter().for_each(|m| print!(" {m:.2} |"));
                println!(" {:.3} |", m[1] / m[0]);
            }
            return Ok(());
        }
        let cases = [
            (Kernel::Copy, plain),
            (Kernel::Copy, pdl),
            (clamp, plain),
            (clamp, pdl),
            (silu, pdl),
        ];
        let cases = cases
            .into_iter()
            .map(|(k, o)| self.case(k, dtype, (t, d), memory, ring, o))
            .collect::<Result<Vec<_>, _>>()?;
        let m = self.medians(cases, replays)?;
        let limit = m[0].min(m[1]);
        println!(
            "| {t} x {d} | {dtype} | {:.2} | {:.2} | {:.2} | {:.2} | {:.2} | {:.3} | {:.2} |",
            m[0],
            m[1],
            m[2],
            m[3],
            m[4],
            limit / m[3],
            3e-6 * bytes as f32 / m[3]
        );
        Ok(())
    }
}

fn main() -> Result<(), Failure> {
    let asked = |flag: &str| std::env::args().any(|a| a == flag);
    let table = match (asked("--sweep"), asked("--quant")) {
        (true, _) => Table::Blocks,
        (_, true) => Table::Quantised,
        _ => Table::Limit,
    };
    let info = swiglu_cuda::probe()?;
    let context = CudaContext::new(info.ordinal)?;
    // SAFETY: every slice is used on one stream alone.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream()?;
    println!("{info:?}");
    println!(
        "{}\n",
        swiglu_core::Backend::description(&CudaBackend::new(stream.clone())?)
    );
    let bench = Bench {
        activations: Activations::new(&context)?,
        quantisers: Quantisers::new(&context)?,
        stream,
    };
    match table {
        Table::Limit => {
            println!(
                "microseconds a call, medians; limit/ours is the faster copy over clamp with PDL\n"
            );
            println!(
                "| T x d | type | copy | copy, PDL | clamp | clamp, PDL | silu, PDL | limit/ours | TB/s |"
            );
            println!("|---|---|---|---|---|---|---|---|---|");
        }
        Table::Quantised => {
            println!("microseconds a call, medians; the ratio is that of groups of 128, UE8M0\n");
            println!(
                "| T x d | type | launch | clamp | quant 128 UE8M0 | packed | 128 f32 columns | 32 UE8M0 | quant/clamp |"
            );
            println!("|---|---|---|---|---|---|---|---|---|");
        }
        Table::Blocks => {}
    }
    for dtype in [DType::BF16, DType::F16, DType::F32] {
        for shape in ROWS {
            if table == Table::Limit || dtype == DType::BF16 {
                bench.shape(dtype, shape, table)?;
            }
        }
    }
    Ok(())
}
