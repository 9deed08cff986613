use std::sync::Arc;

use swiglu_core::{
    Accumulation, ActShape, Dispatch, Element, Error, Float, GateUp, GatedActivation, Quantization,
    Registry, Rejection, Report, Request, Result, RowLayout, Shape, Support, Tensor, TensorMut,
    WeightFormat, reference::Reference,
};
use swiglu_mlp::{MlpConfig, MoeConfig, MoeWeights, SharedExpert};

use crate::erased::quantized_mut;
use crate::{AnyBackend, Mlp, Moe, built_in};

/// Chooses the backend that runs an operation: the platforms there are, and what the caller and
/// the environment say about them.
///
/// ```
/// use swiglu::{Dispatcher, Float, GatedActivation};
/// # fn main() -> swiglu::Result<()> {
/// let op = GatedActivation::deepseek_v4();
/// let device = Dispatcher::from_env()?.platform("reference").device(&op, Float::BF16)?;
/// assert_eq!(device.report().chosen, "reference");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Dispatcher {
    registry: Registry<AnyBackend>,
    dispatch: Dispatch,
}

impl Dispatcher {
    /// The [`built_in`] platforms, under what `SWIGLU_PLATFORM`, `SWIGLU_DEVICE`,
    /// `SWIGLU_OPS` and `SWIGLU_ACCUMULATION` say.
    ///
    /// # Errors
    /// As [`Dispatch::from_env`].
    pub fn from_env() -> Result<Self> {
        Ok(Self::new(built_in(), Dispatch::from_env()?))
    }

    /// The caller's own registry, such as [`built_in`] with a backend from outside registered.
    pub const fn new(registry: Registry<AnyBackend>, dispatch: Dispatch) -> Self {
        Self { registry, dispatch }
    }

    /// Only this platform; `auto` for any.
    #[must_use]
    pub fn platform(mut self, name: &str) -> Self {
        self.dispatch.platform = (name != "auto").then(|| name.to_owned());
        self
    }

    /// The least exact class of sums that matmuls may use.
    #[must_use]
    pub fn accumulation(mut self, accumulation: Accumulation) -> Self {
        self.dispatch.open = self.dispatch.open.with_accumulation(accumulation);
        self
    }

    /// Only the platform's device of this number, as `swiglu probe` counts them; none for the first
    /// that can be used.
    #[must_use]
    pub fn device_number(mut self, number: Option<usize>) -> Self {
        self.dispatch.open = self.dispatch.open.with_device(number);
        self
    }

    /// The platform that is asked for; none for any.
    pub fn asked_for(&self) -> Option<&str> {
        self.dispatch.platform.as_deref()
    }

    /// What decides which backend runs.
    pub const fn dispatch(&self) -> &Dispatch {
        &self.dispatch
    }

    /// Opens the platforms of these names, and touches no other: each one's device, or why there
    /// is none.
    pub fn probe(
        &self,
        wanted: impl Fn(&str) -> bool,
    ) -> Vec<(&str, std::result::Result<Arc<AnyBackend>, String>)> {
        self.registry.probe(&self.dispatch.open, wanted)
    }

    /// The device that runs this activation in this type.
    ///
    /// # Errors
    /// As [`Registry::select`].
    pub fn device(&self, op: &GatedActivation, float: Float) -> Result<Device> {
        self.device_for(&[Request::Activation { op: *op, float }])
    }

    /// The device that runs an MLP of this configuration with weights stored so.
    ///
    /// # Errors
    /// A configuration that is not valid, and as [`Registry::select`].
    pub fn mlp_device(
        &self,
        config: &MlpConfig,
        gate_up: WeightFormat,
        down: WeightFormat,
    ) -> std::result::Result<Device, swiglu_mlp::Error> {
        Ok(self.device_for(&config.requests(gate_up, down)?)?)
    }

    /// The device that runs all of these.
    ///
    /// # Errors
    /// As [`Registry::select`].
    pub fn device_for(&self, requests: &[Request]) -> Result<Device> {
        let supports = |backend: &AnyBackend| {
            let answers = requests.iter().map(|request| backend.supports(request));
            answers.fold(Support::Native, Support::and)
        };
        let (mut backend, mut report) = self.registry.select(&self.dispatch, supports)?;
        let off = requests
            .iter()
            .filter_map(activation)
            .find(|op| !self.dispatch.ops.enabled(op.operator()));
        if let Some(op) = off {
            report.rejected.push(Rejection {
                platform: report.chosen,
                reason: format!("{} is switched off", op.name()),
            });
            backend = Arc::new(AnyBackend::new(Reference));
            report.chosen = backend.platform().to_owned();
            report.support = Support::Native;
        }
        Ok(Device { backend, report })
    }
}

