//! A tensor's memory on the CPU as a backend's views, and new memory for results.

use candle_core::backend::BackendStorage as _;
use candle_core::{CpuStorage, Layout, Result, WithDType as _};
use swiglu_core::{Float, RowLayout, Tensor, TensorMut, with_float};
use swiglu_cpu::CpuBackend;

use crate::error::{argument, float};
use crate::rows::rows;

/// The elements of a tensor's memory, of all that it shares.
pub(crate) fn bytes<'a>(name: &'static str, storage: &'a CpuStorage) -> Result<(Float, &'a [u8])> {
    let float = float(name, storage.dtype())?;
    let bytes = with_float!(float, T => bytemuck::cast_slice(storage.as_slice::<T>()?));
    Ok((float, bytes))
}

/// A tensor as a matrix.
pub(crate) fn matrix<'a>(
    name: &'static str,
    storage: &'a CpuStorage,
    layout: &Layout,
) -> Result<Tensor<'a, CpuBackend>> {
    let (float, bytes) = bytes(name, storage)?;
    Ok(Tensor::new(bytes, float, rows(name, layout)?))
}

/// A new contiguous matrix that `write` fills.
pub(crate) fn filled(
    float: Float,
    [rows, cols]: [usize; 2],
    write: impl FnOnce(TensorMut<'_, CpuBackend>) -> Result<()>,
) -> Result<CpuStorage> {
    let len = rows.checked_mul(cols);
    with_float!(float, T => {
        let zeros = len.and_then(|len| bytemuck::allocation::try_zeroed_vec::<T>(len).ok());
        let mut elements = zeros.ok_or_else(|| {
            argument("input", "a result that memory can hold", format!("[{rows}, {cols}]"))
        })?;
        write(TensorMut::from_slice(&mut elements, RowLayout::contiguous(rows, cols)))?;
        Ok(T::to_cpu_storage_owned(elements))
    })
}
