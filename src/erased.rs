use std::sync::Arc;

use swiglu_core::{
    ActShape, DType, GatedActivation, GatedMatmul, Result, RowLayout, Support, Tensor, TensorMut,
    bf16,
};
use swiglu_mlp::{DeepseekV4Mlp, MlpConfig, SharedExpert, Workspace};

/// A backend whose type is forgotten: what the registry holds. Every [`GatedMatmul`] is one, so
/// that a backend from outside the workspace registers itself as the built-in ones are.
///
/// These calls take host memory, copy and wait; they are for whole tensors, tools and tests.
pub trait AnyBackend: Send + Sync {
    /// The platform's name, such as `cpu`.
    fn platform(&self) -> &'static str;

    /// The device and what of it is used, on one line.
    fn description(&self) -> String;

    /// Whether this activation runs in this type.
    fn supports(&self, op: &GatedActivation, dtype: DType) -> Support;

    /// Whether products run with weights stored in this type.
    fn supports_weight(&self, dtype: DType) -> Support;

    /// Runs an activation over contiguous rows: input \[rows, 2d\], output \[rows, d\], both as
    /// bytes of `dtype`.
    ///
    /// # Errors
    /// As [`swiglu_core::ActAndMul::act_and_mul`].
    fn act_and_mul(
        &self,
        op: &GatedActivation,
        dtype: DType,
        shape: ActShape,
        input: &[u8],
        output: &mut [u8],
    ) -> Result<()>;

    /// Brings an MLP's weights to the device.
    ///
    /// # Errors
    /// As [`DeepseekV4Mlp::load`].
    fn load_mlp(
        self: Arc<Self>,
        config: &MlpConfig,
        weights: &SharedExpert<'_>,
    ) -> Result<Box<dyn AnyMlp>, swiglu_mlp::Error>;
}

/// An MLP on a device, fed from host memory. See [`crate::Mlp`].
pub trait AnyMlp: Send {
    /// The bytes of weights that a forward pass reads.
    fn weight_bytes(&self) -> usize;

    /// Copies `x` \[T, H\] to the device, which sets T, and makes room for a pass over it.
    ///
    /// # Errors
    /// A length that is no multiple of H, or a failure of the device.
    fn write_input(&mut self, x: &[bf16]) -> Result<(), swiglu_mlp::Error>;

    /// Runs a forward pass over the input and waits for it.
    ///
    /// # Errors
    /// A failure of the device.
    fn run(&mut self) -> Result<(), swiglu_mlp::Error>;

    /// The output of the last pass, \[T, H\].
    ///
    /// # Errors
    /// A failure of the device.
    fn read_output(&mut self) -> Result<Vec<bf16>, swiglu_mlp::Error>;

    /// Runs a pass stage by stage and returns `gate_up` \[T, 2I\] and `act` \[T, I\].
    ///
    /// # Errors
    /// A failure of the device.
    fn stages(&mut self) -> Result<(Vec<bf16>, Vec<bf16>), swiglu_mlp::Error>;
}

impl<B: GatedMatmul> AnyBackend for B {
    fn platform(&self) -> &'static str {
        swiglu_core::Backend::platform(self)
    }

    fn description(&self) -> String {
        swiglu_core::Backend::description(self)
    }

    fn supports(&self, op: &GatedActivation, dtype: DType) -> Support {
        swiglu_core::Backend::supports(self, op, dtype)
    }

    fn supports_weight(&self, dtype: DType) -> Support {
        swiglu_core::Matmul::supports_weight(self, dtype)
    }

    fn act_and_mul(
        &self,
        op: &GatedActivation,
        dtype: DType,
        shape: ActShape,
        input: &[u8],
        output: &mut [u8],
    ) -> Result<()> {
        let ActShape { rows, d } = shape;
        let mut device_input = self.alloc(input.len())?;
        let mut device_output = self.alloc(output.len())?;
        self.upload(&mut device_input, input)?;
        let input = Tensor::contiguous(&device_input, dtype, rows, 2 * d);
        let target = TensorMut::contiguous(&mut device_output, dtype, rows, d);
        swiglu_core::ActAndMul::act_and_mul(self, op, input, target)?;
        self.download(&device_output, output)
    }

    fn load_mlp(
        self: Arc<Self>,
        config: &MlpConfig,
        weights: &SharedExpert<'_>,
    ) -> Result<Box<dyn AnyMlp>, swiglu_mlp::Error> {
        let mlp = DeepseekV4Mlp::load(Arc::clone(&self), config, weights)?;
        Ok(Box::new(HostFed {
            x: self.alloc(0)?,
            y: self.alloc(0)?,
            workspace: Workspace::new(),
            tokens: 0,
            backend: self,
            mlp,
        }))
    }
}

