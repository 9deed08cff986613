//! Matrices as views of somebody's memory: a backend computes where the data are.

use std::fmt;

use crate::{Backend, Element, Error, Float, Result, RowLayout, ScaleLayout};

/// A matrix in a backend's memory, to be read.
///
/// ```
/// use swiglu_core::{RowLayout, Tensor, bf16, reference::Reference};
/// let x = [bf16::ONE; 2 * 8]; // two rows of 6 elements, 8 apart
/// let rows = RowLayout::contiguous(2, 6).with_stride(8);
/// let x = Tensor::<Reference>::from_slice(&x, rows);
/// assert_eq!(x.layout.cols, 6);
/// ```
pub struct Tensor<'a, B: Backend> {
    /// The memory.
    pub view: B::View<'a>,
    /// The elements' type.
    pub float: Float,
    /// Where the rows lie, in elements from the start of the view.
    pub layout: RowLayout,
}

/// A matrix in a backend's memory, to be written.
pub struct TensorMut<'a, B: Backend> {
    /// The memory.
    pub view: B::ViewMut<'a>,
    /// The elements' type.
    pub float: Float,
    /// Where the rows lie, in elements from the start of the view.
    pub layout: RowLayout,
}

impl<B: Backend> Clone for Tensor<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for Tensor<'_, B> {}

impl<B: Backend> fmt::Debug for Tensor<'_, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.float, self.layout)
    }
}

impl<B: Backend> fmt::Debug for TensorMut<'_, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.float, self.layout)
    }
}

impl<'a, B: Backend> Tensor<'a, B> {
    /// The rows that `layout` finds in a view. Calls check that they lie inside it.
    pub const fn new(view: B::View<'a>, float: Float, layout: RowLayout) -> Self {
        Self {
            view,
            float,
            layout,
        }
    }

    /// `rows` rows of `cols` elements from the start of a view.
    pub const fn contiguous(view: B::View<'a>, float: Float, rows: usize, cols: usize) -> Self {
        Self::new(view, float, RowLayout::contiguous(rows, cols))
    }

    /// Checks that the rows lie inside the view.
    ///
    /// # Errors
    /// As [`RowLayout::check`].
    pub fn check(&self, argument: &'static str) -> Result<()> {
        let elements = B::view_len(&self.view) / self.float.size();
        self.layout.check(argument, elements)
    }
}

/// For backends on host memory, whose views are bytes.
impl<'a, B: Backend<View<'a> = &'a [u8]>> Tensor<'a, B> {
    /// The rows that `layout` finds in a slice.
    pub fn from_slice<T: Element>(data: &'a [T], layout: RowLayout) -> Self {
        Self::new(bytemuck::cast_slice(data), T::FLOAT, layout)
    }

    /// The view as elements of its type.
    ///
    /// # Errors
    /// A view whose address is not aligned to `T`, or a tensor of another type.
    pub fn typed<T: Element>(&self, argument: &'static str) -> Result<&'a [T]> {
        same_type::<T>(argument, self.float)?;
        let whole = self.view.len() - self.view.len() % size_of::<T>();
        bytemuck::try_cast_slice(&self.view[..whole]).map_err(|_| misaligned::<T>(argument))
    }
}

/// As [`Tensor`]'s.
impl<'a, B: Backend<ViewMut<'a> = &'a mut [u8]>> TensorMut<'a, B> {
    /// The rows that `layout` finds in a slice.
    pub fn from_slice<T: Element>(data: &'a mut [T], layout: RowLayout) -> Self {
        Self::new(bytemuck::cast_slice_mut(data), T::FLOAT, layout)
    }

    /// The view as elements of its type.
    ///
    /// # Errors
    /// A view whose address is not aligned to `T`, or a tensor of another type.
    pub fn into_typed<T: Element>(self, argument: &'static str) -> Result<&'a mut [T]> {
        same_type::<T>(argument, self.float)?;
        let whole = self.view.len() - self.view.len() % size_of::<T>();
        bytemuck::try_cast_slice_mut(&mut self.view[..whole]).map_err(|_| misaligned::<T>(argument))
    }
}

fn same_type<T: Element>(argument: &'static str, float: Float) -> Result<()> {
    if float == T::FLOAT {
        return Ok(());
    }
    Err(Error::argument(argument, T::FLOAT.name(), float))
}

fn misaligned<T: Element>(argument: &'static str) -> Error {
    let expected = format!("memory aligned to {} bytes", align_of::<T>());
    Error::argument(argument, expected, "an address between two elements")
}

impl<'a, B: Backend> TensorMut<'a, B> {
    /// The rows that `layout` finds in a view. Calls check that they lie inside it.
    pub const fn new(view: B::ViewMut<'a>, float: Float, layout: RowLayout) -> Self {
        Self {
            view,
            float,
            layout,
        }
    }