/// The activation that a request runs, if it runs one.
const fn activation(request: &Request) -> Option<&GatedActivation> {
    match request {
        Request::Activation { op, .. }
        | Request::ActivationQuant { op, .. }
        | Request::GatedMatmul { op, .. }
        | Request::GroupedGatedMatmul { op, .. } => Some(op),
        // Of what core adds later the facade knows no activation.
        _ => None,
    }
}

/// A chosen backend and the report on how it was chosen.
#[derive(Clone)]
pub struct Device {
    backend: Arc<AnyBackend>,
    report: Report,
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Device({})", self.report)
    }
}

impl Device {
    /// Which path runs, and why not another.
    pub const fn report(&self) -> &Report {
        &self.report
    }

    /// The report with the kernels of these calls, a line each.
    pub fn report_for(&self, calls: &[(Request, Shape)]) -> Report {
        let line = |(request, shape): &(Request, Shape)| {
            let plan = self.backend.plan(request, shape)?;
            Some(format!("{request} {shape}: {plan}"))
        };
        Report {
            plan: calls.iter().filter_map(line).collect(),
            ..self.report.clone()
        }
    }

    /// The backend.
    pub const fn backend(&self) -> &Arc<AnyBackend> {
        &self.backend
    }

    /// Runs an activation over host memory: input \[T, 2d\] to output \[T, d\], contiguous. A device
    /// with memory of its own copies there and back; the CPU runs on the slices.
    ///
    /// # Errors
    /// An input that is no whole number of rows, an output of another length, or a failure of the
    /// device.
    pub fn act_and_mul<T: Element>(
        &self,
        op: &GatedActivation,
        input: &[T],
        output: &mut [T],
        d: usize,
    ) -> Result<()> {
        let (from, to) = GatedActivation::contiguous(input.len(), d)?;
        has_length("output", output.len(), to.rows * d)?;
        let input = Tensor::from_slice(input, from);
        self.backend
            .act_and_mul(op, input.into(), TensorMut::from_slice(output, to))
    }

    /// As [`Self::act_and_mul`] with the halves apart: gate and up \[T, d\] each.
    ///
    /// # Errors
    /// Halves of different lengths or that are no whole number of rows, an output of another
    /// length, or a failure of the device.
    pub fn act_and_mul_split<T: Element>(
        &self,
        op: &GatedActivation,
        gate: &[T],
        up: &[T],
        output: &mut [T],
        d: usize,
    ) -> Result<()> {
        if d == 0 || !gate.len().is_multiple_of(d) {
            let expected = format!("whole rows of d elements, d = {d} and at least 1");
            return Err(Error::argument("gate", expected, gate.len()));
        }
        has_length("up", up.len(), gate.len())?;
        has_length("output", output.len(), gate.len())?;
        let rows = RowLayout::contiguous(gate.len() / d, d);
        let input = GateUp::Split {
            gate: Tensor::from_slice(gate, rows),
            up: Tensor::from_slice(up, rows),
        };
        self.backend
            .act_and_mul(op, input, TensorMut::from_slice(output, rows))
    }

    /// Runs an activation over host memory and quantizes what it gives: input \[T, 2d\] to codes
    /// \[T, d\] and scales \[T, G\], all contiguous, the scales as bytes of the quantization's
    /// format.
    ///
    /// # Errors
    /// As [`Self::act_and_mul`].
    pub fn act_and_mul_quant<T: Element>(
        &self,
        op: &GatedActivation,
        quant: &Quantization,
        input: &[T],
        codes: &mut [u8],
        scales: &mut [u8],
        d: usize,
    ) -> Result<()> {
        let (from, to) = GatedActivation::contiguous(input.len(), d)?;
        let shape = ActShape { rows: to.rows, d };
        let scale_bytes = to.rows * quant.groups(d) * quant.format().size();
        has_length("codes", codes.len(), to.rows * d)?;
        has_length("scales", scales.len(), scale_bytes)?;
        let input = Tensor::from_slice(input, from);
        let output = quantized_mut(quant, shape, codes, scales);
        self.backend
            .act_and_mul_quant(op, quant, input.into(), output)
    }

    /// Brings an MLP's weights to the device.
    ///
    /// # Errors
    /// As [`swiglu_mlp::DeepseekV4Mlp::load`].
    pub fn load_mlp(
        &self,
        config: &MlpConfig,
        weights: &SharedExpert<'_>,
    ) -> Result<Mlp, swiglu_mlp::Error> {
        self.backend.load_mlp(config, weights)
    }

    /// Brings the weights of a whole layer to the device.
    ///
    /// # Errors
    /// As [`swiglu_mlp::DeepseekV4Moe::load`].
    pub fn load_moe(
        &self,
        config: &MoeConfig,
        weights: &MoeWeights<'_>,
    ) -> Result<Moe, swiglu_mlp::Error> {
        self.backend.load_moe(config, weights)
    }
}

fn has_length(argument: &'static str, got: usize, expected: usize) -> Result<()> {
    if got == expected {
        return Ok(());
    }
    let expected = format!("{expected} elements");
    Err(Error::argument(argument, expected, got))
}
