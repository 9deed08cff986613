use swiglu_core::{
    ActAndMul, ActAndMulQuant, ActShape, Backend, DType, Element, Error, GatedActivation,
    GatedMatmul, HostWeight, Matmul, QuantOptions, Quantization, Quantized, QuantizedMatmul,
    QuantizedMut, Support, Tensor, TensorMut,
};

use crate::device::Device;
use crate::error::PLATFORM;
use crate::kernels::Kernels;
use crate::quant::{self, QuantCall};
use crate::shaders::{TWO_BUFFERS, Tier};
use crate::weight::Weight;
use crate::{Buffer, Builder, Result, WgpuError, activation, gated, matmul, self_test};

/// Gated activations and products on a wgpu device.
///
/// Calls of the [`Backend`] traits record; [`Backend::download`], [`Backend::synchronize`] and
/// [`Self::flush`] submit what was recorded, all of it at once. [`Self::record_act_and_mul`] and
/// [`Self::record_matmul`] record into a pass of the caller's instead. Every pipeline is built
/// when the backend is.
#[derive(Debug)]
pub struct WgpuBackend {
    device: Device,
    pub(crate) kernels: Kernels,
    /// Which kernels were taken, and why not better ones.
    tier: String,
}

impl WgpuBackend {
    /// A backend on the best adapter of this machine; see [`crate::probe`].
    ///
    /// # Errors
    /// As [`Builder::build`].
    pub fn new() -> Result<Self> {
        Self::builder().build()
    }

    /// Settings other than the defaults.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// A backend on the caller's device. It needs the feature `IMMEDIATES` with 128 bytes; its
    /// callbacks for errors and loss stay as they are.
    ///
    /// # Errors
    /// What the device lacks, or a failure to build the pipelines.
    pub fn from_device(device: wgpu::Device, queue: wgpu::Queue) -> Result<Self> {
        Self::on(Device::callers(device, queue)?, true)
    }

    /// The best kernels that the device has and that compute what they should.
    pub(crate) fn on(device: Device, subgroups: bool) -> Result<Self> {
        let refusal = if subgroups {
            self_test::subgroups_fit(&device).err()
        } else {
            Some("not asked for".to_owned())
        };
        let best = Tier {
            subgroups: refusal.is_none(),
            e4m3_as_f16: true,
            two_buffers: device.workgroup_storage() >= TWO_BUFFERS,
        };
        let plain = Tier {
            subgroups: false,
            e4m3_as_f16: false,
            two_buffers: best.two_buffers,
        };
        let wanted = match refusal {
            None => "subgroups".to_owned(),
            Some(reason) => format!("no subgroups: {reason}"),
        };
        let mut backend = match Self::tried(device, best, wanted) {
            Ok(backend) => backend,
            Err(failed) => {
                let (device, error) = *failed;
                let instead = format!("plain kernels: {error}");
                Self::tried(device, plain, instead).map_err(|failed| failed.1)?
            }
        };
        self_test::cooperative(&backend)?;
        if let Err(error) = self_test::native(&backend) {
            backend.kernels.native = false;
            backend.tier = format!("{}; exp2 of our own: {error}", backend.tier);
        } else if let Err(error) = self_test::gated(&backend) {
            backend.kernels.gated.clear();
            backend.tier = format!("{}; the gated half in two kernels: {error}", backend.tier);
        }
        Ok(backend)
    }

    /// A backend with these kernels, if they compile and compute what they should; or the device, to
    /// try others on.
    fn tried(
        device: Device,
        kernels: Tier,
        tier: String,
    ) -> std::result::Result<Self, Box<(Device, WgpuError)>> {
        let kernels = match Kernels::new(&device, kernels) {
            Ok(kernels) => kernels,
            Err(error) => return Err(Box::new((device, error))),
        };
        let backend = Self {
            device,
            kernels,
            tier,
        };
        match self_test::run(&backend) {
            Ok(()) => Ok(backend),
            Err(error) => Err(Box::new((backend.device, error))),
        }
    }

    /// With more said of what was taken.
    pub(crate) fn with_note(mut self, note: &str) -> Self {
        self.tier = format!("{}; {note}", self.tier);
        self
    }

    /// Records the operation into the caller's pass, on this backend's device; nothing is
    /// submitted or waited for. Errors of wgpu's validation appear where the caller finishes the
    /// encoder.
    ///
    /// # Errors
    /// As [`Backend::check_act`], a buffer that is both input and output, or a lost device.
    pub fn record_act_and_mul(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        op: &GatedActivation,
        input: Tensor<'_, Buffer>,
        output: TensorMut<'_, Buffer>,
    ) -> swiglu_core::Result<()> {
        let shape = self.check_act(&input, &output)?;
        self.device.check()?;
        let (device, kernels) = (&self.device, &self.kernels);
        activation::record(device, kernels, pass, op, &input, &output, shape)?;
        Ok(())
    }

