//! A backend whose type is forgotten, fed from host memory: what the registry holds.

use std::fmt;
use std::sync::Arc;

use swiglu_core::reference::Reference;
use swiglu_core::{
    Accuracy, ActShape, Backend, GateUp, GatedActivation, GroupedMatmul, QuantOptions,
    Quantization, QuantizedMut, Request, Result, Router, RowLayout, Shape, Support, Tensor,
    TensorMut, check,
};
use swiglu_mlp::{DeepseekV4Mlp, DeepseekV4Moe, MlpConfig, MoeConfig, MoeWeights, SharedExpert};

use crate::mlp_on_host::HostFed;
use crate::{Mlp, Moe};

/// Host memory: the reference's views are plain slices.
pub(crate) type Host = Reference;

/// A backend of any type. Its calls take host memory: a backend that reads host memory runs on the
/// caller's slices as they are, any other copies there and back and waits.
///
/// ```
/// use swiglu::{AnyBackend, GatedActivation, RowLayout, Tensor, TensorMut, reference::Reference};
/// # fn main() -> swiglu::Result<()> {
/// let backend = AnyBackend::new(Reference);
/// let (x, mut y) = ([20.0_f32, -30.0], [0.0_f32]);
/// let (from, to) = (RowLayout::contiguous(1, 2), RowLayout::contiguous(1, 1));
/// backend.act_and_mul(
///     &GatedActivation::deepseek_v4(),
///     Tensor::from_slice(&x, from).into(),
///     TensorMut::from_slice(&mut y, to),
/// )?;
/// assert!((y[0] + 99.9955).abs() < 1e-4);
/// # Ok(())
/// # }
/// ```
pub struct AnyBackend(Box<dyn Erased>);

impl fmt::Debug for AnyBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.platform(), self.description())
    }
}

impl AnyBackend {
    /// Forgets a backend's type.
    pub fn new<B: Router + GroupedMatmul>(backend: B) -> Self {
        Self(Box::new(Opened(Arc::new(backend))))
    }

    /// The platform's name, such as `cpu`.
    pub fn platform(&self) -> &'static str {
        self.0.platform()
    }

    /// The device and what of it is used, on one line.
    pub fn description(&self) -> String {
        self.0.description()
    }

    /// How exact its results are.
    pub fn accuracy(&self) -> Accuracy {
        self.0.accuracy()
    }

    /// Whether a request runs, and how.
    pub fn supports(&self, request: &Request) -> Support {
        self.0.supports(request)
    }

    /// Which kernels a request of this shape runs, on one line.
    pub fn plan(&self, request: &Request, shape: &Shape) -> Option<String> {
        self.0.plan(request, shape)
    }

    /// Runs an activation: input \[T, 2d\], or gate and up \[T, d\] each, to output \[T, d\].
    ///
    /// # Errors
    /// As [`swiglu_core::ActAndMul::act_and_mul`].
    pub fn act_and_mul(
        &self,
        op: &GatedActivation,
        input: GateUp<'_, Reference>,
        output: TensorMut<'_, Reference>,
    ) -> Result<()> {
        self.0.act_and_mul(op, input, output)
    }

    /// Runs an activation and quantizes its results: codes \[T, d\] and scales \[T, G\].
    ///
    /// # Errors
    /// As [`swiglu_core::Quantize::act_and_mul_quant`].
    pub fn act_and_mul_quant(
        &self,
        op: &GatedActivation,
        quant: &Quantization,
        input: GateUp<'_, Reference>,
        output: QuantizedMut<'_, Reference>,
    ) -> Result<()> {
        self.0.act_and_mul_quant(op, quant, input, output)
    }

    /// Brings an MLP's weights to the device.
    ///
    /// # Errors
    /// As [`DeepseekV4Mlp::load`].
    pub fn load_mlp(
        &self,
        config: &MlpConfig,
        weights: &SharedExpert<'_>,
    ) -> std::result::Result<Mlp, swiglu_mlp::Error> {
        self.0.load_mlp(config, weights)
    }

    /// Brings the weights of a whole layer to the device, one expert after another.
    ///
    /// # Errors
    /// As [`DeepseekV4Moe::load`].
    pub fn load_moe(
        &self,
        config: &MoeConfig,
        weights: &MoeWeights<'_>,
    ) -> std::result::Result<Moe, swiglu_mlp::Error> {
        self.0.load_moe(config, weights)
    }
}

