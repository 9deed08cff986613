//! The backend as a value, and how it is opened.

use std::{ffi::c_void, sync::Arc};

use bytemuck::Pod;
use cudarc::driver::{CudaContext, CudaStream, DevicePtr, DevicePtrMut};
use swiglu_core::Accumulation;

use crate::{
    activation::Activations,
    error::{Doing, Result},
    launch::{driver::Capability, foreign, options::LaunchOptions},
    matmul::Matmuls,
    moe::Moe,
    probe::{self, DeviceInfo},
    quant::Quantizers,
    view::{ReadSlice, WriteSlice, same_context},
};

/// CUDA, on the caller's own stream. Everything is enqueued there, in order.
///
/// Matmuls of one type run through cublasLt where its library is found (its algorithm for a
/// shape is chosen at the first matmul of that shape, so run each once before capturing a
/// graph), f32 without TF32. Every other pair of types runs kernels of our own, which split numbers
/// into bf16s or f16s that add up to them exactly and multiply those on tensor cores, with sums in
/// f32; FP8 weights are decoded on the way, and large matmuls of bf16 decode them to bf16 first
/// where that is exact. Each stream has memory of its own to decode into, one for all weights, as
/// large as the largest asks, made when that is loaded. On compute capability 9.0 and later our
/// matmuls may start while the kernel before them ends, and read their weight meanwhile.
///
/// On compute capability 9.0 FP8 weights are kept in the order in which kernels for few tokens read
/// them, as one copy: bf16 activations of up to 16 tokens run at the speed of the weight's bytes
/// there, with the activation of an MLP in the same kernel, for which gate and up are loaded by
/// [`swiglu_core::Matmul::load_gate_up`]. What reads such a weight by rows (more than 64 tokens, x
/// that is not in whole vectors) has it unpacked into the memory for decoded weights first, which is
/// at least as large as the largest such weight.
///
/// That is [`Accumulation::MatrixUnit`], the default. With [`Accumulation::Ordered`] all matmuls
/// run one kernel that adds by f32 fused multiply-adds in the order of k, many times slower. With
/// [`Accumulation::Fp8TensorCore`] codes are multiplied on FP8 tensor cores where they can be, for
/// speed at the cost of precision: these keep about 14 bits of a sum, and f32 only from one 128 of
/// k to the next. On an H200, ‖error‖/‖sum‖ was 4e-4, against 1e-6 without, and 3e-3 after a whole
/// MLP whose matmuls are so.
///
/// A backend is for one stream, and may be used from several threads. [`Self::on`] makes one for
/// another stream over the same kernels and weights.
///
/// ```no_run
/// use swiglu_core::{Accumulation, Backend};
/// use swiglu_cuda::CudaBackend;
/// # fn main() -> swiglu_cuda::Result<()> {
/// let cuda = CudaBackend::builder().accumulation(Accumulation::Ordered).open()?;
/// println!("{}", cuda.description()); // NVIDIA H200, sm_90, ordered sums
/// # Ok(())
/// # }
/// ```
pub struct CudaBackend {
    pub(crate) stream: Arc<CudaStream>,
    pub(crate) activations: Arc<Activations>,
    pub(crate) quantizers: Arc<Quantizers>,
    pub(crate) matmuls: Matmuls,
    pub(crate) moe: Arc<Moe>,
    pub(crate) options: LaunchOptions,
    /// The device's name, its number where there are several, and its compute capability.
    pub(crate) device: Arc<str>,
}

/// How a [`CudaBackend`] is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CudaBuilder {
    accumulation: Accumulation,
    options: LaunchOptions,
    device: Option<usize>,
}

impl CudaBuilder {
    /// The least exact class of sums that matmuls may use; [`Accumulation::MatrixUnit`] by default.
    #[must_use]
    pub const fn accumulation(self, accumulation: Accumulation) -> Self {
        Self {
            accumulation,
            ..self
        }
    }

    /// How activations and quantizations are launched; ordinarily by default.
    #[must_use]
    pub const fn launch_options(self, options: LaunchOptions) -> Self {
        Self { options, ..self }
    }

    /// The device of this number, as [`crate::devices`] counts them, for [`Self::open`]; the first
    /// that can be used by default.
    #[must_use]
    pub const fn device(self, device: Option<usize>) -> Self {
        Self { device, ..self }
    }

