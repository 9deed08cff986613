use std::sync::{Arc, Mutex, PoisonError};

use rayon::ThreadPool;
use swiglu_core::{
    Accumulation, Accuracy, ActAndMul, ActShape, Backend, Error, Float, GateUp, GatedActivation,
    HostWeight, Layout, Matmul, Request, Result, RowLayout, Shape, Support, Tensor, TensorMut,
    WeightFormat, check, with_float,
};

use crate::activation::{self, ActivationPlan, GateUpRows, KnownActivation};
use crate::element::VectorElement;
use crate::matmul::{self, Activated, Epilogue, Input, MatmulPlan, Resources, Rounded};
use crate::moe::Scratch;
use crate::weight::{PackedShape, PackedWeight, UNKNOWN_FORMAT};
use crate::{InstructionSet, Settings};

mod moe;
mod quantize;

/// Runs an activation with the fastest instruction set of this machine, in the rayon pool that it is
/// called from: gates and ups \[T, 2d\] in one matrix or \[T, d\] each in two, output \[T, d\].
///
/// ```
/// use swiglu_core::{GateUp, GatedActivation, RowLayout, Tensor, TensorMut};
/// # fn main() -> swiglu_core::Result<()> {
/// // What two linear layers gave, one row of d = 2 each.
/// let (gates, ups, row) = ([0.0_f32, 20.0], [7.0_f32, 3.0], RowLayout::contiguous(1, 2));
/// let mut output = [1.0_f32; 2];
/// let (gate, up) = (Tensor::from_slice(&gates, row), Tensor::from_slice(&ups, row));
/// let to = TensorMut::from_slice(&mut output, row);
/// swiglu_cpu::act_and_mul(&GatedActivation::silu_and_mul(), GateUp::Split { gate, up }, to)?;
/// assert_eq!(output, [0.0, 60.0]);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// As [`CpuBackend`]'s [`ActAndMul::act_and_mul`].
pub fn act_and_mul(
    op: &GatedActivation,
    input: GateUp<'_, CpuBackend>,
    output: TensorMut<'_, CpuBackend>,
) -> Result<()> {
    CpuBackend::new().act_and_mul(op, input, output)
}

/// The CPU as a backend. Its memory is the host's: views are slices of bytes, aligned to their
/// elements. Calls run at once and return when they are done.
///
/// Activations allocate nothing. A matmul copies at most 256 rows of its input at a time, as f32 or as
/// a matrix unit reads them, into memory that the backend keeps and uses again, so that only the
/// first of its size allocates.
#[derive(Debug)]
pub struct CpuBackend {
    set: InstructionSet,
    settings: Settings,
    accumulation: Accumulation,
    pool: Option<Arc<ThreadPool>>,
    /// Memory for inputs of matmuls, one for each call under way.
    scratch: Mutex<Vec<Vec<f32>>>,
}

impl Default for CpuBackend {
    fn default() -> Self {
        Self::new()
    }
}

impl CpuBackend {
    /// The fastest instruction set of this machine, in the pool that calls are made from, or on threads
    /// of its own.
    pub fn new() -> Self {
        Self {
            set: InstructionSet::detect(),
            settings: Settings::default(),
            accumulation: Accumulation::default(),
            pool: None,
            scratch: Mutex::default(),
        }
    }

