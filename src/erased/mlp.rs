use std::sync::Arc;

use swiglu_core::{DType, GatedMatmul, Result, RowLayout, Tensor, TensorMut, bf16};
use swiglu_mlp::{DeepseekV4Mlp, Workspace};

/// An MLP on a device, fed from host memory. See [`crate::Mlp`].
pub trait AnyMlp: Send {
    /// The bytes of weights that a forward pass reads.
    fn weight_bytes(&self) -> usize;

    /// Copies `x` \[T, H\] to the device, which sets T, and makes room for a pass over it.
    ///
    /// # Errors
    /// A length that is no multiple of H, or a failure of the device.
    fn write_input(&mut self, x: &[bf16]) -> Result<(), swiglu_mlp::Error>;

    /// Enqueues a forward pass over the input.
    ///
    /// # Errors
    /// A failure of the device.
    fn enqueue(&mut self) -> Result<(), swiglu_mlp::Error>;

    /// Waits for what was enqueued.
    ///
    /// # Errors
    /// A failure of the device.
    fn wait(&mut self) -> Result<(), swiglu_mlp::Error>;

    /// Runs a forward pass over the input and waits for it.
    ///
    /// # Errors
    /// A failure of the device.
    fn run(&mut self) -> Result<(), swiglu_mlp::Error> {
        self.enqueue()?;
        self.wait()
    }

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

/// An MLP with its input and output on the device.
pub(super) struct HostFed<B: GatedMatmul> {
    backend: Arc<B>,
    mlp: DeepseekV4Mlp<B>,
    workspace: Workspace<B>,
    x: B::Buffer,
    y: B::Buffer,
    tokens: usize,
}

impl<B: GatedMatmul> HostFed<B> {
    pub(super) fn new(mlp: DeepseekV4Mlp<B>) -> Result<Self> {
        let backend = Arc::clone(mlp.backend());
        Ok(Self {
            x: backend.alloc(0)?,
            y: backend.alloc(0)?,
            workspace: Workspace::new(),
            tokens: 0,
            backend,
            mlp,
        })
    }
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

    fn enqueue(&mut self) -> Result<(), swiglu_mlp::Error> {
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
        self.mlp.forward(x, y, &mut self.workspace)
    }

    fn wait(&mut self) -> Result<(), swiglu_mlp::Error> {
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
            &mut self.workspace,
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
