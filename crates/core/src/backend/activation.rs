use crate::{Backend, GateUp, GatedActivation, Result, TensorMut};

/// A backend that runs gated activations.
pub trait ActAndMul: Backend {
    /// Enqueues `output[t, j] = op(gate[t, j], up[t, j])`: the halves in one matrix \[T, 2d\] or in
    /// two \[T, d\], output \[T, d\], all of one type.
    ///
    /// # Errors
    /// As [`crate::check::act`], [`crate::Error::Unsupported`] where [`Backend::supports`] says no,
    /// or a failure of the device.
    fn act_and_mul(
        &self,
        op: &GatedActivation,
        input: GateUp<'_, Self>,
        output: TensorMut<'_, Self>,
    ) -> Result<()>;
}
