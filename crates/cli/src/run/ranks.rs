//! The MLP on several ranks of the CPU.
//!
//! ## Method
//! First every rank loads: it copies its part out of the mapped checkpoint, and packs that. When all
//! have, the checkpoint is unmapped, so that a rank holds its share of the weights and no more. Then
//! every rank runs the forward pass, whose sums are the only thing that the ranks exchange.

use std::sync::Arc;
use std::thread;
use std::time::Instant;

use swiglu::cpu::CpuBackend;
use swiglu::mlp::{Checkpoint, DeepseekV4Mlp, MlpConfig, Shard, SharedExpert, Workspace};
use swiglu::{
    Accumulation, Communicator, Dispatch, Error, LocalCommunicator, OpSwitches, Report, RowLayout,
    Tensor, TensorMut, bf16,
};

use super::report::{Ranks, StoredWeights};
use super::{Done, Task, read_ahead, rounded};
use crate::arguments::{CommunicatorArgument, RankSettings, Run};
use crate::failure::{Failure, Result};

/// The most ranks of one process. Each takes at least two threads.
const MOST_THREADS: usize = 256;

/// The share of one rank.
pub type RankMlp = DeepseekV4Mlp<CpuBackend>;

/// Runs the task on ranks that are threads of this process.
pub fn on_threads(
    arguments: &Run,
    task: &Task,
    checkpoint: Checkpoint,
    world: usize,
) -> Result<Done> {
    let group = group(&arguments.ranks, world)?;
    let expert = SharedExpert::load(&checkpoint, &task.config)?;
    let cpu = Cpu::choose(arguments, task, &expert, world)?;
    let start = Instant::now();
    read_ahead(&[expert.gate(), expert.up(), expert.down()]);
    let mlps = each(group, |ranks| {
        let backend = cpu.backend_of(world)?;
        load(&task.config, &expert, backend, Arc::new(ranks))
    })?;
    let loading = start.elapsed();
    let weights = StoredWeights::new(&expert, mlps.iter().map(RankMlp::weight_bytes).sum());
    let part = mlps.first().map_or(0, RankMlp::intermediate_size);
    let plan = mlps
        .first()
        .map_or_else(Vec::new, |mlp| mlp.plan(task.tokens));
    drop(expert);
    drop(checkpoint);

    let x = rounded(&task.input);
    let start = Instant::now();
    let results = each(mlps, |mlp| forward(&mlp, &x))?;
    let forward = start.elapsed();
    Ok(Done {
        // All ranks have the same.
        y: results.into_iter().next().unwrap_or_default(),
        stages: None,
        platform: Report { plan, ..cpu.report },
        sums: cpu.sums,
        weights,
        ranks: Ranks::several(CommunicatorArgument::Threads.name(), world, part),
        loading,
        forward,
    })
}

/// The ends of a group of threads.
fn group(settings: &RankSettings, world: usize) -> Result<Vec<LocalCommunicator>> {
    if !(1..=MOST_THREADS).contains(&world) {
        return Err(Failure::Input(format!(
            "ranks: expected from 1 to {MOST_THREADS} threads, got {world}"
        )));
    }
    Ok(LocalCommunicator::group(world, settings.timeout())?)
}

/// The CPU as the caller wants it.
pub struct Cpu {
    pub report: Report,
    /// The class of the matmuls' sums.
    pub sums: &'static str,
    accumulation: Accumulation,
}

impl Cpu {
    /// Checks that the caller wants no other platform and that the CPU runs an MLP of several ranks.
    pub fn choose(
        arguments: &Run,
        task: &Task,
        expert: &SharedExpert<'_>,
        world: usize,
    ) -> Result<Self> {
        const CPU: &str = "cpu";
        if arguments.stages {
            return Err(Failure::Input(format!(
                "stages: expected one rank, as each of several has its own part of them, got {world}"
            )));
        }
        let dispatcher = arguments.device.dispatcher()?;
        if let Some(other) = dispatcher.asked_for().filter(|&name| name != CPU) {
            return Err(Failure::Input(format!(
                "platform: expected {CPU} or auto with several ranks, got `{other}`"
            )));
        }
        let dispatcher = dispatcher.platform(CPU);
        let device = dispatcher.device_for(&expert.requests(&split(&task.config, 0, world))?)?;
        if device.report().chosen != CPU {
            let variable = OpSwitches::VARIABLE;
            return Err(Failure::Input(format!(
                "{variable}: expected the activation on {CPU} with several ranks, got {}",
                device.report()
            )));
        }
        let Dispatch { open, .. } = dispatcher.dispatch();
        Ok(Self {
            report: device.report().clone(),
            sums: device.backend().accuracy().accumulation.name(),
            accumulation: open.accumulation,
        })
    }

    /// The backend of a rank that is a process.
    pub fn backend(&self) -> CpuBackend {
        CpuBackend::new().with_accumulation(self.accumulation)
    }

    /// The backend of one of so many ranks in this process, with its share of the threads.
    fn backend_of(&self, world: usize) -> Result<CpuBackend> {
        // The global pool has as many as this process is to use.
        let threads = (rayon::current_num_threads() / world).max(1);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.map_err(|error| cannot_start(&error))?;
        Ok(self.backend().with_pool(Arc::new(pool)))
    }
}