    /// Records y = x · wᵀ into the caller's pass, as [`Self::record_act_and_mul`] does.
    ///
    /// # Errors
    /// As [`Matmul::check_matmul`], a buffer that is both x and y, or a lost device.
    pub fn record_matmul(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        x: Tensor<'_, Buffer>,
        weight: &Weight,
        y: TensorMut<'_, Buffer>,
    ) -> swiglu_core::Result<()> {
        self.check_matmul(&x, weight, &y)?;
        self.device.check()?;
        matmul::record(&self.device, &self.kernels, pass, &x, weight, &y)?;
        Ok(())
    }

    /// Records `gate_up = R(x · wᵀ)` and `act = op(gate_up)` into the caller's pass, as
    /// [`GatedMatmul::matmul_act_and_mul`] enqueues them and [`Self::record_act_and_mul`] records.
    ///
    /// # Errors
    /// As [`Self::record_matmul`] and [`Self::record_act_and_mul`].
    pub fn record_matmul_act_and_mul(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        op: &GatedActivation,
        x: Tensor<'_, Buffer>,
        weight: &Weight,
        gate_up: TensorMut<'_, Buffer>,
        act: TensorMut<'_, Buffer>,
    ) -> swiglu_core::Result<()> {
        let shape = self.check_gated(&x, weight, &gate_up, &act)?;
        self.device.check()?;
        self.record_gated(pass, op, (&x, weight), &gate_up, &act, shape)?;
        Ok(())
    }

    fn check_gated(
        &self,
        x: &Tensor<'_, Buffer>,
        weight: &Weight,
        gate_up: &TensorMut<'_, Buffer>,
        act: &TensorMut<'_, Buffer>,
    ) -> swiglu_core::Result<ActShape> {
        self.check_matmul(x, weight, gate_up)?;
        self.check_act(&gate_up.as_ref(), act)
    }

    fn record_gated(
        &self,
        pass: &mut wgpu::ComputePass<'_>,
        op: &GatedActivation,
        (x, weight): (&Tensor<'_, Buffer>, &Weight),
        gate_up: &TensorMut<'_, Buffer>,
        act: &TensorMut<'_, Buffer>,
        shape: ActShape,
    ) -> Result<()> {
        let (device, kernels) = (&self.device, &self.kernels);
        if gated::record(device, kernels, pass, op, (x, weight), gate_up, act)? {
            return Ok(());
        }
        matmul::record(device, kernels, pass, x, weight, gate_up)?;
        activation::record(device, kernels, pass, op, &gate_up.as_ref(), act, shape)
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
            Tensor::contiguous(&x, T::DTYPE, from.rows, from.cols),
            TensorMut::contiguous(&mut y, T::DTYPE, to.rows, d),
        )?;
        self.download(&y, bytemuck::cast_slice_mut(&mut result))?;
        Ok(result)
    }

    /// Submits what was recorded, without waiting for it.
    ///
    /// # Errors
    /// A failure of the device.
    pub fn flush(&self) -> swiglu_core::Result<()> {
        Ok(self.device.flush()?)
    }
}

fn fits(argument: &'static str, buffer: &Buffer, bytes: usize) -> swiglu_core::Result<()> {
    if bytes <= buffer.len() {
        return Ok(());
    }
    let expected = format!("at most the buffer's {} bytes", buffer.len());
    Err(Error::argument(argument, expected, bytes))
}

impl Backend for WgpuBackend {
    type Device = Device;
    type Buffer = Buffer;

    fn platform(&self) -> &'static str {
        PLATFORM
    }

    fn description(&self) -> String {
        format!("{}; {}", self.device.description(), self.tier)
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn supports(&self, _op: &GatedActivation, dtype: DType) -> Support {
        if DType::COMPUTE.contains(&dtype) {
            Support::Native
        } else {
            Support::No(format!("{dtype} is storage only"))
        }
    }

    /// Allocates; the memory holds zeros.
    fn alloc(&self, bytes: usize) -> swiglu_core::Result<Buffer> {
        Ok(self.device.alloc(bytes)?)
    }

    fn len(&self, buffer: &Buffer) -> usize {
        buffer.len()
    }

    /// Submits what was recorded before, so that it sees the old bytes. A length that is no
    /// multiple of 4 also waits for it.
    fn upload(&self, buffer: &mut Buffer, data: &[u8]) -> swiglu_core::Result<()> {
        fits("data", buffer, data.len())?;
        Ok(self.device.write(buffer.raw(), 0, data)?)
    }

    fn download(&self, buffer: &Buffer, data: &mut [u8]) -> swiglu_core::Result<()> {
        fits("data", buffer, data.len())?;
        Ok(self.device.read(buffer.raw(), 0, data)?)
    }

    fn synchronize(&self) -> swiglu_core::Result<()> {
        Ok(self.device.wait()?)
    }
}

