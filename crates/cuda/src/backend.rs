use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, result, sys};
use swiglu_core::{
    ActAndMul, ActAndMulQuant, Backend, DType, Error as CoreError, GatedActivation, GatedMatmul,
    HostWeight, Matmul, QuantOptions, Quantization, Quantized, QuantizedMatmul, QuantizedMut,
    Support, Tensor, TensorMut,
};

use crate::{
    Activations, Batches, CudaBuffer, CudaWeight, Error, LaunchOptions, PLATFORM, Quantizers,
    RawCall, RawMatrix, RawQuantCall, RawQuantized, Result, Route, error::Doing, probe::probe,
    product::Products, weight::to_device,
};

/// CUDA, on the caller's own stream. Everything is enqueued there, in order.
///
/// Products of one type run through cublasLt where its library is found (its algorithm for a
/// shape is chosen at the first product of that shape, so run each once before capturing a
/// graph), f32 without TF32. Every other pair of types runs kernels of our own, which split numbers
/// into bf16s or f16s that add up to them exactly and multiply those on tensor cores, with sums in
/// f32; FP8 weights are decoded on the way, and large products of bf16 decode them to bf16 first
/// where that is exact. The memory to decode into is one for all weights, as large as the largest
/// asks, made when it is loaded: a graph that was captured before a larger weight was loaded must
/// not be replayed after. On compute capability 9.0 and later our products may start while the
/// kernel before them ends, and read their weight meanwhile.
pub struct CudaBackend {
    stream: Arc<CudaStream>,
    activations: Activations,
    quantizers: Quantizers,
    products: Products,
    options: LaunchOptions,
    fp8_tensor_cores: bool,
    description: String,
}

impl CudaBackend {
    /// The backend on the first device that [`probe`] finds, with a stream of its own.
    ///
    /// # Errors
    /// The reason why CUDA cannot be used here, or a failure of the driver.
    pub fn open() -> Result<Self> {
        let info = probe()?;
        let context = CudaContext::new(info.ordinal).doing("open the device")?;
        let stream = context.new_stream().doing("make a stream")?;
        Self::new(stream)
    }

    /// The backend on the caller's stream. This loads the kernels, and allocates.
    ///
    /// # Errors
    /// A device older than the kernels, or a failure of the driver.
    pub fn new(stream: Arc<CudaStream>) -> Result<Self> {
        let context = stream.context();
        let activations = Activations::new(context)?;
        let products = Products::new(context)?;
        let (major, minor) = context.compute_capability().doing("ask for the device")?;
        let name = context.name().doing("ask for the device")?;
        let library = products.library();
        Ok(Self {
            activations,
            quantizers: Quantizers::new(context)?,
            description: format!("{name}, sm_{major}{minor}, {library}"),
            products,
            options: LaunchOptions::default(),
            fp8_tensor_cores: false,
            stream,
        })
    }

    /// The same backend, with these options for the launches of activations.
    #[must_use]
    pub fn with_options(self, options: LaunchOptions) -> Self {
        Self { options, ..self }
    }

    /// The same backend, which multiplies codes on FP8 tensor cores where it can, for speed at the
    /// cost of precision: they keep about 14 bits of a sum, and f32 only from one 128 of k to the
    /// next. On an H200, ‖error‖/‖sum‖ was 4e-4, against 1e-6 without, and 3e-3 after a whole MLP
    /// whose products are so. Off by default: see [`QuantizedMatmul::matmul_quantized`] below.
    #[must_use]
    pub fn with_fp8_tensor_cores(self, on: bool) -> Self {
        Self {
            fp8_tensor_cores: on,
            ..self
        }
    }

    /// [`Matmul::matmul`] by one way alone, for measuring.
    ///
    /// # Errors
    /// As there, and a product that this way does not take.
    #[doc(hidden)]
    pub fn matmul_by(
        &self,
        route: Option<Route>,
        x: &Tensor<'_, CudaBuffer>,
        weight: &CudaWeight,
        y: TensorMut<'_, CudaBuffer>,
    ) -> swiglu_core::Result<()> {
        self.check_matmul(x, weight, &y)?;
        let stream = self.stream.cu_stream();
        let (x, y) = (matrix(x), matrix(&y.as_ref()));
        // SAFETY: the call has been checked against the buffers, which the driver frees only
        // after the stream's work.
        unsafe { self.products.product(stream, x, weight, y, route) }?;
        Ok(())
    }

    /// The activation's kernels, for calls beside this backend's buffers.
    pub const fn activations(&self) -> &Activations {
        &self.activations
    }

    /// The kernels that quantize, for calls beside this backend's buffers.
    pub const fn quantizers(&self) -> &Quantizers {
        &self.quantizers
    }
}

