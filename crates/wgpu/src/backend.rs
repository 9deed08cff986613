mod experts;

use std::sync::Arc;

use swiglu_core::{
    Accumulation, Accuracy, ActAndMul, Backend, Error, GateUp, GatedActivation, HostWeight, Matmul,
    QuantOptions, Quantization, Quantize, Quantized, QuantizedMut, Request, Result, Shape, Support,
    Tensor, TensorMut, check,
};

use crate::activation::{self, check_known};
use crate::error::PLATFORM;
use crate::launch::{CodesAndScales, Halves, Matrix, Recorder};
use crate::pipelines::{Pipelines, QuantizePipelines, TOO_FEW_BUFFERS, UNDECLARED};
use crate::quant::{self, FusedOptions};
use crate::weight::{Weight, WeightForm};
use crate::{Buffer, View, ViewMut, matmul, moe, plans, requests};

/// Gated activations and matmuls on a wgpu device.
///
/// Calls of the [`Backend`] traits record; [`Backend::download`], [`Backend::synchronize`] and
/// [`Self::flush`] submit what was recorded, all of it at once. [`Self::record_act_and_mul`] and
/// [`Self::record_matmul`] record into a pass of the caller's instead, and [`Self::record_into`]
/// makes all calls do so. Every pipeline is built when the backend is opened: those of all
/// requests, or of the ones that [`crate::Builder::for_requests`] was given, and then all others
/// are refused. [`Self::share`] gives further threads a backend each on the same pipelines.
#[derive(Debug)]
pub struct WgpuBackend {
    pub(crate) recorder: Recorder,
    pub(crate) pipelines: Arc<Pipelines>,
    /// Which kernels were taken, and why not better ones.
    pub(crate) tier: String,
    pub(crate) accumulation: Accumulation,
}

impl WgpuBackend {
    /// The pipelines that quantize, or the refusal of a request.
    pub(crate) fn quantize_pipelines(
        &self,
        request: impl FnOnce() -> Request,
    ) -> Result<&QuantizePipelines> {
        match &self.pipelines.quantize {
            Some(pipelines) => Ok(pipelines),
            None => Err(Error::unsupported(PLATFORM, request(), TOO_FEW_BUFFERS)),
        }
    }

    /// Whether the kernels of a request were built.
    fn declared(&self, request: &Request) -> Support {
        let pipelines = &self.pipelines;
        let mut all = true;
        if !pipelines.complete {
            let known = requests::each_kernel(request, &pipelines.facts, &mut |kernel| {
                all &= pipelines.has(kernel);
            });
            all &= known.is_ok();
        }
        if all {
            Support::Native
        } else {
            Support::No(UNDECLARED.to_owned())
        }
    }
}

/// Native, unless something is missing.
fn support(known: Result<()>) -> Support {
    match known {
        Ok(()) => Support::Native,
        Err(Error::Unsupported { reason, .. }) => Support::No(reason),
        Err(other) => Support::No(other.to_string()),
    }
}

/// Where a view begins in its buffer, if it has so many bytes.
fn place(view: &View<'_>, bytes: usize) -> Result<usize> {
    if bytes as u64 > view.size() {
        let expected = format!("at most the view's {} bytes", view.size());
        return Err(Error::argument("data", expected, bytes));
    }
    usize::try_from(view.offset())
        .map_err(|_| Error::argument("view", "an offset within the address space", view.offset()))
}

impl Backend for WgpuBackend {
    type Buffer = Buffer;
    type View<'a> = View<'a>;
    type ViewMut<'a> = ViewMut<'a>;

