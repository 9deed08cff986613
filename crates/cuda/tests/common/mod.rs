//! The device, for one test at a time, and its buffers.
// Helpers beside the tests unwrap as the tests do, and no program uses all of them.
#![allow(clippy::unwrap_used, dead_code)]

pub mod sums;

use std::sync::{Mutex, MutexGuard, PoisonError};

use swiglu_core::{Accumulation, Backend};
use swiglu_cuda::CudaBackend;

/// Work that one test does on the context spoils what another captures.
static TURN: Mutex<()> = Mutex::new(());

/// Waits until no other test of the program uses the device.
pub fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The device, or a skip by the name of these tests.
pub fn open(tests: &str) -> Option<(CudaBackend, MutexGuard<'static, ()>)> {
    open_with(tests, Accumulation::default())
}

/// The device with a class of sums, or a skip by the name of these tests.
pub fn open_with(
    tests: &str,
    accumulation: Accumulation,
) -> Option<(CudaBackend, MutexGuard<'static, ()>)> {
    let turn = turn();
    match CudaBackend::builder().accumulation(accumulation).open() {
        Ok(backend) => Some((backend, turn)),
        Err(reason) => {
            swiglu_conformance::may_skip("cuda", &reason.to_string(), tests);
            None
        }
    }
}

/// A buffer of these bytes.
pub fn filled<B: Backend>(backend: &B, bytes: &[u8]) -> B::Buffer {
    let mut buffer = backend.alloc(bytes.len()).unwrap();
    backend.upload(&mut buffer, bytes).unwrap();
    buffer
}

/// All bytes of a buffer.
pub fn bytes<B: Backend>(backend: &B, buffer: &B::Buffer) -> Vec<u8> {
    let mut bytes = vec![0; backend.len(buffer)];
    backend.download(buffer, &mut bytes).unwrap();
    bytes
}
