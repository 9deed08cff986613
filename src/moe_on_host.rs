//! The whole layer on a device, fed from host memory.

use std::fmt;
use std::sync::Arc;

use swiglu_core::{
    Backend, Error, Float, GroupedMatmul, HostRoutes, Router, RowLayout, Tensor, TensorMut, Tokens,
    bf16,
};
use swiglu_mlp::{DeepseekV4Moe, MoeStages, MoeWorkspace};

type Result<T> = std::result::Result<T, swiglu_mlp::Error>;

/// What there is to know of the tokens besides their rows, in host memory: see
/// [`swiglu_core::Tokens`]. T values each.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostTokens<'a> {
    /// The tokens' numbers in the vocabulary.
    pub ids: Option<&'a [i32]>,
    /// Not 0 where a token is of an image.
    pub image: Option<&'a [i32]>,
    /// Not 0 where a row is padding.
    pub padding: Option<&'a [i32]>,
}

/// What a forward pass of a whole layer gave, stage by stage.
#[derive(Clone, Debug, PartialEq)]
pub struct MoeOutput {
    /// \[T, H\].
    pub y: Vec<bf16>,
    /// \[T, H\]: the sum of the routes.
    pub routed: Vec<f32>,
    /// \[T, H\]: what the shared expert gave.
    pub shared: Vec<bf16>,
    /// Who went where.
    pub routes: HostRoutes,
}

/// The whole feed-forward layer of DeepSeek-V4 on a device, fed from host memory: for tools and tests.
/// An engine uses [`swiglu_mlp::DeepseekV4Moe`] with its own memory.
pub struct Moe(Box<dyn ErasedMoe>);

impl fmt::Debug for Moe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Moe({} bytes an expert)", self.expert_bytes())
    }
}

impl Moe {
    pub(crate) fn new<B: Router + GroupedMatmul>(layer: DeepseekV4Moe<B>) -> Result<Self> {
        Ok(Self(Box::new(HostFedMoe::new(layer)?)))
    }

    /// The bytes of weights of one routed expert.
    pub fn expert_bytes(&self) -> usize {
        self.0.bytes()[0]
    }

    /// The bytes of weights of the shared expert.
    pub fn shared_bytes(&self) -> usize {
        self.0.bytes()[1]
    }

    /// The kernels of a forward pass over so many tokens, a line each.
    pub fn plan(&self, tokens: usize) -> Vec<String> {
        self.0.plan(tokens)
    }

    /// y = layer(x): x \[T, H\] to y \[T, H\].
    ///
    /// # Errors
    /// A length that is no multiple of H, marks of another number of tokens, token ids that a layer
    /// which hashes lacks, or a failure of the device.
    pub fn forward(&mut self, x: &[bf16], tokens: HostTokens<'_>) -> Result<Vec<bf16>> {
        let mut y = vec![bf16::ZERO; x.len()];
        self.forward_into(x, tokens, &mut y)?;
        Ok(y)
    }

    /// As [`Self::forward`], into the caller's memory.
    ///
    /// # Errors
    /// As [`Self::forward`], and a y of another length.
    pub fn forward_into(
        &mut self,
        x: &[bf16],
        tokens: HostTokens<'_>,
        y: &mut [bf16],
    ) -> Result<()> {
        self.0.forward(x, tokens, y)
    }

    /// As [`Self::forward`], with what lies between x and y.
    ///
    /// # Errors
    /// As [`Self::forward`].
    pub fn stages(&mut self, x: &[bf16], tokens: HostTokens<'_>) -> Result<MoeOutput> {
        self.0.stages(x, tokens)
    }
}

