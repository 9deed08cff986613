use std::sync::Arc;

use swiglu_core::{
    ActShape, DType, Error, GatedActivation, GatedMatmul, QuantOptions, Quantization, QuantizedMut,
    Result, ScaleLayout, ScaleOrder, ScalesMut, Tensor, TensorMut,
};

/// An activation with its matrices on a device, to be run again and again. See
/// [`crate::AnyBackend::load_act`].
pub trait AnyAct: Send {
    /// Enqueues a pass over the next copy of the input, in turn.
    ///
    /// # Errors
    /// As [`swiglu_core::ActAndMul::act_and_mul`].
    fn enqueue(&mut self) -> Result<()>;

    /// Waits for what was enqueued.
    ///
    /// # Errors
    /// A failure of the device.
    fn wait(&mut self) -> Result<()>;

    /// The bytes that a pass reads and those that it writes.
    fn bytes(&self) -> [usize; 2];
}

/// Where the scales of `shape` lie in host memory.
pub(super) const fn scales(quant: &Quantization, shape: ActShape) -> ScaleLayout {
    let groups = quant.groups(shape.d);
    ScaleLayout::contiguous(quant.format(), ScaleOrder::RowMajor, shape.rows, groups)
}

/// The memory of one pass.
struct Matrices<Buffer> {
    input: Buffer,
    output: Buffer,
    scales: Option<Buffer>,
}

pub(super) struct Act<B: GatedMatmul> {
    backend: Arc<B>,
    op: GatedActivation,
    quant: Option<Quantization>,
    dtype: DType,
    shape: ActShape,
    copies: Vec<Matrices<B::Buffer>>,
    next: usize,
}

impl<B: GatedMatmul> Act<B> {
    pub(super) fn new(
        backend: Arc<B>,
        op: &GatedActivation,
        quant: Option<&Quantization>,
        dtype: DType,
        shape: ActShape,
        input: &[u8],
        copies: usize,
    ) -> Result<Self> {
        if copies == 0 {
            return Err(Error::argument("copies", "at least 1", copies));
        }
        let written = match quant {
            Some(_) => DType::F8E4M3,
            None => dtype,
        };
        let output = shape
            .rows
            .checked_mul(shape.d)
            .and_then(|n| n.checked_mul(written.size()))
            .ok_or_else(|| Error::argument("shape", "an output in range", shape.rows))?;
        let scales = quant.map(|q| scales(q, shape).bytes()).transpose()?;
        let matrices = |_| {
            let mut matrices = Matrices {
                input: backend.alloc(input.len())?,
                output: backend.alloc(output)?,
                scales: scales.map(|bytes| backend.alloc(bytes)).transpose()?,
            };
            backend.upload(&mut matrices.input, input)?;
            Ok(matrices)
        };
        Ok(Self {
            copies: (0..copies).map(matrices).collect::<Result<_>>()?,
            op: *op,
            quant: quant.copied(),
            dtype,
            shape,
            next: 0,
            backend,
        })
    }
}

impl<B: GatedMatmul> AnyAct for Act<B> {
    fn enqueue(&mut self) -> Result<()> {
        let ActShape { rows, d } = self.shape;
        let copies = self.copies.len();
        let copy = &mut self.copies[self.next];
        self.next = (self.next + 1) % copies;
        let input = Tensor::contiguous(&copy.input, self.dtype, rows, 2 * d);
        match (&self.quant, &mut copy.scales) {
            (Some(quant), Some(buffer)) => {
                let output = QuantizedMut {
                    codes: TensorMut::contiguous(&mut copy.output, DType::F8E4M3, rows, d),
                    scales: ScalesMut {
                        buffer,
                        layout: scales(quant, self.shape),
                    },
                };
                let options = QuantOptions::default();
                self.backend
                    .act_and_mul_quant(&self.op, quant, input, output, options)
            }
            _ => {
                let output = TensorMut::contiguous(&mut copy.output, self.dtype, rows, d);
                self.backend.act_and_mul(&self.op, input, output)
            }
        }
    }

    fn wait(&mut self) -> Result<()> {
        self.backend.synchronize()
    }

    fn bytes(&self) -> [usize; 2] {
        let ActShape { rows, d } = self.shape;
        let written = match &self.quant {
            Some(q) => rows * d + rows * q.groups(d) * q.format().size(),
            None => rows * d * self.dtype.size(),
        };
        [2 * rows * d * self.dtype.size(), written]
    }
}
