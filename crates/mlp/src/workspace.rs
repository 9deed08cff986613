use std::fmt;

use swiglu_core::{
    Backend, Error, Float, Quantization, QuantizedMut, Result, RowLayout, ScaleLayout, ScaleOrder,
    TensorMut,
};

/// The memory between the stages of a forward pass. It grows to the largest T that it has seen and
/// is then reused: keep one for as long as passes run, one for each stream of passes.
pub struct Workspace<B: Backend> {
    pub(crate) gate_up: Slot<B>,
    pub(crate) act: Slot<B>,
    pub(crate) quantized: QuantizedSlots<B>,
    /// This rank's part of y, before the ranks add theirs.
    pub(crate) partial: Slot<B>,
}

impl<B: Backend> Workspace<B> {
    /// A workspace that holds nothing yet.
    pub const fn new() -> Self {
        Self {
            gate_up: Slot(None),
            act: Slot(None),
            quantized: QuantizedSlots {
                codes: Slot(None),
                scales: Slot(None),
                scratch: Slot(None),
            },
            partial: Slot(None),
        }
    }
}

impl<B: Backend> Default for Workspace<B> {
    fn default() -> Self {
        Self::new()
    }
}

impl<B: Backend> fmt::Debug for Workspace<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Workspace").finish_non_exhaustive()
    }
}

/// A buffer that grows.
pub(crate) struct Slot<B: Backend>(Option<B::Buffer>);

impl<B: Backend> Default for Slot<B> {
    fn default() -> Self {
        Self(None)
    }
}

impl<B: Backend> Slot<B> {
    /// Nothing yet.
    pub(crate) const fn new() -> Self {
        Self(None)
    }

    /// At least `bytes` bytes.
    pub(crate) fn reserve(&mut self, backend: &B, bytes: usize) -> Result<B::ViewMut<'_>> {
        // A buffer that is too short goes before its successor comes.
        let kept = self.0.take().filter(|b| backend.len(b) >= bytes);
        let buffer = match kept {
            Some(buffer) => buffer,
            None => backend.alloc(bytes)?,
        };
        Ok(B::view_mut(self.0.insert(buffer)))
    }

    /// Room for a matrix.
    pub(crate) fn matrix(
        &mut self,
        backend: &B,
        float: Float,
        [rows, cols]: [usize; 2],
    ) -> Result<TensorMut<'_, B>> {
        let bytes = size(rows, cols, float.size())?;
        let view = self.reserve(backend, bytes)?;
        Ok(TensorMut::contiguous(view, float, rows, cols))
    }
}

fn size(rows: usize, cols: usize, element: usize) -> Result<usize> {
    rows.checked_mul(cols)
        .and_then(|n| n.checked_mul(element))
        .ok_or_else(|| Error::argument("x", "fewer rows", rows))
}

/// The input of a matmul as codes and scales, and the backend's scratch memory. Both matmuls use
/// the same memory: the first has read its input before the second's is written.
pub(crate) struct QuantizedSlots<B: Backend> {
    codes: Slot<B>,
    scales: Slot<B>,
    scratch: Slot<B>,
}

impl<B: Backend> QuantizedSlots<B> {
    /// Room for a matrix of codes with scales, and `scratch` bytes.
    pub(crate) fn matrix(
        &mut self,
        backend: &B,
        quant: &Quantization,
        [rows, cols]: [usize; 2],
        scratch: usize,
    ) -> Result<(QuantizedMut<'_, B>, B::ViewMut<'_>)> {
        let groups = quant.groups(cols);
        let scale_layout =
            ScaleLayout::contiguous(quant.format(), ScaleOrder::RowMajor, rows, groups);
        let matrix = QuantizedMut {
            codes: self.codes.reserve(backend, size(rows, cols, 1)?)?,
            layout: RowLayout::contiguous(rows, cols),
            scales: self.scales.reserve(backend, scale_layout.bytes()?)?,
            scale_layout,
        };
        Ok((matrix, self.scratch.reserve(backend, scratch)?))
    }
}