    /// This instruction set.
    ///
    /// # Errors
    /// [`crate::Error::Unavailable`] where the machine lacks it.
    pub fn with_instruction_set(set: InstructionSet) -> Result<Self, crate::Error> {
        if set.available() {
            Ok(Self { set, ..Self::new() })
        } else {
            Err(crate::Error::Unavailable(set))
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

    /// The same, with these sizes at which calls change their way.
    #[must_use]
    pub fn with_settings(self, settings: Settings) -> Self {
        Self { settings, ..self }
    }

    /// The same, with sums of matmuls in this class or a more exact one. By default a matrix unit may
    /// run them where the instruction set has one and it is faster: [`Accumulation::MatrixUnit`].
    ///
    /// ```
    /// use swiglu_core::{Accumulation, Backend};
    /// let backend = swiglu_cpu::CpuBackend::new().with_accumulation(Accumulation::Ordered);
    /// assert_eq!(backend.accuracy().accumulation, Accumulation::Ordered);
    /// ```
    #[must_use]
    pub fn with_accumulation(self, accumulation: Accumulation) -> Self {
        Self {
            accumulation,
            ..self
        }
    }

    /// The instruction set that kernels use.
    pub const fn instruction_set(&self) -> InstructionSet {
        self.set
    }

    /// The pool that calls run in; `None` for the one that they are made from.
    pub const fn pool(&self) -> Option<&Arc<ThreadPool>> {
        self.pool.as_ref()
    }

    fn in_pool<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match &self.pool {
            Some(pool) => pool.install(work),
            None => work(),
        }
    }

    /// Runs work in the pool, or where the caller's thread does all of it, on that.
    fn run(&self, inline: bool, work: impl FnOnce() + Send) {
        if inline {
            work();
        } else {
            self.in_pool(work);
        }
    }

    fn threads(&self) -> usize {
        let pool = self.pool.as_ref();
        pool.map_or_else(rayon::current_num_threads, |p| p.current_num_threads())
    }

    fn activation_plan(&self, shape: [usize; 2], float: Float) -> ActivationPlan {
        ActivationPlan::new(&self.settings, self.set, shape, float)
    }

    fn resources(&self) -> Resources {
        Resources {
            settings: self.settings,
            set: self.set,
            threads: self.threads(),
            accumulation: self.accumulation,
        }
    }

    fn matmul_plan(&self, rows: usize, x: Float, weight: &PackedShape) -> MatmulPlan {
        MatmulPlan::new(&self.resources(), rows, x, weight)
    }

    /// Runs an activation whose arguments passed their check.
    fn activate(
        &self,
        activation: &KnownActivation,
        input: &GateUp<'_, Self>,
        output: TensorMut<'_, Self>,
    ) -> Result<()> {
        let float = input.float();
        with_float!(float, T => {
            let (input, to) = (GateUpRows::<T>::new(input)?, rows_mut::<T>("output", output)?);
            let plan = self.activation_plan([to.1.rows, to.1.cols], float);
            self.run(plan.split.inline, || activation::act_and_mul(&plan, activation, &input, to));
        });
        Ok(())
    }

    /// Runs a matmul whose arguments passed their check.
    fn multiply(
        &self,
        x: &Tensor<'_, Self>,
        weight: &PackedWeight,
        epilogue: &dyn Epilogue,
    ) -> Result<()> {
        let input = Input::new(x)?;
        let plan = self.matmul_plan(x.layout.rows, x.float, weight.shape());
        let kept = || self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let mut scratch = kept().pop().unwrap_or_default();
        self.run(plan.inline, || {
            matmul::multiply(&plan, &input, weight, epilogue, &mut scratch);
        });
        kept().push(scratch);
        Ok(())
    }

    /// The same with sums rounded to y's type.
    fn multiply_and_round(
        &self,
        argument: &'static str,
        x: &Tensor<'_, Self>,
        weight: &PackedWeight,
        y: TensorMut<'_, Self>,
    ) -> Result<()> {
        with_float!(y.float, T => {
            let y = rows_mut::<T>(argument, y)?;
            self.multiply(x, weight, &Rounded::new(y))
        })
    }
}

/// The elements of a matrix to be written, and where its rows lie.
fn rows_mut<'a, T: VectorElement>(
    argument: &'static str,
    matrix: TensorMut<'a, CpuBackend>,
) -> Result<(&'a mut [T], RowLayout)> {
    let layout = matrix.layout;
    Ok((matrix.into_typed(argument)?, layout))
}

/// An activation, or the error of a call of one that is not known here.
fn known(op: &GatedActivation) -> Result<KnownActivation> {
    KnownActivation::new(op).ok_or_else(|| Error::unsupported(crate::PLATFORM, op, UNKNOWN_OP))
}

/// Why an activation is refused that a later core may describe.
const UNKNOWN_OP: &str = "this backend does not know the activation";

fn supports_op(op: &GatedActivation) -> Support {
    match KnownActivation::new(op) {
        Some(_) => Support::Native,
        None => Support::No(UNKNOWN_OP.to_owned()),
    }
}

fn supports_weight(format: WeightFormat) -> Support {
    match PackedShape::new([1, 1], format, false) {
        Some(_) => Support::Native,
        None => Support::No(UNKNOWN_FORMAT.to_owned()),
    }
}

/// Whether the activation comes before sums leave the caches, in a weight of gates and ups.
fn is_fused(op: &GatedActivation) -> bool {
    op.layout() == Layout::Concatenated
}

impl Backend for CpuBackend {
    swiglu_core::host_memory!();

