use swiglu_core::{Backend, DType, Error, Result, TensorMut};

/// The memory between the stages of a forward pass. It grows to the largest T that it has seen and
/// is then reused: keep one for as long as passes run, one for each stream of passes.
#[derive(Debug)]
pub struct Workspace<B: Backend> {
    gate_up: Option<B::Buffer>,
    act: Option<B::Buffer>,
}

impl<B: Backend> Workspace<B> {
    /// A workspace that holds nothing yet.
    pub const fn new() -> Self {
        Self {
            gate_up: None,
            act: None,
        }
    }

    /// Room for `gate_up` \[tokens, 2·intermediate\] and `act` \[tokens, intermediate\] in bf16.
    pub(crate) fn stages(
        &mut self,
        backend: &B,
        tokens: usize,
        intermediate: usize,
    ) -> Result<[TensorMut<'_, B::Buffer>; 2]> {
        let columns = intermediate.checked_mul(2).ok_or_else(|| {
            Error::argument("intermediate", "a size that can be doubled", intermediate)
        })?;
        Ok([
            matrix(&mut self.gate_up, backend, tokens, columns)?,
            matrix(&mut self.act, backend, tokens, intermediate)?,
        ])
    }
}

impl<B: Backend> Default for Workspace<B> {
    fn default() -> Self {
        Self::new()
    }
}

fn matrix<'a, B: Backend>(
    slot: &'a mut Option<B::Buffer>,
    backend: &B,
    rows: usize,
    cols: usize,
) -> Result<TensorMut<'a, B::Buffer>> {
    let bytes = rows
        .checked_mul(cols)
        .and_then(|n| n.checked_mul(DType::BF16.size()))
        .ok_or_else(|| Error::argument("x", "fewer rows", rows))?;
    let kept = slot.take().filter(|b| backend.len(b) >= bytes);
    let buffer = match kept {
        Some(buffer) => buffer,
        None => backend.alloc(bytes)?,
    };
    let buffer = slot.insert(buffer);
    Ok(TensorMut::contiguous(buffer, DType::BF16, rows, cols))
}
