//! The MLP on the GPUs of one host over NCCL, in a CUDA graph: what they add up is the MLP of one.
#![cfg(feature = "nccl")]
#![allow(clippy::unwrap_used, reason = "a test helper is no #[test] function")]

use std::sync::Arc;
use std::time::Duration;

use swiglu::cuda::cudarc::driver::{CudaContext, CudaGraph, CudaStream, sys};
use swiglu::cuda::{CudaBackend, CudaBuffer, NcclCommunicator, NcclId};
use swiglu::mlp::synthetic::{SyntheticConfig, synthetic_input, write_checkpoint};
use swiglu::mlp::{
    ActivationQuant, Checkpoint, DeepseekV4Mlp, MlpConfig, ModelConfig, Shard, SharedExpert,
    Workspace,
};
use swiglu::{Backend, Communicator, Element, ScaleFormat, Tensor, TensorMut, bf16};
use swiglu_conformance::{may_skip, relative_error};

/// Kernels for few tokens, for some, and for many.
const TOKENS: [usize; 4] = [1, 16, 256, 4096];
const TIMEOUT: Duration = Duration::from_secs(120);

/// How many devices there are, or a skip by the name of the test where there is one only.
fn devices(test: &str) -> Option<usize> {
    let count = match NcclId::new() {
        Ok(_) => CudaContext::device_count().unwrap_or(0) as usize,
        Err(reason) => {
            may_skip("nccl", &reason.to_string(), test);
            return None;
        }
    };
    if count < 2 {
        let reason = format!("{count} devices are there, 2 are needed");
        may_skip("nccl on several devices", &reason, test);
        return None;
    }
    Some(count)
}

/// A device with its share of an MLP, and the matrices that a captured pass goes over.
struct Rank {
    stream: Arc<CudaStream>,
    cuda: Arc<CudaBackend>,
    ranks: Option<Arc<NcclCommunicator>>,
    mlp: DeepseekV4Mlp<CudaBackend>,
    workspace: Workspace<CudaBackend>,
    tokens: usize,
    x: CudaBuffer,
    y: CudaBuffer,
}

impl Rank {
    /// Of a group if there is an id, else alone: `config` then says what it adds to the sum.
    fn new(
        config: &MlpConfig,
        expert: &SharedExpert<'_>,
        tokens: usize,
        id: Option<&NcclId>,
    ) -> Self {
        let Shard { rank, world, .. } = config.shard;
        let context = CudaContext::new(rank).unwrap();
        let stream = context.new_stream().unwrap();
        let cuda = Arc::new(CudaBackend::from_stream(Arc::clone(&stream)).unwrap());
        let join = |id| NcclCommunicator::new(&cuda, id, rank, world, TIMEOUT).unwrap();
        let ranks = id.map(|id| Arc::new(join(id)));
        let mlp = match &ranks {
            Some(ranks) => {
                let ranks = Arc::clone(ranks);
                DeepseekV4Mlp::load_on_ranks(Arc::clone(&cuda), config, expert, ranks)
            }
            None => DeepseekV4Mlp::load(Arc::clone(&cuda), config, expert),
        };
        let len = tokens * config.hidden_size;
        Self {
            x: cuda.alloc(2 * len).unwrap(),
            y: cuda.alloc(4 * len).unwrap(),
            mlp: mlp.unwrap(),
            workspace: Workspace::new(),
            tokens,
            ranks,
            cuda,
            stream,
        }
    }

    fn enqueue<Y: Element>(&mut self) {
        let hidden = self.mlp.hidden_size();
        let x = CudaBackend::view(&self.x);
        let x = Tensor::contiguous(x, swiglu::Float::BF16, self.tokens, hidden);
        let y = CudaBackend::view_mut(&mut self.y);
        let y = TensorMut::contiguous(y, Y::FLOAT, self.tokens, hidden);
        self.mlp.forward(x, y, &mut self.workspace).unwrap();
    }

    fn wait(&self) {
        match &self.ranks {
            Some(ranks) => ranks.wait(&*self.cuda).unwrap(),
            None => self.stream.synchronize().unwrap(),
        }
    }

    fn capture<Y: Element>(&mut self) -> CudaGraph {
        // The first sum connects the ranks, which no capture may see.
        self.enqueue::<Y>();
        self.wait();
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode).unwrap();
        self.enqueue::<Y>();
        let flags = sys::CUgraphInstantiate_flags(0);
        self.stream.end_capture(flags).unwrap().unwrap()
    }

    /// What replays of the captured pass give for each of these inputs.
    fn outputs<Y: Element + bytemuck::Pod>(&mut self, inputs: &[Vec<bf16>]) -> Vec<Vec<Y>> {
        let graph = self.capture::<Y>();
        let mut replay = |x: &Vec<bf16>| {
            self.cuda
                .upload(&mut self.x, bytemuck::cast_slice(x))
                .unwrap();
            graph.launch().unwrap();
            self.wait();
            let mut bytes = vec![0; 4 * x.len()];
            self.cuda.download(&self.y, &mut bytes).unwrap();
            bytemuck::pod_collect_to_vec(&bytes[..size_of::<Y>() * x.len()])
        };
        inputs.iter().map(&mut replay).collect()
    }
}