    fn platform(&self) -> &'static str {
        crate::PLATFORM
    }

    fn description(&self) -> String {
        let available = InstructionSet::ALL.into_iter().filter(|s| s.available());
        let names: Vec<_> = available.map(InstructionSet::name).collect();
        let threads = self.threads();
        let (set, names) = (self.set, names.join(", "));
        format!("{set} of {names}; {threads} threads")
    }

    fn accuracy(&self) -> Accuracy {
        let accumulation = match self.resources().matrix_unit() {
            Some(_) => Accumulation::MatrixUnit,
            None => Accumulation::Ordered,
        };
        Accuracy {
            accumulation,
            ..Accuracy::EXACT
        }
    }

    fn supports(&self, request: &Request) -> Support {
        match request {
            Request::Activation { op, .. } | Request::ActivationQuant { op, .. } => supports_op(op),
            Request::Quantize { .. } => Support::Native,
            Request::Matmul { weight, .. } => supports_weight(*weight),
            Request::GatedMatmul { op, weight, .. } => {
                supports_op(op).and(supports_weight(*weight))
            }
            Request::QuantizedMatmul { weight, .. } => supports_weight(*weight).and(
                Support::Emulated("codes are widened before the matmul".to_owned()),
            ),
            Request::Route { weight, .. } => supports_weight(*weight),
            Request::GroupedGatedMatmul { op, weight, .. } => {
                supports_op(op).and(supports_weight(*weight))
            }
            Request::GroupedMatmulSum { weight, .. } => supports_weight(*weight),
            _ => Support::No(format!("{request} is not known to this backend")),
        }
    }

    fn scratch(&self, request: &Request, shape: &Shape) -> usize {
        match request {
            // Codes, widened.
            Request::QuantizedMatmul { .. } => {
                shape.rows.saturating_mul(shape.depth).saturating_mul(2)
            }
            _ => Scratch::of(request, shape).bytes(),
        }
    }

    fn plan(&self, request: &Request, shape: &Shape) -> Option<String> {
        let &Shape { rows, cols, depth } = shape;
        let matmul = |x: Float, weight: &WeightFormat, gated: bool| {
            let weight = PackedShape::new([cols, depth], *weight, gated)?;
            Some(self.matmul_plan(rows, x, &weight).to_string())
        };
        let elementwise = |cols, float| self.activation_plan([rows, cols], float);
        match request {
            Request::Activation { float, .. } => Some(elementwise(cols, *float).to_string()),
            Request::ActivationQuant { float, .. } | Request::Quantize { float, .. } => {
                // Codes are read again at once, and so never stored past the caches.
                let ActivationPlan { set, split, .. } = elementwise(cols, *float);
                Some(format!("{set}, {split}"))
            }
            Request::Matmul { x, weight, .. } => matmul(*x, weight, false),
            Request::GatedMatmul {
                op, x, weight, act, ..
            } => {
                let sums = matmul(*x, weight, true)?;
                if is_fused(op) {
                    return Some(format!("{sums}, fused with the activation"));
                }
                let activation = elementwise(cols / 2, *act);
                Some(format!("{sums}; then {activation}"))
            }
            Request::Route { x, weight, .. } => {
                let logits = matmul(*x, weight, false)?;
                Some(format!("{logits}; then scores and a sort"))
            }
            Request::GroupedGatedMatmul { op, x, weight, .. } => {
                let _ = KnownActivation::new(op)?;
                let each = matmul(*x, weight, true)?;
                Some(format!(
                    "all experts together; of one with all rows: {each}"
                ))
            }
            Request::GroupedMatmulSum { weight, .. } => {
                let each = matmul(Float::BF16, weight, false)?;
                Some(format!(
                    "all experts together; of one with all rows: {each}; then sums"
                ))
            }
            Request::QuantizedMatmul { weight, .. } => {
                let widening = elementwise(depth, Float::BF16).split;
                let sums = matmul(Float::BF16, weight, false)?;
                Some(format!("widened to bf16 in {widening}; {sums}"))
            }
            _ => None,
        }
    }
}

impl ActAndMul for CpuBackend {
    fn act_and_mul(
        &self,
        op: &GatedActivation,
        input: GateUp<'_, Self>,
        output: TensorMut<'_, Self>,
    ) -> Result<()> {
        check::act(&input, &output)?;
        self.activate(&known(op)?, &input, output)
    }
}

impl Matmul for CpuBackend {
    type Weight = PackedWeight;

    fn load_weight(&self, parts: &[HostWeight<'_>]) -> Result<PackedWeight> {
        self.in_pool(|| PackedWeight::stacked(parts))
    }

    fn load_gate_up(&self, gate: HostWeight<'_>, up: HostWeight<'_>) -> Result<PackedWeight> {
        self.in_pool(|| PackedWeight::gate_up(gate, up))
    }

    fn weight_shape(&self, weight: &PackedWeight) -> [usize; 2] {
        [weight.shape().n, weight.shape().k]
    }

    fn weight_bytes(&self, weight: &PackedWeight) -> usize {
        weight.bytes()
    }

    fn matmul(
        &self,
        x: Tensor<'_, Self>,
        weight: &PackedWeight,
        y: TensorMut<'_, Self>,
    ) -> Result<()> {
        check::matmul(&x, self.weight_shape(weight), &y)?;
        self.multiply_and_round("y", &x, weight, y)
    }

    /// `gate_up` is left unwritten where the weight came from [`Self::load_gate_up`] and the
    /// activation's layout is not interleaved: its results stay in registers and caches.
    fn matmul_act_and_mul(
        &self,
        op: &GatedActivation,
        x: Tensor<'_, Self>,
        weight: &PackedWeight,
        mut gate_up: TensorMut<'_, Self>,
        act: TensorMut<'_, Self>,
    ) -> Result<()> {
        let _: ActShape = check::gated_matmul(&x, self.weight_shape(weight), &gate_up, &act)?;
        let activation = known(op)?;
        if !weight.is_gated() || !is_fused(op) {
            self.multiply_and_round("gate_up", &x, weight, gate_up.reborrow())?;
            return self.activate(&activation, &gate_up.as_tensor().into(), act);
        }
        with_float!(act.float, T => {
            let act = rows_mut::<T>("act", act)?;
            self.multiply(&x, weight, &Activated::new(&activation, act))
        })
    }
}
