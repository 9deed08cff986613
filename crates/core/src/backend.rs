//! The capabilities of a backend: memory is all that it must have, everything else refuses unless
//! a backend says and does otherwise.
//!
//! | trait | what it adds |
//! |---|---|
//! | [`Backend`] | memory and views of it, what is supported, how exactly |
//! | [`ActAndMul`] | activations |
//! | [`Quantize`] | FP8 codes with scales, fused with an activation or alone, and back |
//! | [`Matmul`] | `y = x · wᵀ`, also with an activation behind it or of quantized x |
//! | [`Router`] | which experts a token goes to |
//! | [`GroupedMatmul`] | matmuls of many experts at once, and the sum of what they give |

use crate::{Accuracy, Request, Result, Shape, Support};

mod activation;
mod grouped;
mod matmul;
mod moe;
mod quantize;
mod router;

pub use activation::ActAndMul;
pub use grouped::GroupedMatmul;
pub(crate) use grouped::{OutputRows, read_rows};
pub use matmul::{Matmul, NoWeight};
pub use moe::{MoeCall, SharedCall};
pub use quantize::{Batch, QuantOptions, Quantize};
pub use router::Router;

/// A platform on one device: its memory, and what it can run.
///
/// Calls enqueue. None allocates, synchronizes or compiles unless its documentation says so;
/// results are there for the host after [`Self::download`] or [`Self::synchronize`].
///
/// Matrices are *views* of memory that anybody may own: a part of a [`Self::Buffer`], or whatever
/// else the backend can address. On host memory a view is a slice of bytes, and
/// [`crate::host_memory!`] writes all that concerns memory.
pub trait Backend: Sized + Send + Sync + 'static {
    /// Memory of the device that the caller owns: untyped bytes, aligned for every element type.
    type Buffer: Send + Sync + 'static;
    /// A part of the device's memory, to be read.
    type View<'a>: Copy + Send + Sync;
    /// A part of the device's memory, to be written. It is exclusive.
    type ViewMut<'a>: Send + Sync;

    /// The platform's name, such as `cpu`.
    fn platform(&self) -> &'static str;

    /// The device and what of it is used, on one line.
    fn description(&self) -> String;

    /// How exact results are: what tests hold this backend to.
    fn accuracy(&self) -> Accuracy {
        Accuracy::EXACT
    }

    /// Whether a request runs, and how. What a backend does not know it must refuse.
    fn supports(&self, request: &Request) -> Support {
        let _ = request;
        Support::No("this backend does not run it".to_owned())
    }

    /// Which kernels a request of this shape runs, on one line; none where there is no choice.
    fn plan(&self, request: &Request, shape: &Shape) -> Option<String> {
        let _ = (request, shape);
        None
    }

    /// The bytes of scratch memory that a request of this shape takes from its caller. By default
    /// those that [`Matmul::matmul_quantized`] widens codes into, and [`Router::route`]'s logits.
    fn scratch(&self, request: &Request, shape: &Shape) -> usize {
        match request {
            Request::QuantizedMatmul { .. }
            | Request::QuantizingGatedMatmul { .. }
            | Request::QuantizingGatedMatmulQuant { .. }
            | Request::QuantizingMatmul { .. } => {
                shape.rows.saturating_mul(shape.depth).saturating_mul(2)
            }
            Request::Activation { .. }
            | Request::ActivationQuant { .. }
            | Request::Quantize { .. }
            | Request::Matmul { .. }
            | Request::GatedMatmul { .. }
            | Request::GroupedGatedMatmul { .. }
            | Request::GroupedMatmulSum { .. } => 0,
            Request::Route { .. } => router::scratch(request, shape),
        }
    }

    /// Allocates `bytes` bytes. What they hold is unspecified.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`], or a failure of the device.
    fn alloc(&self, bytes: usize) -> Result<Self::Buffer>;

    /// The length of a buffer in bytes.
    fn len(&self, buffer: &Self::Buffer) -> usize;

    /// Copies `data` into the buffer's first bytes; `data` may be reused on return.
    ///
    /// # Errors
    /// A buffer that is too short, or a failure of the device.
    fn upload(&self, buffer: &mut Self::Buffer, data: &[u8]) -> Result<()>;

    /// Waits for what was enqueued and copies the buffer's first bytes into `data`.
    ///
    /// # Errors
    /// A buffer that is too short, or a failure of the device.
    fn download(&self, buffer: &Self::Buffer, data: &mut [u8]) -> Result<()>;

    /// Waits for what was enqueued and copies a view's first bytes into `data`: what the default
    /// bodies of [`Router`] and [`GroupedMatmul`] need.
    ///
    /// # Errors
    /// A view that is too short, [`crate::Error::Unsupported`] by default, or a failure of the
    /// device.
    fn read(&self, view: Self::View<'_>, data: &mut [u8]) -> Result<()> {
        let _ = (view, data);
        Err(not_copied(self.platform()))
    }

    /// Copies `data` into a view's first bytes; `data` may be reused on return. As [`Self::read`].
    ///
    /// # Errors
    /// As [`Self::read`].
    fn write(&self, view: Self::ViewMut<'_>, data: &[u8]) -> Result<()> {
        let _ = (view, data);
        Err(not_copied(self.platform()))
    }

    /// Waits for everything that was enqueued.
    ///
    /// # Errors
    /// A failure of the device.
    fn synchronize(&self) -> Result<()>;

    /// The whole of a buffer, to be read.
    fn view(buffer: &Self::Buffer) -> Self::View<'_>;

    /// The whole of a buffer, to be written.
    fn view_mut(buffer: &mut Self::Buffer) -> Self::ViewMut<'_>;

    /// A view to be written, to be read.
    fn as_view<'a>(view: &'a Self::ViewMut<'_>) -> Self::View<'a>;

    /// A view to be written, borrowed for one call.
    fn reborrow<'a>(view: &'a mut Self::ViewMut<'_>) -> Self::ViewMut<'a>;

    /// The length of a view in bytes.
    fn view_len(view: &Self::View<'_>) -> usize;

    /// Host memory as a view, where the device can read it in place.
    fn host_view(bytes: &[u8]) -> Option<Self::View<'_>> {
        let _ = bytes;
        None
    }

    /// Host memory as a view, where the device can write it in place.
    fn host_view_mut(bytes: &mut [u8]) -> Option<Self::ViewMut<'_>> {
        let _ = bytes;
        None
    }
}

fn not_copied(platform: &str) -> crate::Error {
    let reason = "the backend copies whole buffers only";
    crate::Error::unsupported(platform, "a copy of a view to the host or back", reason)
}

/// The error of a call that [`Backend::supports`] says no to.
fn refusal<B: Backend>(backend: &B, request: &Request) -> crate::Error {
    let reason = match backend.supports(request) {
        Support::No(reason) => reason,
        Support::Native | Support::Emulated(_) => "the call is missing".to_owned(),
    };
    crate::Error::unsupported(backend.platform(), request, reason)
}