/// [`AnyBackend`]'s calls.
trait Erased: Send + Sync {
    fn platform(&self) -> &'static str;
    fn description(&self) -> String;
    fn accuracy(&self) -> Accuracy;
    fn supports(&self, request: &Request) -> Support;
    fn plan(&self, request: &Request, shape: &Shape) -> Option<String>;
    fn act_and_mul(
        &self,
        op: &GatedActivation,
        input: GateUp<'_, Host>,
        output: TensorMut<'_, Host>,
    ) -> Result<()>;
    fn act_and_mul_quant(
        &self,
        op: &GatedActivation,
        quant: &Quantization,
        input: GateUp<'_, Host>,
        output: QuantizedMut<'_, Host>,
    ) -> Result<()>;
    fn load_mlp(
        &self,
        config: &MlpConfig,
        weights: &SharedExpert<'_>,
    ) -> std::result::Result<Mlp, swiglu_mlp::Error>;
    fn load_moe(
        &self,
        config: &MoeConfig,
        weights: &MoeWeights<'_>,
    ) -> std::result::Result<Moe, swiglu_mlp::Error>;
}

struct Opened<B>(Arc<B>);

impl<B: Router + GroupedMatmul> Erased for Opened<B> {
    fn platform(&self) -> &'static str {
        self.0.platform()
    }

    fn description(&self) -> String {
        self.0.description()
    }

    fn accuracy(&self) -> Accuracy {
        self.0.accuracy()
    }

    fn supports(&self, request: &Request) -> Support {
        self.0.supports(request)
    }

    fn plan(&self, request: &Request, shape: &Shape) -> Option<String> {
        self.0.plan(request, shape)
    }

    fn act_and_mul(
        &self,
        op: &GatedActivation,
        input: GateUp<'_, Host>,
        output: TensorMut<'_, Host>,
    ) -> Result<()> {
        let backend = &*self.0;
        let (float, layout) = (output.float, output.layout);
        if let Some(input) = in_place(&input)
            && let Some(view) = B::host_view_mut(&mut *output.view)
        {
            return backend.act_and_mul(op, input, TensorMut::new(view, float, layout));
        }
        let shape = check::act(&input, &output)?;
        let input = OnDevice::new(backend, &input)?;
        let mut y = backend.alloc(shape.rows * shape.d * float.size())?;
        let to = TensorMut::contiguous(B::view_mut(&mut y), float, shape.rows, shape.d);
        backend.act_and_mul(op, input.gate_up(), to)?;
        gather(backend, &y, float.size(), &layout, output.view)
    }

    fn act_and_mul_quant(
        &self,
        op: &GatedActivation,
        quant: &Quantization,
        input: GateUp<'_, Host>,
        output: QuantizedMut<'_, Host>,
    ) -> Result<()> {
        let backend = &*self.0;
        let (layout, scale_layout) = (output.layout, output.scale_layout);
        let options = QuantOptions::default();
        if let Some(input) = in_place(&input)
            && let Some(codes) = B::host_view_mut(&mut *output.codes)
            && let Some(scales) = B::host_view_mut(&mut *output.scales)
        {
            let to = QuantizedMut {
                codes,
                layout,
                scales,
                scale_layout,
            };
            return backend.act_and_mul_quant(op, quant, input, to, options);
        }
        let ActShape { rows, d } =
            check::act_quant(op, quant, &input, &output, &QuantOptions::default())?;
        let input = OnDevice::new(backend, &input)?;
        let mut codes = backend.alloc(rows * d)?;
        // Scales come back as they lie, so what is between them goes there first.
        let mut scales = backend.alloc(output.scales.len())?;
        backend.upload(&mut scales, output.scales)?;
        let to = QuantizedMut {
            codes: B::view_mut(&mut codes),
            layout: RowLayout::contiguous(rows, d),
            scales: B::view_mut(&mut scales),
            scale_layout,
        };
        backend.act_and_mul_quant(op, quant, input.gate_up(), to, options)?;
        gather(backend, &codes, 1, &layout, output.codes)?;
        backend.download(&scales, output.scales)
    }

    fn load_mlp(
        &self,
        config: &MlpConfig,
        weights: &SharedExpert<'_>,
    ) -> std::result::Result<Mlp, swiglu_mlp::Error> {
        let mlp = DeepseekV4Mlp::load(Arc::clone(&self.0), config, weights)?;
        Ok(Mlp::new(HostFed::new(mlp)?))
    }

    fn load_moe(
        &self,
        config: &MoeConfig,
        weights: &MoeWeights<'_>,
    ) -> std::result::Result<Moe, swiglu_mlp::Error> {
        Moe::new(DeepseekV4Moe::load(Arc::clone(&self.0), config, weights)?)
    }
}