    /// Opens the device that was chosen, or the first that can be used, with a stream of its own.
    ///
    /// # Errors
    /// The reason why CUDA cannot be used here, a number that no device has, a device older than
    /// the kernels, or a failure of the driver.
    pub fn open(self) -> Result<CudaBackend> {
        let info = probe::choose(probe::devices()?, self.device)?;
        let context = CudaContext::new(info.ordinal).doing("open the device")?;
        self.on(context.new_stream().doing("make a stream")?)
    }

    /// Opens the backend on the caller's stream. This loads the kernels, and allocates.
    ///
    /// # Errors
    /// A driver or a device older than the kernels, a stream of another device than
    /// [`Self::device`], or a failure of the driver.
    pub fn on(self, stream: Arc<CudaStream>) -> Result<CudaBackend> {
        let context = stream.context();
        let devices = probe::devices()?;
        foreign::check_device(self.device, context.ordinal())?;
        probe::choose(devices.clone(), Some(context.ordinal()))?;
        let Capability { major, minor } = Capability::of(context)?;
        let name = context.name().doing("ask for the device")?;
        let name = described(&name, context.ordinal(), &devices);
        Ok(CudaBackend {
            activations: Arc::new(Activations::new(context)?),
            quantizers: Arc::new(Quantizers::new(context)?),
            matmuls: Matmuls::new(context, self.accumulation)?,
            moe: Arc::new(Moe::new(context)?),
            options: self.options,
            device: format!("{name}, sm_{major}{minor}").into(),
            stream,
        })
    }

    /// Opens the backend on a bare stream of a bare context, of whoever made them: another version
    /// of cudarc, the CUDA runtime, another library. A null stream is the context's default one.
    /// This loads the kernels, and allocates. `docs/another-cudarc.md` has an example.
    ///
    /// # Safety
    /// `context` is a `CUcontext` and `stream` a `CUstream`. Both live until the backend, all that
    /// [`CudaBackend::on`] made of it, and all buffers and weights of these have been dropped.
    /// (A primary context is retained, and is only not to be reset.)
    ///
    /// # Errors
    /// As [`Self::on`], no context, and a stream of another context.
    pub unsafe fn on_raw(self, context: *mut c_void, stream: *mut c_void) -> Result<CudaBackend> {
        // Before anything of cudarc, which panics without a driver.
        probe::devices()?;
        // SAFETY: by this function's contract.
        let stream = unsafe { foreign::stream(&foreign::context(context)?, stream)? };
        self.on(stream)
    }
}

/// A device's name, with its number where there are several.
fn described(name: &str, ordinal: usize, devices: &[DeviceInfo]) -> String {
    match devices.len() {
        0 | 1 => name.to_owned(),
        count => format!("{name} (device {ordinal} of {count})"),
    }
}

impl CudaBackend {
    /// What can be chosen when the backend is opened.
    pub fn builder() -> CudaBuilder {
        CudaBuilder::default()
    }

    /// The backend on the first device that can be used, with a stream of its own.
    ///
    /// # Errors
    /// As [`CudaBuilder::open`].
    pub fn open() -> Result<Self> {
        Self::builder().open()
    }

    /// The backend on the caller's stream. This loads the kernels, and allocates.
    ///
    /// # Errors
    /// As [`CudaBuilder::on`].
    pub fn from_stream(stream: Arc<CudaStream>) -> Result<Self> {
        Self::builder().on(stream)
    }

    /// The backend on a bare stream of a bare context.
    ///
    /// # Safety
    /// As [`CudaBuilder::on_raw`].
    ///
    /// # Errors
    /// As [`CudaBuilder::on_raw`].
    pub unsafe fn from_raw(context: *mut c_void, stream: *mut c_void) -> Result<Self> {
        // SAFETY: by this function's contract.
        unsafe { Self::builder().on_raw(context, stream) }
    }

    /// The same backend on another stream of its context. Kernels, cublasLt's handle and its
    /// algorithms are shared, so that no module is loaded; memory that matmuls write on the way is
    /// the stream's own, and is allocated here. A weight that either loaded runs on both, and two
    /// streams may run at once.
    ///
    /// ```no_run
    /// use swiglu_cuda::CudaBackend;
    /// # fn main() -> swiglu_cuda::Result<()> {
    /// let cuda = CudaBackend::open()?;
    /// std::thread::scope(|scope| {
    ///     for _ in 0..4 {
    ///         scope.spawn(|| {
    ///             let stream = cuda.stream().context().new_stream().expect("a stream");
    ///             let mine = cuda.on(stream).expect("memory");
    ///             // Matmuls of `mine` on weights that `cuda` loaded.
    ///         });
    ///     }
    /// });
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// A stream of another context, or a failure of the driver.
    pub fn on(&self, stream: Arc<CudaStream>) -> Result<Self> {
        same_context(&stream, self.stream.context())?;
        Ok(Self {
            activations: self.activations.clone(),
            quantizers: self.quantizers.clone(),
            matmuls: self.matmuls.on_another_stream()?,
            moe: self.moe.clone(),
            options: self.options,
            device: self.device.clone(),
            stream,
        })
    }