impl ActAndMul for WgpuBackend {
    fn act_and_mul(
        &self,
        op: &GatedActivation,
        input: Tensor<'_, Buffer>,
        output: TensorMut<'_, Buffer>,
    ) -> swiglu_core::Result<()> {
        let shape = self.check_act(&input, &output)?;
        if shape.rows == 0 {
            return Ok(());
        }
        let (device, kernels) = (&self.device, &self.kernels);
        device
            .record(|pass| activation::record(device, kernels, pass, op, &input, &output, shape))?;
        Ok(())
    }
}

impl Matmul for WgpuBackend {
    type Weight = Weight;

    fn supports_weight(&self, dtype: DType) -> Support {
        match dtype {
            DType::F32 | DType::F16 | DType::BF16 | DType::F8E4M3 => Support::Native,
            DType::E8M0 => Support::No("f8_e8m0 holds scales only".to_owned()),
        }
    }

    /// Blocks of scales whose width is no multiple of 16 are decoded to f32 here; f16 where the
    /// device has cooperative matrices gets a pipeline for its width, the first time.
    fn load_weight(&self, parts: &[HostWeight<'_>]) -> swiglu_core::Result<Weight> {
        let mut weight = Weight::load(&self.device, parts)?;
        matmul::prepare(&self.device, &self.kernels, &mut weight)?;
        Ok(weight)
    }

    fn weight_shape(&self, weight: &Weight) -> [usize; 2] {
        [weight.rows, weight.cols]
    }

    fn weight_bytes(&self, weight: &Weight) -> usize {
        weight.bytes
    }

    fn matmul(
        &self,
        x: Tensor<'_, Buffer>,
        weight: &Weight,
        y: TensorMut<'_, Buffer>,
    ) -> swiglu_core::Result<()> {
        self.check_matmul(&x, weight, &y)?;
        if x.layout.rows == 0 {
            return Ok(());
        }
        let (device, kernels) = (&self.device, &self.kernels);
        device.record(|pass| matmul::record(device, kernels, pass, &x, weight, &y))?;
        Ok(())
    }
}

impl ActAndMulQuant for WgpuBackend {
    fn supports_quant(&self, _quant: &Quantization, dtype: DType) -> Support {
        match &self.kernels.quant {
            _ if !DType::COMPUTE.contains(&dtype) => {
                Support::No(format!("{dtype} is storage only"))
            }
            Some(_) => Support::Native,
            None => Support::No("the device binds too few storage buffers".to_owned()),
        }
    }

    fn act_and_mul_quant(
        &self,
        op: &GatedActivation,
        quant: &Quantization,
        input: Tensor<'_, Buffer>,
        output: QuantizedMut<'_, Buffer>,
        options: QuantOptions<'_, Buffer>,
    ) -> swiglu_core::Result<()> {
        self.check_act_quant(op, quant, &input, &output, &options)?;
        let Some(kernels) = &self.kernels.quant else {
            return Err(self.no_quant(quant, input.dtype));
        };
        let native = self.kernels.native;
        let call = QuantCall::fused(op, quant, &input, &options);
        let device = &self.device;
        Ok(device.record(|pass| {
            call.record(device, (kernels, native), pass, &input, &output.as_ref())
        })?)
    }

    fn quantize(
        &self,
        quant: &Quantization,
        input: Tensor<'_, Buffer>,
        output: QuantizedMut<'_, Buffer>,
    ) -> swiglu_core::Result<()> {
        self.check_quant(quant, &input, &output)?;
        let Some(kernels) = &self.kernels.quant else {
            return Err(self.no_quant(quant, input.dtype));
        };
        let native = self.kernels.native;
        let call = QuantCall::plain(quant, &input);
        let device = &self.device;
        Ok(device.record(|pass| {
            call.record(device, (kernels, native), pass, &input, &output.as_ref())
        })?)
    }

    fn dequantize(
        &self,
        quant: &Quantization,
        input: Quantized<'_, Buffer>,
        output: TensorMut<'_, Buffer>,
    ) -> swiglu_core::Result<()> {
        self.check_dequant(quant, &input, &output)?;
        let Some(kernels) = &self.kernels.quant else {
            return Err(self.no_quant(quant, output.dtype));
        };
        let device = &self.device;
        Ok(device.record(|pass| {
            quant::record_dequantize(device, kernels, pass, quant, &input, &output.as_ref())
        })?)
    }
}

impl QuantizedMatmul for WgpuBackend {}

impl GatedMatmul for WgpuBackend {
    /// `gate_up` is left unwritten where one kernel does both: few tokens in whole vectors of f16
    /// or bf16, through silu as [`swiglu_core::Rounding::Official`] has it.
    fn matmul_act_and_mul(
        &self,
        op: &GatedActivation,
        x: Tensor<'_, Buffer>,
        weight: &Weight,
        gate_up: TensorMut<'_, Buffer>,
        act: TensorMut<'_, Buffer>,
    ) -> swiglu_core::Result<()> {
        let shape = self.check_gated(&x, weight, &gate_up, &act)?;
        if x.layout.rows == 0 {
            return Ok(());
        }
        self.device
            .record(|pass| self.record_gated(pass, op, (&x, weight), &gate_up, &act, shape))?;
        Ok(())
    }
}
