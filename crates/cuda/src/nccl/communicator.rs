//! A group of ranks over NCCL.

use std::ffi::c_void;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cudarc::driver::{CudaStream, sys};
use swiglu_core::{
    Communicator, Error as CoreError, Float, RowLayout, Tensor, TensorMut, check_all_reduce_into,
};

use super::library::{
    BFLOAT16, Comm, Config, FLOAT32, IN_PROGRESS, Nccl, SUCCESS, SUM, Status, UniqueId,
};
use super::round::Rounding;
use crate::error::NcclError;
use crate::error::{Doing, Result};
use crate::view::RawMatrix;
use crate::{CudaBackend, DeviceView};

/// What the ranks of one group know each other by: one of them makes it, and the caller's launcher
/// brings its bytes to the others.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct NcclId([u8; 128]);

impl fmt::Debug for NcclId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NcclId")
    }
}

impl NcclId {
    /// A new one. The process that makes it must live until all ranks have come.
    ///
    /// # Errors
    /// No library, or what NCCL says.
    pub fn new() -> Result<Self> {
        let nccl = Nccl::get()?;
        let mut id = UniqueId([0; 128]);
        // SAFETY: the pointer is to this frame's own value.
        let status = unsafe { (nccl.unique_id)(&raw mut id) };
        succeeded(nccl, "make an id", status)?;
        Ok(Self(id.0))
    }

    /// The one with these bytes.
    pub const fn from_bytes(bytes: [u8; 128]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    pub const fn bytes(&self) -> [u8; 128] {
        self.0
    }
}

/// One rank's end of a group over NCCL (feature `nccl`), for [`CudaBackend`]s with a device each.
///
/// The library `libnccl.so.2` is loaded at run time. Reductions are enqueued on the backend's stream
/// and may be captured into a graph. If the host waits for one, it should do so by
/// [`Communicator::wait`]: `synchronize` waits forever for a rank that has died.
///
/// ```no_run
/// use std::{sync::Arc, time::Duration};
/// use swiglu_cuda::{CudaBackend, NcclCommunicator, NcclId};
/// # fn main() -> swiglu_cuda::Result<()> {
/// # let (rank, world, bytes_from_rank_0) = (0, 1, NcclId::new()?.bytes());
/// let cuda = CudaBackend::open()?;
/// let id = NcclId::from_bytes(bytes_from_rank_0);
/// let ranks = NcclCommunicator::new(&cuda, &id, rank, world, Duration::from_secs(60))?;
/// # drop(Arc::new(ranks));
/// # Ok(())
/// # }
/// ```
pub struct NcclCommunicator {
    nccl: &'static Nccl,
    rank: usize,
    world: usize,
    timeout: Duration,
    state: Mutex<State>,
    rounding: Rounding,
}

/// NCCL's communicator, which one thread at a time may use.
struct State {
    comm: Comm,
    /// Why the group can do nothing any more; its communicator has then been aborted.
    failed: Option<String>,
}

// SAFETY: NCCL's communicator belongs to no thread; the mutex around it lets one at a time use it.
unsafe impl Send for State {}

impl fmt::Debug for NcclCommunicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NcclCommunicator(rank {} of {})", self.rank, self.world)
    }
}

