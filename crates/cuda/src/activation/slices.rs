//! Activations over cudarc's slices, whose events keep the order with what else uses them.

use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut};
use swiglu_core::{Element, Error as CoreError, GatedActivation, RowLayout};

use super::{
    call::{Batches, RawActCall, RawGateUp},
    kernels::Activations,
};
use crate::{
    error::Result,
    launch::options::LaunchOptions,
    view::{RawMatrix, same_context},
};

const fn matrix<T: Element>(address: u64, layout: RowLayout) -> RawMatrix {
    RawMatrix {
        address,
        float: T::FLOAT,
        layout,
    }
}

impl Activations {
    /// Enqueues the activation on rows without gaps: input \[T, 2d\], output \[T, d\].
    ///
    /// # Errors
    /// An input that is not whole rows, an output that is not as many, or a failure of the driver.
    pub fn act_and_mul<T: Element>(
        &self,
        stream: &CudaStream,
        op: &GatedActivation,
        input: &impl DevicePtr<T>,
        output: &mut impl DevicePtrMut<T>,
        d: usize,
        options: LaunchOptions,
    ) -> Result<()> {
        let (rows, out) = GatedActivation::contiguous(input.len(), d)?;
        self.act_and_mul_rows(stream, op, (input, rows), (output, out), options)
    }

    /// Enqueues the activation on rows that lie where the layouts say.
    ///
    /// # Errors
    /// As [`swiglu_core::ActShape::of_input`] and [`RowLayout::check`], an output of another shape,
    /// or a failure of the driver.
    pub fn act_and_mul_rows<T: Element>(
        &self,
        stream: &CudaStream,
        op: &GatedActivation,
        (input, input_layout): (&impl DevicePtr<T>, RowLayout),
        (output, output_layout): (&mut impl DevicePtrMut<T>, RowLayout),
        options: LaunchOptions,
    ) -> Result<()> {
        same_context(stream, self.context())?;
        input_layout.check("input", input.len())?;
        output_layout.check("output", output.len())?;
        let (input, _read) = input.device_ptr(stream);
        let (output, _written) = output.device_ptr_mut(stream);
        let call = RawActCall {
            input: RawGateUp::Merged(matrix::<T>(input, input_layout)),
            output: matrix::<T>(output, output_layout),
            batches: None,
        };
        // SAFETY: the rows lie inside of the slices, which cudarc keeps for the stream's work.
        unsafe { self.act_and_mul_raw(stream.cu_stream(), op, &call, options) }
    }

    /// Enqueues the activation on halves in two slices, without gaps: gate \[T, d\], up \[T, d\],
    /// output \[T, d\].
    ///
    /// # Errors
    /// A gate that is not whole rows, an up or output that is not as many, or a failure of the
    /// driver.
    #[allow(clippy::too_many_arguments)]
    pub fn act_and_mul_split<T: Element>(
        &self,
        stream: &CudaStream,
        op: &GatedActivation,
        [gate, up]: [&impl DevicePtr<T>; 2],
        output: &mut impl DevicePtrMut<T>,
        d: usize,
        options: LaunchOptions,
    ) -> Result<()> {
        same_context(stream, self.context())?;
        if d == 0 || !gate.len().is_multiple_of(d) {
            let expected = format!("whole rows of d elements, d = {d} and at least 1");
            return Err(CoreError::argument("gate", expected, gate.len()).into());
        }
        let rows = RowLayout::contiguous(gate.len() / d, d);
        rows.check("up", up.len())?;
        rows.check("output", output.len())?;
        let (gate, _gate_read) = gate.device_ptr(stream);
        let (up, _up_read) = up.device_ptr(stream);
        let (output, _written) = output.device_ptr_mut(stream);
        let call = RawActCall {
            input: RawGateUp::Split {
                gate: matrix::<T>(gate, rows),
                up: matrix::<T>(up, rows),
            },
            output: matrix::<T>(output, rows),
            batches: None,
        };
        // SAFETY: the rows lie inside of the slices, which cudarc keeps for the stream's work.
        unsafe { self.act_and_mul_raw(stream.cu_stream(), op, &call, options) }
    }

    /// Enqueues the activation on batches of which only some rows are in use: input
    /// \[E, rows, 2d\], output \[E, rows, d\], counts \[E\]. A row at or beyond its batch's count is
    /// neither read nor written.
    ///
    /// # Errors
    /// As [`Self::act_and_mul`], or counts that are not one for each batch.
    #[allow(clippy::too_many_arguments)]
    pub fn act_and_mul_batched<T: Element>(
        &self,
        stream: &CudaStream,
        op: &GatedActivation,
        input: &impl DevicePtr<T>,
        output: &mut impl DevicePtrMut<T>,
        [rows, d]: [usize; 2],
        counts: &impl DevicePtr<i32>,
        options: LaunchOptions,
    ) -> Result<()> {
        same_context(stream, self.context())?;
        let (input_layout, output_layout) = GatedActivation::contiguous(input.len(), d)?;
        output_layout.check("output", output.len())?;
        if counts.len().checked_mul(rows) != Some(input_layout.rows) {
            let expected = format!("{rows} rows for each of {} counts", counts.len());
            return Err(CoreError::argument("input", expected, input_layout.rows).into());
        }
        let (input, _read) = input.device_ptr(stream);
        let (counts, _counted) = counts.device_ptr(stream);
        let (output, _written) = output.device_ptr_mut(stream);
        let call = RawActCall {
            input: RawGateUp::Merged(matrix::<T>(input, input_layout)),
            output: matrix::<T>(output, output_layout),
            batches: Some(Batches { rows, counts }),
        };
        // SAFETY: as above; there is a count for each batch.
        unsafe { self.act_and_mul_raw(stream.cu_stream(), op, &call, options) }
    }
}