/// [`Moe`]'s calls.
trait ErasedMoe: Send {
    fn bytes(&self) -> [usize; 2];
    fn plan(&self, tokens: usize) -> Vec<String>;
    fn forward(&mut self, x: &[bf16], tokens: HostTokens<'_>, y: &mut [bf16]) -> Result<()>;
    fn stages(&mut self, x: &[bf16], tokens: HostTokens<'_>) -> Result<MoeOutput>;
}

/// A layer with room for its input and output on the device.
struct HostFedMoe<B: Router + GroupedMatmul> {
    backend: Arc<B>,
    layer: DeepseekV4Moe<B>,
    workspace: MoeWorkspace<B>,
    x: B::Buffer,
    y: B::Buffer,
    /// Ids, image and padding.
    tokens: [B::Buffer; 3],
}

/// A buffer of at least so many bytes, in place of one that is too short.
fn grow<B: Backend>(backend: &B, buffer: &mut B::Buffer, bytes: usize) -> Result<()> {
    if backend.len(buffer) < bytes {
        *buffer = backend.alloc(bytes)?;
    }
    Ok(())
}

impl<B: Router + GroupedMatmul> HostFedMoe<B> {
    fn new(layer: DeepseekV4Moe<B>) -> Result<Self> {
        let backend = Arc::clone(layer.backend());
        let none = || backend.alloc(0);
        Ok(Self {
            x: none()?,
            y: none()?,
            tokens: [none()?, none()?, none()?],
            workspace: MoeWorkspace::new(),
            layer,
            backend,
        })
    }

    /// Brings x and the marks to the device; returns where the rows of x lie.
    fn bring(&mut self, x: &[bf16], tokens: &HostTokens<'_>) -> Result<RowLayout> {
        let hidden = self.layer.hidden_size();
        if !x.len().is_multiple_of(hidden) {
            let expected = format!("whole rows of {hidden} elements");
            return Err(Error::argument("x", expected, x.len()).into());
        }
        let layout = RowLayout::contiguous(x.len() / hidden, hidden);
        let backend = &*self.backend;
        grow(backend, &mut self.x, size_of_val(x))?;
        grow(backend, &mut self.y, size_of_val(x))?;
        backend.upload(&mut self.x, bytemuck::cast_slice(x))?;
        let marks = [
            ("token_ids", tokens.ids),
            ("image", tokens.image),
            ("padding", tokens.padding),
        ];
        for ((name, marks), buffer) in marks.into_iter().zip(&mut self.tokens) {
            let Some(marks) = marks else { continue };
            if marks.len() != layout.rows {
                let expected = format!("one for each of {} tokens", layout.rows);
                return Err(Error::argument(name, expected, marks.len()).into());
            }
            grow(backend, buffer, size_of_val(marks))?;
            backend.upload(buffer, bytemuck::cast_slice(marks))?;
        }
        Ok(layout)
    }
}

/// The marks that there are, on the device.
fn on_device<'a, B: Backend>(buffers: &'a [B::Buffer; 3], host: &HostTokens<'_>) -> Tokens<'a, B> {
    let [ids, image, padding] = buffers;
    Tokens {
        ids: host.ids.map(|_| B::view(ids)),
        image: host.image.map(|_| B::view(image)),
        padding: host.padding.map(|_| B::view(padding)),
    }
}

impl<B: Router + GroupedMatmul> ErasedMoe for HostFedMoe<B> {
    fn bytes(&self) -> [usize; 2] {
        [
            self.layer.expert_bytes(),
            self.layer.shared().weight_bytes(),
        ]
    }

    fn plan(&self, tokens: usize) -> Vec<String> {
        self.layer.plan(tokens)
    }

    fn forward(&mut self, x: &[bf16], tokens: HostTokens<'_>, y: &mut [bf16]) -> Result<()> {
        if y.len() != x.len() {
            return Err(Error::argument("y", format!("{} elements", x.len()), y.len()).into());
        }
        let layout = self.bring(x, &tokens)?;
        let from = Tensor::new(B::view(&self.x), Float::BF16, layout);
        let to = TensorMut::new(B::view_mut(&mut self.y), Float::BF16, layout);
        let tokens = on_device::<B>(&self.tokens, &tokens);
        self.layer.forward(from, tokens, to, &mut self.workspace)?;
        Ok(self
            .backend
            .download(&self.y, bytemuck::cast_slice_mut(y))?)
    }

    fn stages(&mut self, x: &[bf16], tokens: HostTokens<'_>) -> Result<MoeOutput> {
        let layout = self.bring(x, &tokens)?;
        let backend = Arc::clone(&self.backend);
        let mut routed = backend.alloc(x.len() * 4)?;
        let mut shared = backend.alloc(x.len() * 2)?;
        let stages = MoeStages {
            routed: TensorMut::new(B::view_mut(&mut routed), Float::F32, layout),
            shared: TensorMut::new(B::view_mut(&mut shared), Float::BF16, layout),
        };
        let from = Tensor::new(B::view(&self.x), Float::BF16, layout);
        let to = TensorMut::new(B::view_mut(&mut self.y), Float::BF16, layout);
        let tokens = on_device::<B>(&self.tokens, &tokens);
        let workspace = &mut self.workspace;
        let routes = self
            .layer
            .forward_stages(from, tokens, stages, to, workspace)?;
        let mut output = MoeOutput {
            y: vec![bf16::ZERO; x.len()],
            routed: vec![0.0; x.len()],
            shared: vec![bf16::ZERO; x.len()],
            routes,
        };
        backend.download(&self.y, bytemuck::cast_slice_mut(&mut output.y))?;
        backend.download(&routed, bytemuck::cast_slice_mut(&mut output.routed))?;
        backend.download(&shared, bytemuck::cast_slice_mut(&mut output.shared))?;
        Ok(output)
    }
}
