//! Core's traits over the kernels.

use cudarc::driver::{result, sys};
use swiglu_core::{
    Accuracy, ActAndMul, Backend, Error as CoreError, GateUp, GatedActivation, HostWeight, Matmul,
    Quantized, Request, Routing, Shape, Support, Tensor, TensorMut, WeightFormat, check,
};

use crate::{
    activation::{RawActCall, RawGateUp},
    buffer::CudaBuffer,
    error::{Doing, Error, PLATFORM},
    matmul::Route,
    moe::{MOST_EXPERTS, Moe},
    open::CudaBackend,
    quant::RawQuantized,
    view::{DeviceView, DeviceViewMut, RawMatrix},
    weight::{self, CudaWeight, LoadOptions, to_device},
};

mod matmul;
mod moe;
mod quantize;
mod quantizing;

fn fits(what: &'static str, room: usize, data: usize) -> swiglu_core::Result<()> {
    if data <= room {
        return Ok(());
    }
    let expected = format!("at most the {what}'s {room} bytes");
    Err(CoreError::argument("data", expected, data))
}

/// Whether experts of this format run, so many of them.
fn experts_support(format: WeightFormat, routing: &Routing) -> Support {
    if routing.experts() > MOST_EXPERTS {
        return Support::No(format!("more than {MOST_EXPERTS} experts"));
    }
    weight::expert_support(format)
}

const fn matrix(tensor: &Tensor<'_, CudaBackend>) -> RawMatrix {
    RawMatrix {
        address: tensor.view.address(),
        float: tensor.float,
        layout: tensor.layout,
    }
}

const fn gate_up(input: &GateUp<'_, CudaBackend>) -> RawGateUp {
    match input {
        GateUp::Merged(input) => RawGateUp::Merged(matrix(input)),
        GateUp::Split { gate, up } => RawGateUp::Split {
            gate: matrix(gate),
            up: matrix(up),
        },
    }
}

const fn quantized(matrix: &Quantized<'_, CudaBackend>) -> RawQuantized {
    RawQuantized {
        codes: matrix.codes.address(),
        codes_layout: matrix.layout,
        scales: matrix.scales.address(),
        scales_layout: matrix.scale_layout,
    }
}

impl CudaBackend {
    /// Loads parts; `pairs`: two of them are a gate's and its up's.
    fn load(&self, parts: &[HostWeight<'_>], pairs: bool) -> swiglu_core::Result<CudaWeight> {
        let options = LoadOptions {
            packs_for: self.matmuls.facts().packs_for(),
            pairs,
        };
        let weight = CudaWeight::load(&self.stream, parts, options)?;
        self.matmuls.make_room(&weight)?;
        Ok(weight)
    }

    /// Waits for the stream and copies what lies at a device's address.
    ///
    /// # Safety
    /// As many bytes lie there.
    unsafe fn to_host(&self, address: u64, data: &mut [u8]) -> swiglu_core::Result<()> {
        if data.is_empty() {
            return self.synchronize();
        }
        self.stream
            .context()
            .bind_to_thread()
            .doing("bind the context")?;
        // SAFETY: the caller vouches for the address; `data` stays until the stream has written it.
        unsafe { result::memcpy_dtoh_async(data, address, self.stream.cu_stream()) }
            .doing("copy")?;
        self.synchronize()
    }

    /// Whether cublasLt was found.
    #[doc(hidden)]
    pub fn has_cublaslt(&self) -> bool {
        self.matmuls.facts().library.is_some()
    }

    /// The device's.
    pub(crate) fn multiprocessors(&self) -> u32 {
        self.matmuls.facts().multiprocessors
    }

    /// Whether codes are multiplied on FP8 tensor cores as they are, where a call allows it.
    #[doc(hidden)]
    pub fn multiplies_codes(&self) -> bool {
        self.matmuls.facts().multiplies_codes()
    }

    /// [`Matmul::matmul`] by one way alone, for measuring.
    ///
    /// # Errors
    /// As there, and a matmul that this way does not take.
    #[doc(hidden)]
    pub fn matmul_by(
        &self,
        route: Option<Route>,
        x: &Tensor<'_, Self>,
        weight: &CudaWeight,
        y: &TensorMut<'_, Self>,
    ) -> swiglu_core::Result<()> {
        check::matmul(x, self.weight_shape(weight), y)?;
        let stream = self.stream.cu_stream();
        let (x, y) = (matrix(x), matrix(&y.as_tensor()));
        // SAFETY: the call has been checked against the views, whose memory lives until the stream
        // has run it.
        unsafe { self.matmuls.matmul(stream, &x, weight, &y, route) }?;
        Ok(())
    }
}

impl Backend for CudaBackend {
    type Buffer = CudaBuffer;
    type View<'a> = DeviceView<'a>;
    type ViewMut<'a> = DeviceViewMut<'a>;

    fn platform(&self) -> &'static str {
        PLATFORM
    }

    fn description(&self) -> String {
        format!("{}, {}", self.device, self.matmuls.describe())
    }

    fn accuracy(&self) -> Accuracy {
        Accuracy {
            accumulation: self.matmuls.facts().accumulation,
            ..Accuracy::EXACT
        }
    }

