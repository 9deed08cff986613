use std::fmt;

use crate::{ActShape, DType, GatedActivation, HostWeight, Result, RowLayout};

mod quant;

pub use quant::{ActAndMulQuant, Batch, QuantOptions, Quantized, QuantizedMatmul, QuantizedMut};

/// Whether a platform runs an operation, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Support {
    /// With its own implementation.
    Native,
    /// With the right results by a detour, for the reason given.
    Emulated(String),
    /// Not at all, for the reason given.
    No(String),
}

impl Support {
    /// Whether the operation runs.
    pub const fn runs(&self) -> bool {
        !matches!(self, Self::No(_))
    }
}

impl fmt::Display for Support {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Native => f.write_str("native"),
            Self::Emulated(reason) => write!(f, "emulated: {reason}"),
            Self::No(reason) => write!(f, "no: {reason}"),
        }
    }
}

/// A matrix in a backend's memory, to be read.
#[derive(Debug)]
pub struct Tensor<'a, Buffer> {
    /// The memory.
    pub buffer: &'a Buffer,
    /// The elements' type.
    pub dtype: DType,
    /// Where the rows lie, in elements.
    pub layout: RowLayout,
}

/// A matrix in a backend's memory, to be written. The exclusive borrow rules out overlap.
#[derive(Debug)]
pub struct TensorMut<'a, Buffer> {
    /// The memory.
    pub buffer: &'a mut Buffer,
    /// The elements' type.
    pub dtype: DType,
    /// Where the rows lie, in elements.
    pub layout: RowLayout,
}

impl<'a, Buffer> Tensor<'a, Buffer> {
    /// `rows` rows of `cols` elements from the start of `buffer`.
    pub const fn contiguous(buffer: &'a Buffer, dtype: DType, rows: usize, cols: usize) -> Self {
        Self {
            buffer,
            dtype,
            layout: RowLayout::contiguous(rows, cols),
        }
    }
}

impl<'a, Buffer> TensorMut<'a, Buffer> {
    /// `rows` rows of `cols` elements from the start of `buffer`.
    pub const fn contiguous(
        buffer: &'a mut Buffer,
        dtype: DType,
        rows: usize,
        cols: usize,
    ) -> Self {
        Self {
            buffer,
            dtype,
            layout: RowLayout::contiguous(rows, cols),
        }
    }

    /// The same matrix, borrowed for one call.
    pub const fn reborrow(&mut self) -> TensorMut<'_, Buffer> {
        TensorMut {
            buffer: self.buffer,
            dtype: self.dtype,
            layout: self.layout,
        }
    }

    /// The same matrix, to be read.
    pub const fn as_ref(&self) -> Tensor<'_, Buffer> {
        Tensor {
            buffer: self.buffer,
            dtype: self.dtype,
            layout: self.layout,
        }
    }
}

/// A platform on one device: its memory, and what it can run.
///
/// Calls enqueue. None allocates, synchronises or compiles unless its documentation says so;
/// results are there for the host after [`Self::download`] or [`Self::synchronize`].
pub trait Backend: Send + Sync + 'static {
    /// What the caller brings: a thread pool, a CUDA stream, a wgpu device and queue.
    type Device;
    /// Memory of the device: untyped bytes, aligned for every element type.
    type Buffer: Send + Sync + 'static;

    /// The platform's name, such as `cpu`.
    fn platform(&self) -> &'static str;

    /// The device and what of it is used, on one line.
    fn description(&self) -> String;

    /// The device that this backend was built on.
    fn device(&self) -> &Self::Device;

    /// Whether this activation runs in this type.
    fn supports(&self, op: &GatedActivation, dtype: DType) -> Support;

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

    /// Waits for everything that was enqueued.
    ///
    /// # Errors
    /// A failure of the device.
    fn synchronize(&self) -> Result<()>;

    /// Checks a call of [`ActAndMul::act_and_mul`]: shapes, types, strides and buffer lengths.
    ///
    /// # Errors
    /// As [`ActShape::new`] and [`RowLayout::check`].
    fn check_act(
        &self,
        input: &Tensor<'_, Self::Buffer>,
        output: &TensorMut<'_, Self::Buffer>,
    ) -> Result<ActShape> {
        let shape = ActShape::new((input.dtype, &input.layout), (output.dtype, &output.layout))?;
        let elements = |buffer| self.len(buffer) / input.dtype.size();
        input.layout.check("input", elements(input.buffer))?;
        output.layout.check("output", elements(output.buffer))?;
        Ok(shape)
    }
}

