//! The MLP on ranks that are processes, which `mpirun` started.
//!
//! ## Method
//! An error must end all processes, and be told once. While they load, each keeps its error; then
//! they exchange how it went, the first that failed tells, and all end. From there on an error aborts
//! all processes: the others wait for a sum that does not come.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use swiglu::mlp::SharedExpert;
use swiglu::mpi::MpiCommunicator;
use swiglu::mpi::mpi::environment::Universe;
use swiglu::mpi::mpi::topology::Communicator;
use swiglu::mpi::mpi::{self, Threading};
use swiglu::{HostCommunicator, Report, bf16};

use super::ranks::{self, Cpu, RankMlp};
use super::report::{Ranks, StoredWeights};
use super::{Done, Task, alone, finish, output, rounded};
use crate::arguments::{CommunicatorArgument, Run};
use crate::console::Console;
use crate::failure::{BAD_INPUT, Failure, Result};
use crate::files::OutputFile;

/// Runs one of the processes.
pub fn over_mpi(arguments: &Run, out: &mut Console) -> Result<()> {
    let Some((universe, _)) = mpi::initialize_with_threading(Threading::Serialized) else {
        return Err(Failure::Input(
            "communicator: expected an MPI that was not started before".to_owned(),
        ));
    };
    // The end of the universe waits for all processes.
    on(&universe, arguments, out)
}

fn on(universe: &Universe, arguments: &Run, out: &mut Console) -> Result<()> {
    let processes = universe.world();
    let group = MpiCommunicator::new(&processes, arguments.ranks.timeout())?;
    let group = Arc::new(group);
    let (rank, world) = (
        HostCommunicator::rank(&*group),
        HostCommunicator::world(&*group),
    );
    if world == 1 {
        is_world(arguments, world)?;
        return alone(arguments, out);
    }
    let end = |failure: Failure| -> ! {
        failure.tell();
        processes.abort(BAD_INPUT.into())
    };
    let loaded = Loaded::new(arguments, &group, out);
    match agree(&group, loaded.as_ref().ok().map(Loaded::fingerprint)) {
        Ok(Agreement::All) => {}
        Ok(Agreement::Failed(failed)) => {
            if let (true, Err(failure)) = (failed == rank, loaded) {
                // Before the end of this process, which may end those that are yet to tell.
                failure.tell();
            }
            return Err(Failure::Told);
        }
        Ok(Agreement::Differs(other)) => {
            if rank == 0 {
                Failure::Input(format!(
                    "ranks: expected the same input and settings on all, got others on rank {other}"
                ))
                .tell();
            }
            return Err(Failure::Told);
        }
        Err(error) => end(error.into()),
    }
    let loaded = loaded?;
    let start = Instant::now();
    let y = match ranks::forward(&loaded.mlp, &loaded.x) {
        Ok(y) => y,
        Err(failure) => end(failure),
    };
    let forward = start.elapsed();
    let Loaded {
        task,
        output,
        mlp,
        cpu,
        weights,
        loading,
        ..
    } = loaded;
    let Some(output) = output else {
        return Ok(());
    };
    let done = Done {
        y,
        stages: None,
        platform: Report {
            plan: mlp.plan(task.tokens),
            ..cpu.report
        },
        sums: cpu.sums,
        weights,
        ranks: Ranks::several(
            CommunicatorArgument::Mpi.name(),
            world,
            mlp.intermediate_size(),
        ),
        loading,
        forward,
    };
    finish(arguments, &task, &output, done, out)
}

/// What a process has before the forward pass. The checkpoint is unmapped by then.
struct Loaded {
    task: Task,
    x: Vec<bf16>,
    /// Rank 0's alone.
    output: Option<OutputFile>,
    mlp: RankMlp,
    cpu: Cpu,
    weights: StoredWeights,
    loading: Duration,
}

impl Loaded {
    fn new(arguments: &Run, group: &Arc<MpiCommunicator>, out: &mut Console) -> Result<Self> {
        let world = HostCommunicator::world(&**group);
        is_world(arguments, world)?;
        let (task, checkpoint, inputs) = Task::read(arguments)?;
        let output = match HostCommunicator::rank(&**group) {
            0 => Some(output(arguments, &inputs, out)?),
            _ => None,
        };
        let expert = SharedExpert::load(&checkpoint, &task.config)?;
        let cpu = Cpu::choose(arguments, &task, &expert, world)?;
        let start = Instant::now();
        let ranks = Arc::clone(group);
        let mlp = ranks::load(&task.config, &expert, cpu.backend(), ranks)?;
        Ok(Self {
            loading: start.elapsed(),
            x: rounded(&task.input),
            // All shares are of one size.
            weights: StoredWeights::new(&expert, mlp.weight_bytes().saturating_mul(world)),
            task,
            output,
            mlp,
            cpu,
        })
    }

    /// 24 bits, which are a number of f32, that tell another input or other settings.
    fn fingerprint(&self) -> f32 {
        let mut hasher = DefaultHasher::new();
        format!("{:?}", self.task.config).hash(&mut hasher);
        for x in &self.x {
            x.to_bits().hash(&mut hasher);
        }
        (hasher.finish() >> 40) as f32
    }
}

/// Checks that there are as many processes as were asked for.
fn is_world(arguments: &Run, world: usize) -> Result<()> {
    match arguments.ranks.ranks {
        Some(asked) if asked != world => Err(Failure::Input(format!(
            "ranks: expected {world}, as many processes as MPI started, got {asked}"
        ))),
        _ => Ok(()),
    }
}

/// How loading went on all ranks.
enum Agreement {
    All,
    /// The first rank that failed.
    Failed(usize),
    /// The first rank that has another input or other settings than rank 0.
    Differs(usize),
}

/// Tells the others this rank's fingerprint, if it has loaded.
fn agree(group: &MpiCommunicator, own: Option<f32>) -> swiglu::Result<Agreement> {
    let (rank, world) = (
        HostCommunicator::rank(group),
        HostCommunicator::world(group),
    );
    // Each rank fills its own place, and the sum has all.
    let mut failed = vec![0.0; world];
    let mut fingerprints = vec![0.0; world];
    match own {
        Some(own) => fingerprints[rank] = own,
        None => failed[rank] = 1.0,
    }
    group.all_reduce_f32(&mut failed)?;
    group.all_reduce_f32(&mut fingerprints)?;
    let differs = |own: &f32| *own != fingerprints[0];
    let failed = failed.iter().position(|&failed| failed != 0.0);
    Ok(match (failed, fingerprints.iter().position(differs)) {
        (Some(rank), _) => Agreement::Failed(rank),
        (None, Some(rank)) => Agreement::Differs(rank),
        (None, None) => Agreement::All,
    })
}
