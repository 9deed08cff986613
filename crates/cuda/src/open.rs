//! The backend as a value, and how it is opened.

use std::sync::Arc;

use bytemuck::Pod;
use cudarc::driver::{CudaContext, CudaStream, DevicePtr, DevicePtrMut};
use swiglu_core::Accumulation;

use crate::{
    activation::Activations,
    error::{Doing, Result},
    launch::{driver::Capability, options::LaunchOptions},
    matmul::Matmuls,
    probe::probe,
    quant::Quantizers,
    view::{ReadSlice, WriteSlice},
};

/// CUDA, on the caller's own stream. Everything is enqueued there, in order.
///
/// Matmuls of one type run through cublasLt where its library is found (its algorithm for a
/// shape is chosen at the first matmul of that shape, so run each once before capturing a
/// graph), f32 without TF32. Every other pair of types runs kernels of our own, which split numbers
/// into bf16s or f16s that add up to them exactly and multiply those on tensor cores, with sums in
/// f32; FP8 weights are decoded on the way, and large matmuls of bf16 decode them to bf16 first
/// where that is exact. The memory to decode into is one for all weights, as large as the largest
/// asks, made when it is loaded: a graph that was captured before a larger weight was loaded must
/// not be replayed after. On compute capability 9.0 and later our matmuls may start while the
/// kernel before them ends, and read their weight meanwhile.
///
/// That is [`Accumulation::MatrixUnit`], the default. With [`Accumulation::Ordered`] all matmuls
/// run one kernel that adds by f32 fused multiply-adds in the order of k, many times slower. With
/// [`Accumulation::Fp8TensorCore`] codes are multiplied on FP8 tensor cores where they can be, for
/// speed at the cost of precision: these keep about 14 bits of a sum, and f32 only from one 128 of
/// k to the next. On an H200, ‖error‖/‖sum‖ was 4e-4, against 1e-6 without, and 3e-3 after a whole
/// MLP whose matmuls are so.
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
    pub(crate) activations: Activations,
    pub(crate) quantizers: Quantizers,
    pub(crate) matmuls: Matmuls,
    pub(crate) options: LaunchOptions,
    /// The device's name and its compute capability.
    pub(crate) device: String,
}

/// How a [`CudaBackend`] is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CudaBuilder {
    accumulation: Accumulation,
    options: LaunchOptions,
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

    /// Opens the first device that [`probe`] finds, with a stream of its own.
    ///
    /// # Errors
    /// The reason why CUDA cannot be used here, or a failure of the driver.
    pub fn open(self) -> Result<CudaBackend> {
        let info = probe()?;
        let context = CudaContext::new(info.ordinal).doing("open the device")?;
        self.on(context.new_stream().doing("make a stream")?)
    }

    /// Opens the backend on the caller's stream. This loads the kernels, and allocates.
    ///
    /// # Errors
    /// A device older than the kernels, or a failure of the driver.
    pub fn on(self, stream: Arc<CudaStream>) -> Result<CudaBackend> {
        let context = stream.context();
        let Capability { major, minor } = Capability::of(context)?;
        let name = context.name().doing("ask for the device")?;
        Ok(CudaBackend {
            activations: Activations::new(context)?,
            quantizers: Quantizers::new(context)?,
            matmuls: Matmuls::new(context, self.accumulation)?,
            options: self.options,
            device: format!("{name}, sm_{major}{minor}"),
            stream,
        })
    }
}

impl CudaBackend {
    /// What can be chosen when the backend is opened.
    pub fn builder() -> CudaBuilder {
        CudaBuilder::default()
    }

    /// The backend on the first device that [`probe`] finds, with a stream of its own.
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
    pub const fn activations(&self) -> &Activations {
        &self.activations
    }

    /// The kernels that quantize, for calls over bare memory.
    pub const fn quantizers(&self) -> &Quantizers {
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
