//! Times the tensor-parallel MLP on all of a host's GPUs against one of them, over NCCL:
//!
//! `cargo bench -p swiglu-bench --features nccl --bench ranks [-- flash pro v41 1 16 256 4096] [--csv]`
//!
//! ## Method
//! 1. A thread for each device holds its share of so many MLPs that no cache holds their weights,
//!    and captures a pass through all of them, each with its reduction, into one graph. Another
//!    graph holds the reductions alone.
//! 2. The threads meet before every replay. A time is the median over the replays of the slowest
//!    device's, between two events, divided by the MLPs.
//! 3. One device runs the whole MLPs in the same way, before the others join it. What all give for
//!    the same x is compared.

use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::{CudaContext, CudaGraph, CudaStream, sys};
use swiglu_bench::{Options, Report, figure, median};
use swiglu_conformance::{MlpShape, relative_error};
use swiglu_core::{
    Backend, Communicator, Float, HostCommunicator, LocalCommunicator, Tensor, TensorMut, bf16,
};
use swiglu_cuda::{CudaBackend, CudaBuffer, NcclCommunicator, NcclId, cudarc};
use swiglu_mlp::synthetic::{SyntheticConfig, synthetic_input, write_checkpoint};
use swiglu_mlp::{
    Checkpoint, DeepseekV4Mlp, MlpConfig, ModelConfig, Shard, SharedExpert, Workspace,
};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Bytes of weights that passes go through: more than twice the L2.
const COLD: usize = 128 << 20;
const REPLAYS: usize = 30;
/// How long a rank waits for the others.
const TIMEOUT: Duration = Duration::from_secs(120);

fn main() -> Result<(), Failure> {
    let options = Options::from_env();
    let mut report = Report::new(&options);
    let world = CudaContext::device_count()? as usize;
    report.note(&format!("{world} devices of {:?}", swiglu_cuda::probe()?));
    for shape in options.named(&MlpShape::ALL, |shape| shape.name.to_owned()) {
        let folder = tempfile::tempdir()?;
        let form = SyntheticConfig {
            hidden: shape.hidden,
            intermediate: shape.intermediate,
            block: shape.block,
            ..SyntheticConfig::flash(1)
        };
        write_checkpoint(folder.path(), &form)?;
        let config = ModelConfig::from_file(&folder.path().join("config.json"))?;
        let config = config.mlp_config(&form.prefix())?;
        let checkpoint = Checkpoint::open(folder.path())?;
        let weights = SharedExpert::load(&checkpoint, &config)?;
        for tokens in options.numbers(&[1, 16, 256, 4096]) {
            let one = on_ranks(&config, &weights, tokens, 1)?;
            let all = on_ranks(&config, &weights, tokens, world)?;
            let floor = all.bytes as f64 / 4.4e6 + all.reduction;
            report.case(
                "ranks",
                &format!("{} T={tokens}", shape.name),
                &[
                    figure("one device", "us", one.pass),
                    // A sum over one rank, and its rounding: what asking for it costs.
                    figure("reduction of one rank", "us", one.reduction),
                    figure(format!("{world} devices"), "us", all.pass),
                    figure("reduction alone", "us", all.reduction),
                    figure("floor", "us", floor),
                    figure("one device / all", "ratio", one.pass / all.pass),
                    figure("error", "ratio", relative_error(&all.y, &one.y)),
                ],
            );
        }
    }
    Ok(())
}

/// What ranks measured: microseconds of an MLP, of a reduction with its rounding, a rank's bytes of weights, y.
struct Measured {
    pass: f64,
    reduction: f64,
    bytes: usize,
    y: Vec<bf16>,
}

fn on_ranks(
    config: &MlpConfig,
    weights: &SharedExpert<'_>,
    tokens: usize,
    world: usize,
) -> Result<Measured, Failure> {
    let id = NcclId::new()?;
    let meet = LocalCommunicator::group(world, TIMEOUT)?;
    let mut results = std::thread::scope(|scope| {
        let start = |meet: LocalCommunicator| {
            scope.spawn(move || Rank::new(config, weights, tokens, &id, meet)?.measure())
        };
        let threads: Vec<_> = meet.into_iter().map(start).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<Measured, Failure>>| {
            thread.join().map_err(|_| "a rank panicked")?
        };
        threads
            .into_iter()
            .map(join)
            .collect::<Result<Vec<_>, Failure>>()
    })?;
    Ok(results.swap_remove(0))
}

/// A thread with its device.
struct Rank {
    stream: Arc<CudaStream>,
    cuda: Arc<CudaBackend>,
    ranks: Arc<NcclCommunicator>,
    meet: LocalCommunicator,
    mlps: Vec<DeepseekV4Mlp<CudaBackend>>,
    workspace: Workspace<CudaBackend>,
    shape: [usize; 2],
    x: CudaBuffer,
    y: CudaBuffer,
    partial: CudaBuffer,
}