/// An MLP with its input and output on the device.
struct HostFed<B: GatedMatmul> {
    backend: Arc<B>,
    mlp: DeepseekV4Mlp<B>,
    workspace: Workspace<B>,
    x: B::Buffer,
    y: B::Buffer,
    tokens: usize,
}

impl<B: GatedMatmul> AnyMlp for HostFed<B> {
    fn weight_bytes(&self) -> usize {
        self.mlp.weight_bytes()
    }

    fn write_input(&mut self, x: &[bf16]) -> Result<(), swiglu_mlp::Error> {
        let hidden = self.mlp.hidden_size();
        if !x.len().is_multiple_of(hidden) {
            let expected = format!("whole rows of {hidden} elements");
            return Err(swiglu_core::Error::argument("x", expected, x.len()).into());
        }
        let bytes = size_of_val(x);
        if self.backend.len(&self.x) < bytes {
            self.x = self.backend.alloc(bytes)?;
            self.y = self.backend.alloc(bytes)?;
        }
        self.tokens = x.len() / hidden;
        Ok(self.backend.upload(&mut self.x, bytemuck::cast_slice(x))?)
    }

    fn run(&mut self) -> Result<(), swiglu_mlp::Error> {
        let layout = RowLayout::contiguous(self.tokens, self.mlp.hidden_size());
        let x = Tensor {
            buffer: &self.x,
            dtype: DType::BF16,
            layout,
        };
        let y = TensorMut {
            buffer: &mut self.y,
            dtype: DType::BF16,
            layout,
        };
        self.mlp.forward(x, y, &mut self.workspace)?;
        Ok(self.backend.synchronize()?)
    }

    fn read_output(&mut self) -> Result<Vec<bf16>, swiglu_mlp::Error> {
        let count = self.tokens * self.mlp.hidden_size();
        Ok(read(&*self.backend, &self.y, count)?)
    }

    fn stages(&mut self) -> Result<(Vec<bf16>, Vec<bf16>), swiglu_mlp::Error> {
        let (t, h, i) = (
            self.tokens,
            self.mlp.hidden_size(),
            self.mlp.intermediate_size(),
        );
        let bytes = |cols: usize| t * cols * DType::BF16.size();
        let mut gate_up = self.backend.alloc(bytes(2 * i))?;
        let mut act = self.backend.alloc(bytes(i))?;
        self.mlp.forward_stages(
            Tensor::contiguous(&self.x, DType::BF16, t, h),
            TensorMut::contiguous(&mut gate_up, DType::BF16, t, 2 * i),
            TensorMut::contiguous(&mut act, DType::BF16, t, i),
            TensorMut::contiguous(&mut self.y, DType::BF16, t, h),
        )?;
        let b = &*self.backend;
        Ok((read(b, &gate_up, t * 2 * i)?, read(b, &act, t * i)?))
    }
}

fn read<B: GatedMatmul>(backend: &B, buffer: &B::Buffer, count: usize) -> Result<Vec<bf16>> {
    let mut host = vec![bf16::ZERO; count];
    backend.download(buffer, bytemuck::cast_slice_mut(&mut host))?;
    Ok(host)
}
