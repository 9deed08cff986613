use std::sync::{Arc, Mutex, PoisonError};

use rayon::ThreadPool;
use swiglu_core::{
    ActAndMul, ActShape, Backend, DType, Element, GatedActivation, GatedMatmul, HostBuffer,
    HostWeight, Layout, Matmul, QuantizedMatmul, Result, RowLayout, Rows, RowsMut, Support, Tensor,
    TensorMut, bf16, f16,
};

use crate::activation::{self, Lanes};
use crate::product::{self, Activated, Output, Rounded};
use crate::weight::PackedWeight;
use crate::{Error, InstructionSet};

/// Runs an activation on rows in slices, with the fastest instruction set of this machine, in the
/// rayon pool that it is called from: input \[T, 2d\], output \[T, d\].
///
/// # Errors
/// As [`ActShape::new`].
pub fn act_and_mul<T: Element>(
    op: &GatedActivation,
    input: Rows<'_, T>,
    output: RowsMut<'_, T>,
) -> Result<()> {
    fn typed<T: Element, L: Lanes>(
        op: &GatedActivation,
        input: Rows<'_, T>,
        output: RowsMut<'_, T>,
    ) {
        let from = (bytemuck::cast_slice::<T, L>(input.data()), *input.layout());
        let (output, layout) = output.into_parts();
        let to = (bytemuck::cast_slice_mut::<T, L>(output), layout);
        activation::act_and_mul(InstructionSet::detect(), op, from, to);
    }
    ActShape::new((T::DTYPE, input.layout()), (T::DTYPE, output.layout()))?;
    match T::DTYPE {
        DType::F16 => typed::<T, f16>(op, input, output),
        DType::BF16 => typed::<T, bf16>(op, input, output),
        // No `Element` is storage only.
        DType::F32 | DType::F8E4M3 | DType::E8M0 => typed::<T, f32>(op, input, output),
    }
    Ok(())
}

/// The CPU as a backend. Calls run at once and return when they are done.
///
/// Activations allocate nothing. A product widens at most 256 rows of its input at a time to f32, in
/// memory that the backend keeps and uses again, so that only the first of its size allocates.
#[derive(Debug)]
pub struct CpuBackend {
    set: InstructionSet,
    pool: Option<Arc<ThreadPool>>,
    /// Inputs of products as f32, one for each call under way.
    widened: Mutex<Vec<Vec<f32>>>,
}

impl Default for CpuBackend {
    fn default() -> Self {
        Self::new()
    }
}

impl CpuBackend {
    /// The fastest instruction set of this machine, in the pool that calls are made from.
    pub fn new() -> Self {
        Self {
            set: InstructionSet::detect(),
            pool: None,
            widened: Mutex::default(),
        }
    }

    /// This instruction set.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where the machine lacks it.
    pub fn with_instruction_set(set: InstructionSet) -> Result<Self, Error> {
        if set.available() {
            Ok(Self { set, ..Self::new() })
        } else {
            Err(Error::Unavailable(set))
        }
    }

    /// The same, with calls run in `pool`.
    #[must_use]
    pub fn with_pool(self, pool: Arc<ThreadPool>) -> Self {
        Self {
            pool: Some(pool),
            ..self
        }
    }

    /// The instruction set that kernels use.
    pub const fn instruction_set(&self) -> InstructionSet {
        self.set
    }

    fn in_pool<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match &self.pool {
            Some(pool) => pool.install(work),
            None => work(),
        }
    }

    fn act<T: Lanes>(
        &self,
        op: &GatedActivation,
        input: &Tensor<'_, HostBuffer>,
        output: TensorMut<'_, HostBuffer>,
    ) {
        let from = (input.buffer.typed::<T>(), input.layout);
        let layout = output.layout;
        let to = (output.buffer.typed_mut::<T>(), layout);
        self.for_rows(&layout, || activation::act_and_mul(self.set, op, from, to));
    }

    /// Runs work on rows of this layout in the pool. A small call stays on its thread even where
    /// the backend has a pool of its own.
    pub(crate) fn for_rows(&self, layout: &RowLayout, work: impl FnOnce() + Send) {
        if activation::is_small(layout) {
            work();
        } else {
            self.in_pool(work);
        }
    }

    /// Runs a product on the rows of `x`, which may be of any of the three types.
    fn product<O: Output>(&self, x: &Tensor<'_, HostBuffer>, weight: &PackedWeight, output: &O) {
        let kept = || self.widened.lock().unwrap_or_else(PoisonError::into_inner);
        let mut widened = kept().pop().unwrap_or_default();
        self.in_pool(|| match x.dtype {
            DType::F16 => self.multiply::<f16, O>(x, weight, output, &mut widened),
            DType::BF16 => self.multiply::<bf16, O>(x, weight, output, &mut widened),
            DType::F32 | DType::F8E4M3 | DType::E8M0 => {
                self.multiply::<f32, O>(x, weight, output, &mut widened);
            }
        });
        kept().push(widened);
    }

    fn multiply<X: Lanes, O: Output>(
        &self,
        x: &Tensor<'_, HostBuffer>,
        weight: &PackedWeight,
        output: &O,
        widened: &mut Vec<f32>,
    ) {
        let x = (x.buffer.typed::<X>(), x.layout);
        product::multiply(self.set, x, weight, output, widened);
    }

    fn rounded<T: Lanes>(
        &self,
        x: &Tensor<'_, HostBuffer>,
        weight: &PackedWeight,
        y: TensorMut<'_, HostBuffer>,
    ) {
        let rounded = Rounded::new((y.buffer.typed_mut::<T>(), y.layout));
        self.product(x, weight, &rounded);
    }

    fn activated<T: Lanes>(
        &self,
        op: &GatedActivation,
        x: &Tensor<'_, HostBuffer>,
        weight: &PackedWeight,
        act: TensorMut<'_, HostBuffer>,
    ) {
        let activated = Activated::new(op, (act.buffer.typed_mut::<T>(), act.layout));
        self.product(x, weight, &activated);
    }
}

