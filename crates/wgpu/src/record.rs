//! What a [`WgpuBackend`] does beyond the traits: into a pass or an encoder of the caller's, or on
//! slices.

use std::sync::Arc;

use swiglu_core::{
    ActAndMul, ActShape, Backend, Element, GateUp, GatedActivation, Tensor, TensorMut, check,
};

use crate::device::Device;
use crate::launch::{Halves, Matrix};
use crate::{Result, Weight, WgpuBackend, activation, matmul};

impl WgpuBackend {
    /// The device.
    pub fn device(&self) -> &Device {
        self.recorder.device()
    }

    /// Another backend on the same device and the same pipelines, for another thread: it costs a
    /// few reference counts, and its calls are recorded, submitted and waited for by themselves. A
    /// [`Weight`] that one of them has loaded serves all. (One backend may be called from several
    /// threads too: then its calls join one recording.)
    #[must_use]
    pub fn share(&self) -> Self {
        Self {
            recorder: self.recorder.share(),
            pipelines: Arc::clone(&self.pipelines),
            tier: self.tier.clone(),
            accumulation: self.accumulation,
        }
    }

    /// Records every call that `f` makes on this backend into a compute pass of the caller's
    /// encoder: activations, quantization, matmuls, or a whole MLP. Nothing of it is submitted or
    /// waited for; errors of wgpu's validation appear where the caller finishes the encoder. What
    /// was recorded before is submitted first. Buffers may be made meanwhile, but not uploaded to,
    /// downloaded or waited for.
    ///
    /// ```
    /// # use swiglu_core::{ActAndMul, GatedActivation, Result, Tensor, TensorMut};
    /// # use swiglu_wgpu::{WgpuBackend, wgpu};
    /// fn step(
    ///     backend: &WgpuBackend,
    ///     encoder: &mut wgpu::CommandEncoder,
    ///     x: Tensor<'_, WgpuBackend>,
    ///     y: TensorMut<'_, WgpuBackend>,
    /// ) -> Result<()> {
    ///     let op = GatedActivation::deepseek_v4();
    ///     backend.record_into(encoder, || backend.act_and_mul(&op, x.into(), y))
    /// }
    /// ```
    ///
    /// # Errors
    /// What `f` returns; a failure to submit what was recorded before. Calls on this backend from
    /// other threads fail meanwhile: they take a [`Self::share`].
    pub fn record_into<T>(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        f: impl FnOnce() -> swiglu_core::Result<T>,
    ) -> swiglu_core::Result<T> {
        let diverted = self.recorder.divert(encoder)?;
        let made = f();
        drop(diverted);
        made
    }

    /// Records the operation into the caller's pass, on this backend's device; nothing is
    /// submitted or waited for. Errors of wgpu's validation appear where the caller finishes the
    /// encoder.
    ///
    /// # Errors
    /// As [`check::act`], a buffer that is both input and output (with
    /// [`crate::Builder::shared_buffers`], views that overlap), or a lost device.
    pub fn record_act_and_mul(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        op: &GatedActivation,
        input: GateUp<'_, Self>,
        output: TensorMut<'_, Self>,
    ) -> swiglu_core::Result<()> {
        let shape = check::act(&input, &output)?;
        self.device().check()?;
        let input = Halves::of(&input);
        let output = Matrix::of("output", &output.as_tensor());
        let on = (self.device(), &*self.pipelines);
        Ok(activation::record(on, pass, op, (&input, &output), shape)?)
    }

    /// Records y = x · wᵀ into the caller's pass, as [`Self::record_act_and_mul`] does.
    ///
    /// # Errors
    /// As [`check::matmul`], a buffer that is both x and y (with
    /// [`crate::Builder::shared_buffers`], views that overlap), or a lost device.
    pub fn record_matmul(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        x: Tensor<'_, Self>,
        weight: &Weight,
        y: TensorMut<'_, Self>,
    ) -> swiglu_core::Result<()> {
        check::matmul(&x, weight.shape(), &y)?;
        self.device().check()?;
        let (x, y) = (Matrix::of("x", &x), Matrix::of("y", &y.as_tensor()));
        let on = (self.device(), &*self.pipelines);
        Ok(matmul::record(on, pass, &x, weight, &y)?)
    }

    /// Records `gate_up = R(x · wᵀ)` and `act = op(gate_up)` into the caller's pass, as
    /// [`swiglu_core::Matmul::matmul_act_and_mul`] enqueues them and [`Self::record_act_and_mul`]
    /// records.
    ///
    /// # Errors
    /// As [`Self::record_matmul`] and [`Self::record_act_and_mul`].
    pub fn record_matmul_act_and_mul(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        op: &GatedActivation,
        x: Tensor<'_, Self>,
        weight: &Weight,
        gate_up: TensorMut<'_, Self>,
        act: TensorMut<'_, Self>,
    ) -> swiglu_core::Result<()> {
        let shape = check::gated_matmul(&x, weight.shape(), &gate_up, &act)?;
        self.device().check()?;
        let x = Matrix::of("x", &x);
        let gate_up = Matrix::of("gate_up", &gate_up.as_tensor());
        let act = Matrix::of("act", &act.as_tensor());
        self.record_gated(pass, op, (&x, weight), (&gate_up, &act), shape)?;
        Ok(())
    }

    pub(crate) fn record_gated(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        op: &GatedActivation,
        (x, weight): (&Matrix<'_>, &Weight),
        (gate_up, act): (&Matrix<'_>, &Matrix<'_>),
        shape: ActShape,
    ) -> Result<()> {
        let on = (self.device(), &*self.pipelines);
        if matmul::record_gated(on, pass, op, (x, weight), (gate_up, act))? {
            return Ok(());
        }
        matmul::record(on, pass, x, weight, gate_up)?;
        activation::record(on, pass, op, (&Halves::Merged(*gate_up), act), shape)
    }

    /// The operation on a slice of rows of 2d elements: uploads, computes, waits and downloads.
    ///
    /// # Errors
    /// A length that is no multiple of 2d, or a failure of the device.
    pub fn act_and_mul_slice<T: Element>(
        &self,
        op: &GatedActivation,
        input: &[T],
        d: usize,
    ) -> swiglu_core::Result<Vec<T>> {
        let (from, to) = GatedActivation::contiguous(input.len(), d)?;
        let mut x = self.alloc(size_of_val(input))?;
        self.upload(&mut x, bytemuck::cast_slice(input))?;
        let mut result = vec![T::default(); to.rows * d];
        let mut y = self.alloc(size_of_val(result.as_slice()))?;
        self.act_and_mul(
            op,
            Tensor::new(Self::view(&x), T::FLOAT, from).into(),
            TensorMut::new(Self::view_mut(&mut y), T::FLOAT, to),
        )?;
        self.download(&y, bytemuck::cast_slice_mut(&mut result))?;
        Ok(result)
    }

    /// Submits what was recorded, without waiting for it.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn flush(&self) -> swiglu_core::Result<()> {
        Ok(self.recorder.flush()?)
    }
}