impl NcclCommunicator {
    /// Joins the group of this id, with the device of a backend. Every rank calls this, and each
    /// returns when all have come; `timeout` bounds this wait and every later one.
    ///
    /// # Errors
    /// No library, a rank outside the world, what NCCL says, or ranks that did not come.
    pub fn new(
        backend: &CudaBackend,
        id: &NcclId,
        rank: usize,
        world: usize,
        timeout: Duration,
    ) -> Result<Self> {
        let (Ok(of_rank), Ok(of_world)) = (i32::try_from(rank), i32::try_from(world)) else {
            return Err(CoreError::argument("world", "fewer than 2^31 ranks", world).into());
        };
        if rank >= world {
            let expected = format!("a rank below the world's {world}");
            return Err(CoreError::argument("rank", expected, rank).into());
        }
        let nccl = Nccl::get()?;
        let context = backend.stream().context();
        context.bind_to_thread().doing("bind the context")?;
        let rounding = Rounding::new(context)?;
        let (mut comm, mut config) = (std::ptr::null_mut(), Config::without_blocking());
        // SAFETY: the pointers are to this frame's own values, and the context is bound.
        let status = unsafe {
            let comm = &raw mut comm;
            (nccl.init_rank)(comm, of_world, UniqueId(id.0), of_rank, &raw mut config)
        };
        if status != IN_PROGRESS {
            succeeded(nccl, "join the ranks", status)?;
        }
        let joined = Self {
            nccl,
            rank,
            world,
            timeout,
            state: Mutex::new(State { comm, failed: None }),
            rounding,
        };
        let mut state = joined.lock();
        joined.until_enqueued(&mut state, "join the ranks")?;
        drop(state);
        Ok(joined)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Polls until the last call's work on the host has ended.
    fn until_enqueued(&self, state: &mut State, what: &'static str) -> Result<()> {
        self.poll(state, what, |state| {
            let mut status = SUCCESS;
            // SAFETY: the communicator has not been aborted; the pointer is to this frame's value.
            let asked = unsafe { (self.nccl.async_error)(state.comm, &raw mut status) };
            Ok(match (asked, status) {
                (SUCCESS, IN_PROGRESS) => None,
                (SUCCESS, status) => Some(status),
                (refused, _) => Some(refused),
            })
        })
    }

    /// Asks until there is a status, or the time is over. Whatever is not a success aborts the
    /// communicator.
    fn poll(
        &self,
        state: &mut State,
        what: &'static str,
        mut ask: impl FnMut(&State) -> Result<Option<Status>>,
    ) -> Result<()> {
        let start = Instant::now();
        let mut asked = 0_u32;
        let error = loop {
            match ask(state)? {
                Some(SUCCESS) => return Ok(()),
                Some(status) => {
                    let words = self.nccl.words(status);
                    break NcclError::Refused { what, words };
                }
                None if start.elapsed() > self.timeout => {
                    let seconds = self.timeout.as_secs();
                    break NcclError::TimedOut { what, seconds };
                }
                None => {}
            }
            // Most waits end within microseconds; the long ones need not burn a core.
            asked = asked.saturating_add(1);
            match asked {
                0..1000 => std::hint::spin_loop(),
                _ => std::thread::sleep(Duration::from_micros(50)),
            }
        };
        state.failed = Some(error.to_string());
        // SAFETY: the communicator is aborted once, and not used after `failed` is set.
        unsafe { (self.nccl.abort)(state.comm) };
        Err(error.into())
    }

    /// The communicator, unless the group has failed.
    fn working(&self) -> Result<MutexGuard<'_, State>> {
        let state = self.lock();
        match &state.failed {
            Some(reason) => Err(NcclError::Failed(reason.clone()).into()),
            None => Ok(state),
        }
    }

    /// Enqueues the sum of the rows of a matrix in place.
    fn sum(&self, backend: &CudaBackend, matrix: &RawMatrix) -> Result<()> {
        let kind = match matrix.float {
            Float::F32 => FLOAT32,
            Float::BF16 => BFLOAT16,
            Float::F16 => {
                let got = matrix.float;
                return Err(CoreError::argument("matrix", "f32 or bf16", got).into());
            }
        };
        let stream = backend.stream();
        stream
            .context()
            .bind_to_thread()
            .doing("bind the context")?;
        let RowLayout {
            rows, cols, stride, ..
        } = matrix.layout;
        // Rows side by side are one piece of memory; others are pieces of one operation.
        let (pieces, elements) = match stride == cols || rows <= 1 {
            true => (1, rows * cols),
            false => (rows, cols),
        };
        if elements == 0 {
            return Ok(());
        }
        let mut state = self.working()?;
        let mut status = SUCCESS;
        // SAFETY: the pieces lie inside of the view, which the caller keeps until the stream has
        // run this; the communicator works, and its device is the stream's.
        unsafe {
            if pieces > 1 {
                (self.nccl.group_start)();
            }
            for piece in 0..pieces {
                let at = matrix.first() + (piece * stride * matrix.float.size()) as u64;
                let at = at as *mut c_void;
                let stream = stream.cu_stream();
                let one = (self.nccl.all_reduce)(at, at, elements, kind, SUM, state.comm, stream);
                if !matches!(one, SUCCESS | IN_PROGRESS) {
                    status = one;
                }
            }
            if pieces > 1 {
                let end = (self.nccl.group_end)();
                if !matches!(end, SUCCESS | IN_PROGRESS) {
                    status = end;
                }
            }
        }
        if status != SUCCESS {
            return self.poll(&mut state, "add up the ranks", |_| Ok(Some(status)));
        }
        self.until_enqueued(&mut state, "add up the ranks")
    }
}

