//! The device, for one test at a time.

use std::sync::{Mutex, MutexGuard, PoisonError};

use swiglu_cuda::CudaBackend;

/// Work that one test does on the context spoils what another captures.
static TURN: Mutex<()> = Mutex::new(());

/// Waits until no other test of the program uses the device.
pub fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The device, or a skip by the name of these tests.
#[allow(dead_code, reason = "some tests open it in their own way")]
pub fn open(tests: &str) -> Option<(CudaBackend, MutexGuard<'static, ()>)> {
    let turn = turn();
    match CudaBackend::open() {
        Ok(backend) => Some((backend, turn)),
        Err(reason) => {
            swiglu_testing::may_skip("cuda", &reason.to_string(), tests);
            None
        }
    }
}