fn fits(argument: &'static str, buffer: &CudaBuffer, data: usize) -> swiglu_core::Result<()> {
    if data <= buffer.len() {
        return Ok(());
    }
    let expected = format!("at most the buffer's {} bytes", buffer.len());
    Err(CoreError::argument(argument, expected, data))
}

fn matrix(tensor: &Tensor<'_, CudaBuffer>) -> RawMatrix {
    RawMatrix {
        address: tensor.buffer.address(),
        dtype: tensor.dtype,
        layout: tensor.layout,
    }
}

fn quantized(matrix: &Quantized<'_, CudaBuffer>) -> RawQuantized {
    RawQuantized {
        codes: matrix.codes.buffer.address(),
        codes_layout: matrix.codes.layout,
        scales: matrix.scales.buffer.address(),
        scales_layout: matrix.scales.layout,
    }
}

impl Backend for CudaBackend {
    type Device = Arc<CudaStream>;
    type Buffer = CudaBuffer;

    fn platform(&self) -> &'static str {
        PLATFORM
    }

    fn description(&self) -> String {
        self.description.clone()
    }

    fn device(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    fn supports(&self, op: &GatedActivation, dtype: DType) -> Support {
        self.activations.supports(op, dtype)
    }

    fn alloc(&self, bytes: usize) -> swiglu_core::Result<CudaBuffer> {
        CudaBuffer::new(self.stream.context(), bytes).map_err(|error| match error {
            Error::Driver { source, .. }
                if source.0 == sys::cudaError_enum::CUDA_ERROR_OUT_OF_MEMORY =>
            {
                CoreError::OutOfMemory {
                    platform: PLATFORM,
                    bytes,
                }
            }
            error => error.into(),
        })
    }

    fn len(&self, buffer: &CudaBuffer) -> usize {
        buffer.len()
    }

    fn upload(&self, buffer: &mut CudaBuffer, data: &[u8]) -> swiglu_core::Result<()> {
        fits("data", buffer, data.len())?;
        if data.is_empty() {
            return Ok(());
        }
        Ok(to_device(&self.stream, buffer, 0, data)?)
    }

    fn download(&self, buffer: &CudaBuffer, data: &mut [u8]) -> swiglu_core::Result<()> {
        fits("data", buffer, data.len())?;
        if data.is_empty() {
            return self.synchronize();
        }
        self.stream
            .context()
            .bind_to_thread()
            .doing("bind the context")?;
        // SAFETY: the lengths have been checked; `data` stays until the stream has written it.
        unsafe { result::memcpy_dtoh_async(data, buffer.address(), self.stream.cu_stream()) }
            .doing("copy")?;
        self.synchronize()
    }

    fn synchronize(&self) -> swiglu_core::Result<()> {
        Ok(self.stream.synchronize().doing("wait")?)
    }
}

impl ActAndMul for CudaBackend {
    fn act_and_mul(
        &self,
        op: &GatedActivation,
        input: Tensor<'_, CudaBuffer>,
        output: TensorMut<'_, CudaBuffer>,
    ) -> swiglu_core::Result<()> {
        self.check_act(&input, &output)?;
        let call = RawCall {
            dtype: input.dtype,
            input: input.buffer.address(),
            input_layout: input.layout,
            output: output.buffer.address(),
            output_layout: output.layout,
            batches: None,
        };
        let stream = self.stream.cu_stream();
        // SAFETY: the call has been checked against the buffers, which the driver frees only
        // after the stream's work.
        unsafe {
            self.activations
                .act_and_mul_raw(stream, op, &call, self.options)
        }?;
        Ok(())
    }
}

impl Matmul for CudaBackend {
    type Weight = CudaWeight;

    fn supports_weight(&self, dtype: DType) -> Support {
        match dtype {
            DType::F32 | DType::F16 | DType::BF16 | DType::F8E4M3 => Support::Native,
            DType::E8M0 => Support::No("f8_e8m0 holds scales only".to_owned()),
        }
    }

    fn load_weight(&self, parts: &[HostWeight<'_>]) -> swiglu_core::Result<CudaWeight> {
        let weight = CudaWeight::load(&self.stream, parts)?;
        self.products.make_room(&self.stream, &weight)?;
        Ok(weight)
    }

    fn weight_shape(&self, weight: &CudaWeight) -> [usize; 2] {
        [weight.rows, weight.cols]
    }

    fn weight_bytes(&self, weight: &CudaWeight) -> usize {
        weight.bytes()
    }

    fn matmul(
        &self,
        x: Tensor<'_, CudaBuffer>,
        weight: &CudaWeight,
        y: TensorMut<'_, CudaBuffer>,
    ) -> swiglu_core::Result<()> {
        self.matmul_by(None, &x, weight, y)
    }
}

impl ActAndMulQuant for CudaBackend {
    fn supports_quant(&self, _quant: &Quantization, dtype: DType) -> Support {
        if DType::COMPUTE.contains(&dtype) {
            Support::Native
        } else {
            Support::No(format!("{dtype} is storage only"))
        }
    }

