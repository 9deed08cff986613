//! A toy backend on plain threads, as its author would write it outside of swiglu's workspace:
//! [`Threads`] implements the traits of `swiglu-core`, [`register`] hands it to the facade, and
//! `tests/suite.rs` proves it with one line.
//!
//! It activates rows on several threads by the formulas of the reference. Products it leaves to
//! the reference, and it does not quantize: both say so in `supports_weight` and `supports_quant`.
#![forbid(unsafe_code)]

use std::num::NonZero;
use std::sync::Arc;
use std::thread;

use swiglu_core::reference::{self, Reference, ReferenceWeight};
use swiglu_core::{
    ActAndMul, ActAndMulQuant, ActShape, Backend, DType, Element, Error, GatedActivation,
    GatedMatmul, HostBuffer, HostWeight, Matmul, QuantizedMatmul, Registry, Result, RowLayout,
    Support, Tensor, TensorMut, bf16, f16,
};

/// The platform's name, for `SWIGLU_PLATFORM` and the registry.
pub const NAME: &str = "threads";

/// Host memory and a number of threads.
#[derive(Clone, Copy, Debug)]
pub struct Threads {
    count: NonZero<usize>,
}

impl Threads {
    /// As many threads as the machine runs at once.
    ///
    /// # Errors
    /// The system does not say how many those are.
    pub fn open() -> std::result::Result<Self, String> {
        let count = thread::available_parallelism().map_err(|error| error.to_string())?;
        Ok(Self::with_count(count))
    }

    /// That many threads.
    pub const fn with_count(count: NonZero<usize>) -> Self {
        Self { count }
    }
}

/// Makes the platform known: it is tried before the built-in ones.
pub fn register(registry: &mut Registry<dyn swiglu::AnyBackend>) {
    registry.register(NAME, || Ok(Arc::new(Threads::open()?)));
}

impl Backend for Threads {
    type Device = NonZero<usize>;
    type Buffer = HostBuffer;

    fn platform(&self) -> &'static str {
        NAME
    }

    fn description(&self) -> String {
        format!("{} threads of the standard library", self.count)
    }

    fn device(&self) -> &NonZero<usize> {
        &self.count
    }

    fn supports(&self, _: &GatedActivation, dtype: DType) -> Support {
        if DType::COMPUTE.contains(&dtype) {
            return Support::Native;
        }
        Support::No(format!("{dtype} is storage only"))
    }

    fn alloc(&self, bytes: usize) -> Result<HostBuffer> {
        HostBuffer::zeroed(bytes)
    }

    fn len(&self, buffer: &HostBuffer) -> usize {
        buffer.len()
    }

    fn upload(&self, buffer: &mut HostBuffer, data: &[u8]) -> Result<()> {
        buffer.write(data)
    }

    fn download(&self, buffer: &HostBuffer, data: &mut [u8]) -> Result<()> {
        buffer.read(data)
    }

    /// Calls are done when they return.
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
}

impl Threads {
    /// Each thread takes rows one after another; the last may take fewer.
    fn activate<T: Element>(
        &self,
        op: &GatedActivation,
        shape: ActShape,
        (x, from): (&[T], RowLayout),
        (y, to): (&mut [T], RowLayout),
    ) {
        let ActShape { rows, d } = shape;
        if rows == 0 {
            return;
        }
        // The rows of the output with their gaps; behind the last there may be none.
        let end = (to.offset + rows * to.stride).min(y.len());
        let y = &mut y[to.offset..end];
        let share = rows.div_ceil(self.count.get());
        thread::scope(|scope| {
            for (i, y) in y.chunks_mut(share * to.stride).enumerate() {
                scope.spawn(move || {
                    for (t, y) in y.chunks_mut(to.stride).take(share).enumerate() {
                        let row = &x[from.row(i * share + t)];
                        for (j, y) in y[..d].iter_mut().enumerate() {
                            let (gate, up) = op.positions(d, j);
                            *y = reference::gated(op, row[gate], row[up]);
                        }
                    }
                });
            }
        });
    }
}

impl ActAndMul for Threads {
    fn act_and_mul(
        &self,
        op: &GatedActivation,
        input: Tensor<'_, HostBuffer>,
        output: TensorMut<'_, HostBuffer>,
    ) -> Result<()> {
        let shape = self.check_act(&input, &output)?;
        let (from, to) = (input.layout, output.layout);
        let (x, y) = (input.buffer, output.buffer);
        match input.dtype {
            DType::F32 => self.activate::<f32>(op, shape, (x.typed(), from), (y.typed_mut(), to)),
            DType::F16 => self.activate::<f16>(op, shape, (x.typed(), from), (y.typed_mut(), to)),
            DType::BF16 => self.activate::<bf16>(op, shape, (x.typed(), from), (y.typed_mut(), to)),
            other => return Err(Error::argument("input", "f32, f16 or bf16", other)),
        }
        Ok(())
    }
}

/// Products: the reference's, as this backend's memory is the reference's too.
impl Matmul for Threads {
    type Weight = ReferenceWeight;

    fn supports_weight(&self, dtype: DType) -> Support {
        match Reference.supports_weight(dtype) {
            Support::Native => Support::Emulated("by the scalar reference".to_owned()),
            other => other,
        }
    }

    fn load_weight(&self, parts: &[HostWeight<'_>]) -> Result<ReferenceWeight> {
        Reference.load_weight(parts)
    }

    fn weight_shape(&self, weight: &ReferenceWeight) -> [usize; 2] {
        Reference.weight_shape(weight)
    }

    fn weight_bytes(&self, weight: &ReferenceWeight) -> usize {
        Reference.weight_bytes(weight)
    }

    fn matmul(
        &self,
        x: Tensor<'_, HostBuffer>,
        weight: &ReferenceWeight,
        y: TensorMut<'_, HostBuffer>,
    ) -> Result<()> {
        Reference.matmul(x, weight, y)
    }
}

impl ActAndMulQuant for Threads {}
impl QuantizedMatmul for Threads {}
impl GatedMatmul for Threads {}
