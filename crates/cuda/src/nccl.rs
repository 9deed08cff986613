//! Ranks on GPUs, of one host or of many, over NVIDIA's NCCL.
//!
//! ## Method
//! 1. Communicators do not block: every call returns at once, and its end is polled for until the
//!    time-out. One that can no longer work is aborted, which ends its kernels on the device too.
//! 2. A reduction is enqueued on the backend's stream, also under graph capture. Whether it ended
//!    is asked of the stream, since a device that waits for a dead rank answers nothing else.
//! 3. Sums are f32. What is wanted in another type is rounded by a kernel of our own, once.

mod communicator;
mod library;
mod round;

pub use communicator::{NcclCommunicator, NcclId};
