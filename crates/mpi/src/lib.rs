//! Ranks that are processes, of one host or of many, over MPI: [`MpiCommunicator`] is a
//! [`swiglu_core::Communicator`] of every backend on host memory.
//!
//! All of it is behind the feature `mpi`, since building needs an MPI library.
#![cfg(feature = "mpi")]

mod communicator;

pub use communicator::MpiCommunicator;
pub use mpi;