    fn act_and_mul_quant(
        &self,
        op: &GatedActivation,
        quant: &Quantization,
        input: Tensor<'_, CudaBuffer>,
        output: QuantizedMut<'_, CudaBuffer>,
        extra: QuantOptions<'_, CudaBuffer>,
    ) -> swiglu_core::Result<()> {
        self.check_act_quant(op, quant, &input, &output, &extra)?;
        let call = RawQuantCall {
            input: matrix(&input),
            output: quantized(&output.as_ref()),
            route: extra.route.map(CudaBuffer::address),
            batches: extra.batch.map(|b| Batches {
                rows: b.rows,
                counts: b.counts.address(),
            }),
            hits: extra.hits.map(|b| b.address()),
        };
        let (stream, options) = (self.stream.cu_stream(), self.options);
        // SAFETY: the call has been checked against the buffers, which the driver frees only
        // after the stream's work.
        unsafe {
            self.quantizers
                .act_and_mul_quant_raw(stream, op, quant, &call, options)
        }?;
        Ok(())
    }

    fn quantize(
        &self,
        quant: &Quantization,
        input: Tensor<'_, CudaBuffer>,
        output: QuantizedMut<'_, CudaBuffer>,
    ) -> swiglu_core::Result<()> {
        self.check_quant(quant, &input, &output)?;
        let (stream, options) = (self.stream.cu_stream(), self.options);
        let (input, output) = (matrix(&input), quantized(&output.as_ref()));
        // SAFETY: the call has been checked against the buffers, which the driver frees only
        // after the stream's work.
        unsafe {
            self.quantizers
                .quantize_raw(stream, quant, &input, &output, options)
        }?;
        Ok(())
    }

    fn dequantize(
        &self,
        quant: &Quantization,
        input: Quantized<'_, CudaBuffer>,
        output: TensorMut<'_, CudaBuffer>,
    ) -> swiglu_core::Result<()> {
        self.check_dequant(quant, &input, &output)?;
        let (stream, options) = (self.stream.cu_stream(), self.options);
        let (input, output) = (quantized(&input), matrix(&output.as_ref()));
        // SAFETY: as above.
        unsafe {
            self.quantizers
                .dequantize_raw(stream, quant, &input, &output, options)
        }?;
        Ok(())
    }
}

impl QuantizedMatmul for CudaBackend {
    fn supports_quantized(&self, quant: &Quantization, weight: DType) -> Support {
        let tensor_cores = self.fp8_tensor_cores && self.products.multiplies_codes();
        let codes = tensor_cores && quant.group() == 128;
        match self.supports_weight(weight) {
            Support::No(reason) => Support::No(reason),
            _ if codes && weight == DType::F8E4M3 => Support::Native,
            _ => Support::Emulated("codes are widened before the product".to_owned()),
        }
    }

    /// Multiplies what [`ActAndMulQuant::dequantize`] writes to `widened`: sums are those of f32.
    ///
    /// With [`Self::with_fp8_tensor_cores`], on Hopper with cublasLt from 12.9 on, codes in groups
    /// of 128 are multiplied as they are by FP8 weights in blocks of 128 x 128, where T is a
    /// multiple of 4, N of 4 and K of 16 and rows begin at multiples of 16 bytes. Scales that are
    /// not f32 in columns without gaps are written to `widened` as such first, if that has no gaps.
    fn matmul_quantized(
        &self,
        quant: &Quantization,
        x: Quantized<'_, CudaBuffer>,
        weight: &CudaWeight,
        mut widened: TensorMut<'_, CudaBuffer>,
        y: TensorMut<'_, CudaBuffer>,
    ) -> swiglu_core::Result<()> {
        self.check_matmul(&widened.as_ref(), weight, &y)?;
        self.check_dequant(quant, &x, &widened)?;
        let (from, room, to) = (
            quantized(&x),
            matrix(&widened.as_ref()),
            matrix(&y.as_ref()),
        );
        let stream = self.stream.cu_stream();
        if self.fp8_tensor_cores {
            // SAFETY: the call has been checked against the buffers, which the driver frees only
            // after the stream's work.
            let done = unsafe {
                self.products.quantized_product(
                    stream,
                    &self.quantizers,
                    quant,
                    &from,
                    weight,
                    &room,
                    &to,
                )
            }?;
            if done {
                return Ok(());
            }
        }
        self.dequantize(quant, x, widened.reborrow())?;
        self.matmul(widened.as_ref(), weight, y)
    }
}

impl GatedMatmul for CudaBackend {}