    fn supports(&self, request: &Request) -> Support {
        match request {
            Request::Activation { op, .. } => self.activations.supports(op),
            Request::ActivationQuant { op, .. } => self.quantizers.supports(op),
            Request::Quantize { .. } => Support::Native,
            Request::Matmul { weight, .. } | Request::QuantizingMatmul { weight, .. } => {
                weight::support(*weight)
            }
            Request::GatedMatmul { op, weight, .. }
            | Request::QuantizingGatedMatmul { op, weight, .. }
            | Request::QuantizingGatedMatmulQuant { op, weight, .. } => {
                weight::support(*weight).and(self.activations.supports(op))
            }
            Request::QuantizedMatmul { quant, weight, .. } => {
                let in_blocks = weight.scaling().is_some_and(|(_, block)| block == [128; 2]);
                let codes = self.matmuls.facts().multiplies_codes() && quant.group() == 128;
                weight::support(*weight).and(if codes && in_blocks {
                    Support::Native
                } else {
                    Support::Emulated("codes are widened before the matmul".to_owned())
                })
            }
            Request::Route { weight, .. } => weight::support(*weight),
            Request::GroupedMatmulSum {
                weight, routing, ..
            } => experts_support(*weight, routing),
            Request::GroupedGatedMatmul {
                op,
                weight,
                routing,
                ..
            } => experts_support(*weight, routing).and(self.activations.supports(op)),
            _ => Support::No("a request that is not known to this backend".to_owned()),
        }
    }

    fn plan(&self, request: &Request, shape: &Shape) -> Option<String> {
        match request {
            Request::Activation { op, float } => {
                self.activations.describe(op, *float, shape, self.options)
            }
            Request::ActivationQuant { op, quant, float } => {
                self.quantizers.describe(Some(op), quant, *float, shape)
            }
            Request::Quantize { quant, float } => {
                self.quantizers.describe(None, quant, *float, shape)
            }
            Request::GatedMatmul { op, act, .. } => {
                if let Some(fused) = self.matmuls.gated_plan(request, shape) {
                    return Some(fused);
                }
                let matmul = self.matmuls.plan(request, shape)?;
                let half = Shape {
                    cols: shape.cols / 2,
                    ..*shape
                };
                let act = self.activations.describe(op, *act, &half, self.options)?;
                Some(format!("{matmul}; {act}"))
            }
            Request::QuantizingGatedMatmul { .. } | Request::QuantizingMatmul { .. } => {
                self.matmuls.quantizing_plan_of(request, shape)
            }
            Request::QuantizingGatedMatmulQuant { .. } => {
                self.matmuls.codes_plan_of(request, shape)
            }
            Request::Route { .. }
            | Request::GroupedGatedMatmul { .. }
            | Request::GroupedMatmulSum { .. } => Moe::plan(request, shape, self.matmuls.facts()),
            // Those that are not known here have none.
            _ => self.matmuls.plan(request, shape),
        }
    }

    fn scratch(&self, request: &Request, shape: &Shape) -> usize {
        match request {
            // Codes, widened.
            Request::QuantizedMatmul { .. }
            | Request::QuantizingGatedMatmul { .. }
            | Request::QuantizingGatedMatmulQuant { .. }
            | Request::QuantizingMatmul { .. } => {
                shape.rows.saturating_mul(shape.depth).saturating_mul(2)
            }
            _ => Moe::scratch(request, shape, self.matmuls.facts()),
        }
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
        fits("buffer", buffer.len(), data.len())?;
        if data.is_empty() {
            return Ok(());
        }
        Ok(to_device(&self.stream, buffer, 0, data)?)
    }

    fn download(&self, buffer: &CudaBuffer, data: &mut [u8]) -> swiglu_core::Result<()> {
        fits("buffer", buffer.len(), data.len())?;
        // SAFETY: the lengths have been checked.
        unsafe { self.to_host(buffer.address(), data) }
    }

    fn read(&self, view: DeviceView<'_>, data: &mut [u8]) -> swiglu_core::Result<()> {
        fits("view", view.len(), data.len())?;
        // SAFETY: the lengths have been checked.
        unsafe { self.to_host(view.address(), data) }
    }

    fn write(&self, view: DeviceViewMut<'_>, data: &[u8]) -> swiglu_core::Result<()> {
        fits("view", view.len(), data.len())?;
        if data.is_empty() {
            return Ok(());
        }
        self.stream
            .context()
            .bind_to_thread()
            .doing("bind the context")?;
        // SAFETY: the lengths have been checked; `data` stays until the stream has read it.
        unsafe {
            result::memcpy_htod_async(view.as_view().address(), data, self.stream.cu_stream())
        }
        .doing("copy")?;
        self.synchronize()
    }

    fn synchronize(&self) -> swiglu_core::Result<()> {
        Ok(self.stream.synchronize().doing("wait")?)
    }

    fn view(buffer: &CudaBuffer) -> DeviceView<'_> {
        buffer.into()
    }

    fn view_mut(buffer: &mut CudaBuffer) -> DeviceViewMut<'_> {
        buffer.into()
    }

    fn as_view<'a>(view: &'a DeviceViewMut<'_>) -> DeviceView<'a> {
        view.as_view()
    }

    fn reborrow<'a>(view: &'a mut DeviceViewMut<'_>) -> DeviceViewMut<'a> {
        view.reborrow()
    }

    fn view_len(view: &DeviceView<'_>) -> usize {
        view.len()
    }
}

impl ActAndMul for CudaBackend {
    fn act_and_mul(
        &self,
        op: &GatedActivation,
        input: GateUp<'_, Self>,
        output: TensorMut<'_, Self>,
    ) -> swiglu_core::Result<()> {
        check::act(&input, &output)?;
        let call = RawActCall {
            input: gate_up(&input),
            output: matrix(&output.as_tensor()),
            batches: None,
        };
        let (stream, options) = (self.stream.cu_stream(), self.options);
        // SAFETY: the call has been checked against the views, whose memory lives until the stream
        // has run it.
        unsafe { self.activations.enqueue(stream, op, &call, options) }?;
        Ok(())
    }
}
