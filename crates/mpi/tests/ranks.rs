//! Run by `mpirun -np N`: every process runs this, and each asserts. Alone it is a world of one.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::time::Duration;

use swiglu_core::reference::Reference;
use swiglu_core::{Communicator, HostCommunicator, RowLayout, TensorMut, bf16};
use swiglu_mpi::{MpiCommunicator, mpi};

fn main() {
    let threading = mpi::Threading::Serialized;
    let (universe, _) = mpi::initialize_with_threading(threading).unwrap();
    let ranks = MpiCommunicator::new(&universe.world(), Duration::from_secs(60)).unwrap();
    let (rank, world) = (
        HostCommunicator::rank(&ranks),
        HostCommunicator::world(&ranks),
    );
    let expected = std::env::var("SWIGLU_RANKS").map_or(1, |n| n.parse().unwrap());
    assert_eq!(
        world, expected,
        "SWIGLU_RANKS says how many there should be"
    );

    sums(&ranks);
    matrices(&ranks);
    if world > 1 {
        lengths_that_differ(&universe);
        a_rank_that_does_not_come(&universe);
    }
    println!("rank {rank} of {world}: done");
}

fn sums(ranks: &MpiCommunicator) {
    let (rank, world) = (
        HostCommunicator::rank(ranks),
        HostCommunicator::world(ranks),
    );
    for n in 0..50 {
        let mut values = [rank as f32, n as f32, 1.0];
        ranks.all_reduce_f32(&mut values).unwrap();
        let of_ranks = (world * (world - 1) / 2) as f32;
        assert_eq!(values, [of_ranks, (n * world) as f32, world as f32]);
    }
    ranks.all_reduce_f32(&mut []).unwrap();
}

fn matrices(ranks: &MpiCommunicator) {
    let (rank, world) = (
        HostCommunicator::rank(ranks),
        HostCommunicator::world(ranks),
    );
    // 256 + 1 + 1 in bf16, rounded after each sum, would be 256.
    let own = if rank == 0 { 256.0 } else { 1.0 };
    let sum = bf16::from_f32(256.0 + (world - 1) as f32);
    let layout = RowLayout::contiguous(2, 2).with_stride(3).with_offset(1);
    let mut partial = [own; 7];
    let mut y = [bf16::ZERO; 7];
    let from = TensorMut::from_slice(&mut partial, layout);
    let to = TensorMut::from_slice(&mut y, layout);
    ranks.all_reduce_into(&Reference, from, to).unwrap();
    let zero = bf16::ZERO;
    assert_eq!(y, [zero, sum, sum, zero, sum, sum, zero]);
}

fn lengths_that_differ(universe: &mpi::environment::Universe) {
    let ranks = MpiCommunicator::new(&universe.world(), Duration::from_secs(60)).unwrap();
    let mut values = vec![0.0; 1 + usize::from(HostCommunicator::rank(&ranks) == 1)];
    let error = ranks.all_reduce_f32(&mut values).unwrap_err().to_string();
    assert_eq!(error, "ranks: ranks brought 1 and 2 elements");
    let after = ranks.all_reduce_f32(&mut values).unwrap_err().to_string();
    assert!(
        after.starts_with("ranks: the group of ranks failed before"),
        "{after}"
    );
}

/// What rank 0 never does, the others wait for in vain.
fn a_rank_that_does_not_come(universe: &mpi::environment::Universe) {
    let world = universe.world();
    let ranks = MpiCommunicator::new(&world, Duration::from_millis(300)).unwrap();
    let told = MpiCommunicator::new(&world, Duration::from_secs(60)).unwrap();
    if HostCommunicator::rank(&ranks) > 0 {
        let error = ranks.all_reduce_f32(&mut [1.0]).unwrap_err().to_string();
        assert_eq!(error, "ranks: the other ranks did not come within 300ms");
    }
    told.all_reduce_f32(&mut [1.0]).unwrap();
}