fn sharded(config: &MlpConfig, rank: usize, world: usize) -> MlpConfig {
    MlpConfig {
        shard: Shard {
            rank,
            world,
            ..config.shard
        },
        ..config.clone()
    }
}

/// What a rank gives for each input.
struct Given {
    rounded: Vec<Vec<bf16>>,
    sums: Vec<Vec<f32>>,
}

/// What every rank of a group gives.
fn on_ranks(
    config: &MlpConfig,
    expert: &SharedExpert<'_>,
    world: usize,
    inputs: &[Vec<bf16>],
) -> Vec<Given> {
    let tokens = inputs[0].len() / config.hidden_size;
    let id = NcclId::new().unwrap();
    std::thread::scope(|scope| {
        let start = |rank| {
            scope.spawn(move || {
                let config = sharded(config, rank, world);
                let mut rank = Rank::new(&config, expert, tokens, Some(&id));
                Given {
                    rounded: rank.outputs(inputs),
                    sums: rank.outputs(inputs),
                }
            })
        };
        let threads: Vec<_> = (0..world).map(start).collect();
        let results = threads.into_iter().map(|thread| thread.join().unwrap());
        results.collect()
    })
}

/// What the ranks add to the sum, each alone.
fn parts(
    config: &MlpConfig,
    expert: &SharedExpert<'_>,
    world: usize,
    inputs: &[Vec<bf16>],
) -> Vec<Vec<Vec<f32>>> {
    let tokens = inputs[0].len() / config.hidden_size;
    let part = |rank| {
        let config = MlpConfig {
            reduce_results: false,
            ..sharded(config, rank, world)
        };
        Rank::new(&config, expert, tokens, None).outputs(inputs)
    };
    (0..world).map(part).collect()
}

fn ranks_agree(form: &SyntheticConfig, activation_quant: ActivationQuant, world: usize) {
    let folder = tempfile::tempdir().unwrap();
    write_checkpoint(folder.path(), form).unwrap();
    let model = ModelConfig::from_file(&folder.path().join("config.json")).unwrap();
    let config = MlpConfig {
        activation_quant,
        ..model.mlp_config(&form.prefix()).unwrap()
    };
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let expert = SharedExpert::load(&checkpoint, &config).unwrap();
    for tokens in TOKENS {
        let at = format!("{form:?}, {activation_quant:?}, {tokens} tokens");
        let input = |seed| synthetic_input(tokens, form.hidden, seed);
        let inputs = [input(4), input(5)];
        let whole: Vec<Vec<bf16>> = Rank::new(&config, &expert, tokens, None).outputs(&inputs);
        let ranks = on_ranks(&config, &expert, world, &inputs);
        let parts = parts(&config, &expert, world, &inputs);
        for input in 0..inputs.len() {
            for (rank, Given { rounded, sums }) in ranks.iter().enumerate() {
                assert_eq!(
                    sums[input], ranks[0].sums[input],
                    "{at}: rank {rank} has another sum"
                );
                let expected = sums[input].iter().map(|&sum| bf16::from_f32(sum));
                assert!(
                    rounded[input].iter().copied().eq(expected),
                    "{at}: not rounded once"
                );
            }
            let sums = &ranks[0].sums[input];
            let added = (0..sums.len()).map(|i| parts.iter().map(|part| part[input][i]).sum());
            let added: Vec<f32> = added.collect();
            match world {
                // Two summands have one order.
                2 => assert_eq!(sums, &added, "{at}: the sum of both parts"),
                _ => assert!(
                    relative_error(sums, &added) < 1e-6,
                    "{at}: the sum of all parts"
                ),
            }
            let error = relative_error(&ranks[0].rounded[input], &whole[input]);
            assert!(error < 5e-4, "{at}: {error} from one device's");
        }
    }
}

#[test]
fn ranks_over_nccl_give_the_mlp_of_one_device() {
    let test = "ranks_over_nccl_give_the_mlp_of_one_device";
    let Some(world) = devices(test) else {
        return;
    };
    let form = |hidden, intermediate, block, scales| SyntheticConfig {
        hidden,
        intermediate,
        block,
        scales,
        ..SyntheticConfig::flash(5)
    };
    for form in [
        form(1024, 768, 128, ScaleFormat::E8M0),
        form(640, 288, 32, ScaleFormat::E8M0),
        form(200, 300, 128, ScaleFormat::F32),
    ] {
        for activation_quant in [ActivationQuant::None, ActivationQuant::Fp8Block] {
            ranks_agree(&form, activation_quant, world);
        }
    }
}
