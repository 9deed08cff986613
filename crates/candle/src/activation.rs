use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, Layout, MetalStorage, Module, Result, Shape,
    Tensor,
};
use swiglu_core::{ActShape, GateUp, GatedActivation};

use crate::error::{OrCandle as _, argument, no_gradient, no_metal};
use crate::host::{filled, matrix};
use crate::rows::with_last;

/// An activation of \[.., 2d\] to \[.., d\]; where the halves lie in a row is the operation's
/// [`swiglu_core::Layout`] and [`swiglu_core::Order`].
///
/// # Errors
/// A scalar, an odd or zero last dimension, a type other than f32, f16 and bf16, rows that lie
/// otherwise than the [crate](crate#tensors) says, or a device that does not run it.
pub fn act_and_mul(op: &GatedActivation, input: &Tensor) -> Result<Tensor> {
    input.apply_op1(ActAndMul(*op))
}

/// An activation of gate and up apart, each \[.., d\] of one shape and type: the operation's layout
/// and order have no say.
///
/// ```
/// # use candle_core::{Device, Tensor};
/// # use swiglu_candle::{GatedActivation, act_and_mul_split};
/// # fn main() -> candle_core::Result<()> {
/// let gate = Tensor::new(&[0.0_f32, 20.0], &Device::Cpu)?;
/// let up = Tensor::new(&[7.0_f32, 3.0], &Device::Cpu)?;
/// let y = act_and_mul_split(&GatedActivation::silu_and_mul(), &gate, &up)?;
/// assert_eq!(y.to_vec1::<f32>()?, [0.0, 60.0]);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// As [`act_and_mul`], and tensors of different shapes, types or devices.
pub fn act_and_mul_split(op: &GatedActivation, gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.apply_op2(up, ActAndMul(*op))
}

/// An activation as a module ([`act_and_mul`]) and as a custom operation: of one tensor, \[.., 2d\],
/// or of two, gate and up.
///
/// ```
/// use candle_core::{Device, Module, Tensor};
/// use swiglu_candle::{ActAndMul, GatedActivation};
/// # fn main() -> candle_core::Result<()> {
/// let act = ActAndMul(GatedActivation::gelu_and_mul());
/// let y = act.forward(&Tensor::ones((3, 8), candle_core::DType::F32, &Device::Cpu)?)?;
/// assert_eq!(y.dims(), [3, 4]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ActAndMul(pub GatedActivation);

impl Module for ActAndMul {
    fn forward(&self, input: &Tensor) -> Result<Tensor> {
        act_and_mul(&self.0, input)
    }
}

/// Checks the shapes of gate and up, with all of their dimensions.
fn same_shape(gate: &Layout, up: &Layout) -> Result<()> {
    if gate.dims() == up.dims() {
        return Ok(());
    }
    let expected = format!("shape {:?}, as gate has it", gate.dims());
    Err(argument("up", expected, format!("{:?}", up.dims())))
}

impl CustomOp1 for ActAndMul {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let input = matrix("input", storage, layout)?;
        let ActShape { rows, d } = ActShape::of_input(&input.layout).or_candle()?;
        let output = filled(input.float, [rows, d], |to| {
            swiglu_cpu::act_and_mul(&self.0, input.into(), to).or_candle()
        })?;
        Ok((output, with_last(layout, d)))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, layout: &Layout) -> Result<(CudaStorage, Shape)> {
        let d = ActShape::of_input(&crate::rows::rows("input", layout)?)
            .or_candle()?
            .d;
        let output = crate::cuda::activate(&self.0, storage, layout)?;
        Ok((output, with_last(layout, d)))
    }

    #[cfg(not(feature = "cuda"))]
    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        Err(crate::error::no_cuda(self.0.name()))
    }

    fn metal_fwd(&self, _: &MetalStorage, _: &Layout) -> Result<(MetalStorage, Shape)> {
        Err(no_metal(self.0.name()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        Err(no_gradient(self.0.name()))
    }
}

impl CustomOp2 for ActAndMul {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        same_shape(gate_layout, up_layout)?;
        let gate = matrix("gate", gate, gate_layout)?;
        let up = matrix("up", up, up_layout)?;
        let shape = [gate.layout.rows, gate.layout.cols];
        let output = filled(gate.float, shape, |to| {
            swiglu_cpu::act_and_mul(&self.0, GateUp::Split { gate, up }, to).or_candle()
        })?;
        Ok((output, gate_layout.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        gate: &CudaStorage,
        gate_layout: &Layout,
        up: &CudaStorage,
        up_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        same_shape(gate_layout, up_layout)?;
        let output = crate::cuda::activate_split(&self.0, [gate, up], [gate_layout, up_layout])?;
        Ok((output, gate_layout.shape().clone()))
    }

    #[cfg(not(feature = "cuda"))]
    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        Err(crate::error::no_cuda(self.0.name()))
    }

    fn metal_fwd(
        &self,
        _: &MetalStorage,
        _: &Layout,
        _: &MetalStorage,
        _: &Layout,
    ) -> Result<(MetalStorage, Shape)> {
        Err(no_metal(self.0.name()))
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        Err(no_gradient(self.0.name()))
    }
}
