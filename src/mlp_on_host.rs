//! The MLP on a device, fed from host memory.

use std::fmt;
use std::sync::Arc;

use swiglu_core::{ActAndMul, Error, Float, Matmul, Quantize, RowLayout, Tensor, TensorMut, bf16};
use swiglu_mlp::{DeepseekV4Mlp, Workspace};

type Result<T> = std::result::Result<T, swiglu_mlp::Error>;

/// The DeepSeek-V4 MLP on a device, fed from host memory: for tools and tests. An engine uses
/// [`swiglu_mlp::DeepseekV4Mlp`] with its own memory.
pub struct Mlp(Box<dyn ErasedMlp>);

impl fmt::Debug for Mlp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mlp({} bytes of weights)", self.weight_bytes())
    }
}

impl Mlp {
    pub(crate) fn new(mlp: impl ErasedMlp + 'static) -> Self {
        Self(Box::new(mlp))
    }

    /// The bytes of weights that a forward pass reads.
    pub fn weight_bytes(&self) -> usize {
        self.0.weight_bytes()
    }

    /// The kernels of a forward pass over so many tokens, a line each.
    pub fn plan(&self, tokens: usize) -> Vec<String> {
        self.0.plan(tokens)
    }

    /// y = mlp(x): x \[T, H\] to y \[T, H\].
    ///
    /// # Errors
    /// A length that is no multiple of H, or a failure of the device.
    pub fn forward(&mut self, x: &[bf16]) -> Result<Vec<bf16>> {
        let mut y = vec![bf16::ZERO; x.len()];
        self.forward_into(x, &mut y)?;
        Ok(y)
    }

    /// As [`Self::forward`], into the caller's memory.
    ///
    /// # Errors
    /// As [`Self::forward`], and a y of another length.
    pub fn forward_into(&mut self, x: &[bf16], y: &mut [bf16]) -> Result<()> {
        self.0.forward(x, y)
    }

    /// As [`Self::forward`] up to the second matmul, stage by stage: `gate_up` \[T, 2I\] and `act`
    /// \[T, I\].
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn stages(&mut self, x: &[bf16]) -> Result<(Vec<bf16>, Vec<bf16>)> {
        self.0.stages(x)
    }
}

/// [`Mlp`]'s calls.
pub(crate) trait ErasedMlp: Send {
    fn weight_bytes(&self) -> usize;
    fn plan(&self, tokens: usize) -> Vec<String>;
    fn forward(&mut self, x: &[bf16], y: &mut [bf16]) -> Result<()>;
    fn stages(&mut self, x: &[bf16]) -> Result<(Vec<bf16>, Vec<bf16>)>;
}

/// An MLP with room for its input and output on the device; host memory that the device reads in
/// place needs none.
pub(crate) struct HostFed<B: ActAndMul + Quantize + Matmul> {
    backend: Arc<B>,
    mlp: DeepseekV4Mlp<B>,
    workspace: Workspace<B>,
    x: B::Buffer,
    y: B::Buffer,
}

impl<B: ActAndMul + Quantize + Matmul> HostFed<B> {
    pub(crate) fn new(mlp: DeepseekV4Mlp<B>) -> swiglu_core::Result<Self> {
        let backend = Arc::clone(mlp.backend());
        Ok(Self {
            x: backend.alloc(0)?,
            y: backend.alloc(0)?,
            workspace: Workspace::new(),
            backend,
            mlp,
        })
    }

    /// Where the rows of x and y lie.
    fn rows(&self, x: &[bf16]) -> Result<RowLayout> {
        let hidden = self.mlp.hidden_size();
        if !x.len().is_multiple_of(hidden) {
            let expected = format!("whole rows of {hidden} elements");
            return Err(Error::argument("x", expected, x.len()).into());
        }
        Ok(RowLayout::contiguous(x.len() / hidden, hidden))
    }

    fn bring(&mut self, x: &[bf16]) -> Result<()> {
        let bytes = size_of_val(x);
        if self.backend.len(&self.x) < bytes {
            self.x = self.backend.alloc(bytes)?;
            self.y = self.backend.alloc(bytes)?;
        }
        Ok(self.backend.upload(&mut self.x, bytemuck::cast_slice(x))?)
    }
}

impl<B: ActAndMul + Quantize + Matmul> ErasedMlp for HostFed<B> {
    fn weight_bytes(&self) -> usize {
        self.mlp.weight_bytes()
    }

    fn plan(&self, tokens: usize) -> Vec<String> {
        self.mlp.plan(tokens)
    }

    fn forward(&mut self, x: &[bf16], y: &mut [bf16]) -> Result<()> {
        let layout = self.rows(x)?;
        if y.len() != x.len() {
            return Err(Error::argument("y", format!("{} elements", x.len()), y.len()).into());
        }
        let (from, to): (&[u8], &mut [u8]) = (bytemuck::cast_slice(x), bytemuck::cast_slice_mut(y));
        if let (Some(from), Some(to)) = (B::host_view(from), B::host_view_mut(&mut *to)) {
            let x = Tensor::new(from, Float::BF16, layout);
            let y = TensorMut::new(to, Float::BF16, layout);
            return self.mlp.forward(x, y, &mut self.workspace);
        }
        self.bring(x)?;
        let x = Tensor::new(B::view(&self.x), Float::BF16, layout);
        let y = TensorMut::new(B::view_mut(&mut self.y), Float::BF16, layout);
        self.mlp.forward(x, y, &mut self.workspace)?;
        Ok(self.backend.download(&self.y, to)?)
    }

    fn stages(&mut self, x: &[bf16]) -> Result<(Vec<bf16>, Vec<bf16>)> {
        let layout = self.rows(x)?;
        self.bring(x)?;
        let (t, i) = (layout.rows, self.mlp.intermediate_size());
        let mut gate_up = self.backend.alloc(4 * t * i)?;
        let mut act = self.backend.alloc(2 * t * i)?;
        self.mlp.forward_stages(
            Tensor::new(B::view(&self.x), Float::BF16, layout),
            TensorMut::contiguous(B::view_mut(&mut gate_up), Float::BF16, t, 2 * i),
            TensorMut::contiguous(B::view_mut(&mut act), Float::BF16, t, i),
            TensorMut::new(B::view_mut(&mut self.y), Float::BF16, layout),
            &mut self.workspace,
        )?;
        let read = |buffer: &B::Buffer, count: usize| -> Result<Vec<bf16>> {
            let mut host = vec![bf16::ZERO; count];
            let bytes = bytemuck::cast_slice_mut(&mut host);
            self.backend.download(buffer, bytes)?;
            Ok(host)
        };
        Ok((read(&gate_up, 2 * t * i)?, read(&act, t * i)?))
    }
}