/// A backend that runs gated activations.
pub trait ActAndMul: Backend {
    /// Enqueues `output[t, j] = op(input[t, ..], j)`: input \[T, 2d\], output \[T, d\], of one type.
    ///
    /// # Errors
    /// As [`Backend::check_act`], [`crate::Error::Unsupported`] where [`Backend::supports`] says no,
    /// or a failure of the device.
    fn act_and_mul(
        &self,
        op: &GatedActivation,
        input: Tensor<'_, Self::Buffer>,
        output: TensorMut<'_, Self::Buffer>,
    ) -> Result<()>;
}

/// A backend that multiplies by a weight.
pub trait Matmul: Backend {
    /// A weight in the form that the backend multiplies with.
    type Weight: Send + Sync + 'static;

    /// Whether products run with weights stored in this type.
    fn supports_weight(&self, dtype: DType) -> Support;

    /// Brings a weight to the device, in the form that products want. `parts` are stacked: the
    /// rows of the first come first. This allocates and may take long.
    ///
    /// # Errors
    /// No parts, parts of different width, type or block, a type that the backend does not
    /// support, or a failure of the device.
    fn load_weight(&self, parts: &[HostWeight<'_>]) -> Result<Self::Weight>;

    /// The outputs and inputs of a weight, [N, K].
    fn weight_shape(&self, weight: &Self::Weight) -> [usize; 2];

    /// The bytes that a product reads for this weight.
    fn weight_bytes(&self, weight: &Self::Weight) -> usize;

    /// Enqueues `y = x · wᵀ`, accumulated in f32 and rounded once: x \[T, K\], w \[N, K\], y \[T, N\].
    ///
    /// # Errors
    /// As [`Matmul::check_matmul`], or a failure of the device.
    fn matmul(
        &self,
        x: Tensor<'_, Self::Buffer>,
        weight: &Self::Weight,
        y: TensorMut<'_, Self::Buffer>,
    ) -> Result<()>;

    /// Checks a call of [`Matmul::matmul`]: shapes, types, strides and buffer lengths.
    ///
    /// # Errors
    /// An argument's name with what was expected of it.
    fn check_matmul(
        &self,
        x: &Tensor<'_, Self::Buffer>,
        weight: &Self::Weight,
        y: &TensorMut<'_, Self::Buffer>,
    ) -> Result<()> {
        let [n, k] = self.weight_shape(weight);
        for (argument, dtype) in [("x", x.dtype), ("y", y.dtype)] {
            if !DType::COMPUTE.contains(&dtype) {
                return Err(crate::Error::argument(argument, "f32, f16 or bf16", dtype));
            }
        }
        for (argument, cols, layout) in [("x", k, &x.layout), ("y", n, &y.layout)] {
            if layout.cols != cols || layout.rows != x.layout.rows {
                let expected = format!("shape [{}, {cols}]", x.layout.rows);
                let got = format!("[{}, {}]", layout.rows, layout.cols);
                return Err(crate::Error::argument(argument, expected, got));
            }
        }
        x.layout.check("x", self.len(x.buffer) / x.dtype.size())?;
        y.layout.check("y", self.len(y.buffer) / y.dtype.size())
    }
}

/// A backend that runs the gated half of an MLP: the product with the merged gate and up weight,
/// then the activation.
pub trait GatedMatmul: QuantizedMatmul {
    /// Brings the gate and up weights, each [I, H], to the device as one of [2I, H], gate rows first.
    ///
    /// # Errors
    /// As [`Matmul::load_weight`].
    fn load_gate_up(&self, gate: HostWeight<'_>, up: HostWeight<'_>) -> Result<Self::Weight> {
        self.load_weight(&[gate, up])
    }

    /// Enqueues `gate_up = R(x · wᵀ)`, then `act = op(gate_up)`: x \[T, H\], gate_up \[T, 2I\],
    /// act \[T, I\], R the rounding to gate_up's type. A backend that fuses the two applies R all
    /// the same and may leave `gate_up` unwritten.
    ///
    /// # Errors
    /// As [`Matmul::matmul`] and [`ActAndMul::act_and_mul`].
    fn matmul_act_and_mul(
        &self,
        op: &GatedActivation,
        x: Tensor<'_, Self::Buffer>,
        weight: &Self::Weight,
        mut gate_up: TensorMut<'_, Self::Buffer>,
        act: TensorMut<'_, Self::Buffer>,
    ) -> Result<()> {
        self.matmul(x, weight, gate_up.reborrow())?;
        self.act_and_mul(op, gate_up.as_ref(), act)
    }
}
