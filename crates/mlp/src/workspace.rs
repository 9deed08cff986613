use swiglu_core::{
    Backend, DType, Error, Quantization, QuantizedMut, Result, ScaleLayout, ScaleOrder, ScalesMut,
    TensorMut,
};

/// The memory between the stages of a forward pass. It grows to the largest T that it has seen and
/// is then reused: keep one for as long as passes run, one for each stream of passes.
#[derive(Debug)]
pub struct Workspace<B: Backend> {
    pub(crate) gate_up: Slot<B::Buffer>,
    pub(crate) act: Slot<B::Buffer>,
    pub(crate) quantized: QuantizedSlots<B::Buffer>,
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
                widened: Slot(None),
            },
        }
    }
}

impl<B: Backend> Default for Workspace<B> {
    fn default() -> Self {
        Self::new()
    }
}

/// A buffer that grows.
#[derive(Debug)]
pub(crate) struct Slot<Buffer>(Option<Buffer>);

impl<Buffer> Slot<Buffer> {
    /// At least `bytes` bytes.
    fn reserve<B>(&mut self, backend: &B, bytes: usize) -> Result<&mut Buffer>
    where
        B: Backend<Buffer = Buffer>,
    {
        // A buffer that is too short goes before its successor comes.
        let kept = self.0.take().filter(|b| backend.len(b) >= bytes);
        let buffer = match kept {
            Some(buffer) => buffer,
            None => backend.alloc(bytes)?,
        };
        Ok(self.0.insert(buffer))
    }

    /// Room for a matrix.
    pub(crate) fn matrix<B>(
        &mut self,
        backend: &B,
        dtype: DType,
        rows: usize,
        cols: usize,
    ) -> Result<TensorMut<'_, Buffer>>
    where
        B: Backend<Buffer = Buffer>,
    {
        let bytes = rows
            .checked_mul(cols)
            .and_then(|n| n.checked_mul(dtype.size()))
            .ok_or_else(|| Error::argument("x", "fewer rows", rows))?;
        let buffer = self.reserve(backend, bytes)?;
        Ok(TensorMut::contiguous(buffer, dtype, rows, cols))
    }
}

/// The input of a product as codes and scales, and the room to widen it. Both products use the
/// same memory: the first has read its input before the second's is written.
#[derive(Debug)]
pub(crate) struct QuantizedSlots<Buffer> {
    codes: Slot<Buffer>,
    scales: Slot<Buffer>,
    widened: Slot<Buffer>,
}

impl<Buffer> QuantizedSlots<Buffer> {
    /// Room for a matrix of codes with scales, and for the same in bf16, which holds a code times
    /// a power of two exactly.
    pub(crate) fn matrix<B>(
        &mut self,
        backend: &B,
        quant: &Quantization,
        rows: usize,
        cols: usize,
    ) -> Result<(QuantizedMut<'_, Buffer>, TensorMut<'_, Buffer>)>
    where
        B: Backend<Buffer = Buffer>,
    {
        let groups = quant.groups(cols);
        let layout = ScaleLayout::contiguous(quant.format(), ScaleOrder::RowMajor, rows, groups);
        let matrix = QuantizedMut {
            codes: self.codes.matrix(backend, DType::F8E4M3, rows, cols)?,
            scales: ScalesMut {
                buffer: self.scales.reserve(backend, layout.bytes()?)?,
                layout,
            },
        };
        let widened = self.widened.matrix(backend, DType::BF16, rows, cols)?;
        Ok((matrix, widened))
    }

    /// Room for matrices of up to `cols` columns, so that the second does not outgrow the first.
    pub(crate) fn reserve<B>(
        &mut self,
        backend: &B,
        quant: &Quantization,
        rows: usize,
        cols: usize,
    ) -> Result<()>
    where
        B: Backend<Buffer = Buffer>,
    {
        self.matrix(backend, quant, rows, cols).map(drop)
    }
}