    fn platform(&self) -> &'static str {
        PLATFORM
    }

    fn description(&self) -> String {
        format!("{}; {}", self.device().description(), self.tier)
    }

    fn accuracy(&self) -> Accuracy {
        Accuracy {
            f32_ulps: 8,
            flushes_subnormals: true,
            accumulation: self.accumulation,
        }
    }

    fn supports(&self, request: &Request) -> Support {
        let op = |op| support(check_known(op));
        // A width that no block is odd for: what is asked is whether the format is known.
        let weight = |format| support(WeightForm::of(format, 1).map(drop));
        let quantize = || match &self.pipelines.quantize {
            Some(_) => Support::Native,
            None => Support::No(TOO_FEW_BUFFERS.to_owned()),
        };
        let moe = || match &self.pipelines.moe {
            Some(_) => Support::Native,
            None => Support::No(TOO_FEW_BUFFERS.to_owned()),
        };
        let known = match request {
            Request::Activation { op: a, .. } => op(a),
            Request::ActivationQuant { op: a, .. } => op(a).and(quantize()),
            Request::Quantize { .. } => quantize(),
            Request::Matmul { weight: w, .. } => weight(*w),
            Request::GatedMatmul {
                op: a, weight: w, ..
            } => op(a).and(weight(*w)),
            Request::QuantizedMatmul { weight: w, .. } => {
                let widened = "codes are widened to bf16 before the matmul";
                let emulated = Support::Emulated(widened.to_owned());
                emulated.and(quantize()).and(weight(*w))
            }
            Request::Route { weight: w, .. } | Request::GroupedMatmulSum { weight: w, .. } => {
                moe().and(weight(*w))
            }
            Request::GroupedGatedMatmul {
                op: a, weight: w, ..
            } => moe().and(op(a)).and(weight(*w)),
            _ => Support::No("this request is not known to this backend".to_owned()),
        };
        if !known.runs() {
            return known;
        }
        known.and(self.declared(request))
    }

    fn plan(&self, request: &Request, shape: &Shape) -> Option<String> {
        if !self.supports(request).runs() {
            return None;
        }
        plans::plan(&self.pipelines.facts, request, shape)
    }

    fn scratch(&self, request: &Request, shape: &Shape) -> usize {
        let facts = &self.pipelines.facts;
        moe::scratch(facts, request, shape).unwrap_or_else(|| match request {
            // Codes are widened to bf16.
            Request::QuantizedMatmul { .. } => {
                shape.rows.saturating_mul(shape.depth).saturating_mul(2)
            }
            _ => 0,
        })
    }

    /// Allocates; the memory holds zeros.
    fn alloc(&self, bytes: usize) -> Result<Buffer> {
        Ok(Buffer::allocated(self.device(), bytes)?)
    }

    fn len(&self, buffer: &Buffer) -> usize {
        buffer.len()
    }

    /// Submits what was recorded before, so that it sees the old bytes. A length that is no
    /// multiple of 4 also waits for it.
    fn upload(&self, buffer: &mut Buffer, data: &[u8]) -> Result<()> {
        buffer.check_copy(data.len())?;
        Ok(self.recorder.write(buffer.raw(), data)?)
    }

    fn download(&self, buffer: &Buffer, data: &mut [u8]) -> Result<()> {
        buffer.check_copy(data.len())?;
        Ok(self.recorder.read(buffer.raw(), 0, data)?)
    }

    fn read(&self, view: View<'_>, data: &mut [u8]) -> Result<()> {
        let offset = place(&view, data.len())?;
        Ok(self.recorder.read_at(view.buffer(), offset, data)?)
    }

    fn write(&self, view: ViewMut<'_>, data: &[u8]) -> Result<()> {
        let view = view.as_view();
        let offset = place(&view, data.len())?;
        Ok(self.recorder.write_at(view.buffer(), offset, data)?)
    }

    fn synchronize(&self) -> Result<()> {
        Ok(self.recorder.wait()?)
    }

    fn view(buffer: &Buffer) -> View<'_> {
        View::from(buffer)
    }

    fn view_mut(buffer: &mut Buffer) -> ViewMut<'_> {
        ViewMut::from(buffer)
    }

    fn as_view<'a>(view: &'a ViewMut<'_>) -> View<'a> {
        view.as_view()
    }

    fn reborrow<'a>(view: &'a mut ViewMut<'_>) -> ViewMut<'a> {
        view.reborrow()
    }

    fn view_len(view: &View<'_>) -> usize {
        usize::try_from(view.size()).unwrap_or(usize::MAX)
    }
}

impl ActAndMul for WgpuBackend {
    fn act_and_mul(
        &self,
        op: &GatedActivation,
        input: GateUp<'_, Self>,
        output: TensorMut<'_, Self>,
    ) -> Result<()> {
        let shape = check::act(&input, &output)?;
        if shape.rows == 0 {
            return Ok(());
        }
        let input = Halves::of(&input);
        let output = Matrix::of("output", &output.as_tensor());
        let on = (self.device(), &*self.pipelines);
        Ok(self
            .recorder
            .record(|pass| activation::record(on, pass, op, (&input, &output), shape))?)
    }
}

impl Matmul for WgpuBackend {
    type Weight = Weight;