impl Rank {
    fn new(
        config: &MlpConfig,
        weights: &SharedExpert<'_>,
        tokens: usize,
        id: &NcclId,
        meet: LocalCommunicator,
    ) -> Result<Self, Failure> {
        let (rank, world) = (
            HostCommunicator::rank(&meet),
            HostCommunicator::world(&meet),
        );
        let context = CudaContext::new(rank)?;
        // SAFETY: all that follows runs on one stream.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream()?;
        let cuda = Arc::new(CudaBackend::from_stream(Arc::clone(&stream))?);
        let ranks = Arc::new(NcclCommunicator::new(&cuda, id, rank, world, TIMEOUT)?);
        let config = MlpConfig {
            shard: Shard {
                rank,
                world,
                disable_tp: false,
            },
            ..config.clone()
        };
        let load = || {
            let ranks = Arc::clone(&ranks);
            DeepseekV4Mlp::load_on_ranks(Arc::clone(&cuda), &config, weights, ranks)
        };
        let mut mlps = vec![load()?];
        let copies = COLD.div_ceil(mlps[0].weight_bytes());
        for _ in 1..copies {
            mlps.push(load()?);
        }
        let hidden = config.hidden_size;
        let mut x = cuda.alloc(2 * tokens * hidden)?;
        let input = synthetic_input(tokens, hidden, 7);
        cuda.upload(&mut x, bytemuck::cast_slice(&input))?;
        Ok(Self {
            y: cuda.alloc(2 * tokens * hidden)?,
            partial: cuda.alloc(4 * tokens * hidden)?,
            x,
            shape: [tokens, hidden],
            workspace: Workspace::new(),
            mlps,
            meet,
            ranks,
            cuda,
            stream,
        })
    }

    /// Enqueues a pass through all MLPs.
    fn passes(&mut self) -> Result<(), Failure> {
        let [tokens, hidden] = self.shape;
        for mlp in &self.mlps {
            let x = Tensor::contiguous(CudaBackend::view(&self.x), Float::BF16, tokens, hidden);
            let y = CudaBackend::view_mut(&mut self.y);
            let y = TensorMut::contiguous(y, Float::BF16, tokens, hidden);
            mlp.forward(x, y, &mut self.workspace)?;
        }
        Ok(())
    }

    /// Enqueues as many reductions.
    fn reductions(&mut self) -> Result<(), Failure> {
        let [tokens, hidden] = self.shape;
        for _ in &self.mlps {
            let partial = CudaBackend::view_mut(&mut self.partial);
            let partial = TensorMut::contiguous(partial, Float::F32, tokens, hidden);
            let y = CudaBackend::view_mut(&mut self.y);
            let y = TensorMut::contiguous(y, Float::BF16, tokens, hidden);
            self.ranks.all_reduce_into(&self.cuda, partial, y)?;
        }
        Ok(())
    }

    fn measure(mut self) -> Result<Measured, Failure> {
        self.passes()?;
        self.ranks.wait(&self.cuda)?;
        let passes = self.capture(Self::passes)?;
        let pass = self.median(&passes)?;
        let mut y = vec![bf16::ZERO; self.shape[0] * self.shape[1]];
        self.cuda
            .download(&self.y, bytemuck::cast_slice_mut(&mut y))?;
        self.reductions()?;
        self.ranks.wait(&self.cuda)?;
        let reductions = self.capture(Self::reductions)?;
        let reduction = self.median(&reductions)?;
        Ok(Measured {
            pass,
            reduction,
            bytes: self.mlps[0].weight_bytes(),
            y,
        })
    }

    fn capture(
        &mut self,
        enqueue: impl Fn(&mut Self) -> Result<(), Failure>,
    ) -> Result<CudaGraph, Failure> {
        let stream = Arc::clone(&self.stream);
        stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
        let captured = enqueue(self);
        let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0))?;
        captured?;
        Ok(graph.ok_or("nothing was captured")?)
    }

    /// The median of the replays' times, each that of the slowest rank, a MLP.
    fn median(&self, graph: &CudaGraph) -> Result<f64, Failure> {
        let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
        let world = HostCommunicator::world(&self.meet);
        let mut times = Vec::new();
        for replay in 0..REPLAYS + 3 {
            self.meet.all_reduce_f32(&mut [])?;
            let start = self.stream.record_event(flags)?;
            graph.launch()?;
            let end = self.stream.record_event(flags)?;
            self.ranks.wait(&self.cuda)?;
            let mut of_ranks = vec![0.0; world];
            of_ranks[HostCommunicator::rank(&self.meet)] = start.elapsed_ms(&end)?;
            self.meet.all_reduce_f32(&mut of_ranks)?;
            let slowest = of_ranks.into_iter().fold(0.0, f32::max);
            if replay >= 3 {
                times.push(f64::from(slowest) * 1e3 / self.mlps.len() as f64);
            }
        }
        Ok(median(times))
    }
}