    /// `rows` rows of `cols` elements from the start of a view.
    pub const fn contiguous(view: B::ViewMut<'a>, float: Float, rows: usize, cols: usize) -> Self {
        Self::new(view, float, RowLayout::contiguous(rows, cols))
    }

    /// The same matrix, borrowed for one call.
    pub fn reborrow(&mut self) -> TensorMut<'_, B> {
        TensorMut::new(B::reborrow(&mut self.view), self.float, self.layout)
    }

    /// The same matrix, to be read.
    pub fn as_tensor(&self) -> Tensor<'_, B> {
        Tensor::new(B::as_view(&self.view), self.float, self.layout)
    }
}

/// The input of an activation: its gate and its up half.
pub enum GateUp<'a, B: Backend> {
    /// One matrix \[T, 2d\]; where the halves lie in a row is the operation's
    /// [`crate::Layout`] and [`crate::Order`].
    Merged(Tensor<'a, B>),
    /// A matrix \[T, d\] each, of one type, as two linear layers give them. The operation's layout
    /// and order have no say: which half is which stands here.
    Split {
        /// What goes through the function.
        gate: Tensor<'a, B>,
        /// What it is multiplied by.
        up: Tensor<'a, B>,
    },
}

impl<B: Backend> Clone for GateUp<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for GateUp<'_, B> {}

impl<B: Backend> fmt::Debug for GateUp<'_, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Merged(input) => write!(f, "{input:?}"),
            Self::Split { gate, up } => write!(f, "gate {gate:?}, up {up:?}"),
        }
    }
}

impl<'a, B: Backend> From<Tensor<'a, B>> for GateUp<'a, B> {
    fn from(input: Tensor<'a, B>) -> Self {
        Self::Merged(input)
    }
}

impl<B: Backend> GateUp<'_, B> {
    /// The elements' type.
    pub const fn float(&self) -> Float {
        match self {
            Self::Merged(input) => input.float,
            Self::Split { gate, .. } => gate.float,
        }
    }

    /// How many rows there are (T).
    pub const fn rows(&self) -> usize {
        match self {
            Self::Merged(input) => input.layout.rows,
            Self::Split { gate, .. } => gate.layout.rows,
        }
    }
}

/// A matrix of [`crate::E4M3`] codes with their scales, to be read.
pub struct Quantized<'a, B: Backend> {
    /// The codes, \[T, d\], one byte each.
    pub codes: B::View<'a>,
    /// Where the codes' rows lie.
    pub layout: RowLayout,
    /// The scales, \[T, G\].
    pub scales: B::View<'a>,
    /// Where the scales lie.
    pub scale_layout: ScaleLayout,
}

/// A matrix of [`crate::E4M3`] codes with their scales, to be written.
pub struct QuantizedMut<'a, B: Backend> {
    /// The codes, \[T, d\], one byte each.
    pub codes: B::ViewMut<'a>,
    /// Where the codes' rows lie.
    pub layout: RowLayout,
    /// The scales, \[T, G\].
    pub scales: B::ViewMut<'a>,
    /// Where the scales lie.
    pub scale_layout: ScaleLayout,
}

impl<B: Backend> Clone for Quantized<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for Quantized<'_, B> {}

impl<B: Backend> fmt::Debug for Quantized<'_, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "codes {}, {}", self.layout, self.scale_layout)
    }
}

impl<B: Backend> fmt::Debug for QuantizedMut<'_, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "codes {}, {}", self.layout, self.scale_layout)
    }
}

impl<B: Backend> QuantizedMut<'_, B> {
    /// The same matrix, borrowed for one call.
    pub fn reborrow(&mut self) -> QuantizedMut<'_, B> {
        QuantizedMut {
            codes: B::reborrow(&mut self.codes),
            layout: self.layout,
            scales: B::reborrow(&mut self.scales),
            scale_layout: self.scale_layout,
        }
    }

    /// The same matrix, to be read.
    pub fn as_quantized(&self) -> Quantized<'_, B> {
        Quantized {
            codes: B::as_view(&self.codes),
            layout: self.layout,
            scales: B::as_view(&self.scales),
            scale_layout: self.scale_layout,
        }
    }
}