impl Communicator<CudaBackend> for NcclCommunicator {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.world
    }

    fn all_reduce(
        &self,
        backend: &CudaBackend,
        matrix: TensorMut<'_, CudaBackend>,
    ) -> swiglu_core::Result<()> {
        matrix.as_tensor().check("matrix")?;
        raw(&matrix.as_tensor()).check_aligned("matrix")?;
        Ok(self.sum(backend, &raw(&matrix.as_tensor()))?)
    }

    fn all_reduce_into(
        &self,
        backend: &CudaBackend,
        partial: TensorMut<'_, CudaBackend>,
        y: TensorMut<'_, CudaBackend>,
    ) -> swiglu_core::Result<()> {
        check_all_reduce_into(&partial.as_tensor(), &y.as_tensor())?;
        let (partial, y) = (raw(&partial.as_tensor()), raw(&y.as_tensor()));
        partial.check_aligned("partial")?;
        y.check_aligned("y")?;
        self.sum(backend, &partial)?;
        // SAFETY: both matrices lie inside of views, which the caller keeps until the stream has
        // run this.
        Ok(unsafe { self.rounding.run(backend.stream(), &partial, &y) }?)
    }

    fn wait(&self, backend: &CudaBackend) -> swiglu_core::Result<()> {
        let stream = backend.stream();
        stream
            .context()
            .bind_to_thread()
            .doing("bind the context")?;
        let mut state = self.working()?;
        let mut last = SUCCESS;
        Ok(self.poll(&mut state, "wait for the ranks", |state| {
            // SAFETY: the communicator has not been aborted; the pointer is to this frame's value.
            let asked = unsafe { (self.nccl.async_error)(state.comm, &raw mut last) };
            match (asked, last) {
                (SUCCESS, SUCCESS | IN_PROGRESS) => {}
                (SUCCESS, failed) | (failed, _) => return Ok(Some(failed)),
            }
            Ok(has_run(stream)?.then_some(SUCCESS))
        })?)
    }
}

/// Whether a stream has run all that was enqueued on it.
fn has_run(stream: &CudaStream) -> Result<bool> {
    // SAFETY: the stream is cudarc's, and its context is bound.
    match unsafe { sys::cuStreamQuery(stream.cu_stream()) } {
        sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
        answer => answer.result().doing("ask the stream").map(|()| true),
    }
}

impl Drop for NcclCommunicator {
    fn drop(&mut self) {
        let mut state = self.lock();
        if state.failed.is_some() {
            return;
        }
        // SAFETY: the communicator works and is finalized once; a rank that does not come for it
        // ends in `poll`, by an abort.
        unsafe { (self.nccl.finalize)(state.comm) };
        if self
            .until_enqueued(&mut state, "part from the ranks")
            .is_ok()
        {
            // SAFETY: it has been finalized, and nobody uses it after this.
            unsafe { (self.nccl.destroy)(state.comm) };
        }
    }
}

fn succeeded(nccl: &Nccl, what: &'static str, status: Status) -> Result<()> {
    if status == SUCCESS {
        return Ok(());
    }
    let words = nccl.words(status);
    Err(NcclError::Refused { what, words }.into())
}

/// A matrix as an address. The caller has checked that its rows lie inside of the view.
fn raw(tensor: &Tensor<'_, CudaBackend>) -> RawMatrix {
    let view: &DeviceView<'_> = &tensor.view;
    RawMatrix {
        address: view.address(),
        float: tensor.float,
        layout: tensor.layout,
    }
}
