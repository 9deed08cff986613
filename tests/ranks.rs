//! The MLP on several ranks of one process: what they add up is the unsharded MLP.
#![allow(clippy::unwrap_used, reason = "a test helper is no #[test] function")]

use std::sync::Arc;
use std::time::Duration;

use swiglu::mlp::synthetic::{SyntheticConfig, synthetic_input, write_checkpoint};
use swiglu::mlp::{
    ActivationQuant, Checkpoint, DeepseekV4Mlp, MlpConfig, ModelConfig, Shard, SharedExpert,
    Workspace,
};
use swiglu::reference::Reference;
use swiglu::{
    ActAndMul, Backend, Element, HostCommunicator, LocalCommunicator, Matmul, Quantize, RowLayout,
    ScaleFormat, Tensor, TensorMut, bf16,
};

const TOKENS: usize = 3;

/// Gives the configurations of a checkpoint, and its weights.
fn with(form: &SyntheticConfig, test: impl Fn(&MlpConfig, &SharedExpert<'_>)) {
    let folder = tempfile::tempdir().unwrap();
    write_checkpoint(folder.path(), form).unwrap();
    let model = ModelConfig::from_file(&folder.path().join("config.json")).unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let plain = model.mlp_config(&form.prefix()).unwrap();
    let quantized = MlpConfig {
        activation_quant: ActivationQuant::Fp8Block,
        ..plain.clone()
    };
    let expert = SharedExpert::load(&checkpoint, &plain).unwrap();
    test(&plain, &expert);
    if form.weights.is_none() && [32, 64, 128].contains(&form.block) {
        test(&quantized, &expert);
    }
}

fn forward<B, Y>(mlp: &DeepseekV4Mlp<B>, x: &[bf16]) -> Vec<Y>
where
    B: ActAndMul + Quantize + Matmul,
    B: for<'a> Backend<View<'a> = &'a [u8], ViewMut<'a> = &'a mut [u8]>,
    Y: Element,
{
    let layout = RowLayout::contiguous(TOKENS, mlp.hidden_size());
    let mut y = vec![Y::default(); x.len()];
    let from = Tensor::from_slice(x, layout);
    let to = TensorMut::from_slice(&mut y, layout);
    mlp.forward(from, to, &mut Workspace::new()).unwrap();
    y
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

/// The ranks' y in bf16 and in f32.
fn on_ranks<B>(
    backend: &Arc<B>,
    config: &MlpConfig,
    expert: &SharedExpert<'_>,
    world: usize,
    x: &[bf16],
) -> Vec<(Vec<bf16>, Vec<f32>)>
where
    B: ActAndMul + Quantize + Matmul,
    B: for<'a> Backend<View<'a> = &'a [u8], ViewMut<'a> = &'a mut [u8]>,
{
    let ranks = LocalCommunicator::group(world, Duration::from_secs(120)).unwrap();
    std::thread::scope(|scope| {
        let start = |ranks: LocalCommunicator| {
            scope.spawn(move || {
                let config = sharded(config, HostCommunicator::rank(&ranks), world);
                let backend = Arc::clone(backend);
                let mlp = DeepseekV4Mlp::load_on_ranks(backend, &config, expert, Arc::new(ranks));
                let mlp = mlp.unwrap();
                (forward(&mlp, x), forward(&mlp, x))
            })
        };
        let threads: Vec<_> = ranks.into_iter().map(start).collect();
        let results = threads.into_iter().map(|thread| thread.join().unwrap());
        results.collect()
    })
}

fn ranks_agree<B>(backend: B)
where
    B: ActAndMul + Quantize + Matmul,
    B: for<'a> Backend<View<'a> = &'a [u8], ViewMut<'a> = &'a mut [u8]>,
{
    let backend = Arc::new(backend);
    let form = |hidden, intermediate, block, scales| SyntheticConfig {
        hidden,
        intermediate,
        block,
        scales,
        ..SyntheticConfig::flash(5)
    };
    for form in [
        form(96, 200, 32, ScaleFormat::E8M0),
        form(130, 300, 128, ScaleFormat::F32),
        form(40, 27, 8, ScaleFormat::E8M0),
    ] {
        with(&form, |config, expert| {
            let x = synthetic_input(TOKENS, form.hidden, 4);
            let whole = DeepseekV4Mlp::load(Arc::clone(&backend), config, expert).unwrap();
            let whole: Vec<f32> = forward(&whole, &x);
            for world in [1, 2, 3, 4, 16] {
                // What each rank has without communication, added in the order of the ranks.
                let mut sum = vec![0.0_f32; x.len()];
                for rank in 0..world {
                    let config = MlpConfig {
                        reduce_results: false,
                        ..sharded(config, rank, world)
                    };
                    let mlp = DeepseekV4Mlp::load(Arc::clone(&backend), &config, expert).unwrap();
                    let part: Vec<f32> = forward(&mlp, &x);
                    if rank == 0 {
                        sum = part;
                    } else {
                        sum.iter_mut().zip(part).for_each(|(sum, y)| *sum += y);
                    }
                }
                let rounded: Vec<bf16> = sum.iter().map(|&y| bf16::from_f32(y)).collect();
                for (bf16, f32) in on_ranks(&backend, config, expert, world, &x) {
                    assert_eq!(f32, sum, "{form:?} on {world} ranks");
                    assert_eq!(bf16, rounded, "{form:?} on {world} ranks, in bf16");
                }
                let largest = whole.iter().fold(0.0_f32, |a, y| a.max(y.abs()));
                for (sum, whole) in sum.iter().zip(&whole) {
                    let off = (sum - whole).abs();
                    assert!(off <= 1e-5 * largest, "{sum} for {whole} on {world} ranks");
                }
            }
        });
    }
}

#[test]
fn ranks_of_the_reference_give_the_unsharded_mlp() {
    ranks_agree(Reference);
}

#[cfg(feature = "cpu")]
#[test]
fn ranks_of_the_cpu_give_the_unsharded_mlp() {
    ranks_agree(swiglu::cpu::CpuBackend::new());
}

#[test]
fn replicated_ranks_communicate_nothing() {
    let form = SyntheticConfig {
        hidden: 40,
        intermediate: 27,
        block: 8,
        ..SyntheticConfig::flash(5)
    };
    with(&form, |config, expert| {
        let x = synthetic_input(TOKENS, form.hidden, 4);
        let whole = DeepseekV4Mlp::load(Arc::new(Reference), config, expert).unwrap();
        let replicated = MlpConfig {
            shard: Shard {
                rank: 1,
                world: 2,
                disable_tp: true,
            },
            ..config.clone()
        };
        // Rank 0 never comes, and nobody waits for it.
        let mut ranks = LocalCommunicator::group(2, Duration::from_secs(120)).unwrap();
        let ranks = Arc::new(ranks.remove(1));
        let mlp = DeepseekV4Mlp::load_on_ranks(Arc::new(Reference), &replicated, expert, ranks);
        let y: Vec<bf16> = forward(&mlp.unwrap(), &x);
        assert_eq!(y, forward::<_, bf16>(&whole, &x));
    });
}

#[test]
fn a_communicator_of_other_ranks_is_refused() {
    with(
        &SyntheticConfig {
            hidden: 40,
            intermediate: 27,
            block: 8,
            ..SyntheticConfig::flash(5)
        },
        |config, expert| {
            let mut ranks = LocalCommunicator::group(2, Duration::from_secs(120)).unwrap();
            let ranks = Arc::new(ranks.remove(1));
            let config = sharded(config, 0, 2);
            let load = DeepseekV4Mlp::load_on_ranks(Arc::new(Reference), &config, expert, ranks);
            assert_eq!(
                load.err().unwrap().to_string(),
                "ranks: expected rank 0 of 2, as the shard says, got rank 1 of 2"
            );
            let alone = DeepseekV4Mlp::load(Arc::new(Reference), &config, expert);
            let error = alone.err().unwrap().to_string();
            assert!(
                error.starts_with("reduce_results: expected false, or a communicator"),
                "{error}"
            );
        },
    );
}