impl Backend for CpuBackend {
    /// The pool that calls run in; `None` for the one they are made from.
    type Device = Option<Arc<ThreadPool>>;
    type Buffer = HostBuffer;

    fn platform(&self) -> &'static str {
        crate::PLATFORM
    }

    fn description(&self) -> String {
        let available = InstructionSet::ALL.into_iter().filter(|s| s.available());
        let names: Vec<_> = available.map(InstructionSet::name).collect();
        let threads = self
            .pool
            .as_ref()
            .map_or_else(rayon::current_num_threads, |p| p.current_num_threads());
        let (set, names) = (self.set, names.join(", "));
        format!("{set} of {names}; {threads} threads")
    }

    fn device(&self) -> &Self::Device {
        &self.pool
    }

    fn supports(&self, _op: &GatedActivation, dtype: DType) -> Support {
        if DType::COMPUTE.contains(&dtype) {
            Support::Native
        } else {
            Support::No(format!("{dtype} is storage only"))
        }
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

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
}

impl ActAndMul for CpuBackend {
    fn act_and_mul(
        &self,
        op: &GatedActivation,
        input: Tensor<'_, HostBuffer>,
        output: TensorMut<'_, HostBuffer>,
    ) -> Result<()> {
        self.check_act(&input, &output)?;
        match input.dtype {
            DType::F16 => self.act::<f16>(op, &input, output),
            DType::BF16 => self.act::<bf16>(op, &input, output),
            // The check has refused what is storage only.
            DType::F32 | DType::F8E4M3 | DType::E8M0 => self.act::<f32>(op, &input, output),
        }
        Ok(())
    }
}

impl Matmul for CpuBackend {
    type Weight = PackedWeight;

    fn supports_weight(&self, dtype: DType) -> Support {
        match dtype {
            DType::F32 | DType::F16 | DType::BF16 | DType::F8E4M3 => Support::Native,
            DType::E8M0 => Support::No("f8_e8m0 holds scales only".to_owned()),
        }
    }

    fn load_weight(&self, parts: &[HostWeight<'_>]) -> Result<PackedWeight> {
        self.in_pool(|| PackedWeight::stacked(parts))
    }

    fn weight_shape(&self, weight: &PackedWeight) -> [usize; 2] {
        weight.shape()
    }

    fn weight_bytes(&self, weight: &PackedWeight) -> usize {
        weight.bytes()
    }

    fn matmul(
        &self,
        x: Tensor<'_, HostBuffer>,
        weight: &PackedWeight,
        y: TensorMut<'_, HostBuffer>,
    ) -> Result<()> {
        self.check_matmul(&x, weight, &y)?;
        match y.dtype {
            DType::F16 => self.rounded::<f16>(&x, weight, y),
            DType::BF16 => self.rounded::<bf16>(&x, weight, y),
            DType::F32 | DType::F8E4M3 | DType::E8M0 => self.rounded::<f32>(&x, weight, y),
        }
        Ok(())
    }
}

impl QuantizedMatmul for CpuBackend {}

impl GatedMatmul for CpuBackend {
    fn load_gate_up(&self, gate: HostWeight<'_>, up: HostWeight<'_>) -> Result<PackedWeight> {
        self.in_pool(|| PackedWeight::gate_up(gate, up))
    }

    /// `gate_up` is left unwritten where the weight came from [`Self::load_gate_up`] and the
    /// activation's layout is not interleaved: its results stay in registers and caches.
    fn matmul_act_and_mul(
        &self,
        op: &GatedActivation,
        x: Tensor<'_, HostBuffer>,
        weight: &PackedWeight,
        mut gate_up: TensorMut<'_, HostBuffer>,
        act: TensorMut<'_, HostBuffer>,
    ) -> Result<()> {
        if !weight.is_gated() || op.layout() != Layout::Concatenated {
            self.matmul(x, weight, gate_up.reborrow())?;
            return self.act_and_mul(op, gate_up.as_ref(), act);
        }
        self.check_matmul(&x, weight, &gate_up)?;
        self.check_act(&gate_up.as_ref(), &act)?;
        match act.dtype {
            DType::F16 => self.activated::<f16>(op, &x, weight, act),
            DType::BF16 => self.activated::<bf16>(op, &x, weight, act),
            DType::F32 | DType::F8E4M3 | DType::E8M0 => self.activated::<f32>(op, &x, weight, act),
        }
        Ok(())
    }
}