/// The configuration of one of several ranks.
fn split(config: &MlpConfig, rank: usize, world: usize) -> MlpConfig {
    MlpConfig {
        reduce_results: true,
        shard: Shard {
            rank,
            world,
            disable_tp: false,
        },
        ..config.clone()
    }
}

/// Copies a rank's part out of the weights.
pub fn load(
    config: &MlpConfig,
    expert: &SharedExpert<'_>,
    backend: CpuBackend,
    ranks: Arc<dyn Communicator<CpuBackend>>,
) -> Result<RankMlp> {
    let config = split(config, ranks.rank(), ranks.world());
    let backend = Arc::new(backend);
    Ok(DeepseekV4Mlp::load_on_ranks(
        backend, &config, expert, ranks,
    )?)
}

/// The output of all ranks.
pub fn forward(mlp: &RankMlp, x: &[bf16]) -> Result<Vec<bf16>> {
    let hidden = mlp.hidden_size();
    let layout = RowLayout::contiguous(x.len() / hidden, hidden);
    let mut y = vec![bf16::ZERO; x.len()];
    mlp.forward(
        Tensor::from_slice(x, layout),
        TensorMut::from_slice(&mut y, layout),
        &mut Workspace::new(),
    )?;
    Ok(y)
}

/// Works on each rank's item in a thread of its own. An item goes with the work on it, so that the
/// others need not wait for a rank that has failed.
fn each<T: Send, U: Send>(items: Vec<T>, work: impl Fn(T) -> Result<U> + Sync) -> Result<Vec<U>> {
    let work = &work;
    let results: Vec<_> = thread::scope(|scope| {
        let start = |item| thread::Builder::new().spawn_scoped(scope, move || work(item));
        let threads: Vec<_> = items.into_iter().map(start).collect();
        let end = |started: std::io::Result<thread::ScopedJoinHandle<'_, _>>| match started {
            Ok(thread) => thread
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            Err(error) => Err(cannot_start(&error)),
        };
        threads.into_iter().map(end).collect()
    });
    let (done, failed): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    let mut failures: Vec<_> = failed.into_iter().filter_map(Result::err).collect();
    // What a rank suffers from another says less than what that one says.
    failures.sort_by_key(is_of_another_rank);
    match failures.into_iter().next() {
        Some(failure) => Err(failure),
        None => done.into_iter().collect(),
    }
}

fn cannot_start(error: &dyn std::fmt::Display) -> Failure {
    Failure::Input(format!("ranks: expected threads that start, got {error}"))
}

/// Whether a rank failed because the others did not come.
fn is_of_another_rank(failure: &Failure) -> bool {
    let Failure::Mlp(swiglu::mlp::Error::Core(error)) = failure else {
        return false;
    };
    matches!(
        error,
        Error::Backend {
            platform: "ranks",
            ..
        }
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use swiglu::HostCommunicator;

    use super::*;

    fn settings(seconds: f64) -> RankSettings {
        RankSettings {
            ranks: Some(2),
            communicator: None,
            rank_timeout: Some(seconds),
        }
    }

    #[test]
    fn the_time_out_reaches_the_ranks() {
        let ranks = group(&settings(0.02), 2).unwrap();
        let error = ranks[1].all_reduce_f32(&mut [1.0]).unwrap_err().to_string();
        assert!(error.ends_with("within 20ms"), "{error}");
        assert_eq!(settings(1.5).timeout(), Duration::from_millis(1500));
        assert!(group(&settings(1.0), 0).is_err());
        assert!(group(&settings(1.0), MOST_THREADS + 1).is_err());
    }

    #[test]
    fn the_class_of_sums_and_the_share_of_threads_reach_the_backend() {
        for accumulation in [Accumulation::Ordered, Accumulation::MatrixUnit] {
            let cpu = Cpu {
                report: Report {
                    chosen: "cpu".to_owned(),
                    support: swiglu::Support::Native,
                    rejected: Vec::new(),
                    plan: Vec::new(),
                },
                sums: "",
                accumulation,
            };
            let all = rayon::current_num_threads();
            for (world, threads) in [(1, all), (2, (all / 2).max(1)), (2 * all, 1)] {
                let backend = cpu.backend_of(world).unwrap();
                assert_eq!(backend.pool().unwrap().current_num_threads(), threads);
                let said = format!("{backend:?}");
                assert!(
                    said.contains(&format!("accumulation: {accumulation:?}")),
                    "{said}"
                );
            }
        }
    }

    #[test]
    fn the_cause_is_told_and_not_what_others_suffer_from_it() {
        for culprit in 0..3 {
            let ranks = group(&settings(60.0), 3).unwrap();
            let failure = each(ranks, |rank| {
                if HostCommunicator::rank(&rank) == culprit {
                    return Err(Failure::Input("the cause".to_owned()));
                }
                let sum = rank.all_reduce_f32(&mut [1.0]);
                Ok(sum.map_err(swiglu::mlp::Error::from)?)
            });
            assert_eq!(failure.unwrap_err().to_string(), "the cause");
        }
    }
}