    /// As [`Self::on`] with a bare `CUstream`; null is the context's default stream.
    ///
    /// # Safety
    /// As [`CudaBuilder::on_raw`].
    ///
    /// # Errors
    /// As [`Self::on`].
    pub unsafe fn on_raw(&self, stream: *mut c_void) -> Result<Self> {
        // SAFETY: by this function's contract.
        self.on(unsafe { foreign::stream(self.stream.context(), stream)? })
    }

    /// The same backend, with these options for the launches of activations and quantizations.
    #[must_use]
    pub fn with_options(self, options: LaunchOptions) -> Self {
        Self { options, ..self }
    }

    /// The same backend, whose matmuls use this class of sums. Load weights after it: one loaded
    /// under [`Accumulation::Ordered`] has no memory to be decoded into.
    #[must_use]
    pub fn with_accumulation(mut self, accumulation: Accumulation) -> Self {
        self.matmuls.set_accumulation(accumulation);
        self
    }

    /// The stream that everything is enqueued on.
    pub const fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// The activation's kernels, for calls over cudarc's slices and bare memory.
    pub fn activations(&self) -> &Activations {
        &self.activations
    }

    /// The kernels that quantize, for calls over bare memory.
    pub fn quantizers(&self) -> &Quantizers {
        &self.quantizers
    }

    /// Lends a slice of cudarc's to calls that read it: the backend's stream waits for what wrote
    /// it. Keep the result until the calls have been made.
    ///
    /// ```no_run
    /// use swiglu_core::{ActAndMul, Float, GateUp, GatedActivation, Tensor, TensorMut, bf16};
    /// use swiglu_cuda::CudaBackend;
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let cuda = CudaBackend::open()?;
    /// // What two linear layers gave, [4, 512] each.
    /// let gate = cuda.stream().clone_htod(&[bf16::ONE; 4 * 512])?;
    /// let up = cuda.stream().clone_htod(&[bf16::ONE; 4 * 512])?;
    /// let mut y = cuda.stream().alloc_zeros::<bf16>(4 * 512)?;
    ///
    /// let (gate, up) = (cuda.read_slice(&gate)?, cuda.read_slice(&up)?);
    /// let mut y = cuda.write_slice(&mut y)?;
    /// let half = |view| Tensor::contiguous(view, Float::BF16, 4, 512);
    /// let input = GateUp::Split { gate: half(gate.view()), up: half(up.view()) };
    /// let output = TensorMut::contiguous(y.view_mut(), Float::BF16, 4, 512);
    /// cuda.act_and_mul(&GatedActivation::deepseek_v4(), input, output)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Memory of another context.
    pub fn read_slice<'a, T: Pod>(&'a self, slice: &'a impl DevicePtr<T>) -> Result<ReadSlice<'a>> {
        ReadSlice::new(slice, &self.stream)
    }

    /// Lends a slice of cudarc's to calls that write it: the backend's stream waits for what used
    /// it. Keep the result until the calls have been made.
    ///
    /// # Errors
    /// Memory of another context.
    pub fn write_slice<'a, T: Pod>(
        &'a self,
        slice: &'a mut impl DevicePtrMut<T>,
    ) -> Result<WriteSlice<'a>> {
        WriteSlice::new(slice, &self.stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_told_by_its_number_where_there_are_several() {
        let device = |ordinal| DeviceInfo {
            ordinal,
            name: "NVIDIA H200".to_owned(),
            compute_capability: (9, 0),
            driver: (12, 4),
        };
        let named = |devices: &[DeviceInfo]| described("NVIDIA H200", 0, devices);
        assert_eq!(named(&[device(0)]), "NVIDIA H200");
        let two = [device(0), device(1)];
        assert_eq!(named(&two), "NVIDIA H200 (device 0 of 2)");
    }

    #[test]
    fn a_number_that_no_device_has_is_refused_before_anything_is_opened() {
        let error = CudaBackend::builder().device(Some(4711)).open();
        let message = error
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default();
        let expected = match probe::devices() {
            Ok(devices) => probe::choose(devices, Some(4711)).unwrap_err(),
            Err(reason) => reason,
        };
        assert_eq!(message, expected.to_string());
    }
}
