//! Communicators whose ranks have their matrices in host memory.

use crate::communicator::check_all_reduce_into;
use crate::{
    Backend, Communicator, Element, Error, Float, Result, RowLayout, TensorMut, with_float,
};

/// A group of ranks that adds up plain slices of f32; with that it is a [`Communicator`] of every
/// backend on host memory. A call is done when it returns.
pub trait HostCommunicator: Send + Sync {
    /// Which rank this is, from 0.
    fn rank(&self) -> usize;

    /// How many ranks there are.
    fn world(&self) -> usize;

    /// Replaces `values` by the sum of all ranks' values, element by element, in f32.
    ///
    /// # Errors
    /// Ranks with different lengths, or a rank that failed or did not come within the time-out.
    fn all_reduce_f32(&self, values: &mut [f32]) -> Result<()>;
}

impl<B, C> Communicator<B> for C
where
    B: for<'a> Backend<View<'a> = &'a [u8], ViewMut<'a> = &'a mut [u8]>,
    C: HostCommunicator,
{
    fn rank(&self) -> usize {
        HostCommunicator::rank(self)
    }

    fn world(&self) -> usize {
        HostCommunicator::world(self)
    }

    fn all_reduce(&self, _: &B, matrix: TensorMut<'_, B>) -> Result<()> {
        matrix.as_tensor().check("matrix")?;
        let (layout, float) = (matrix.layout, matrix.float);
        match float {
            Float::F32 if layout.stride == layout.cols => {
                let data = matrix.into_typed::<f32>("matrix")?;
                let end = layout.end("matrix")?;
                self.all_reduce_f32(&mut data[layout.offset.min(end)..end])
            }
            Float::F32 | Float::BF16 => with_float!(float, T => {
                let data = matrix.into_typed::<T>("matrix")?;
                let mut values = gather(data, &layout)?;
                self.all_reduce_f32(&mut values)?;
                scatter(&values, data, &layout);
                Ok(())
            }),
            Float::F16 => Err(Error::argument("matrix", "f32 or bf16", float)),
        }
    }

    fn all_reduce_into(&self, _: &B, partial: TensorMut<'_, B>, y: TensorMut<'_, B>) -> Result<()> {
        check_all_reduce_into(&partial.as_tensor(), &y.as_tensor())?;
        let layout = partial.layout;
        let mut values = gather(partial.into_typed::<f32>("partial")?, &layout)?;
        self.all_reduce_f32(&mut values)?;
        let (layout, float) = (y.layout, y.float);
        with_float!(float, T => scatter(&values, y.into_typed::<T>("y")?, &layout));
        Ok(())
    }

    fn wait(&self, _: &B) -> Result<()> {
        Ok(())
    }
}

/// The rows of a matrix, one after another, in f32.
fn gather<T: Element>(data: &[T], layout: &RowLayout) -> Result<Vec<f32>> {
    let elements = layout.rows.saturating_mul(layout.cols);
    let mut values = Vec::new();
    let bytes = elements.saturating_mul(size_of::<f32>());
    let platform = "host";
    values
        .try_reserve_exact(elements)
        .map_err(|_| Error::OutOfMemory { platform, bytes })?;
    for row in 0..layout.rows {
        values.extend(data[layout.row(row)].iter().map(|x| x.to_f32()));
    }
    Ok(values)
}

/// Rounds rows that lie one after another into a matrix.
fn scatter<T: Element>(values: &[f32], data: &mut [T], layout: &RowLayout) {
    for (row, values) in values.chunks_exact(layout.cols.max(1)).enumerate() {
        for (y, &x) in data[layout.row(row)].iter_mut().zip(values) {
            *y = T::from_f32(x);
        }
    }
}