/// The input as the backend's, where the backend reads host memory.
fn in_place<'a, B: Backend>(input: &GateUp<'a, Host>) -> Option<GateUp<'a, B>> {
    let view = |t: &Tensor<'a, Host>| {
        let view = B::host_view(t.view)?;
        Some(Tensor::new(view, t.float, t.layout))
    };
    Some(match input {
        GateUp::Merged(input) => GateUp::Merged(view(input)?),
        GateUp::Split { gate, up } => GateUp::Split {
            gate: view(gate)?,
            up: view(up)?,
        },
    })
}

/// A matrix that was copied to the device.
struct Copied<B: Backend> {
    buffer: B::Buffer,
    float: swiglu_core::Float,
    layout: RowLayout,
}

impl<B: Backend> Copied<B> {
    /// The whole view goes, with what lies between its rows.
    fn new(backend: &B, tensor: &Tensor<'_, Host>) -> Result<Self> {
        let mut buffer = backend.alloc(tensor.view.len())?;
        backend.upload(&mut buffer, tensor.view)?;
        Ok(Self {
            buffer,
            float: tensor.float,
            layout: tensor.layout,
        })
    }

    fn tensor(&self) -> Tensor<'_, B> {
        Tensor::new(B::view(&self.buffer), self.float, self.layout)
    }
}

/// An activation's input that was copied to the device.
enum OnDevice<B: Backend> {
    Merged(Copied<B>),
    Split(Copied<B>, Copied<B>),
}

impl<B: Backend> OnDevice<B> {
    fn new(backend: &B, input: &GateUp<'_, Host>) -> Result<Self> {
        Ok(match input {
            GateUp::Merged(input) => Self::Merged(Copied::new(backend, input)?),
            GateUp::Split { gate, up } => {
                Self::Split(Copied::new(backend, gate)?, Copied::new(backend, up)?)
            }
        })
    }

    fn gate_up(&self) -> GateUp<'_, B> {
        match self {
            Self::Merged(input) => input.tensor().into(),
            Self::Split(gate, up) => GateUp::Split {
                gate: gate.tensor(),
                up: up.tensor(),
            },
        }
    }
}

/// Copies contiguous rows of the device to where `layout` has them in host memory.
fn gather<B: Backend>(
    backend: &B,
    buffer: &B::Buffer,
    size: usize,
    layout: &RowLayout,
    to: &mut [u8],
) -> Result<()> {
    let row = layout.cols * size;
    if layout.stride == layout.cols {
        let start = layout.offset * size;
        return backend.download(buffer, &mut to[start..start + layout.rows * row]);
    }
    let mut rows = vec![0; layout.rows * row];
    backend.download(buffer, &mut rows)?;
    for (t, from) in rows.chunks_exact(row).enumerate() {
        let start = layout.row(t).start * size;
        to[start..start + row].copy_from_slice(from);
    }
    Ok(())
}

/// The scales and codes that a quantization of contiguous rows makes, to be written.
pub(crate) fn quantized_mut<'a>(
    quant: &Quantization,
    ActShape { rows, d }: ActShape,
    codes: &'a mut [u8],
    scales: &'a mut [u8],
) -> QuantizedMut<'a, Host> {
    let order = swiglu_core::ScaleOrder::RowMajor;
    QuantizedMut {
        codes,
        layout: RowLayout::contiguous(rows, d),
        scales,
        scale_layout: swiglu_core::ScaleLayout::contiguous(
            quant.format(),
            order,
            rows,
            quant.groups(d),
        ),
    }
}
