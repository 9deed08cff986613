//! ## Method
//! A sum is a non-blocking reduction that is polled: a blocking one could not be left when a rank
//! does not come. MPI has no way to withdraw a reduction, so one that was given up keeps its memory
//! for good, and its group with it.

use std::ffi::{c_int, c_void};
use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use mpi::collective::SystemOperation;
use mpi::datatype::Equivalence;
use mpi::ffi;
use mpi::topology::{Communicator, SimpleCommunicator};
use mpi::traits::AsRaw;
use swiglu_core::{Error, HostCommunicator, Result};

/// One rank's end of a group of MPI processes.
///
/// MPI adds in an order of its own: sums are within f32 rounding of each other's orders. With MPI's
/// default error handler a process that dies takes the others of its job along; one that lives and
/// does not come makes their calls fail after the time-out.
///
/// ```no_run
/// use std::time::Duration;
/// use swiglu_core::HostCommunicator;
/// use swiglu_mpi::{MpiCommunicator, mpi};
/// # fn main() -> swiglu_core::Result<()> {
/// // One thread at a time calls MPI, whichever it is.
/// let (universe, _) = mpi::initialize_with_threading(mpi::Threading::Serialized).unwrap();
/// let ranks = MpiCommunicator::new(&universe.world(), Duration::from_secs(60))?;
/// let mut values = [1.0_f32];
/// ranks.all_reduce_f32(&mut values)?; // the number of processes, in each of them
/// # Ok(())
/// # }
/// ```
pub struct MpiCommunicator {
    rank: usize,
    world: usize,
    timeout: Duration,
    group: Mutex<Group>,
}

struct Group {
    /// A duplicate of the caller's, so that no other message of the program is taken for ours. It
    /// is never freed: that would wait for all ranks.
    comm: ManuallyDrop<SimpleCommunicator>,
    /// Why the group can do nothing any more.
    failed: Option<String>,
}

// SAFETY: a communicator of MPI is a handle of the process; the mutex around it lets one thread at
// a time use it, which is what `new` asks MPI to allow.
unsafe impl Send for Group {}

impl fmt::Debug for MpiCommunicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MpiCommunicator(rank {} of {})", self.rank, self.world)
    }
}

impl MpiCommunicator {
    /// The group of a communicator of the caller's; all its ranks call this. `timeout` bounds every
    /// wait for the others but this one. Drop it before MPI is finalized.
    ///
    /// # Errors
    /// An MPI that only the main thread may call.
    pub fn new(comm: &impl Communicator, timeout: Duration) -> Result<Self> {
        let threads = mpi::environment::threading_support();
        if threads < mpi::Threading::Serialized {
            let expected = "an MPI initialized with at least Threading::Serialized";
            return Err(Error::argument("comm", expected, format!("{threads:?}")));
        }
        Ok(Self {
            rank: comm.rank() as usize,
            world: comm.size() as usize,
            timeout,
            group: Mutex::new(Group {
                comm: ManuallyDrop::new(comm.duplicate()),
                failed: None,
            }),
        })
    }
}

impl HostCommunicator for MpiCommunicator {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.world
    }

    fn all_reduce_f32(&self, values: &mut [f32]) -> Result<()> {
        let mut group = self.group.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reason) = &group.failed {
            return Err(failure(format!(
                "the group of ranks failed before: {reason}"
            )));
        }
        // MPI's word for different lengths is undefined behavior: the longest and the shortest.
        let len = values.len() as i64;
        let lengths = group.reduce(&[len, -len], SystemOperation::max(), self.timeout)?;
        if lengths != [len, -len] {
            let (longest, shortest) = (lengths[0], -lengths[1]);
            let reason = format!("ranks brought {shortest} and {longest} elements");
            return Err(group.fail(reason));
        }
        // MPI counts in 32 bits.
        for values in values.chunks_mut(1 << 28) {
            let sum = group.reduce(values, SystemOperation::sum(), self.timeout)?;
            values.copy_from_slice(&sum);
        }
        Ok(())
    }
}

impl Group {
    /// The reduction of all ranks' values, of which there are below 2^31.
    fn reduce<T: Equivalence + Default + Copy>(
        &mut self,
        values: &[T],
        operation: SystemOperation,
        timeout: Duration,
    ) -> Result<Vec<T>> {
        let from = values.to_vec();
        let mut to = vec![T::default(); values.len()];
        // SAFETY: a zero is any request's place before MPI fills it.
        let mut request: ffi::MPI_Request = unsafe { std::mem::zeroed() };
        // SAFETY: both vectors have as many elements of this type, and stay where they are until
        // the request has ended: if it does not, they are forgotten below.
        let status = unsafe {
            ffi::MPI_Iallreduce(
                from.as_ptr().cast::<c_void>(),
                to.as_mut_ptr().cast::<c_void>(),
                values.len() as c_int,
                T::equivalent_datatype().as_raw(),
                operation.as_raw(),
                self.comm.as_raw(),
                &raw mut request,
            )
        };
        if status != 0 {
            return Err(self.fail(format!("MPI_Iallreduce answered {status}")));
        }
        let start = Instant::now();
        let mut asked = 0_u32;
        let reason = loop {
            let mut done = 0;
            // SAFETY: the request is the one that MPI made, and has not ended before.
            let status =
                unsafe { ffi::MPI_Test(&raw mut request, &raw mut done, ffi::RSMPI_STATUS_IGNORE) };
            match (status, done) {
                (0, 0) if start.elapsed() > timeout => {
                    break format!("the other ranks did not come within {timeout:?}");
                }
                (0, 0) => {}
                (0, _) => return Ok(to),
                (status, _) => break format!("MPI_Test answered {status}"),
            }
            // Most waits are short; the long ones need not burn a core.
            asked = asked.saturating_add(1);
            if asked > 10_000 {
                std::thread::sleep(Duration::from_micros(50));
            }
        };
        // MPI may still write there.
        std::mem::forget((from, to));
        Err(self.fail(reason))
    }

    fn fail(&mut self, reason: String) -> Error {
        self.failed = Some(reason.clone());
        failure(reason)
    }
}

fn failure(reason: String) -> Error {
    Error::Backend {
        platform: "ranks",
        source: reason.into(),
    }
}
