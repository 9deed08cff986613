use std::sync::Arc;

use swiglu_core::{
    ActShape, DType, Dispatch, Element, Error, GatedActivation, Quantization, Registry, Rejection,
    Report, Result, Support, bf16, reference::Reference,
};
use swiglu_mlp::{MlpConfig, SharedExpert};

use crate::{AnyBackend, AnyMlp, built_in};

/// Chooses the backend that runs an operation: the platforms there are, and what the caller and
/// the environment say about them.
#[derive(Debug)]
pub struct Dispatcher {
    registry: Registry<dyn AnyBackend>,
    dispatch: Dispatch,
}

impl Dispatcher {
    /// The [`built_in`] platforms, under what `SWIGLU_PLATFORM` and `SWIGLU_OPS` say.
    ///
    /// # Errors
    /// As [`Dispatch::from_env`].
    pub fn from_env() -> Result<Self> {
        Ok(Self::new(built_in(), Dispatch::from_env()?))
    }

    /// The caller's own registry, such as [`built_in`] with a backend from outside registered.
    pub const fn new(registry: Registry<dyn AnyBackend>, dispatch: Dispatch) -> Self {
        Self { registry, dispatch }
    }

    /// Only this platform; `auto` for any.
    #[must_use]
    pub fn platform(mut self, name: &str) -> Self {
        self.dispatch.platform = (name != "auto").then(|| name.to_owned());
        self
    }

    /// The platform that is asked for; none for any.
    pub fn asked_for(&self) -> Option<&str> {
        self.dispatch.platform.as_deref()
    }

    /// The platforms that can be chosen.
    pub const fn registry(&self) -> &Registry<dyn AnyBackend> {
        &self.registry
    }

    /// The device that runs this activation in this type.
    ///
    /// # Errors
    /// As [`Registry::select`].
    pub fn device(&self, op: &GatedActivation, dtype: DType) -> Result<Device> {
        self.select(op, |b| b.supports(op, dtype))
    }

    /// The device that runs this activation in this type and quantizes what it gives.
    ///
    /// # Errors
    /// As [`Registry::select`].
    pub fn quant_device(
        &self,
        op: &GatedActivation,
        quant: &Quantization,
        dtype: DType,
    ) -> Result<Device> {
        self.select(op, |b| {
            worse(b.supports(op, dtype), b.supports_quant(quant, dtype))
        })
    }

    /// The device that runs an MLP with this activation, its products' inputs quantized or not, and
    /// weights stored in this type.
    ///
    /// # Errors
    /// As [`Registry::select`].
    pub fn mlp_device(
        &self,
        op: &GatedActivation,
        quant: Option<&Quantization>,
        weights: DType,
    ) -> Result<Device> {
        self.select(op, |b| {
            let products = match quant {
                Some(quant) => b.supports_quantized(quant, weights),
                None => b.supports_weight(weights),
            };
            worse(products, b.supports(op, DType::BF16))
        })
    }

    fn select(
        &self,
        op: &GatedActivation,
        supports: impl Fn(&(dyn AnyBackend + 'static)) -> Support,
    ) -> Result<Device> {
        let (mut backend, mut report) = self.registry.select(&self.dispatch, supports)?;
        if !self.dispatch.ops.enabled(op.operator()) {
            let off = Rejection {
                platform: report.chosen,
                reason: format!("{} is switched off", op.name()),
            };
            report.rejected.push(off);
            backend = Arc::new(Reference);
            report.chosen = backend.platform().to_owned();
            report.support = Support::Native;
        }
        Ok(Device { backend, report })
    }
}

/// Of two answers the one that promises less; of equals the first.
fn worse(a: Support, b: Support) -> Support {
    match (&a, &b) {
        (Support::No(_), _) | (_, Support::Native) => a,
        (_, Support::No(_)) | (Support::Native, _) => b,
        (Support::Emulated(_), Support::Emulated(_)) => a,
    }
}

/// A chosen backend and the report on how it was chosen.
#[derive(Clone)]
pub struct Device {
    backend: Arc<dyn AnyBackend>,
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

    /// The backend.
    pub const fn backend(&self) -> &Arc<dyn AnyBackend> {
        &self.backend
    }

    /// Runs an activation over host memory, copying as the device needs: input \[T, 2d\] to output
    /// \[T, d\], contiguous.
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
        let (rows, _) = GatedActivation::contiguous(input.len(), d)?;
        let shape = ActShape { rows: rows.rows, d };
        if output.len() != shape.rows * d {
            let expected = format!("{} x {d} elements", shape.rows);
            return Err(Error::argument("output", expected, output.len()));
        }
        self.backend.act_and_mul(
            op,
            T::DTYPE,
            shape,
            bytemuck::cast_slice(input),
            bytemuck::cast_slice_mut(output),
        )
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
        let (rows, _) = GatedActivation::contiguous(input.len(), d)?;
        let shape = ActShape { rows: rows.rows, d };
        let scale_bytes = rows.rows * quant.groups(d) * quant.format().size();
        for (argument, got, expected) in [
            ("codes", codes.len(), rows.rows * d),
            ("scales", scales.len(), scale_bytes),
        ] {
            if got != expected {
                return Err(Error::argument(argument, format!("{expected} bytes"), got));
            }
        }
        let input = bytemuck::cast_slice(input);
        self.backend
            .act_and_mul_quant(op, quant, T::DTYPE, shape, input, codes, scales)
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
        let mlp = Arc::clone(&self.backend).load_mlp(config, weights)?;
        Ok(Mlp(mlp))
    }
}

/// The DeepSeek-V4 MLP on a device, fed from host memory: for tools and tests. An engine uses
/// [`swiglu_mlp::DeepseekV4Mlp`] with its own buffers.
pub struct Mlp(Box<dyn AnyMlp>);

impl std::fmt::Debug for Mlp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mlp({} bytes of weights)", self.weight_bytes())
    }
}

impl Mlp {
    /// The bytes of weights that a forward pass reads.
    pub fn weight_bytes(&self) -> usize {
        self.0.weight_bytes()
    }

    /// y = mlp(x): x \[T, H\] to y \[T, H\].
    ///
    /// # Errors
    /// A length that is no multiple of H, or a failure of the device.
    pub fn forward(&mut self, x: &[bf16]) -> Result<Vec<bf16>, swiglu_mlp::Error> {
        self.0.write_input(x)?;
        self.0.run()?;
        self.0.read_output()
    }

    /// As [`Self::forward`] up to the second product: `gate_up` \[T, 2I\] and `act` \[T, I\].
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn stages(&mut self, x: &[bf16]) -> Result<(Vec<bf16>, Vec<bf16>), swiglu_mlp::Error> {
        self.0.write_input(x)?;
        self.0.stages()
    }

    /// The steps of [`Self::forward`] one by one, for timing.
    pub fn steps(&mut self) -> &mut dyn AnyMlp {
        &mut *self.0
    }
}