    /// Blocks of scales whose width is no multiple of 16 are decoded to f32 here; a weight for
    /// cooperative matrices gets a pipeline for its width, the first time.
    fn load_weight(&self, parts: &[HostWeight<'_>]) -> Result<Weight> {
        let cooperative = self.pipelines.facts.cooperative;
        let mut weight = Weight::load(self.device(), parts, cooperative)?;
        matmul::prepare((self.device(), &*self.pipelines), &mut weight)?;
        Ok(weight)
    }

    fn weight_shape(&self, weight: &Weight) -> [usize; 2] {
        weight.shape()
    }

    fn weight_bytes(&self, weight: &Weight) -> usize {
        weight.bytes
    }

    fn matmul(&self, x: Tensor<'_, Self>, weight: &Weight, y: TensorMut<'_, Self>) -> Result<()> {
        check::matmul(&x, weight.shape(), &y)?;
        if x.layout.rows == 0 {
            return Ok(());
        }
        let (x, y) = (Matrix::of("x", &x), Matrix::of("y", &y.as_tensor()));
        let on = (self.device(), &*self.pipelines);
        Ok(self
            .recorder
            .record(|pass| matmul::record(on, pass, &x, weight, &y))?)
    }

    /// `gate_up` is left unwritten where one kernel does both: few tokens in whole vectors of f16
    /// or bf16, through silu as [`swiglu_core::Rounding::Official`] has it.
    fn matmul_act_and_mul(
        &self,
        op: &GatedActivation,
        x: Tensor<'_, Self>,
        weight: &Weight,
        gate_up: TensorMut<'_, Self>,
        act: TensorMut<'_, Self>,
    ) -> Result<()> {
        let shape = check::gated_matmul(&x, weight.shape(), &gate_up, &act)?;
        if shape.rows == 0 {
            return Ok(());
        }
        let x = Matrix::of("x", &x);
        let gate_up = Matrix::of("gate_up", &gate_up.as_tensor());
        let act = Matrix::of("act", &act.as_tensor());
        let between = (&gate_up, &act);
        Ok(self
            .recorder
            .record(|pass| self.record_gated(pass, op, (&x, weight), between, shape))?)
    }
}

impl Quantize for WgpuBackend {
    fn act_and_mul_quant(
        &self,
        op: &GatedActivation,
        quant: &Quantization,
        input: GateUp<'_, Self>,
        output: QuantizedMut<'_, Self>,
        options: QuantOptions<'_, Self>,
    ) -> Result<()> {
        check::act_quant(op, quant, &input, &output, &options)?;
        let float = input.float();
        let kernels = self.quantize_pipelines(|| Request::ActivationQuant {
            op: *op,
            quant: *quant,
            float,
        })?;
        let options = FusedOptions {
            route: options.route,
            batch: options.batch.as_ref().map(|b| (b.rows, b.counts)),
            hits: options.hits.as_ref().map(ViewMut::as_view),
        };
        let input = Halves::of(&input);
        let output = CodesAndScales::of(&output.as_quantized());
        let on = (self.device(), &*self.pipelines, kernels);
        let what = (op, quant);
        Ok(self
            .recorder
            .record(|pass| quant::fused(on, pass, what, (&input, &output), &options))?)
    }

    fn quantize(
        &self,
        quant: &Quantization,
        input: Tensor<'_, Self>,
        output: QuantizedMut<'_, Self>,
    ) -> Result<()> {
        check::quantize(quant, &input, &output)?;
        let (quant, float) = (*quant, input.float);
        let kernels = self.quantize_pipelines(|| Request::Quantize { quant, float })?;
        let input = Matrix::of("input", &input);
        let output = CodesAndScales::of(&output.as_quantized());
        let on = (self.device(), &*self.pipelines, kernels);
        Ok(self
            .recorder
            .record(|pass| quant::quantize(on, pass, &quant, (&input, &output)))?)
    }

    fn dequantize(
        &self,
        quant: &Quantization,
        input: Quantized<'_, Self>,
        output: TensorMut<'_, Self>,
    ) -> Result<()> {
        check::dequantize(quant, &input, &output)?;
        let (quant, float) = (*quant, output.float);
        let kernels = self.quantize_pipelines(|| Request::Quantize { quant, float })?;
        let input = CodesAndScales::of(&input);
        let output = Matrix::of("output", &output.as_tensor());
        let on = (self.device(), &*self.pipelines, kernels);
        Ok(self
            .recorder
            .record(|pass| quant::dequantize(on, pass, &quant, (&input, &output)))?)
    }
}
