//! The device, graphs of calls, and their medians.

use std::sync::Arc;
use std::time::Instant;

use cudarc::driver::{CudaContext, CudaGraph, CudaSlice, CudaStream, sys};
use swiglu_bench::{Report, median};
use swiglu_core::{Accumulation, Backend, Float, ScaleFormat};
use swiglu_cuda::{Activations, CudaBackend, Quantizers, cudarc};

pub type Failure = Box<dyn std::error::Error>;

/// Bytes that a ring of buffers goes beyond: more than twice the L2.
pub const COLD: usize = 128 << 20;

/// The least calls of a graph, so that its own launch is little of the time of a call.
const CALLS: usize = 32;

/// A graph of calls and the times of its replays.
pub struct Case {
    graph: CudaGraph,
    calls: usize,
    times: Vec<f64>,
}

pub struct Gpu {
    pub stream: Arc<CudaStream>,
    pub activations: Activations,
    pub quantizers: Quantizers,
    pub backend: CudaBackend,
    /// The same, with matmuls of codes on FP8 tensor cores.
    pub tensor_cores: CudaBackend,
}

impl Gpu {
    pub fn open(report: &Report) -> Result<Self, Failure> {
        let info = swiglu_cuda::probe()?;
        let context = CudaContext::new(info.ordinal)?;
        // SAFETY: every slice is used on one stream alone.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream()?;
        let backend = CudaBackend::from_stream(stream.clone())?;
        report.note(&format!("{info:?}\n{}", backend.description()));
        Ok(Self {
            activations: Activations::new(&context)?,
            quantizers: Quantizers::new(&context)?,
            backend,
            tensor_cores: CudaBackend::builder()
                .accumulation(Accumulation::Fp8TensorCore)
                .on(stream.clone())?,
            stream,
        })
    }

    /// Captures calls, over and over a ring of so many places; `call` gets the place. A call that
    /// moves many bytes is captured a few times only.
    pub fn case(
        &self,
        ring: usize,
        bytes: usize,
        mut call: impl FnMut(usize) -> Result<(), Failure>,
    ) -> Result<Case, Failure> {
        let calls = ring.max(if bytes > 256 << 20 { 8 } else { CALLS });
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode)?;
        let captured = (0..calls).try_for_each(|i| call(i % ring));
        let graph = self.stream.end_capture(sys::CUgraphInstantiate_flags(0))?;
        captured?;
        Ok(Case {
            graph: graph.ok_or("nothing was captured")?,
            calls,
            times: Vec::new(),
        })
    }

    /// Medians in microseconds a call; the cases take turns.
    pub fn medians(&self, mut cases: Vec<Case>, replays: usize) -> Result<Vec<f64>, Failure> {
        let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
        for replay in 0..replays + 2 {
            for case in &mut cases {
                let start = self.stream.record_event(flags)?;
                case.graph.launch()?;
                let end = self.stream.record_event(flags)?;
                let time = f64::from(start.elapsed_ms(&end)?) * 1e3 / case.calls as f64;
                if replay >= 2 {
                    case.times.push(time);
                }
            }
        }
        Ok(cases.into_iter().map(|case| median(case.times)).collect())
    }

    /// Microseconds a call that the host takes to enqueue calls one by one, over a ring of so many places,
    /// and until the device has run them: medians of rounds of [`CALLS`].
    pub fn by_host(
        &self,
        ring: usize,
        mut call: impl FnMut(usize) -> Result<(), Failure>,
    ) -> Result<[f64; 2], Failure> {
        let (mut enqueued, mut done) = (Vec::new(), Vec::new());
        for round in 0..23 {
            self.stream.synchronize()?;
            let start = Instant::now();
            (0..CALLS).try_for_each(|i| call(i % ring))?;
            let of_host = start.elapsed();
            self.stream.synchronize()?;
            if round >= 2 {
                enqueued.push(of_host.as_secs_f64() * 1e6 / CALLS as f64);
                done.push(start.elapsed().as_secs_f64() * 1e6 / CALLS as f64);
            }
        }
        Ok([median(enqueued), median(done)])
    }

    /// Device memory full of random bytes of this kind: numbers between 0.01 and 2 in magnitude.
    pub fn random(&self, kind: Bytes, bytes: usize) -> Result<CudaSlice<u8>, Failure> {
        let pattern = random_bytes(kind, bytes.min(1 << 20));
        let mut memory = self.stream.alloc_zeros::<u8>(bytes)?;
        for at in (0..bytes).step_by(pattern.len().max(1)) {
            let part = pattern.len().min(bytes - at);
            let mut to = memory.slice_mut(at..at + part);
            self.stream.memcpy_htod(&pattern[..part], &mut to)?;
        }
        Ok(memory)
    }
}

/// What bytes stand for.
#[derive(Clone, Copy)]
pub enum Bytes {
    Numbers(Float),
    /// E4M3.
    Codes,
    /// E8M0.
    Powers,
}

impl Bytes {
    pub const fn of_scales(format: ScaleFormat) -> Self {
        match format {
            ScaleFormat::F32 => Self::Numbers(Float::F32),
            ScaleFormat::E8M0 => Self::Powers,
        }
    }
}

/// Random bits: in the last byte of each number such as make small numbers of it.
pub fn random_bytes(kind: Bytes, bytes: usize) -> Vec<u8> {
    let byte = |i: usize| {
        let r =
            ((i as u32).wrapping_mul(2_654_435_761) ^ 0x9e37_79b9).wrapping_mul(0x85eb_ca6b) >> 20;
        let sign = r as u8 & 0x80;
        match kind {
            Bytes::Codes => sign | (0x18 + (r % 0x20) as u8),
            Bytes::Powers => 118 + (r % 5) as u8,
            Bytes::Numbers(float) if i % float.size() == float.size() - 1 => {
                sign | (0x3c + (r & 3) as u8)
            }
            Bytes::Numbers(_) => r as u8,
        }
    };
    (0..bytes).map(byte).collect()
}
