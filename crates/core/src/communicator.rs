//! Several ranks, each with a part of a layer, that add up what they computed.

mod host;
mod local;

pub use host::HostCommunicator;
pub use local::LocalCommunicator;

use crate::{Backend, Result, Tensor, TensorMut};

/// One rank's end of a group of ranks that add up matrices in a backend's memory.
///
/// Every rank makes the same calls with matrices of the same shapes, in the same order. A call
/// enqueues where the backend enqueues: on a device it returns before the sum is there. It never
/// hangs: a rank that fails or does not come makes the calls of the others return an error within
/// the communicator's time-out, and after that every call of the group fails.
pub trait Communicator<B: Backend>: Send + Sync {
    /// Which rank this is, from 0.
    fn rank(&self) -> usize;

    /// How many ranks there are.
    fn world(&self) -> usize;

    /// Replaces a matrix of f32, or of bf16, by the sum of all ranks' matrices.
    ///
    /// # Errors
    /// Another type, rows outside the view, ranks with different shapes, or a rank that failed or
    /// did not come.
    fn all_reduce(&self, backend: &B, matrix: TensorMut<'_, B>) -> Result<()>;

    /// y = the sum of all ranks' `partial`, which are f32, rounded once to y's type. Afterwards
    /// `partial` holds unspecified numbers.
    ///
    /// # Errors
    /// As [`Self::all_reduce`], and shapes that differ.
    fn all_reduce_into(
        &self,
        backend: &B,
        partial: TensorMut<'_, B>,
        y: TensorMut<'_, B>,
    ) -> Result<()>;

    /// Waits until what this rank enqueued has ended, where [`Backend::synchronize`] would wait
    /// forever for a rank that has died.
    ///
    /// # Errors
    /// A rank that failed or did not come within the time-out.
    fn wait(&self, backend: &B) -> Result<()>;
}

/// Checks the two matrices of [`Communicator::all_reduce_into`].
///
/// # Errors
/// A `partial` that is not f32, shapes that differ, or rows outside the view.
pub fn check_all_reduce_into<B: Backend>(partial: &Tensor<'_, B>, y: &Tensor<'_, B>) -> Result<()> {
    use crate::{Error, Float};
    if partial.float != Float::F32 {
        return Err(Error::argument("partial", "f32", partial.float));
    }
    let shape = |t: &Tensor<'_, B>| [t.layout.rows, t.layout.cols];
    if shape(partial) != shape(y) {
        let expected = format!("the shape {:?} of `partial`", shape(partial));
        return Err(Error::argument("y", expected, format!("{:?}", shape(y))));
    }
    partial.check("partial")?;
    y.check("y")
}
